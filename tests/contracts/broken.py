"""Methods that break one contract each, to show that the suite notices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from counterflow.backward import Transform, attach, center, scale
from counterflow.backward.tap import State
from counterflow.exceptions import UnsupportedError
from counterflow.handle import Handle, Table
from counterflow.registry import Contract, Method, Waiver, mlp_example

Attach = Callable[[nn.Module, Tensor], Handle]


class Halve(torch.autograd.Function):
    """Identity forward; a fraction of the error backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        return error * ctx.factor, None


class OldStyle(torch.autograd.Function):
    """A Function without `setup_context`, which torch.func refuses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:
        return 0.5 * error


class CountInForward:
    """A hook that counts forward passes, and passes on less error in each."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        self.count += 1
        return Halve.apply(output, 0.5**self.count)


class CountInBuffer:
    """A hook that changes a buffer in the forward pass."""

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        module.get_buffer("seen").add_(1)
        return Halve.apply(output, 0.5)


def breaks_graph(module: nn.Module, args: Any, output: Tensor) -> Any:
    return Halve.apply(output, 0.5 if float(output.detach().sum()) < 1e9 else 0.4)


class Sign(Transform):
    """Not homogeneous, and does not say so."""

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return error.sign()


class OwnBatch(Transform):
    """Centers over this rank's batch, and over a batch of one too."""

    batch_coupled = True

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return error - error.mean(0, keepdim=True)


class Doubles(Transform):
    """Twice the error in one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return error * (2.0 if error.dtype == self.dtype else 1.0)


class SharedState(Transform):
    """Counts on itself, and lets no copy have a count of its own."""

    count = 0

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        self.count += 1
        return error / self.count

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Buffered(Transform):
    """Adds a buffer."""

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return 0.5 * error

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        return {"extra": (torch.zeros(()), True)}


class Refuses(Transform):
    """Says that it cannot."""

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        raise UnsupportedError("not today")


def tapped(transform: Callable[[], Transform]) -> Attach:
    return lambda model, inputs: attach(model, {"*": transform()})


def hooked(make_hook: Callable[[], Callable[..., Any]]) -> Attach:
    """A forward hook of one's own on the first layer."""

    def attach_hook(model: nn.Module, inputs: Tensor) -> Handle:
        handle = model.get_submodule("0").register_forward_hook(make_hook())
        return Handle(model, Table("Hooked", []), [handle.remove])

    return attach_hook


def left_behind(model: nn.Module, inputs: Tensor) -> Handle:
    model.get_submodule("0").register_forward_hook(lambda module, args, output: None)
    return attach(model, {"0": scale(0.5)})


def counting(model: nn.Module, inputs: Tensor) -> Handle:
    first = model.get_submodule("0")
    first.register_buffer("seen", torch.zeros(()))
    handle = first.register_forward_hook(CountInBuffer())
    return Handle(model, Table("Hooked", []), [handle.remove, lambda: delattr(first, "seen")])


def wrapped(model: nn.Module, inputs: Tensor) -> Handle:
    model.add_module("0", nn.Sequential(model.get_submodule("0")))
    return attach(model, {"1": scale(0.5)})


def new_parameters(model: nn.Module, inputs: Tensor) -> Handle:
    first = model.get_submodule("0")
    first.register_parameter("weight", nn.Parameter(first.get_parameter("weight").detach().clone()))
    return attach(model, {"1": scale(0.5)})


def broken(key: str, attach: Attach, **declared: Any) -> Method:
    return Method(key=key, summary="Broken.", site="tap", attach=attach, examples=(mlp_example(),), **declared)


def waiver(match: str) -> dict[Contract, Waiver]:
    return {"grad": Waiver("It is said not to work.", UnsupportedError, match)}


METHODS: list[tuple[Method, Contract]] = [
    (broken("changes-forward", hooked(lambda: lambda module, args, output: output * 1.001)), "forward"),
    (broken("changes-a-buffer-in-forward", counting, adds_buffers=True), "forward"),
    (broken("is-not-the-identity", tapped(lambda: scale(0.5)), identity=True), "identity"),
    (broken("is-the-identity-unsaid", tapped(lambda: scale(1.0))), "identity"),
    (broken("changes-keys", wrapped), "state_dict"),
    (broken("adds-buffers-unsaid", tapped(Buffered)), "state_dict"),
    (broken("keeps-no-state", tapped(Buffered), stateful=True), "state_dict"),
    (broken("exchanges-parameters", new_parameters), "parameters"),
    (broken("exchanges-modules", wrapped), "parameters"),
    (broken("leaves-a-hook", left_behind), "undo"),
    (broken("shares-state", tapped(SharedState)), "deepcopy"),
    (broken("breaks-the-graph", hooked(lambda: breaks_graph)), "compile"),
    (broken("is-old-style", hooked(lambda: lambda module, args, output: OldStyle.apply(output))), "grad"),
    (broken("couples-a-batch-of-one", tapped(OwnBatch), batch_coupled=True), "vmap"),
    (broken("counts-forward-passes", hooked(CountInForward)), "checkpoint"),
    (broken("differs-in-bfloat16", tapped(lambda: Doubles(torch.bfloat16))), "amp"),
    (broken("takes-float16", tapped(Sign), homogeneous=False), "amp"),
    (broken("couples-the-batch-unsaid", tapped(center)), "accumulation"),
    (broken("differs-in-float64", tapped(lambda: Doubles(torch.float64))), "double"),
    (broken("is-not-homogeneous", tapped(Sign)), "scaling"),
    (broken("is-homogeneous-unsaid", tapped(lambda: scale(0.5)), homogeneous=False), "scaling"),
    (broken("forgets-the-other-ranks", tapped(OwnBatch), batch_coupled=True), "ddp"),
    (broken("needs-no-waiver", tapped(lambda: scale(0.5)), waivers=waiver("torch.func")), "grad"),
    (
        broken(
            "has-another-error",
            tapped(Refuses),
            waivers=waiver("this is not what it says"),
        ),
        "grad",
    ),
]
"""Each with the contract that it breaks."""
