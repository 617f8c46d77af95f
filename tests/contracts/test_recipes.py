"""Every recipe in configs/ says where it comes from, has the numbers of that source, and follows its learning rate.

Values have the tag of a source, such as [goyal2017], at the end of their line; those without a tag are from the first
source of the file. `CLAIMS` has the values of each source, written down from the source and not from the files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fashion
from launcher.config import load as configs
from launcher.config import yaml_source
from launcher.config.dotted_keys import flatten
from launcher.config.rules import problems
from resnet_dist.optim import build_schedule
from resnet_dist.recipe.published import origins

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes.md"
RECIPES = [ROOT / "configs" / "rn50_8node.yaml", *sorted((ROOT / "configs" / "recipes").glob("*.yaml"))]
FASHION = ROOT / "configs" / "fashion_cpu.yaml"
IMAGENET = 1_281_167

NOT_REPRODUCED = "published, not reproduced here"
ASSUMED = "assumed"  # the tag of values without a source

# Keys that do not belong to the experiment: where it runs, and what is saved.
ELSEWHERE = {
    *("schema", "name", "storage", "seed", "place", "workers", "resources", "precision", "engine", "evaluate"),
    *("checkpoint", "cluster", "faults"),
}
LOCATIONS = {"data.root", "data.num_samples", "batch.num_micro_batches"}

RESNET50 = {"model.name": "resnet50", "model.num_classes": 1000, "data.resolution": 224}
LARS = {
    **RESNET50,
    "optimizer.name": "lars",
    "optimizer.trust_coefficient": 0.001,
    "optimizer.lr_in_momentum": True,
    "schedule.decay": "polynomial",
    "schedule.power": 2,
    "schedule.end_lr": 0.0001,
    "regularization.label_smoothing": 0.1,
}


def lars(batch: int, lr: float, warmup: int, decay: float, momentum: float, length: str, span: int) -> dict[str, Any]:
    return {
        **LARS,
        "batch.size": batch,
        "schedule.peak_lr": lr,
        "schedule.warmup": f"{warmup} epochs",
        "optimizer.weight_decay": decay,
        "optimizer.momentum": momentum,
        "duration": length,
        "batch_norm.span": span,
    }


# What a source says, by tag and, where one tag has several recipes, by file.
CLAIMS: Mapping[str, Mapping[str, Any]] = {
    "mlperf/rn50_8node": lars(8192, 17, 5, 2e-4, 0.9, "44 epochs", 64),
    "mlperf/mlperf_lars_32768": lars(32768, 21.2, 16, 2.5e-5, 0.94, "2893 steps", 128),
    "mlperf/mlperf_lars_65536": lars(65536, 24.699, 31, 1e-4, 0.951807, "1740 steps", 128),
    "goyal2017": {
        **RESNET50,
        "model.zero_gamma": True,  # section 5.1
        "duration": "90 epochs",
        "batch.size": 8192,
        "batch_norm.span": 32,  # section 2.3
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 0.0001,
        "schedule.base_lr": 0.1,
        "schedule.warmup": "5 epochs",
        "schedule.warmup_start_lr": 0.1,  # section 2.2: from eta to k eta
        "schedule.decay": "step",
        "schedule.milestones": ["30 epochs", "60 epochs", "80 epochs"],
        "schedule.gamma": 0.1,
    },
    "nvidia": {
        **RESNET50,
        "duration": "90 epochs",
        "batch.size": 2048,
        "batch_norm.span": 256,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.875,
        "optimizer.weight_decay": 1 / 32768,
        "schedule.base_lr": 0.256,
        "schedule.warmup": "8 epochs",
        "schedule.decay": "cosine",
        "regularization.label_smoothing": 0.1,
    },
    "nado2021": {
        **RESNET50,
        "duration": "2512 steps",
        "batch.size": 32768,
        "optimizer.name": "sgd",
        "optimizer.momentum": 1 - 0.02397,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 5.8e-5,
        "schedule.peak_lr": 7.05,
        "schedule.warmup": "706 steps",
        "schedule.decay": "polynomial",
        "schedule.power": 2,
        "schedule.end_lr": 6e-6,
        "regularization.label_smoothing": 0.15,
    },
    "wightman2021": {
        **RESNET50,
        "duration": "100 epochs",
        "data.resolution": 160,
        "data.evaluation_crop": 0.95,
        "evaluate.resolution": 224,
        "data.augmentation.name": "randaugment",
        "data.augmentation.magnitude": 6 * 30 // 10,  # timm's scale ends at 10, torchvision's at 30
        "batch.size": 2048,
        "optimizer.name": "lamb",
        "optimizer.weight_decay": 0.02,
        "schedule.peak_lr": 8e-3,
        "schedule.warmup": "5 epochs",
        "schedule.decay": "cosine",
        "regularization.mixup": 0.1,
        "regularization.cutmix": 1.0,
        "loss.name": "bce",
    },
    "timm": {
        "model.zero_gamma": True,
        "optimizer.gradient_clipping": 1.0,
        "schedule.warmup_start_lr": 1e-4,
        "schedule.end_lr": 1e-6,
        "loss.target_threshold": 0.2,
    },
    "he2015": {
        "model.name": "resnet20",
        "model.num_classes": 10,
        "duration": "64000 steps",
        "data.resolution": 32,
        "data.evaluation_crop": 1.0,
        "batch.size": 128,
        "batch_norm.span": 64,
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 0.0001,
        "schedule.peak_lr": 0.1,
        "schedule.decay": "step",
        "schedule.milestones": ["32000 steps", "48000 steps"],
        "schedule.gamma": 0.1,
    },
}

Curve = Callable[[int], float]  # completed steps -> learning rate


def steps(epochs: int, batch: int) -> int:
    return math.ceil(epochs * IMAGENET / batch)


def mlperf(peak: float, warmup: int, decay: int) -> Curve:
    """PolynomialDecayWithWarmup of the reference: peak t / W, then end + (peak - end)(1 - (t - W) / D)^2.

    The warm-up is one step ahead of the reference's (Differs): its step t is our step t - 1.
    """
    return lambda t: peak * (t + 1) / warmup if t < warmup else 1e-4 + (peak - 1e-4) * (1 - (t - warmup) / decay) ** 2


def goyal(t: int) -> float:
    """Sections 2.2 and 5.1: from 0.1 in equal increments to 3.2 after 5 epochs; a tenth after 30, 60 and 80."""
    warmup = steps(5, 8192)
    if t < warmup:
        return 0.1 + (t + 1) * (0.1 * 8192 / 256 - 0.1) / warmup
    return 3.2 * 0.1 ** sum(t >= steps(epochs, 8192) for epochs in (30, 60, 80))


def half_cosine(peak: float, end: float, start: float, warmup: int, total: int) -> Curve:
    """Linear from `start`, then half a cosine from `peak` to `end`."""
    return lambda t: (
        start + (peak - start) * (t + 1) / warmup
        if t < warmup
        else end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup)))
    )


def nado(t: int) -> float:
    """end + (peak - end)((T - t) / (T - W))^2 after the warm-up, which is linear here (Differs)."""
    return 7.05 * (t + 1) / 706 if t < 706 else 6e-6 + (7.05 - 6e-6) * ((2512 - t) / (2512 - 706)) ** 2


def he(t: int) -> float:
    """Section 4.2: 0.1, divided by 10 at 32k and 48k iterations."""
    return 0.1 if t < 32_000 else 0.01 if t < 48_000 else 0.001


def he_110(t: int) -> float:
    """With the warm-up of ResNet-110, which is a rise here (Differs)."""
    return 0.01 + 0.09 * (t + 1) / 400 if t < 400 else he(t)


# file, overrides, the curve, the number of steps
CURVES: list[tuple[str, list[str], Curve, int]] = [
    ("rn50_8node", [], mlperf(17.0, 782, 6100), 6882),
    ("mlperf_lars_32768", [], mlperf(21.2, steps(16, 32768), 2267), steps(16, 32768) + 2267),
    ("mlperf_lars_65536", [], mlperf(24.699, steps(31, 65536), 1133), steps(31, 65536) + 1133),
    ("goyal2017_sgd_8192", [], goyal, steps(90, 8192)),
    ("nvidia_convnets_2048", [], half_cosine(2.048, 0, 0, steps(8, 2048), steps(90, 2048)), steps(90, 2048)),
    ("timm_a3_2048", [], half_cosine(8e-3, 1e-6, 1e-4, steps(5, 2048), steps(100, 2048)), steps(100, 2048)),
    ("nado2021_nesterov_32768", [], nado, 2512),
    ("he2015_cifar10", [], he, 64_000),
    ("he2015_cifar10", ["model.name=resnet56"], he, 64_000),
    (
        "he2015_cifar10",
        ["model.name=resnet110", "schedule.warmup=400 steps", "schedule.warmup_start_lr=0.01"],
        he_110,
        64_000,
    ),
]


def by_name(path: Path) -> str:
    return path.stem


def opening(path: Path) -> dict[str, str]:
    """The opening comment: the text of What, Where, Run, ... in one line each."""
    found: dict[str, str] = {}
    word = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return found
        word = line[2:10].strip() or word
        found[word] = f"{found.get(word, '')} {line[10:].strip()}".strip()
    return found


def tags(text: str) -> list[str]:
    return re.findall(r"\[([a-z]+\d*)\]", text)


def attributed(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Key, value and tag of all values of the experiment."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    document = yaml_source.parse(text, "file")
    main = tags(opening(path)["Source"])[0]
    for key, value in flatten(document.data).items():
        if key != "evaluate.resolution" and (key.partition(".")[0] in ELSEWHERE or key in LOCATIONS):
            continue
        line = lines[int(document.place(key).rpartition(":")[2]) - 1]
        yield key, value, next(iter(tags(line.partition("#")[2])), main)


@pytest.mark.parametrize("path", [*RECIPES, FASHION], ids=by_name)
def test_a_recipe_opens_with_all_that_a_reader_needs(path: Path) -> None:
    found = opening(path)
    assert list(found) == ["What", "Where", "Run", "Expect", "Label", "Source", "Differs"]
    assert f"python -m launcher.train {path.relative_to(ROOT)}" in found["Run"]
    assert found["Label"] == NOT_REPRODUCED or re.match(r"reproduced: python -m [\w.]+, ", found["Label"])
    assert re.search(r"\d % top-1", found["Expect"])
    assert re.search(r"hour|minute", found["Expect"])


@pytest.mark.parametrize("path", [*RECIPES, FASHION], ids=by_name)
def test_a_recipe_is_a_valid_config(path: Path) -> None:
    assert problems(configs.load(path)) == []


def test_every_recipe_has_a_curve() -> None:
    assert {path.stem for path in RECIPES} == {name for name, *_ in CURVES}


@pytest.mark.parametrize(
    ("name", "overrides", "curve", "total"), CURVES, ids=[" ".join([name, *given[:1]]) for name, given, *_ in CURVES]
)
def test_the_learning_rate_is_that_of_the_source(name: str, overrides: list[str], curve: Curve, total: int) -> None:
    (path,) = [path for path in RECIPES if path.stem == name]
    config = configs.load(path, overrides)
    size = {"batch_size": config.batch.size, "num_samples": config.data.num_samples or 0}
    assert config.duration.steps(**size) == total
    schedule = build_schedule(config.schedule, **size, total_steps=total, run=config)
    for number in range(20):
        step = (total - 1) * number // 19
        assert schedule(step) == pytest.approx(curve(step), rel=1e-12), step


@pytest.mark.parametrize("path", [*RECIPES, FASHION], ids=by_name)
def test_the_sources_of_a_file_are_those_of_its_values(path: Path) -> None:
    listed = tags(opening(path)["Source"])
    assert sorted(listed) == sorted({tag for _, _, tag in attributed(path)})


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_every_value_is_the_one_that_its_source_gives(path: Path) -> None:
    for key, value, tag in attributed(path):
        if tag != ASSUMED:
            claims = CLAIMS.get(f"{tag}/{path.stem}") or CLAIMS[tag]
            assert key in claims, f"{key} is attributed to [{tag}], which does not say it"
            assert value == pytest.approx(claims[key]) if isinstance(value, float) else value == claims[key], key


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_a_recipe_has_all_that_its_source_says(path: Path) -> None:
    main = tags(opening(path)["Source"])[0]
    claims = CLAIMS.get(f"{main}/{path.stem}") or CLAIMS[main]
    defaults = {"data.resolution": 224}
    given = {key: value for key, value, _ in attributed(path)}
    assert {key for key in claims if key not in given and key not in defaults} == set()


def test_a_value_of_another_source_is_noticed(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "recipes" / "goyal2017_sgd_8192.yaml").read_text(encoding="utf-8")
    file = tmp_path / "goyal2017_sgd_8192.yaml"
    file.write_text(text.replace("momentum: 0.9,", "momentum: 0.875,"), encoding="utf-8")
    with pytest.raises(AssertionError):
        test_every_value_is_the_one_that_its_source_gives(file)
    file.write_text(text.replace("zero_gamma: true}", "zero_gamma: true}  # [nvidia]"), encoding="utf-8")
    with pytest.raises(AssertionError):
        test_the_sources_of_a_file_are_those_of_its_values(file)


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_the_table_of_plan_has_the_numbers_of_the_recipe(path: Path) -> None:
    config = configs.load(path)
    runs = [
        (origin, run)
        for origin in origins()
        for run in origin.runs
        if origin.fits(config.optimizer) and run.batch == config.batch.size and config.model.name == "resnet50"
    ]
    for _, run in runs:
        assert run.weight_decay == config.optimizer.weight_decay
        assert run.momentum == config.optimizer.momentum
        assert run.warmup == config.schedule.warmup
    assert bool(runs) == path.stem.startswith(("rn50", "mlperf", "goyal", "nado"))


def rows() -> list[list[str]]:
    """The cells of the table in docs/recipes.md."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_lists_every_recipe() -> None:
    listed = [re.findall(r"\(\.\./(configs/[^)]+)\)", row[0])[0] for row in rows()]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in [*RECIPES, FASHION])


@pytest.mark.parametrize("row", range(len(RECIPES) + 1))
def test_a_row_of_the_page_says_what_its_file_says(row: int) -> None:
    link, batch, optimizer, top1, _, label = rows()[row]
    path = ROOT / re.findall(r"\(\.\./(configs/[^)]+)\)", link)[0]
    config, found = configs.load(path), opening(path)
    nesterov = ", Nesterov" if config.optimizer.nesterov else ""
    assert batch == f"{config.batch.size:,}"
    assert optimizer == f"{config.optimizer.name}{nesterov}"
    assert top1.partition(" %")[0] in found["Expect"]
    assert label == found["Label"].partition(":")[0]


def test_the_figures_of_the_config_for_a_laptop_are_the_measured_ones() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "fashion_cpu.json").read_text(encoding="utf-8"))
    for file in (FASHION, PAGE):
        text = file.read_text(encoding="utf-8")
        assert fashion.with_figures(text, found) == text, "update it: python -m benchmarks.fashion"
        assert fashion.top1(found) in text
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2]


def test_every_config_has_its_own_run_directory() -> None:
    runs = [
        configs.load(path) for path in [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "recipes").glob("*")]
    ]
    assert len({(run.storage, run.name) for run in runs}) == len(runs)
