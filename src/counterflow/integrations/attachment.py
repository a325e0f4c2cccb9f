"""What the integrations share: a verb on a model and its optimizer, and what must survive a restart."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from counterflow.backward.probe import Probe
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle
from counterflow.integrations.groups import Part, divide
from counterflow.integrations.probe_log import log_probe
from counterflow.tempering import TemperHandle
from counterflow.variational import VariationalHandle, kl

__all__ = ["UNSAID", "Attachment", "Weight"]

UNSAID: Final = "unsaid"  # where None has a meaning
STATE = "counterflow"  # the key in an optimizer's state_dict
Weight = float | Callable[[int], float]


class Attachment:
    """One verb on one model, before and after there is an optimizer.

    Args:
        verb: A function of a model, or of a model and an ``optimizer``, that returns a handle.
        arguments: Of the verb, after these.
        options: Of the verb, by name.
        on: The dotted name of the module that is meant; ``""`` is the model itself.
        data_size: For `counterflow.make_variational`: examples of the training set. None where the loss has the
            divergence in it already.
        kl_weight: What the divergence is multiplied by: a number, or a function of the steps taken.
        log_every: For `counterflow.probe`: how many steps lie between two entries of its table in a log.

    Raises:
        InputError: If an option is not for this verb, or out of range.
    """

    def __init__(
        self,
        verb: Callable[..., Handle],
        arguments: tuple[Any, ...],
        options: Mapping[str, Any],
        *,
        on: str,
        data_size: int | str | None,
        kl_weight: Weight,
        log_every: int | None,
    ) -> None:
        if not callable(verb):
            raise InputError(f"the verb must be a function of a model such as cf.whiten, got {type(verb).__name__}")
        names = list(inspect.signature(verb).parameters)
        self.takes_optimizer = names[1:2] == ["optimizer"]
        self.verb, self.arguments, self.options = verb, arguments, dict(options)
        self.name = str(getattr(verb, "__name__", type(verb).__name__))
        self.on, self.data_size, self.kl_weight, self.log_every = on, data_size, kl_weight, log_every
        for name, number in (("data_size", data_size), ("log_every", log_every)):
            whole = isinstance(number, int) and not isinstance(number, bool) and number >= 1
            if not whole and number not in (None, UNSAID):
                raise InputError(f"{name} must be a whole number >= 1, got {number!r}")
        self.log: Callable[[dict[str, float], int], None] | None = None
        self.step = 0
        self.made: Handle | None = None
        self._key = ""  # of what is its own in the optimizer's state_dict
        self._hooks: list[Any] = []
        self._divided: weakref.ref[Optimizer] | None = None  # whose groups have the tempered rates already

    @property
    def handle(self) -> Handle:
        """What the verb returned.

        Raises:
            InputError: If it has not been called yet.
        """
        if self.made is None:
            raise InputError(f"{self.name} has not been attached yet: it is when training begins")
        return self.made

    def on_model(self, root: nn.Module, optimizer: Optimizer | None = None) -> Handle:
        """Call the verb, and put what it returns where the model is that it was called with."""
        try:
            model = root.get_submodule(self.on)
        except AttributeError as error:
            raise InputError(f"on={self.on!r} names no module of this {type(root).__name__}") from error
        first = (optimizer,) if self.takes_optimizer else ()
        handle = self.verb(model, *first, *self.arguments, **self.options)
        if not isinstance(handle, Handle):
            raise InputError(f"{self.name} returned no handle but a {type(handle).__name__}; it is no verb")
        try:
            self._check(handle)
            if handle.model is not model:
                if not self.on:
                    raise UnsupportedError(
                        f"{self.name} exchanges this {type(model).__name__} itself, which the framework holds on to; "
                        "make it a child of another module, and name it by on=..."
                    )
                root.set_submodule(self.on, handle.model)
        except Exception:
            handle.undo()
            raise
        self.made = handle
        return handle

    def on_optimizer(
        self, optimizer: Optimizer, schedulers: Iterable[LRScheduler] = (), *, closure: bool = False
    ) -> None:
        """Make the optimizer's groups those of the handle, once, and hook it.

        Args:
            optimizer: Torch's own, not a wrapper.
            schedulers: All that are on it.
            closure: Whether gradients are computed within the optimizer's step, after its hooks: the caller then calls
                `add_divergence` itself.
        """
        handle, schedulers = self.handle, tuple(schedulers)
        if isinstance(handle, TemperHandle) and (self._divided is None or self._divided() is not optimizer):
            divide(optimizer, schedulers, lambda group: _tempered(handle, group))
            self._divided = weakref.ref(optimizer)
        if isinstance(handle, VariationalHandle):
            _adopt(optimizer, schedulers, handle.rates())
            if not closure:
                self._hooks.append(optimizer.register_step_pre_hook(lambda *_: self.add_divergence(optimizer)))
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._after_step()))
        self._key = self._free_key(optimizer)
        self._hooks.append(optimizer.register_state_dict_post_hook(self._save))
        self._hooks.append(optimizer.register_load_state_dict_pre_hook(self._load))

    def let_go(self) -> None:
        """Take the hooks off the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()

    def add_divergence(self, optimizer: Optimizer, loss_scale: float = 1.0) -> None:
        """Add the gradient of the divergence to what has been accumulated; once a step of the optimizer.

        Args:
            optimizer: Whose step comes next.
            loss_scale: What a gradient scaler has multiplied the gradients by, where it has not told the optimizer yet.
        """
        handle = self.handle
        if not (handle.attached and isinstance(handle, VariationalHandle) and isinstance(self.data_size, int)):
            return
        weight = self.kl_weight(self.step) if callable(self.kl_weight) else self.kl_weight
        scale: Tensor | float | None = getattr(optimizer, "grad_scale", None)  # a fused optimizer undoes it by itself
        learned = [p for p in handle.model.parameters() if p.requires_grad]
        with torch.enable_grad():
            total = kl(handle.model) * (weight / self.data_size)
            if not total.requires_grad:
                return
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(total, learned, allow_unused=True)
        for parameter, gradient in zip(learned, gradients, strict=True):
            if gradient is None:
                continue
            gradient = gradient * loss_scale if scale is None else gradient * (scale * loss_scale)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _check(self, handle: Handle) -> None:
        variational = isinstance(handle, VariationalHandle)
        if variational and self.data_size == UNSAID:
            raise InputError(
                "make_variational needs data_size=..., the examples of the training set, so that the divergence can be "
                "added; say data_size=None where your loss has it already (cf.variational.elbo)"
            )
        if not variational and self.data_size != UNSAID:
            raise InputError(f"data_size is for cf.make_variational, not for {self.name}; leave it out")
        if not variational and self.kl_weight != 1.0:
            raise InputError(f"kl_weight is for cf.make_variational, not for {self.name}; leave it out")
        if self.log_every is not None and not isinstance(handle, Probe):
            raise InputError(f"log_every is for cf.probe, not for {self.name}; leave it out")

    def _after_step(self) -> None:
        self.step += 1
        handle = self.handle
        due = self.log_every and self.step % self.log_every == 0
        if due and self.log is not None and handle.attached and isinstance(handle, Probe):
            log_probe(handle, self.log, self.step)

    def _free_key(self, optimizer: Optimizer) -> str:
        """The verb and where it is; with a number where the same verb is there already, as a second probe may be."""
        hooks = optimizer._optimizer_state_dict_post_hooks.values()
        others = (getattr(hook, "__self__", None) for hook in hooks)
        taken = {other._key for other in others if isinstance(other, Attachment)}
        key = first = f"{self.name}({self.on})"
        number = 1
        while key in taken:
            number += 1
            key = f"{first}#{number}"
        return key

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        mine: dict[str, Any] = {"step": self.step}
        if isinstance(self.handle, Probe):
            mine["probe"] = self.handle.state_dict()
        return {**state, STATE: {**state.get(STATE, {}), self._key: mine}}

    def _load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        mine = state.get(STATE, {}).get(self._key)
        if mine is None:  # of before it was attached
            return
        self.step = int(mine["step"])
        if isinstance(self.handle, Probe):
            self.handle.load_state_dict(mine["probe"])


def _tempered(handle: TemperHandle, group: dict[str, Any]) -> list[Part]:
    rate = float(group.get("initial_lr", group["lr"]))  # a scheduler may have changed the present one
    own = {id(p) for p in group["params"]}
    found = []
    for each in handle.param_groups(lr=rate):
        chosen = [p for p in each["params"] if id(p) in own]
        found.append(Part(chosen, each["lr"] / rate, {"name": each["name"]}))
    return found


def _adopt(optimizer: Optimizer, schedulers: Iterable[LRScheduler], rates: list[nn.Parameter]) -> None:
    """Give the rates a group without weight decay, which would pull them towards a rate that nobody chose."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in rates if id(p) not in known]
    first = optimizer.param_groups[0]
    first["params"].extend(new)
    if new and "param_names" in first:
        first["param_names"].extend(f"rate.{number}" for number in range(len(new)))
    wanted = {id(p) for p in rates}

    def parts(group: dict[str, Any]) -> list[Part]:
        changes = {"weight_decay": 0.0} if "weight_decay" in group else {}
        return [Part([p for p in group["params"] if id(p) in wanted], 1.0, changes)]

    divide(optimizer, schedulers, parts)
