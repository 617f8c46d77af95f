"""The user's functions: found, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import call_function, is_reference, load_function

KEY = "model.name"


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's on the path."""
    package = tmp_path / "users_package_of_extension_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "code.py").write_text("constant = 7\n\ndef double(x, *, plus=0):\n    return 2 * x + plus\n")
    (package / "needy.py").write_text("import a_package_nobody_has\n")
    (package / "broken.py").write_text("raise OSError('of the user')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package.name


def test_a_function_is_loaded_by_its_full_name(user_module: str) -> None:
    assert load_function(KEY, f"{user_module}.code:double")(4) == 8


def test_a_function_is_called_with_its_arguments(user_module: str) -> None:
    assert call_function(KEY, f"{user_module}.code:double", 4, plus=1) == 9


def test_a_class_will_do() -> None:
    assert call_function(KEY, "fractions:Fraction", 1, 2) == 0.5


def test_a_function_that_calls_its_own_arguments_key_and_reference_is_no_clash(user_module: str) -> None:
    with pytest.raises(RecipeError, match="unexpected keyword argument 'key'"):
        call_function(KEY, f"{user_module}.code:double", 1, key=2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a:f", True),
        ("a.b_1:_f", True),
        ("resnet50", False),
        ("a.b", False),
        ("a:", False),
        (":f", False),
        ("a:b.c", False),
        ("a..b:f", False),
        ("1a:f", False),
        ("a:b:c", False),
    ],
)
def test_the_form_of_a_reference(name: str, expected: bool) -> None:
    assert is_reference(name) is expected


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("double", "'double' does not name a function"),
        ("no_such_package:f", "there is no module no_such_package"),
        ("{}.nothing:f", "there is no module users_package_of_extension_test.nothing"),
        ("{}.code:treble", "users_package_of_extension_test.code has no treble"),
        ("{}.code:constant", "is of type int, which cannot be called"),
        ("{}.needy:f", "imports a_package_nobody_has, which is not installed here"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(user_module: str, reference: str, reason: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_function(KEY, reference.format(user_module))
    assert caught.value.key == KEY
    assert reason in caught.value.problem
    assert "package.module:function" in caught.value.allowed


def test_an_error_inside_the_users_module_comes_out_as_it_is(user_module: str) -> None:
    with pytest.raises(OSError, match="of the user"):
        load_function(KEY, f"{user_module}.broken:f")


def test_arguments_that_do_not_fit_are_refused_with_the_signature(user_module: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be called with \(\.\.\., minus=\)") as caught:
        call_function(KEY, f"{user_module}.code:double", 1, minus=2)
    assert caught.value.allowed.endswith("double(x, *, plus=0)")


def test_a_type_error_of_the_function_itself_is_the_users() -> None:
    with pytest.raises(TypeError):
        call_function(KEY, "operator:add", 1, "a")
