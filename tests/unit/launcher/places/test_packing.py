"""What is sent to a Ray cluster: the config and the user's own modules, and nothing that lies beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config import load as configs
from launcher.errors import UsageError
from launcher.places import packing
from launcher.places.packing import Pack, own_modules, pack

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as users have it: a package, and files that must not be sent."""
    folder = tmp_path / "project"
    package = folder / "own_models_xyz"
    (package / "deep" / "__pycache__").mkdir(parents=True)
    for file in ("__init__.py", "wide.py", "deep/layers.py", "table.json"):
        (package / file).write_text(f"# {file}\n")
    (package / ".env").write_text("TOKEN=hunter2\n")
    (package / ".git").mkdir()
    (package / ".git" / "config").write_text("secret")
    (package / "deep" / "__pycache__" / "layers.pyc").write_bytes(b"0")
    (folder / "id_rsa").write_text("secret")
    (folder / "one_file_xyz.py").write_text("# a source\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def packed(project: Path, write_config: Write, tmp_path: Path) -> Callable[[], Pack]:
    file = write_config()
    overrides = ["model.name='own_models_xyz.wide:build'", "data.source='one_file_xyz:images'"]
    config = configs.load(file, overrides)

    def make() -> Pack:
        folder = tmp_path / "packed"
        folder.mkdir()
        return pack(config, folder)

    return make


def test_only_the_config_and_the_modules_that_it_names_are_packed(packed: Callable[[], Pack]) -> None:
    found = packed()
    assert [str(file) for file in found.files] == [
        "config.yaml", "one_file_xyz.py", "own_models_xyz/__init__.py", "own_models_xyz/deep/layers.py",
        "own_models_xyz/table.json", "own_models_xyz/wide.py",
    ]  # fmt: skip
    assert found.size_bytes == sum((found.folder / file).stat().st_size for file in found.files)
    assert found.installed == ()


def test_the_config_is_the_resolved_one(packed: Callable[[], Pack]) -> None:
    found = packed()
    config = configs.load(found.folder / packing.CONFIG)
    assert config.model.name == "own_models_xyz.wide:build"
    assert Path(config.storage).is_absolute()


def test_a_link_that_leads_out_is_refused(packed: Callable[[], Pack], project: Path) -> None:
    (project / "own_models_xyz" / "key.py").symlink_to(project / "id_rsa")
    with pytest.raises(UsageError, match=r"key\.py: a link that leads outside of"):
        packed()


def test_a_link_to_a_folder_is_refused(packed: Callable[[], Pack], project: Path) -> None:
    (project / "own_models_xyz" / "home").symlink_to(project)
    with pytest.raises(UsageError, match="home: a link to a folder"):
        packed()


def test_a_link_within_the_package_becomes_the_file_that_it_leads_to(packed: Callable[[], Pack], project: Path) -> None:
    (project / "own_models_xyz" / "alias.py").symlink_to("wide.py")
    found = packed()
    copy = found.folder / "own_models_xyz" / "alias.py"
    assert not copy.is_symlink()
    assert copy.read_text() == "# wide.py\n"


def test_too_much_is_refused_with_the_largest_files(
    packed: Callable[[], Pack], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAX_BYTES", 2 * 2**20)
    (project / "own_models_xyz" / "weights.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(
        UsageError, match=r"would have 3\.0 MiB: own_models_xyz/weights\.bin \(3\.0 MiB\).*Allowed: 2\.0 MiB"
    ):
        packed()


def test_a_missing_module_is_refused_before_anything_is_sent(write_config: Write, tmp_path: Path) -> None:
    config = configs.load(write_config(), ["model.name='no_such_module_xyz:build'"])
    with pytest.raises(UsageError, match="the config names the module no_such_module_xyz, which is not found"):
        pack(config, tmp_path)


def test_an_installed_module_is_named_and_not_packed(write_config: Write, tmp_path: Path) -> None:
    config = configs.load(write_config(), ["model.name='torchvision.models:resnet18'"])
    assert own_modules(config) == {"torchvision"}
    found = pack(config, tmp_path)
    assert found.installed == ("torchvision",)
    assert "torchvision" not in [file.parts[0] for file in found.files]
