"""Records of metrics.jsonl, for the tests of `launcher watch`."""

from __future__ import annotations

from typing import Any


def records(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    """The train records of steps `first` to `last`: the loss falls from 3 to 1 over 100 steps, a step takes 2 s."""
    return [
        {
            "kind": "train", "step": step, "epoch": step / 10, "loss": 3 - step / 50, "learning_rate": 0.1,
            "images_per_s": 50.0, "step_time_s": 2.0, "data_wait_s": 0.5, "time_left_s": 2.0 * (100 - step), **more,
        }
        for step in range(first, last + 1)
    ]  # fmt: skip


def event(event: str, step: int, **detail: Any) -> dict[str, Any]:
    """An event of metrics.jsonl."""
    return {"kind": "event", "step": step, "event": event, "detail": detail}


def evaluation(step: int, top1: float | None, **more: Any) -> dict[str, Any]:
    """An eval record."""
    return {"kind": "eval", "step": step, "epoch": step / 10, "top1": top1, "loss": 1.0, "time_s": 4.0, **more}
