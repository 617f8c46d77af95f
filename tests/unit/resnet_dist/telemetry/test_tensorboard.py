"""What TensorBoard shows: read back from its event files."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from resnet_dist.telemetry.tensorboard import TensorBoard

Record = dict[str, Any]


def train(step: int, loss: float = 1.0, **others: Any) -> Record:
    return {"kind": "train", "step": step, "epoch": step / 10, "loss": loss, **others}


def event(step: int, name: str, **detail: Any) -> Record:
    return {"kind": "event", "step": step, "event": name, "detail": detail}


def shown(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def drawn(folder: Path, *records: Record) -> dict[str, list[tuple[int, float]]]:
    """The charts, (step, value) by tag, after these records were written too."""
    sink = TensorBoard(folder)
    for record in records:
        sink.write(record)
    sink.close()
    events = shown(folder)
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_charts_have_groups_and_readable_names(tmp_path: Path) -> None:
    speed = {"images_per_s": 100.0, "step_time_s": 0.5, "data_wait_s": 0.125, "time_left_s": 60.0}
    ratios = {"trust_ratio_min": 0.25, "trust_ratio_median": 0.5, "trust_ratio_max": 0.75}
    step = train(1, 3.0, top1=0.5, gradient_norm=2.0, sample_ids=1234, learning_rate=0.1, memory_bytes=2**30)
    evaluated = {"kind": "eval", "step": 1, "top1": 0.5, "top5": 0.75, "loss": 2.0, "num_samples": 100, "time_s": 4.0}
    evaluated |= {"train_top1": 0.625, "metrics": {"margin": 0.25, "odd": None}, "num_nonfinite": 0, "weights": "ema"}
    assert drawn(tmp_path, event(0, "started", n=1), step | speed | ratios, evaluated, train(2, float("nan"))) == {
        "train/loss": [(1, 3.0)],
        "train/top-1": [(1, 0.5)],
        "train/gradient norm": [(1, 2.0)],
        "optimizer/learning rate": [(1, 0.1)],
        "optimizer/trust ratio/smallest": [(1, 0.25)],
        "optimizer/trust ratio/median": [(1, 0.5)],
        "optimizer/trust ratio/largest": [(1, 0.75)],
        "speed/images per s": [(1, 100.0)],
        "speed/seconds per step": [(1, 0.5)],
        "speed/data wait in s": [(1, 0.125)],
        "memory/host in GiB": [(1, 1.0)],
        "evaluation/top-1": [(1, 0.5)],
        "evaluation/top-5": [(1, 0.75)],
        "evaluation/loss": [(1, 2.0)],
        "evaluation/top-1 of the training split": [(1, 0.625)],
        "evaluation/margin": [(1, 0.25)],
        "speed/seconds per evaluation": [(1, 4.0)],
    }


def test_each_layer_has_charts(tmp_path: Path) -> None:
    layers = {"conv1": {"weight_norm": 2.0, "gradient_norm": 0.5}, "fc": {"weight_norm": 1.0, "activation_std": None}}
    assert drawn(tmp_path, {"kind": "layers", "step": 3, "layers": layers}) == {
        "layers: weight norm/conv1": [(3, 2.0)],
        "layers: weight norm/fc": [(3, 1.0)],
        "layers: gradient norm/conv1": [(3, 0.5)],
    }


def test_the_steps_that_a_resumed_attempt_does_again_are_hidden(tmp_path: Path) -> None:
    drawn(tmp_path, event(0, "started"), train(1, 1.0), train(2, 2.0), train(3, 3.0))
    assert drawn(tmp_path, event(1, "started"), train(2, 20.0)) == {"train/loss": [(1, 1.0), (2, 20.0)]}


def test_the_config_is_a_text_and_the_hyperparameters_belong_to_the_run_of_the_charts(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, "name: x\nseed: 3\n", {"seed": 3, "model.name": "resnet20"})
    for record in (event(0, "started"), {"kind": "eval", "step": 5, "top1": 0.5}, event(5, "finished")):
        sink.write(record)
    sink.close()
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == []  # a folder would be another run
    events = shown(tmp_path)
    [text] = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("config/text_summary")]
    assert text == "```yaml\nname: x\nseed: 3\n\n```"
    content = {
        tag.rsplit("/", 1)[1]: plugin_data_pb2.HParamsPluginData.FromString(data)
        for tag, data in events.PluginTagToContent("hparams").items()
    }
    values = content["session_start_info"].session_start_info.hparams
    assert (values["seed"].number_value, values["model.name"].string_value) == (3.0, "resnet20")
    [metric] = content["experiment"].experiment.metric_infos
    assert metric.name.tag == "evaluation/top-1"
    assert events.Scalars(metric.name.tag)[-1].value == 0.5
    assert content["session_end_info"].session_end_info.status == 1  # success


def test_images_have_captions(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    image = np.full((4, 6, 3), 200, dtype=np.uint8)
    sink.images(1, [("before the first record", image)])
    sink.write(event(0, "started"))
    sink.images(1, [("01: cat", image), ("02: dog", image)])
    sink.close()
    events = shown(tmp_path)
    assert events.Tags()["images"] == ["images/01: cat", "images/02: dog"]
    [first] = events.Images("images/01: cat")
    assert (first.step, first.width, first.height) == (1, 6, 4)


def test_without_tensorboard_training_goes_on_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it is an ImportError
    sink = TensorBoard(tmp_path)
    with caplog.at_level(logging.WARNING):
        sink.write(train(1))
        sink.write(train(2))
    sink.close()
    assert caplog.messages == [
        "TensorBoard is not installed: metrics go to metrics.jsonl only (pip install tensorboard)"
    ]
