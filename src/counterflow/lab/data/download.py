"""Downloading the files of a data set into the user's cache, by pooch and by checksum."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from counterflow.exceptions import ChecksumError, DataError, DataNotFoundError, MissingExtraError
from counterflow.lab.data.checksums import file_sha256
from counterflow.lab.data.entry import File, Form

__all__ = ["download"]

# Seconds until a connection stands, and between two pieces of an answer. Each address is tried once:
# a run without a network must say so soon, and the user can start again.
TIMEOUT = (5.0, 15.0)


def download(name: str, form: Form, *, by_hand: str) -> Path:
    """Download what is missing of one form of a data set.

    A file appears under its name only when it is complete and its checksum is right.

    Args:
        name: The data set, for messages.
        form: What to download; each of its files has an address.
        by_hand: What the user can do instead, for messages.

    Returns:
        The cache folder, below which the files lie.

    Raises:
        DataNotFoundError: No address of a file answers.
        ChecksumError: What was downloaded is not what it should be; it is thrown away.
        DataError: The cache cannot be written.
        MissingExtraError: pooch is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("lab", f"downloading the data set {name}") from error
    folder = Path(pooch.os_cache("counterflow"))
    with _quiet(pooch.get_logger()):
        for file in form.files:
            _fetch(name, file, folder, by_hand)
    return folder


def _fetch(name: str, file: File, folder: Path, by_hand: str) -> None:
    """Bring one file from the first of its addresses that answers."""
    import pooch
    from requests.exceptions import RequestException

    http = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 16)
    received = ""

    def downloader(url: str, output_file: str, mother: Any) -> None:
        nonlocal received
        http(url, output_file, mother)
        received = file_sha256(Path(output_file))

    target = folder / file.path
    failures = []
    for url in file.urls:
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{file.sha256}",
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
            return
        except RequestException as error:  # before OSError, of which it is a kind
            failures.append(f"{urlsplit(url).netloc} {_why(error)}")
        except OSError as error:
            raise DataError(f"the cache {target.parent} cannot be written: {error.strerror or error}") from error
        except ValueError as error:
            if received in ("", file.sha256):
                raise  # not about the checksum
            raise ChecksumError(
                f"{url} is not what the data set {name} needs: its sha256 begins with {received[:12]}, "
                f"not with {file.sha256[:12]}; nothing was kept; {by_hand}"
            ) from error
    raise DataNotFoundError(
        f"the data set {name} is not on this machine and cannot be downloaded ({'; '.join(failures)}): "
        f"try again with a network, or {by_hand}"
    )


def _why(error: Exception) -> str:
    """A failed request in a few words; the libraries' own messages fill a screen."""
    from requests.exceptions import HTTPError, Timeout

    if isinstance(error, HTTPError) and error.response is not None:
        return f"answers {error.response.status_code}"
    if isinstance(error, Timeout):
        return "does not answer in time"
    return "cannot be reached, or breaks off"


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch from writing between the lines of a live table."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
