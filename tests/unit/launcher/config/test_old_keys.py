"""Keys of earlier versions are read under their new names, with a warning for those in a user's config."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config import load as configs
from launcher.config import old_keys
from launcher.config.dotted_keys import flatten
from launcher.config.old_keys import REMOVED, RENAMED, with_new_names
from launcher.config.schema import RunConfig
from launcher.errors import ConfigError
from resnet_dist.recipe.schema import plain

CONFIG = """\
schema: 1
name: small
storage: runs
data: {root: images}
batch: {size: 64}
duration: 3 epochs
schedule: {base_lr: 0.1}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    numbers = itertools.count()

    def write_config(more: str) -> Path:
        path = tmp_path / f"{next(numbers)}.yaml"
        path.write_text(CONFIG + more)
        return path

    return write_config


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(old_keys, "REMOVED", {"speed.turbo": "the engine is always at its fastest"})
    return "speed.turbo"


def value_of(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize(
    ("text", "key", "value", "warning"),
    [
        ("speed: {optimizer: loop}", "speed.sgd_kernel", "loop", "speed.sgd_kernel: loop"),
        ("faults:\n  node_strikes: 5", "faults.max_node_failures", 5, "faults.max_node_failures: 5"),
        ("optimizer: {name: lars, convention: lr_outside}", "optimizer.lr_in_momentum", False, "lr_in_momentum: false"),
        ("optimizer: {name: lars, convention: lr_inside}", "optimizer.lr_in_momentum", True, "lr_in_momentum: true"),
        ("optimizer: {name: lars, convention: null}", "optimizer.lr_in_momentum", None, "lr_in_momentum: null"),
    ],
)
def test_a_renamed_key_is_read_with_one_warning_that_says_what_to_write(
    write: Write, caplog: pytest.LogCaptureFixture, text: str, key: str, value: object, warning: str
) -> None:
    path = write(text)
    assert value_of(configs.load(path), key) == value
    configs.read(path)
    [record] = caplog.records
    line = 8 + text.count("\n")
    assert record.getMessage().startswith(f"{path}:{line}: {next(old for old in RENAMED if RENAMED[old].key == key)}: ")
    assert record.getMessage().endswith(warning)


def test_a_later_mistake_is_found_in_the_line_of_the_old_key(write: Write) -> None:
    path = write("optimizer:\n  name: lars\n  convention: inside\nfaults:\n  node_strikes: 0\n")
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert [(problem.place, problem.key) for problem in caught.value.problems] == [
        (f"{path}:10", "optimizer.lr_in_momentum"),
    ]
    path = write("faults:\n  node_strikes: 0\n")
    with pytest.raises(ConfigError, match=r"yaml:9: faults\.max_node_failures: found 0"):
        configs.load(path)


@pytest.mark.parametrize("names", ["optimizer: loop, sgd_kernel: loop", "sgd_kernel: loop, optimizer: loop"])
def test_both_names_are_refused(write: Write, names: str) -> None:
    with pytest.raises(ConfigError, match=r"yaml:8: speed\.optimizer: given with its new name, speed\.sgd_kernel"):
        configs.load(write(f"speed: {{{names}}}"))


def test_a_mapping_is_read_as_a_file_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"schema": 1, "name": "a", "storage": "runs", "data": {"root": "x"}, "batch": {"size": 64}}
    data |= {"duration": "3 epochs", "schedule": {"base_lr": 0.1}, "speed": {"optimizer": "loop"}}
    assert configs.from_mapping(data, tmp_path, name="cell 3").speed.sgd_kernel == "loop"
    assert [record.getMessage() for record in caplog.records] == [
        "cell 3: speed.optimizer: this key is now called speed.sgd_kernel. Write speed.sgd_kernel: loop"
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.name=lars", "optimizer.convention=lr_outside"],
        ["optimizer={name: lars, convention: lr_outside}"],
        {"optimizer": {"name": "lars", "convention": "lr_outside"}},
    ],
)
def test_an_override_may_have_the_old_name_and_is_warned_of(
    write: Write, caplog: pytest.LogCaptureFixture, overrides: Any
) -> None:
    assert configs.load(write(""), overrides).optimizer.lr_in_momentum is False
    assert configs.load(write("optimizer: {lr_in_momentum: true, name: lars}"), overrides).optimizer.name == "lars"
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(("command line: optimizer", "argument optimizer="))
    assert warning.endswith(
        ": optimizer.convention: this key is now called optimizer.lr_in_momentum. Write optimizer.lr_in_momentum: false"
    )


def test_an_override_replaces_the_files_value_under_either_name(write: Write) -> None:
    old, new = write("speed: {optimizer: loop}"), write("speed: {sgd_kernel: loop}")
    for path, name in itertools.product((old, new), ("optimizer", "sgd_kernel")):
        assert configs.load(path, [f"speed.{name}=foreach"]).speed.sgd_kernel == "foreach"


def test_what_a_run_has_recorded_is_read_without_a_warning(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert configs.load(write("speed: {optimizer: loop}"), recorded=True).speed.sgd_kernel == "loop"
    assert caplog.records == []


def test_a_removed_key_is_accepted_and_has_no_effect(
    write: Write, caplog: pytest.LogCaptureFixture, removed: str
) -> None:
    path = write("speed: {turbo: 3}")
    assert configs.load(path) == configs.load(write("")) == configs.load(write(""), [f"{removed}=4"])
    said = "this key has no effect any more: the engine is always at its fastest. Remove it"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}:8: {removed}: {said}",
        f"command line: {removed}=4: {removed}: {said}",
    ]


def test_new_names_are_keys_of_the_same_section_and_old_ones_are_not(write: Write) -> None:
    known = flatten(plain(configs.load(write(""))))
    for old, new in RENAMED.items():
        assert new.key in known
        assert old.rpartition(".")[0] == new.key.rpartition(".")[0]
    assert not known.keys() & {*RENAMED, *REMOVED}


def test_what_is_not_old_stays() -> None:
    data = {"seed": 1, "optimizer": {"arguments": {"convention": "lr_inside"}}, "convention": 2}
    assert with_new_names(data) == data
