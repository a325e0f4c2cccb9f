"""Where data is: the search order, and the files of a set found in it.

1. The folder that the environment variable ``COUNTERFLOW_DATA`` names.
2. ``../shared/data`` beside the checkout, if the package runs from one.
3. The user's cache.
4. A download into the user's cache, only when a set is loaded that is nowhere else.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from counterflow.exceptions import DataNotFoundError, InputError
from counterflow.lab.data.catalog import dataset
from counterflow.lab.data.checksums import verify_file
from counterflow.lab.data.entry import DataSet, Form

__all__ = ["VARIABLE", "Found", "Place", "find", "held", "provide", "search_order"]

VARIABLE = "COUNTERFLOW_DATA"


@dataclass(frozen=True)
class Place:
    """One place of the search order.

    Args:
        label: What it is called in tables; says nothing about the machine.
        folder: The folder, which may not exist; None if this place does not apply here.
        note: Why it does not apply; or a remark.
    """

    label: str
    folder: Path | None
    note: str = ""


@dataclass(frozen=True)
class Found:
    """A data set at the first place of the search order that holds one of its forms completely.

    Args:
        dataset: Which set.
        form: In which form.
        place: Where.
    """

    dataset: DataSet
    form: Form
    place: Place

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the form's order."""
        return tuple(_paths(self.form, self.place.folder)) if self.place.folder else ()


def search_order() -> tuple[Place, ...]:
    """The places where files are looked for, in order; nothing is created.

    Raises:
        InputError: ``COUNTERFLOW_DATA`` names something that is not a folder.
    """
    return (_named_folder(), _beside_the_checkout(), _cache())


def find(name: str) -> Found | None:
    """Where a data set is, without downloading it and without verifying it.

    Args:
        name: A name in the catalog.

    Returns:
        What was found, or None.

    Raises:
        InputError: There is no such set, or ``COUNTERFLOW_DATA`` names something that is not a folder.

    Example:
        >>> find("family_relations").place.label
        'generated'
    """
    entry = dataset(name)
    if entry.provided == "generated":
        return Found(entry, entry.forms[0], Place("generated", None))
    if entry.provided == "package scikit-learn":
        installed = importlib.util.find_spec("sklearn") is not None
        return Found(entry, entry.forms[0], Place("scikit-learn", None)) if installed else None
    return next((found for place in search_order() if (found := held(name, place))), None)


def held(name: str, place: Place) -> Found | None:
    """A data set at one place: the first of its forms of which all files are there.

    Args:
        name: A name in the catalog, of a set that is provided as files.
        place: Where to look.

    Returns:
        What was found, or None.

    Raises:
        InputError: There is no such set.
    """
    entry = dataset(name)
    for form in entry.forms:
        if place.folder and all(map(os.path.isfile, _paths(form, place.folder))):
            return Found(entry, form, place)
    return None


def provide(name: str) -> Found:
    """The files of a data set, verified where a checksum is known, downloaded if they are nowhere here.

    Args:
        name: A name in the catalog, of a set that is provided as files.

    Raises:
        InputError: There is no such set, or ``COUNTERFLOW_DATA`` names something that is not a folder.
        DataNotFoundError: It is not on this machine and cannot be downloaded.
        ChecksumError: A file is not what it should be.
        MissingExtraError: It has to be downloaded, and pooch is not installed.
    """
    found = find(name)
    if found is None:
        found = _download(dataset(name))
    for file, path in zip(found.form.files, found.paths, strict=True):
        if file.sha256:
            verify_file(path, file.sha256)
    return found


def _paths(form: Form, folder: Path) -> Iterator[Path]:
    return (folder / file.path for file in form.files)


def _named_folder() -> Place:
    value = os.environ.get(VARIABLE)
    if not value:
        return Place(VARIABLE, None, "not set")
    folder = Path(value).expanduser()
    # Falling through to the next place would silently use other data than the user named.
    if not os.path.isdir(folder):
        raise InputError(f"{VARIABLE} is {value!r}, which is not a folder: create it, or unset the variable")
    return Place(VARIABLE, folder)


def _beside_the_checkout() -> Place:
    package = Path(__file__).resolve().parents[2]
    root = package.parents[1]
    # Only a source layout is a checkout: an installed package has no business in its neighbors' folders.
    if package.parent.name != "src" or not (root / "pyproject.toml").is_file():
        return Place("beside the checkout", None, "the package does not run from a checkout")
    return Place("beside the checkout", root.parent / "shared" / "data")


def _cache() -> Place:
    try:
        import pooch
    except ImportError:
        return Place("cache", None, "needs pooch: pip install 'counterflow[lab]'")
    return Place("cache", Path(pooch.os_cache("counterflow")))


def _download(entry: DataSet) -> Found:
    # Imported late: what is found on disk needs neither pooch nor requests.
    from counterflow.lab.data.download import download

    hand = entry.by_hand
    origin = f" (from {hand.source})" if hand.source else ""
    by_hand = f"put {_listed(hand)}{origin} into a folder and name that folder in {VARIABLE}"
    for form in entry.forms:
        if form.downloadable:
            folder = download(entry.name, form, by_hand=by_hand)
            return Found(entry, form, Place("cache", folder))
    source = f" (publisher: {entry.publisher})" if entry.publisher and not origin else ""
    raise DataNotFoundError(
        f"the data set {entry.name} is not on this machine: {by_hand}{source}; "
        "`counterflow data where` shows where it is looked for"
    )


def _listed(form: Form) -> str:
    first, *others = (file.path for file in form.files)
    if len(others) == 1:
        return f"{first} and {others[0]}"
    return f"{first} and {len(others)} more" if others else first
