"""Texts of other programs in messages."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.formatting import printable_lines
from resnet_dist.input_files import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[36mray::execute()\x1b[39m (pid=124)", "ray::execute() (pid=124)"),
        ("\x1b[1;31merror\x1b[0m:\x1b[K no", "error: no"),
        ("\x9b31mred\x9b0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://site\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPsixel\x1b\\after", "after"),
        ("\x1b(Bplain\x1b7", "plain"),
        ("first\r\nsecond\tcolumn\n", "first\nsecond\tcolumn\n"),
        ("a\x00b\x7fc\x85d\ud800e", "a b c d e"),
        ("é 中 🙂", "é 中 🙂"),
    ],
)
def test_escape_sequences_go_and_text_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text() | st.text(st.sampled_from("\x1b\x9b\x9d[]0;m\x07\\\n\tA")))
def test_no_control_character_is_left_whatever_the_text(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(letter) not in ("Cc", "Cs") or letter in "\n\t" for letter in shown)
    assert printable(shown) == shown
    assert printable_lines(text)
