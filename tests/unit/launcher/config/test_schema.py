"""The ranks that the environment gives a process, and values of it that are no ranks."""

from __future__ import annotations

import pytest

from launcher import train
from launcher.config.schema import Ranks, leads, ranks
from launcher.errors import ConfigError

GROUP = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOCAL:
        monkeypatch.delenv(name, raising=False)
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)


def test_ranks_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks(), leads()) == (Ranks(1, 4, 0, 1), False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks() == Ranks(1, 4, 1, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks() == Ranks(1, 4, 1, 2)
    monkeypatch.setenv("RANK", "0")
    assert leads()
    monkeypatch.delenv("MASTER_PORT")  # not torchrun's: half of a group
    assert (ranks(), leads()) == (Ranks(0, 1, 0, 1), True)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RANK", "x", "from 0 to 3"),
        ("RANK", "4", "from 0 to 3"),
        ("RANK", "", "from 0 to 3"),
        ("RANK", "-1", "from 0 to 3"),
        ("RANK", "9" * 5000, "from 0 to 3"),
        ("WORLD_SIZE", "", "from 1 to 100000"),
        ("WORLD_SIZE", "0", "from 1 to 100000"),
        ("WORLD_SIZE", "2.0", "from 1 to 100000"),
        ("LOCAL_RANK", "-1", "from 0 to 3"),
        ("LOCAL_WORLD_SIZE", "5", "from 1 to 4"),
        ("MASTER_PORT", "abc", "from 0 to 65535"),
        ("MASTER_PORT", "70000", "from 0 to 65535"),
    ],
)
def test_a_variable_that_is_no_rank_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        ranks()
    [problem] = [problem for problem in caught.value.problems if problem.key == name]
    assert (problem.place, allowed in problem.allowed) == ("environment", True)
    assert train.main(["configs/digits_cpu.yaml", "place=local"]) == 78
    assert f"environment: {name}: found " in capsys.readouterr().err
