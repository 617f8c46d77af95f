"""YAML is read by the rules of YAML 1.2, and the place of every value is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.yaml_source import MAX_VALUES, Document, apply_overrides, decode, describe, parse
from launcher.config.yaml_text import dump
from launcher.errors import ConfigError, UsageError


def value(text: str) -> Any:
    return parse(f"key: {text}", "x.yaml").data["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1E6", 1e6),
        ("2.0e-4", 2e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("0x" + "f" * 16, 16**16 - 1),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("!!str 5", "5"),
    ],
)
def test_values_have_the_types_of_yaml_1_2(text: str, expected: object) -> None:
    read = value(text)
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    "text",
    ["yes", "no", "on", "off", "010", "-007", "12:30:00", "04:00:00", "2024-01-02", "1_000", "0b11", "0x", "5 epochs"],
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert value(text) == text


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(value(".nan"))


@pytest.mark.parametrize("text", ["9" * 20, "9" * 5000, "0x" + "f" * 17, "0x" + "f" * 4000, "0o" + "7" * 22])
def test_a_whole_number_of_more_than_64_bits_stays_text(text: str) -> None:
    assert value(text) == text
    assert describe(text) == f"a number of {len(text)} digits"


def test_every_key_has_the_line_that_it_stands_in() -> None:
    document = parse("# a comment\na: 1\n\nb:\n  c: 2\n  d: {e: 3}\n", "x.yaml")
    lines = {"a": 2, "b": 4, "b.c": 5, "b.d": 6, "b.d.e": 6}
    assert document.places == {key: f"x.yaml:{line}" for key, line in lines.items()}
    assert document.place("b.missing") == "x.yaml:4"
    assert document.place("missing.altogether") == "x.yaml:1"


REFUSED = [
    ("", 1, "the file is empty"),
    ("# only a comment\n", 1, "the file is empty"),
    ("- a\n- b\n", 1, 'found ["a", "b"] (a list of 2)'),
    ("just text\n", 1, '"just text" (a string)'),
    ("a: 1\nb:\n\tc: 2\n", 3, "a tab"),
    ("a:\t\t[\t1]\n", 1, "a tab"),
    ("a: 1\nb: 2\na: 3\n", 3, "given twice, first in line 1"),
    ("a:\n  b: 1\n  b: 2\n", 3, "given twice, first in line 2"),
    ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "the tag !!python/object/apply:os.system"),
    ("a: !mine 1\n", 1, "the tag !mine"),
    ("a: !!binary aGk=\n", 1, "the tag !!binary"),
    ("a: !!int high\n", 1, "the tag !!int"),
    ("a: !!set {b}\n", 1, "the tag !!set"),
    ("1: a\n", 1, "found the key '1'"),
    ("true: a\n", 1, "found the key 'true'"),
    ("? [a, b]\n: c\n", 1, "a key in brackets"),
    ("a: 1\n---\nb: 2\n", 2, "a second document"),
    ("a: [1, 2\nb: 3\n", 2, "this is not YAML"),
    ("a: b: c\n", 1, "mapping values are not allowed here"),
    ("a: *unknown\n", 1, "undefined alias"),
    ("a: 1\nb: \x07\n", 2, "U+0007 is not printable"),
    ("a: &x [*x]\n", 1, "aliases expand without end"),
]


@pytest.mark.parametrize(("text", "line", "said"), REFUSED)
def test_what_a_config_must_not_hold_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml")
    [problem] = caught.value.problems
    assert problem.place == f"x.yaml:{line}"
    assert said in problem.found
    assert problem.allowed


def test_a_few_lines_of_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match=f"more than {MAX_VALUES} values"):
        parse("\n".join(lines), "x.yaml")


def test_brackets_without_end_are_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse("a: " + "[" * 2_000, "x.yaml")


def test_an_alias_may_be_used_twice() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "x.yaml").data == {"a": {"b": 1}, "c": {"b": 1}}


def test_bytes_that_are_not_utf_8_are_refused_with_their_line() -> None:
    assert decode("\ufeffa: ü".encode(), "x.yaml") == "a: ü"
    with pytest.raises(ConfigError, match=r"x\.yaml:2: byte 0xfc is not UTF-8"):
        decode("a: 1\nb: ü".encode("latin-1"), "x.yaml")


FILE = parse("workers: 2\noptimizer: {name: lars, momentum: 0.9}\nmodel: resnet18\nbatch:\n", "x.yaml")


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("workers=4", "workers", 4),
        ("optimizer.momentum=0.95", "optimizer", {"name": "lars", "momentum": 0.95}),
        ("optimizer.weight_decay=1e-4", "optimizer", {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4}),
        ("optimizer={name: sgd}", "optimizer", {"name": "sgd"}),
        ("model.num_classes=10", "model", {"name": "resnet18", "num_classes": 10}),
        ("batch.size=8", "batch", {"size": 8}),
        ("data.root=/x=y", "data", {"root": "/x=y"}),
        ("duration=5 epochs", "duration", "5 epochs"),
        ("model.weights=null", "model", {"name": "resnet18", "weights": None}),
    ],
)
def test_an_override_changes_one_key_and_says_so(override: str, key: str, expected: object) -> None:
    document = apply_overrides(FILE, [override])
    assert document.data == {**FILE.data, key: expected}
    assert document.place(override.partition("=")[0]) == f"command line: {override}"


def test_the_last_of_two_overrides_counts_and_the_file_is_left_alone() -> None:
    document = apply_overrides(FILE, ["optimizer.momentum=0.1", "optimizer.momentum=0.2"])
    assert document.data["optimizer"] == {"name": "lars", "momentum": 0.2}
    assert FILE.data["optimizer"] == {"name": "lars", "momentum": 0.9}


def test_a_section_that_is_replaced_forgets_the_files_lines() -> None:
    document = apply_overrides(FILE, ["optimizer={momentum: 2}"])
    assert document.place("optimizer.momentum") == "command line: optimizer={momentum: 2}"


def test_values_of_a_mapping_are_taken_as_they_are() -> None:
    document = apply_overrides(FILE, {"optimizer.momentum": "0.95"})
    assert document.data["optimizer"] == {"name": "lars", "momentum": "0.95"}
    assert document.place("optimizer.momentum") == "argument optimizer.momentum='0.95'"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.momentum", "key=value"),
        ("=3", "key=value"),
        ("a..b=3", "key=value"),
        ("--workers=3", "key=value"),
        ("workers=", "workers=null"),
        ("workers=[1", "not YAML"),
        ("workers=!!python/name:os.system", "the tag !!python/name:os.system"),
        ("workers.least=1", "workers is 2 (a number), not a section"),
        ("optimizer=sgd", "optimizer.KEY=VALUE, for example optimizer.name=..."),
    ],
)
def test_an_override_that_cannot_be_meant_is_a_mistake_of_usage(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_overrides(FILE, [override])
    assert str(caught.value).startswith(f"command line: {override}: ")
    assert said in str(caught.value)


plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**18), 10**18),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12),
        st.sampled_from(["yes", "010", "1e-4", "12:30:00", "~", "<<", "=", "0x10", "2024-01-02", "- a", "a: b", "#"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc_1", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcxyz_", min_size=1), plain, min_size=1, max_size=4))
@settings(deadline=None)
def test_what_is_dumped_reads_back_equal_and_of_the_same_types(data: dict[str, Any]) -> None:
    assert repr(parse(dump(data), "x.yaml").data) == repr(data)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("high", '"high" (a string)'),
        (True, "true (a boolean)"),
        (0.5, "0.5 (a number)"),
        (None, "nothing (null)"),
        ([1, "a"], '[1, "a"] (a list of 2)'),
        (list(range(100)), "a list of 100"),
        ({}, "an empty section"),
        ({"a": 1}, "a section"),
        (10**40, "a number of more than 30 digits"),
        (Document({}, {}, ""), "an object of type Document"),
    ],
)
def test_a_value_is_described_in_words(found: object, expected: str) -> None:
    assert describe(found) == expected
