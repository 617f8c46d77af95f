"""The warning about batch-norm spans that lie on several workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli
from launcher.commands.plan_spans import largest_team
from resnet_dist.recipe.batch_layout import BatchLayout

CONFIG = str(Path(__file__).parents[4] / "configs" / "rn50_8node.yaml")  # 8,192 images, spans of 64, 64 workers
COST = "A step makes 106 collectives, one after the other: 2 for each of 53 batch norms."


def warnings(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """The warnings of the plan about spans, in one line each."""
    assert cli.main(["plan", CONFIG, "data.root=/", *overrides]) == 0
    text = capsys.readouterr().out.partition("\nResult\n")[0]
    parts = (" ".join(part.split()) for part in text.split("WARNING: ")[1:])
    return "\n".join(part for part in parts if "span" in part)


def test_64_workers_exchange_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings(capsys) == ""


@pytest.mark.parametrize(("workers", "teams"), [(60, "in teams of up to 15"), (63, "in one team of all")])
def test_a_number_of_workers_that_share_spans_is_a_warning(
    capsys: pytest.CaptureFixture[str], workers: int, teams: str
) -> None:
    assert warnings(capsys, f"workers={workers}", "cluster.nodes=1") == (
        "batch_norm.span 64: workers exchange statistics, as spans lie on several of them:"
        f" {workers} workers {teams}. {COST} Without an exchange: 64, 32 workers"
    )


def test_every_number_of_an_elastic_run_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=60..64", "cluster.nodes=1")
    teams = "61, 63 workers in one team of all, 62 workers in teams of up to 31, 60 workers in teams of up to 15"
    assert f"{teams}. {COST} Without an exchange: 128, 64, 32 workers" in found
    found = warnings(capsys, "workers=32..40", "cluster.nodes=1")
    assert "34 workers in teams of up to 17, 2 other numbers of workers in smaller teams. A" in found


def test_similar_spans_that_lie_on_one_worker_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=128", "cluster.nodes=16", "batch_norm.span=128")
    assert "128 workers in teams of up to 2." in found
    assert found.endswith("Without an exchange: 64 workers, or with a span of 64")


def test_every_micro_batch_makes_its_collectives(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=63", "cluster.nodes=1", "batch.num_micro_batches=2")
    assert (
        "A step makes 212 collectives, one after the other: 2 for each of 53 batch norms and 2 micro-batches" in found
    )


@pytest.mark.parametrize("key", ["batch_norm.span=global", "batch_norm.span=worker", "model.normalisation=none"])
def test_a_choice_that_no_number_of_workers_changes_is_no_warning(capsys: pytest.CaptureFixture[str], key: str) -> None:
    more = ["model.zero_gamma=false", "batch_norm={}"] if key.endswith("none") else []
    assert warnings(capsys, "workers=63", "cluster.nodes=1", key, *more) == ""


def test_mixed_pairs_stay_together_in_the_teams() -> None:
    assert largest_team(BatchLayout(12, world_size=4), 3) == 1
    assert largest_team(BatchLayout(12, world_size=4, unit=2), 3) == 2  # 2, 4, 2 and 4 samples


def test_the_warning_needs_no_torch() -> None:
    code = "import sys, launcher.commands.plan_spans; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
