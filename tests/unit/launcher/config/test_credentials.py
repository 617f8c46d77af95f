"""Credentials are found in addresses, commands and variables, and ordinary values are not mistaken for one."""

from __future__ import annotations

import pytest

from launcher.config import credentials


@pytest.mark.parametrize(
    ("address", "has_some"),
    [
        ("https://hooks.example.org/services/T024BE7LH/B024BE7LH/qX7wJ2mKp9LdR4sVtY8zN3cF", True),
        ("https://api.example.org/bot110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/sendMessage", True),
        ("https://hooks.example.org/6f1d2c3b-8a7e-4f60-9b1c-0d2e3f4a5b6c", True),
        ("https://pager.example.org/hook?token=abc", True),
        ("https://me:abc@pager.example.org/hook", True),
        ("s3://me:abc@bucket/folder", True),
        ("s3://me:ab/c+d@bucket/folder", True),
        ("s3://bucket/folder?key=abc", True),
        ("--url=https://me@example.org", True),
        ("http://127.0.0.1:8080/hook", False),
        ("http://127.0.0.1:8080/teams@home", False),
        ("https://a-long-name.machine-learning.example.org/teams/vision/progress", False),
        ("s3://bucket/a-folder-with-a-very-long-name", False),
        ("ml@example.org", False),
        ("what?", False),
        ("/data/imagenet", False),
    ],
)
def test_a_user_a_query_and_a_long_path_part_count_as_credentials(address: str, has_some: bool) -> None:
    assert credentials.in_text(address) == has_some


@pytest.mark.parametrize(
    ("command", "has_some"),
    [
        ("curl -H 'Authorization: Bearer abc' https://example.org/hook", True),
        ("curl --header='Authorization: Basic bWU6d29yZA=='", True),
        ("curl -H 'X-Api-Key: k123'", True),
        ("curl -u me:word https://example.org", True),
        ("curl --user=me:word https://example.org", True),
        ('curl -d \'{"token": "abc"}\'', True),
        ("notify --token abc", True),
        ("notify token=abc", True),
        ("env PAGER_API_KEY=abc notify", True),
        ("notify AKIAABCDEFGHIJKLMNOP", True),
        ("sh -c 'curl -H \"Authorization: Bearer $TOKEN\" https://example.org'", False),
        ("curl -H @headers.txt", False),
        ("notify --token-file secrets.txt", False),
        ("notify --token /run/secrets/pager", False),
        ("docker run -u 1000:1000 image", False),
        ("python -u send_token_report.py done", False),
        ("mail -s 'secret project finished' me@example.org", False),
        ("summarise --max-tokens 200", False),
    ],
)
def test_a_command_with_a_secret_in_it_is_told_from_one_that_reads_it(command: str, has_some: bool) -> None:
    assert credentials.in_text(command) == has_some


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "ab/c", True),
        ("HF_TOKEN", "abc", True),
        ("DB_PASSWORD", "314159", True),
        ("WANDB_API_KEY", "abc", True),
        ("https_proxy", "http://me:word@proxy:3128", True),
        ("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("NCCL_DEBUG", "INFO", False),
    ],
)
def test_a_variable_is_secret_by_its_name_or_its_value(name: str, value: str, is_secret: bool) -> None:
    assert credentials.in_variable(name, value) == is_secret
