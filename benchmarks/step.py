"""Where a training step goes: its operations and their time on the host, by the code that calls them.

    python -m benchmarks.step [--quick]

A step of our trainer (forward and backward pass, update, exchange of the totals) is compared with one of a minimal
loop: on one worker, with several spans of batch norm on it, and on two workers with gloo, with spans of their own and
with a span that they share. Operations are those that torch dispatches and that compute or communicate; views, which
only describe memory in another way, are counted beside them. The numbers depend on neither the machine nor the images.
`--quick` counts only, on small images, and writes no result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Ratio, Row, Run, interleave, notes_of, table, table_of, time_row, write
from benchmarks.peers import MinimalLoop, OurTrainer, Setting, lean_ddp, synthetic
from benchmarks.workers import on_workers
from resnet_dist.models import spans
from resnet_dist.recipe.schema import BatchNormRecipe

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("resnet_dist", "benchmarks"))
BACKWARD = "backward pass"
SETTING = Setting(batch=32, resolution=64)
QUICK = replace(SETTING, batch=8, resolution=32)
ROUNDS = 5
_SHOWN = 12  # lines of each table in the documentation
# neither compute nor communicate
_NOTHING = ("aten.promote_types", "profiler._record_function_enter_new", "profiler._record_function_exit")


@dataclass(frozen=True)
class Case:
    """Our step and a minimal one.

    spans       of batch norm: the number per worker, or 0 for one over all workers
    goal        the largest ratio of the numbers of operations; None: reported
    """

    what: str
    workers: int
    spans: int
    goal: float | None


CASES = {
    "one worker": Case("operations, one worker", 1, 1, goal=1.3),
    "two spans": Case("operations, two spans on one worker", 1, 2, goal=1.3),
    "two workers": Case("operations, 2 workers", 2, 1, goal=1.3),
    "a shared span": Case("operations, a span on 2 workers", 2, 0, goal=1.75),
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts and times the operations that torch dispatches, by (caller, operation).

    A caller is the function of this repository that is the nearest on the call stack, or `BACKWARD` for the operations
    of autograd's own nodes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by caller
        self.num_views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, and call it. The times of our own operations are those of the ones that they call."""
        caller = _caller()
        if func.is_view:
            self.num_views += 1
        elif str(func.overloadpacket) not in _NOTHING:
            self.numbers[caller, str(func.overloadpacket)] += 1
        if func.namespace == "resnet_dist":  # in Python: what it calls is counted, too
            with self:
                return getattr(spans, f"_{func._opname}")(*args, **(kwargs or {}))
        started = time.perf_counter()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.seconds[caller] += time.perf_counter() - started


def _caller() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(PACKAGES):
            return f"{Path(file).relative_to(ROOT)}: {function}"
        if function == "_engine_run_backward":
            return BACKWARD
        frame = frame.f_back
    return "elsewhere"


def operations_of(run: Run) -> dict[str, Any]:
    """The operations of one step of `run`, after others: half of what 3 steps have more than a call with one step."""
    run(2)
    with Operations() as once:
        run(1)
    with Operations() as thrice:
        run(3)
    by_caller: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for (caller, operation), number in (thrice.numbers - once.numbers).items():
        by_caller[caller][operation] = number // 2
    return {
        "number": (thrice.numbers.total() - once.numbers.total()) // 2,
        "views": (thrice.num_views - once.num_views) // 2,
        "by_caller": by_caller,
        "ms": {caller: max(0.0, (thrice.seconds[caller] - once.seconds[caller]) * 500) for caller in by_caller},
    }


def measure(setting: Setting, case: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """The operations of our step and of the minimal loop's, and seconds per step by round. On each worker."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    batches = synthetic(setting, rank=dist.get_rank() if world_size > 1 else 0)
    span: int | Literal["global"] = setting.batch // case["spans"] if case["spans"] else "global"
    recipe = setting.recipe(world_size, batch_norm=BatchNormRecipe(span=span))
    peers: dict[str, Run] = {
        "ours": OurTrainer(recipe, CPU, batches),
        "minimal": lean_ddp(setting, batches) if world_size > 1 else MinimalLoop(setting, batches),
    }
    found = {name: operations_of(run) for name, run in peers.items()}
    wait: Callable[[], object] = dist.barrier if world_size > 1 else lambda: None
    times = interleave(peers, rounds=rounds, steps=1, warm_up=0, wait=wait) if rounds else {}
    return {"operations": found, "times_s": times}


def beyond(ours: Mapping[str, Any], minimal: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Operations that a step of ours has more often than the minimal loop's, most first, and their callers."""
    each = {"ours": ours["by_caller"], "minimal": minimal["by_caller"]}
    totals = {name: _by_operation(callers.values()) for name, callers in each.items()}
    rows = []
    for operation, number in totals["ours"].items():
        more = number - totals["minimal"][operation]
        if more > 0:
            excess = {
                caller: found.get(operation, 0) - each["minimal"].get(caller, {}).get(operation, 0)
                for caller, found in each["ours"].items()
            }
            callers = sorted((c for c in excess if excess[c] > 0), key=lambda c: (-excess[c], c))
            rows.append({"operation": operation, "more": more, "callers": callers})
    return sorted(rows, key=lambda row: -row["more"])


def _by_operation(callers: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for found in callers:
        total.update(found)
    return total


def rows_of(name: str, found: Mapping[str, Any]) -> list[Row]:
    """The rows of one case: operations, and if they were measured, times."""
    case, ours, minimal = CASES[name], found["operations"]["ours"], found["operations"]["minimal"]
    ratio = ours["number"] / minimal["number"]
    with_views = [each["number"] + each["views"] for each in (ours, minimal)]
    note = f"with views {with_views[0]:,} and {with_views[1]:,}, ratio {with_views[0] / with_views[1]:.2f}"
    most = ", ".join(f"{row['more']} {row['operation']} ({row['callers'][0]})" for row in _most(found))
    cause = f"operations beyond the minimal loop's, most of them {most}"
    peer = "a minimal loop" if case.workers == 1 else "the same with DDP"
    spread = Ratio(ratio, ratio, ratio)
    rows = [Row(case.what, peer, "operations", ours["number"], minimal["number"], spread, case.goal, note, cause)]
    if found["times_s"]:
        times = found["times_s"]
        rows.append(time_row(case.what.replace("operations", "time"), peer, times["ours"], times["minimal"]))
    return rows


def _most(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return beyond(found["operations"]["ours"], found["operations"]["minimal"])[:3]


def section(found: Mapping[str, Any]) -> Iterator[str]:
    """The result as lines of docs/benchmarks.md."""
    yield f"{found['setting']}. Operations that compute or communicate, by a dispatch mode; times are medians of"
    yield f"{found['rounds']} rounds without it.\n"
    yield table_of(found["rows"]) + "\n"
    yield from notes_of(found["rows"])
    for name, case in found["cases"].items():
        what = CASES[name].what.removeprefix("operations, ")
        yield f"\nWhere the step goes with {what}: operations, and milliseconds in them.\n"
        yield callers_table(case, _SHOWN)
        yield "\nWhat a minimal loop does not do:\n"
        yield beyond_table(case, _SHOWN)
    yield ""


def callers_table(found: Mapping[str, Any], shown: int | None = None) -> str:
    """The callers of our step: operations and milliseconds in them, beside the minimal loop's, most first."""
    ours, minimal = found["operations"]["ours"], found["operations"]["minimal"]
    numbers = {
        name: {caller: sum(each.values()) for caller, each in step["by_caller"].items()}
        for name, step in (("ours", ours), ("minimal", minimal))
    }
    every = sorted({*numbers["ours"], *numbers["minimal"]}, key=lambda c: (-numbers["ours"].get(c, 0), c))
    cells = [
        [
            caller,
            f"{numbers['ours'].get(caller, 0):,}",
            f"{numbers['minimal'].get(caller, 0):,}",
            f"{ours['ms'].get(caller, 0.0):.1f}",
            f"{minimal['ms'].get(caller, 0.0):.1f}",
        ]
        for caller in every[:shown]
    ]
    return table(["called by", "operations", "minimal loop", "ms", "minimal loop, ms"], cells)


def beyond_table(found: Mapping[str, Any], shown: int | None = None) -> str:
    """The operations of `beyond`."""
    rows = beyond(found["operations"]["ours"], found["operations"]["minimal"])[:shown]
    cells = [[row["operation"], f"+{row['more']}", ", ".join(row["callers"][:3])] for row in rows]
    return table(["operation", "beyond the minimal loop's", "called by"], cells)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print tables, write results/step.json; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="count only, on small images")
    parser.add_argument("--only", choices=CASES, action="append", help="may be given several times")
    given = parser.parse_args(arguments)
    setting, rounds = (QUICK, 0) if given.quick else (SETTING, ROUNDS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in given.only or CASES:
        case = CASES[name]
        if case.workers == 1:
            found[name] = measure(setting, asdict(case), rounds)
        else:
            found[name] = on_workers(case.workers, measure, setting, asdict(case), rounds)
        print(f"\n{name}\n\n{callers_table(found[name])}\n\n{beyond_table(found[name])}", flush=True)
    torch.set_num_threads(before)
    rows = [row.record() for name in found for row in rows_of(name, found[name])]
    print(f"\n{table_of(rows)}")
    print("\n".join(notes_of(rows)))
    if not given.quick and not given.only:
        described = f"{setting.model}, {setting.resolution} px, {setting.batch} images per worker, 1 thread each"
        print(f"\n{write('step', {'setting': described, 'rounds': rounds, 'rows': rows, 'cases': found})}")
    return 0 if all(row["reached"] is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
