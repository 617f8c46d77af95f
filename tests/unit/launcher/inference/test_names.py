from __future__ import annotations

from timm.data import ImageNetInfo

from launcher.inference.names import for_outputs, human_names


def test_the_classes_of_imagenet_have_english_names() -> None:
    wnids = list(ImageNetInfo("imagenet-1k").label_names())  # type: ignore[no-untyped-call]
    names = human_names(wnids)
    assert len(names) == 1000
    assert (names["n01440764"], names["n02123045"], names["n15075141"]) == ("tench", "tabby", "toilet tissue")


def test_other_classes_have_none() -> None:
    wnids = list(ImageNetInfo("imagenet-1k").label_names())  # type: ignore[no-untyped-call]
    assert human_names([*wnids[1:], wnids[0]]) == {}
    assert human_names(["cat", "dog"]) == human_names([]) == {}


def test_every_output_has_one_name() -> None:
    assert for_outputs(["cat", "dog"], 2) == ("cat", "dog")
    assert for_outputs([], 2) == ("output 0", "output 1")
