"""Pictures of what predictors hear: the paper's figures 3 and 5 for any recording.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor

from counterflow.exceptions import InputError
from counterflow.pictures import require_picture, write_picture
from counterflow.speech.acoustics import HOP, features_of, spectrum_of
from counterflow.speech.lexicon import Linkage
from counterflow.speech.predictors import PredictorBank
from counterflow.speech.recognizer import Recognizer

__all__ = ["plot_predictions"]


def plot_predictions(
    recognizer: Recognizer,
    wave: Tensor,
    text: str | Sequence[str],
    path: str | PathLike[str],
    *,
    phones: Sequence[str] = (),
) -> float:
    """Draw the actual and the predicted spectrogram along the best path (figure 3).

    Args:
        recognizer: One whose model predicts: of kind predictors, linear or hidden-control.
        wave: Shape (samples,), at its rate.
        text: What is said.
        path: A file that ends in .png, .svg or .pdf.
        phones: Phonemes whose models are to predict the whole recording, too (figure 5), each frame by the nearest of
            its predictors.

    Returns:
        The mean squared distance of a frame on the path.

    Raises:
        InputError: If the model does not predict, a phone is none of the lexicon's, the transcript is too long for its
            audio, or the file cannot be written.
        DataError, ShapeError: As `Recognizer.costs`.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> plot_predictions(recognizer, wave, "yes no", "spectra.png", phones=["EH"])  # doctest: +SKIP
        0.41
    """
    bank = recognizer.model
    if not isinstance(bank, PredictorBank):
        known = "'predictors', 'linear' or 'hidden-control'"
        raise InputError(f"the model does not predict frames; train one of kind {known}")
    names = recognizer.lexicon.phones
    unknown = [phone for phone in phones if phone not in names]
    if unknown:
        raise InputError(f"the lexicon has no phone {unknown[0]!r}; it has {', '.join(names)}")
    target = require_picture(path, "drawing spectrograms")
    from matplotlib.figure import Figure

    each = recognizer.phoneme.predictors
    spectrum = spectrum_of(wave, recognizer.rate, len(recognizer.spread), "the recording")
    x = features_of(spectrum, recognizer.spread, recognizer.deltas)
    costs = bank.costs(x)
    pattern = Linkage(recognizer.lexicon.words_of(text), recognizer.lexicon, recognizer.phoneme)
    states, total = pattern.align(costs)
    rows = torch.arange(len(x))
    with torch.no_grad():
        predicted = bank(x)
    pictures = {"actual": x, "predicted": predicted[rows, torch.from_numpy(pattern.units)[states]]}
    for phone in phones:
        first = names.index(phone) * each
        pictures[f"/{phone}/"] = predicted[rows, costs[:, first : first + each].argmin(1) + first]
    figure = Figure(figsize=(max(6.0, 0.03 * len(x)), 1.6 * len(pictures) + 0.6), layout="constrained")
    axes = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    bands = len(recognizer.spread)
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        shown = picture[:, :bands].T.numpy()
        axis.imshow(
            shown,
            origin="lower",
            aspect="auto",
            cmap="Greys",
            vmin=-2.5,
            vmax=2.5,
            extent=(0.0, HOP * len(x), 0.0, bands),
        )
        axis.set_ylabel(name)
    order = pattern.order[states.numpy()]
    edges = [0, *(t for t in range(1, len(order)) if order[t] != order[t - 1]), len(order)]
    middles = [HOP * (a + b) / 2 for a, b in itertools.pairwise(edges)]
    axes[-1].set_xticks(middles, [names[pattern.phone[states[start]]] for start in edges[:-1]], fontsize=7)
    axes[-1].set_xlabel("phones of the best path")
    write_picture(figure, target, 120)
    return total / len(x)
