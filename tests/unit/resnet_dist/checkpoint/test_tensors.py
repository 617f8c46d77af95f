"""The safetensors format, against the safetensors package and malicious files."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from resnet_dist.checkpoint import tensors
from resnet_dist.errors import CheckpointError

ONE_OF_EACH = {
    "float64": torch.tensor([1 / 3, float("nan"), -float("inf")], dtype=torch.float64),
    "float32": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "float16": torch.tensor([1.5, 65504.0], dtype=torch.float16),
    "bfloat16": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "int32": torch.tensor([2**31 - 1], dtype=torch.int32),
    "uint8": torch.tensor([0, 255, 7], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(42),
    "empty": torch.empty(0, 3),
    "channels_last": torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "slice": torch.arange(10.0)[2:9:3],
    "expanded": torch.tensor([1.0]).expand(4),
    "layer1.0.conv1.weight/momentum": torch.ones(2, requires_grad=True),
}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        same = actual[name].contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(same, tensor.detach().contiguous().reshape(-1).view(torch.uint8)), name


def crafted(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x", ONE_OF_EACH)
    assert_same(tensors.read(tmp_path / "x").tensors, ONE_OF_EACH)


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x", ONE_OF_EACH)
    assert_same(safetensors.torch.load_file(tmp_path / "x"), ONE_OF_EACH)


def test_what_the_safetensors_package_writes_is_read(tmp_path: Path) -> None:
    whole = {name: tensor.detach().contiguous() for name, tensor in ONE_OF_EACH.items()}
    safetensors.torch.save_file(whole, tmp_path / "x", metadata={"from": "elsewhere"})
    contents = tensors.read(tmp_path / "x")
    assert_same(contents.tensors, ONE_OF_EACH)
    assert contents.metadata == {"from": "elsewhere"}


def test_size_and_hash_are_those_of_the_file(tmp_path: Path) -> None:
    written = tensors.write(tmp_path / "x", ONE_OF_EACH)
    content = (tmp_path / "x").read_bytes()
    assert (written.size_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert tensors.read(tmp_path / "x").record == written


def test_tensors_that_were_read_can_be_written_to(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x", {"a": torch.zeros(3)})
    assert tensors.read(tmp_path / "x").tensors["a"].add_(1).tolist() == [1, 1, 1]


def test_no_tensors_at_all_is_a_file_too(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x", {}, {"stateless": "[]"})
    contents = tensors.read(tmp_path / "x")
    assert contents.tensors == {}
    assert contents.metadata == {"format": "pt", "stateless": "[]"}


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        tensors.write(tmp_path / "x", {})


@pytest.mark.parametrize("name", ["", "../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\0b", "__metadata__"])
def test_a_name_like_a_path_is_neither_written_nor_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="tensor"):
        tensors.write(tmp_path / "x", {name: torch.zeros(1)})
    with pytest.raises(CheckpointError):
        tensors.read(crafted(tmp_path / "y", {name: entry()}, bytes(4)))


def test_a_dtype_outside_the_eight_is_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"complex64 is not supported\. Allowed: torch\.float64, "):
        tensors.write(tmp_path / "x", {"a": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(CheckpointError, match=r"'C64' is not supported\. Allowed: F64, F32"):
        tensors.read(crafted(tmp_path / "y", {"a": entry("C64", [1], [0, 8])}, bytes(8)))


def test_a_header_longer_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a header of 1152921504606846976 bytes in a file of 10"):
        tensors.read(crafted(tmp_path / "x", b"{}", length=2**60))


def test_an_empty_tensor_of_an_impossible_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too large"):
        tensors.read(crafted(tmp_path / "x", {"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6), id="overlap"),
        pytest.param({"a": entry(), "b": entry()}, bytes(4), id="twice the same bytes"),
        pytest.param({"a": entry(offsets=[4, 8])}, bytes(8), id="hole before"),
        pytest.param({"a": entry()}, bytes(5), id="bytes left over"),
        pytest.param({"a": entry()}, bytes(3), id="past the end"),
        pytest.param({"a": entry(shape=[2**62], offsets=[0, 2**62])}, bytes(4), id="huge"),
        pytest.param({"a": entry(offsets=[-4, 0])}, bytes(4), id="negative offset"),
        pytest.param({"a": entry(shape=[-4], offsets=[0, -4])}, bytes(4), id="negative shape"),
        pytest.param({"a": entry(shape=[-2, -2])}, bytes(4), id="negative lengths with a positive product"),
        pytest.param({"a": entry(shape=[5])}, bytes(4), id="shape and offsets disagree"),
        pytest.param({"a": entry(shape=[4.0])}, bytes(4), id="fractional shape"),
        pytest.param({"a": entry(shape=[True, 4])}, bytes(4), id="shape of truths"),
        pytest.param({"a": entry(offsets=[0, 2, 4])}, bytes(4), id="three offsets"),
        pytest.param({"a": entry(dtype=["U8"])}, bytes(4), id="dtype not text"),
        pytest.param({"a": {**entry(), "code": "import os"}}, bytes(4), id="an unknown field"),
        pytest.param({"a": [0, 4]}, bytes(4), id="entry not an object"),
        pytest.param([entry()], bytes(4), id="header not an object"),
        pytest.param({"__metadata__": {"n": 1}}, b"", id="metadata not text"),
        pytest.param({"__metadata__": "x"}, b"", id="metadata not an object"),
        pytest.param(b'{"a":' + json.dumps(entry()).encode() + b',"a":null}', bytes(4), id="a key twice"),
        pytest.param(b"\x80\x04K*.", b"", id="a pickle"),
        pytest.param(b"[" * 100_000, b"", id="nested without end"),
        pytest.param(b'{"a":', b"", id="not JSON"),
    ],
)
def test_a_malicious_header_is_refused(tmp_path: Path, header: object, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        tensors.read(crafted(tmp_path / "x", header, data))


@pytest.mark.parametrize("content", [b"", b"\x02\x00", struct.pack("<Q", 2)])
def test_a_file_without_a_whole_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        tensors.read(tmp_path / "x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: is missing"):
        tensors.read(tmp_path / "gone")
