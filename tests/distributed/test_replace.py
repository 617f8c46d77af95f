"""`data.on_error: replace` and `data.known_bad`: a run equals a computation that leaves its broken images out.

The reference is plain torch in this process: the good samples of each step, batch norm over what is left of each span,
and a loss divided by the number of good samples.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_dist.build import RunOptions, Worker, build
from resnet_dist.checkpoint.saver import CheckpointOptions
from resnet_dist.data import index_image_folder
from resnet_dist.data.loader import HostBatch, normalise
from resnet_dist.data.order import order_of
from resnet_dist.models import build_model
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import DataRecipe, ModelRecipe
from resnet_dist.stop_request import Unattended
from resnet_dist.telemetry.metrics_file import NoSink, read_metrics
from tests.distributed import replace_runs
from tests.distributed.forked import run_script
from tests.distributed.replace_runs import (
    BATCH,
    BROKEN,
    BROKEN_VAL,
    CLASSES,
    EXACT,
    KNOWN,
    OTHERS,
    RATE,
    SMOOTHING,
    STEPS,
    ZERO,
    Case,
    damage,
    recipe,
    write_images,
)

# --- the reference


class PartsNorm(nn.Module):
    """Batch norm of each part of a batch by itself; keeps the values of a step for the running statistics."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer, self.sizes, self.values = layer, [0], list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.values.append(x.detach())
        parts = [part for part in torch.split(x, self.sizes) if len(part)]
        weight, bias = self.layer.weight, self.layer.bias
        return torch.cat([F.batch_norm(part, None, None, weight, bias, True) for part in parts] or [x])

    def end_step(self) -> None:
        values = torch.cat(self.values).transpose(0, 1).flatten(1)
        self.values = []
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        self.layer.running_mean.lerp_(values.mean(1), 0.1)
        self.layer.running_var.lerp_(values.var(1), 0.1)


def reference(case: Case, batches: Sequence[HostBatch], broken: set[int]) -> tuple[list[dict[str, float]], nn.Module]:
    """Loss, accuracy and gradient norm of every step, and the model. `broken`: positions in the stream."""
    data = DataRecipe(root="none")
    model = build_model(ModelRecipe(name="resnet8", num_classes=CLASSES), 0).double()
    norms = {name: PartsNorm(m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    original = copy.copy(norms)
    for name, norm in norms.items():
        model.set_submodule(name, norm)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    size = BATCH // case.micro_batches
    span = size if case.span == "global" else int(case.span)
    records = []
    for step in range(STEPS):
        num_good, loss_sum, correct = BATCH - len(broken & set(range(step * BATCH, (step + 1) * BATCH))), 0.0, 0
        optimizer.zero_grad()
        for batch in batches[step * case.micro_batches : (step + 1) * case.micro_batches]:
            good = torch.tensor([position not in broken for position in batch.positions.tolist()])
            for norm in norms.values():
                norm.sizes = good.view(-1, span).sum(1).tolist()
            logits = model(normalise(batch.images, data.mean, data.std, torch.float64)[good])
            labels = batch.labels[good]
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=SMOOTHING)
            (loss / num_good).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
            correct += int((logits.argmax(1) == labels).sum())
        norm_squared = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
        records.append({"loss": loss_sum / num_good, "top1": correct / num_good, "gradient_norm": norm_squared**0.5})
        optimizer.step()
        for norm in norms.values():
            norm.end_step()
    for name, norm in original.items():
        model.set_submodule(name, norm.layer)
    return records, model


# --- the tests


@dataclass
class Found:
    folder: Path
    positions: set[int]
    names: list[str]
    outcomes: dict[str, list[dict[str, Any]]]  # of the ranks

    def records(self, case: Case, kind: str) -> list[dict[str, Any]]:
        return [
            r for r in read_metrics(self.folder / case.name / "metrics.jsonl") if kind in (r["kind"], r.get("event"))
        ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("replace")
    for kind in ("good", "damaged"):
        write_images(folder / kind)
    index = index_image_folder(str(folder / "damaged"), "train")
    ids = order_of(index, DataRecipe(), 0).sample_ids(np.array(BROKEN))
    names = [index.paths[row] for row in ids.tolist()]
    for name in (*names, *BROKEN_VAL):
        damage(folder / "damaged" / name)
    (folder / "some.txt").write_text("# two of them\n" + "\n".join(names[:KNOWN]) + "\n")
    (folder / "all.txt").write_text("\n".join((*names, *BROKEN_VAL)))
    cases = [*EXACT, *OTHERS]
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        pass
    else:
        cases += ZERO
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    done = run_script(replace_runs.__file__, str(folder))
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for case in cases:
        for rank in range(case.workers):
            own = json.loads((folder / f"outcomes-{case.workers}-{rank}.json").read_text())
            outcomes[case.name].append(own[case.name])
    return Found(folder, set(BROKEN), names, outcomes)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_a_run_equals_a_computation_that_leaves_the_broken_images_out(found: Found, case: Case) -> None:
    batches = batches_of(found, case)
    expected, model = reference(case, batches, found.positions)
    records = found.records(case, "train")
    for record, wanted in zip(records, expected, strict=True):
        assert record["top1"] == pytest.approx(wanted["top1"], rel=1e-15)
        for key in ("loss", "gradient_norm"):
            assert record[key] == pytest.approx(wanted[key], rel=1e-12 if record["step"] == 1 else 1e-10), key
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            squares = found.outcomes[case.name][0]["squares"][name]
            assert squares == pytest.approx(tensor.square().sum().item(), rel=1e-10), name


def batches_of(found: Found, case: Case) -> list[HostBatch]:
    """All micro-batches as one worker decodes them where no image is broken."""
    run = found.folder / "batches" / case.name
    options = RunOptions(CheckpointOptions(run / "checkpoints"), run / "index", Duration.parse("1000 steps"), 1)
    good = recipe(dataclasses.replace(case, kind="good"), found.folder)
    trainer = build(good, Worker(0, 1, torch.device("cpu"), 1), options, NoSink(), Unattended())
    trainer.parts.checkpoints.close(patient=True)
    return list(trainer.parts.batches_from(0))


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_broken_images_are_counted_and_named_once(found: Found, case: Case) -> None:
    by_step = [len(found.positions & set(range(step * BATCH, (step + 1) * BATCH))) for step in range(STEPS)]
    assert by_step == [0, 6, 10, 10, 0]
    records = found.records(case, "train")
    assert [record["num_left_out"] for record in records] == np.cumsum(by_step).tolist()
    known = set(found.names) | set(BROKEN_VAL) if case.kind == "known_bad" else set(found.names[:KNOWN])
    events = [(record["step"], record["detail"]["path"]) for record in found.records(case, "bad_image")]
    in_training = [(position // BATCH + 1, name) for position, name in zip(BROKEN, found.names, strict=True)]
    expected = [*in_training, *((STEPS, name) for name in BROKEN_VAL)]
    assert sorted(events) == sorted((step, name) for step, name in expected if name not in known)
    for outcome_of_rank in found.outcomes[case.name]:
        assert outcome_of_rank["bad"]["num_samples"] == sum(by_step)
        assert set(outcome_of_rank["bad"]["images"]) == {name for _, name in events}


def test_an_evaluation_leaves_broken_images_out_on_any_number_of_workers(found: Found) -> None:
    for case in EXACT:
        [evaluation] = found.records(case, "eval")
        assert (evaluation["num_samples"], evaluation["num_bad"]) == (23, 2)
        assert round(evaluation["top1"] * 23) == pytest.approx(evaluation["top1"] * 23, abs=1e-9)
    [whole] = found.records(OTHERS[3], "eval")
    assert whole["num_samples"] == 25
    assert "num_bad" not in whole


def test_a_run_without_broken_images_has_the_bits_of_one_that_would_fail(found: Found) -> None:
    good, fails = (next(case for case in OTHERS if case.kind == kind) for kind in ("good", "fail"))
    assert found.outcomes[good.name][0]["squares"] == found.outcomes[fails.name][0]["squares"]
    keys = ("loss", "top1", "gradient_norm", "sample_ids")
    own, theirs = ([[r[key] for key in keys] for r in found.records(case, "train")] for case in (good, fails))
    assert own == theirs
    assert "num_left_out" not in found.records(fails, "train")[0]


def test_mixed_images_have_one_curve_on_any_number_of_workers(found: Found) -> None:
    one, two = (case for case in OTHERS if case.kind == "mixed")
    for own, theirs in zip(found.records(two, "train"), found.records(one, "train"), strict=True):
        assert own["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
    assert own["num_left_out"] == len(BROKEN)
    [own], [theirs] = (found.records(case, "eval") for case in (two, one))
    for key in ("loss", "train_loss"):  # with the batch norm of the last steps, one of which has broken samples
        assert own[key] == pytest.approx(theirs[key], rel=1e-10)
    assert own["train_top1"] == theirs["train_top1"]
    assert own["train_num_bad"] == len(BROKEN)


@pytest.mark.parametrize("case", ZERO, ids=lambda case: case.name)
def test_zero_has_the_curve_of_ddp(found: Found, case: Case) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    records, expected = found.records(case, "train"), found.records(OTHERS[0], "train")
    for record, wanted in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-6 if record["step"] == 1 else 2e-4)
        assert record["num_left_out"] == wanted["num_left_out"]


def test_too_many_broken_images_end_the_run_on_every_worker_and_name_some(found: Found) -> None:
    errors = [outcome_of_rank["error"] for outcome_of_rank in found.outcomes[OTHERS[-1].name]]
    assert len(errors) == 2
    assert errors[0] == errors[1]
    assert "4 broken images, for example train/c" in errors[0]
    assert "more than data.max_bad_images allows (3)" in errors[0]
