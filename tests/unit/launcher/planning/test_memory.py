"""The memory of a worker: the estimate, beside what earlier runs used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.planning import memory
from launcher.planning.memory import DaliMemory, Estimate, Measured
from launcher.run.directory import RunDirectory
from resnet_dist.data.decoding import choice

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")
GIB = 2**30


def config(storage: Path, *overrides: str) -> RunConfig:
    return configs.load(CONFIG, [f"storage={storage}", *overrides])


def record(storage: Path, name: str, *overrides: str, **memory_bytes: int) -> None:
    """A finished run that used this memory."""
    run = RunDirectory(storage, name)
    run.create()
    run.write_config(configs.to_yaml(config(storage, f"name={name}", *overrides)))
    run.metrics.write_text(json.dumps({"kind": "train", "step": 1, **memory_bytes}) + "\n")
    run.mark_finished({"top1": 0.5})


def test_the_estimate_is_of_the_worker_with_the_most_images(tmp_path: Path) -> None:
    found = memory.estimate(config(tmp_path, "workers=24"))  # 342 or 341 of 8,192
    assert found is not None
    assert found.num_samples == 342
    assert found.total == found.static + 342 * found.sample
    assert memory.estimate(config(tmp_path, "model={name: 'package.module:function'}")) is None


def test_a_run_of_the_same_configuration_with_another_seed_is_a_measurement(tmp_path: Path) -> None:
    record(tmp_path, "other", "workers=32", gpu_memory_bytes=9 * GIB)
    assert memory.measured(config(tmp_path)) is None
    record(tmp_path, "same", "seed=3", "duration=90 epochs", gpu_memory_bytes=7 * GIB)
    assert memory.measured(config(tmp_path)) == Measured(run="same", gpu=7 * GIB, host=None)


def test_the_run_itself_comes_first(tmp_path: Path) -> None:
    record(tmp_path, "same", gpu_memory_bytes=7 * GIB)
    record(tmp_path, "rn50-8node", gpu_memory_bytes=8 * GIB)
    found = memory.measured(config(tmp_path))
    assert found is not None
    assert found.run == "rn50-8node"


@pytest.mark.parametrize(("gpu", "is_off"), [(100, False), (119, False), (130, True), (84, False), (80, True)])
def test_a_fifth_is_too_much(gpu: int, is_off: bool) -> None:
    estimate = Estimate(static=50, sample=5, num_samples=10)
    assert memory.differs(estimate, Measured(run="run", gpu=gpu, host=None)) is is_off


def test_the_memory_of_a_process_is_not_compared() -> None:
    assert not memory.differs(Estimate(static=1, sample=1, num_samples=1), Measured(run="run", gpu=None, host=GIB))


@pytest.mark.parametrize(
    ("used", "said", "warns"),
    [
        (
            {"gpu_memory_bytes": 7 * GIB},
            "measured 7.0 GiB of its GPU by rank 0 in same: the estimate is 7% lower",
            False,
        ),
        ({"gpu_memory_bytes": 12 * GIB}, "measured 12.0 GiB of its GPU by rank 0 in same: the estimate is 45% l", True),
        ({"memory_bytes": GIB}, "measured 1.0 GiB by the whole process of rank 0 in same, with PyTorch itself", False),
    ],
)
def test_the_plan_shows_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], used: dict[str, int], said: str, warns: bool
) -> None:
    record(tmp_path, "same", **used)
    assert cli.main(["plan", CONFIG, f"storage={tmp_path}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert said in text
    assert ("trust the measurement" in text.partition(" Result ")[0]) is warns


# --- DALI


@pytest.fixture(params=[True, False], ids=["DALI", "no DALI"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("precise", "pipelines"),
    [(0, ("training", "evaluation")), (10, ("training", "evaluation", "precise batch norm"))],
)
def test_dali_has_buffers_for_each_thread_of_its_pipelines(
    installed: bool, precise: int, pipelines: tuple[str, ...], tmp_path: Path
) -> None:
    """One on the GPU and two in pinned memory."""
    keys = ["resources.cpus_per_worker=6", "data.dali={device_padding_mib: 100, host_padding_mib: 30}"]
    found = memory.of_dali(config(tmp_path, *keys, f"evaluate.precise_batch_norm={precise}"))
    mib, threads = 2**20, 6 * len(pipelines)
    expected = DaliMemory(gpu=threads * 100 * mib, pinned=threads * 2 * 30 * mib, pipelines=pipelines, num_threads=6)
    assert found == (expected if installed else None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "keys",
    [
        ["data.decoder=torchvision"],
        ["resources.gpus_per_worker=0"],
        ["data.source=synthetic", 'data.root=""', "data.num_samples=1000"],
    ],
)
def test_where_dali_decodes_nothing_on_a_gpu_it_has_no_buffers(keys: list[str], tmp_path: Path) -> None:
    assert memory.of_dali(config(tmp_path, *keys)) is None


def test_a_plan_counts_the_buffers_of_dali(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "dali_is_installed", lambda: True)
    cli.main(["plan", CONFIG, f"storage={tmp_path}", "resources.cpus_per_worker=8"])
    text = " ".join(capsys.readouterr().out.split())
    assert "DALI buffers of 3.2 GiB on the GPU and 4.2 GiB of pinned host memory for each worker" in text
    assert "2 pipelines (training, evaluation) of 8 threads, each with 202 MiB and twice 135 MiB" in text
