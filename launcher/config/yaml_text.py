"""YAML text of plain values, which `yaml_source.parse` reads back to equal values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from launcher.config.yaml_source import SCALARS


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:  # write equal values out, without &id001
        return True


for _tag, (_pattern, _first) in SCALARS.items():
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def dump(data: Mapping[str, Any]) -> str:
    """YAML text that `parse` reads back to equal values."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def flow(value: Any) -> str:
    """A value as YAML in one line.

    >>> flow([0.7, 1.0]), flow("10 epochs"), flow(None), flow("yes"), flow({})
    ('[0.7, 1.0]', '10 epochs', 'null', "'yes'", '{}')
    """
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    text = text.removesuffix("...\n").strip()
    return text if len(text.splitlines()) <= 1 else json.dumps(value)
