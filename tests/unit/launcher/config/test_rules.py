"""launcher/config/rules.py: credentials in addresses. The other rules are in test_load.py, by their keys."""

from __future__ import annotations

import pytest

from launcher.config.rules import has_credentials


@pytest.mark.parametrize(
    ("address", "has_some"),
    [
        ("https://hooks.example.org/services/T024BE7LH/B024BE7LH/qX7wJ2mKp9LdR4sVtY8zN3cF", True),
        ("https://api.example.org/bot110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/sendMessage", True),
        ("https://hooks.example.org/6f1d2c3b-8a7e-4f60-9b1c-0d2e3f4a5b6c", True),
        ("https://pager.example.org/hook?token=abc", True),
        ("https://me:abc@pager.example.org/hook", True),
        ("s3://me:abc@bucket/folder", True),
        ("--url=https://me@example.org", True),
        ("http://127.0.0.1:8080/hook", False),
        ("https://a-long-name.machine-learning.example.org/teams/vision/progress", False),
        ("s3://bucket/a-folder-with-a-very-long-name", False),
        ("ml@example.org", False),
        ("what?", False),
    ],
)
def test_a_user_a_query_and_a_long_path_part_count_as_credentials(address: str, has_some: bool) -> None:
    assert has_credentials(address) == has_some
