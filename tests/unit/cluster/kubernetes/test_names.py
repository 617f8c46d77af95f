"""cluster/kubernetes/names.py: names, quantities and literal text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.kubernetes.names import (
    MAX_RUN_NAME,
    is_object_name,
    is_service_name,
    literal,
    num_bytes,
    quantity,
    run_name,
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)  # what a run may be called


@given(NAMES)
def test_every_runs_name_becomes_one_that_kubernetes_takes(name):
    made = run_name(name)
    assert is_service_name(made)
    assert len(made) <= MAX_RUN_NAME


@given(NAMES, NAMES)
def test_two_runs_never_share_a_name(one, other):
    assert (run_name(one) == run_name(other)) == (one == other)


@pytest.mark.parametrize("pair", [("a.b", "a-b"), ("Run", "run"), ("1", "run-1"), ("a" * 60, "a" * 61)])
def test_names_that_look_alike_stay_apart(pair):
    assert run_name(pair[0]) != run_name(pair[1])


def test_names_of_objects_have_an_end():
    assert is_object_name("a." * 126 + "a")
    assert not is_object_name("a." * 127 + "a")
    assert not is_object_name("a..b")


@pytest.mark.parametrize(("text", "size"), [("8Gi", 8 * 2**30), ("1.5Gi", 3 * 2**29), ("500M", 5 * 10**8), ("7", 7)])
def test_quantities_are_read_to_the_byte(text, size):
    assert num_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "8GB", "-1Gi", "1e3", "8 Gi", "Gi", "0.0001", "\uff18Gi"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match="not an amount of memory"):
        num_bytes(text)


@given(st.integers(1, 10**15 - 1))
def test_quantities_say_exactly_what_they_were_made_of(size):
    assert num_bytes(quantity(size)) == size


def _expand(text: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of `$(NAME)` and `$$`, by the rules in Kubernetes' API reference (Container.args)."""
    out, at = "", 0
    while at < len(text):
        if text[at : at + 2] == "$$":
            out, at = out + "$", at + 2
        elif text[at : at + 2] == "$(" and ")" in text[at:]:
            end = text.index(")", at)
            name = text[at + 2 : end]
            out, at = out + variables.get(name, f"$({name})"), end + 1
        else:
            out, at = out + text[at], at + 1
    return out


@given(st.lists(st.sampled_from(["$", "$$", "(", ")", "$(HOME)", "HOME", " ", "\n", "'", '"', "x"])).map("".join))
def test_a_literal_text_is_never_expanded(text):
    assert _expand(literal(text), {"HOME": "/root", "": "nothing"}) == text
