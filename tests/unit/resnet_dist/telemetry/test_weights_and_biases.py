"""Weights & Biases: offline runs as they are on the disk, and what happens without a server."""

from __future__ import annotations

import importlib.util
import json
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resnet_dist.errors import MissingPackage
from resnet_dist.telemetry import weights_and_biases
from resnet_dist.telemetry.weights_and_biases import WeightsAndBiases

CONFIG = {"seed": 3, "optimizer": {"name": "lars"}}


def train(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0 / step, "sample_ids": 123}


def evaluation(step: int, top1: float) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "top1": top1}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


class FakeRun:
    """A run of W&B."""

    def __init__(self, step: int = 0) -> None:
        self.step, self.logged, self.finished = step, list[tuple[int, dict[str, float]]](), False

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module wandb; `arguments` are those of each `init`, and `run` is what it returns or raises."""
    module = SimpleNamespace(Settings=SimpleNamespace, arguments=[], run=FakeRun(), setup=lambda settings: None)

    def init(**arguments: Any) -> FakeRun:
        module.arguments.append(arguments)
        if module.online is not None and arguments["mode"] != "offline":
            raise module.online
        if isinstance(module.run, Exception):
            raise module.run
        run: FakeRun = module.run
        return run

    module.online = None

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module)
    return module


def log(folder: Path, *records: dict[str, Any]) -> None:
    sink = WeightsAndBiases("project", "rn50", folder / "wandb", CONFIG)
    for record in records:
        sink.write(record)
    sink.close()


def written(folder: Path) -> list[tuple[str, Any]]:
    """The kind and the content of each record in the offline runs, once W&B's process has written their ends."""
    deadline = time.monotonic() + 20
    while True:
        found = list(_written(folder))
        ends = sum(kind == "exit" for kind, _ in found)
        if ends == len(list(folder.glob("wandb/offline-run-*"))) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _written(folder: Path) -> Iterator[tuple[str, Any]]:
    """The records on the disk: a log in LevelDB's format, of protocol buffers."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
                continue
            _, size, part = struct.unpack("<IHB", data[at : at + 7])
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if part in (1, 4):  # the whole record, or its last part
                try:
                    record = wandb_internal_pb2.Record.FromString(whole)
                except DecodeError:  # the end of a file that is being written
                    break
                kind, whole = record.WhichOneof("record_type"), b""
                yield kind, getattr(record, kind)


def test_an_offline_run_has_the_charts_the_config_and_the_result(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers, hook = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.excepthook
    log(tmp_path, train(1), train(2), evaluation(2, 0.25), train(4), evaluation(3, 0.5))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sys.excepthook is hook
    assert capfd.readouterr() == ("", "")
    history, config, summary = [], {}, {}
    for kind, content in written(tmp_path):
        if kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in content.item}
            history.append({key: value for key, value in items.items() if key == "_step" or not key.startswith("_")})
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in content.config.update}
            assert (content.project, content.display_name) == ("project", "rn50")
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key): item.value_json for item in content.update}
    assert history == [
        {"_step": 1, "train/loss": 1.0},
        {"_step": 2, "train/loss": 0.5, "evaluation/top-1": 0.25, "evaluation/step": 2},
        {"_step": 4, "train/loss": 0.25, "evaluation/top-1": 0.5, "evaluation/step": 3},  # came late
    ]
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert summary["evaluation/top-1"] == "0.5"


def test_a_later_attempt_continues_the_run_and_no_step_comes_twice(tmp_path: Path, fake: SimpleNamespace) -> None:
    log(tmp_path, train(1), train(2))
    fake.run = FakeRun(step=3)  # what the server has, and one more
    log(tmp_path, train(2), train(3), evaluation(2, 0.5), train(4))
    first, second = fake.arguments
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert [step for step, _ in fake.run.logged] == [3, 3, 4]
    assert fake.run.finished


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"log\.wandb: needs wandb.*resnet-launcher\[wandb\]"):
        WeightsAndBiases("project", "rn50", tmp_path / "wandb", CONFIG)


def test_without_an_account_or_a_server_the_run_is_logged_offline(
    tmp_path: Path, fake: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    fake.online = RuntimeError("No API key configured.\nUse `wandb login`")
    log(tmp_path, train(1))
    assert [step for step, _ in fake.run.logged] == [1]
    offline = f"It is logged offline: `wandb sync {tmp_path}/wandb/offline-run-*` uploads it later"
    problem = "RuntimeError: No API key configured. Use `wandb login`"
    assert caplog.messages == [f"Weights & Biases: {problem}. {offline}"]


def test_an_error_of_wandb_is_a_warning_and_later_records_are_ignored(
    tmp_path: Path, fake: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    fake.run = RuntimeError("the disk is full")
    sink = WeightsAndBiases("project", "rn50", tmp_path / "wandb", CONFIG)
    sink.write(train(1))
    sink._thread.join(10)
    for step in range(2, 5):
        sink.write(train(step))
    sink.close()
    assert caplog.messages[0].startswith("Weights & Biases: RuntimeError: the disk is full.")
    assert len(caplog.messages) == 1


def test_a_server_that_does_not_answer_holds_up_neither_a_record_nor_the_end(
    tmp_path: Path, fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()
    fake.run.finish = lambda: answered.wait(30)
    monkeypatch.setattr(weights_and_biases, "CLOSE_S", 0.1)
    began = time.monotonic()
    log(tmp_path, *map(train, range(1, 100)))
    assert time.monotonic() - began < 10
    answered.set()
    assert "the upload has not ended after 0.1 s" in caplog.text
