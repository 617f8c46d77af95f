"""docs/moving.md: the keys that replace another library's flags exist, and the values that it shows are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from resnet_dist.recipe.schema import plain

PAGE = Path(__file__).parents[2] / "docs" / "moving.md"
MINIMAL = {
    "schema": 1,
    "name": "moving",
    "storage": "runs",
    "duration": "90 epochs",
    "data": {"root": "images"},
    "batch": {"size": 1024, "num_micro_batches": 1},
    "schedule": {"peak_lr": 0.5},
}


def key_cells() -> list[str]:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [row[1] for row in rows if len(row) >= 3 and row[1] not in ("key", "---")]


def spans() -> list[str]:
    return [span for cell in key_cells() for span in re.findall(r"`([^`]+)`", cell)]


def known(config: RunConfig) -> set[str]:
    found: set[str] = set()

    def walk(value: object, key: str) -> None:
        found.add(key)
        if isinstance(value, dict):
            for name, item in value.items():
                walk(item, f"{key}.{name}" if key else name)

    walk(plain(config), "")
    return found


def test_the_page_has_tables_for_three_libraries() -> None:
    assert len(key_cells()) > 50
    assert len(spans()) > 60


@pytest.mark.parametrize("span", sorted({span for span in spans() if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", span)}))
def test_a_key_exists(span: str) -> None:
    names = known(configs.from_mapping(MINIMAL, Path.cwd()))
    values = {"trivialaugment", "randaugment", "worker", "bfloat16", "auto", "storage"}
    assert span in names or span in values


@pytest.mark.parametrize("span", sorted({span for span in spans() if ": " in span and "..." not in span}))
def test_a_value_is_accepted(span: str) -> None:
    key, _, value = span.partition(": ")
    value = {"FILE": "weights.pth", "P": "project", "N epochs": "3 epochs"}.get(value, value)
    value = re.sub(r"base_lr: L\b", "base_lr: 0.1, peak_lr: null", value).replace(
        "num_micro_batches: G", "num_micro_batches: 2"
    )
    data = {**MINIMAL, "regularization": {"mixup": 0.1}}
    overrides = [f"{key}={value}"]
    if key == "schedule" and "lr:" not in value.replace("_start_lr:", "").replace("end_lr:", ""):
        overrides = [f"{key}={value[:-1]}, peak_lr: 0.5}}"]
    configs.from_mapping(data, Path.cwd(), overrides)


def test_the_example_of_the_moving_average_is_the_formula_of_torchvision() -> None:
    text = PAGE.read_text().replace("\N{MULTIPLICATION SIGN}", "x")
    decay = 1 - min(1.0, (1 - 0.99998) * 1024 * 32 / 600)
    assert f"1 - 0.00002 x 1,024 x 32 / 600 = {decay:.5f}" in text
    assert f"ema: {{decay: {decay:.5f}, every_steps: 32}}" in text
    left = 0.99998 ** (600 * 1_281_167 / 1024 / 32)  # of the initial weights
    assert f"{left:.0%}".replace("%", " %") in text


@pytest.mark.parametrize("span", sorted({span for span in spans() if span.startswith(".")}))
def test_a_short_key_is_one_of_the_section_before_it(span: str) -> None:
    assert f"regularization{span}" in known(configs.from_mapping(MINIMAL, Path.cwd()))
