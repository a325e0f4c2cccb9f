"""Data sets: what there is, where it is found, and the arrays. Nothing is downloaded until it is loaded.

Files whose checksum is known are verified before they are read, and so is what a loader returns, except
where it is read later (CamVid's pictures): then ``counterflow data check`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from counterflow.exceptions import DataNotFoundError
from counterflow.lab.data.catalog import CATALOG, dataset, names
from counterflow.lab.data.checksums import (
    Loaded,
    arrays_sha256,
    file_sha256,
    files_sha256,
    remembered_sha256,
    verify_arrays,
)
from counterflow.lab.data.encoded import EncodedImages, EncodedSplit, cifar10
from counterflow.lab.data.entry import DataSet, File, Form
from counterflow.lab.data.images import LabeledImages, digits, mnist, read_idx
from counterflow.lab.data.kinship import FamilyRelations, family_relations
from counterflow.lab.data.locate import Found, Place, find, held, provide, search_order
from counterflow.lab.data.sequences import Clip, Phone, Sequences, Speech
from counterflow.lab.data.splits import drawn_split
from counterflow.lab.data.spoken import emodb, fsdd, noise
from counterflow.lab.data.street import SegmentedImages, SegmentedSplit, camvid
from counterflow.lab.data.texts import CaptionedImage, Review, Texts, captions, sentiment
from counterflow.lab.data.transcribed import an4, prompts

__all__ = [
    "CATALOG",
    "LOADERS",
    "CaptionedImage",
    "Clip",
    "DataSet",
    "EncodedImages",
    "EncodedSplit",
    "FamilyRelations",
    "File",
    "Form",
    "Found",
    "LabeledImages",
    "Loaded",
    "Phone",
    "Place",
    "Review",
    "SegmentedImages",
    "SegmentedSplit",
    "Sequences",
    "Speech",
    "Texts",
    "an4",
    "arrays_sha256",
    "camvid",
    "captions",
    "check",
    "checksum",
    "cifar10",
    "dataset",
    "digits",
    "drawn_split",
    "emodb",
    "family_relations",
    "file_sha256",
    "find",
    "fsdd",
    "held",
    "mnist",
    "names",
    "noise",
    "prompts",
    "provide",
    "read_idx",
    "search_order",
    "sentiment",
]

LOADERS: Mapping[str, Callable[[], Loaded]] = {
    "family_relations": family_relations,
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "camvid": camvid,
    "captions": captions,
    "sentiment": sentiment,
    "fsdd": fsdd,
    "an4": an4,
    "emodb": emodb,
    "prompts": prompts,
    "noise": noise,
}
"""The function that loads each set of the catalog."""


def check(name: str) -> bool:
    """Read a whole data set and compare it with the catalog.

    Args:
        name: A name in the catalog.

    Returns:
        Whether there is a checksum to compare it with, of its content or of all its files; a publisher's
        files of which none is known can only be read.

    Raises:
        InputError: There is no such set.
        DataError: It is not on this machine, or it is damaged.
        MissingExtraError: What reads it is not installed.

    Example:
        >>> check("family_relations")
        True
    """
    loaded = LOADERS[dataset(name).name]()
    found = find(name)
    if found is None:  # it was removed meanwhile
        raise DataNotFoundError(f"the data set {name} is not on this machine any more")
    arrays = loaded.arrays()
    if found.form.sha256:
        verify_arrays(name, arrays, found.form.sha256)
    return bool(found.form.identity)


def checksum(name: str) -> str:
    """What names a data set's content in a trial's record.

    It is the catalog's checksum of the arrays, and loading refuses data that has another one. Of publishers'
    files whose content is not in the catalog, it is made from the files' checksums: the catalog's, or, where
    it has none, those of the files that are here. Only then is anything read; nothing is downloaded.

    Args:
        name: A name in the catalog.

    Returns:
        64 hex digits: the same for all forms that are known to hold the same data.

    Raises:
        InputError: There is no such set.
        DataNotFoundError: Its forms hold different data, and none is here or can be downloaded.
        DataError: A file whose checksum is not in the catalog cannot be read.

    Example:
        >>> checksum("family_relations") == arrays_sha256(family_relations().arrays())
        True
    """
    entry = dataset(name)
    identities = {form.identity for form in entry.forms}
    if len(identities) == 1 and "" not in identities:
        return entry.forms[0].identity
    found = find(name)
    if found is not None:
        return found.form.identity or files_sha256(found.form.format, map(remembered_sha256, found.paths))
    for form in entry.forms:
        if form.downloadable:
            return form.identity
    raise DataNotFoundError(
        f"the data set {name} is not on this machine: `counterflow data where` shows where it is looked for"
    )
