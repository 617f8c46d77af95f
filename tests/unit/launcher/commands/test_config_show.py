"""`launcher config show`: the resolved config, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.config import yaml_source, yaml_text

CONFIG = """schema: 1
name: run
storage: runs
duration: 10 epochs
model: {name: resnet20, num_classes: 10}
data:
  root: images
  crop_area: [0.7, 1.0]
batch: {size: 128}
optimizer: lars
schedule: {peak_lr: 0.1, warmup: 10 %}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def shown(file: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert cli.main(["config", "show", str(file), *more]) == 0
    return capsys.readouterr().out


def comments(text: str) -> dict[str, str]:
    """The comment of each line, by the line's own text."""
    return {line.partition("#")[0].strip(): line.partition("# ")[2] for line in text.splitlines() if "# " in line}


def test_each_value_has_its_source(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = comments(shown(file, capsys, "--sources", "batch.size=256", "evaluate={batch_size: 32}"))
    assert found["size: 256"] == "command line"
    assert found["batch_size: 32"] == "command line"
    assert found["crop_area: [0.7, 1.0]"] == f"{file}:8"
    assert found["name: lars"] == f"{file}:10"
    assert found["warmup: 1 epoch"] == f"{file}:11"
    assert found["momentum: 0.9"] == "default"
    assert found["flip: true"] == "default"


def test_the_text_with_sources_is_the_same_config(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, annotated = shown(file, capsys), shown(file, capsys, "--sources")
    assert yaml_source.parse(annotated, "a").data == yaml_source.parse(plain, "b").data


@pytest.mark.parametrize("value", ["two\nlines", "# no comment", "a: b", "", " ", "ä\u2028b", "yes", "0x1f", "x" * 300])
def test_any_text_fits_into_a_line(value: str) -> None:
    line = f"key: {yaml_text.flow([value])}  # default"
    assert len(line.splitlines()) == 1
    assert yaml_source.parse(line, "a").data == {"key": [value]}


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]["description"]


def test_show_without_sources_reads_back(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "again.yaml").write_text(shown(file, capsys))
    assert configs.load(tmp_path / "again.yaml") == configs.load(file)
