"""Keys of earlier versions: the new names of renamed ones, and those that have no effect any more.

A config, an override and a recorded run may have them. All are read under the present names.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.config.schema import leads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewName:
    """The present name of a key, within the same section, and what its old values are called now."""

    key: str  # dotted
    values: Mapping[object, object] = field(default_factory=dict)  # old value: new value; others stay as they are

    @property
    def name(self) -> str:
        """The key without its section."""
        return self.key.rpartition(".")[2]

    def value(self, old: object) -> object:
        """The present value for `old`."""
        return self.values.get(old, old) if isinstance(old, str) else old


RENAMED: Mapping[str, NewName] = {
    "faults.node_strikes": NewName("faults.max_node_failures"),
    "optimizer.convention": NewName("optimizer.lr_in_momentum", {"lr_inside": True, "lr_outside": False}),
    "speed.optimizer": NewName("speed.sgd_kernel"),
}

# Dotted key: what the launcher does now, whatever value the key has. It ends a warning's sentence.
REMOVED: Mapping[str, str] = {
    "speed.bucket_views": "gradients are always views of the buckets that are exchanged",
    "speed.cpu_affinity": "workers are not pinned to CPUs",
    "speed.static_graph": "DDP's static graph is not used",
}


def with_new_names(data: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """A copy of `data` under the present names, without removed keys. `prefix` is the section with a dot, or empty.

    >>> with_new_names({"optimizer": {"name": "lars", "convention": "lr_inside"}})
    {'optimizer': {'name': 'lars', 'lr_in_momentum': True}}
    """
    made: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key in RENAMED:
            made[RENAMED[key].name] = RENAMED[key].value(value)
        elif key not in REMOVED:
            made[name] = with_new_names(value, f"{key}.") if isinstance(value, Mapping) else value
    return made


def old_keys(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of each renamed or removed key in the section `data`."""
    for name, value in data.items():
        key = f"{prefix}{name}"
        if key in RENAMED or key in REMOVED:
            yield key, value
        elif isinstance(value, Mapping):
            yield from old_keys(value, f"{key}.")


def warn_once(place: str, key: str, value: object) -> None:
    """Log what to do about the old `key` at `place`; a config is read several times by one command."""
    if key in REMOVED:
        _warn(f"{place}: {key}: this key has no effect any more: {REMOVED[key]}. Remove it")
    else:
        new = RENAMED[key]
        present = new.value(value)
        shown = present if isinstance(present, str) else json.dumps(present, default=str)
        _warn(f"{place}: {key}: this key is now called {new.key}. Write {new.key}: {shown}")


@functools.cache
def _warn(text: str) -> None:
    if leads():
        log.warning("%s", text)
