"""What a step depends on or changes beside its arguments: random generators, buffers, autocast, hooks.

A step that is run again must find what it found the first time, and leave behind what was there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Buffers"]


def devices_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """The devices whose random numbers a step on these tensors can draw, the CPU first."""
    others = dict.fromkeys(tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta"))
    return [torch.device("cpu"), *others]


def generator_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """The states of the default generators of these devices."""
    return [
        torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        for device in devices
    ]


def set_generator_states(devices: Iterable[torch.device], states: Sequence[Tensor]) -> None:
    """Put them back."""
    for device, state in zip(devices, states, strict=True):
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


def moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether any generator has moved between two looks at their states."""
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def draws(modules: Iterable[nn.Module]) -> bool:
    """Whether a step of these modules may draw random numbers, even if the first one has not."""
    return any(
        part.training and getattr(part, "p" if isinstance(part, nn.modules.dropout._DropoutNd) else "dropout", 0.0) > 0
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.modules.dropout._DropoutNd | nn.RNNBase)
    )


class Buffers:
    """What a core changes beside its arguments: buffers, which are to be changed once a step and no more."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = dict.fromkeys((each, name) for module in modules for each in module.modules() for name in each._buffers)
        self._places = list(found)
        # By value: batch normalization changes its running means without telling the tensor's version.
        self._kept = [
            (value, value.clone()) if (value := module._buffers[name]) is not None else None
            for module, name in self._places
        ]

    def changed(self) -> list[str]:
        """The names of the buffers that have changed since."""
        return [
            name
            for (module, name), kept in zip(self._places, self._kept, strict=True)
            if kept is not None and (module._buffers[name] is not kept[0] or not torch.equal(*kept))
        ]

    def restore(self) -> None:
        """Make them what they were."""
        with torch.no_grad():
            for (module, name), kept in zip(self._places, self._kept, strict=True):
                if kept is not None:
                    module._buffers[name] = kept[0]
                    if not torch.equal(*kept):
                        kept[0].copy_(kept[1])


def autocasting(devices: Iterable[torch.device]) -> list[tuple[str, torch.dtype]]:
    """The kinds of these devices for which autocast is on, and what it casts to."""
    kinds = dict.fromkeys(device.type for device in devices)
    return [(kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind)]


def plainly(autocast: Sequence[tuple[str, torch.dtype]]) -> contextlib.ExitStack:
    """Go back as PyTorch does, without autocast."""
    stack = contextlib.ExitStack()
    for kind, dtype in autocast:
        stack.enter_context(torch.autocast(kind, dtype, enabled=False))
    return stack


@contextlib.contextmanager
def uncached(autocast: Sequence[tuple[str, torch.dtype]]) -> Iterator[None]:
    """Let autocast remember no cast that is made without a graph; a step with a graph would take it for its own."""
    if not autocast:
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def silenced(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Let the hooks on these leaves rest: they are to see the whole gradient once, not the part of every step."""
    hooked = [hooks for leaf in leaves if (hooks := leaf._backward_hooks)]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, those in zip(hooked, kept, strict=True):
            hooks.update(those)
