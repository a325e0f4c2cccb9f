"""Texts with what is known of each: image captions and product reviews, repacked or as published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import DataError
from counterflow.lab.data.archives import archive_members
from counterflow.lab.data.checksums import json_array, verified
from counterflow.lab.data.locate import provide
from counterflow.lab.data.parquet import parquet_columns
from counterflow.lab.data.splits import drawn_split, indices_of

__all__ = ["CaptionedImage", "Review", "Texts", "captions", "sentiment"]

DOMAINS = ("books", "dvd", "electronics", "kitchen")
_TEST = 200  # of the 1,000 reviews of a domain and a class; as in the papers that draw their own


@dataclass(frozen=True)
class CaptionedImage:
    """One image's captions; the image itself is not there.

    Args:
        image: The image's file name.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"none"`` for those that the official split leaves out.
        captions: What five people wrote of it, in the order of their numbers.
    """

    image: str
    split: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """One customer's review of a product.

    Args:
        id: The publisher's identifier.
        split: ``"train"`` or ``"test"``.
        domain: ``"books"``, ``"dvd"``, ``"electronics"`` or ``"kitchen"``.
        positive: Whether its rating is above three stars.
        rating: 1, 2, 4 or 5 stars.
        title: Its title.
        text: The review.
        product: What is reviewed.
    """

    id: str
    split: str
    domain: str
    positive: bool
    rating: float
    title: str
    text: str
    product: str


_Example = TypeVar("_Example", CaptionedImage, Review)


@dataclass(frozen=True, eq=False)
class Texts(Generic[_Example]):
    """Texts.

    Args:
        name: The name in the catalog.
        examples: The texts with what is known of each.
    """

    name: str
    examples: tuple[_Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> _Example:
        return self.examples[index]

    def indices(self, split: str) -> NDArray[np.int64]:
        """Which examples belong to a split, in rising order.

        Raises:
            InputError: The set has no such split.
        """
        return indices_of(self.name, self.examples, split)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of."""
        return {"examples": json_array([asdict(example) for example in self.examples])}


def captions() -> Texts[CaptionedImage]:
    """Flickr8k's captions: 8,092 images, five captions each, with the official split; no images.

    It is read from ``captions/flickr8k_captions.parquet`` or from the publisher's ``Flickr8k_text.zip``.

    Returns:
        The images in the order of their names: 6,000 for training, 1,000 for validation, 1,000 for testing
        and 92 in no split.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: pyarrow is not installed.

    References:
        M. Hodosh, P. Young, J. Hockenmaier, Framing image description as a ranking task: data, models and
        evaluation metrics, JAIR 47, 2013.
    """
    found = provide("captions")
    read = {"parquet": _captions_parquet, "token files": _captions_tokens}[found.form.format]
    return verified("captions", Texts("captions", read(found.paths[0])), found.form)


def sentiment() -> Texts[Review]:
    """Multi-domain sentiment: 8,000 reviews of books, dvds, electronics and kitchenware, half of them positive.

    It is read from ``sentiment/reviews.parquet`` or from the publisher's ``domain_sentiment_data.tar.gz``. It
    has no split of its own. One is drawn, once and for all: about 200 of the 1,000 reviews of each domain and
    class are for testing, and reviews with the same text (there are 147 repetitions) are on the same side.

    Returns:
        The reviews by domain, then negative before positive, in the publisher's order.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: pyarrow is not installed.

    References:
        J. Blitzer, M. Dredze, F. Pereira, Biographies, Bollywood, boom-boxes and blenders: domain adaptation
        for sentiment classification, ACL 2007.
    """
    found = provide("sentiment")
    read = {"parquet": _reviews_parquet, "review files": _reviews_archive}[found.form.format]
    return verified("sentiment", Texts("sentiment", read(found.paths[0])), found.form)


def _captions_parquet(path: Path) -> tuple[CaptionedImage, ...]:
    columns = parquet_columns(path, "captions", ("image", "split", "caption_number", "caption"))
    rows = zip(columns["image"], columns["caption_number"], columns["caption"], strict=True)
    return _by_image(list(rows), dict(zip(columns["image"], columns["split"], strict=True)))


def _captions_tokens(path: Path) -> tuple[CaptionedImage, ...]:
    """The publisher's ``image#number<tab>caption`` lines, and a list of images for each split."""
    lists = {"trainImages": "train", "devImages": "val", "testImages": "test"}
    wanted = {"Flickr8k.token.txt", *(f"Flickr_8k.{name}.txt" for name in lists)}
    files = {name.name: content for name, content in archive_members(path, lambda name: name.name in wanted)}
    if missing := wanted - set(files):
        raise DataError(f"{path} is not the Flickr8k text archive: it holds no {min(missing)}")
    texts = {name: content.decode("utf-8", "replace").splitlines() for name, content in files.items()}
    rows = []
    for number, line in enumerate(texts["Flickr8k.token.txt"], start=1):
        match = re.fullmatch(r"(.+)#(\d)\t(.*)", line)
        if match:
            rows.append((match[1], int(match[2]), match[3].strip()))
        elif line.strip():
            raise DataError(f"{path}: line {number} of Flickr8k.token.txt is not 'image#number<tab>caption'")
    split = {
        image.strip(): to for name, to in lists.items() for image in texts[f"Flickr_8k.{name}.txt"] if image.strip()
    }
    return _by_image(rows, split)


def _by_image(rows: Sequence[tuple[str, int, str]], split: dict[str, str]) -> tuple[CaptionedImage, ...]:
    grouped: dict[str, list[str]] = {}
    for image, _, caption in sorted(rows, key=lambda row: row[:2]):
        grouped.setdefault(image, []).append(caption)
    return tuple(CaptionedImage(image, split.get(image, "none"), tuple(of)) for image, of in grouped.items())


def _reviews_parquet(path: Path) -> tuple[Review, ...]:
    keys = ("unique_id", "domain", "label", "rating", "title", "text", "product_name")
    columns = parquet_columns(path, "sentiment", keys)
    return _reviews(list(zip(*(columns[key] for key in keys), strict=True)))


def _reviews_archive(path: Path) -> tuple[Review, ...]:
    """The publisher's files, one a domain and class: tags on lines of their own, and no escapes."""
    wanted = {"negative.review": 0, "positive.review": 1}
    found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for name, content in archive_members(path, lambda name: name.name in wanted):
        domain = name.parent.name.partition("_")[0]  # kitchen_&_housewares
        label = wanted[name.name]
        text = content.decode("utf-8", "replace").replace("\r\n", "\n")
        for number, review in enumerate(re.findall(r"<review>(.*?)</review>", text, re.DOTALL), start=1):
            where = f"{path}: review {number} of {name}"
            tags = ("unique_id", "rating", "title", "review_text", "product_name")
            id, rating, title, body, product = (_tag(review, tag, where) for tag in tags)
            try:
                stars = float(rating)
            except ValueError:
                raise DataError(f"{where} has the rating {rating!r}, which is not a number") from None
            found.setdefault((domain, label), []).append((id, domain, label, stars, title, body, product))
    keys = [(domain, label) for domain in DOMAINS for label in (0, 1)]
    if missing := [key for key in keys if key not in found]:
        domain, label = missing[0]
        kind = "positive" if label else "negative"
        raise DataError(f"{path} is not the multi-domain sentiment archive: it holds no {kind} reviews of {domain}")
    return _reviews([row for key in keys for row in found[key]])


def _tag(review: str, tag: str, where: str) -> str:
    match = re.search(rf"<{tag}>(.*?)</{tag}>", review, re.DOTALL)
    if match is None:
        raise DataError(f"{where} has no <{tag}>")
    return match[1].strip()


def _reviews(rows: Sequence[tuple[Any, ...]]) -> tuple[Review, ...]:
    split = drawn_split([row[5] for row in rows], _TEST, strata=[row[1:3] for row in rows])
    return tuple(
        Review(id, side, domain, bool(label), float(rating), title, text, product)
        for side, (id, domain, label, rating, title, text, product) in zip(split, rows, strict=True)
    )
