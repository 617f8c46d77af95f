"""Paths of a config: absolute from the config's folder, and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from launcher.config import credentials
from launcher.config.yaml_source import describe
from resnet_dist.object_stores import is_address

KEYS = (
    "storage",
    "data.root",
    "data.classes",
    "data.known_bad",
    "data.cache.folder",
    "model.weights",
    "preemption.notice_file",
    "log.prometheus",
)
ADDRESSES = ("data.root",)  # those that may be an address, too
MAY_BE_EMPTY = ("data.root",)  # where there are no files; the rules say when it is needed


def absolute(text: str, folder: Path) -> str:
    """`text` as an absolute path, or the address that it is; file:/// is a path.

    Symbolic links are kept: other nodes may mount their targets elsewhere.
    """
    if is_address(text) and not text.startswith("file:///"):
        return text.rstrip("/") if is_address(text.rstrip("/")) else text
    text = text.removeprefix("file://")
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises for an unknown user
    return os.path.abspath(folder / expanded)  # noqa: PTH100 - resolve() would follow links


def problem(key: str, text: str, path: str) -> tuple[str, str] | None:
    """The problem with `text`, whose absolute form is `path`, and what is allowed; None without a problem."""
    if not text.strip() or not text.isprintable():
        return f"found {describe(text)}", "the path of a file or folder"
    if credentials.in_text(text):
        return credentials.FOUND, credentials.instead(key)
    if is_address(path):
        if key not in ADDRESSES:
            return f'found "{text}", the address of an object store', "a folder that every node sees"
        if re.match(r"[a-z][a-z0-9+.-]*://[^/\s]", path) is None or text.startswith("file:"):
            return f'found "{text}"', "a folder, or an address such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER"
    if "$" in text:
        allowed = f"the path itself, or {key}=... on the command line, where the shell expands variables"
        return f'found "{text}", where the variable would not be expanded', allowed
    if text.startswith("~") and os.path.expanduser(text).startswith("~"):  # noqa: PTH111 - as above
        return f'found "{text}", the home of a user that does not exist here', "an absolute path"
    session = next(_ray_sessions(path), None) if key == "storage" else None
    if session is not None:
        found = f'found "{text}", which is in Ray\'s session folder {session}: Ray deletes it'
        return found, "an absolute path outside of it, on storage that every node sees"
    return None


def _ray_sessions(path: str) -> Iterator[Path]:
    """The folders of Ray sessions that `path` lies in, by Ray's naming scheme and locations."""
    temporary = os.environ.get("RAY_TMPDIR", "/tmp")  # Ray's rule; its sessions are in the folder "ray" of it
    roots = {Path("/tmp/ray"), Path(temporary), Path(temporary, "ray")}
    for start in (path, os.path.realpath(path)):
        for folder in (Path(start), *Path(start).parents):
            dated = re.match(r"session_(latest|\d{4}-\d{2}-\d{2})", folder.name) and "ray" in folder.parent.parts
            # `ray start --temp-dir` may be anywhere, but the name has Ray's form: date, time, process.
            stamped = re.match(r"session_\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_\d+", folder.name)
            if dated or stamped or (folder.name.startswith("session_") and folder.parent in roots):
                yield folder
