"""The elementary transforms and the adjoint as entries of the registry, with what each declares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.backward.adjoint import Adjoint
from counterflow.backward.shunting import shunt
from counterflow.backward.tap import Chain, Transform, attach
from counterflow.backward.transforms import center, clip, mask, noise, scale
from counterflow.exceptions import UnsupportedError
from counterflow.handle import Handle
from counterflow.registry import Contract, Method, Waiver, cnn_example, mlp_example, register

__all__: list[str] = []

_EXAMPLES = (mlp_example(), cnn_example())

_FUNCTIONAL: dict[Contract, Waiver] = dict.fromkeys(
    ("grad", "vmap"),
    Waiver(
        reason="torch.func runs a model as a pure function, which cannot carry state from step to step.",
        error=UnsupportedError,
        match="torch.func cannot carry",
    ),
)


def _everywhere(transform: Transform | Adjoint) -> dict[str, Transform | Adjoint]:
    return {"*": transform}


def _every_other_unit(model: nn.Module, inputs: Tensor) -> Handle:
    first = next(model.children())
    with torch.no_grad():
        shape = first(inputs).shape[1:]
    return attach(model, {"0": mask(torch.arange(shape.numel()).reshape(shape) % 2 == 0)})


register(
    Method(
        key="identity",
        summary="Hand the error on as it is.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(scale(1.0))),
        examples=_EXAMPLES,
        identity=True,
    )
)
register(
    Method(
        key="scale",
        summary="Multiply the error by a number.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(scale(0.7))),
        examples=_EXAMPLES,
    )
)
register(
    Method(
        key="schedule",
        summary="Multiply the error by a tensor that changes while training runs.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(scale(torch.tensor(0.7, device=inputs.device)))),
        examples=_EXAMPLES,
        adds_buffers=True,
    )
)
register(
    Method(
        key="center",
        summary="Subtract the mean over the batch from every unit's error.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(center())),
        examples=_EXAMPLES,
        batch_coupled=True,
    )
)
register(
    Method(
        key="mask",
        summary="Let the error through to some units only.",
        site="tap",
        attach=_every_other_unit,
        examples=_EXAMPLES,
        adds_buffers=True,
    )
)
register(
    Method(
        key="clip",
        summary="Bound every element of the error, in units of its root mean square.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(clip(1.0))),
        examples=_EXAMPLES,
        batch_coupled=True,
    )
)
register(
    Method(
        key="clip-absolute",
        summary="Bound every element of the error by a number.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(clip(0.1, units="absolute"))),
        examples=_EXAMPLES,
        homogeneous=False,
    )
)
register(
    Method(
        key="clip-momentum",
        summary="Bound every element of the error, in units of its running root mean square.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(clip(1.0, momentum=0.9))),
        examples=_EXAMPLES,
        batch_coupled=True,
        homogeneous=False,
        stateful=True,
        waivers=_FUNCTIONAL,
    )
)
register(
    Method(
        key="noise",
        summary="Add Gaussian noise in proportion to the error's root mean square.",
        site="tap",
        attach=lambda model, inputs: attach(model, _everywhere(noise(0.1))),
        examples=_EXAMPLES,
        batch_coupled=True,
        random=True,
    )
)
register(
    Method(
        key="chain",
        summary="Several transforms in a row: center, then clip, then scale by a schedule.",
        site="tap",
        attach=lambda model, inputs: attach(
            model, _everywhere(Chain(center(), clip(1.5), scale(torch.tensor(0.5, device=inputs.device))))
        ),
        examples=_EXAMPLES,
        batch_coupled=True,
        adds_buffers=True,
    )
)
register(
    Method(
        key="shunt",
        summary="Let weights learn from centered errors, biases from the mean.",
        site="adjoint",
        attach=lambda model, inputs: attach(model, _everywhere(shunt())),
        examples=_EXAMPLES,
        paper="Schraudolph, Sejnowski, Tempering Backpropagation Networks, NIPS 1995",
        batch_coupled=True,
    )
)
