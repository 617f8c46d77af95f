"""docs/studies.md: its example is a valid study, and it names every key."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from launcher.study import checks, load, schema
from launcher.study.plan import plan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("full", [False, True])
def test_the_example_is_a_valid_study(tmp_path: Path, full: bool) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "studies").mkdir()
    shutil.copy(ROOT / "configs" / "digits_cpu.yaml", tmp_path)
    file = tmp_path / "studies" / "nesterov.yaml"
    file.write_text(example)
    found = plan(load.load(file, full=full))
    checks.check(found)
    assert len(found.runs) == 4 * (5 if full else 3)


@pytest.mark.parametrize(
    "kind", [schema.Study, schema.Draw, schema.Tune, schema.Halving, schema.Compare, schema.Figure, schema.DrawRange]
)
def test_every_key_is_named(kind: type) -> None:
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        assert re.search(rf"\b{part.name}\b", PAGE), part.name
