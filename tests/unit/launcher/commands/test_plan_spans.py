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


@pytest.mark.parametrize(("workers", "teams"), [(60, "teams of up to 15"), (63, "one team of all")])
def test_a_number_of_workers_that_share_spans_is_a_warning(
    capsys: pytest.CaptureFixture[str], workers: int, teams: str
) -> None:
    assert warnings(capsys, f"workers={workers}", "cluster.nodes=1") == (
        f"batch_norm.span 64: spans lie on several workers, which exchange statistics ({workers} workers: {teams})."
        f" {COST} Without an exchange: 64 or 32 workers"
    )


def test_every_number_of_an_elastic_run_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=60..64", "cluster.nodes=1")
    teams = "61 or 63 workers: one team of all; 62 workers: teams of up to 31; 60 workers: teams of up to 15"
    assert f"({teams}). {COST} Without an exchange: 128, 64 or 32 workers" in found
    found = warnings(capsys, "workers=32..40", "cluster.nodes=1")
    assert "34 workers: teams of up to 17; 2 other numbers of workers: smaller teams). A" in found


def test_many_numbers_of_workers_are_told_from_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=32..64", "cluster.nodes=1")
    assert "(33, 35, 37, 39, 41 or 11 other numbers of workers: one team of all; " in found


def test_one_worker_is_a_singular(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=3", "cluster.nodes=1", "batch.size=8256", "batch_norm.span=129")
    assert "Without an exchange: 4 or 2 workers" in found
    found = warnings(capsys, "workers=2", "cluster.nodes=1", "batch.size=96", "batch_norm.span=96")
    assert "Without an exchange: 1 worker" in found
    assert "1 workers" not in found


def test_similar_spans_that_lie_on_one_worker_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=128", "cluster.nodes=16", "batch_norm.span=128")
    assert "(128 workers: teams of up to 2)." in found
    assert found.endswith("Without an exchange: 64 workers, or with a span of 64")


def test_every_micro_batch_makes_its_collectives(capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(capsys, "workers=63", "cluster.nodes=1", "batch.num_micro_batches=2")
    assert (
        "A step makes 212 collectives, one after the other: 2 for each of 53 batch norms and 2 micro-batches" in found
    )


@pytest.mark.parametrize("option", ["--nodes", "--deadline"])
def test_numbers_of_nodes_whose_workers_share_spans_are_marked(capsys: pytest.CaptureFixture[str], option: str) -> None:
    nodes = ["--nodes", "4,7,9,63", *(["--deadline", "2999-01-01 06:00"] if option == "--deadline" else [])]
    own_only = ["--batch", "8192"]
    assert cli.main(["plan", CONFIG, "data.root=/", "--gpu", "H100", *own_only, *nodes]) == 0
    text = capsys.readouterr().out.partition("\nDeadline " if option == "--deadline" else "\nBy number of nodes\n")[2]
    text = text.partition("\n\n" if option == "--deadline" else "\n  model by")[0]
    first = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert [number for number in ("4", "7*", "9*", "63*") if number in first] == ["4", "7*", "9*", "63*"]
    told = "* workers exchange statistics of batch-norm spans that lie on several of them."
    assert f"{told} {COST} Only forecasts from runs or calibrations" in " ".join(text.split())


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
