"""Claims: the published numbers and statements, as ``published.toml`` has them."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from counterflow.exceptions import InputError

__all__ = ["Change", "Claim", "Digest", "Kind", "before", "read_claims", "read_digest"]

Kind = Literal["value", "exact", "ratio", "order", "effect", "equivalence", "bound"]

MARGIN = 1.5  # the default on the log scale


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That a claim was named, or is judged otherwise, since results of its paper were known; the reader is told.

    Attributes:
        on: The day, such as ``"2026-11-27"``.
        why: The reason, which goes on from "because".
        kind: How it was judged before; ``None`` for a claim that is new, or of which something else was changed.
        value: As the claim's, before. So are the others.
    """

    on: str
    why: str
    kind: Kind | None = None
    value: float | None = None
    margin: float | None = None
    direction: Literal["less", "greater"] | None = None
    test: Literal["contrast", "mann_whitney", "paired_t", "none"] | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published number or statement, as ``published.toml`` has it, with the test named for it.

    The test is named before there is any result. Where that was not so, ``change`` says it.

    Attributes:
        id: Unique in the paper, such as ``"t2.mom.conventional"``.
        claim: One sentence.
        kind: What sort of claim it is; it decides how the verdict is computed (`judge`).
        value: The published number; the bound, for a bound.
        spread: Its standard deviation over ``n``. For a ratio of means, ``value * sqrt(cv1**2 + cv2**2)``.
        n: How many restarts are behind it.
        unit: Unit of the number.
        at: Where in the paper, such as ``"Table 2"``.
        scale: ``"log"`` compares by division, ``"linear"`` by subtraction.
        margin: How far from the published number still counts: a factor above 1 on the log scale (1.5 unless
            said otherwise), a distance on the linear scale.
        statistic: What is taken of each group of samples.
        test: The test of an order or an effect. ``"contrast"`` is a t test of the contrast of the groups.
        direction: Order, effect: measured is less or greater than the other group; bound: than the bound.
            Value, ratio: what *direction only* would mean (a ratio's is otherwise the side of its value).
        tolerance: Relative tolerance of an exact number (absolute where the number is 0).
        change: What was changed since results were known.
    """

    id: str
    claim: str
    kind: Kind
    value: float | None = None
    spread: float | None = None
    n: int | None = None
    unit: str = ""
    at: str = ""
    scale: Literal["log", "linear"] = "log"
    margin: float | None = None
    statistic: Literal["mean", "cv", "sd"] = "mean"
    test: Literal["contrast", "mann_whitney", "paired_t", "none"] | None = None
    direction: Literal["less", "greater"] | None = None
    tolerance: float | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        mistake = _mistake(self)
        if mistake:
            raise InputError(f"{self.id}: {mistake}")
        before(self)  # which is as valid
        if self.kind in ("value", "ratio", "equivalence") and self.margin is None:
            msgspec.structs.force_setattr(self, "margin", MARGIN)
        if self.kind in ("order", "effect") and self.test is None:
            msgspec.structs.force_setattr(self, "test", "contrast")


def before(claim: Claim) -> Claim | None:
    """The claim as it was judged before it was changed, if it was judged otherwise."""
    change = claim.change
    if change is None or change.kind is None:
        return None
    how = {name: getattr(change, name) for name in ("kind", "value", "margin", "direction", "test")}
    return msgspec.structs.replace(claim, change=None, **how)


def _mistake(claim: Claim) -> str:
    """What is wrong with a claim, in words: a field that is missing, out of range, or would be ignored."""
    kind, log = claim.kind, claim.scale == "log"
    numbers = {name: getattr(claim, name) for name in ("value", "spread", "margin", "tolerance")}
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            return f"{name} is {number}"
    sized = kind in ("value", "ratio")
    if kind in ("value", "ratio", "exact", "bound") and claim.value is None:
        return f"a claim of kind {kind} needs a value"
    if log and sized and claim.value is not None and claim.value <= 0:
        return f"value is {claim.value:g}; the log scale needs it positive"
    if claim.n is not None and claim.n < 1:
        return f"n is {claim.n}"
    if claim.spread is not None and (not sized or claim.statistic != "mean"):
        return "a spread is read for a value or ratio of means only"
    if claim.spread is not None and (claim.spread < 0 or (claim.n or 0) < 2):
        return "a spread cannot be negative, and needs its n, of two or more"
    if claim.margin is not None and not (sized or kind == "equivalence"):
        return f"a claim of kind {kind} has no margin"
    if claim.margin is not None and claim.margin <= (1 if log else 0):
        return f"margin is {claim.margin:g}; on the {claim.scale} scale it is above {1 if log else 0}"
    if claim.margin is None and not log and (sized or kind == "equivalence"):
        return "the linear scale needs a margin"
    if claim.direction is None and kind in ("order", "effect", "bound"):
        return f"a claim of kind {kind} needs a direction"
    if claim.direction is not None and kind in ("exact", "equivalence"):
        return f"a claim of kind {kind} has no direction"
    if (claim.tolerance is not None) != (kind == "exact"):
        return "a tolerance belongs to the kind exact, which needs one"
    if claim.tolerance is not None and claim.tolerance < 0:
        return f"tolerance is {claim.tolerance:g}"
    if kind in ("order", "effect"):
        if claim.test == "none":
            return f"a claim of kind {kind} needs a test"
        if claim.test in ("mann_whitney", "paired_t") and claim.statistic != "mean":
            return f"the test {claim.test} looks at the samples themselves; it takes no {claim.statistic}"
    elif claim.test not in (None, "none"):
        return f"the test is read for an order or an effect; {kind} is judged by its interval"
    if kind in ("order", "effect", "equivalence") and claim.value is not None:
        return f"a claim of kind {kind} has no value; it compares what is measured"
    if kind == "exact" and (not log or claim.statistic != "mean"):
        return "an exact number is compared as it is; it takes neither a scale nor a statistic"
    return ""


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Read a ``published.toml``.

    Args:
        path: The file.

    Raises:
        InputError: The file is no TOML, or a claim in it is malformed; file, claim and field are named.
    """
    table = _table(path)
    unknown = sorted(set(table) - {"claim", *Digest.__struct_fields__})
    if unknown or not isinstance(table.get("claim"), list):
        raise InputError(
            f"{path}: holds title, citation, says, headline and [[claim]] tables only, "
            f"not {', '.join(unknown) or 'nothing'}"
        )
    claims: list[Claim] = []
    for position, entry in enumerate(table["claim"]):
        name = entry.get("id", f"number {position + 1}") if isinstance(entry, dict) else position + 1
        try:
            claim = msgspec.convert(entry, Claim)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: claim {name}: {error}") from error
        if any(other.id == claim.id for other in claims):
            raise InputError(f"{path}: claim {name}: the id is used twice")
        claims.append(claim)
    return tuple(claims)


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A paper in a few words, for lists and the report's first page.

    Args:
        title: Short, for tables.
        citation: One line.
        says: What the paper claims, in a sentence or two of ours.
        headline: The ids of the claims that carry it; all of them if there are none.
    """

    title: str
    citation: str
    says: str = ""
    headline: tuple[str, ...] = ()


def read_digest(path: Path) -> Digest:
    """Read what stands in a ``published.toml`` before its claims.

    Args:
        path: The file.

    Raises:
        InputError: The file is no TOML, or the headline is not made of its claims' ids.
    """
    table = _table(path)
    ids = {claim.id for claim in read_claims(path)}
    table.pop("claim")
    try:
        digest = msgspec.convert(table, Digest)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}") from error
    for name in digest.headline:
        if name not in ids:
            raise InputError(f"{path}: headline: there is no claim {name!r}")
    return digest


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
