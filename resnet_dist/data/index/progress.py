"""How far the making of an index is, as a person and a watchdog see it."""

from __future__ import annotations

import time
from typing import Any

from resnet_dist.progress_line import progress_line

EVERY_S = 5.0  # between two lines for a person


class IndexProgress:
    """Written by the thread that makes an index, read by another one.

    count  changes whenever the work moves on
    """

    def __init__(self) -> None:
        self.count = 0
        self._what, self._first, self._done, self._total = "", 0, 0, 0
        self._began = self._told = time.monotonic()

    def begin(self, what: str) -> None:
        """Begin a part of the work, such as `reading the images of train`."""
        self._what, self._first, self._done, self._total, self._began = what, 0, 0, 0, time.monotonic()
        self.count += 1

    def report(self, done: int, total: int) -> None:
        """`done` of `total` images are done."""
        if not self._total:
            self._first = done  # an earlier start may have read many
        self._done, self._total = done, total
        self.count += 1

    def say(self, what: str) -> None:
        """Replace the description of the part of the work."""
        if what != self._what:
            self._what = what
            self.count += 1

    def news(self) -> dict[str, Any] | None:
        """The detail of an event, if the last one was some time ago: text, and the numbers in it."""
        now = time.monotonic()
        if now - self._told < EVERY_S:
            return None
        self._told = now
        return self.detail(now - self._began)

    def detail(self, elapsed_s: float) -> dict[str, Any]:
        """The numbers after `elapsed_s` of this part, and as a text.

        >>> progress = IndexProgress()
        >>> progress.begin("reading the images of train")
        >>> for done in (0, 120_000):
        ...     progress.report(done, 1_281_167)
        >>> progress.detail(10.0)["text"]
        'index: reading the images of train: 120,000 of 1,281,167 images, 12,000 images/s, 1:36 left'
        """
        since = self._done - self._first
        rate = since / elapsed_s if elapsed_s > 0 else 0.0
        detail: dict[str, Any] = {"done": self._done, "total": self._total, "images_per_s": round(rate, 1)}
        text = f"index: {self._what}"
        if rate:
            text = progress_line(text, "images", self._done, self._total, since, elapsed_s)
            detail["time_left_s"] = round((self._total - self._done) / rate)
        return {**detail, "text": text}
