"""Several hosts that carry out tasks, however they are reached: through Ray, or through torchrun's store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.checks.children import Answer

Call = tuple[str, Mapping[str, Any]]  # a task of `launcher.checks.tasks`, and its arguments


@dataclass(frozen=True)
class Host:
    """A host: where the other hosts reach it, and what the run may use of it at most."""

    address: str
    workers: int
    gpus: int
    cpus: int


class Hosts(Protocol):
    """Hosts that can be asked to carry out tasks; the run's driver need not be among them."""

    hosts: Mapping[str, Host]  # by a unique name

    def run(self, calls: Mapping[str, Call], seconds: float) -> Mapping[str, Answer | str]:
        """Call the named hosts at once; returns each host's answer, or the reason why there is none, as text.

        Returns within `seconds`. Several threads may call different hosts at the same time.
        """
        ...


def unique_names(names: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """`names`, each with its suffix if it occurs more than once.

    >>> unique_names(["n0", "n1", "n1"], ["#0", "#1", "#2"])
    ['n0', 'n1#1', 'n1#2']
    """
    return [name if names.count(name) == 1 else f"{name}{suffix}" for name, suffix in zip(names, suffixes, strict=True)]


def split_answers(answers: Mapping[str, Answer | str]) -> tuple[dict[str, Answer], dict[str, str]]:
    """The answers by host, and the reasons why other hosts gave none."""
    good = {host: answer for host, answer in answers.items() if not isinstance(answer, str)}
    return good, {host: answer for host, answer in answers.items() if isinstance(answer, str)}
