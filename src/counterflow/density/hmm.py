"""A bank of hidden Markov models with Gaussian outputs, as one module of torch.

Source: A. D. Brown, G. E. Hinton, "Relative Density Nets: A New Way to Combine Backpropagation with HMMs", NIPS 2001,
section 5.

====================================  ==============================================================
the paper                             here
====================================  ==============================================================
A, theta^(a)                          ``transition_logits`` (models, states, states), before the softmax over the last
pi, theta^(pi)                        ``initial_logits`` (models, states), before the softmax
mu                                    ``means`` (models, states, components, features)
v, theta^(v)                          ``log_variances``, of the shape of ``means``, or smaller where they are tied
L(x_1:T | H)                          ``log_likelihood(x, lengths)``, shape (batch, models)
<delta(s_t, i)>                       ``posteriors(x, lengths)``, shape (batch, time, models, states)
====================================  ==============================================================

Sequences are ``x`` of shape (batch, time, features), padded at the end; ``lengths`` (batch,) says how many frames of
each are meant. Logarithms are natural. Mixtures (several ``components`` a state) and topologies are not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from counterflow.density import recursions
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

__all__ = ["Backend", "GaussianHMM", "Tied", "Topology", "pad"]

Backend = Literal["auto", "numba", "torch", "autograd"]
Topology = Literal["ergodic", "left-to-right"]
Tied = Literal["none", "states", "models"]
_CHOICES = {
    "topology": ("ergodic", "left-to-right"),
    "tied": ("none", "states", "models"),
    "backend": ("auto", "numba", "torch", "autograd"),
}


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences of unequal length as one batch.

    Args:
        sequences: Tensors of shape (time, features).

    Returns:
        The batch (batch, time, features), zero after each sequence's end, and the lengths (batch,).

    Raises:
        InputError: There is none.
        ShapeError: One is empty, or has another number of features than the first.

    Example:
        >>> x, lengths = pad([torch.ones(3, 2), torch.ones(5, 2)])
        >>> x.shape, lengths.tolist()
        (torch.Size([2, 5, 2]), [3, 5])
    """
    if not sequences:
        raise InputError("sequences is empty; give at least one")
    for number, each in enumerate(sequences):
        if each.ndim != 2 or not len(each) or each.shape[1] != sequences[0].shape[1]:
            wanted = f"(time, {sequences[0].shape[1]})" if sequences[0].ndim == 2 else "(time, features)"
            raise ShapeError(
                f"sequence {number} has shape {tuple(each.shape)}; it needs {wanted} and one frame or more"
            )
    return pad_sequence(list(sequences), batch_first=True), torch.tensor([len(each) for each in sequences])


class GaussianHMM(nn.Module):
    r"""Hidden Markov models with axis-aligned Gaussian outputs, side by side.

    .. math::

       p(x_{1:T}) = \sum_{s_{1:T}} \pi_{s_1} \prod_{t=2}^T a_{s_{t-1} s_t} \prod_{t=1}^T N(x_t; \mu_{s_t}, v_{s_t})

    Probabilities are softmaxes and variances exponentials of the parameters, which are free (section 5). The error goes
    back by equations 14 to 19: one forward-backward pass, not autograd through time.

    Args:
        n_models: Models in the bank, M.
        n_states: States of each.
        n_features: Features of a frame.
        n_components: Gaussians mixed in each state; the paper has 1.
        topology: ``"ergodic"`` (any state may follow any, as in the paper), or ``"left-to-right"`` (it starts in the
            first state, and stays or goes on by one), or a boolean tensor (states, states) of permitted transitions.
        tied: Whose variances are one: ``"none"``, all ``"states"`` of a model, or all ``"models"``.
        backend: How it is computed: ``"numba"`` (CPU), ``"torch"`` (plain operations, any device; the same analytic
            derivatives), ``"autograd"`` (through time, for derivatives of any order); ``"auto"`` is numba on the CPU
            for float32 and float64, else torch.
        dtype: Of the parameters; torch's default if not given. Where means are 100 standard deviations or more apart,
            take float64: float32 then loses digits.
        device: Where they are.

    Raises:
        InputError: If a number is below 1, or a choice is not one of these.
        ShapeError: If a topology has another shape.

    References:
        L. E. Baum, T. Petrie, G. Soules, N. Weiss, A maximization technique occurring in the statistical analysis of
        probabilistic functions of Markov chains, 1970; A. D. Brown, G. E. Hinton, Relative Density Nets, NIPS 2001.

    Example:
        >>> bank = GaussianHMM(n_models=3, n_states=2, n_features=4)
        >>> x, lengths = torch.randn(5, 20, 4), torch.tensor([20, 7, 1, 12, 20])
        >>> bank.log_likelihood(x, lengths).shape
        torch.Size([5, 3])
        >>> bank.posteriors(x, lengths)[1, 7:].abs().max().item()
        0.0
    """

    def __init__(
        self,
        n_models: int,
        n_states: int,
        n_features: int,
        *,
        n_components: int = 1,
        topology: Topology | Tensor = "ergodic",
        tied: Tied = "none",
        backend: Backend = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        numbers = {"n_models": n_models, "n_states": n_states, "n_features": n_features, "n_components": n_components}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
        for name, choice in {"topology": topology, "tied": tied, "backend": backend}.items():
            if not isinstance(choice, Tensor) and choice not in _CHOICES[name]:
                raise InputError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {choice!r}")
        self.n_models, self.n_states, self.n_features, self.n_components = n_models, n_states, n_features, n_components
        self.tied = tied
        self.backend: Backend = backend
        M, S, K, D = n_models, n_states, n_components, n_features
        made: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        # Where there is nothing to choose, there is no parameter that would be without effect.
        single = S == 1
        fixed = single or (not isinstance(topology, Tensor) and topology == "left-to-right")
        self.initial_logits = nn.Parameter(torch.zeros(M, S, **made)) if not fixed else None
        self.transition_logits = nn.Parameter(torch.zeros(M, S, S, **made)) if not single else None
        self.mixture_logits = nn.Parameter(torch.zeros(M, S, K, **made)) if K > 1 else None
        self.means = nn.Parameter(torch.randn(M, S, K, D, **made))
        shape = {"none": (M, S, K, D), "states": (M, 1, 1, D), "models": (1, 1, 1, D)}[tied]
        self.log_variances = nn.Parameter(torch.zeros(shape, **made))
        permitted = torch.ones(S, S, dtype=torch.bool)
        # Known without a look at the values: a bank can be made without memory, on the meta device.
        self._whole = single or topology != "left-to-right"
        if isinstance(topology, Tensor):
            if topology.shape != (S, S) or topology.dtype != torch.bool:
                found = f"{topology.dtype} of shape {tuple(topology.shape)}"
                raise ShapeError(f"topology must be boolean of shape {(S, S)}, got {found}")
            if not bool(topology.any(1).all()):
                raise InputError("topology leaves a state without a successor; permit at least its own")
            permitted = topology.detach().cpu().clone()
            self._whole = bool(permitted.all())
        elif topology == "left-to-right":
            permitted = permitted.triu().tril(1)
        self.register_buffer("_permitted", permitted.to(device), persistent=False)

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        sizes = f"n_models={self.n_models}, n_states={self.n_states}, n_features={self.n_features}"
        return f"{sizes}, n_components={self.n_components}, tied={self.tied!r}, backend={self.backend!r}"

    def log_initial(self) -> Tensor:
        """Logarithms of the initial state probabilities, shape (models, states)."""
        if self.initial_logits is None:
            first = self.means.new_full((self.n_models, self.n_states), -math.inf)
            first[:, 0] = 0.0
            return first
        return self.initial_logits.log_softmax(-1)

    def log_transitions(self) -> Tensor:
        """Logarithms of the transition probabilities, shape (models, states, states), from the second to the third."""
        if self.transition_logits is None:
            return self.means.new_zeros(self.n_models, 1, 1)
        logits: Tensor = self.transition_logits
        if not self._whole:
            logits = logits.masked_fill(~cast(Tensor, self._permitted), -math.inf)
        return logits.log_softmax(-1)

    def variances(self) -> Tensor:
        """Variances, shape (models, states, components, features), tied or not."""
        return self.log_variances.exp().expand_as(self.means)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The same as `log_likelihood`."""
        return self.log_likelihood(x, lengths)

    def log_likelihood(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The log-likelihood of each sequence under each model.

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each, shape (batch,); all of them if not given. What comes after is never looked at.

        Returns:
            Shape (batch, models), differentiable in all parameters and in ``x``. Not divided by the length.

        Raises:
            ShapeError: If a shape does not fit.
            InputError: If a frame that is meant is not finite, or a length is not between 1 and the time.
        """
        found = self._fused(x, lengths)
        return self._run(x, lengths, want=torch.is_grad_enabled())[0] if found is None else found

    @torch.no_grad()
    def posteriors(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The probability of each state at each time, given the whole sequence.

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each; all of them if not given.

        Returns:
            Shape (batch, time, models, states), zero after a sequence's end.

        Raises:
            ShapeError, InputError: As `log_likelihood`.
        """
        return self._run(x, lengths, want=True, autograd=False)[1]

    @torch.no_grad()
    def viterbi(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The likeliest path of states of each sequence under each model.

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each; all of them if not given.

        Returns:
            The states (batch, models, time), -1 after a sequence's end, and the joint log-likelihood of path and
            sequence (batch, models). Of two paths that are as likely, the one with the lower states at the end.

        Raises:
            ShapeError, InputError: As `log_likelihood`.
        """
        from counterflow.density.kernels import viterbi_paths

        x, lengths = self._checked(x, lengths)
        with torch.autocast(x.device.type, enabled=False):  # as in _run
            log_b = torch.unflatten(self._log_densities(x, models_last=False), -1, (self.n_models, self.n_states))
        batch, steps = x.shape[:2]
        paths = torch.full((batch, self.n_models, steps), -1)
        best = torch.zeros(batch, self.n_models, dtype=torch.float64)
        arrays = (self.log_initial(), self.log_transitions(), log_b)
        kernel: list[Any] = [each.double().cpu().contiguous().numpy() for each in arrays]
        run: Any = viterbi_paths
        run(*kernel, lengths.cpu().numpy(), paths.numpy(), best.numpy())
        return paths.to(x.device), best.to(x.device, x.dtype)

    @torch.no_grad()
    def sample(
        self, steps: int, n: int = 1, *, model: int = 0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences from one of the models.

        Args:
            steps: Frames of a sequence.
            n: Sequences.
            model: Which model draws.
            generator: Where the randomness comes from.

        Returns:
            Sequences (n, steps, features) and their states (n, steps).

        Raises:
            InputError: If a number is out of range.

        Example:
            >>> x, states = GaussianHMM(2, 3, 4).sample(10, n=5, generator=torch.Generator().manual_seed(0))
            >>> x.shape, states.shape
            (torch.Size([5, 10, 4]), torch.Size([5, 10]))
        """
        if steps < 1 or n < 1:
            raise InputError(f"steps and n must be 1 or more, got {steps} and {n}")
        if not 0 <= model < self.n_models:
            raise InputError(f"model must be between 0 and {self.n_models - 1}, got {model}")
        first, following = self.log_initial()[model].exp(), self.log_transitions()[model].exp()
        state = torch.multinomial(first, n, replacement=True, generator=generator)
        path = [state]
        for _ in range(steps - 1):
            state = torch.multinomial(following[state], 1, generator=generator).squeeze(-1)
            path.append(state)
        states = torch.stack(path, 1)
        component = torch.zeros_like(states)
        if self.mixture_logits is not None:
            weights = self.mixture_logits[model].softmax(-1)[states].flatten(0, 1)
            component = torch.multinomial(weights, 1, generator=generator).view_as(states)
        mean, spread = (each[model][states, component] for each in (self.means, self.variances().sqrt()))
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + spread * noise, states

    def fit(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        iterations: int = 20,
        tolerance: float = 1e-4,
        min_variance: float = 1e-3,
        start: bool = True,
        generator: torch.Generator | None = None,
    ) -> list[float]:
        r"""Raise the likelihood of each model on the sequences that are its own, by Baum-Welch.

        Forbidden transitions stay forbidden, and tied variances tied. It is not in the paper.

        .. math::

           \pi_i \propto \sum w \gamma_1(i), \quad a_{ij} \propto \sum w \xi(i, j), \quad
           \mu_i = \frac{\sum w \gamma_t(i) x_t}{\sum w \gamma_t(i)}, \quad
           v_i = \frac{\sum w \gamma_t(i) (x_t - \mu_i)^2}{\sum w \gamma_t(i)}

        Args:
            x: Sequences, shape (batch, time, features).
            lengths: Frames of each; all of them if not given.
            weights: How much each sequence counts for each model, shape (batch, models), such as a one-hot class; 1 if
                not given.
            iterations: Steps at most.
            tolerance: It ends where the mean log-likelihood of a frame rises by less, in nats.
            min_variance: No variance goes below.
            start: Whether the means first go to frames, drawn from the model's sequences, and the variances to that of
                all frames. Without it, it goes on from where the bank is.
            generator: Which frames are drawn.

        Returns:
            The mean log-likelihood of a frame before each step, in nats. It never falls, but for the bound on
            variances.

        Raises:
            ShapeError: If a shape does not fit.
            InputError: If a number is out of range, or a model has no sequences.

        References:
            L. E. Baum, T. Petrie, G. Soules, N. Weiss, A maximization technique occurring in the statistical analysis
            of probabilistic functions of Markov chains, 1970.

        Example:
            >>> bank = GaussianHMM(1, 2, 1)
            >>> rise = bank.fit(torch.randn(4, 50, 1).cumsum(1), generator=torch.Generator().manual_seed(0))
            >>> rise[-1] > rise[0]
            True
        """
        from counterflow.density.baum_welch import fit

        return fit(
            self,
            x,
            lengths,
            weights=weights,
            iterations=iterations,
            tolerance=tolerance,
            min_variance=min_variance,
            start=start,
            generator=generator,
        )

    def _sizes(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch in the bank's type, and the lengths, of which shapes and types are right."""
        if x.ndim != 3 or x.shape[2] != self.n_features or not x.shape[1]:
            needed = f"(batch, time, {self.n_features})"
            raise ShapeError(f"x has shape {tuple(x.shape)}; it needs {needed} with a time of 1 or more")
        x = x.to(self.means.dtype)
        ends = lengths if lengths is not None else torch.full((x.shape[0],), x.shape[1], device=x.device)
        ends = ends.to(x.device)
        if ends.shape != x.shape[:1] or ends.is_floating_point() or ends.dtype == torch.bool:
            found = f"{ends.dtype} of shape {tuple(ends.shape)}"
            raise ShapeError(f"lengths must be whole numbers of shape ({x.shape[0]},), got {found}")
        return x, ends.long()

    def _fused(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        """The log-likelihood by the kernels that keep no posteriors; None where something forbids them."""
        states = self.n_states * self.n_components
        if self.backend not in ("auto", "numba") or x.requires_grad or x.device.type != "cpu":
            return None
        if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
            return None
        if type(x) is not Tensor or self.means.dtype not in (torch.float32, torch.float64):
            return None
        from counterflow.density import fused

        x, ends = self._sizes(x, lengths)
        # Sums over frames are kept in the place of posteriors where they are fewer.
        if not fused.fits(len(x), x.shape[1], states, self.n_features):
            return None
        if not (int(ends.min()) >= 1 and int(ends.max()) <= x.shape[1]):
            return None
        log_start, log_step = self.log_initial(), self.log_transitions()
        if self.mixture_logits is not None:
            # States with components are that many states: whoever goes to one draws the component too.
            weights = self.mixture_logits.log_softmax(-1)
            log_start = (log_start.unsqueeze(-1) + weights).flatten(1)
            log_step = log_step[:, :, None, :, None] + weights[:, None, None]
            log_step = log_step.expand(-1, -1, self.n_components, -1, -1).flatten(3).flatten(1, 2)
        means, variances = (each.flatten(1, 2) for each in (self.means, self.log_variances.expand_as(self.means)))
        return fused.likelihood(x, ends, log_start, log_step, means, variances)

    def _checked(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch with zeros in place of what is not meant, and the lengths."""
        x, ends = self._sizes(x, lengths)
        whole = lengths is None
        # Under a transform there are no numbers to look at.
        looks = not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None
        if looks and not whole and len(ends) and not (int(ends.min()) >= 1 and int(ends.max()) <= x.shape[1]):
            worst = int(((ends < 1) | (ends > x.shape[1])).nonzero()[0])
            raise InputError(f"lengths[{worst}] is {int(ends[worst])}; it must be between 1 and {x.shape[1]}")
        if not whole:
            inside = torch.arange(x.shape[1], device=x.device) < ends[:, None]
            x = torch.where(inside.unsqueeze(-1), x, torch.zeros_like(x))
        if looks and not bool(x.detach().sum().isfinite()):
            broken = ~x.detach().isfinite().all(-1)
            if bool(broken.any()):
                sequence, frame = broken.nonzero()[0].tolist()
                raise InputError(f"x of sequence {sequence} is not finite at frame {frame}; leave it out, or mend it")
        return x, ends

    def _log_densities(self, x: Tensor, models_last: bool, components: bool = False) -> Tensor:
        """Log-densities of the frames, shape (batch, time, models * states), with states first if models are last."""
        means: Tensor = self.means
        variances = self.log_variances.expand_as(means)
        if models_last:
            means, variances = means.transpose(0, 1), variances.transpose(0, 1)
        flat = map(_wide, (x, means.flatten(0, 2), variances.flatten(0, 2)))
        log_b: Tensor = recursions.GaussianDensity.apply(*flat)  # type: ignore[no-untyped-call]
        if self.mixture_logits is None:
            return log_b
        weights = _wide(self.mixture_logits).log_softmax(-1)
        weights = (weights.transpose(0, 1) if models_last else weights).flatten(0, 1)
        mixed: Tensor = torch.unflatten(log_b, -1, (-1, self.n_components)) + weights
        return mixed if components else mixed.logsumexp(-1)

    def _run(
        self, x: Tensor, lengths: Tensor | None, *, want: bool, autograd: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods, posteriors (batch, time, models, states) and expected transitions."""
        x, ends = self._checked(x, lengths)
        backend = self.backend
        if backend == "auto":
            known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            backend = "numba" if known else "torch"
        empty = x.new_empty(0)
        M, S = self.n_models, self.n_states
        # Statistics of long sums and small differences have no place in half precision.
        with torch.autocast(x.device.type, enabled=False):
            log_start, log_step = _wide(self.log_initial()), _wide(self.log_transitions())
            if backend == "numba":
                if x.device.type != "cpu":
                    raise UnsupportedError(f'backend="numba" needs the CPU, and x is on {x.device}; use "torch"')
                from counterflow.density.kernels import recursion

                last = M > S
                log_b = self._log_densities(x, last)
                total, gamma, moves = recursion(log_start, log_step, log_b, ends, last, want)
                if want:
                    gamma = torch.unflatten(gamma, -1, (S, M) if last else (M, S))
                    gamma = gamma.transpose(-1, -2) if last else gamma
                return total.to(x.dtype), gamma.to(x.dtype), moves.to(x.dtype)
            log_b = torch.unflatten(self._log_densities(x, False), -1, (M, S))
            if backend == "autograd" and autograd:
                return recursions.unrolled(log_start, log_step, log_b, ends).to(x.dtype), empty, empty
            total, gamma, moves = recursions.analytic(log_start, log_step, log_b, ends)
            return total.to(x.dtype), gamma.to(x.dtype), moves.to(x.dtype)


def _wide(values: Tensor) -> Tensor:
    """In single precision, where it is half: densities and sums of logarithms are beyond the range of that."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
