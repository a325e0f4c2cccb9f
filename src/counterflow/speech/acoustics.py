"""From waves to features, and from features to a trained model of any kind."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from counterflow.audio import log_mel
from counterflow.audio.features import frame_sizes
from counterflow.audio.files import is_silent
from counterflow.exceptions import DataError, InputError, ShapeError
from counterflow.speech.classifier import StateClassifier
from counterflow.speech.combined import CombinedStates
from counterflow.speech.corrective import train_corrective
from counterflow.speech.gaussians import GaussianStates, add_deltas
from counterflow.speech.lexicon import Linkage, Phoneme
from counterflow.speech.predictors import PredictorBank
from counterflow.speech.resume import Checkpoint
from counterflow.speech.training import train_classifier, train_gaussians, train_predictors

__all__ = [
    "ALIGNMENTS",
    "HOP",
    "KINDS",
    "WINDOW",
    "Clock",
    "Defaults",
    "Model",
    "ModelKind",
    "RunningMean",
    "built",
    "features_of",
    "fit_model",
    "known_kind",
    "reach_of",
    "read_ready",
    "sizes_of",
    "spectrum_of",
    "states_of",
]

ModelKind = Literal["combined", "classifier", "gaussians", "predictors", "linear", "hidden-control"]
Model = PredictorBank | GaussianStates | StateClassifier | CombinedStates
WINDOW, HOP = 0.025, 0.010
ALIGNMENTS = 8  # passes of the Gaussians that align for a classifier
_TRUST = 100.0  # frames that the training recordings' mean counts for
_SIZES: dict[str, tuple[type[Model], tuple[str, ...]]] = {
    "predictors": (PredictorBank, ("n_networks", "n_features", "states", "window", "hidden", "kind")),
    "gaussians": (GaussianStates, ("n_states", "n_features", "n_components")),
    "classifier": (StateClassifier, ("n_states", "n_features", "reach", "hidden", "layers", "dropout")),
}


@dataclass(frozen=True)
class Defaults:
    """What a kind of model is trained and used with, where nothing else is asked for.

    Args:
        phoneme: The topology.
        deltas: Orders of slopes.
        hidden: Hidden units.
        scale: By how much the grammar's costs are multiplied.
        penalty: Added to the cost of each word.
        beam: States whose cost lies above the best by more are dropped.
        passes: Over all recordings of the training that follows an alignment, or aligns by itself.
        contexts: How often a phone has to occur between two others to have a model of its own there; never if None.
    """

    phoneme: Phoneme
    deltas: int
    hidden: int
    scale: float
    penalty: float
    beam: float
    passes: int = 8
    contexts: int | None = None


_ROW = Phoneme(3, 3, skip=False)
# Scales, penalties and contexts of the first three were chosen on held-out training speakers of CMU's an4.
KINDS: dict[str, Defaults] = {
    "combined": Defaults(_ROW, 0, 256, 12.0, 10.0, 200.0, passes=6, contexts=30),
    "classifier": Defaults(_ROW, 0, 256, 5.0, 5.0, 300.0),
    "gaussians": Defaults(_ROW, 2, 0, 8.0, 15.0, 500.0),
    "predictors": Defaults(Phoneme(), 0, 16, 1.0, 0.0, 1000.0),
    "linear": Defaults(Phoneme(), 0, 16, 1.0, 0.0, 1000.0),
    "hidden-control": Defaults(Phoneme(), 0, 16, 1.0, 0.0, 1000.0),
}


@dataclass(frozen=True)
class Clock:
    """When a frame begins, in seconds: in the middle between the centers of its window and of that before.

    A window is longer than the step to the next. To say that frame t begins t steps after the first is to be early by
    half of the difference. Where the rate is no multiple of 100, a step of whole samples is not 10 ms either.

    Args:
        step: Seconds from frame to frame.
        shift: Half of what a window is longer than that.
    """

    step: float = HOP
    shift: float = 0.0

    @classmethod
    def of(cls, rate: int | None) -> Clock:
        """That of recordings; of features that are ready nothing is known but how many there are a second."""
        if rate is None:
            return cls()
        size, hop = frame_sizes(rate, WINDOW, HOP)
        return cls(hop / rate, (size - hop) / 2 / rate)

    def __call__(self, frame: int) -> float:
        """The second at which a frame begins; the first begins with the recording."""
        return frame * self.step + self.shift if frame else 0.0


def spectrum_of(wave: Tensor, rate: int | None, n_mels: int, called: str) -> Tensor:
    """Log mel bands of a wave, shape (frames, bands); where there is no rate, features that are ready, as they are."""
    if not bool(wave.isfinite().all()):
        what = "features" if rate is None else "samples"
        raise DataError(f"{called} holds {what} that are not finite; leave it out")
    if rate is None:
        if wave.ndim != 2 or not len(wave) or wave.shape[1] != n_mels:
            raise ShapeError(f"{called} has shape {tuple(wave.shape)}; ready features are (frames, {n_mels})")
        return wave.float()
    if wave.ndim != 1:
        raise ShapeError(f"{called} has shape {tuple(wave.shape)}; a wave is (samples,): average its channels")
    found = log_mel(wave, rate, n_mels, window=WINDOW, hop=HOP)
    if is_silent(wave):
        raise DataError(f"{called} is silent; leave it out, or record it louder")
    return found.float()


def read_ready(path: str | os.PathLike[str]) -> Tensor:
    """Features of a NumPy file, shape (frames, features), 100 frames a second.

    Raises:
        DataError: If it cannot be read, is shorter than it says, or holds anything else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as features: {error.strerror or error}") from error
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that Python 2 has written
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
            shape, by_columns, dtype = read(stream)
        if len(shape) > 64 or not all(0 <= size < 1 << 62 for size in shape):
            raise ValueError("NumPy has no array of this shape")
    except Exception as error:  # a header is Python, and whatever its parser raises may come
        raise DataError(f"{path} cannot be read as features: it is no NumPy file, or its header is damaged") from error
    if len(shape) != 2 or not all(shape) or dtype.kind not in "fiu":
        found = f"an array of shape {shape} and type {dtype.str}"
        raise DataError(f"{path} holds {found}; features are numbers of shape (frames, features)")
    count, start = shape[0] * shape[1], stream.tell()
    missing = count * dtype.itemsize - (len(content) - start)
    if missing > 0:
        raise DataError(f"{path} is truncated: {missing} bytes that its header promises are missing; copy it again")
    values = np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if by_columns else "C")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused where it is used
        return torch.from_numpy(values.astype(np.float32))


def features_of(spectrum: Tensor, spread: Tensor, deltas: int) -> Tensor:
    """Each band relative to its mean over the utterance, with slopes."""
    found = (spectrum - spectrum.mean(0)) / spread
    return add_deltas(found, orders=deltas) if deltas else found


class RunningMean:
    r"""The mean of the bands until each frame, which begins as that of the training recordings.

    .. math::  m_t = \frac{w c + \sum_{u \le t} x_u}{w + t}

    Args:
        center: c, the mean over the training recordings.
    """

    def __init__(self, center: Tensor) -> None:
        self._sum, self._count = _TRUST * center.double(), _TRUST

    def __call__(self, spectrum: Tensor) -> Tensor:
        """The means at further frames, shape (frames, bands)."""
        sums = self._sum + spectrum.double().cumsum(0)
        counts = self._count + torch.arange(1, len(spectrum) + 1)
        self._sum, self._count = sums[-1], float(counts[-1])
        return (sums / counts[:, None]).float()


def reach_of(model: Model, deltas: int) -> tuple[int, int]:
    """How many frames before and after one its costs depend on."""
    slopes = 2 * deltas
    if isinstance(model, PredictorBank):
        return model.window + slopes, slopes
    own = 0 if isinstance(model, GaussianStates) else model.reach
    return own + slopes, own + slopes


def fit_model(
    kind: ModelKind,
    spectra: Sequence[Tensor],
    spread: Tensor,
    patterns: Sequence[Linkage],
    named: Sequence[Linkage],
    own: Sequence[int],
    *,
    deltas: int,
    components: int,
    hidden: int,
    passes: int,
    corrective: int,
    generator: torch.Generator | None,
    report: Callable[[int, float], None] | None,
    checkpoint: Checkpoint | None,
) -> Model:
    """Train a model of any kind on normalized spectra.

    ``patterns`` are of the user's phones, of which each named one is a case: ``own`` says of which. Gaussians that
    align for others learn the user's; all else learns the named ones.
    """
    phoneme = patterns[0].phoneme
    each = phoneme.predictors
    count = len(own) * each
    features = [features_of(x, spread, deltas) for x in spectra]
    size = features[0].shape[1]
    if kind == "gaussians":
        gaussians = GaussianStates(count, size, components)
        train_gaussians(gaussians, features, named, passes=passes, report=report, checkpoint=checkpoint)
        return gaussians
    if kind in ("combined", "classifier"):
        heard = [features_of(x, spread, 2) for x in spectra]
        gaussians = GaussianStates((max(own) + 1) * each, heard[0].shape[1], components)
        train_gaussians(gaussians, heard, patterns, passes=ALIGNMENTS, report=report, checkpoint=checkpoint)
        classifier = StateClassifier(count, size, hidden=hidden, generator=generator)
        train_classifier(
            classifier,
            features,
            patterns,
            gaussians,
            heard,
            named=named,
            passes=passes,
            generator=generator,
            report=None if report is None else lambda number, cost: report(ALIGNMENTS + number, cost),
            checkpoint=checkpoint,
        )
        if kind == "classifier":
            return classifier
        return CombinedStates(classifier, gaussians, [phone * each + state for phone in own for state in range(each)])
    states = phoneme.predictors if kind == "hidden-control" else 1
    shape: Literal["linear", "perceptron"] = "linear" if kind == "linear" else "perceptron"
    bank = PredictorBank(count // states, size, states=states, hidden=hidden, kind=shape, generator=generator)
    train_predictors(bank, features, named, passes=passes, generator=generator, report=report, checkpoint=checkpoint)
    if corrective:
        train_corrective(bank, features, named, phones=own, passes=corrective, generator=generator)
    return bank


def sizes_of(model: Model) -> dict[str, Any]:
    """What `built` makes the same model of, without what it has learned."""
    if isinstance(model, CombinedStates):
        parts = {"classifier": sizes_of(model.classifier), "gaussians": sizes_of(model.gaussians)}
        return {"made as": "combined", **parts, "weight": model.weight}
    kind = next(kind for kind, (made, _) in _SIZES.items() if isinstance(model, made))
    return {"made as": kind, **{name: getattr(model, name) for name in _SIZES[kind][1]}}


def built(sizes: dict[str, Any]) -> Model:
    """An untrained model of the sizes that `sizes_of` gave."""
    if sizes["made as"] == "combined":
        classifier, gaussians = built(sizes["classifier"]), built(sizes["gaussians"])
        if not (isinstance(classifier, StateClassifier) and isinstance(gaussians, GaussianStates)):
            raise TypeError("its parts are of other kinds")
        return CombinedStates(classifier, gaussians, weight=float(sizes["weight"]))
    kind, names = _SIZES[sizes["made as"]]
    return kind(**{name: sizes[name] for name in names})


def states_of(model: Model) -> int:
    """How many costs a frame has."""
    return model.n_predictors if isinstance(model, PredictorBank) else model.n_states


def known_kind(kind: str) -> None:
    """Refuse what is no kind of model."""
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
