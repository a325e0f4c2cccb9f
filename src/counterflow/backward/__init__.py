"""What can be done to the error on its way back: look at it, or bend it.

Transforms: `scale`, `center`, `mask`, `clip`, `noise`, several of them in a `Chain`, your own by subclassing
`Transform`. An adjoint: `shunt`. `attach` puts them on modules by pattern; `probe` only looks.
"""

from counterflow.backward import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.backward.adjoint import Adjoint
from counterflow.backward.shunting import shunt
from counterflow.backward.tap import Chain, Tap, Transform, attach
from counterflow.backward.transforms import center, clip, mask, noise, scale

__all__ = [
    "Adjoint",
    "Chain",
    "Tap",
    "Transform",
    "attach",
    "center",
    "clip",
    "mask",
    "noise",
    "scale",
    "shunt",
]
