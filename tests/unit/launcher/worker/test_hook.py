"""The user's hook: it sees what metrics.jsonl gets, and its errors are the user's."""

from __future__ import annotations

import json
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
from launcher.worker.supervisor import FileSupervisor
from launcher.worker.train import load_hook, train_worker
from resnet_dist.errors import RecipeError

HOOK = "users_hook_of_worker_test"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{HOOK}.py").write_text(
        "import json, pathlib\n"
        "file = pathlib.Path(__file__).with_name('seen.jsonl')\n"
        "def seen(record):\n"
        "    with file.open('a') as stream:\n"
        "        stream.write(json.dumps(record) + '\\n')\n"
        "    record.clear()\n"
        "def wrong(record):\n"
        "    if record.get('step') == 2:\n"
        "        raise ConnectionError('Connection refused by the tracker')\n"
        "def two(record, more): ...\n"
        "def margin(logits, labels):\n    return logits.amax(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def config(tmp_path: Path, write_images: Callable[[Path], Path]) -> Callable[..., RunConfig]:
    write_images(tmp_path / "images")

    def load(function: str) -> RunConfig:
        (tmp_path / "run.yaml").write_text(
            "schema: 1\nname: run\nstorage: runs\nplace: local\nduration: 3 steps\nfaults: {preflight: false}\n"
            "model: {name: resnet20, num_classes: 2}\ndata: {root: images, resolution: 8}\n"
            f"batch: {{size: 6}}\nschedule: {{peak_lr: 0.01}}\nevaluate: {{metrics: ['{HOOK}:margin']}}\n"
            f"log: {{every_steps: 1, tensorboard: false, hook: '{HOOK}:{function}'}}\n"
        )
        return configs.load(tmp_path / "run.yaml")

    return load


def train(config: RunConfig) -> RunDirectory:
    run = RunDirectory(Path(config.storage), config.name)
    run.logs(1).path.mkdir(parents=True)
    assignment = Assignment(AttemptSpec(1), rank=0, world_size=1, local_rank=0)
    train_worker(config, assignment, FileSupervisor(run.logs(1), 0))
    return run


def test_a_hook_sees_every_record_of_the_file(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = train(config("seen"))
    written = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(seen), parse_constant=lambda _: None) == written
    assert {"train", "eval", "event"} <= {record["kind"] for record in seen}
    [evaluated] = [record for record in seen if record["kind"] == "eval"][-1:]
    assert set(evaluated["metrics"]) == {"margin"}


def test_an_error_of_a_hook_is_one_of_the_users_code(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserCodeError, match=f"{HOOK}:wrong: ConnectionError: Connection refused by") as caught:
        train(config("wrong"))
    assert rule_for(caught.value).exit_code == 1
    assert "in wrong" in caught.value.__notes__[0]


def test_a_hook_that_takes_other_arguments_is_refused_before_training() -> None:
    with pytest.raises(RecipeError, match=r"two' cannot be called with \(\.\.\.\)") as caught:
        load_hook(f"{HOOK}:two")
    assert caught.value.key == "log.hook"


def test_a_hook_must_be_named_as_a_function(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"log\.hook: found \".*:not a name\"\. Allowed: package\.module:function"):
        config("not a name")
