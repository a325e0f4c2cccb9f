r"""What a probe keeps of the errors of one layer, in one pass over each of them.

Of an error with samples :math:`i = 1 \dots B` and elements :math:`j = 1 \dots F` a sample, only these are kept:
its energy :math:`S = \sum_{ij} \delta_{ij}^2`, the number of exact zeros, and the vector of sums over the batch,
:math:`m_j = \sum_i \delta_{ij}`, of which the energy :math:`P = \sum_j m_j^2` and the product with that of the step
before are taken at once. All statistics follow from these when they are read, so that nothing waits for a device.

Everything is summed in float64: the squares of an error that has vanished to 1e-25 are zero in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["STATISTICS", "ErrorStatistics", "kernel", "look"]

STATISTICS = ("rms", "mean share", "sparsity", "signal/noise", "drift")

_PENDING = 256  # steps whose sums stay on the error's device before they are read, all at once
_HISTORY = 1024  # points kept for drawing; past it, every other one is dropped

_Array = npt.NDArray[np.float64]


class ErrorStatistics:
    """The statistics of the errors that reach one output of one layer.

    All errors of one step are pooled, as if their examples stood in one batch: a recurrent cell has as many samples
    a step as there are examples times time steps.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._step = -1
        self._features = 0
        self._whole = True  # whether all errors of the step had the same number of elements a sample
        # Of each pending step: its number, elements, samples, whether whole, whether comparable with the one before.
        self._counts: list[list[int]] = []
        # On the error's device: what `look` records of each pending step, and the sums over the batch of the last two.
        self._records = self._sums = torch.empty(0)
        self._now = 0
        self._views: tuple[_Array, _Array] | None = None  # the same memory for the kernel, on a CPU
        # What was read: sums over the steps in which a statistic is defined, their number, and points to draw.
        self._sum = np.zeros(len(STATISTICS))
        self._number = np.zeros(len(STATISTICS))
        self._history = np.empty((0, 1 + len(STATISTICS)))
        self._stride = 1
        self._read_steps = 0
        self._window = np.zeros((2, len(STATISTICS)))  # the same sums and numbers, since `recent` was asked last

    def add(self, error: Tensor, batch: int, step: int, period: int) -> None:
        """Take in one error.

        Args:
            error: Of any shape, real or complex (whose parts count as two elements).
            batch: The dimension that counts samples; -1 where there is none, and the error is that of one sample, as
                is an error of fewer than two dimensions.
            step: The number of the step.
            period: How many steps lie between two that are looked at; only over that many is drift taken.
        """
        if not error.numel():
            return
        rows = _rows(error, batch)
        samples, features = rows.shape
        first = step != self._step or not self._counts
        if first:
            self._begin(features, rows.device, step, period)
        index = len(self._counts) - 1
        count = self._counts[index]
        count[1] += samples * features
        count[2] += samples
        if features != self._features:  # a module that is called on sequences of several lengths in one step
            self._whole = False
            count[3] = 0
            aside = self._sums.new_zeros(2, features)
            look(rows, aside[0], aside[1], self._records[index], True)
        # The negative bit marks a lazily negated view, which NumPy cannot see.
        elif self._views is not None and rows.dtype == torch.float32 and not rows.is_neg():
            sums, records = self._views
            kernel()(rows.numpy(), sums[self._now], sums[1 - self._now], records[index], first)
        else:
            look(rows, self._sums[self._now], self._sums[1 - self._now], self._records[index], first)

    def restart_drift(self) -> None:
        """Forget the drift seen so far, since what follows is taken over another number of steps."""
        self._read()
        self._sum[-1] = self._number[-1] = 0.0
        self._window[:, -1] = 0.0

    def release(self) -> None:
        """Read everything and free the memory on the device."""
        self._read()
        self._records = self._sums = torch.empty(0)
        self._views = None
        self._features = 0

    def averages(self) -> dict[str, float | None]:
        """Each statistic, averaged over the steps in which it is defined; None where there is none."""
        values, known = _known(self._derive())
        total = self._sum + values.sum(0)
        number = self._number + known.sum(0)
        return {name: float(t / n) if n else None for name, t, n in zip(STATISTICS, total, number, strict=True)}

    def history(self) -> dict[str, _Array]:
        """The numbers of the steps, and each statistic in them: NaN where undefined, thinned out where many."""
        points = np.concatenate([self._history, self._derive()])
        return {name: points[:, column] for column, name in enumerate(("step", *STATISTICS))}

    def recent(self) -> dict[str, float | None]:
        """As `averages`, over the steps since this was asked last."""
        self._read()
        total, number = self._window
        self._window = np.zeros_like(self._window)
        return {name: float(t / n) if n else None for name, t, n in zip(STATISTICS, total, number, strict=True)}

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on as if nothing had happened."""
        self._read()
        return {
            "counts": [self.steps, self._step, self._features, int(self._whole), self._stride, self._read_steps],
            "averages": torch.from_numpy(np.stack([self._sum, self._number, *self._window])),
            "history": torch.from_numpy(self._history.copy()),
            "sums": self._sums[self._now].cpu().clone() if self._features else torch.empty(0),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, on a CPU; on another device drift begins anew."""
        self.steps, self._step, self._features, whole, self._stride, self._read_steps = state["counts"]
        self._whole = bool(whole)
        numbers = state["averages"].cpu().numpy().copy()
        self._sum, self._number, self._window = numbers[0], numbers[1], numbers[2:]
        self._history = state["history"].cpu().numpy().copy()
        self._counts.clear()
        self._now = 0
        self._sums = torch.zeros(2, self._features, dtype=torch.float64)
        self._sums[0] = state["sums"].cpu()
        self._records = torch.zeros(_PENDING, 5, dtype=torch.float64)
        self._views = (self._sums.numpy(), self._records.numpy())

    def _begin(self, features: int, device: torch.device, step: int, period: int) -> None:
        moved = not self._features or self._records.device != device
        if moved or len(self._counts) == _PENDING:
            self._read()
        comparable = False
        if moved or features != self._features:
            wide = torch.float32 if device.type == "mps" else torch.float64
            self._sums = torch.zeros(2, features, dtype=wide, device=device)
            if moved:
                self._records = torch.zeros(_PENDING, 5, dtype=wide, device=device)
            on_cpu = device.type == "cpu"
            self._views = (self._sums.numpy(), self._records.numpy()) if on_cpu else None
            self._features = features
        else:
            self._now = 1 - self._now
            comparable = self._whole and step - self._step == period
        self._step, self._whole = step, True
        self._counts.append([step, 0, 0, 1, comparable])
        self.steps += 1

    def _read(self) -> None:
        """Fold the pending steps into sums and history."""
        points = self._derive()
        values, known = _known(points)
        self._sum += values.sum(0)
        self._number += known.sum(0)
        self._window += np.stack([values.sum(0), known.sum(0)])
        offset = -self._read_steps % self._stride
        self._read_steps += len(points)
        self._history = np.concatenate([self._history, points[offset :: self._stride]])
        while len(self._history) > _HISTORY:
            self._history = self._history[::2].copy()
            self._stride *= 2
        self._counts.clear()
        self._records.zero_()

    def _derive(self) -> _Array:
        """One row a pending step: its number and its statistics."""
        if not self._counts:
            return np.empty((0, 1 + len(STATISTICS)))
        records = self._records[: len(self._counts)].cpu().double().numpy()
        energy, zeros, power, along, power_before = records.T
        step, elements, samples, whole, comparable = np.array(self._counts, dtype=np.float64).T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            mean_energy = power / samples  # the part of the energy that lies in the batch mean
            batch = (whole > 0) & (samples > 1)
            share = np.where(batch, np.minimum(mean_energy / energy, 1.0), np.nan)
            # Examples that all agree leave nothing but rounding.
            rest = np.where(energy - mean_energy > 1e-12 * energy, energy - mean_energy, 0.0)
            signal_to_noise = np.where(batch, np.sqrt(mean_energy * (samples - 1) / rest), np.nan)
            cosine = np.clip(along / (np.sqrt(power) * np.sqrt(power_before)), -1.0, 1.0)
            drift = np.where((comparable > 0) & (whole > 0), cosine, np.nan)
        return np.stack([step, np.sqrt(energy / elements), share, zeros / elements, signal_to_noise, drift], axis=1)


def _known(points: _Array) -> tuple[_Array, npt.NDArray[np.bool_]]:
    """The statistics, zero where not defined, and where they are. An RMS is: NaN is what the error was."""
    values = points[:, 1:]
    known = ~np.isnan(values)
    known[:, 0] = True
    return np.where(known, values, 0.0), known


def look(rows: Tensor, sums: Tensor, before: Tensor, record: Tensor, first: bool) -> None:
    """One pass over an error, of any floating-point type and on any device; nothing is read back from it.

    Args:
        rows: The error, of shape (samples, features).
        sums: Shape (features,): gets the sum over the samples; added to unless ``first``.
        before: Shape (features,): that of the step before.
        record: Energy and zeros are added to its first two; the energy of ``sums``, its product with ``before`` and
            the energy of ``before`` replace the other three.
        first: Whether it is the step's first error.
    """
    with torch.no_grad():
        batch_sum = rows.sum(0, dtype=sums.dtype)
        sums.copy_(batch_sum if first else sums + batch_sum)
        norm = torch.linalg.vector_norm(rows, dtype=sums.dtype)
        record[:2] += torch.stack([norm * norm, (rows == 0).sum().to(sums.dtype)])
        record[2:] = torch.stack([sums.dot(sums), sums.dot(before), before.dot(before)])


@functools.cache
def kernel() -> Any:
    """The same for float32 on a CPU, in one loop over arrays; compiled when first needed, within a second or two.

    It is not cached on disk: numba would write beside the package.
    """
    import numba

    wide = numba.float64[::1]
    signature = numba.void(numba.float32[:, ::1], wide, wide, wide, numba.boolean)
    return numba.njit(signature, nogil=True, fastmath={"reassoc", "contract"})(_look)


def _look(rows: Any, sums: Any, before: Any, record: Any, first: bool) -> None:
    samples, features = rows.shape
    energy = power = along = power_before = 0.0
    zeros = 0
    for start in range(0, features, 1024):  # the sums of one block stay in the innermost cache
        stop = min(start + 1024, features)
        block = sums[start:stop]
        if first:
            block[:] = 0.0
        # Four rows at a time, each with a name, is what the compiler makes vector code of.
        for i in range(0, samples - 3, 4):
            a, b = rows[i, start:stop], rows[i + 1, start:stop]
            c, d = rows[i + 2, start:stop], rows[i + 3, start:stop]
            none: Any = np.int32(0)
            for j in range(stop - start):
                none += np.int32(a[j] == 0) + np.int32(b[j] == 0) + np.int32(c[j] == 0) + np.int32(d[j] == 0)
            zeros += none
            for j in range(stop - start):
                p, q, r, s = np.float64(a[j]), np.float64(b[j]), np.float64(c[j]), np.float64(d[j])
                block[j] += (p + q) + (r + s)
                energy += (p * p + q * q) + (r * r + s * s)
        for i in range(samples // 4 * 4, samples):
            a = rows[i, start:stop]
            for j in range(stop - start):
                p = np.float64(a[j])
                block[j] += p
                energy += p * p
                zeros += a[j] == 0
        for j in range(start, stop):
            power += sums[j] * sums[j]
            along += sums[j] * before[j]
            power_before += before[j] * before[j]
    record[0] += energy
    record[1] += zeros
    record[2] = power
    record[3] = along
    record[4] = power_before


def _rows(error: Tensor, batch: int) -> Tensor:
    """The error as (samples, features), contiguous."""
    error = error.detach()
    if error.ndim != 2 or batch:
        error = error.movedim(batch, 0) if error.ndim > 1 and batch >= 0 else error.reshape(1, -1)
        error = error.reshape(error.shape[0], -1)
    if error.is_complex():
        error = torch.view_as_real(error.resolve_conj()).flatten(1)
    return error.contiguous()
