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


def products(x: NDArray[np.complex64], whitening: NDArray[np.complex64] | None = None) -> NDArray[np.float32]:
    """The four numbers, shape (frequencies, 4, frames), of spectra (frequencies, 2, frames) behind their whitening."""
    found = np.empty((x.shape[0], 4, x.shape[2]), np.float32)
    if whitening is None:
        whitening = np.eye(2, dtype=np.complex64)[None].repeat(len(x), 0)
    _multiply(x, whitening, found)
    return found


def iterate_pair(
    p: NDArray[np.float32], w: NDArray[np.complex128], iterations: int, model: int, floor: float, bands: int = 1
) -> NDArray[np.float64]:
    """Update demixing matrices in place.

    Args:
        p: From `products`.
        w: Demixing matrices, shape (frequencies, 2, 2), one output a row.
        iterations: How many.
        model: `GAUSS` or `LAPLACE`.
        floor: The least mean power of an output in a frame, relative to its mean over frames.
        bands: In how many bands a source has a loudness of its own; neighbors share half of it.

    Returns:
        What was minimized, before each iteration, up to a constant.
    """
    cost = np.zeros(iterations)
    _iterate(p, w, model, floor, bands, cost)
    return cost


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _add_powers(p: Any, w: Any, r: Any) -> None:
    """What both outputs of one frequency have in every frame, added to r."""
    a, b, c, d = p[0], p[1], p[2], p[3]
    for output in range(2):  # one after the other: with two arrays written to, the loop is not vectorized
        one, two = w[output, 0], w[output, 1]
        cross = one * np.conj(two)
        k0 = np.float32(one.real * one.real + one.imag * one.imag)
        k1 = np.float32(two.real * two.real + two.imag * two.imag)
        k2 = np.float32(2 * cross.real)
        k3 = np.float32(-2 * cross.imag)
        power = r[output]
        for t in range(a.size):
            power[t] += k0 * a[t] + k1 * b[t] + k2 * c[t] + k3 * d[t]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _weigh(p: Any, g: Any, v: Any) -> None:
    """Both weighted covariances of one frequency, four numbers each."""
    a, b, c, d = p[0], p[1], p[2], p[3]
    g0, g1 = g[0], g[1]
    s0 = s1 = s2 = s3 = np.float32(0.0)
    u0 = u1 = u2 = u3 = np.float32(0.0)
    for t in range(a.size):
        s0 += g0[t] * a[t]
        s1 += g0[t] * b[t]
        s2 += g0[t] * c[t]
        s3 += g0[t] * d[t]
        u0 += g1[t] * a[t]
        u1 += g1[t] * b[t]
        u2 += g1[t] * c[t]
        u3 += g1[t] * d[t]
    v[0, 0], v[0, 1], v[0, 2], v[0, 3] = s0, s1, s2, s3
    v[1, 0], v[1, 1], v[1, 2], v[1, 3] = u0, u1, u2, u3


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _blend(r: Any, q: Any) -> None:
    """Each band, and half of what its neighbors have; at either end a band is its own neighbor."""
    last = len(r) - 1
    for b in range(len(r)):
        below, above = r[max(b - 1, 0)], r[min(b + 1, last)]
        for s in range(2):
            for t in range(r.shape[2]):
                q[b, s, t] = np.float32(0.5) * r[b, s, t] + np.float32(0.25) * (below[s, t] + above[s, t])


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _iterate(p: Any, w: Any, model: int, floor: float, bands: int, cost: Any) -> None:
    """A frequency's new vectors add their power right where its numbers are still at hand: one reading an iteration."""
    F, _, T = p.shape
    r = np.zeros((bands, 2, T), np.float32)
    q, g = np.empty_like(r), np.empty_like(r)
    v = np.empty((2, 4), np.float64)
    counts = np.zeros(bands)
    for f in range(F):
        counts[f * bands // F] += 1.0
        _add_powers(p[f], w[f], r[f * bands // F])
    for iteration in range(cost.size):
        logs = 0.0
        total = 0.0
        _blend(r, q)
        for b in range(bands):
            size = 0.5 * counts[b] + 0.25 * (counts[max(b - 1, 0)] + counts[min(b + 1, bands - 1)])
            for s in range(2):
                mean = 0.0
                for t in range(T):
                    mean += q[b, s, t]
                least = floor * mean / T + 1e-30
                for t in range(T):
                    power = max(q[b, s, t], least)
                    if model == 0:
                        q[b, s, t] = size / power / T
                        total += size * np.log(power)
                    else:
                        root = np.sqrt(power)
                        q[b, s, t] = 0.5 / root / T
                        total += root
        _blend(q, g)
        r[:] = 0.0
        for f in range(F):
            logs += 0.5 * np.log(_norm(w[f, 0, 0] * w[f, 1, 1] - w[f, 0, 1] * w[f, 1, 0]) + 1e-300)
            _weigh(p[f], g[f * bands // F], v)
            _solve(v, w[f])
            _add_powers(p[f], w[f], r[f * bands // F])
        cost[iteration] = total / T - 2 * logs


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _norm(x: Any) -> Any:
    return x.real * x.real + x.imag * x.imag


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _solve(v: Any, w: Any) -> None:
    """Both vectors of one frequency: the eigenvectors of its pair of covariances."""
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
        return  # the two covariances are one but for a factor: nothing tells the outputs apart
    for s in range(2):
        value = half - gap if s == 0 else half + gap
        p0, p1 = m12, value - m11
        q0, q1 = value - m22, m21
        if _norm(p0) + _norm(p1) < _norm(q0) + _norm(q1):
            p0, p1 = q0, q1
        if s == 0:
            size = _norm(p0) * a1 + _norm(p1) * b1 + 2 * (np.conj(p0) * z1 * p1).real
        else:
            size = _norm(p0) * a2 + _norm(p1) * b2 + 2 * (np.conj(p0) * z2 * p1).real
        if size > 1e-300:
            root = np.sqrt(size)
            # rows of W are conjugates of the vectors
            w[s, 0] = np.conj(p0) / root
            w[s, 1] = np.conj(p1) / root


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _multiply(x: Any, q: Any, p: Any) -> None:
    for f in range(x.shape[0]):
        for t in range(x.shape[2]):
            one = q[f, 0, 0] * x[f, 0, t] + q[f, 0, 1] * x[f, 1, t]
            two = q[f, 1, 0] * x[f, 0, t] + q[f, 1, 1] * x[f, 1, t]
            p[f, 0, t] = one.real * one.real + one.imag * one.imag
            p[f, 1, t] = two.real * two.real + two.imag * two.imag
            p[f, 2, t] = one.real * two.real + one.imag * two.imag
            p[f, 3, t] = one.imag * two.real - one.real * two.imag
