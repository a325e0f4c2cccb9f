r"""A classifier of isolated words that sees the very spectra that are separated.

From bins to outputs it is one differentiable graph:

.. math::

   m_{tk} = \sum_f M_{kf} |u_{ft}|, \quad
   l_{tk} = \log(m_{tk} + \epsilon\, \bar m), \quad
   f_{tk} = \frac{l_{tk} - \mathrm{mean}_k\, l_{tk}}{\sqrt{\mathrm{var}_k\, l_{tk} + s}}, \quad
   z_n = \sum_t A_{nt} f_t, \quad
   y = \mathrm{net}(z)

:math:`\bar m` is the item's mean, so that its level is of no consequence; A interpolates linearly to a fixed number of
frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from counterflow import persist
from counterflow.audio import ShortTime, mel_filters
from counterflow.exceptions import InputError, ShapeError

__all__ = ["BipolarSigmoid", "MelFrames", "WordClassifier", "pad_spectra"]

KIND = "word classifier"
_MOST = 1 << 22  # numbers in the filters of a model that is read: 128 of them at 65,536 points


class BipolarSigmoid(nn.Module):
    r""":math:`2 / (1 + e^{-x}) - 1 = \tanh(x / 2)`, between -1 and 1.

    Example:
        >>> BipolarSigmoid()(torch.tensor([0.0, 100.0]))
        tensor([0., 1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return (0.5 * x).tanh()


def pad_spectra(spectra: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Spectra of unequal length as one batch.

    Args:
        spectra: Each of shape (frequencies, frames).

    Returns:
        Shape (items, frequencies, most frames), zero behind each; and the frames of each, (items,).

    Raises:
        InputError: If there are none.

    Example:
        >>> batch, lengths = pad_spectra([torch.ones(3, 2), torch.ones(3, 4)])
        >>> batch.shape, lengths.tolist()
        (torch.Size([2, 3, 4]), [2, 4])
    """
    if not spectra:
        raise InputError("spectra is empty; give at least one item")
    most = max(each.shape[-1] for each in spectra)
    batch = torch.stack([nn.functional.pad(each, (0, most - each.shape[-1])) for each in spectra])
    return batch, torch.tensor([each.shape[-1] for each in spectra])


def magnitudes(spectra: Tensor) -> Tensor:
    """Absolute values, whose slope at 0 is 0: padding, and digital silence. Real spectra are magnitudes already."""
    if not spectra.is_complex():
        return spectra
    power = spectra.real.square() + spectra.imag.square()
    return torch.where(power > 0, torch.where(power > 0, power, 1.0).sqrt(), 0.0)


def _last(lengths: Tensor | None, most: int) -> Tensor:
    """The number of each item's last frame, shape (items or 1, 1)."""
    if lengths is None:
        return torch.full((1, 1), float(most - 1), dtype=torch.float64)
    return (lengths.cpu()[:, None] - 1).double()


def _interpolation(at: Tensor, size: int, last: Tensor) -> Tensor:
    """Matrices (items, places, size) that take values at ``at`` between whole numbers up to ``last``."""
    low = torch.minimum(at.floor(), (last - 1).clamp_min(0.0))
    part = (at - low).unsqueeze(-1)
    steps = torch.arange(size, dtype=torch.float64)
    return (steps == low.unsqueeze(-1)) * (1 - part) + (steps == low.unsqueeze(-1) + 1) * part


class MelFrames(nn.Module):
    """Log mel features with frame normalization, stretched to a fixed number of frames.

    Args:
        rate: Samples a second.
        size: Of the Fourier transform.
        n_mels: Filters.
        frames: N, the fixed number.
        floor: epsilon, relative to the item's mean.
        spread: s, which keeps frames without structure from being blown up.

    Raises:
        InputError: If an argument is out of range, or there are more filters than the bins can feed.

    Example:
        >>> features = MelFrames(8000, 512)
        >>> features(torch.randn(3, 257, 20, dtype=torch.complex64), torch.tensor([20, 12, 7])).shape
        torch.Size([3, 32, 24])
    """

    filters: Tensor

    def __init__(
        self, rate: int, size: int, n_mels: int = 24, frames: int = 32, *, floor: float = 0.03, spread: float = 0.05
    ) -> None:
        super().__init__()
        if frames < 2 or n_mels < 2 or not (floor > 0 and spread >= 0):
            raise InputError(
                "frames and n_mels must be 2 or more, floor positive, spread 0 or more; got "
                f"{frames}, {n_mels}, {floor}, {spread}"
            )
        self.frames, self.floor, self.spread = frames, floor, spread
        self.register_buffer("filters", mel_filters(rate, size, n_mels).clone(), persistent=False)

    def forward(self, spectra: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features of a batch.

        Args:
            spectra: Complex, or magnitudes, shape (items, frequencies, frames).
            lengths: Frames of each item, shape (items,); all if not given.

        Returns:
            Shape (items, N, n_mels).

        Raises:
            ShapeError: If there are other frequencies than the filters have.
        """
        frames, *_ = self.by_frame(spectra, lengths)
        return self.stretch(lengths, spectra.shape[-1], frames) @ frames

    def by_frame(self, spectra: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Before time is normalized: features, mel magnitudes, the floor of each item, the spread of each frame.

        Shapes (items, frames, n_mels), the same, (items, 1, 1), (items, frames, 1).
        """
        if spectra.ndim != 3 or spectra.shape[1] != self.filters.shape[1]:
            raise ShapeError(
                f"spectra must have shape (items, {self.filters.shape[1]}, frames), got {tuple(spectra.shape)}"
            )
        mel = magnitudes(spectra).transpose(1, 2)
        mel = mel @ self.filters.to(mel).T
        if lengths is None:
            mean = mel.mean((1, 2))
        else:
            inside = torch.arange(spectra.shape[-1], device=spectra.device) < lengths.to(spectra.device)[:, None]
            mean = (mel * inside.unsqueeze(-1)).sum((1, 2)) / (lengths.to(mel) * mel.shape[2])
        floor = (self.floor * mean + 1e-20)[:, None, None]
        logs = (mel + floor).log()
        width = (logs.var(-1, keepdim=True, correction=0) + self.spread).sqrt()
        return (logs - logs.mean(-1, keepdim=True)) / width, mel, floor, width

    def stretch(self, lengths: Tensor | None, most: int, like: Tensor) -> Tensor:
        """A, shape (items or 1, N, most): linear interpolation from each item's frames to N."""
        last = _last(lengths, most)
        at = torch.linspace(0, 1, self.frames, dtype=torch.float64) * last
        return _interpolation(at, most, last).to(like)

    def unstretch(self, lengths: Tensor | None, most: int, like: Tensor) -> Tensor:
        """The way back, shape (items or 1, most, N): interpolation from N frames to each item's; 0 behind its end."""
        last = _last(lengths, most)
        steps = torch.arange(most, dtype=torch.float64)
        top = torch.full_like(last, float(self.frames - 1))
        found = _interpolation(steps / last.clamp_min(1.0) * top, self.frames, top)
        return (found * (steps <= last).unsqueeze(-1)).to(like)

    def expected_change(self, spectra: Tensor, lengths: Tensor, change: Tensor) -> Tensor:
        r"""The paper's inverse map: what change of the spectra would bring a change of the features about.

        The change is stretched back to the item's frames, frame normalization is undone with the frame's own mean and
        spread, and mel goes to linear frequency by a gain of each bin, the mean of the gains of the filters that cover
        it, weighed by the filters. Phases stay:

        .. math::

           m'_{tk} = (m_{tk} + \epsilon \bar m)\, e^{\sigma_t\, \Delta f_{tk}} - \epsilon \bar m, \qquad
           g_{ft} = \frac{\sum_k M_{kf}\, m'_{tk} / m_{tk}}{\sum_k M_{kf}}, \qquad
           \Delta u_{ft} = (g_{ft} - 1)\, u_{ft}

        Args:
            spectra: Complex, shape (items, frequencies, frames).
            lengths: Frames of each item.
            change: Of the features, shape (items, N, n_mels).

        Returns:
            Shape of ``spectra``. Gains are kept between 1/4 and 4: a target further away says little.
        """
        _, mel, floor, width = self.by_frame(spectra, lengths)
        wanted = self.unstretch(lengths, spectra.shape[-1], mel) @ change
        grown = (mel + floor) * (width * wanted).clamp(-5, 5).exp() - floor
        gain = (grown / mel.clamp_min(1e-20)).clamp(0.25, 4.0)
        return self.to_linear(gain - 1).transpose(1, 2) * spectra

    def to_linear(self, mel: Tensor) -> Tensor:
        """Each bin's mean over the filters that cover it, weighed by them: (..., n_mels) to (..., frequencies)."""
        filters = self.filters.to(mel)
        return (mel @ filters) / filters.sum(0).clamp_min(1e-20)


class WordClassifier(nn.Module):
    """A perceptron on `MelFrames`, with bipolar sigmoid units, one output a word.

    Args:
        labels: The words.
        rate: Samples a second.
        transform: The short-time transform whose spectra it sees.
        n_mels: Filters.
        frames: To which words are stretched.
        hidden: Hidden units, 1 or more.
        net: Any module from (items, frames * n_mels) to (items, labels) in the perceptron's place; it cannot be saved.

    Raises:
        InputError: If there are fewer than two labels, one is there twice, or a size is out of range.

    Example:
        >>> words = WordClassifier(["no", "yes"], 8000, ShortTime(256, 64))
        >>> spectrum = ShortTime(256, 64)(torch.randn(2, 4000))
        >>> words(spectrum, torch.tensor([66, 66])).shape
        torch.Size([2, 2])
    """

    center: Tensor
    width: Tensor

    def __init__(
        self,
        labels: Sequence[str],
        rate: int,
        transform: ShortTime | None = None,
        *,
        n_mels: int = 24,
        frames: int = 32,
        hidden: int = 100,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels must be two or more different words, got {list(labels)}")
        if hidden < 1:
            raise InputError(f"hidden must be 1 or more, got {hidden}")
        self.rate = rate
        self.transform = ShortTime() if transform is None else transform
        self.features = MelFrames(rate, self.transform.size, n_mels, frames)
        self._own = None if net is not None else {"n_mels": n_mels, "frames": frames, "hidden": hidden}
        if net is None:
            inner, outer = nn.Linear(frames * n_mels, hidden), nn.Linear(hidden, len(self.labels))
            net = nn.Sequential(inner, BipolarSigmoid(), outer, BipolarSigmoid())
        self.net = net
        self.register_buffer("center", torch.zeros(frames * n_mels))
        self.register_buffer("width", torch.ones(frames * n_mels))

    def forward(self, spectra: Tensor, lengths: Tensor) -> Tensor:
        """Outputs between -1 and 1.

        Args:
            spectra: Complex, shape (items, frequencies, frames).
            lengths: Frames of each item, shape (items,).

        Returns:
            Shape (items, labels).

        Raises:
            ShapeError: If there are other frequencies than the transform has.
        """
        return self.judge(self.features(spectra, lengths))

    def judge(self, features: Tensor) -> Tensor:
        """The outputs from features, (items, frames, n_mels)."""
        given = features.flatten(1).to(self.center.dtype)
        outputs: Tensor = self.net((given - self.center) / self.width)
        return outputs

    def fit(
        self,
        spectra: Sequence[Tensor],
        words: Sequence[str],
        *,
        epochs: int = 60,
        lr: float = 3e-3,
        batch: int = 50,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> Self:
        r"""Learn from clean words, by Adam on :math:`\frac12 \sum_i (t_i - y_i)^2` with targets of 1 and -1 (equation
        1).

        Args:
            spectra: Each of shape (frequencies, frames).
            words: Their labels.
            epochs: Passes.
            lr: Adam's, falling to zero by a cosine.
            batch: Words a step.
            weight_decay: AdamW's.
            seed: Of the order.

        Returns:
            Itself.

        Raises:
            InputError: If there is nothing to learn from, a word is no label, a value is not finite, or an argument is
                out of range.
            ShapeError: If there are not as many words as spectra.
        """
        if len(words) != len(spectra):
            raise ShapeError(f"words must be one a spectrum: {len(words)} and {len(spectra)}")
        if not words:
            raise InputError("spectra is empty; give at least one word to learn from")
        if epochs < 1 or batch < 1 or not lr > 0 or not weight_decay >= 0:
            raise InputError(
                f"epochs, batch and lr must be positive, and weight_decay 0 or more; got {epochs}, {batch}, {lr}, "
                f"{weight_decay}"
            )
        unknown = sorted(set(words) - set(self.labels))
        if unknown:
            raise InputError(f"{unknown[0]!r} is no label of this classifier; there are {', '.join(self.labels)}")
        # Magnitudes would take what is not a number for silence.
        for number, each in enumerate(spectra):
            if not bool(each.isfinite().all()):
                raise InputError(f"spectra[{number}] holds values that are not finite; leave that word out")
        with torch.no_grad():
            parts = [self.features(*pad_spectra(spectra[i : i + 200])) for i in range(0, len(spectra), 200)]
        features = torch.cat(parts)
        flat = features.flatten(1)
        self.center.copy_(flat.mean(0))
        self.width.copy_(flat.std(0, correction=0).clamp_min(1e-3))
        targets = torch.full((len(words), len(self.labels)), -1.0, device=features.device)
        targets[torch.arange(len(words)), torch.tensor([self.labels.index(word) for word in words])] = 1.0
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, weight_decay=weight_decay)
        steps = epochs * -(-len(words) // batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        mode = self.training
        self.train()
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(words), generator=generator), batch):
                optimizer.zero_grad()
                loss = 0.5 * (targets[rows] - self.judge(features[rows])).square().sum(1).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return self.train(mode)

    def predict(self, spectra: Sequence[Tensor]) -> list[str]:
        """The word of the strongest output.

        Args:
            spectra: Each of shape (frequencies, frames).
        """
        with torch.no_grad():
            best = self(*pad_spectra(spectra)).argmax(1).tolist()
        return [self.labels[number] for number in best]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it to a folder as safetensors and JSON.

        Raises:
            InputError: If the folder cannot be written, or its net was given.
        """
        if self._own is None:
            raise InputError("this classifier has a net of your own; save its state_dict yourself")
        config: dict[str, Any] = {
            "labels": list(self.labels),
            "rate": self.rate,
            "transform": [self.transform.size, self.transform.hop, self.transform.window],
            **self._own,
        }
        persist.save(folder, KIND, config, self.state_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            InputError: If there is no such model, or it is damaged.
        """
        config, tensors = persist.load(folder, KIND)
        try:
            size, hop, window = config["transform"]
            transform = ShortTime(int(size), int(hop), window)
            n_mels, frames, hidden = (int(config[name]) for name in ("n_mels", "frames", "hidden"))
            # The filters are made of these alone: no tensor shows that they are as large as they say.
            if n_mels * transform.frequencies > _MOST:
                raise ValueError(f"{n_mels} filters of {transform.frequencies} frequencies are too many")
            labels, rate = [str(label) for label in config["labels"]], int(config["rate"])
            found = persist.fill(
                lambda: cls(labels, rate, transform, n_mels=n_mels, frames=frames, hidden=hidden), tensors
            )
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the model in {folder} is damaged: {reason}; save it again") from error
        return found.eval()
