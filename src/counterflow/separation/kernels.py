r"""Independent vector analysis of two channels, compiled: the auxiliary function's updates in closed form.

With two channels everything that an iteration needs is linear in four real numbers a bin and frame, :math:`|x_1|^2,
|x_2|^2, \mathrm{Re}\, x_1 \bar x_2, \mathrm{Im}\, x_1 \bar x_2`: the power of an output, which is summed over bins, and
the weighted covariances. So an iteration reads them twice and forms no output. Both demixing vectors of a bin then
follow at once, as the two generalized eigenvectors of the pair of covariances (Ono, IWAENC 2012).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["iterate_pair", "products"]

GAUSS, LAPLACE = 0, 1

_FAST = {"reassoc", "contract", "arcp", "nsz"}


def products(x: NDArray[np.complex64]) -> NDArray[np.float32]:
    """The four numbers, shape (frequencies, 4, frames), of spectra (frequencies, 2, frames)."""
    found = np.empty((x.shape[0], 4, x.shape[2]), np.float32)
    _multiply(x, found)
    return found


def iterate_pair(
    p: NDArray[np.float32], w: NDArray[np.complex128], iterations: int, model: int, floor: float
) -> NDArray[np.float64]:
    """Update demixing matrices in place.

    Args:
        p: From `products`.
        w: Demixing matrices, shape (frequencies, 2, 2), one output a row.
        iterations: How many.
        model: `GAUSS` or `LAPLACE`.
        floor: The least mean power of an output in a frame, relative to its mean over frames.

    Returns:
        What was minimized, before each iteration, up to a constant.
    """
    cost = np.zeros(iterations)
    _iterate(p, w, model, floor, cost)
    return cost


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _add_power(a: Any, b: Any, c: Any, d: Any, k: Any, r: Any) -> None:
    k0, k1, k2, k3 = k[0], k[1], k[2], k[3]
    for t in range(a.size):
        r[t] += k0 * a[t] + k1 * b[t] + k2 * c[t] + k3 * d[t]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _weigh(a: Any, b: Any, c: Any, d: Any, g: Any, v: Any) -> None:
    s0 = s1 = s2 = s3 = np.float32(0.0)
    for t in range(a.size):
        s0 += g[t] * a[t]
        s1 += g[t] * b[t]
        s2 += g[t] * c[t]
        s3 += g[t] * d[t]
    v[0], v[1], v[2], v[3] = s0, s1, s2, s3


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _iterate(p: Any, w: Any, model: int, floor: float, cost: Any) -> None:
    F, _, T = p.shape
    r = np.empty((2, T), np.float32)
    g = np.empty((2, T), np.float32)
    k = np.empty(4, np.float32)
    v = np.empty((2, 4), np.float64)
    for iteration in range(cost.size):
        r[:] = 0.0
        logs = 0.0
        for f in range(F):
            for s in range(2):
                one, two = w[f, s, 0], w[f, s, 1]
                cross = one * np.conj(two)
                k[0] = one.real * one.real + one.imag * one.imag
                k[1] = two.real * two.real + two.imag * two.imag
                k[2] = 2 * cross.real
                k[3] = -2 * cross.imag
                _add_power(p[f, 0], p[f, 1], p[f, 2], p[f, 3], k, r[s])
            logs += np.log(np.abs(w[f, 0, 0] * w[f, 1, 1] - w[f, 0, 1] * w[f, 1, 0]) + 1e-300)
        total = 0.0
        for s in range(2):
            mean = 0.0
            for t in range(T):
                mean += r[s, t]
            least = floor * mean / T + 1e-30
            for t in range(T):
                power = max(r[s, t], least)
                if model == 0:
                    g[s, t] = F / power / T
                    total += F * np.log(power)
                else:
                    root = np.sqrt(power)
                    g[s, t] = 0.5 / root / T
                    total += root
        cost[iteration] = total / T - 2 * logs
        for f in range(F):
            for s in range(2):
                _weigh(p[f, 0], p[f, 1], p[f, 2], p[f, 3], g[s], v[s])
            # V = [[a, z], [conj z, b]], with z = mean of g x1 conj x2
            a1, b1, z1 = v[0, 0], v[0, 1], complex(v[0, 2], v[0, 3])
            a2, b2, z2 = v[1, 0], v[1, 1], complex(v[1, 2], v[1, 3])
            a1 += 1e-7 * (a1 + b1)
            b1 += 1e-7 * (a1 + b1)
            a2 += 1e-7 * (a2 + b2)
            b2 += 1e-7 * (a2 + b2)
            # adj(V2) V1: its eigenvectors are those of V2^-1 V1
            m11 = b2 * a1 - z2 * np.conj(z1)
            m12 = b2 * z1 - z2 * b1
            m21 = a2 * np.conj(z1) - np.conj(z2) * a1
            m22 = a2 * b1 - np.conj(z2) * z1
            half = 0.5 * (m11 + m22).real
            gap = np.sqrt(max(half * half - (m11 * m22 - m12 * m21).real, 0.0))
            if not gap > 1e-6 * half:
                continue  # the two covariances are one but for a factor: nothing tells the outputs apart
            for s in range(2):
                value = half - gap if s == 0 else half + gap
                p0, p1 = m12, value - m11
                q0, q1 = value - m22, m21
                if abs(p0) ** 2 + abs(p1) ** 2 < abs(q0) ** 2 + abs(q1) ** 2:
                    p0, p1 = q0, q1
                if s == 0:
                    size = abs(p0) ** 2 * a1 + abs(p1) ** 2 * b1 + 2 * (np.conj(p0) * z1 * p1).real
                else:
                    size = abs(p0) ** 2 * a2 + abs(p1) ** 2 * b2 + 2 * (np.conj(p0) * z2 * p1).real
                if not size > 1e-300:
                    continue
                root = np.sqrt(size)
                # rows of W are conjugates of the vectors
                w[f, s, 0] = np.conj(p0) / root
                w[f, s, 1] = np.conj(p1) / root


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _multiply(x: Any, p: Any) -> None:
    for f in range(x.shape[0]):
        for t in range(x.shape[2]):
            one, two = x[f, 0, t], x[f, 1, t]
            p[f, 0, t] = one.real * one.real + one.imag * one.imag
            p[f, 1, t] = two.real * two.real + two.imag * two.imag
            p[f, 2, t] = one.real * two.real + one.imag * two.imag
            p[f, 3, t] = one.imag * two.real - one.real * two.imag
