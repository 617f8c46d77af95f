"""Credentials in a config or a profile. Both are recorded, rendered and read by many people, so they are refused.

A value that may be a credential is never shown in a message.
"""

from __future__ import annotations

import re

FOUND = (
    "found what may be a credential (in an address USER@, a query or a long path part; a token, a password): a config"
    " is not secret"
)

# USER@ or a query in any address; in http(s), a path part that is long enough for a token (Slack, PagerDuty and others
# use 24 characters or more). The second form is a password that contains a slash, not a port.
_ADDRESS = re.compile(r"://[^/\s]*@|://[^/\s:@]+:(?!\d+(?:/|$))\S*@|://\S*\?|https?://\S*/[^/\s]{21}")
_NAME = r"(?:token|secret|passw|pwd|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization|cookie)"
# Not secret: a reference to a variable or a file, a number, a boolean, another option.
_LITERAL = r"(?![$@/~.<-]|(?:\d{1,4}|true|false|none|null)\b|(?:bearer|basic|token)\s)[^\s\"']+"
_GIVEN = re.compile(
    rf"""(?: (?<!\S)["']?-[\w-]*{_NAME}[\w-]*(?<!file)(?<!path)(?<!stdin)(?<!env) [\s=:]+     # --token abc
           | (?<![\w-])[\w-]*{_NAME}[\w-]*["']? \s*[=:]\s*        # token=abc, "token": "abc", Authorization: abc
           | \b(?:bearer|basic)\s+
         ) ["']? (?:(?:bearer|basic|token)\s+)? ["']? {_LITERAL}
       | (?<!\S)(?:-u|--user|--proxy-user)[\s=]*["']?(?!\d+:\d+(?!\S))[^\s:"'$]+:[^\s"'$]+            # curl -u me:word
       | \b(?:AKIA|ASIA)[A-Z0-9]{{16}}\b|\bgh[pousr]_\w{{20}}|\bxox[a-z]-[\w-]{{10}}|\bhf_\w{{20}}|\beyJ[\w-]{{10}}""",
    re.IGNORECASE | re.VERBOSE,
)

_INSTEAD = {
    "checkpoint.mirror": "s3://BUCKET/FOLDER, with credentials in the environment of the workers, or in the file of the"
    " store's own client, with mode 600",
    "notify.command": "a program that reads the secret from an environment variable or from a file with mode 600",
    "notify.webhook": "notify.webhook_env: NAME, an environment variable of the driver that holds the address",
}
_INSTEAD_OF_PATH = {
    "data.root": "a folder that every node sees, or s3://BUCKET/FOLDER, with credentials in the environment of the"
    " workers, or in the file of the store's own client, with mode 600",
}
KEYS = tuple(_INSTEAD)  # of a config; paths are checked too


def in_text(text: str) -> bool:
    """Whether an address or a command contains a credential, or something that may be one.

    In an address, that is USER@, a query or, in http(s), a part of the path with more than 20 characters; in a command,
    an option, a header or an assignment whose name says so.

    >>> in_text("https://hooks.example.org/services/T02/B04/qX7wJ2mKp9LdR4sVtY8zN3cF")
    True
    >>> in_text("curl -H 'Authorization: Bearer abc'"), in_text("notify --token-file /run/secrets/pager")
    (True, False)
    """
    return _ADDRESS.search(text) is not None or _GIVEN.search(text) is not None


def in_variable(name: str, value: str) -> bool:
    """Whether an environment variable is a credential, by its name or its value.

    >>> in_variable("WANDB_API_KEY", "abc"), in_variable("TOKENIZERS_PARALLELISM", "false")
    (True, False)
    """
    named = re.search(_NAME, name, re.IGNORECASE) and re.match(_LITERAL, value, re.IGNORECASE)
    return named is not None or in_text(value)


def instead(key: str) -> str:
    """What a config may have at `key` in place of a credential."""
    return _INSTEAD.get(key, _INSTEAD_OF_PATH.get(key, "a folder that every node sees"))
