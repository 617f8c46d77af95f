"""Every value reaches bash as it is: nothing in it is expanded, run or lost."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.slurm.quoting import array, assignment, expanding, quote

# Any character but NUL; half a surrogate pair only where it stands for a byte that is no UTF-8.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=("Cs",)) | st.sampled_from(
    "\udc80\udcff$`'\"\\\n!#"
)
TEXTS = st.text(CHARACTERS)


def seen_by_bash(script: str) -> list[bytes]:
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return done.stdout.split(b"\0")[:-1]


def as_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


@settings(max_examples=60, deadline=None)
@example(
    ["$(touch /tmp/owned)", "`id`", "a'b", 'a"b', "line\nline", "\r\n", "-n", "", "~", "*", "!x", "\\", "\x1b[31m1"]
)
@given(st.lists(TEXTS, max_size=20))
def test_bash_sees_the_value_that_was_quoted(values: list[str]) -> None:
    assert seen_by_bash(f"{array('A', values)}\nprintf '%s\\0' x \"${{A[@]}}\"") == [b"x", *map(as_bytes, values)]


def test_an_assignment_makes_a_constant() -> None:
    assert seen_by_bash(assignment("NAME", "a b; exit 3") + "\nprintf '%s\\0' \"$NAME\"") == [b"a b; exit 3"]
    assert assignment("COUNT", 3) == "readonly COUNT=3"


@settings(max_examples=60, deadline=None)
@example(["$(touch /tmp/owned)", "$JOB", "`id`"])
@given(st.lists(TEXTS | st.sampled_from(["$JOB", "$JOBS", "${JOB}", "$HOME"]), min_size=1, max_size=8))
def test_only_the_named_variables_are_expanded(parts: list[str]) -> None:
    value = "x/" + "/".join(parts)
    expected = re.sub(r"\$JOB\b", "4117", value)
    assert seen_by_bash(f"JOB=4117; V={expanding(value, ['JOB'])}; printf '%s\\0' \"$V\"") == [as_bytes(expected)]


def test_what_sbatch_or_a_terminal_would_act_on_is_escaped() -> None:
    assert quote("a\r\n'") == r"$'a\r\n\''"
    assert "\x1b" not in quote("\x1b[31m")
    assert quote("two\nlines") == "'two\nlines'"  # a config stays readable


def test_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0b")
