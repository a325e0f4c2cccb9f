r"""Independent vector analysis by the auxiliary function: no rate to choose, and every update lowers the cost.

.. math::

   J = \sum_k \big\langle G(\lVert u_k \rVert) \big\rangle_t - 2 \sum_f \log |\det W_f|, \qquad
   V_{fk} = \big\langle \varphi(\lVert u_k \rVert)\, x_f x_f^H \big\rangle_t, \qquad
   \varphi(r) = \frac{G'(r)}{2r}

``"gauss"`` has a source whose variance changes with time, :math:`G = F \log \lVert u\rVert^2`; ``"laplace"`` a
spherical Laplace distribution, :math:`G = \lVert u\rVert`, with :math:`\lVert u\rVert^2` the sum over frequencies.

One loudness for all frequencies puts the outputs in one order, and is a coarse model of a voice. Once they are in
order, :math:`\lVert u \rVert^2` is taken by band: the sum over a band's frequencies, blended half and half with its
neighbors', so that no band loses touch with the next. The cost is then a sum over bands, and still falls.

References:
    N. Ono, Stable and fast update rules for independent vector analysis based on auxiliary function technique, WASPAA
    2011; Fast stereo independent vector analysis and its implementation on mobile phone, IWAENC 2012. For bands that
    overlap: I. Lee, G.-J. Jang, T.-W. Lee, Independent vector analysis using densities represented by chain-like
    overlapped cliques in graphical models, Electronics Letters 45 (2009). On line: T. Taniguchi, N. Ono, A. Kawamura,
    S. Sagayama, An auxiliary-function approach to online independent vector analysis for real-time blind source
    separation, HSCMA 2014.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from counterflow.exceptions import DivergenceError, InputError, ShapeError
from counterflow.separation.demixing import check_reference, inside, inverse, minimal_distortion, whitener

__all__ = ["OnlineIVA", "auxiliary_iva"]

Model = Literal["gauss", "laplace"]
Stages = tuple[tuple[int, int], ...]  # how many updates, and with how many bands

FLOOR = 1e-3
KEPT = 0.99
FIRST = 16  # frames with sound before the first update on line, or twice the channels where that is more


def auxiliary_iva(
    spectra: Tensor,
    outputs: int | None = None,
    *,
    iterations: int | None = None,
    bands: int | None = None,
    model: Model = "gauss",
    reference: int | None = 0,
    scaled: bool = True,
    compiled: bool | None = None,
) -> Tensor:
    """Demixing matrices of one recording.

    Two channels on a CPU go through a compiled loop, in which both vectors of a frequency are found at once, in closed
    form; other numbers of channels and other devices through batched operations of torch, one vector after the other.

    Args:
        spectra: Complex, shape (channels, frequencies, frames).
        outputs: Sources; fewer than channels: in the strongest principal components of each frequency.
        iterations: Updates of all vectors; 25 by default where both are found at once, else 50.
        bands: In how many bands a source has a loudness of its own, in the last two fifths of the updates; 1: in none.
            By default 16, or fewer, of 32 frequencies or more each.
        model: ``"gauss"`` or ``"laplace"``.
        reference: The microphone whose scale the outputs have; None for each output's own.
        scaled: Whether they are brought to that scale at all; otherwise outputs have the updates' own.
        compiled: Whether the compiled loop is used; by default where it can be.

    Returns:
        Shape (frequencies, outputs, channels).

    Raises:
        DivergenceError: If the matrices run away, or outputs end as copies of each other, as they may where channels
            hold fewer sources than there are outputs.
        InputError: If an argument is out of range, or a value not finite.
        ShapeError: If spectra are not complex (channels, frequencies, frames).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> loud = torch.rand(1, 2, 400, generator=generator) ** 3
        >>> sources = loud * torch.randn(9, 2, 400, dtype=torch.complex64, generator=generator)
        >>> mixing = torch.randn(9, 2, 2, dtype=torch.complex64, generator=generator)
        >>> total = (auxiliary_iva((mixing @ sources).transpose(0, 1)) @ mixing).abs()
        >>> bool((total.amin(2) < 0.1 * total.amax(2)).all())
        True
    """
    _check(model, iterations or 0)
    x, _ = inside(spectra)
    parts = max(1, min(16, len(x) // 32)) if bands is None else bands
    if not 1 <= parts <= len(x):
        raise InputError(f"bands={bands}, and there are {len(x)} frequencies; give 1 to that many")
    count = x.shape[1] if outputs is None else outputs
    if not 1 <= count <= x.shape[1]:
        raise InputError(f"outputs={count}, and there are {x.shape[1]} channels; give 1 to that many")
    pairs = count == 2 and x.device.type == "cpu" and x.dtype == torch.complex64
    if compiled and not pairs:
        raise InputError("compiled=True is for two outputs in complex64 on a CPU; leave it out")
    fast = pairs and compiled is not False
    turns = (25 if fast else 50) if iterations is None else iterations
    late = 2 * turns // 5 if parts > 1 else 0
    stages = ((turns - late, 1), (late, parts))
    whitening = whitener(x, count)
    unmixing = torch.eye(count, dtype=x.dtype, device=x.device).repeat(x.shape[0], 1, 1)
    try:
        if fast:
            unmixing = _compiled(x, whitening, unmixing, stages, model)
        else:
            z = whitening @ x
            for count_of, blocks in stages:
                for _ in range(count_of):
                    unmixing = _update(z, unmixing, model, blocks)
        found = unmixing @ whitening
        kept = _kept(x, whitening, found)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a matrix has no inverse
        kept = 0.0
    if not kept > KEPT:
        raise DivergenceError(
            f"the matrices of {count} outputs diverged, as they do where channels hold fewer sources; ask for fewer, "
            "sources=2 say, or leave channels out"
        )
    return minimal_distortion(found, reference) if scaled else found


def _check(model: str, iterations: int) -> None:
    if model not in ("gauss", "laplace"):
        raise InputError(f"model must be 'gauss' or 'laplace', got {model!r}")
    if iterations < 0:
        raise InputError(f"iterations must be 0 or more, got {iterations}")


def _kept(x: Tensor, whitening: Tensor, matrices: Tensor) -> float:
    """The share of the power that was whitened which the outputs still hold: 1 where matrices have an inverse.

    In frequencies without power they need have none. Pairs, whose vectors are never parallel, and fewer frames than
    outputs, which leave vectors open, are looked at for what is not finite alone.
    """
    if not bool(torch.view_as_real(matrices).isfinite().all()):
        return 0.0
    if matrices.shape[1] <= 2 or x.shape[2] < matrices.shape[1]:
        return 1.0
    double = (each.detach().to(torch.complex128) for each in (whitening, matrices))
    before, after = (inverse(each) @ each for each in double)
    x = x.detach()
    power = (x @ x.mH).to(torch.complex128)
    lost = before - after
    total = (before @ power @ before.mH).diagonal(dim1=1, dim2=2).real.sum()
    return 1 - float((lost @ power @ lost.mH).diagonal(dim1=1, dim2=2).real.sum() / total.clamp_min(1e-30))


def _compiled(x: Tensor, whitening: Tensor, unmixing: Tensor, stages: Stages, model: Model) -> Tensor:
    from counterflow.separation import kernels

    x, whitening = x.detach(), whitening.detach()
    w = unmixing.numpy().astype("complex128")
    kind = kernels.GAUSS if model == "gauss" else kernels.LAPLACE
    if x.shape[1] == 2:
        p = kernels.products(x.resolve_conj().numpy(), whitening.resolve_conj().contiguous().numpy())
    else:
        p = kernels.products((whitening @ x).numpy())
    for iterations, bands in stages:
        kernels.iterate_pair(p, w, iterations, kind, FLOOR, bands)
    return torch.from_numpy(w).to(unmixing.dtype)


def _weights(power: Tensor, model: Model, bands: int) -> Tensor:
    """Phi from the power in each frequency, of its shape (frequencies, outputs, frames)."""
    place = torch.arange(len(power), device=power.device) * bands // len(power)
    near = torch.arange(bands, device=power.device)
    eye = torch.eye(bands, dtype=power.dtype, device=power.device)
    blend = 0.5 * eye + 0.25 * (eye[(near - 1).clamp_min(0)] + eye[(near + 1).clamp_max(bands - 1)])
    sums = power.new_zeros(bands, *power.shape[1:]).index_add(0, place, power)
    sizes = blend @ torch.bincount(place, minlength=bands).to(power)
    means = torch.einsum("bc,ckt->bkt", blend, sums) / sizes[:, None, None]
    means = torch.maximum(means, FLOOR * means.mean(-1, keepdim=True) + 1e-30)
    slopes = means.reciprocal() if model == "gauss" else 0.5 * (sizes[:, None, None] * means).rsqrt()
    return torch.einsum("bc,ckt->bkt", blend, slopes)[place]


def _update(z: Tensor, unmixing: Tensor, model: Model, bands: int) -> Tensor:
    """Each output's vector in turn, in all frequencies at once."""
    _, K, T = z.shape
    weights = _weights((unmixing @ z).abs().square(), model, bands)
    ridge = 1e-7 * torch.eye(K, dtype=z.dtype, device=z.device)
    for k in range(K):
        covariance = (z * weights[:, k, None]) @ z.mH / T
        trace = covariance.diagonal(dim1=1, dim2=2).real.sum(1)[:, None, None]
        covariance = covariance + ridge * (trace + 1e-6)  # of whitened spectra; more than zero in a silent frequency
        unmixing = _project(unmixing, covariance, k)
    return unmixing


def _project(unmixing: Tensor, covariance: Tensor, k: int) -> Tensor:
    """Iterative projection: the vector that no other output's covariance sees, at the scale where its own sees one."""
    unit = torch.zeros(unmixing.shape[1], dtype=unmixing.dtype, device=unmixing.device)
    unit[k] = 1.0
    vector = torch.linalg.solve(unmixing @ covariance, unit.expand(len(unmixing), -1))
    size = torch.einsum("fi,fij,fj->f", vector.conj(), covariance, vector).real.clamp_min(1e-30)
    row = (vector * size.rsqrt().unsqueeze(1)).conj()
    return torch.cat([unmixing[:, :k], row.unsqueeze(1), unmixing[:, k + 1 :]], 1)


class OnlineIVA:
    r"""The same as frames come: covariances forget, and matrices follow.

    .. math:: V_{fk} \leftarrow \alpha V_{fk} + (1 - \alpha)\, \langle \varphi(\lVert u_k \rVert)\, x_f x_f^H \rangle

    with the mean over the frames of a block, after each of which every vector is updated. Frames of digital silence
    are not among them. The first update waits for 16 frames with sound (or twice the channels): fewer would point the
    vectors of each frequency wherever they like, and the order of outputs that this leaves would stay. Until then each
    output is an equal share of the reference microphone, or without one a microphone.

    Args:
        frequencies: Bins.
        channels: Microphones, and sources.
        forgetting: alpha for one frame; a block of n frames forgets by its n-th power.
        updates: Of all vectors, a block.
        model: ``"gauss"`` or ``"laplace"``.
        reference: The microphone whose scale the outputs have; None for each output's own.

    Attributes:
        matrices: What the last block was separated by, shape (frequencies, channels, channels).

    Raises:
        InputError: If an argument is out of range, or there is no such microphone.

    Example:
        >>> online = OnlineIVA(frequencies=9, channels=2)
        >>> online.process(torch.randn(2, 9, 4, dtype=torch.complex64)).shape
        torch.Size([2, 9, 4])
    """

    def __init__(
        self,
        frequencies: int,
        channels: int = 2,
        *,
        forgetting: float = 0.98,
        updates: int = 2,
        model: Model = "gauss",
        reference: int | None = 0,
    ) -> None:
        _check(model, updates)
        if not (frequencies >= 1 and channels >= 2 and 0 < forgetting < 1):
            raise InputError(
                f"frequencies must be 1 or more, channels 2 or more, forgetting between 0 and 1; got {frequencies}, "
                f"{channels}, {forgetting}"
            )
        self.forgetting = forgetting
        self.updates = updates
        self.model: Model = model
        self.reference = reference
        check_reference(reference, channels)
        eye = torch.eye(channels, dtype=torch.complex64)
        share = eye if reference is None else eye[reference].expand(channels, -1) / channels
        self.matrices = share.repeat(frequencies, 1, 1)
        self._unmixing = eye.repeat(frequencies, 1, 1)
        self._covariance = torch.zeros(channels, frequencies, channels, channels, dtype=torch.complex64)
        self._level = torch.zeros(())
        self._seen = 0.0
        self._waiting: Tensor | None = torch.zeros(frequencies, channels, 0, dtype=torch.complex64)

    def process(self, spectra: Tensor) -> Tensor:
        """Separate the next frames, by matrices that have already learned from them, once they have begun to.

        Args:
            spectra: Complex, shape (channels, frequencies, frames).

        Returns:
            Shape (channels, frequencies, frames).

        Raises:
            InputError: If a value is not finite.
            ShapeError: If there are other channels or frequencies.
        """
        x, _ = inside(spectra)
        F, K, _ = x.shape
        if tuple(self._unmixing.shape[:2]) != (F, K):
            raise ShapeError(
                f"spectra have {K} channels and {F} frequencies; "
                f"{self._unmixing.shape[1]} and {len(self._unmixing)} are expected"
            )
        if x.dtype != self.matrices.dtype or x.device != self.matrices.device:
            self.matrices, self._unmixing, self._covariance = (
                each.to(x) for each in (self.matrices, self._unmixing, self._covariance)
            )
        heard = x[:, :, x.abs().amax((0, 1)) > 0]  # silence teaches nothing, and nothing is forgotten in it
        if self._waiting is not None:
            heard = torch.cat([self._waiting.to(x), heard], -1)
            self._waiting = heard if heard.shape[2] < max(FIRST, 2 * K) else None
        if heard.shape[2] and self._waiting is None:
            self._learn(heard)
        return (self.matrices @ x).transpose(0, 1)

    def _learn(self, x: Tensor) -> None:
        """One block."""
        F, K, T = x.shape
        level = x.abs().square().mean()
        keep = self.forgetting**T
        self._seen = keep * self._seen + 1 - keep
        self._level = keep * self._level + (1 - keep) * level
        past = self._covariance
        for _ in range(self.updates):
            power = (self._unmixing @ x).abs().square().mean(0)
            power = torch.maximum(power, 1e-3 * power.mean() + 1e-12 * self._level)
            weights = power.reciprocal() if self.model == "gauss" else 0.5 * (F * power).rsqrt()
            fresh = torch.stack([(x * weights[k]) @ x.mH / T for k in range(K)])
            self._covariance = keep * past + (1 - keep) * fresh
            for k in range(K):
                covariance = self._covariance[k] / self._seen
                trace = covariance.diagonal(dim1=1, dim2=2).real.sum(1)[:, None, None]
                ridge = 1e-5 * torch.eye(K, dtype=x.dtype, device=x.device)
                self._unmixing = _project(self._unmixing, covariance + ridge * (trace + 1e-6 * trace.mean()), k)
        self.matrices = minimal_distortion(self._unmixing, self.reference)
