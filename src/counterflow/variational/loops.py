"""Where compiled loops can go, and normal numbers from one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["flat", "has_loops", "of_one_type", "standard_normal", "takes_loop"]

_FEW = 4096  # below, PyTorch's own are as fast, and what compiles loops need not be loaded


def has_loops(*tensors: Tensor) -> bool:
    """Whether compiled loops can go over them: float32 on the processor, and not under torch.func."""
    for each in tensors:
        if type(each) not in (Tensor, nn.Parameter) or each.device.type != "cpu":
            return False
        if each.dtype != torch.float32 or not each.is_contiguous():
            return False
    return torch._C._functorch.maybe_current_level() is None


def takes_loop(*tensors: Tensor) -> bool:
    """Whether a loop goes over them here and now: they are many, and nobody traces or derives what is computed."""
    if tensors[0].numel() < _FEW or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return has_loops(*tensors)


def of_one_type(x: Tensor, weight: Tensor) -> bool:
    """Whether passes that are written out may take them: autocast chooses types operation by operation."""
    return x.dtype == weight.dtype and not torch.is_autocast_enabled(x.device.type)


def flat(tensor: Tensor) -> np.ndarray:
    """The numbers of a contiguous tensor on the processor, in place."""
    found: np.ndarray = tensor.detach().view(-1).numpy()
    return found


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent standard normal numbers, of the type of a tensor and where it is.

    Many of them in float32 on the processor come from a counter-based generator whose key is one draw from PyTorch's:
    `torch.manual_seed` and the state of its generator rule them as they do `torch.randn`, and it takes less time.

    Args:
        shape: Of what is returned.
        like: Gives dtype and device.
    """
    if torch.compiler.is_compiling() or not has_loops(like) or torch.Size(shape).numel() < _FEW:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    from counterflow.variational import kernels

    out = torch.empty(shape, dtype=torch.float32, device=like.device)
    key = int(torch.empty((), dtype=torch.int64, device=like.device).random_())
    kernels.normals(np.uint64(key), flat(out))
    return out
