r"""The hard competition itself: who wins each block, and the way of values and errors through the winners.

A tensor is seen as ``(rows, block, inner)``: the units of a block lie ``inner`` elements apart, one where units are the
last dimension in memory. On a CPU, float32 and float64 go through one loop of numba each way; everything else through
PyTorch's operations, with equal results.

Unit :math:`j` beats :math:`i < j` if :math:`h_j > h_i`, or if it is NaN and :math:`h_i` is not: ties go to the lower
index, and the first NaN of a block wins, so that a NaN is handed on as ReLU and max-pooling hand it on. What loses is
zero whatever it was, infinities too.

For the way back only the winners are kept, one byte a unit, not the activations. PyTorch sees the kernels in two forms:
as an `autograd.Function` that calls them without a detour, and, where it compiles, as the operators
``counterflow::compete`` and ``counterflow::route``, since what inductor makes of the same formulas is many times
slower.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from counterflow.handle import exporting

__all__ = ["compete_hard", "pass_on", "winner_mask"]


def compete_hard(x: Tensor, block: int, dim: int) -> Tensor:
    """Each block's winner, zero elsewhere.

    Args:
        x: Any shape; the size of ``dim`` is a multiple of ``block``.
        block: Units a block.
        dim: The dimension of the units, not negative.
    """
    if torch.compiler.is_compiling():
        if exporting():  # an exported model has PyTorch's operators and no others
            return torch.where(_mask(x, block, dim), x, 0.0)
        y, _ = torch.ops.counterflow.compete(x, block, dim)
    else:
        y, _ = _Compete.apply(x, block, dim)  # type: ignore[no-untyped-call]
    result: Tensor = y
    return result


def pass_on(x: Tensor, mask: Tensor) -> Tensor:
    """The elements that the mask names, zero elsewhere; only the mask is kept for the way back."""
    if exporting():
        return torch.where(mask, x, 0.0)
    if torch.compiler.is_compiling():
        result: Tensor = torch.ops.counterflow.route(x, mask)
    else:
        result = _Route.apply(x, mask)  # type: ignore[no-untyped-call]
    return result


def winner_mask(x: Tensor, block: int, dim: int) -> Tensor:
    """Which elements win their block: boolean, of ``x``'s shape. No error passes."""
    with torch.no_grad():
        return _mask(x.detach(), block, dim)


def _mask(x: Tensor, block: int, dim: int) -> Tensor:
    """The winners by PyTorch's operations."""
    units = torch.unflatten(x, dim, (-1, block)).unbind(dim + 1)
    best = units[0]
    winner = torch.zeros_like(best, dtype=torch.int16)
    for j, unit in enumerate(units[1:], 1):
        beats = ~(best >= unit) & (best == best)
        winner = torch.where(beats, j, winner)
        best = torch.where(beats, unit, best)
    return torch.stack([winner == j for j in range(block)], dim + 1).flatten(dim, dim + 1)


def _compete(x: Tensor, block: int, dim: int) -> tuple[Tensor, Tensor]:
    """Outputs and winners, both laid out in memory as ``x`` is, or without gaps where that has no format of PyTorch's.

    That is what the operators tell a compiler, too.
    """
    if not _by_numba(x) or not x.numel():
        mask = _mask(x, block, dim)
        if _plain(x):
            x = x if _dense(x) else x.contiguous()
            if mask.stride() != x.stride():
                mask = torch.empty_like(x, dtype=torch.bool).copy_(mask)
        return torch.where(mask, x, 0.0), mask
    x, inner = _laid_out(x, dim)
    y = torch.empty_like(x)
    mask = torch.empty_like(x, dtype=torch.bool)
    _competition(block, inner == 1, x.dtype)(x.data_ptr(), y.data_ptr(), mask.data_ptr(), x.numel(), inner)
    return y, mask


def _route(x: Tensor, mask: Tensor) -> Tensor:
    """The winners' values, laid out in memory as the mask is."""
    readable = _plain(mask)
    if readable and not _dense(mask):
        mask = mask.clone()  # one that vmap has expanded, say, has no entry in memory for every element
    if not (readable and _by_numba(x)):
        return torch.where(mask, x, 0.0)
    if x.stride() != mask.stride():
        # The error follows the layout of the forward pass.
        x = torch.empty_like(mask, dtype=x.dtype).copy_(x)
    y = torch.empty_like(x)
    _routing(x.dtype)(x.data_ptr(), y.data_ptr(), mask.data_ptr(), x.numel(), 1)
    return y


def _by_numba(x: Tensor) -> bool:
    # A negated view has another sign in memory.
    return _plain(x) and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.is_neg()


def _plain(x: Tensor) -> bool:
    """Whether it has memory that a kernel can read.

    A subclass has none, such as a fake tensor, nor what `torch.autograd.grad` makes of errors that are batched.
    """
    known = type(x) is Tensor or type(x) is torch.nn.Parameter
    return known and not torch._C._functorch.is_legacy_batchedtensor(x)


def _laid_out(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """``x`` without gaps in memory, and how many elements lie between two of its units."""
    if x.is_contiguous():
        return x, math.prod(x.shape[dim + 1 :])
    for form, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.ndim == ndim and x.is_contiguous(memory_format=form):
            inner = 1
            for d in () if dim == 1 else range(dim + 1, ndim):
                inner *= x.shape[d]
            return x, inner if dim == 1 else inner * x.shape[1] if dim else x[0].numel()
    return _laid_out(x.contiguous(), dim)


_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_ssize_t] * 2)
_ENTRIES: list[Any] = []


def _entry(loop: Any, dtype: torch.dtype) -> Any:
    """A loop over ``(x, y, mask, inner)`` as a C function of addresses, the number of elements, and ``inner``.

    Behind a large matrix product every line of Python is slow, since the caches hold none of it: passing addresses
    takes a fraction of the time in which numba looks at three arrays.
    """
    import numba
    from numba import types

    carray: Any = vars(numba)["carray"]
    compiled = numba.njit(boundscheck=False)(loop)
    number = types.CPointer(types.float32 if dtype == torch.float32 else types.float64)  # type: ignore[no-untyped-call]
    flags = types.CPointer(types.boolean)  # type: ignore[no-untyped-call]

    def entry(x: Any, y: Any, mask: Any, size: Any, inner: Any) -> None:
        compiled(carray(x, size), carray(y, size), carray(mask, size), inner)

    function = numba.cfunc(types.void(number, number, flags, types.intp, types.intp))(entry)
    _ENTRIES.append(function)  # whose memory the address is in
    address: Any = function.address
    return _PROTOTYPE(address)  # lets go of Python's global lock


@functools.cache
def _competition(block: int, adjacent: bool, dtype: torch.dtype) -> Any:
    """The loop for one size of blocks, compiled when first needed; the size is a constant in it, to be unrolled."""
    return _entry(_adjacent(block) if adjacent else _apart(block), dtype)


def _adjacent(block: int) -> Any:
    """Units of a block lie side by side."""
    if block == 2:

        def pairs(x: Any, y: Any, mask: Any, inner: int) -> None:
            for i in range(x.size // 2):
                a, b = x[2 * i], x[2 * i + 1]
                second = (not (a >= b)) & (a == a)
                y[2 * i] = 0.0 if second else a
                y[2 * i + 1] = b if second else 0.0
                mask[2 * i] = not second
                mask[2 * i + 1] = second

        return pairs

    if block == 4:

        def fours(x: Any, y: Any, mask: Any, inner: int) -> None:
            for i in range(x.size // 4):
                a, b, c, d = x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]
                over_a = (not (a >= b)) & (a == a)
                over_c = (not (c >= d)) & (c == c)
                left = b if over_a else a
                right = d if over_c else c
                second = (not (left >= right)) & (left == left)
                is_a, is_b = (not second) & (not over_a), (not second) & over_a
                is_c, is_d = second & (not over_c), second & over_c
                y[4 * i] = a if is_a else 0.0
                y[4 * i + 1] = b if is_b else 0.0
                y[4 * i + 2] = c if is_c else 0.0
                y[4 * i + 3] = d if is_d else 0.0
                mask[4 * i] = is_a
                mask[4 * i + 1] = is_b
                mask[4 * i + 2] = is_c
                mask[4 * i + 3] = is_d

        return fours

    def blocks(x: Any, y: Any, mask: Any, inner: int) -> None:
        for i in range(x.size // block):
            start = i * block
            best, winner = x[start], 0
            for j in range(1, block):
                value = x[start + j]
                beats = (not (best >= value)) & (best == best)
                best = value if beats else best
                winner = j if beats else winner
            for j in range(block):
                y[start + j] = 0.0
                mask[start + j] = False
            y[start + winner] = best
            mask[start + winner] = True

    return blocks


def _apart(block: int) -> Any:
    """Units of a block lie ``inner`` apart, as the channels of a picture do."""
    import numpy as np

    def planes(x: Any, y: Any, mask: Any, inner: int) -> None:
        span = min(inner, 1024)  # what is compared at a time stays in the innermost cache
        best, winner = np.empty(span, x.dtype), np.empty(span, np.int16)
        for start in range(0, x.size, block * inner):
            for low in range(0, inner, span):
                size = min(span, inner - low)
                first = x[start + low : start + low + size]
                for p in range(size):
                    best[p] = first[p]
                    winner[p] = 0
                for j in range(1, block):
                    at = start + j * inner + low
                    unit = x[at : at + size]
                    for p in range(size):
                        a, b = best[p], unit[p]
                        beats = (not (a >= b)) & (a == a)
                        best[p] = b if beats else a
                        winner[p] = j if beats else winner[p]
                for j in range(block):
                    at = start + j * inner + low
                    out, won = y[at : at + size], mask[at : at + size]
                    for p in range(size):
                        is_winner = winner[p] == j
                        won[p] = is_winner
                        out[p] = best[p] if is_winner else 0.0

    return planes


@functools.cache
def _routing(dtype: torch.dtype) -> Any:
    def route(x: Any, y: Any, mask: Any, inner: Any) -> None:
        for i in range(x.size):
            y[i] = x[i] if mask[i] else 0.0

    return _entry(route, dtype)


class _Compete(torch.autograd.Function):
    """(x, block, dim) to (outputs, winners)."""

    @staticmethod
    def forward(x: Tensor, block: int, dim: int) -> tuple[Tensor, Tensor]:
        return _compete(x, block, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: tuple[Tensor, Tensor]) -> None:
        mask = output[1]
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        # A plain backward pass need not be differentiated or mapped itself, and the detour costs as much as the loop.
        plain = not torch.is_grad_enabled() and torch._C._functorch.maybe_current_level() is None
        return _route(grad, mask) if plain else pass_on(grad, mask), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, tangent, 0.0), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, block: int, dim: int) -> Any:
        assert in_dims[0] is not None
        return _Compete.apply(x.movedim(in_dims[0], 0), block, dim + 1), (0, 0)  # type: ignore[no-untyped-call]


class _Route(torch.autograd.Function):
    """(values, winners) to the winners' values: linear, so that its backward pass is itself."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return _route(x, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return pass_on(grad, mask), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, tangent, 0.0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, mask: Tensor) -> tuple[Tensor, int]:
        x, mask = (
            part.expand(info.batch_size, *part.shape) if at is None else part.movedim(at, 0)
            for part, at in ((x, in_dims[0]), (mask, in_dims[1]))
        )
        result: Tensor = _Route.apply(x, mask)  # type: ignore[no-untyped-call]
        return result, 0


for _function in (_Compete, _Route):
    # Otherwise PyTorch binds the arguments of every call to the signature anew, which takes as long as the call.
    setattr(_function.forward, "__signature__", inspect.signature(_function.forward))  # noqa: B010


@torch.library.custom_op("counterflow::compete", mutates_args=())
def _compete_op(x: Tensor, block: int, dim: int) -> tuple[Tensor, Tensor]:
    return _compete(x, block, dim)


@torch.library.custom_op("counterflow::route", mutates_args=())
def _route_op(x: Tensor, mask: Tensor) -> Tensor:
    return _route(x, mask)


@_compete_op.register_fake
def _(x: Tensor, block: int, dim: int) -> tuple[Tensor, Tensor]:
    y = _like(x)
    return y, torch.empty_like(y, dtype=torch.bool)


@_route_op.register_fake
def _(x: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(mask, dtype=x.dtype)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x) if _dense(x) else torch.empty_like(x, memory_format=torch.contiguous_format)


def _dense(x: Tensor) -> bool:
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.is_contiguous() or (x.ndim in forms and x.is_contiguous(memory_format=forms[x.ndim]))


def _keep_mask(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[1])


def _keep_given_mask(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _back(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
    return torch.ops.counterflow.route(grad, ctx.saved_tensors[0]), None, None


def _route_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.counterflow.route(grad, ctx.saved_tensors[0]), None


_compete_op.register_autograd(_back, setup_context=_keep_mask)
_route_op.register_autograd(_route_back, setup_context=_keep_given_mask)
