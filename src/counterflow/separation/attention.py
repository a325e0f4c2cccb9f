r"""Top-down attention: a classifier's error, carried back to the separated spectra, retrains the unmixing matrices.

For each word the target is the classifier's own strongest output, 1 for it and -1 for all others. The error
:math:`E = \frac12 \sum_i (t_i - y_i)^2` goes back through the classifier to the spectrum of the output that holds the
voice, and says how that should change. Averaged over all words, once each, that change enters equation 3:

.. math::

   \Delta W_f = \eta\, \Big( \big[ I - \langle \varphi(u_f)\, u_f^H \rangle \big] W_f
   + \gamma\, \langle \Delta u_f\, z_f^H \rangle \Big), \qquad u_f = W_f z_f

:math:`z_f = Q_f x_f` are the whitened spectra, on which the natural gradient and the plain one have the same scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.separation.classifier import MelFrames
from counterflow.separation.ica import FrequencyICA

__all__ = ["Attended", "attend", "choose_voice", "confidence", "recognize"]

Form = Literal["gradient", "inverse"]
Weighting = Literal["none", "margin"]
Diverging = Literal["raise", "stop"]

BATCH = 64
LARGEST = 1e6


@dataclass(frozen=True)
class Attended:
    """What attention has made of unmixing matrices.

    Attributes:
        ica: The retrained matrices; those that were given are as they were.
        voice: The output that holds the voice.
        outputs: Of the classifier for each word, before any pass and after each, shape (passes + 1, words, labels).
        errors: The mean of E over words, before each pass and at the end, shape (passes + 1,).
        diverged: The pass, 1 the first, that was taken back because the matrices diverged in it; none followed. None
            where they did not.
    """

    ica: FrequencyICA
    voice: int
    outputs: Tensor
    errors: Tensor
    diverged: int | None = None


def confidence(outputs: Tensor) -> Tensor:
    """How far the strongest output stands above the second, from 0 to 1.

    Args:
        outputs: Of a classifier, from -1 to 1, shape (..., labels).

    Returns:
        Shape (...).

    Example:
        >>> confidence(torch.tensor([[0.9, -0.9, -0.5], [0.2, 0.1, 0.0]]))
        tensor([0.7000, 0.0500])
    """
    best = outputs.topk(2, -1).values
    return (0.5 * (best[..., 0] - best[..., 1])).clamp(0.0, 1.0)


def recognize(ica: FrequencyICA, spectra: Tensor | Sequence[Tensor], classifier: nn.Module, output: int) -> Tensor:
    """The classifier's outputs for one separated output of each item.

    Args:
        ica: What separates.
        spectra: Items of shape (channels, frequencies, frames), or one such.
        classifier: From spectra (items, frequencies, frames) and lengths to outputs (items, labels).
        output: Which output is heard.

    Returns:
        Shape (items, labels).

    Raises:
        InputError, ShapeError: If nothing has been learned, or spectra do not fit.

    Example:
        >>> from counterflow.audio import ShortTime
        >>> from counterflow.separation import WordClassifier
        >>> short, draw = ShortTime(128, 64), torch.Generator().manual_seed(0)
        >>> spectra = [short(torch.randn(2, 4000, generator=draw)) for _ in range(3)]
        >>> words = WordClassifier(["no", "yes"], 8000, short)
        >>> recognize(FrequencyICA(iterations=2).fit(spectra), spectra, words, output=0).shape
        torch.Size([3, 2])
    """
    z = ica.whitened(spectra)
    places = _places(spectra)
    with torch.no_grad():
        heard = _heard(ica, z, output)
        return torch.cat([classifier(_batch(heard, rows), lengths) for rows, lengths in places])


def choose_voice(ica: FrequencyICA, spectra: Tensor | Sequence[Tensor], classifier: nn.Module) -> int:
    """The output that the classifier is most confident about, on average over all items; no label is needed.

    Args:
        ica: What separates.
        spectra: As `recognize` takes them.
        classifier: As `recognize` takes it.

    Raises:
        InputError, ShapeError: As `recognize`.

    Example:
        >>> from counterflow.audio import ShortTime
        >>> from counterflow.separation import WordClassifier
        >>> short, draw = ShortTime(128, 64), torch.Generator().manual_seed(0)
        >>> spectra = [short(torch.randn(2, 4000, generator=draw)) for _ in range(3)]
        >>> words = WordClassifier(["no", "yes"], 8000, short)
        >>> choose_voice(FrequencyICA(iterations=2).fit(spectra), spectra, words) in (0, 1)
        True
    """
    unmixing, _ = ica._known()
    sure = [float(confidence(recognize(ica, spectra, classifier, k)).mean()) for k in range(unmixing.shape[1])]
    return max(range(len(sure)), key=sure.__getitem__)


def attend(
    ica: FrequencyICA,
    spectra: Tensor | Sequence[Tensor],
    classifier: nn.Module,
    *,
    gamma: float,
    passes: int = 15,
    form: Form = "gradient",
    step: float = 1.0,
    rate: float | None = None,
    weighting: Weighting = "none",
    voice: int | None = None,
    targets: Tensor | None = None,
    diverging: Diverging = "raise",
) -> Attended:
    """Retrain unmixing matrices by what a classifier expects to hear. It works at test time, without labels.

    Args:
        ica: The matrices, learned already; a copy is retrained.
        spectra: The words of one place, each of shape (channels, frequencies, frames), or one word.
        classifier: From spectra (items, frequencies, frames) and lengths to outputs (items, labels) between -1 and 1;
            for ``form="inverse"`` a `WordClassifier`, or another module with ``features`` (a `MelFrames`) and
            ``judge``.
        gamma: The weight of attention. At 0 the classifier's error is not computed at all: what is left is plain
            independent component analysis, to the bit.
        passes: Over the whole set, with one update each.
        form: How the error becomes a change of the separated spectrum. ``"gradient"``: the vector-Jacobian product, a
            step down the error. ``"inverse"``: the same step on the features, mapped back by
            `MelFrames.expected_change`.
        step: The length of that step.
        rate: eta; that of ``ica`` if not given.
        weighting: ``"margin"`` weighs each word by the classifier's `confidence`.
        voice: The output that holds the voice; by `choose_voice` if not given.
        targets: The numbers of the true labels, shape (items,), in place of the classifier's own strongest outputs.
        diverging: What is done when the matrices diverge: ``"raise"``; or ``"stop"``, which takes that pass back and
            makes no other, so that ``outputs`` and ``errors`` go on with what they were.

    Returns:
        The retrained matrices, and what the classifier said on the way.

    Raises:
        InputError: If an argument is out of range, or nothing has been learned yet.
        ShapeError: If spectra or targets do not fit.
        UnsupportedError: If the matrices diverge, and ``diverging`` is ``"raise"``.

    References:
        U.-M. Bae, S.-Y. Lee, Combining ICA and Top-Down Attention for Robust Speech Recognition, NIPS 2000, section
        2.1.

    Example:
        >>> from counterflow.audio import ShortTime
        >>> from counterflow.separation import WordClassifier
        >>> short, draw = ShortTime(128, 64), torch.Generator().manual_seed(0)
        >>> spectra = [short(torch.randn(2, 4000, generator=draw)) for _ in range(3)]
        >>> words = WordClassifier(["no", "yes"], 8000, short)
        >>> found = attend(FrequencyICA(iterations=2).fit(spectra), spectra, words, gamma=100.0, passes=2)
        >>> len(found.errors), found.outputs.shape
        (3, torch.Size([3, 3, 2]))
    """
    if not (gamma >= 0 and passes >= 0 and step > 0 and (rate is None or rate > 0)):
        raise InputError(
            f"gamma and passes must be 0 or more, step and rate positive; got {gamma}, {passes}, {step}, {rate}"
        )
    if form not in ("gradient", "inverse"):
        raise InputError(f"form must be 'gradient' or 'inverse', got {form!r}")
    if weighting not in ("none", "margin"):
        raise InputError(f"weighting must be 'none' or 'margin', got {weighting!r}")
    if diverging not in ("raise", "stop"):
        raise InputError(f"diverging must be 'raise' or 'stop', got {diverging!r}")
    features = getattr(classifier, "features", None)
    if form == "inverse" and not (isinstance(features, MelFrames) and hasattr(classifier, "judge")):
        raise InputError(
            "form='inverse' needs a classifier with features (a MelFrames) and judge, and "
            f"{type(classifier).__name__} has none; take form='gradient'"
        )
    count = 1 if isinstance(spectra, Tensor) else len(spectra)
    if targets is not None and targets.shape != (count,):
        raise ShapeError(f"targets must be one a word, shape ({count},), got {tuple(targets.shape)}")
    found = ica.copy()
    if rate is not None:
        found.rate = rate
    z = found.whitened(spectra)
    places = _places(spectra)
    number = choose_voice(found, spectra, classifier) if voice is None else voice
    unmixing, _ = found._known()
    if not 0 <= number < unmixing.shape[1]:
        raise InputError(f"voice must be an output from 0 to {unmixing.shape[1] - 1}, got {number}")
    heard_outputs, errors = [], []
    diverged: int | None = None
    wanted = _Wanted(classifier, form, step, weighting)
    for turn in range(passes + 1):
        last = turn == passes
        heard = _heard(found, z, number)
        change = torch.zeros_like(heard)
        outputs = []
        for start, (rows, lengths) in _numbered(places):
            truth = None if targets is None else targets[start : start + len(lengths)]
            if gamma == 0 or last:
                with torch.no_grad():
                    outputs.append(classifier(_batch(heard, rows), lengths))
                continue
            said, moved = wanted(_batch(heard, rows), lengths, truth)
            outputs.append(said)
            flat = moved.permute(1, 0, 2).reshape(len(heard), -1)
            valid = rows.reshape(-1) >= 0
            change[:, rows.reshape(-1)[valid]] = flat[:, valid]
        said = torch.cat(outputs)
        heard_outputs.append(said)
        errors.append(_error(said, _signs(said, targets)).mean())
        if last:
            break
        if gamma == 0:
            found.update(z)
            continue
        # From the spectrum at the microphone's scale to the output of unit variance.
        factor = found.scale()[:, number, None]
        change = change * factor.conj() if form == "gradient" else change / torch.where(factor == 0, 1.0, factor)
        extra = torch.zeros_like(unmixing)
        extra[:, number] = gamma * torch.einsum("ft,fkt->fk", change, z.conj()) / z.shape[-1]
        before = found.copy()
        found.update(z, extra=extra)
        unmixing, _ = found._known()
        if not bool(torch.isfinite(torch.view_as_real(unmixing)).all()) or float(unmixing.abs().max()) > LARGEST:
            if diverging == "raise":
                raise UnsupportedError(
                    f"the matrices diverge in pass {turn + 1}; take a smaller gamma than {gamma:g}, or rate, or "
                    "diverging='stop'"
                )
            found, diverged = before, turn + 1
            heard_outputs += heard_outputs[-1:] * (passes - turn)
            errors += errors[-1:] * (passes - turn)
            break
    return Attended(found, number, torch.stack(heard_outputs), torch.stack(errors), diverged)


def _numbered(places: list[tuple[Tensor, Tensor]]) -> list[tuple[int, tuple[Tensor, Tensor]]]:
    return list(zip(range(0, BATCH * len(places), BATCH), places, strict=True))


def _places(spectra: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each batch of items where their frames are in the row of all, -1 behind the end; and their lengths."""
    items = [spectra] if isinstance(spectra, Tensor) else spectra
    sizes, device = [item.shape[2] for item in items], items[0].device
    found = []
    starts = torch.tensor([0, *sizes]).cumsum(0)
    for at in range(0, len(sizes), BATCH):
        lengths = torch.tensor(sizes[at : at + BATCH])
        steps = torch.arange(int(lengths.max()))
        rows = torch.where(steps < lengths[:, None], starts[at : at + len(lengths), None] + steps, -1)
        found.append((rows.to(device), lengths.to(device)))
    return found


def _heard(ica: FrequencyICA, z: Tensor, output: int) -> Tensor:
    """One output at the microphone's scale, shape (frequencies, frames of all items)."""
    unmixing, _ = ica._known()
    row = unmixing[:, output : output + 1] * ica.scale()[:, output, None, None]
    return (row @ z).squeeze(1)


def _batch(heard: Tensor, rows: Tensor) -> Tensor:
    """Shape (items, frequencies, frames)."""
    picked = heard[:, rows.clamp_min(0)] * (rows >= 0)
    return picked.transpose(0, 1)


def _signs(outputs: Tensor, truth: Tensor | None) -> Tensor:
    """Targets: 1 for the strongest output, or for the true label, -1 for the others."""
    labels = outputs.shape[1]
    if truth is None:
        best = outputs.argmax(1)
    elif truth.is_floating_point() or bool(((truth < 0) | (truth >= labels)).any()):
        raise InputError(f"targets must be whole numbers from 0 to {labels - 1}, got {truth.tolist()}")
    else:
        best = truth.to(outputs.device).long()
    return 2 * nn.functional.one_hot(best, outputs.shape[1]).to(outputs) - 1


def _error(outputs: Tensor, signs: Tensor) -> Tensor:
    return 0.5 * (signs - outputs).square().sum(1)


@dataclass(frozen=True)
class _Wanted:
    """From separated spectra to the change of them that the classifier expects."""

    classifier: nn.Module
    form: Form
    step: float
    weighting: Weighting

    def __call__(self, spectra: Tensor, lengths: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs (items, labels), and the change, of the spectra's shape."""
        with torch.enable_grad():  # the caller may have switched it off, as one does for inference
            return self._moved(spectra, lengths, truth)

    def _moved(self, spectra: Tensor, lengths: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.form == "gradient":
            seen = spectra.detach().requires_grad_()
            outputs = self.classifier(seen, lengths)
        else:
            with torch.no_grad():
                seen = self.classifier.features(spectra, lengths)  # type: ignore[operator]
            seen = seen.requires_grad_()
            outputs = self.classifier.judge(seen)  # type: ignore[operator]
        error = _error(outputs, _signs(outputs.detach(), truth))
        if self.weighting == "margin":
            error = error * confidence(outputs.detach())
        (slope,) = torch.autograd.grad(error.sum(), seen)
        change = -self.step * slope
        if self.form == "inverse":
            with torch.no_grad():
                change = self.classifier.features.expected_change(spectra, lengths, change)  # type: ignore[union-attr,operator]
        return outputs.detach(), change
