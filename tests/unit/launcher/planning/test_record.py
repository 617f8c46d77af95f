"""forecast.json: written once, at the first start, and read whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.config.schema import RunConfig, Workers
from launcher.planning import record
from launcher.planning.forecast import Interval
from launcher.planning.prediction import predict
from launcher.run.directory import RunDirectory

TIMES = {"start_s": 5.0, "training_s": 40.0, "evaluation_s": 4.0, "saving_s": 1.0}


@pytest.fixture
def run(config: RunConfig, trained: Any, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """Not started, in a storage with one finished run."""
    monkeypatch.setattr(record, "_READING_S", 60.0)
    trained(config, "earlier", **TIMES)
    run = RunDirectory(Path(config.storage), config.name)
    run.create()
    return run


def test_what_is_written_is_read(config: RunConfig, run: RunDirectory) -> None:
    accuracy = Interval(low=0.7, median=0.75, high=0.8)
    record.write(config, run, accuracy)
    found = record.read(run)
    assert found is not None
    assert found.forecast == predict(config)
    assert found.accuracy == accuracy
    assert len(found.configuration) == 16
    assert json.loads(run.forecast.read_text())["format"] == 1


def test_a_resumed_run_keeps_its_first_forecast(config: RunConfig, run: RunDirectory, trained: Any) -> None:
    record.write(config, run)
    first = run.forecast.read_text()
    trained(config, "much-slower", **{**TIMES, "training_s": 4000.0})
    record.write(config, run)
    assert run.forecast.read_text() == first
    run.forecast.unlink()
    run.begin_attempt()
    record.write(config, run)
    assert not run.forecast.exists()


def test_the_workers_are_those_that_will_train(
    config: RunConfig, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `place: local` the environment decides, not the config."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    record.write(replace(config, workers=Workers(5, 5)), run)
    assert not run.forecast.exists()  # the earlier run had one worker: no evidence for two
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    record.write(replace(config, workers=Workers(5, 5)), run)
    found = record.read(run)
    assert found is not None
    assert found.forecast.workers == 1


@pytest.fixture
def two_here(config: RunConfig) -> RunConfig:
    """A config of 8 workers on 4 nodes, of which a start with place local makes 2 on this machine."""
    resources = replace(config.resources, local_workers=2)
    return replace(config, workers=Workers(8, 8), resources=resources, cluster=replace(config.cluster, nodes=4))


def test_workers_of_this_machine_are_those_that_will_train(
    two_here: RunConfig, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_READING_S", 60.0)
    trained(two_here, "earlier", workers=2, **TIMES)
    run = RunDirectory(Path(two_here.storage), two_here.name)
    run.create()
    record.write(two_here, run)
    found = record.read(run)
    assert found is not None
    assert (found.forecast.workers, found.forecast.evidence) == (2, "own run")
    assert found.forecast.source == "1 run of the same configuration: earlier"


def test_a_plan_has_the_workers_of_this_machine(
    two_here: RunConfig, trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(two_here, "earlier", workers=2, **TIMES)
    run.metrics.write_text(json.dumps({"kind": "train", "step": 20, "memory_bytes": 2**30}) + "\n")
    file = tmp_path / "two.yaml"
    file.write_text(configs.to_yaml(two_here))
    assert cli.main(["plan", str(file)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " workers 2 on 1 node, " in text
    assert "batch 5 images per worker and micro-batch" in text
    assert "evidence own runs: 1 run of the same configuration: earlier" in text
    assert "measured 1.0 GiB by the whole process of rank 0 in earlier" in text
    assert "exchanged in teams of up to 2 workers" in text


def test_one_process_exchanges_nothing_whatever_the_workers(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(configs.to_yaml(replace(config, workers=Workers(2, 2))))
    assert cli.main(["plan", str(file), "batch_norm.span=10"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " workers 1 on 1 node, " in text
    assert "spans lie on several workers" not in text
    assert "nothing is exchanged" in text


def test_without_evidence_nothing_is_written(config: RunConfig, run: RunDirectory) -> None:
    record.write(replace(config, precision="bfloat16"), run)
    assert not run.forecast.exists()
    assert record.read(run) is None


def test_a_forecast_that_fails_does_not_fail_the_run(
    config: RunConfig, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("no time")

    monkeypatch.setattr(record, "predict", broken)
    record.write(config, run)
    assert "cannot be predicted: ZeroDivisionError: no time" in caplog.text
    assert not run.forecast.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: "{",
        lambda content: "[]",
        lambda content: "{}",
        lambda content: json.dumps({**content, "forecast": None}),
        lambda content: json.dumps({**content, "forecast": {**content["forecast"], "wall_s": {"low": 9, "median": 1}}}),
        lambda content: json.dumps({**content, "forecast": {**content["forecast"], "evidence": "tea leaves"}}),
        lambda content: json.dumps({**content, "forecast": {**content["forecast"], "workers": "two"}}),
        lambda content: json.dumps({**content, "configuration": 3}),
    ],
    ids=["torn", "no object", "empty", "no forecast", "no interval", "unknown evidence", "no number", "no text"],
)
def test_an_unreadable_record_counts_as_none(config: RunConfig, run: RunDirectory, spoil: Any) -> None:
    record.write(config, run)
    run.forecast.write_text(spoil(json.loads(run.forecast.read_text())))
    assert record.read(run) is None


def test_keys_of_a_newer_version_are_ignored(config: RunConfig, run: RunDirectory) -> None:
    record.write(config, run)
    content = json.loads(run.forecast.read_text())
    content |= {"new": 1, "accuracy": {"low": 2, "median": 1, "high": 0}}
    content["forecast"] |= {"moon_phase": "full"}
    run.forecast.write_text(json.dumps(content))
    found = record.read(run)
    assert found is not None
    assert found.accuracy is None
    assert asdict(found.forecast).keys().isdisjoint({"moon_phase"})


def test_the_start_of_a_run_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, launcher.planning.record; print({'torch', 'numpy', 'ray'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
