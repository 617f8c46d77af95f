from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from resnet_dist.data import Index
from resnet_dist.data.index.table import Kind
from resnet_dist.data.loader import BadImage, HostBatch
from resnet_dist.errors import DataError
from resnet_dist.recipe.schema import DataRecipe
from resnet_dist.training.bad_images import BadImages, limit_of

REPLACE = DataRecipe(root="/data", on_error="replace", max_bad_images=3)


def index(broken: Sequence[int] = (), num: int = 20, split: str = "train") -> Index:
    sizes = np.full(num, 8)
    kinds = np.full(num, Kind.ORDINARY, np.uint8)
    kinds[list(broken)] = Kind.BROKEN
    names = tuple(f"{split}/{row}.jpg" for row in range(num))
    problems = dict.fromkeys(broken, "is truncated")
    return Index("/data", ("c",), names, np.zeros(num, np.int64), sizes, sizes, kinds=kinds, problems=problems)


def image(number: int, problem: str = "cannot be decoded") -> BadImage:
    return BadImage(f"train/{number}.jpg", problem)


def test_each_image_is_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadImages(REPLACE, (index(), index(split="val")))
    with caplog.at_level(logging.WARNING):
        for found in ([image(1), image(1)], [image(2), image(1)]):
            bad.record(bad.met(found))
    assert caplog.messages == [
        f"train/{number}.jpg cannot be decoded: it is left out (data.on_error: replace)" for number in (1, 2)
    ]
    assert [detail["path"] for detail in bad.take_new()] == ["train/1.jpg", "train/2.jpg"]
    assert bad.take_new() == []
    assert bad.summary() == {"num_bad_images": 2, "num_known_bad": 0, "num_left_out": 0}


def test_more_images_than_the_limit_end_the_run_and_some_are_named() -> None:
    bad = BadImages(REPLACE, (index(), index(split="val")))
    bad.record([image(1), image(2), image(3)])
    with pytest.raises(DataError) as raised:
        bad.record([image(4), image(1)])
    assert str(raised.value) == (
        "/data: 4 broken images, for example train/1.jpg cannot be decoded; train/2.jpg cannot be decoded; train/3.jpg "
        "cannot be decoded. That is more than data.max_bad_images allows (3). Repair them, list them in "
        "data.known_bad, or raise data.max_bad_images"
    )


def test_broken_images_of_the_index_count_and_known_ones_do_not(caplog: pytest.LogCaptureFixture) -> None:
    splits = (index(broken=[4, 5, 6]), index(broken=[0], split="val"))
    with pytest.raises(DataError, match=r"4 broken images, for example train/4.jpg is truncated"):
        BadImages(REPLACE, splits)
    caplog.clear()
    bad = BadImages(REPLACE, splits, ["train/4.jpg", "train/9.jpg"])
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"{name} is truncated" for name in ("train/5.jpg", "train/6.jpg", "val/0.jpg")
    ]
    bad.record([image(9)])  # found, and known
    assert len(bad) == 3


def test_under_fail_only_known_images_may_be_broken() -> None:
    data = DataRecipe(root="/data")
    BadImages(data, (index(broken=[4]), index(split="val")), ["train/4.jpg"])
    with pytest.raises(DataError, match=r"1 broken images, for example train/5.jpg is truncated. Repair or delete"):
        BadImages(data, (index(broken=[4, 5]), index(split="val")), ["train/4.jpg"])


@pytest.mark.parametrize(
    ("limit", "num", "expected"), [(5, 20, 5), (0, 20, 0), (0.001, 1_281_167, 1281), (0.001, 20, 1)]
)
def test_a_fraction_is_of_the_training_split_and_at_least_one_image(limit: float, num: int, expected: int) -> None:
    assert limit_of(DataRecipe(on_error="replace", max_bad_images=limit), num) == expected


def test_images_that_are_listed_are_counted_apart() -> None:
    bad = BadImages(REPLACE, (index(broken=[1, 7]), index(split="val", broken=[1])), ["train/1.jpg", "val/1.jpg"])
    assert bad.summary() == {"num_bad_images": 1, "num_known_bad": 2, "num_left_out": 0}


def test_a_resumed_run_goes_on_counting() -> None:
    before = BadImages(REPLACE, (index(broken=[7]), index(split="val")))
    before.record([image(1), image(2)])
    before.num_samples = 12
    after = BadImages(REPLACE, (index(broken=[7]), index(split="val")), ["train/2.jpg"])
    after.load_state(before.state())
    assert after.take_new() == []  # reported by the attempt before
    assert after.summary() == {"num_bad_images": 2, "num_known_bad": 0, "num_left_out": 12}
    after.record([image(1), image(3)])
    assert [detail["path"] for detail in after.take_new()] == ["train/3.jpg"]
    with pytest.raises(DataError, match="4 broken images"):
        after.record([image(8)])


def test_what_an_evaluation_finds_is_shared_at_its_end() -> None:
    bad = BadImages(REPLACE, (index(), index(split="val")))
    zeros = torch.zeros(2, dtype=torch.int64)
    batch = HostBatch(torch.zeros(2, 3, 1, 1), zeros, zeros, 0, broken={1: BadImage("val/3.jpg", "is gone")})
    assert list(bad.noted([batch, batch])) == [batch, batch]
    assert len(bad) == 0
    bad.share()
    assert bad.take_new() == [{"path": "val/3.jpg", "problem": "is gone", "rank": 0}]
