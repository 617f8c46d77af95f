"""The lines of a plan: warnings, spans, averages and the preemption notice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launcher import cli
from launcher.commands import plan_disks
from launcher.errors import ConfigError
from launcher.planning.preemption import preemption_notice
from launcher.run.directory import RunDirectory
from resnet_dist.recipe.schema import DataRecipe

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")


def test_a_folder_that_is_missing_is_named_at_the_top(capsys: pytest.CaptureFixture[str]) -> None:
    lines = plan(capsys, "data.root=/nowhere").splitlines()
    assert lines[2:5] == [
        "1 warning",
        "  WARNING: there is no folder /nowhere/train on this machine; data.num_samples",
        "  is used",
    ]


def test_without_images_and_without_their_number_there_is_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", CONFIG, "data.root=/nowhere", "data.num_samples=null"]) == 78
    expected = "error: command line: data.root=/nowhere: data.root: there is no folder /nowhere/train on this machine."
    assert capsys.readouterr().err.startswith(expected)


def test_a_folder_with_a_similar_name_and_the_command_that_writes_one_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, missing in (("digits", "digitz"), ("cifar-10", "cifar10")):
        (tmp_path / name / "train").mkdir(parents=True)
        assert cli.main(["plan", CONFIG, f"data.root={tmp_path / missing}", "data.num_samples=null"]) == 78
        text = flat(capsys.readouterr().err)
        assert text.strip().endswith(f". Did you mean {tmp_path / name}?")
        assert (f"launcher prepare cifar10 {tmp_path / 'cifar10'}" in text) == (missing == "cifar10")


def test_shards_without_their_source_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.json").touch()
    assert cli.main(["plan", CONFIG, f"data.root={tmp_path}", "data.num_samples=null"]) == 78
    assert "on this machine. card.json is of packed shards: set data.source=packed. Allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "num_shards", "said"),
    [
        ("imagefolder", 0, "blocks of 1,000 images"),
        ("packed", None, "shards"),
        ("webdataset", 1024, "1,024 shards"),
    ],
)
def test_the_order_of_shards_is_shown(source: str, num_shards: int | None, said: str) -> None:
    data = DataRecipe(source=source, order="shards", shuffle_window=4096)
    text = flat("\n".join(plan_disks.lines(data, None, num_shards)))
    assert text.startswith(f"order {said} in random order; samples are shuffled within windows of 4,096 disks")
    assert "order" not in "".join(plan_disks.lines(DataRecipe(source=source), None, num_shards))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("place=local",), "1 worker process on this machine; 1 idle process for a fast restart, about"),
        (("place=local", "resources.local_workers=2", "faults.warm_spares=2"), "2 idle processes for a fast restart"),
        (("place=local", "faults.warm_spares=0"), "1 worker process on this machine, no idle one"),
        (("place=local", "faults.max_failures=0"), None),
        (("place=local", "faults.max_failures=0", "resources.local_workers=2"), "no idle one (faults.max_failures)"),
        (
            ("place=ray",),
            "8 idle processes on each node for a fast restart, about 591.3 MiB each, if they fit",
        ),
        (("place=ray", "faults.warm_spares=1"), "1 idle process on each node for a fast restart, about 591.3 MiB (f"),
        (("place=ray", "faults.warm_spares=0"), "no idle process (faults.warm_spares)"),
    ],
)
def test_the_idle_processes_of_this_machine_are_shown_with_their_memory(
    overrides: tuple[str, ...], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = flat(plan(capsys, "data.root=/nowhere", *overrides))
    if said is None:
        assert "idle process" not in text
    else:
        assert said in text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ""),
        (
            ("evaluate.beside=true", "place=local", "resources.gpus_per_worker=0"),
            "beside training, in a process of its own with a lower priority",
        ),
        (
            ("evaluate.beside=true", "resources.gpus_per_worker=0"),
            "on 8 cores of the cluster (jobs: spare_nodes: 1 in the profile) besides those of the workers",
        ),
        (
            ("evaluate.beside=true", "place=local", "resources.gpus_per_worker=1"),
            "on 1 GPU of this machine besides those of the workers; else in turn with training",
        ),
    ],
)
def test_what_evaluations_beside_training_need_is_shown(
    overrides: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = flat(plan(capsys, "data.root=/nowhere", *overrides))
    assert said in text
    assert ("evaluation beside training" in text) == bool(said)


@pytest.mark.parametrize(
    ("has_ray", "said"),
    [
        (True, "if they fit into 10% of the node's memory (faults.warm_spares; place auto: Ray is installed here)"),
        (False, "place auto: Ray is not installed here; 1 worker process on this machine; 1 idle process for a fast"),
    ],
)
def test_the_idle_processes_of_auto_are_those_of_the_place_that_it_is_here(
    has_ray: bool, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.config.schema.has_ray", lambda: has_ray)
    assert said in flat(plan(capsys, "data.root=/nowhere", "place=auto"))


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert cli.main(["plan", CONFIG, *overrides]) == 0
    text = capsys.readouterr().out
    # a path is not broken into lines: it can be copied whole
    assert max(len(line) for line in text.splitlines() if len(line.split()) > 1) <= 80
    return text


def flat(text: str) -> str:
    """The text in one line, with single spaces."""
    return " ".join(text.split())


def test_a_subset_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "data.subset=0.5")
    assert "3,441 = 44 epochs of 640,584 images" in text
    assert "subset        640,584 of the 1,281,167 training images" in text
    assert "44 epochs of 100,000 images" in plan(capsys, "data.subset=100000")
    assert cli.main(["plan", CONFIG, "data.subset=1281168"]) == 78
    assert "data.subset: found 1281168, and the training split has 1281167 images" in capsys.readouterr().err


def test_a_subset_of_the_images_that_are_here_is_counted(
    tmp_path: Path, write_images: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"data.root={write_images(tmp_path / 'images')}", "data.num_samples=null", "duration=10 steps"]
    here += ["schedule.warmup=2 steps"]
    assert "10 steps of 4 images" in plan(capsys, *here, "data.subset=50 %")
    assert "10 steps of 3 images" in plan(capsys, *here, "data.subset=3")
    assert cli.main(["plan", CONFIG, *here, "data.subset=9"]) == 78
    assert "found 9, and the training split has 8 images" in capsys.readouterr().err


def test_images_below_an_address_are_counted_unless_they_are_in_tar_files(
    tmp_path: Path, write_images: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no folder" not in plan(capsys, "data.root=s3://bucket/images")  # its number is given
    files = MemoryFileSystem()
    for path in write_images(tmp_path / "images").rglob("*.jpg"):
        files.pipe_file(f"/bucket/{path.relative_to(tmp_path)}", path.read_bytes())
    here = ["data.root=memory://bucket/images", "data.num_samples=null", "duration=10 steps", "schedule.warmup=2 steps"]
    assert "10 steps of 8 images" in plan(capsys, *here)
    assert cli.main(["plan", CONFIG, *here, "data.source=webdataset"]) == 78
    assert "data.num_samples: is not given, and tar files in memory://bucket/images" in capsys.readouterr().err
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_the_disks_and_the_classes_are_those_of_the_images_that_are_here(
    tmp_path: Path, write_images: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mean = "115 kB an image (ImageNet's mean, not measured here): 1,000 images/s take 115 MB/s, 1,000 opens/s"
    assert f"disks {mean}" in flat(plan(capsys))
    here = [f"data.root={write_images(tmp_path / 'images')}", "data.num_samples=null", "duration=10 steps"]
    here += ["schedule.warmup=2 steps"]
    sizes = [file.stat().st_size for file in (tmp_path / "images/train").rglob("*.*")]
    mean = sum(sizes) / len(sizes)
    shown = f"{mean / 1000:,.0f} kB an image: 1,000 images/s take {mean / 1000:,.2f} MB/s, 1,000 opens/s"
    assert f"disks {shown} " in flat(plan(capsys, *here))
    assert "order blocks of 1,000 images in random order; " in flat(plan(capsys, *here, "data.order=shards"))
    classes = sorted(folder.name for folder in (tmp_path / "images/train").iterdir())
    (tmp_path / "classes").write_text(f"{classes[0]}\n")
    num = len(list((tmp_path / "images/train" / classes[0]).iterdir()))
    assert f"10 steps of {num} images" in plan(capsys, *here, f"data.classes={tmp_path / 'classes'}")
    (tmp_path / "classes").write_text("unknown\n")
    assert cli.main(["plan", CONFIG, *here, f"data.classes={tmp_path / 'classes'}"]) == 78
    assert "unknown is no class of the data" in capsys.readouterr().err


def test_many_small_files_on_a_shared_disk_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.checks.shared_disks.file_system", lambda root, mounts: "nfs4")
    text = flat(plan(capsys, f"data.root={tmp_path}"))
    assert f"WARNING: {tmp_path}: 1,281,167 small files on a shared file system (nfs4)" in text
    assert "small files" not in plan(capsys, f"data.root={tmp_path}", "data.source=packed")


def test_a_speed_key_that_no_gpu_has_run_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "experimental" not in plan(capsys)
    on = plan(capsys, "speed.compile=true", "speed.cuda_graph=true", "batch_norm.span=128")
    for key in ("compile", "cuda_graph"):
        assert f"WARNING: speed.{key} is experimental: no GPU has run it" in on
    on_cpus = plan(capsys, "speed.compile=true", "resources.gpus_per_worker=0")
    assert "experimental" not in on_cpus


def test_a_batch_larger_than_the_data_set_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the batch has more" not in plan(capsys)
    assert "WARNING: the batch has more than the 5,000 images" in plan(capsys, "data.num_samples=5000")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.num_samples=4096"], "every 1 epoch: 22 times, first after step 1"),  # two epochs in each of 22 steps
        (["data.num_samples=4096", "duration=5 steps"], "every 1 epoch: 5 times, first after step 1"),
        (["evaluate.every=10 %"], "every 4.4 epochs: 10 times, first after step 689"),
        ([], "every 1 epoch: 44 times, first after step 157"),
    ],
)
def test_evaluations_are_counted_as_they_will_be(
    capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    warmup = ["schedule.warmup=10 %"]
    assert said in plan(capsys, *warmup, *overrides)


def test_a_target_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "target" not in plan(capsys)
    assert "  target        top-1 75.90%: the first evaluation" in plan(capsys, "stop_at.top1=75.9 %")
    assert "  target        loss 0.5: the first evaluation" in plan(capsys, "stop_at.loss=0.5")


@pytest.mark.parametrize(
    ("overrides", "is_said"),
    [
        (["evaluate.every=100 %"], True),
        (["duration=1 epoch", "schedule.warmup=0 steps"], True),
        (["duration=158 steps", "schedule.warmup=0 steps"], False),  # an epoch ends in step 157
        ([], False),
    ],
)
def test_a_target_that_can_end_no_run_early_is_said(
    capsys: pytest.CaptureFixture[str], overrides: list[str], is_said: bool
) -> None:
    text = plan(capsys, "stop_at.loss=0.5", *overrides)
    assert ("WARNING: the only evaluation is after the last step" in text) is is_said


def test_the_corners_of_a_trapezoid(capsys: pytest.CaptureFixture[str]) -> None:
    trapezoid = "schedule={peak_lr: 2, warmup: 10 %, decay: trapezoid, end_lr: 0.5}"
    rates = plan(capsys, "duration=100 steps", trapezoid).splitlines()
    assert [" ".join(line.split()) for line in rates if line.startswith("    step ")] == [
        "step 0 0.2 first step",
        "step 9 2 end of warm-up",
        "step 50 2 half way",
        "step 80 2 start of decay",
        "step 99 0.575 last step",
    ]


def test_the_moving_average_is_shown_with_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert "moving average" not in plan(capsys)
    assert "over about 2,000 steps" in plan(capsys, "ema={decay: 0.999, every_steps: 2}")


@pytest.mark.parametrize(
    ("ema", "spanned", "part", "fitting"),
    [
        ("{decay: 0.99998, every_steps: 32}", "1,600,000", "100%", "ema.decay=0.8529 ema.every_steps=1"),
        ("{decay: 0.99}", "100", "", ""),
        ("{decay: 0.995}", "200", "51%", "ema.decay=0.8529 ema.every_steps=1"),
    ],
)
def test_a_moving_average_that_is_longer_than_the_run_is_a_warning(
    ema: str, spanned: str, part: str, fitting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = flat(plan(capsys, "duration=136 steps", "schedule.warmup=10 steps", f"ema={ema}"))
    warning = f"WARNING: the moving average spans about {spanned} steps, and the run has 136: at its end,"
    assert (warning in text) == bool(part)
    assert f"the initial weights are still {part} of the average." in text or not part
    assert fitting in text


def test_the_span_that_auto_chooses_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "chosen by auto" not in plan(capsys)
    chosen = plan(capsys, "batch_norm={span: auto}", "batch.size=8320")
    assert "130 spans of 64 images" in chosen
    assert "span 64, chosen by auto: the divisor of 8,320 nearest 64" in chosen
    assert "span global" not in chosen


def test_a_batch_without_a_span_for_auto_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(plan(capsys, "batch_norm={span: auto}", "batch.size=8209").split())  # a prime
    assert "1 span of 8,209 images" in text
    assert (
        "WARNING: span global: no divisor of 8,209 lies between 32 and 128; statistics over the whole batch are the"
        " slowest choice on a cluster"
    ) in text
    assert "slowest" not in plan(capsys, "batch_norm={span: global}", "batch.size=8209")


def test_memory_is_shown_in_a_unit_in_which_it_is_not_0(capsys: pytest.CaptureFixture[str]) -> None:
    small = flat(plan(capsys, "model={name: resnet20}", "data.resolution=8"))
    assert "memory about 10.8 MiB per worker: 3.8 MiB of weights, gradients and momentum, 55.8 KiB for each" in small


def test_resolutions_are_shown_with_their_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  resolution  " not in plan(capsys)
    one = plan(capsys, "evaluate.resolution=256")
    assert "  resolution    224 from step 0; evaluation at 256\n" in one
    three = flat(plan(capsys, "duration=1000 steps", "data.progressive={0 %: 128, 25 %: 160, 500 steps: 192}"))
    assert "resolution 128 from step 0, 160 from step 250, 192 from step 500; evaluation at 224 " in three


def test_the_images_that_are_here_are_listed_as_the_run_lists_them(
    tmp_path: Path, write_images: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    (images / "train" / "cat" / "more").mkdir()
    (images / "train" / "cat" / "0.jpg").rename(images / "train" / "cat" / "more" / "0.jpg")
    (images / "val" / "notes.txt").touch()
    here = [f"data.root={images}", "data.num_samples=null", "duration=10 steps", "schedule.warmup=2 steps"]
    text = plan(capsys, *here)
    assert "10 steps of 8 images" in text
    said = f"WARNING: {images}/val: left out files outside of the class folders: 1, for example notes.txt"
    assert said in flat(text)
    assert "has 2 classes and the model predicts 1000" in flat(text)
    shutil.copytree(images / "train" / "cat", images / "train" / "owl")
    assert cli.main(["plan", CONFIG, *here, "model.num_classes=2"]) == 65
    assert "has 3 classes; the model predicts 2" in capsys.readouterr().err


def test_the_val_images_that_are_here_are_counted(
    tmp_path: Path, write_images: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    small = (f"data.root={images}", "model.num_classes=2", "batch={size: 1}", "batch_norm.span=worker")
    speed = ("resources.gpus_per_worker=0", "precision=float32", "workers=1", "cluster.nodes=1")
    here = [CONFIG, f"storage={tmp_path}", "schedule.warmup=1 step", *small, *speed, "--images-per-s", "40"]
    for number, is_assumed in (("null", False), ("4", True)):
        assert cli.main(["plan", *here, f"data.num_samples={number}"]) == 0
        assert ("number of val images is assumed" in flat(capsys.readouterr().out)) == is_assumed


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path, "run")
    run.create()
    return run


def saved(run: RunDirectory, write_s: float) -> None:
    """Record a save, and a step of 2 s."""
    detail = {"path": "x", "stalled_s": 1.0, "write_s": write_s}
    event = {"kind": "event", "step": 1, "event": "checkpoint", "detail": detail}
    train = {"kind": "train", "step": 1, "step_time_s": 2.0}
    run.metrics.write_text(f"{json.dumps(train)}\n{json.dumps(event)}\n")


def test_a_preemption_notice_is_not_checked_before_the_first_save(run: RunDirectory) -> None:
    assert "not checked" in (preemption_notice(30, run) or "")
    assert preemption_notice(None, run) is None


def test_a_preemption_notice_that_is_long_enough_is_shown(run: RunDirectory) -> None:
    saved(run, write_s=25.0)
    assert "has taken 30.0 s" in (preemption_notice(30, run) or "")


def test_a_preemption_notice_shorter_than_a_save_and_two_steps_is_refused(run: RunDirectory) -> None:
    saved(run, write_s=25.1)
    with pytest.raises(ConfigError, match=r"preemption\.notice_s: found 30, .* 30\.1 s"):
        preemption_notice(30, run)
