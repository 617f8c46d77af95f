"""Drivers, GPUs and arithmetic: broken arithmetic is broken for real, in the function that multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from launcher.checks import accelerator, arithmetic

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_working_device_multiplies_without_an_error(dtype: torch.dtype) -> None:
    assert arithmetic.product_errors(CPU, dtype) == 0


def test_a_single_flipped_bit_in_one_product_is_found() -> None:
    def flip(left: Tensor, right: Tensor) -> Tensor:
        product = left @ right
        product.view(torch.int32)[7, 9] ^= 1 << 3
        return product

    assert arithmetic.product_errors(CPU, torch.float32, flip) >= 1


def test_products_in_a_lower_precision_are_found() -> None:
    wrong = arithmetic.product_errors(CPU, torch.float32, lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    assert wrong > 1000


def test_not_a_number_is_wrong() -> None:
    wrong = arithmetic.product_errors(CPU, torch.float32, lambda a, b: (a @ b).fill_(float("nan")))
    assert wrong == 2 * 512 * 512


def test_memory_that_loses_a_bit_is_found() -> None:
    buffer = torch.empty(1000, dtype=torch.int64)
    assert arithmetic.pattern_errors(buffer) == 0

    def weaken() -> None:
        buffer[123] &= ~(1 << 40)  # a cell that cannot hold a one

    assert arithmetic.pattern_errors(buffer, weaken) == 1  # only one of the patterns has a one there


def test_an_address_line_that_is_stuck_is_found() -> None:
    buffer = torch.empty(1024, dtype=torch.int64)

    def alias() -> None:
        buffer[512:] = buffer[:512].clone()

    assert arithmetic.pattern_errors(buffer, alias) == 512


def test_a_cpu_that_computes_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator.cpu_matmul().status == "pass"
    assert accelerator.cpu_memory().status == "pass"
    monkeypatch.setattr(arithmetic, "product_errors", lambda *_: 3)
    monkeypatch.setattr(arithmetic, "pattern_errors", lambda *_: 1)
    assert accelerator.cpu_matmul().status == "fail"
    assert accelerator.cpu_memory().status == "fail"


@pytest.mark.parametrize(
    ("wanted", "offered", "gpus", "status"),
    [
        ("13.0", (13, 0), 1, "pass"),
        ("12.8", (13, 0), 1, "pass"),  # a driver runs what is older
        ("13.2", (13, 0), 1, "warn"),  # and, in part, what is newer in the same major version
        ("13.0", (12, 9), 1, "fail"),
        ("13.0", (12, 9), 0, "warn"),
        ("13.0", None, 1, "fail"),
        ("13.0", None, 0, "skipped"),
        (None, (13, 0), 1, "fail"),
        (None, (13, 0), 0, "pass"),
    ],
)
def test_the_driver_against_the_cuda_that_torch_wants(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, offered: tuple[int, int] | None, gpus: int, status: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", wanted)
    monkeypatch.setattr(accelerator, "driver_cuda", lambda: offered)
    assert accelerator.driver(gpus).status == status


def test_fewer_gpus_than_asked_fail_and_name_what_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    finding = accelerator.gpus(4, visible=1)
    assert finding.status == "fail"
    assert "1 GPU visible, 4 required (CUDA_VISIBLE_DEVICES='0')" in finding.found
    assert accelerator.gpus(4, visible=4).status == "pass"


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ({"wrong_products": 0, "changed_words": 0}, "pass", "0 wrong elements in products, 0 changed words in 2.0 GiB"),
        ({"wrong_products": 5, "changed_words": 0}, "fail", "5 wrong elements in products"),
        ({"wrong_products": 0, "changed_words": 1}, "fail", "1 changed word in 2.0 GiB"),
        ("no answer within 90 s", "fail", "no answer"),
    ],
)
def test_what_a_gpu_answers(answer: dict[str, int] | str, status: str, said: str) -> None:
    whole = answer if isinstance(answer, str) else {"name": "H100", "num_bytes": 2**31, **answer}
    finding = accelerator.gpu_finding(3, whole)
    assert (finding.name, finding.status) == ("GPU 3", status)
    assert said in finding.found
    assert status == "pass" or "nvidia-smi -q -i 3" in finding.advice


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_this_gpu_computes_correctly() -> None:
    assert {finding.status for finding in accelerator.gpu_arithmetic()} == {"pass"}
