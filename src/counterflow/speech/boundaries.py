"""How far an alignment is from one that was made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from counterflow.exceptions import InputError
from counterflow.speech.answers import Segment
from counterflow.speech.lexicon import SILENCE

__all__ = ["BoundaryError", "boundary_error"]


@dataclass(frozen=True)
class BoundaryError:
    """Differences between boundaries that were found and boundaries by hand, in seconds.

    Args:
        mean: The mean of their absolute values.
        median: The median of these.
        bias: The mean difference; above 0 where they were found too late.
        within: The share that lie within 20 ms.
        count: How many boundaries were compared.
    """

    mean: float
    median: float
    bias: float
    within: float
    count: int


def boundary_error(found: Sequence[Sequence[Segment]], by_hand: Sequence[Sequence[Segment]]) -> BoundaryError:
    """Compare where segments begin with where a person has heard them begin.

    Args:
        found: The segments of each utterance, words or phones, as `Recognizer.align` gives them.
        by_hand: Those of the labels; of the same words or phones. Silence may be where it likes in both.

    Returns:
        The differences over all segments but silence and the first of each utterance, whose beginning is that of the
        sound.

    Raises:
        InputError: If an utterance has other segments than its labels, or there is nothing to compare.

    Example:
        >>> found = [Segment("a", 0.0, 0.2), Segment("SIL", 0.2, 0.3), Segment("b", 0.3, 0.5)]
        >>> error = boundary_error([found], [[Segment("a", 0.0, 0.25), Segment("b", 0.25, 0.5)]])
        >>> round(error.mean, 3), error.within, error.count
        (0.05, 0.0, 1)
    """
    if len(found) != len(by_hand):
        raise InputError(f"as many alignments as labels are needed, got {len(found)} and {len(by_hand)}")
    off: list[float] = []
    for number, (ours, theirs) in enumerate(zip(found, by_hand, strict=True)):
        spoken, labeled = ([each for each in some if each.text != SILENCE] for some in (ours, theirs))
        if [each.text for each in spoken] != [each.text for each in labeled]:
            texts = (" ".join(each.text for each in some) for some in (spoken, labeled))
            raise InputError(f"utterance {number} was aligned as {next(texts)!r}, and its labels say {next(texts)!r}")
        off += [a.start - b.start for a, b in zip(spoken[1:], labeled[1:], strict=True)]
    if not off:
        raise InputError("there are no boundaries to compare; give utterances of two segments or more")
    differences = torch.tensor(off, dtype=torch.float64)
    apart = differences.abs()
    return BoundaryError(
        mean=float(apart.mean()),
        median=float(apart.median()),
        bias=float(differences.mean()),
        within=float((apart <= 0.02 + 1e-9).double().mean()),
        count=len(off),
    )
