"""The working directory for a Ray cluster: the config, and the user's modules that it names.

They are copied into an empty folder, so that no data set, checkpoint, `.env` or key next to them is sent.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config import load as configs
from launcher.config.schema import RunConfig
from launcher.errors import UsageError
from launcher.formatting import in_bytes
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.schema import plain

MAX_BYTES = 100 * 2**20  # Ray 2.60's default for a working directory (GCS_STORAGE_MAX_SIZE in packaging.py)
CONFIG = "config.yaml"
_LEFT_OUT = ("__pycache__", "node_modules")
_SHOWN = 5  # files in a message


@dataclass(frozen=True)
class Pack:
    """A folder that is ready to upload."""

    folder: Path
    files: tuple[Path, ...]  # relative to it
    size_bytes: int
    installed: tuple[str, ...]  # modules in the config that are installed here; the cluster must have them


def pack(config: RunConfig, folder: Path) -> Pack:
    """Fill the empty `folder`. Raises UsageError for a missing module, a link that leads outside, or too many bytes."""
    (folder / CONFIG).write_text(configs.to_yaml(config), encoding="utf-8")
    installed = []
    for name in sorted(own_modules(config)):
        source = _source_of(name)
        if source is None:
            installed.append(name)
        elif source.is_dir():
            _copy(source, folder / name)
        else:
            shutil.copyfile(_inside(source, source.parent), folder / source.name)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    sizes = {file: (folder / file).stat().st_size for file in files}
    size_bytes = sum(sizes.values())
    if size_bytes > MAX_BYTES:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:_SHOWN]
        named = ", ".join(f"{file} ({in_bytes(sizes[file])})" for file in largest)
        raise UsageError(
            f"the working directory would have {in_bytes(size_bytes)}: {named}. Allowed: {in_bytes(MAX_BYTES)}. Move "
            "data out of the package, onto storage that the cluster can read"
        )
    return Pack(folder, tuple(files), size_bytes, tuple(installed))


def own_modules(config: RunConfig) -> set[str]:
    """The top-level modules of all `package.module:function` in the config."""
    texts = _texts(plain(config))
    return {text.partition(":")[0].partition(".")[0] for text in texts if is_reference(text)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _source_of(name: str) -> Path | None:
    """The folder or file of a module; None if it is installed. Raises UsageError if it is not found."""
    found = importlib.util.find_spec(name)
    if found is None:
        raise UsageError(
            f"the config names the module {name}, which is not found. Allowed: a module in the current folder, on "
            "PYTHONPATH, or installed"
        )
    locations = list(found.submodule_search_locations or [])
    if not locations and not found.has_location:
        return None  # built in
    source = Path(locations[0] if locations else str(found.origin)).absolute()
    roots = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots += [*site.getsitepackages(), site.getusersitepackages()]
    return None if any(source.is_relative_to(root) for root in roots) else source


def _copy(package: Path, target: Path) -> None:
    """Copy a package without hidden files and caches. Raises UsageError for a link that leads outside of it."""
    for folder, names, files in os.walk(package):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _LEFT_OUT)
        here = Path(folder)
        for name in names:
            if (here / name).is_symlink():
                raise UsageError(f"{here / name}: a link to a folder. Allowed: a package without such links")
        (target / here.relative_to(package)).mkdir()
        for name in sorted(files):
            if not name.startswith(".") and not name.endswith(".pyc"):
                shutil.copyfile(_inside(here / name, package), target / here.relative_to(package) / name)


def _inside(file: Path, package: Path) -> Path:
    if not file.resolve().is_relative_to(package.resolve()) or not file.is_file():
        raise UsageError(f"{file}: a link that leads outside of {package}. Allowed: files of the package itself")
    return file
