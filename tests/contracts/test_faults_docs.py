"""docs/faults.md and docs/errors.md have the rules of launcher/recovery/faults.py."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.exit_codes import ExitCode
from launcher.recovery.faults import RULES

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str, columns: int) -> list[list[str]]:
    """The cells of all table rows of a page whose first cell is code, without its quotes."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [[row[0].strip("`"), *row[1:]] for row in cells if len(row) == columns]


def test_the_page_on_faults_has_every_rule_in_the_order_of_the_code() -> None:
    expected = [
        [rule.error.__name__, str(int(rule.exit_code)), rule.retry.value, "yes" if rule.blames_node else "no"]
        for rule in RULES
    ]
    assert rows("faults.md", columns=4) == expected


def test_the_page_on_errors_has_the_same_rules() -> None:
    said = {name: (code, again.replace("`", "")) for name, code, again, _ in rows("errors.md", columns=4)}
    for rule in RULES:
        if rule.error is not Exception:
            name = f"{rule.error.__module__}.{rule.error.__name__}"
            assert said[name] == (str(int(rule.exit_code)), rule.retry.value), name


def test_every_rule_has_advice() -> None:
    assert all(rule.advice for rule in RULES)


def test_the_operations_page_has_every_exit_code() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    codes = {int(code) for line in re.findall(r"^\| ([0-9, ]+) \|", text, re.MULTILINE) for code in line.split(",")}
    assert codes == {int(code) for code in ExitCode}


def test_every_fault_test_of_the_page_exists() -> None:
    tests = Path(__file__).parents[1]
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(tests.rglob("test_*.py")))
    there = set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    table = [row for row in page.partition("## Fault tests")[2].splitlines() if row.startswith("| ")][1:]
    assert table
    for row in table:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= there, named - there
