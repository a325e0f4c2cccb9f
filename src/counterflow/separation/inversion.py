r"""The inverse map in the place of the derivative: an adjoint of `MelFrames`.

In figure 1 of the paper the error leaves the perceptron for a frame *re-normalization* and a conversion from mel to
linear frequency: what was done to the spectrum is undone. For small changes that map is linear,

.. math::

   \frac{\partial E}{\partial |u_{ft}|} \leftarrow |u_{ft}|\, \frac{\sum_k M_{kf}\, \sigma_t\,
   \frac{m_{tk} + \epsilon \bar m}{m_{tk}}\, \delta_{tk}}{\sum_k M_{kf}}, \qquad \delta_t = \sum_n B_{tn}\, \delta_n

with B interpolating from the fixed number of frames back to the item's. So it can stand in the backward pass of any
model that holds `MelFrames`, and train what lies before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterflow.backward import Adjoint
from counterflow.handle import exporting
from counterflow.separation.classifier import MelFrames, magnitudes

__all__ = ["InverseMap"]

LOUDEST = 20.0


class _Undo(torch.autograd.Function):
    """(magnitudes, features, B, spread, filters) to the features; the error goes through the inverse map."""

    generate_vmap_rule = True

    @staticmethod
    def forward(magnitude: Tensor, output: Tensor, back: Tensor, spread: Tensor, filters: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        magnitude, _, back, spread, filters = inputs
        ctx.save_for_backward(magnitude, back, spread, filters)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        """The inverse map of the error, to the magnitudes."""
        magnitude, back, spread, filters = ctx.saved_tensors
        by_frame = (back @ error.to(back.dtype)) * spread
        linear = (by_frame @ filters) / filters.sum(0).clamp_min(1e-20)
        return (magnitude * linear.transpose(1, 2)).to(magnitude.dtype), None, None, None, None


class InverseMap(Adjoint):
    """Send the error of mel features back by the paper's inverse map, not by their derivative.

    Attach it to a `MelFrames` with `counterflow.attach`; ``undo()`` takes it back. The forward pass stays as it is. The
    floor keeps silent filters from being blown up: (m + floor) / m is at most 20.

    Raises:
        UnsupportedError: If it is attached to another module.

    Example:
        >>> import counterflow as cf
        >>> from counterflow.separation import WordClassifier
        >>> words = WordClassifier(["no", "yes"], 8000)
        >>> with cf.attach(words, {"features": InverseMap()}) as handle:
        ...     print(handle.table())
        Attached
        layer     kind       done
        features  MelFrames  InverseMap()
    """

    def supports(self, module: nn.Module) -> str:
        """Empty for a `MelFrames`."""
        return "" if isinstance(module, MelFrames) else "it undoes what a MelFrames does"

    def replace(self, module: nn.Module, inputs: Tensor, output: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The features again, tied to the inverse map."""
        assert isinstance(module, MelFrames)
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            seen = inputs.detach()
            seen = seen if seen.is_complex() else seen.to(torch.promote_types(seen.dtype, torch.float32))
            _, mel, floor, width = module.by_frame(seen, lengths)
            spread = width * ((mel + floor) / mel.clamp_min(1e-20)).clamp_max(LOUDEST)
            back = module.unstretch(lengths, seen.shape[-1], mel)
        filters = module.filters.to(mel)
        result: Tensor = _Undo.apply(magnitudes(inputs), output, back, spread, filters)  # type: ignore[no-untyped-call]
        return result

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or exporting():
            return output
        inputs = args[0] if args else kwargs["spectra"]
        lengths = args[1] if len(args) > 1 else kwargs.get("lengths")
        return self.replace(module, inputs, output.detach(), lengths)

    def __repr__(self) -> str:
        return "InverseMap()"
