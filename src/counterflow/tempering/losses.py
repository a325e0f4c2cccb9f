r"""How large an output error may be beside the residual, and what a loss divides by.

The paper's equation 10 defines :math:`\phi_j`, by which the error of an output is divided so that it never exceeds the
residual. The scan drops it; it was derived from the two cases that the text gives:

.. math::
    \delta_j = -\frac{1}{\phi_j} \frac{\partial E}{\partial y_j}, \qquad
    \phi_j = \max_{y_j} \left| \frac{\partial E / \partial y_j}{t_j - x_j} \right|

with :math:`t_j` the target, :math:`x_j = f_j(y_j)` the output. For the quadratic error :math:`\frac12 \sum (t - x)^2`
the ratio is :math:`|f_j'|`, hence :math:`\phi_j = s(f_j)`; for logistic outputs with cross-entropy
:math:`\partial E/\partial y_j = x_j - t_j`, hence :math:`\phi_j = 1`, both as the paper says.

A loss is one of these kinds:

* its output function is inside (`cross_entropy`, `binary_cross_entropy_with_logits`): the ratio is 1;
* it cancels the slope of the model's last function (`nll_loss` and `kl_div` after log-softmax,
  `binary_cross_entropy` after a sigmoid): the ratio is 1;
* it is a function of :math:`x - t` alone (squared, Huber): the ratio is its greatest curvature times :math:`s(f_j)`.

The absolute and hinge losses send an error of full size however small the residual is: they have no such bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import nn

from counterflow.exceptions import CounterflowError, InputError, UnsupportedError

__all__ = ["Loss", "resolve"]

Reduction = Literal["sum", "mean", "batchmean"]


@dataclass(frozen=True)
class Loss:
    r"""What tempering must know of a loss.

    Args:
        name: The function's, with the reduction behind it where it is resolved.
        ratio: Greatest ratio of :math:`\partial E/\partial x` (or of :math:`\partial E/\partial y` where the loss
            holds or cancels the output function) to the residual, for the summed loss.
        inside: The slope of the output function that is inside the loss; 1 where there is none.
        cancels: The name of the model's last function whose slope the loss cancels; ``""`` where there is none.
        local: Whether its targets are a local code: one class at a time.
        reduction: What the loss does with the terms.
        per_class: Whether the mean counts every element, or samples alone (classes stand in dimension 1).
    """

    name: str
    ratio: float = 1.0
    inside: float = 1.0
    cancels: str = ""
    local: bool = False
    reduction: Reduction = "mean"
    per_class: bool = True

    def terms(self, shape: torch.Size | tuple[int, ...]) -> int:
        """What the loss divided by, for a model output of this shape."""
        if self.reduction == "sum" or len(shape) == 0:
            return 1
        if self.reduction == "batchmean":
            return shape[0]
        if self.per_class:
            return math.prod(shape)
        return math.prod(shape) // shape[1 if len(shape) > 1 else 0]


# A logistic or softmax output has the slope x(1 - x), at most 1/4.
_OUTPUT = 0.25
_KNOWN = {
    loss.name: loss
    for loss in (
        Loss("cross_entropy", inside=_OUTPUT, local=True, per_class=False),
        Loss("nll_loss", inside=_OUTPUT, cancels="log_softmax", local=True, per_class=False),
        Loss("binary_cross_entropy_with_logits", inside=_OUTPUT),
        Loss("binary_cross_entropy", cancels="sigmoid"),
        Loss("kl_div", inside=_OUTPUT, cancels="log_softmax"),
        Loss("mse_loss", ratio=2.0),
        Loss("half_squared_error"),
        Loss("huber_loss"),
        Loss("smooth_l1_loss"),
    )
}
_UNBOUNDED = {
    "l1_loss": "the absolute loss sends an error of full size however small the residual",
    "hinge_embedding_loss": "a hinge sends an error of full size however small the residual",
    "multi_margin_loss": "a hinge sends an error of full size however small the residual",
    "multilabel_margin_loss": "a hinge sends an error of full size however small the residual",
    "margin_ranking_loss": "a hinge sends an error of full size however small the residual",
    "soft_margin_loss": "its outputs have no target to be near to",
    "triplet_margin_loss": "its outputs have no target to be near to",
    "cosine_embedding_loss": "its outputs have no target to be near to",
    "ctc_loss": "its outputs have no target each",
    "gaussian_nll_loss": "its error grows as the predicted variance shrinks",
    "poisson_nll_loss": "its output function exp(y) has no greatest slope",
}


def resolve(loss: str | nn.Module) -> Loss:
    r"""The facts about a loss.

    Args:
        loss: The name of a function of `torch.nn.functional` for its default reduction, the mean; with ``"_sum"``
            behind it for the sum, or ``"kl_div_batchmean"``; ``"half_squared_error_sum"`` for
            :math:`\frac12\sum (x-t)^2`. Or a loss module, whose reduction, weights, delta or beta are read.

    Raises:
        InputError: If there is no such name.
        UnsupportedError: If the loss has no bound, or divides by what cannot be seen.
    """
    if isinstance(loss, nn.Module):
        return _from_module(loss)
    if not isinstance(loss, str):
        raise InputError(
            f"loss must be a name such as 'cross_entropy_sum' or a loss module, since a function does not tell "
            f"its reduction; got {loss!r}"
        )
    base, reduction = loss, "mean"
    for ending in ("sum", "mean", "batchmean"):
        if loss.endswith("_" + ending):
            base, reduction = loss.removesuffix("_" + ending), ending
    known = _KNOWN.get(base)
    if known is None:
        raise _refusal(loss, base)
    if reduction == "batchmean" and base != "kl_div":
        raise InputError(f"loss={loss!r}: only kl_div has the reduction 'batchmean'")
    return replace(known, name=f"{base}_{reduction}", reduction=_reduction(reduction, loss))


def _refusal(loss: str, base: str) -> CounterflowError:
    if base in _UNBOUNDED:
        return UnsupportedError(
            f"loss={loss!r} has no bound on error over residual (equation 10): {_UNBOUNDED[base]}; "
            "huber_loss or smooth_l1_loss have one"
        )
    return InputError(f"loss={loss!r} is not known; choose one of {', '.join(_KNOWN)}, each also with '_sum'")


def _reduction(reduction: str, loss: object) -> Reduction:
    for known in get_args(Reduction):
        if reduction == known:
            return cast(Reduction, known)
    raise UnsupportedError(
        f"loss={loss!r}: reduction={reduction!r} does not tell how the terms are put together; "
        "use reduction='sum' or 'mean'"
    )


# PyTorch's own: that none is ignored, unless targets of it are made.
_IGNORED = -100

_MODULES: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll_loss",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    nn.BCELoss: "binary_cross_entropy",
    nn.KLDivLoss: "kl_div",
    nn.MSELoss: "mse_loss",
    nn.HuberLoss: "huber_loss",
    nn.SmoothL1Loss: "smooth_l1_loss",
    nn.L1Loss: "l1_loss",
    nn.HingeEmbeddingLoss: "hinge_embedding_loss",
    nn.MultiMarginLoss: "multi_margin_loss",
    nn.MultiLabelMarginLoss: "multilabel_margin_loss",
    nn.MarginRankingLoss: "margin_ranking_loss",
    nn.SoftMarginLoss: "soft_margin_loss",
    nn.TripletMarginLoss: "triplet_margin_loss",
    nn.CosineEmbeddingLoss: "cosine_embedding_loss",
    nn.CTCLoss: "ctc_loss",
    nn.GaussianNLLLoss: "gaussian_nll_loss",
    nn.PoissonNLLLoss: "poisson_nll_loss",
}


def _from_module(loss: nn.Module) -> Loss:
    base = next((name for kind, name in _MODULES.items() if type(loss) is kind), None)
    if base is None:
        raise UnsupportedError(
            f"loss={loss!r} is not known; name the known loss that it equals, such as 'cross_entropy_sum'"
        )
    if base not in _KNOWN:
        raise _refusal(base, base)
    known = _KNOWN[base]
    reduction = _reduction(str(getattr(loss, "reduction", "mean")), loss)
    ignored = getattr(loss, "ignore_index", _IGNORED)
    if ignored != _IGNORED and reduction != "sum":
        raise UnsupportedError(
            f"loss={loss!r}: with ignore_index={ignored} its mean divides by how many targets are left, which the "
            "backward pass does not see; use reduction='sum'"
        )
    ratio = known.ratio
    weight = getattr(loss, "weight", None)
    if isinstance(weight, torch.Tensor):
        if reduction != "sum" and not known.per_class:
            raise UnsupportedError(
                f"loss={loss!r}: its mean divides by the weights of the targets, which the backward pass does not "
                "see; use reduction='sum'"
            )
        ratio *= float(weight.max())
    positive = getattr(loss, "pos_weight", None)
    if isinstance(positive, torch.Tensor):
        ratio *= max(1.0, float(positive.max()))
    if isinstance(loss, nn.SmoothL1Loss):
        if loss.beta == 0:
            raise _refusal("smooth_l1_loss with beta=0", "l1_loss")
        ratio /= float(loss.beta)
    return replace(known, name=f"{base}_{reduction}", ratio=ratio, reduction=reduction)
