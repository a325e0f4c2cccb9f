r"""Independent component analysis of short-time spectra, frequency by frequency, by the natural gradient.

Matrices are learned over a whole set of recordings in one place, and applied to its items: a word of .4 s cannot train
its own. All frequencies are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.separation.demixing import check_reference, distortion_scale, inside, minimal_distortion, root
from counterflow.separation.permutation import align_envelopes

__all__ = ["FrequencyICA", "score"]

TOGETHER = 16  # frames at the least that are taken in on line: in few no output is told from the other by its loudness

Score = Literal["cartesian", "polar", "vector"]
Permutation = Literal["vector", "envelope", "none"]
Moments = tuple[Tensor, Tensor | None]  # of the factors of an output and of its conjugate
State = tuple[Tensor | None, Tensor | None, Tensor | None, int, Moments | None, Tensor | None, bool]


def score(u: Tensor, kind: Score = "cartesian") -> Tensor:
    r"""The score function of outputs.

    ==============  =====================================================================
    ``cartesian``   :math:`\tanh(\mathrm{Re}\, u) + j \tanh(\mathrm{Im}\, u)` (equation 4)
    ``polar``       :math:`\tanh(|u|)\, u / |u|`
    ``vector``      :math:`u_f \big/ \sqrt{\mathrm{mean}_{f'} |u_{f'}|^2}`: of all frequencies together
    ==============  =====================================================================

    Args:
        u: Outputs, shape (frequencies, outputs, frames), complex.
        kind: Which.

    Raises:
        InputError: If there is no such score.

    Example:
        >>> score(torch.tensor([[[1 + 2j]]]))
        tensor([[[0.7616+0.9640j]]])
    """
    if kind == "cartesian":
        return torch.view_as_complex(torch.view_as_real(u).tanh())
    size = u.abs()
    if kind == "polar":
        return u * (size.tanh() / size.clamp_min(1e-12))
    if kind == "vector":
        return u * (size.square().mean(0, keepdim=True) + 1e-12).rsqrt()
    raise InputError(f"score must be 'cartesian', 'polar' or 'vector', got {kind!r}")


class FrequencyICA:
    r"""Unmixing matrices, one a frequency, learned by the natural gradient on whitened spectra.

    .. math::

       \Delta W_f = \eta\, \big( I - \langle \varphi(u_f)\, u_f^H \rangle \big)\, W_f, \qquad u_f = W_f Q_f x_f

    with the mean over frames. The permutation of outputs is left open by the equation; it is settled by
    ``permutation``: ``"vector"`` begins with as many updates by the score of whole vectors, which ties frequencies
    together, and goes on from there; ``"envelope"`` puts outputs in order afterwards, by `align_envelopes`.

    Args:
        outputs: Sources; as many as channels if not given, and not more.
        score: Of `score`.
        rate: eta.
        iterations: Updates of the whole set (of each kind, if there are two).
        permutation: ``"vector"``, ``"envelope"`` or ``"none"``.
        whiten: Whether spectra are whitened first. Without it, Q is a mere scale, so that the rate keeps its meaning.
        reference: The microphone whose scale separated spectra have; None for each output's own.

    Attributes:
        unmixing: W, shape (frequencies, outputs, outputs), complex; behind ``whitening``.
        whitening: Q, shape (frequencies, outputs, channels).

    Raises:
        InputError: If an argument is out of range.

    References:
        U.-M. Bae, S.-Y. Lee, Combining ICA and Top-Down Attention for Robust Speech Recognition, NIPS 2000.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> loud = torch.rand(1, 2, 400, generator=generator) ** 3
        >>> sources = loud * torch.randn(5, 2, 400, dtype=torch.complex64, generator=generator)
        >>> mixing = torch.randn(5, 2, 2, dtype=torch.complex64, generator=generator)
        >>> ica = FrequencyICA().fit((mixing @ sources).transpose(0, 1))
        >>> total = (ica.matrices() @ mixing).abs()
        >>> bool((total.amin(2) < 0.2 * total.amax(2)).all())
        True
    """

    def __init__(
        self,
        outputs: int | None = None,
        *,
        score: Score = "cartesian",
        rate: float = 0.2,
        iterations: int = 100,
        permutation: Permutation = "vector",
        whiten: bool = True,
        reference: int | None = 0,
    ) -> None:
        if score not in ("cartesian", "polar", "vector"):
            raise InputError(f"score must be 'cartesian', 'polar' or 'vector', got {score!r}")
        if permutation not in ("vector", "envelope", "none"):
            raise InputError(f"permutation must be 'vector', 'envelope' or 'none', got {permutation!r}")
        if not (rate > 0 and iterations >= 0 and (outputs is None or outputs >= 1)):
            raise InputError(
                f"rate must be positive, iterations 0 or more, outputs 1 or more; got {rate}, {iterations}, {outputs}"
            )
        self.outputs = outputs
        self.score: Score = score
        self.rate = rate
        self.iterations = iterations
        self.permutation: Permutation = permutation
        self.whiten = whiten
        self.reference = reference
        self.unmixing: Tensor | None = None
        self.whitening: Tensor | None = None
        self._covariance: Tensor | None = None
        self._frames = 0  # that it is the mean over
        self._moments: Moments | None = None
        self._waiting: Tensor | None = None  # frames that are not taken in yet
        self._ordered = False  # whether fit has put outputs in order

    def start(self, spectra: Tensor | Sequence[Tensor]) -> Tensor:
        """Find the whitening of a set and begin at the identity.

        Args:
            spectra: As `fit` takes them.

        Returns:
            The whitened spectra, shape (frequencies, outputs, frames), of all items in a row.

        Raises:
            InputError, ShapeError: As `fit`.
        """
        x, _ = inside(spectra)
        check_reference(self.reference, x.shape[1])
        outputs = self.outputs or x.shape[1]
        if outputs > x.shape[1]:
            raise InputError(
                f"outputs={outputs}, and there are {x.shape[1]} channels; there cannot be more sources than those"
            )
        self._covariance, self._frames = x @ x.mH / x.shape[-1], x.shape[-1]
        self._moments, self._waiting, self._ordered = None, None, False
        self.unmixing = torch.eye(outputs, dtype=x.dtype, device=x.device).repeat(x.shape[0], 1, 1)
        self.whitening = self._whitener(self._covariance)
        return self.whitening @ x

    def _whitener(self, covariance: Tensor) -> Tensor:
        channels = covariance.shape[1]
        outputs = self.outputs or channels
        if self.whiten or outputs < channels:
            return root(covariance, outputs)
        size = (covariance.diagonal(dim1=1, dim2=2).real.mean(1)).clamp_min(1e-20).rsqrt()
        return size[:, None, None] * torch.eye(outputs, dtype=covariance.dtype, device=covariance.device)

    def fit(self, spectra: Tensor | Sequence[Tensor]) -> Self:
        """Learn from a set that was recorded in one place.

        Args:
            spectra: Complex, shape (channels, frequencies, frames), or several such, each with frames of its own.

        Returns:
            Itself.

        Raises:
            DivergenceError: If the matrices run away at this rate; they are then what they were before.
            InputError: If there are more outputs than channels, no such reference, or values that are not finite.
            ShapeError: If the items do not have the same channels and frequencies.
        """
        before = self._state()
        z = self.start(spectra)
        kinds: list[Score] = ["vector", self.score] if self.permutation == "vector" else [self.score]
        for kind in dict.fromkeys(kinds):
            for _ in range(self.iterations):
                self.update(z, kind)
            unmixing, _ = self._known()
            if not bool(torch.view_as_real(unmixing).isfinite().all()):
                self._set(before)
                raise DivergenceError(f"rate is {self.rate}: the matrices diverged; lower it")
        if self.permutation == "envelope":
            order = align_envelopes(unmixing @ z)
            self.unmixing = unmixing = torch.take_along_dim(unmixing, order[:, :, None], 1)
        x, _ = inside(spectra)
        _, whitening = self._known()
        self._moments, self._ordered = _moments(x, unmixing @ whitening, self.score), True
        return self

    def update(self, z: Tensor, kind: Score | None = None, extra: Tensor | None = None) -> None:
        """One update by whitened spectra.

        Args:
            z: Shape (frequencies, outputs, frames).
            kind: A score other than the own.
            extra: What is added to the bracketed term times W before the rate, of the shape of ``unmixing``.
        """
        unmixing, _ = self._known()
        step = natural_gradient(unmixing, z, kind or self.score)
        if extra is not None:
            step = step + extra
        self.unmixing = unmixing + self.rate * step

    def partial_fit(self, spectra: Tensor | Sequence[Tensor]) -> Self:
        r"""Learn on line from new frames of a place that stays, or go on from what `fit` has found there.

        Heard once, voices in a room are separated within some seconds, about as well as by `OnlineIVA`, and less well
        than by `fit`, which hears all frames again and again; a second and third hearing come nearer to it. A place
        that changes is forgotten slowly, the more so the longer it stayed: there `OnlineIVA` is the one to use.

        The correlation in the update is that of all frames so far, in which later ones count more, in proportion to
        their number: each score is :math:`\varphi(u_k) = w_k u_k + v_k \bar u_k` with real factors, by which frames are
        weighed when they come, so that only :math:`\langle w_k\, x x^H \rangle` and :math:`\langle v_k\, \bar x x^H
        \rangle` are kept. There is one update for two frames, at most ``iterations`` a call, behind the whitening of
        all frames. Fewer than 16 frames wait for those of later calls, so that it matters little how they are divided.

        Where nothing was fitted before and permutation is ``"vector"``, the score is that of whole vectors throughout:
        the own, frequency by frequency, would let the order go that outputs are still to find. After `fit` it is the
        own.

        A step is shortened where it would turn outputs round or make them copies of each other, as it would where sound
        grows loud after a pause. Frames of digital silence change nothing.

        Raises:
            DivergenceError: If the matrices run away at this rate; they are then what they were before.
            InputError: As `fit`; also if permutation is ``"envelope"`` and nothing was fitted before, since envelopes
                are told apart over many frames.
            ShapeError: As `fit`.
        """
        if self.unmixing is None and self.permutation == "envelope":
            raise InputError(
                "permutation='envelope' needs all frames at once; call fit first, or take 'vector' or 'none'"
            )
        before = self._state()
        if self.unmixing is None:
            self.start(spectra)
            self._frames = 0
        self.whitened(spectra)
        x, _ = inside(spectra)
        x = x[:, :, x.abs().amax((0, 1)) > 0]
        if self._waiting is not None:
            x = torch.cat([self._waiting.to(x), x], -1)
        if x.shape[2] < TOGETHER:
            self._waiting = x
            return self
        self._waiting = None
        self._hear(x)
        count = x.shape[2]
        share = 1.0 if self._moments is None else 2 * count / (self._frames + count)
        kind: Score = "vector" if self.permutation == "vector" and not self._ordered else self.score
        # in double precision, as where the whitening is found
        wide = x.to(torch.complex128)
        unmixing, whitening = (each.to(wide) for each in self._known())
        for _ in range(min(count // 2, self.iterations)):
            found = _blend(self._moments, _moments(wide, unmixing @ whitening, kind), share)
            matrices = unmixing @ whitening
            # How fast the correlation changes with a row, at most: a step of twice the inverse would swing for ever,
            # and that of the inverse take a direction away, which no later update could bring back.
            slope = torch.einsum("fjc,fkcd,fjd->fk", matrices, found[0], matrices.conj()).real.amax(1)
            rate = (0.5 / slope).clamp_max(self.rate)[:, None, None]
            unmixing = unmixing + rate * _step(unmixing, _correlation_of(found, matrices))
        self._moments = _blend(self._moments, _moments(wide, unmixing @ whitening, kind), share)
        self.unmixing = unmixing.to(x)
        if not bool(torch.view_as_real(self.unmixing).isfinite().all()):
            self._set(before)
            raise DivergenceError(f"rate is {self.rate}: the matrices diverged; lower it")
        return self

    def _hear(self, x: Tensor) -> None:
        """Take new frames into the whitening, which is turned so that outputs change least."""
        before, self._frames = self._frames, self._frames + x.shape[2]
        if self._covariance is None:
            return  # matrices that were set from outside
        _, whitening = self._known()
        self._covariance = (before * self._covariance + x @ x.mH) / self._frames
        found = self._whitener(self._covariance)
        # turned by the unitary matrix nearest to the covariance of old and new whitened frames, which is given a little
        # in directions that are empty yet
        wide = self._covariance.to(torch.complex128)
        least = 1e-10 * wide.diagonal(dim1=1, dim2=2).real.sum(1).amax() + 1e-30
        wide = wide + least * torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
        left, _, right = torch.linalg.svd(whitening.to(wide) @ wide @ found.to(wide).mH)
        self.whitening = (left @ right @ found.to(wide)).to(found.dtype)

    def whitened(self, spectra: Tensor | Sequence[Tensor]) -> Tensor:
        """Spectra behind the whitening that was found, shape (frequencies, outputs, frames)."""
        _, whitening = self._known()
        x, _ = inside(spectra)
        if x.shape[:2] != (whitening.shape[0], whitening.shape[2]):
            raise ShapeError(
                f"spectra have {x.shape[1]} channels and {x.shape[0]} frequencies; {whitening.shape[2]} and "
                f"{whitening.shape[0]} were learned from"
            )
        return whitening @ x

    def scale(self) -> Tensor:
        """The factor from outputs of unit variance to those at the reference microphone: (frequencies, outputs)."""
        unmixing, whitening = self._known()
        return distortion_scale(unmixing @ whitening, self.reference)

    def matrices(self) -> Tensor:
        """Whitening, unmixing and scale as one: shape (frequencies, outputs, channels)."""
        unmixing, whitening = self._known()
        return minimal_distortion(unmixing @ whitening, self.reference)

    def separate(self, spectrum: Tensor) -> Tensor:
        """Apply what was learned to one item.

        Args:
            spectrum: Shape (channels, frequencies, frames).

        Returns:
            Shape (outputs, frequencies, frames).

        Raises:
            InputError: If nothing has been learned yet.
            ShapeError: If it has other channels or frequencies.
        """
        x, _ = inside(spectrum, "spectrum")
        matrices = self.matrices()
        if x.shape[:2] != (matrices.shape[0], matrices.shape[2]):
            raise ShapeError(
                f"spectrum has shape {tuple(spectrum.shape)}; {matrices.shape[2]} channels were learned from"
            )
        return (matrices @ x).transpose(0, 1)

    def copy(self) -> FrequencyICA:
        """Another with the same settings and matrices."""
        twin = FrequencyICA(
            self.outputs,
            score=self.score,
            rate=self.rate,
            iterations=self.iterations,
            permutation=self.permutation,
            whiten=self.whiten,
            reference=self.reference,
        )
        twin.unmixing = None if self.unmixing is None else self.unmixing.clone()
        twin.whitening = None if self.whitening is None else self.whitening.clone()
        twin._set((twin.unmixing, twin.whitening, *self._state()[2:]))
        return twin

    def log_likelihood(self, spectra: Sequence[Tensor]) -> Tensor:
        r"""The mean log-likelihood of each item's frames, up to a constant, shape (items,).

        .. math:: \sum_f \Big( 2 \log|\det W_f Q_f| + \big\langle \log p(u_f) \big\rangle \Big)

        The density is that of the score: :math:`-2 \log\cosh` of real and imaginary part, :math:`-2 \log\cosh |u|`, or
        :math:`-2 F\,\mathrm{mean}^{1/2}`.
        """
        unmixing, whitening = self._known()
        x, sizes = inside(spectra)
        total = unmixing @ whitening
        u = total @ x
        if self.score == "cartesian":
            parts = _log_cosh(torch.view_as_real(u)).sum(-1).sum((0, 1))
        elif self.score == "polar":
            parts = _log_cosh(u.abs()).sum((0, 1))
        else:
            parts = u.shape[0] * u.abs().square().mean(0).sqrt().sum(0)
        volume = torch.linalg.svdvals(total.to(torch.complex128)).log().sum()
        means = torch.stack([part.mean() for part in torch.split(-2 * parts, sizes)])
        found: Tensor = means + 2 * volume.to(means)
        return found

    def _state(self) -> State:
        return (
            self.unmixing, self.whitening, self._covariance, self._frames, self._moments, self._waiting, self._ordered
        )  # fmt: skip

    def _set(self, state: State) -> None:
        self.unmixing, self.whitening, self._covariance, self._frames = state[:4]
        self._moments, self._waiting, self._ordered = state[4:]

    def _known(self) -> tuple[Tensor, Tensor]:
        if self.unmixing is None or self.whitening is None:
            raise InputError("nothing has been learned yet; call fit(spectra) first")
        return self.unmixing, self.whitening


def natural_gradient(unmixing: Tensor, z: Tensor, kind: Score) -> Tensor:
    """The bracketed term of equation 3 times W, averaged over frames: shape (frequencies, outputs, outputs)."""
    return _step(unmixing, _correlation(unmixing, z, kind))


def _correlation(unmixing: Tensor, z: Tensor, kind: Score) -> Tensor:
    u = unmixing @ z
    return score(u, kind) @ u.mH / z.shape[-1]


def _moments(x: Tensor, matrices: Tensor, kind: Score) -> Moments:
    """What is kept of frames: the means of w x x^H and v conj(x) x^H, each (frequencies, outputs, channels, channels).

    They are such that the score of outputs u of these matrices is w u + v conj(u).
    """
    u = matrices @ x
    if kind == "cartesian":
        parts = torch.view_as_real(u)
        # tanh(0)/0 is 1
        slopes = torch.where(parts.abs() < 1e-6, 1.0, parts.tanh() / parts)
        return _weighed(x, slopes.mean(-1), x), _weighed(x.conj(), (slopes[..., 0] - slopes[..., 1]) / 2, x)
    if kind == "polar":
        size = u.abs().clamp_min(1e-12)
        return _weighed(x, size.tanh() / size, x), None
    power = u.abs().square().mean(0, keepdim=True)
    return _weighed(x, (power + 1e-12).rsqrt().expand(u.shape), x), None


def _weighed(one: Tensor, weights: Tensor, other: Tensor) -> Tensor:
    each = [(one * weights[:, k, None]) @ other.mH for k in range(weights.shape[1])]
    return torch.stack(each, 1).to(torch.complex128) / one.shape[-1]


def _blend(old: Moments | None, new: Moments, share: float) -> Moments:
    """Their mean, with this share of the new ones."""
    if old is None:
        return new
    plain = old[0].lerp(new[0], share)
    return plain, None if old[1] is None or new[1] is None else old[1].lerp(new[1], share)


def _correlation_of(moments: Moments, matrices: Tensor) -> Tensor:
    """What `_correlation` finds, from what was kept of frames."""
    plain, turned = moments
    found = torch.einsum("fkc,fkcd,fjd->fkj", matrices, plain, matrices.conj())
    if turned is not None:
        found = found + torch.einsum("fkc,fkcd,fjd->fkj", matrices.conj(), turned, matrices.conj())
    return found


def _step(unmixing: Tensor, correlation: Tensor) -> Tensor:
    eye = torch.eye(unmixing.shape[1], dtype=unmixing.dtype, device=unmixing.device)
    return (eye - correlation) @ unmixing


def _log_cosh(x: Tensor) -> Tensor:
    size = x.abs()
    return size + torch.nn.functional.softplus(-2 * size) - 0.6931471805599453
