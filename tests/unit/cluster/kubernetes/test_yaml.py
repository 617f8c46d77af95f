"""cluster/kubernetes/yaml.py: data to YAML and back."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.kubernetes.yaml import to_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.none() | st.booleans() | st.integers() | TEXT
VALUES = PLAIN | st.lists(st.dictionaries(TEXT, PLAIN, max_size=3), max_size=3)


@settings(deadline=None)
@given(st.lists(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_is_written_is_read_back(manifests):
    assert list(yaml.safe_load_all(to_yaml(manifests))) == manifests


def test_long_texts_are_blocks_that_can_be_read():
    assert (
        to_yaml([{"data": {"config.yaml": "name: a\n  b: c\n"}}])
        == "data:\n  config.yaml: |\n    name: a\n      b: c\n"
    )


@pytest.mark.parametrize(
    "text", ["on", "no", "1e3", "0x1f", "0o17", "012", "2.60", "~", "null", "1_000", "12:30:00", ""]
)
def test_text_that_a_reader_could_take_for_something_else_is_quoted(text):
    assert to_yaml([{"a": text}]) == f'a: "{text}"\n'


def test_the_order_is_that_of_the_data_every_time():
    assert to_yaml([{"b": 1, "a": 2}, {"c": 3}]) == "b: 1\na: 2\n---\nc: 3\n"


def test_a_heading_is_one_comment_whatever_is_in_it():
    assert to_yaml([{"a": 1}], heading=["made for\nkind: Secret"]) == "# made for\\nkind: Secret\na: 1\n"


@settings(deadline=None)
@given(st.text(max_size=20) | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=5))
def test_no_character_leaves_a_comment_or_makes_the_file_unreadable(heading):
    text = to_yaml([{"a": 1}], heading=[heading])
    assert list(yaml.safe_load_all(text)) == [{"a": 1}]
    comment, data = text.encode().decode().splitlines()
    assert comment.isprintable()
    assert (comment[0], data) == ("#", "a: 1")
