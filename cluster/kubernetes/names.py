"""Names, labels, quantities and literal text of Kubernetes: validation and conversion."""

from __future__ import annotations

import hashlib
import math
import re
from fractions import Fraction

MAX_RUN_NAME = 47  # KubeRay v1.7.0, validation.go: it appends a suffix, and a service's name has at most 63 characters
_HASH_LENGTH = 6

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123; Kubernetes: "Object Names and IDs"
_SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1035
_NAME_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)(k|M|G|T|Ki|Mi|Gi|Ti)?")
_CPUS = re.compile(r"[0-9]{1,6}m|[0-9]{1,4}(\.[0-9]{1,3})?")


def run_name(name: str) -> str:
    """A valid name of a RayJob for a run: at most 47 of a-z, 0-9 and -, a letter first.

    A valid name is returned unchanged. A changed one ends with a hash of the original, so that names stay unique.

    >>> run_name("rn50-8node"), run_name("RN50_v1.5")
    ('rn50-8node', 'rn50-v1-5-8e478a')
    """
    if is_service_name(name) and len(name) <= MAX_RUN_NAME:
        return name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{plain[: MAX_RUN_NAME - _HASH_LENGTH - 1].rstrip('-')}-{digest}"


def is_label(text: str) -> bool:
    """Whether it is a valid name of a namespace or a container: a DNS label."""
    return _LABEL.fullmatch(text) is not None


def is_service_name(text: str) -> bool:
    """Whether it is a valid name of a service or a RayJob: a DNS label that begins with a letter."""
    return _SERVICE.fullmatch(text) is not None


def is_object_name(text: str) -> bool:
    """Whether it is a valid name of most other objects: DNS labels joined by dots, at most 253 characters."""
    return len(text) <= 253 and all(is_label(part) for part in text.split("."))


def is_qualified(text: str) -> bool:
    """Whether it is a valid key of a label, an annotation or a resource: `name` or `domain/name`."""
    prefix, slash, name = text.rpartition("/")
    return (is_object_name(prefix) if slash else True) and _NAME_PART.fullmatch(name) is not None


def is_label_value(text: str) -> bool:
    """Whether it is a valid value of a label; it may be empty."""
    return not text or _NAME_PART.fullmatch(text) is not None


def is_variable(text: str) -> bool:
    """Whether it is a valid name of an environment variable."""
    return _VARIABLE.fullmatch(text) is not None


def is_cpus(text: str) -> bool:
    """Whether it is an amount of CPU: 500m, 2, 1.5."""
    return _CPUS.fullmatch(text) is not None and any(digit in text for digit in "123456789")


def num_bytes(quantity: str) -> int:
    """The bytes of an amount of memory or storage: 8Gi, 500M. Raises ValueError if it is invalid or 0."""
    match = _QUANTITY.fullmatch(quantity)
    whole = 0 if match is None else math.ceil(Fraction(match[1]) * _UNITS[match[2] or ""])
    if whole < 1:
        raise ValueError(f'"{quantity}" is not an amount of memory')
    return whole


def quantity(number: int) -> str:
    """The amount of memory with that many bytes, in the largest unit that is exact.

    >>> quantity(3 * 2**30), quantity(1536 * 2**20), quantity(200_000_000)
    ('3Gi', '1536Mi', '200000000')
    """
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if number % _UNITS[unit] == 0:
            return f"{number // _UNITS[unit]}{unit}"
    return str(number)


def literal(text: str) -> str:
    """Text for `command`, `args` or the value of a variable, where Kubernetes would expand `$(NAME)`.

    >>> print(literal("$(HOME) and $5"))
    $$(HOME) and $$5
    """
    return text.replace("$", "$$")
