r"""Banks of predictors of speech frames, all evaluated together.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, sections 2 and 4.

===============================  ==================================================================
the paper                        here
===============================  ==================================================================
predictive network               one of ``n_networks``: a linear map or a perceptron with one hidden layer of tanh
"a short section of speech"      the ``window`` frames before frame t
hidden control inputs            ``states`` of each network, told apart by bits at its input
distance matrix                  ``costs(x)``, shape (time, networks * states): squared Euclidean distance
===============================  ==================================================================

Utterances are ``x`` (time, features). Predictor (network n, state k) has the number ``n * states + k``. Frames before
the first are taken to be equal to it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError

__all__ = ["Kind", "PredictorBank"]

Kind = Literal["perceptron", "linear"]
_CHUNK = 256  # frames at once: hidden units of all networks stay in the cache


class PredictorBank(nn.Module):
    r"""Networks side by side, each of which predicts a frame from those before it.

    .. math::

       \hat x_t^{(n,k)} = V_n \tanh(W_n x_{t-w:t-1} + c_{nk} + b_n) + a_n, \qquad
       d_{t,(n,k)} = \lVert x_t - \hat x_t^{(n,k)} \rVert^2

    With ``states`` above 1 the networks have hidden control inputs: :math:`c_{nk} = U_n\,\mathrm{bits}(k)`, and
    :math:`W_n x` is computed once for all states. A bank of one network with as many states as there are predictors is
    the paper's single network for everything.

    Args:
        n_networks: Networks.
        n_features: Features of a frame.
        states: States of each network, told apart by :math:`\lceil\log_2 states\rceil` bits of -1 and 1.
        window: Frames before t that are seen, w.
        hidden: Hidden units of each network; the paper does not say how many.
        kind: ``"perceptron"``, or ``"linear"``, the baseline without hidden units.
        generator: Where the first weights come from; torch's own if not given.

    Raises:
        InputError: If a number is below 1, the kind is not known, or linear predictors are asked for several states.

    References:
        Tebelskis and others (1990), sections 2 and 4; E. Levin, Speech recognition using hidden control neural network
        architecture, ICASSP 1990.

    Example:
        >>> bank = PredictorBank(n_networks=40, n_features=16, states=2)
        >>> x = torch.randn(100, 16)
        >>> bank(x).shape, bank.costs(x).shape
        (torch.Size([100, 80, 16]), torch.Size([100, 80]))
    """

    def __init__(
        self,
        n_networks: int,
        n_features: int,
        *,
        states: int = 1,
        window: int = 2,
        hidden: int = 16,
        kind: Kind = "perceptron",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        numbers = {
            "n_networks": n_networks, "n_features": n_features, "states": states, "window": window, "hidden": hidden,
        }  # fmt: skip
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        if states > 1024:
            raise InputError(f"states is {states}; at most 1024 share a network")
        if kind not in ("perceptron", "linear"):
            raise InputError(f"kind must be 'perceptron' or 'linear', got {kind!r}")
        if kind == "linear" and states > 1:
            raise InputError(f"states={states} needs kind='perceptron': bits only shift what a linear network predicts")
        self.n_networks, self.n_features, self.states = n_networks, n_features, states
        self.window, self.hidden, self.kind = window, hidden, kind
        N, D, H, seen = n_networks, n_features, hidden, window * n_features
        rows = H if kind == "perceptron" else D
        self.inner = nn.Parameter(torch.empty(N, rows, seen))
        nn.init.normal_(self.inner, std=seen**-0.5, generator=generator)
        self.inner_bias = nn.Parameter(torch.zeros(N, rows))
        self.outer = nn.Parameter(torch.empty(N, D, H)) if kind == "perceptron" else None
        if self.outer is not None:
            nn.init.normal_(self.outer, std=H**-0.5, generator=generator)
        self.outer_bias = nn.Parameter(torch.zeros(N, D)) if kind == "perceptron" else None
        bits = (states - 1).bit_length()
        self.control = nn.Parameter(torch.randn(N, H, bits, generator=generator)) if bits else None
        # On the CPU whatever the default device: a bank can be made without memory, on the meta device.
        codes = (torch.arange(states, device="cpu")[:, None] >> torch.arange(bits, device="cpu")) & 1
        self.register_buffer("_codes", (2.0 * codes - 1.0).to(self.inner.device), persistent=False)
        self._codes: Tensor

    @property
    def n_predictors(self) -> int:
        """Networks times states."""
        return self.n_networks * self.states

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        sizes = f"n_networks={self.n_networks}, n_features={self.n_features}, states={self.states}"
        return f"{sizes}, window={self.window}, hidden={self.hidden}, kind={self.kind!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Every predictor's prediction of every frame.

        Args:
            x: An utterance, shape (time, features).

        Returns:
            Shape (time, predictors, features), differentiable.

        Raises:
            ShapeError: If the shape does not fit.
        """
        return self._predict(self._seen(x)).permute(1, 0, 2)

    def costs(self, x: Tensor, networks: Tensor | None = None) -> Tensor:
        """Squared distances of all predictions from the frames, without keeping a graph.

        Args:
            x: An utterance, shape (time, features).
            networks: Which networks are asked, such as those of an utterance's phonemes; all if not given.

        Returns:
            The distance matrix, shape (time, predictors), infinite where a network was not asked. Memory grows with
            time only by this matrix.

        Raises:
            ShapeError: If the shape does not fit.
        """
        with torch.no_grad():
            seen = self._seen(x)
            parts = []
            for start in range(0, len(x), _CHUNK):
                part = slice(start, start + _CHUNK)
                parts.append((self._predict(seen[part], networks) - x[part]).square().sum(-1).T)
            found = torch.cat(parts)
            if networks is None:
                return found
            whole = x.new_full((len(x), self.n_networks, self.states), torch.inf)
            whole[:, networks] = found.view(len(x), -1, self.states)
            return whole.flatten(1)

    def aligned_error(self, x: Tensor, predictors: Tensor) -> Tensor:
        """Squared distance of each frame from the prediction of the one predictor that the alignment gives it.

        Only these predictions are computed, forward and backward: one for each frame rather than all.

        Args:
            x: An utterance, shape (time, features).
            predictors: Which predictor has the frame, shape (time,).

        Returns:
            Shape (time,), equal to ``costs(x)`` at those predictors, and differentiable.

        Raises:
            ShapeError: If a shape does not fit.
            InputError: If a predictor is none of the bank's.

        Example:
            >>> bank = PredictorBank(3, 4)
            >>> x, path = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
            >>> bool(torch.allclose(bank.aligned_error(x, path), bank.costs(x)[range(6), path], atol=1e-5))
            True
        """
        seen = self._seen(x)
        if predictors.shape != (len(x),) or predictors.is_floating_point() or predictors.dtype == torch.bool:
            found = f"{predictors.dtype} of shape {tuple(predictors.shape)}"
            raise ShapeError(f"predictors must be whole numbers of shape ({len(x)},), got {found}")
        if not 0 <= int(predictors.min()) <= int(predictors.max()) < self.n_predictors:
            raise InputError(f"predictors must lie between 0 and {self.n_predictors - 1}, got {predictors.tolist()}")
        # The frames of each network side by side, filled up to the longest, as one batched product.
        network, state = predictors // self.states, predictors % self.states
        order = network.argsort(stable=True)
        used, rank, counts = torch.unique(network[order], return_inverse=True, return_counts=True)
        place = torch.arange(len(x), device=x.device) - (counts.cumsum(0) - counts)[rank]
        gathered = seen.new_zeros(len(used), int(counts.max()), seen.shape[1])
        gathered = gathered.index_put((rank, place), seen[order])
        inside = torch.baddbmm(self.inner_bias[used].unsqueeze(1), gathered, self.inner[used].transpose(1, 2))
        if self.outer is not None and self.outer_bias is not None:
            if self.control is not None:
                offsets = self._offsets()[network[order], state[order]]
                inside = inside.index_put((rank, place), offsets, accumulate=True)
            inside = torch.baddbmm(self.outer_bias[used].unsqueeze(1), inside.tanh(), self.outer[used].transpose(1, 2))
        errors = (inside[rank, place] - x[order]).square().sum(-1)
        return errors[order.argsort()]

    def as_layers(self) -> nn.Sequential:
        r"""The same predictors as layers, for what works on layers: taps, whitening, an analog device.

        Windows of frames are a convolution over time, and networks side by side are one in groups. The layers' weights
        lie in the bank's own memory: what one learns, the other has learned.

        Returns:
            From frames ``(batch, features, time)`` to predictions ``(batch, networks * features, time - window + 1)``,
            each of the frame that follows its window.

        Raises:
            InputError: If networks have several states, whose bits no layer has.

        Example:
            >>> bank = PredictorBank(3, 4, window=2)
            >>> x = torch.randn(6, 4)
            >>> after = bank.as_layers()(x.T[None])[0].unflatten(0, (3, 4)).permute(2, 0, 1)
            >>> bool(torch.allclose(after[:-1], bank(x)[2:], atol=1e-5))
            True
        """
        if self.states > 1:
            raise InputError(f"as_layers is for networks of one state, and these have {self.states}")
        N, D, w = self.n_networks, self.n_features, self.window

        def held(layer: nn.Conv1d, weight: Tensor, bias: Tensor) -> nn.Conv1d:
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias.flatten())
            return layer

        with torch.no_grad():
            windows = self.inner.detach().view(-1, w, D).transpose(1, 2)
            first = held(nn.Conv1d(D, len(windows), w, device="meta"), windows, self.inner_bias.detach())
            if self.outer is None or self.outer_bias is None:
                return nn.Sequential(first)
            outer = self.outer.detach().flatten(0, 1).unsqueeze(2)
            second = nn.Conv1d(N * self.hidden, N * D, 1, groups=N, device="meta")
            return nn.Sequential(first, nn.Tanh(), held(second, outer, self.outer_bias.detach()))

    def _seen(self, x: Tensor) -> Tensor:
        """The frames before each, shape (time, window * features), the earliest first."""
        if x.ndim != 2 or x.shape[1] != self.n_features or not len(x):
            raise ShapeError(f"x has shape {tuple(x.shape)}; it needs (time, {self.n_features}), a time of 1 or more")
        padded = torch.cat([x[:1].expand(self.window, -1), x[:-1]])
        return padded.unfold(0, self.window, 1).transpose(1, 2).flatten(1)

    def _offsets(self) -> Tensor:
        """What the bits of each state add to the hidden units, shape (networks, states, hidden)."""
        assert self.control is not None
        return torch.einsum("nhb,kb->nkh", self.control, self._codes.to(self.control))

    def _predict(self, seen: Tensor, networks: Tensor | None = None) -> Tensor:
        """Shape (predictors of the networks, time, features)."""

        def of(parameter: Tensor) -> Tensor:
            return parameter if networks is None else parameter[networks]

        inner, inner_bias = of(self.inner), of(self.inner_bias)
        N, T = len(inner), len(seen)
        first = torch.addmm(inner_bias.flatten(), seen, inner.flatten(0, 1).T).view(T, N, -1)
        if self.outer is None or self.outer_bias is None:
            return first.transpose(0, 1)
        hidden = first.transpose(0, 1).unsqueeze(1)
        if self.control is not None:
            hidden = hidden + of(self._offsets()).unsqueeze(2)
        hidden = hidden.tanh().flatten(1, 2)
        found = torch.baddbmm(of(self.outer_bias).unsqueeze(1), hidden, of(self.outer).transpose(1, 2))
        return found.reshape(N * self.states, T, self.n_features)
