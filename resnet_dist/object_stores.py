"""Object stores by address, such as s3://bucket/folder. This is the only file that imports fsspec.

Addresses are fsspec's: s3://, gs://, hf://, memory:// and others that are installed. The store's own library finds
credentials and endpoints (environment variables, its config file, the machine's role).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from resnet_dist.errors import MissingPackage, RecipeError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem as AbstractFileSystem

_CONNECTIONS = 64  # to an S3 store, for the threads of a process; botocore's default is 10
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 30


def is_address(place: str) -> bool:
    """Whether a place is an address such as s3://bucket/folder, and not a folder.

    >>> is_address("s3://bucket/folder"), is_address("/data/imagenet")
    (True, False)
    """
    return re.match(r"\w[\w.+-]*://", place) is not None


def open_address(key: str, address: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    """The file system of an address and the path in it, without a slash at its end. `options` are the file system's.

    Raises MissingPackage if a package for it is not installed, RecipeError for an invalid address, both with the
    config's `key`.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingPackage(key, "fsspec", "pip install 'resnet-launcher[mirror]'") from error
    scheme = address.partition(":")[0]
    try:
        files, path = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:  # its message names the package: s3fs, gcsfs
        raise MissingPackage(key, f"a package for {scheme}://", f"pip: {error}") from error
    except ValueError as error:
        allowed = "an address such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER"
        raise RecipeError(key, f"{address!r}: {error}", allowed) from error
    return files, path.rstrip("/")


def open_for_reading(key: str, address: str) -> tuple[AbstractFileSystem, str]:
    """As `open_address`, for many threads that try again themselves: the store's library does not, and keeps no lists.

    A time-out ends requests to S3 that are not answered.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = address.startswith(("s3://", "s3a://"))
    if is_s3:
        options["config_kwargs"] = {
            "max_pool_connections": _CONNECTIONS,
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
    files, path = open_address(key, address, **options)
    if is_s3:
        files.retries = 1  # s3fs's own
    return files, path


def text_of(error: Exception) -> str:
    """An error of a store's library in one line, with its class: the text alone may say little."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def refuses_access(error: Exception) -> bool:
    """Whether a store's library says that there are no credentials, or that they do not allow it."""
    # The libraries' error classes have no common base but Exception.
    names = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "NoAuthTokenError")
    answer = getattr(error, "response", None)
    statuses = [getattr(found, name, None) for found in (error, answer) for name in ("status", "status_code", "code")]
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in names
        or any(str(status) in ("401", "403") for status in statuses)
    )
