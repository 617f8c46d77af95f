"""Names of files, images and classes in a message."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

NAMED = 5  # names that a message lists


def shown(name: str) -> str:
    r"""A name for a person: escaped if it has control characters or bytes that are not text.

    >>> shown("a b.jpg"), shown("a\nb.jpg")
    ('a b.jpg', "'a\\nb.jpg'")
    """
    return name if name.isprintable() else ascii(name)


def some(names: Sequence[str], num: int | None = None) -> str:
    """The first five names with commas between them; dots stand for others. `num`: how many there are, if more.

    >>> some(["a", "b"]), some("abcdef"), some(["a"], 3), some([])
    ('a, b', 'a, b, c, d, e ...', 'a ...', 'nothing')
    """
    first = [shown(name) for name in names[:NAMED]]
    more = " ..." if max(len(names), num or 0) > len(first) else ""
    return f"{', '.join(first)}{more}" if first else "nothing"


def why(error: OSError) -> str:
    """Why a file cannot be read: the system's text, or where the link leads whose target is missing."""
    name = error.filename
    if error.errno == errno.ENOENT and isinstance(name, str) and os.path.islink(name):  # noqa: PTH114
        return f"it is a link to {shown(os.readlink(name))}, which does not exist"  # noqa: PTH115
    return error.strerror or str(error)
