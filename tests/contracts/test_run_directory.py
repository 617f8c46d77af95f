"""Only launcher/run/directory.py spells paths of the run directory, and only json_lines.py reads JSON lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "launcher" / "run" / "directory.py"
JSON_LINES = ROOT / "resnet_dist" / "telemetry" / "json_lines.py"

# Names that also occur in a folder that one module owns, or outside of run directories: {module: names}.
EXCEPTIONS = {
    "launcher/recovery/incidents.py": {"environment.json", "metrics.jsonl", "logs"},  # in incidents/attempt-N
    "launcher/planning/measurement_worker.py": {"checkpoints", "index"},  # in the temporary folder of a measurement
    "launcher/config/profiles.py": {"profiles"},  # site profiles, in the package cluster
    "launcher/places/packing.py": {"config.yaml"},  # in a packed working directory
    "resnet_dist/telemetry/profiler.py": {"rank-"},  # in profiles/attempt-N
}


def modules() -> Iterator[Path]:
    for package in ("launcher", "resnet_dist"):
        yield from sorted((ROOT / package).rglob("*.py"))


def joined_names(tree: ast.AST) -> set[str]:
    """Texts on the right of `/`: constants, and the constant heads of f-strings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            right = node.right.values[0] if isinstance(node.right, ast.JoinedStr) and node.right.values else node.right
            if isinstance(right, ast.Constant) and isinstance(right.value, str):
                found.add(right.value)
    return found


def spelled(source: str, names: set[str]) -> set[str]:
    """Those of `names` that a module spells on the right of `/`, and the file names that are strings of their own."""
    tree = ast.parse(source)
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    files = {name for name in names if Path(name).suffix or name.isupper()}
    return (joined_names(tree) & names) | (strings & files)


def reads_json_lines(source: str) -> bool:
    """Whether a module parses JSON in a loop over the lines of a text, or names a .jsonl file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\S+\.jsonl", node.value):
            return True
        if isinstance(node, ast.For | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            loops = [node] if isinstance(node, ast.For) else node.generators
            if attributes(node) >= {"loads"} and any(
                attributes(loop.iter) & {"splitlines", "readlines"} for loop in loops
            ):
                return True
    return False


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def names_of_directory() -> set[str]:
    """The names that directory.py spells: on the right of `/`, and as the argument of `_Entry`."""
    tree = ast.parse(DIRECTORY.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    entries = [call.args[0] for call in calls if call.func.id == "_Entry"]  # type: ignore[attr-defined]
    return joined_names(tree) | {entry.value for entry in entries if isinstance(entry, ast.Constant)}  # type: ignore[misc]


NAMES = names_of_directory()


def test_the_names_are_found() -> None:
    assert {"attempts.jsonl", "FINISHED", "checkpoints", "attempt-", "stop", "notice-rank-"} <= NAMES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('path = run.path / "logs" / f"attempt-{number}"', {"logs", "attempt-"}),
        ('open(os.path.join(folder, "attempts.jsonl"))', {"attempts.jsonl"}),
        ('print("see metrics.jsonl and FATAL")', set()),
        ("ratio = logs / attempts", set()),
    ],
)
def test_the_scan_finds_spelled_paths(source: str, found: set[str]) -> None:
    assert spelled(source, NAMES) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("[json.loads(line) for line in text.splitlines()]", True),
        ("for line in file.readlines():\n    use(json.loads(line))", True),
        ('rows = folder / "rows.jsonl"', True),
        ("answer = json.loads(lines[-1])", False),
        ("[line for line in text.splitlines()]", False),
    ],
)
def test_the_scan_finds_readers_of_json_lines(source: str, found: bool) -> None:
    assert reads_json_lines(source) is found


def test_only_one_module_spells_paths_of_the_run_directory() -> None:
    for path in modules():
        name = str(path.relative_to(ROOT))
        if path != DIRECTORY:
            assert spelled(path.read_text(), NAMES) - EXCEPTIONS.get(name, set()) == set(), name


def test_only_one_module_reads_json_lines() -> None:
    allowed = {DIRECTORY, JSON_LINES, ROOT / "launcher" / "recovery" / "incidents.py"}  # the last one copies lines
    for path in modules():
        assert path in allowed or not reads_json_lines(path.read_text()), path
