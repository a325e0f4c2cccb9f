"""`whiten`: whitened layers in a model, and the optimizer's hook that keeps them white."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from counterflow.backward.reduce import prepare_ranks
from counterflow.backward.tap import install
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, reset_compiler
from counterflow.whitening.basis import BasisKind, Ridge
from counterflow.whitening.canonical import Precondition
from counterflow.whitening.explicit import Project, Recenter
from counterflow.whitening.layers import Layer, Layers, Stand, find_layers
from counterflow.whitening.projection import Matrix, Rules, project, unwhiten
from counterflow.whitening.projections import INSIDE, Bend, Part, Unbend, find_parts
from counterflow.whitening.schedule import CLOCK, Schedule
from counterflow.whitening.statistics import Gather, add_statistics, over_loader, reset

__all__ = ["WhitenHandle", "whiten"]

_HOOKS = (Precondition, Gather, Project, Recenter, Bend, Unbend, Schedule)


class WhitenHandle(Handle):
    """What `whiten` returns: a `Handle` that projects layers, and folds them into the plain model."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        layers: Layers,
        left_alone: Sequence[Row],
        rules: Rules,
        schedule: Schedule,
        loader: Iterable[Any] | None,
        undo: Sequence[Callable[[], None]],
    ) -> None:
        super().__init__(model, self._rows, undo)
        self._optimizer, self._layers, self._rules = optimizer, layers, rules
        self._left_alone = tuple(left_alone)
        self._schedule, self._loader = schedule, loader

    def project(self) -> None:
        """Give every layer a new basis now: from the loader, or from what has been gathered since the last time.

        The function of the model stays. In a distributed run every rank must call it. Call it after a step, before the
        next backward pass: gradients that wait for a step in the canonical form stay those of the old basis.

        Raises:
            InputError: If the handle is undone, or if there is no loader and nothing has been gathered.
            UnsupportedError: If a weight in the explicit form has been pruned, normalized or parametrized since, and so
                is no parameter any more; nothing is changed then. So do a step that projects, `fold` and `undo`.
        """
        if not self.attached:
            raise InputError("this handle is undone, so there is no layer to project; call whiten() again")
        if self._loader is None and not self._examples():
            raise InputError(
                "nothing has been gathered since the last projection; pass whiten(loader=...), or call project() in "
                "the last steps before the next one is due"
            )
        self._project()
        self._write_clock()

    def fold(self) -> nn.Module:
        """A copy of the model with canonical weights and nothing else on it.

        It computes the same function at the bare model's cost, its state_dict loads into the bare model, and it can be
        exported. The model itself goes on as it is.

        Raises:
            UnsupportedError: As `project` does.
        """
        self._check_layers()
        twin = copy.deepcopy(self.model)
        if self.attached:
            _strip(twin, [replace(each, module=twin.get_submodule(each.name)) for each in self._layers])
        return twin

    def undo(self) -> None:
        """Take whitening back and keep what was learned. A second call does nothing.

        Raises:
            UnsupportedError: As `project` does; nothing is changed then.
        """
        self._check_layers()
        super().undo()

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook that the optimizer calls after each step; there is no need to call it."""
        found = getattr(optimizer, "found_inf", None)  # a fused optimizer under GradScaler is called, and skips
        if found is not None and bool(found):
            return
        schedule = self._schedule
        gathering, examples = schedule.gathering, 0
        schedule.step += 1
        if gathering:
            schedule.gathered += 1
            if not schedule.begun or schedule.window == 0:
                examples = self._examples()
        if schedule.due(examples):
            self._project()
        elif schedule.begun and schedule.window == 0:
            schedule.measure(examples)
            if not schedule.gathering:
                self._begin_anew()
        schedule.switch()
        self._write_clock()

    def _check_layers(self) -> None:
        if self.attached:
            for layer in self._layers:
                layer.check()

    def _project(self) -> None:
        self._check_layers()
        errors = self._rules.errors is not None
        if self._loader is not None:
            for layer in self._layers:
                reset(layer, errors)
            over_loader(self.model, self._layers, self._loader, self._schedule.samples)
        else:
            self._schedule.measure(self._examples())
        prepare_ranks()
        with torch.no_grad():
            project(self._layers, self._optimizer, self._rules, self._schedule.step)
        self._begin_anew()
        self._schedule.projected()
        self._schedule.switch()

    def _begin_anew(self) -> None:
        self._schedule.gathered = 0
        for layer in self._layers:
            reset(layer, self._rules.errors is not None)

    def _examples(self) -> int:
        """How many examples were gathered, by the layer that saw the fewest but some."""
        seen = torch.stack([layer["count"][1] for layer in self._layers]).tolist()
        return int(min((value for value in seen if value > 0), default=0))

    def _write_clock(self) -> None:
        self.model.get_buffer(CLOCK).copy_(self._schedule.values())

    def _rows(self) -> Table:
        if not self.attached:
            return Table("Whitened, and undone", [])
        names = [name for name, _ in self.model.named_modules()]
        rows = [*self._left_alone, *(_row(layer) for layer in self._layers)]
        schedule = self._schedule
        verb = "projected" if self._rules.adaptive is None else "looked at"
        note = f"step {schedule.step}, {verb} every {schedule.every} steps, epsilon {self._rules.epsilon:g}"

        def place(row: Row) -> int:  # that of the module, where a row is about a part of it
            return names.index(row.layer if row.layer in names else row.layer.rpartition(".")[0])

        return Table("Whitened", sorted(rows, key=place), note)


def _row(layer: Layer) -> Row:
    values: dict[str, float | int | str | None] = {"form": layer.form, "inputs": layer.inputs}
    projected = int(layer["projected"])
    if projected >= 0:
        eigenvalues = layer["eigenvalues"]
        values |= {"smallest": float(eigenvalues.min()), "largest": float(eigenvalues.max()), "projected": projected}
    if layer.drift is not None:
        values["drift"] = layer.drift
    notes = [layer.note] if layer.note else []
    refused = int(layer["refused"])
    if refused:
        what = "with NaN, infinity or inputs too large to be squared"
        notes.append(f"{refused} batch{'es' if refused > 1 else ''} {what} refused")
    if not layer.centered:
        notes.append("not centered, since it has no bias that learns")
    done = "whitened" if projected >= 0 else "not projected yet"
    return Row(layer.label, type(layer.module).__name__, done, "; ".join(notes), values)


def whiten(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int = 1000,
    samples: int = 4096,
    epsilon: float = 1e-2,
    loader: Iterable[Any] | None = None,
    initial: bool = True,
    basis: BasisKind = "pca",
    ridge: Ridge = "inside",
    matrix: Matrix = "covariance",
    form: Stand = "auto",
    adaptive: float | None = None,
    diagonal: bool = False,
    errors: float | None = None,
) -> WhitenHandle:
    r"""Whiten the inputs of every linear and convolutional layer: projected natural gradient descent.

    .. math::
        h_i = f(V_i U_{i-1} (h_{i-1} - c_{i-1}) + d_i) \quad (6), \qquad
        U = \mathrm{diag}(\lambda + \epsilon)^{-1/2} E^T \quad (7), \qquad \Sigma = E\,\mathrm{diag}(\lambda) E^T

    The optimizer moves V and d; c and U are estimated again every ``every`` steps, and V and d are then projected so
    that the function stays (algorithm 1). Do it before ``torch.compile`` and DistributedDataParallel, and after making
    the optimizer, which it hooks: the training loop needs no further line. See `counterflow.whitening` for the two
    forms. Average weights over time (`torch.optim.swa_utils.AveragedModel`) in the canonical form, or those of
    ``fold()``: V of before a projection and V of after it are in different bases, and have no mean.

    Args:
        model: Changed in place; no module, parameter or key is replaced. Buffers named ``whiten_...`` are added, and
            with them a state_dict holds all that is needed to go on.
        optimizer: Any torch optimizer but LBFGS. With `torch.optim.SGD` parameters stay canonical; with others they
            hold V and d.
        every: Steps from one projection to the next, T.
        samples: Examples that c and U are estimated from, :math:`N_s`. A convolution's pixels are samples too, but not
            counted here.
        epsilon: The ridge :math:`\epsilon > 0`: learning rates grow by :math:`1/\epsilon` at most.
        loader: What statistics are taken from, in forward passes in eval mode: an iterable of tensors, of sequences
            whose first item is the input, or of dictionaries of named arguments, augmented as in training. None
            (default): from the last training batches before each projection, in their backward passes.
        initial: Whether the first projection comes before the first step (with a loader), or as soon as ``samples``
            examples were seen; False waits for ``every`` steps.
        basis: ``"pca"`` (default) or ``"zca"``: one trajectory with SGD, another one with Adam.
        ridge: ``"inside"`` the root (default, equation 7) or ``"outside"``.
        matrix: ``"covariance"`` (default) of the centered inputs, or ``"second-moment"``, the :math:`E[hh^T]` of
            section 3.1. A layer without a bias that learns is not centered, and whitened by its second moment.
        form: ``"auto"`` (default), ``"canonical"`` or ``"explicit"``.
        adaptive: A threshold: every ``every`` steps, only those layers are projected of which
            :math:`\|U(\Sigma - \Sigma_0)U^T\|_F/\sqrt n`, the deviation of :math:`U\Sigma U^T` from what it was at
            their last projection, is larger.
        diagonal: Whether the whitened inputs are brought to unit variance in every batch by a diagonal matrix D, which
            V compensates for (end of section 3.2). Needs batches of two or more, and the canonical form.
        errors: A damping > 0: whiten errors too, :math:`W = R^T V U` (footnote 4), with
            :math:`R^T R = (E[gg^T]/\tau + \mathrm{errors} \cdot I)^{-1}` and :math:`\tau` the mean eigenvalue of
            :math:`E[gg^T]`, so that the loss's scale stays out of it. Weights and biases learn from the whitened
            error; the one handed down stays whole. Needs the canonical form, and no loader.

    Returns:
        A handle: ``table()``, ``fold()`` for the plain model, ``project()``, ``undo()``.

    Raises:
        InputError: If an argument cannot be used, or the model is wrapped, sharded or whitened already.
        UnsupportedError: If no layer can be whitened, or not in the form that is asked for.

    References:
        Desjardins, Simonyan, Pascanu, Kavukcuoglu, "Natural Neural Networks", NIPS 2015.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> x = torch.eye(3).repeat(4, 1)
        >>> h = cf.whiten(model, optimizer, every=100, loader=[x])
        >>> for row in h.table():
        ...     print(row.layer, row.kind, row.done, row.why)
        0 Linear whitened
        2 LayerNorm left alone whitening knows no linear map of the inputs in a LayerNorm
        3 Linear whitened
        >>> plain = h.fold()
        >>> torch.equal(plain(x), model(x))
        True
    """
    _check(model, optimizer, every, samples, epsilon, adaptive, errors)
    for name, value, choices in (
        ("basis", basis, get_args(BasisKind)),
        ("ridge", ridge, get_args(Ridge)),
        ("matrix", matrix, get_args(Matrix)),
        ("form", form, get_args(Stand)),
    ):
        if value not in choices:
            raise InputError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    if loader is not None and not isinstance(loader, Iterable):
        raise InputError(f"loader must be an iterable of batches, such as a DataLoader, got {type(loader).__name__}")
    if isinstance(loader, torch.Tensor):
        raise InputError("loader must be an iterable of batches, but a tensor gives one example at a time; pass [x]")
    if errors is not None and loader is not None:
        raise InputError(
            "errors are whitened by those of backward passes, which a loader has none of; leave loader out"
        )
    layers, left_alone = find_layers(model, optimizer, form, INSIDE)
    parts, others = find_parts(model, optimizer, form, not diagonal and errors is None)
    layers, left_alone = [*layers, *parts], left_alone + others
    if not layers:
        first = left_alone[0]
        raise UnsupportedError(
            f"{type(model).__name__} has no layer to whiten; {first.layer!r} ({first.kind}): {first.why}"
        )
    rules = Rules(epsilon, basis, ridge, matrix, adaptive, diagonal, errors)
    explicit = next((layer for layer in layers if layer.form == "explicit"), None)
    if explicit is not None and (diagonal or errors is not None):
        option = "diagonal=True" if diagonal else "errors"
        raise UnsupportedError(
            f"{option} needs the canonical form, but {explicit.name!r} is in the explicit one; use torch.optim.SGD "
            "with the same settings for weights and biases"
        )
    for layer in layers:
        _install(layer, rules)
    gathering = layers if loader is None else []
    for layer in gathering:
        layer.module.register_forward_hook(Gather(layer, errors is not None), with_kwargs=True)
    for module in dict.fromkeys(part.module for part in parts):
        module.register_forward_pre_hook(Bend([part for part in parts if part.module is module]), with_kwargs=True)
        # After those that gather, which may have to look inside.
        module.register_forward_hook(Unbend(), with_kwargs=True, always_call=True)
    schedule = Schedule(every, samples, initial, [layer.module for layer in gathering])
    model.register_buffer(CLOCK, schedule.values().to(layers[0].weight.device))
    model.register_load_state_dict_post_hook(schedule)  # type: ignore[no-untyped-call]
    handle = WhitenHandle(
        model, optimizer, layers, left_alone, rules, schedule, loader, [lambda: _strip(model, layers, optimizer)]
    )
    try:
        if loader is not None and initial:
            handle.project()
    except BaseException:
        handle.undo()
        raise
    hook = optimizer.register_step_post_hook(handle.after_step)
    handle._undo.append(hook.remove)
    reset_compiler()
    return handle


def _check(
    model: nn.Module,
    optimizer: Optimizer,
    every: int,
    samples: int,
    epsilon: float,
    adaptive: float | None,
    errors: float | None,
) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedError("LBFGS takes several steps in one, between which nothing can be projected; use SGD")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        raise InputError(
            f"model is a {type(model).__name__} already; call whiten before torch.compile and DistributedDataParallel"
        )
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):  # not every torch has DTensor
        raise InputError(
            f"this {type(model).__name__} has sharded parameters (DTensor, as of fully_shard), and whiten needs whole "
            "ones; use DistributedDataParallel, and call whiten before it"
        )
    if any(name.rpartition(".")[2].startswith("whiten_") for name, _ in model.named_buffers()):
        raise InputError(f"this {type(model).__name__} is whitened already; undo() that first")
    for name, count in (("every", every), ("samples", samples)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {count!r}")
    for name, number, needed in (("epsilon", epsilon, True), ("adaptive", adaptive, False), ("errors", errors, False)):
        if number is None and not needed:
            continue
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise InputError(f"{name} must be a number > 0, got {number!r}")


def _install(layer: Layer, rules: Rules) -> None:
    """Put the buffers and hooks of a layer on its module."""
    n = layer.inputs
    new = {"mean": layer.vectors(n), "eigenvalues": layer.vectors(n)}
    new["projected"] = torch.tensor(-1, device=layer.weight.device)
    if layer.form == "explicit" or rules.diagonal:
        new["basis"] = layer.matrices(n, 1.0)
    else:
        new["metric"] = layer.matrices(n, 1.0)
    if rules.diagonal:
        new["slack"] = layer.vectors(n)
    if rules.adaptive is not None:
        new["covariance"] = layer.matrices(n)
    if rules.errors is not None:
        new["error_metric"] = layer.matrices(layer.outputs, 1.0)
    layer.add_buffers(new)
    add_statistics(layer, rules.errors is not None)
    if isinstance(layer, Part):
        return
    if layer.form == "canonical":
        install(layer.module, Precondition(layer, rules.diagonal, rules.errors is not None), layer.module)
        return
    convolution = layer.weight.ndim > 2
    layer.module.register_forward_pre_hook(Project(layer.groups if convolution else None), with_kwargs=True)
    if convolution:
        layer.module.register_forward_hook(Recenter(), prepend=True, with_kwargs=True)


def _strip(model: nn.Module, layers: Layers, optimizer: Optimizer | None = None) -> None:
    """Make the parameters canonical and take our hooks and buffers off."""
    for layer in layers:
        unwhiten(layer, optimizer)
    for layer in layers:  # only now, since one part's prefix may begin another's
        layer.remove_buffers()
        vars(layer.module).pop(Gather.SWITCH, None)
    for module in model.modules():
        # By class, since a copy of the model has copies of the hooks and no handles to remove them by.
        for kind in ("forward_pre_hooks", "forward_hooks", "load_state_dict_post_hooks"):
            hooks = getattr(module, f"_{kind}")
            for key in [key for key, hook in hooks.items() if isinstance(hook, _HOOKS)]:
                del hooks[key]
                for extra in ("with_kwargs", "always_called"):
                    getattr(module, f"_{kind}_{extra}", {}).pop(key, None)
    model._buffers.pop(CLOCK, None)
