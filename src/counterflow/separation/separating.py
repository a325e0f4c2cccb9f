"""From a recording to its sources."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from counterflow.audio import ShortTime
from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.separation.attention import attend as retrain
from counterflow.separation.classifier import WordClassifier
from counterflow.separation.ica import FrequencyICA
from counterflow.separation.iva import OnlineIVA, auxiliary_iva

__all__ = ["check_mixture", "separate"]

SILENT = 1e-5
ALIKE = 1e-7  # from one, by which two channels' correlation has to differ
ROUNDING = 1e-12  # of the channels' correlations, a direction in which there is rounding alone
HALVINGS = 5


def check_mixture(mixture: Tensor, rate: int, sources: int | None = None) -> None:
    """Refuse what no separation can be made of.

    Samples that are all whole steps of 8, 16 or 24 bits were rounded, so that a copy at another level is none to the
    bit: where channels differ by less than half a step, they are told from each other by rounding alone.

    Args:
        mixture: Shape (channels, samples).
        rate: Samples a second.
        sources: As many as channels if not given.

    Raises:
        ShapeError: If it is not (channels, samples), has one channel, or is too short.
        InputError: If it is not of floating point or not finite, silent, some channels are copies of others, or all are
            mixtures of fewer than there are sources.

    Example:
        >>> one = torch.randn(8000)
        >>> check_mixture(torch.stack([one, torch.randn(8000)]), 8000)
        >>> check_mixture(torch.stack([one, one]), 8000)
        Traceback (most recent call last):
        counterflow.exceptions.InputError: channels 0 and 1 of mixture are copies of each other ...
    """
    shape = tuple(mixture.shape)
    if mixture.ndim > 2:
        raise ShapeError(f"mixture has shape {shape}; give one recording, (channels, samples)")
    if mixture.ndim < 2 or shape[0] < 2:
        channels = shape[0] if mixture.ndim == 2 else 1
        raise ShapeError(f"mixture has {channels} channel, shape {shape}; two microphones or more are needed")
    if rate < 1:
        raise InputError(f"rate must be 1 or more, got {rate}")
    if not mixture.is_floating_point():
        raise InputError(
            f"mixture must be of floating point in [-1, 1], got {mixture.dtype}; divide by its largest number"
        )
    # Before any product of channels: samples that stand in their place would make a matrix of gigabytes.
    if shape[1] < 0.2 * rate:
        turned = "" if shape[0] < shape[1] else f", shape {shape} is (channels, samples)"
        raise ShapeError(f"mixture lasts {shape[1] / rate:.3f} s{turned}; 0.2 s is the least")
    double = mixture.detach().double()
    shared = double @ double.T / mixture.shape[1]
    # One sample that is not finite makes these so, too.
    if not (bool(shared.isfinite().all()) or bool(mixture.isfinite().all())):
        raise InputError("mixture holds samples that are not finite; mend the recording")
    levels = shared.diagonal().sqrt()
    if bool((levels < SILENT).any()):
        quiet = int(levels.argmin())
        raise InputError(f"channel {quiet} of mixture is silent; record it louder, or leave it out")
    likeness = shared / levels[:, None] / levels
    rounded = (0.5 * _step(double) / float(levels.min())) ** 2
    held = int((torch.linalg.eigvalsh(likeness) > ROUNDING + rounded).sum())
    likeness = likeness.abs().fill_diagonal_(0.0)
    if float(likeness.max()) > 1 - ALIKE - rounded:
        one, two = divmod(int(likeness.argmax()), len(mixture))
        raise InputError(
            f"channels {one} and {two} of mixture are copies of each other but for their level; record with "
            "microphones apart, or leave one out"
        )
    if held < len(mixture) and (sources is None or held < sources):
        raise InputError(
            f"the {len(mixture)} channels of mixture are mixtures of {held}; ask for {held} sources, or leave some out"
        )


def _step(samples: Tensor) -> float:
    """Between neighboring whole numbers of 8, 16 or 24 bits where all samples are such; 0 where they are not."""
    for bits in (8, 16, 24):
        scaled = samples * 2.0 ** (bits - 1)
        if bool((scaled == scaled.round()).all()):
            return 2.0 ** (1 - bits)
    return 0.0


def separate(
    mixture: Tensor,
    rate: int,
    *,
    sources: int | None = None,
    method: Literal["iva", "ica"] = "iva",
    attend: WordClassifier | None = None,
    online: bool = False,
    transform: ShortTime | None = None,
    iterations: int | None = None,
    gamma: float = 100.0,
    passes: int = 5,
) -> Tensor:
    """Separate a recording of several microphones into its sources.

    Args:
        mixture: Shape (channels, samples), in [-1, 1].
        rate: Samples a second.
        sources: As many as channels if not given. Fewer: separation in the strongest principal components.
        method: ``"iva"``: independent vector analysis by the auxiliary function (`auxiliary_iva`); ``"ica"``: the
            natural gradient (`FrequencyICA`), at half the rate where the matrices run away, and so on.
        attend: A classifier of words, whose expectation retrains the matrices (`counterflow.separation.attend`). It
            begins from what ``method`` has found, in the classifier's transform, and puts the output that it hears a
            word in first.
        online: Separate as frames come (`OnlineIVA`), after each quarter of a second by what was heard so far; in the
            first half of a second with sound, each source is an equal share of the first microphone.
        transform: By default frames of 128 ms to the next power of two, every quarter of that, with Hann's window.
        iterations: Of ``method``; by default those of `auxiliary_iva`, or 100.
        gamma: The weight of attention.
        passes: Of attention.

    Returns:
        Shape (sources, samples), float32 or float64: what each source leaves at the first microphone. They add up to
        that microphone's signal where there are as many as channels.

    Raises:
        DivergenceError: If the natural gradient runs away at the smallest rate, too, or vectors do, as they may where
            channels hold fewer sources than are asked for.
        InputError, ShapeError: If the mixture cannot be separated (`check_mixture`), or an argument is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> loud = (torch.rand(2, 20, generator=generator) ** 4).repeat_interleave(800, 1)
        >>> voices = loud * torch.randn(2, 16000, generator=generator)
        >>> heard = torch.tensor([[1.0, 0.7], [0.6, 1.0]]) @ voices
        >>> sources = separate(heard, 16000)
        >>> sources.shape, bool((sources.sum(0) - heard[0]).abs().max() < 1e-3)
        (torch.Size([2, 16000]), True)
    """
    check_mixture(mixture, rate, sources)
    mixture = mixture.to(torch.promote_types(mixture.dtype, torch.float32))
    channels, samples = mixture.shape
    count = channels if sources is None else sources
    if not 1 <= count <= channels:
        raise InputError(f"sources={count}, and there are {channels} channels; give 1 to that many")
    if method not in ("iva", "ica"):
        raise InputError(f"method must be 'iva' or 'ica', got {method!r}")
    if online and (attend is not None or method != "iva" or count < channels or iterations is not None):
        raise InputError(
            "online=True is for method='iva' with as many sources as channels, without attend and iterations"
        )
    if attend is not None and attend.rate != rate:
        raise InputError(f"the classifier has learned at {attend.rate} Hz, and the mixture has {rate}; resample it")
    if attend is not None and transform is not None and transform != attend.transform:
        raise InputError("with attend the transform is the classifier's; leave transform out")
    chosen = attend.transform if attend is not None else transform or default_transform(rate)
    spectrum = chosen(mixture)
    if online:
        separated = _online(spectrum, max(round(0.25 * rate / chosen.hop), 1))
    elif attend is None and method == "iva":
        x = spectrum.transpose(0, 1).contiguous()
        matrices = auxiliary_iva(x.transpose(0, 1), count, iterations=iterations)
        separated = (matrices @ x).transpose(0, 1)
    else:
        ica = FrequencyICA(count, iterations=100 if iterations is None else iterations)
        if method == "ica":
            _descend(ica, spectrum)
        else:
            ica.start(spectrum)
            _, whitening = ica._known()
            matrices = auxiliary_iva(spectrum, count, iterations=iterations, scaled=False)
            # equation 4's fixed point has outputs of a scale of its own: a few updates bring them there
            ica.unmixing = matrices @ torch.linalg.pinv(whitening)
            z = ica.whitened(spectrum)
            ica.unmixing = ica.unmixing / (ica.unmixing @ z).abs().square().mean(-1).sqrt().clamp_min(1e-12).unsqueeze(
                -1
            )
            for _ in range(20):
                ica.update(z)
        if attend is not None:
            found = retrain(ica, [spectrum], attend, gamma=gamma, passes=passes)
            separated = found.ica.separate(spectrum)
            order = [found.voice, *(k for k in range(count) if k != found.voice)]
            separated = separated[order]
        else:
            separated = ica.separate(spectrum)
    return chosen.inverse(separated, samples)


def default_transform(rate: int) -> ShortTime:
    """Frames of 128 ms, to the next power of two, every quarter of that."""
    size = 1 << max(round(0.128 * rate) - 1, 63).bit_length()
    return ShortTime(size, size // 4, "hann")


def default_words_transform(rate: int) -> ShortTime:
    """What words are heard by: frames of 64 ms, to the next power of two, every quarter of that, Hamming's window."""
    size = 1 << max(round(0.064 * rate) - 1, 63).bit_length()
    return ShortTime(size, size // 4)


def _descend(ica: FrequencyICA, spectrum: Tensor) -> None:
    """Fit at the rate that is set; where the matrices run away, as they do if a source is seldom there, at half of it.

    Raises:
        DivergenceError: If they do so `HALVINGS` times more.
    """
    first = ica.rate
    for turn in range(HALVINGS + 1):
        ica.rate = first / 2**turn
        try:
            ica.fit(spectrum)
        except DivergenceError:
            continue
        return
    raise DivergenceError(f"method='ica' diverges on this mixture, down to a step of {ica.rate:g}; take method='iva'")


def _online(spectrum: Tensor, block: int) -> Tensor:
    online = OnlineIVA(spectrum.shape[1], spectrum.shape[0])
    return torch.cat([online.process(part) for part in torch.split(spectrum, block, -1)], -1)
