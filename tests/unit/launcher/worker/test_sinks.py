"""The sinks of a run: what the user's see, and whose errors are whose."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError, UserCodeError
from launcher.recovery.attempt import AttemptSpec
from launcher.recovery.faults import rule_for
from launcher.run.directory import RunDirectory
from launcher.worker.assignment import Assignment
from launcher.worker.sinks import UsersSink, hyperparameters
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import train_worker
from resnet_dist.errors import MissingPackage, RecipeError
from resnet_dist.recipe.schema import plain

MODULE = "users_sinks_of_worker_test"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{MODULE}.py").write_text(
        "import json\n"
        "class Sink:\n"
        "    def __init__(self, directory, config):\n"
        "        self.file = (directory / 'seen.jsonl').open('a')\n"
        "        self.write({'name': config['name']})\n"
        "    def write(self, record):\n"
        "        self.file.write(json.dumps(record) + '\\n')\n"
        "        record.clear()\n"
        "    def close(self):\n"
        "        self.file.close()\n"
        "        (__import__('pathlib').Path(self.file.name).with_name('closed')).touch()\n"
        "class Wrong(Sink):\n"
        "    def write(self, record):\n"
        "        if record.get('step') == 2:\n"
        "            raise ConnectionError('Connection refused by the tracker')\n"
        "def raises(directory, config):\n"
        "    raise KeyError('no account')\n"
        "def nothing(directory, config): ...\n"
        "def other(run): ...\n"
        "def margin(logits, labels):\n    return logits.amax(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def config(tmp_path: Path, write_images: Callable[[Path], Path]) -> Callable[..., RunConfig]:
    write_images(tmp_path / "images")

    def load(*log: str) -> RunConfig:
        (tmp_path / "run.yaml").write_text(
            "schema: 1\nname: run\nstorage: runs\nplace: local\nduration: 3 steps\nfaults: {preflight: false}\n"
            "model: {name: resnet20, num_classes: 2}\ndata: {root: images, resolution: 8}\n"
            f"batch: {{size: 6}}\nschedule: {{peak_lr: 0.01}}\nevaluate: {{metrics: ['{MODULE}:margin']}}\n"
            f"log: {{every_steps: 1, {', '.join(log)}}}\n"
        )
        return configs.load(tmp_path / "run.yaml")

    return load


def train(config: RunConfig) -> RunDirectory:
    run = RunDirectory(Path(config.storage), config.name)
    run.logs(1).path.mkdir(parents=True)
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0)
    train_worker(config, assignment, FileSupervisor(run.logs(1), 0))
    return run


def test_a_sink_of_the_user_sees_every_record_of_the_file_and_is_closed(config: Callable[..., RunConfig]) -> None:
    run = train(config("tensorboard: false", f"sinks: ['{MODULE}:Sink']"))
    written = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    first, *seen = [json.loads(line) for line in (run.path / "seen.jsonl").read_text().splitlines()]
    assert first == {"name": "run"}
    assert json.loads(json.dumps(seen), parse_constant=lambda _: None) == written
    assert {"train", "eval", "event"} <= {record["kind"] for record in seen}
    [evaluated] = [record for record in seen if record["kind"] == "eval"][-1:]
    assert set(evaluated["metrics"]) == {"margin"}
    assert (run.path / "closed").exists()


def test_an_error_of_a_users_sink_is_one_of_the_users_code_and_the_others_are_closed(
    config: Callable[..., RunConfig],
) -> None:
    with pytest.raises(UserCodeError, match=f"{MODULE}:Wrong: ConnectionError: Connection refused by") as caught:
        train(config("tensorboard: false", f"sinks: ['{MODULE}:Wrong', '{MODULE}:Sink']"))
    assert rule_for(caught.value).exit_code == 1
    assert "in write" in caught.value.__notes__[0]
    [closed] = Path(config("tensorboard: false").storage).glob("run/closed")
    assert closed.exists()


def test_an_error_of_the_function_is_one_of_the_users_code(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=f"{MODULE}:raises: KeyError: 'no account'"):
        UsersSink(f"{MODULE}:raises", tmp_path, {})


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("other", r"other' cannot be called with \(directory=, config=\)"),
        ("nothing", "nothing' returned an object of type NoneType without write"),
    ],
)
def test_a_function_that_makes_no_sink_is_refused_before_training(function: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        UsersSink(f"{MODULE}:{function}", tmp_path, {})
    assert caught.value.key == "log.sinks"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"sinks: ['{MODULE}']", r"log\.sinks: found .*Allowed: package\.module:function"),
        ("prometheus: a/b.txt", r"log\.prometheus: found .*Allowed: a file whose name ends with \.prom"),
        ("wandb: a/b", r"log\.wandb: found .*Allowed: a project's name"),
        ("tensorboard: false, tensorboard_images: 4", r"log\.tensorboard_images: found 4, which has no effect"),
    ],
)
def test_a_sink_that_cannot_work_is_refused_in_the_config(
    line: str, message: str, config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(line)


def test_a_run_writes_images_hyperparameters_and_prometheus_file_without_changing_the_training(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(config("tensorboard_images: 4", "prometheus: run.prom"))
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    images = events.Tags()["images"]
    assert [tag[: len("images/01: ")] for tag in images] == [f"images/0{number}: " for number in range(1, 5)]
    assert {tag.rpartition(" ")[2] for tag in images} <= {"cat", "dog"}
    assert "evaluation/margin" in events.Tags()["scalars"]
    assert 'resnet_state{run="run",state="finished"} 1.0' in (tmp_path / "run.prom").read_text()
    shown = losses(run)
    run.path.rename(tmp_path / "before")
    assert losses(train(config("tensorboard: false"))) == shown


def losses(run: RunDirectory) -> list[float]:
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert all(record["memory_bytes"] > 10**7 for record in records if record["kind"] == "train")
    return [record["loss"] for record in records if record["kind"] == "train"]


def test_a_sink_that_cannot_be_written_is_a_warning_in_the_records(
    config: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        run = train(config("tensorboard: false", "prometheus: file/run.prom"))
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    [warning] = [record["detail"]["text"] for record in records if record.get("event") == "warning"]
    assert warning.startswith("log.prometheus: ")


def test_a_package_that_is_missing_ends_the_run_before_training(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(MissingPackage, match=r"resnet-launcher\[wandb\]") as caught:
        train(config("wandb: demo"))
    assert rule_for(caught.value).exit_code == 78


def test_the_hyperparameters_are_plain_values_by_their_keys(config: Callable[..., RunConfig]) -> None:
    found = hyperparameters(plain(config()))
    assert found["model.name"] == "resnet20"
    assert found["duration"] == "3 steps"
    assert "ema.decay" not in found  # null
