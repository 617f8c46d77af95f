"""Checks the content of a wheel and of an sdist: python tests/distribution.py WHEEL SDIST"""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "launcher", "resnet_dist")
MAX_MB = 3.0  # of a wheel: it holds no data and no images


def files_of(package: str) -> set[str]:
    """The files of a package in the checkout, without those that Python makes."""
    folder = ROOT / package
    return {
        str(path.relative_to(ROOT))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def problems(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong with the two files; empty if nothing is."""
    found = []
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    stem = f"resnet_launcher-{version}"
    if (wheel.name, sdist.name) != (f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"):
        found.append(f"names: {wheel.name}, {sdist.name}")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = set().union(*map(files_of, PACKAGES))
    wanted |= {f"launcher/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    inside = {name for name in names if ".dist-info/" not in name}
    found += [f"the wheel lacks {name}" for name in sorted(wanted - inside)]
    found += [f"the wheel has {name}, which is not in the checkout" for name in sorted(inside - wanted)]
    found += [] if any(name.endswith("licenses/LICENSE") for name in names) else ["the wheel has no LICENSE"]
    if wheel.stat().st_size > MAX_MB * 1e6:
        found.append(f"the wheel has {wheel.stat().st_size / 1e6:.1f} MB, more than {MAX_MB:g}")
    with tarfile.open(sdist) as archive:
        sources = {name.removeprefix(f"{stem}/") for name in archive.getnames()}
    needed = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
        "Makefile",
        "tests/conftest.py",
    }
    found += [f"the sdist lacks {name}" for name in sorted(needed - sources)]
    odd = sorted(name for name in sources if name.startswith((".venv", ".peers", ".ci", ".github", "runs", "site")))
    found += [f"the sdist has {name}" for name in odd[:5]]
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(wrong) or "the wheel and the sdist have the files that they should have")
    sys.exit(bool(wrong))
