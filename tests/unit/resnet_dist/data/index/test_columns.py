"""The memory-mapped file of columns, and texts in two of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_dist.data.index import columns
from resnet_dist.data.index.columns import Texts

names = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=8)


@given(names, st.data())
@settings(max_examples=50, deadline=None)
def test_texts_are_a_sequence_like_the_list_that_they_come_from(texts: list[str], data: st.DataObject) -> None:
    packed = Texts.of(texts)
    assert list(packed) == texts == list(packed[:])
    assert packed == texts
    ends = st.none() | st.integers(-10, 10)
    some = slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from([None, 1, 2, -1])))
    assert packed[some] == texts[some]
    if texts:
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1)))
        taken = packed.take(np.array(rows, dtype=np.int64))
        assert list(taken) == [texts[row] for row in rows]
        assert packed[-1] == texts[-1]


def test_many_texts_are_encoded_in_parts() -> None:
    texts = [f"train/n{number % 1000:08d}/{number}.JPEG" for number in range(3 * columns._ENCODED_TOGETHER + 1)]
    assert list(Texts.of(texts)) == texts


def test_columns_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    given = {"kinds": np.arange(3, dtype=np.uint8), "offsets": np.arange(3), "none": np.zeros(0, np.int32)}
    columns.write(tmp_path / "a.safetensors", given, {"format": "3"})
    found, metadata = columns.read(tmp_path / "a.safetensors")
    assert metadata == {"format": "3"}
    for name, column in given.items():
        assert (found[name].dtype, found[name].tolist()) == (column.dtype, column.tolist())
        assert found[name].flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        found["offsets"][0] = 1


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    columns.write(tmp_path / "a.safetensors", {"labels": np.arange(5), "tails": np.arange(5, dtype=np.uint32)}, {})
    found = safetensors.load_file(tmp_path / "a.safetensors")
    assert {name: column.tolist() for name, column in found.items()} == {"labels": [*range(5)], "tails": [*range(5)]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "I64", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]}},
        {"a": {"dtype": "I64", "shape": [1], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "I64", "shape": [-1], "data_offsets": [8, 0]}},
    ],
    ids=["too many", "behind the end", "before the start", "negative"],
)
def test_a_column_outside_of_the_file_is_refused(header: dict[str, object], tmp_path: Path) -> None:
    encoded = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(8))
    with pytest.raises(ValueError, match="is not where the header says"):
        columns.read(tmp_path / "a")
