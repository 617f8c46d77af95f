"""The result of a plan, its sections and options, as a person sees them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher import cli
from launcher.config import load as configs
from launcher.run.directory import RunDirectory

FOLDER = Path(__file__).parents[4] / "configs"
CONFIG = str(FOLDER / "rn50_8node.yaml")
DIGITS = str(FOLDER / "digits_cpu.yaml")
SECTIONS = ["Result", "Recipe", "Schedule", "Memory and disks", "Where and how it runs"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str, path: str = CONFIG) -> str:
    assert cli.main(["plan", path, *arguments]) == 0
    return capsys.readouterr().out


def section(text: str, title: str) -> str:
    """The lines of a section as one line with single spaces."""
    return " ".join(text.partition(f"\n{title}\n")[2].partition("\n\n")[0].split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 64) -> str:
    assert cli.main(["plan", *arguments]) == code
    return capsys.readouterr().err


@pytest.mark.parametrize("path", [CONFIG, DIGITS, str(FOLDER / "recipes" / "timm_a3_2048.yaml")])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_sections_are_in_the_order_of_decisions_and_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = plan(capsys, "data.num_samples=1281167", path=path)
    titles = [line for line in text.splitlines()[1:] if re.match(r"[A-Z]", line)]
    assert titles == SECTIONS
    too_wide = [line for line in text.splitlines() if len(line) > min(columns, 80)]
    assert [line for line in too_wide if len(line.split()[-1]) < columns - 18] == []  # paths and keys are not broken


@pytest.mark.parametrize("columns", [30, 40, 60, 80])
def test_tables_of_many_nodes_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    nodes = ["--nodes", "1,2,4,8,16,32,64,128,256", "--deadline", "2999-12-01 06:00"]
    text = plan(capsys, "data.root=/", "--gpu", "H100", *nodes)
    for part in (text.partition("\nBy number of nodes\n")[2], f"Deadline {text.partition('Deadline ')[2]}"):
        part = part.partition("\n\nRecipe\n")[0]
        assert [line for line in part.splitlines() if len(line) > columns and len(line.split()) > 1] == []
    model = text.partition("\n  model by")[2]
    numbers = [number for line in re.findall(r"\n    nodes\s+(.*)", model) for number in line.split()]
    assert numbers == nodes[1].split(",")


def test_warnings_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = plan(capsys, "batch_norm.span=auto", "batch.size=8209", "cluster.walltime=00:01:00").splitlines()
    assert lines[2] == "3 warnings"
    assert sum(line.startswith("  WARNING: ") for line in lines) == 3
    assert "WARNING" not in "\n".join(lines[lines.index("Result") :])


def test_the_result_of_a_published_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = section(plan(capsys, "--gpu", "H100", "--price-per-gpu-hour", "2"), "Result")
    assert "accuracy 75.9% top-1 with a probability of 86% to 100% (80% interval): 10 of 10 runs" in text
    for label in ("wall time", "GPU hours", "cost", "speed", "evidence", "walltime", "failures"):
        assert f" {label} " in text
    hours = float(re.findall(r"GPU hours ([0-9.]+)", text)[0])
    assert float(re.findall(r"cost ([0-9.]+)", text)[0]) == pytest.approx(2 * hours, rel=0.1)


def test_a_forecast_from_figures_stands_beside_mlperfs_end_points(capsys: pytest.CaptureFixture[str]) -> None:
    text = section(plan(capsys, "--gpu", "H100"), "Result")  # 64 H100 in published_speed.json: 149.0 to 152.6 s
    assert "MLPerf 3 submissions to MLPerf v4.0 with 64 GPUs (H100) took 2.5 min to 75.9% top-1" in text
    assert "MLPerf v4.0" not in section(plan(capsys, "model.name=resnet18"), "Result")
    assert "MLPerf v4.0" not in section(plan(capsys, "workers=40", "cluster.nodes=5"), "Result")


def test_only_submissions_with_the_same_gpu_count(capsys: pytest.CaptureFixture[str]) -> None:
    four = ["workers=4", "cluster.nodes=1"]  # published_speed.json: H100, H100 PCIe and L40S
    for gpu, name in (("h100", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe")):
        assert f"with 4 GPUs ({name})" in section(plan(capsys, "--gpu", gpu, *four), "Result")
    assert "MLPerf v4.0 with" not in section(plan(capsys, "--gpu", "NVIDIA H100 NVL", *four), "Result")
    assert "31 figures for 9 GPUs" in section(plan(capsys), "Result")


def test_a_gpu_that_no_table_has_is_told_with_the_known_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = section(plan(capsys, f"storage={tmp_path}", "--gpu", "Banana"), "Result")
    assert "unknown: no published figure for a GPU named Banana and no earlier run fits. Known names: B200, " in text
    assert "RTX A6000. Measure it on a machine with this GPU: launcher plan CONFIG --calibrate" in text


def test_no_evidence_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = section(plan(capsys, "data.num_samples=1442", f"storage={tmp_path}", path=DIGITS), "Result")
    assert "accuracy unknown: neither own runs with this recipe in this storage nor published ones" in text
    assert "probability" not in text


def test_a_probability_of_own_runs_needs_a_target(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = ["data.num_samples=1442", f"storage={tmp_path}"]
    for overrides, told in (([], "98.20% (80%: 97.67% to 98.73%)"), (["stop_at.top1=98 %"], "2 of 2 runs reached it")):
        for seed, top1 in enumerate([0.981, 0.983]):
            run = RunDirectory(tmp_path, f"run{len(overrides)}{seed}")
            run.create()
            of_run = configs.load(DIGITS, [*here, *overrides, f"name={run.name}", f"seed={seed}"])
            run.write_config(configs.to_yaml(of_run))
            run.mark_finished({"top1": top1, "duration": str(of_run.duration)})
        text = section(plan(capsys, *here, *overrides, path=DIGITS), "Result")
        assert told in text
        assert ("probability" in text) is bool(overrides)


def test_each_value_has_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "schedule.peak_lr=16", "ema.decay=0.999").partition("\nRecipe\n")[2]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.startswith("  ")}
    line = Path(CONFIG).read_text().splitlines().index("optimizer: {name: lars, momentum: 0.9, weight_decay: 2.0e-4, trust_coefficient: 0.001, lr_in_momentum: true}") + 1  # fmt: skip  # noqa: E501
    assert rows["optimizer.momentum"] == f"0.9 line {line}, as Google's"
    assert rows["schedule.peak_lr"] == "16.0 command line"
    assert rows["ema.decay"] == "0.999 command line"
    digits = plan(capsys, "data.num_samples=1442", path=DIGITS)
    assert re.search(r"\n  precision +float32 +default\n", digits)


def test_the_learning_rate_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys).partition("\n  learning rate\n")[2].splitlines()
    assert text[0].split()[0] == "17"
    assert text[10].split()[0] == "0"
    assert text[11].split() == ["0", "11", "22", "33", "44", "epochs"]


def test_a_walltime_that_is_too_short_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    few = plan(capsys, "--images-per-s", "1000", "cluster.walltime=00:10:00")
    assert "WARNING: cluster.walltime, 10 min, is shorter than the run, which is requeued" in few
    assert re.search(r"  walltime +10 min: [0-9].* jobs, one after the other", few)
    assert "max_requeues" not in few


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["cluster.walltime=00:20:00", "cluster.max_requeues=3"],
            "WARNING: Kubernetes does not requeue the run often enough: cluster.max_requeues is 3. SLURM requeues a run"
            " with a new checkpoint any number of times",
        ),
        (
            ["cluster.walltime=00:20:00", "cluster.max_requeues=0"],
            "WARNING: cluster.max_requeues is 0: nothing requeue",
        ),
        (["cluster.walltime=00:02:00"], "2 min, does not suffice for a start and the time to save: no requeue helps"),
        (["cluster.walltime=00:05:00"], "5 min, may not suffice for a start and the time to save"),
        (
            ["cluster.walltime=00:02:00"],
            " walltime 2 min is over before the first step: no number of jobs ends the run",
        ),
    ],
)
def test_a_limit_of_requeues_is_a_warning_where_it_counts(
    capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    text = " ".join(plan(capsys, "--images-per-s", "10", *overrides).split())
    assert said in text
    assert "999,999" not in text


def test_a_number_is_the_same_everywhere_in_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--gpu", "H100", "--nodes", "8", "--restart-s", "900", "--save-s", "2", "--mtbf-hours", "100")
    (in_result,) = re.findall(r"goodput ([0-9.]+%)", " ".join(section(text, "Result").split()))
    model = text.partition("\nBy number of nodes\n")[2]
    assert re.findall(r"\n {6}goodput +([0-9.]+%)", model) == [in_result]
    (speed,) = re.findall(r"speed ([0-9,]+) \(80%", section(text, "Result"))
    assert re.findall(r"images read /s +([0-9,]+)", model) == [speed]
    assert "saving 88 s" in section(text, "Result")  # 44 saves


def test_nodes_have_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "--images-per-s", "1000", "--nodes", "4,8").partition("\nBy number of nodes\n")[2]
    rows = [line.split() for line in text.splitlines()[:3]]
    assert rows[0][:2] == ["nodes", "workers"]
    assert [row[:2] for row in rows[1:]] == [["4", "32"], ["8", "64"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CONFIG is missing. Allowed: a YAML file"),
        ([CONFIG, "--price-per-gpu-hour", "0"], "--price-per-gpu-hour 0: Allowed: a number above 0"),
        ([CONFIG, "--price-per-gpu-hour", "-3"], "--price-per-gpu-hour -3: Allowed: a number above 0"),
        ([CONFIG, "--price-per-gpu-hour", "nan"], "Allowed: a number above 0"),
        ([DIGITS, "data.num_samples=9", "--price-per-gpu-hour", "1"], "the config uses no GPUs"),
        ([CONFIG, "--deadline", "2020-01-01 06:00"], "--deadline 2020-01-01 06:00: is in the past: it is"),
        ([CONFIG, "--deadline", "soon"], "--deadline soon: is not a date and time"),
        ([CONFIG, "--nodes", "8,,16"], "--nodes 8,,16: Allowed: numbers with commas"),
        ([CONFIG, "--nodes", "1000000"], "--nodes 1000000"),
        ([CONFIG, "--score", "runs"], "--score runs: Allowed: without CONFIG"),
        (["--score", "/nowhere"], "/nowhere"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_users_own_model_has_no_memory_and_no_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = ["model={name: 'my_models:build', num_classes: 10}", f"storage={tmp_path}"]
    text = plan(capsys, *own)
    assert "memory unknown: a plan does not run my_models:build" in section(text, "Memory and disks")
    assert "time unknown" in section(text, "Result")
    error = refused(capsys, CONFIG, *own, "--nodes", "1", "--images-per-s", "5", code=78)
    assert "model.name: found my_models:build, your own model, whose size is unknown, which --nodes needs" in error


def test_a_frozen_layer_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "command line: model.freeze=[layer9]: model.freeze: found" in refused(
        capsys, CONFIG, "model.freeze=[layer9]", code=78
    )


def test_a_users_own_source_needs_the_number_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, CONFIG, "data={source: 'mine:source', root: /data}", code=78)
    assert "data.num_samples: is not given, and a plan does not call mine:source" in error
