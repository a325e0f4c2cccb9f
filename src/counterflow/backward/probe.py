r"""A probe looks at the error :math:`\delta` that reaches each layer's output, and changes nothing.

With samples :math:`i = 1 \dots B` (the examples of a batch) and elements :math:`j = 1 \dots F` of one example's error,
:math:`\langle\delta_j\rangle = \frac 1B \sum_i \delta_{ij}` the mean over the batch and
:math:`s_j^2 = \frac{1}{B-1} \sum_i (\delta_{ij} - \langle\delta_j\rangle)^2`, the statistics of a step are

======================== =============================================================================================
``rms``                  :math:`\sqrt{\frac{1}{BF} \sum_{ij} \delta_{ij}^2}`, the error's size
``mean share``           :math:`B \sum_j \langle\delta_j\rangle^2 / \sum_{ij} \delta_{ij}^2`, the share of its energy
                         that lies in its batch mean (its d.c. component), 0 to 1
``sparsity``             the share of exact zeros
``signal/noise``         :math:`\sqrt{\sum_j \langle\delta_j\rangle^2 / \sum_j (s_j^2 / B)}`, the mean error against its
                         standard error: about 1 where the mean is nothing but noise
``drift``                the cosine between the mean errors of two successive steps: 1 where the error points where it
                         pointed a step ago, 0 where it has forgotten
======================== =============================================================================================

In eager mode a layer's output gets a tensor hook, which adds nothing to the graph: gradients are those of the bare
model to the bit. Compiled code gets an `autograd.Function` around an opaque operator instead.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from statistics import median
from time import thread_time
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from counterflow.backward._probe_plot import draw
from counterflow.backward._statistics import STATISTICS, ErrorStatistics, kernel
from counterflow.backward.tap import batch_dims, never_called
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select
from counterflow.registry import Method, Waiver, cnn_example, mlp_example, register

__all__ = ["Probe", "probe"]

_TRIAL = 8  # steps that are looked at one after another, to choose k
_SHARE = 0.06  # of a step's time that looking may take; a tenth is promised
_HIDDEN = 2.0  # what looking takes over what is measured inside of it: the calls of hooks, colder caches


class Probe(Handle):
    """What `probe` returns: a `Handle` whose table fills as the model learns.

    Its table stays readable after the ``with`` block.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[tuple[str, nn.Module]],
        left_alone: Sequence[Row],
        every: int | None,
    ) -> None:
        self._clock = _Clock(every)
        self._watches = [_Watch(name, module, self._clock) for name, module in layers]
        self._left_alone = {row.layer: row for row in left_alone}
        self._order = {name: index for index, (name, _) in enumerate(model.named_modules())}
        self._clock.on_choice = self._restart_drift
        hooks = [model.register_forward_pre_hook(self._clock)]
        for (_, module), watch in zip(layers, self._watches, strict=True):
            hooks.append(module.register_forward_hook(watch))
            self._clock.places.append((cast(OrderedDict[int, Any], module._forward_hooks), hooks[-1].id, watch))
        hooks.append(model.register_forward_hook(_ForwardEnd(self._clock)))
        undo: list[Callable[[], None]] = [hook.remove for hook in hooks]
        super().__init__(model, self._make_table, [self._stop, *undo])

    @property
    def steps(self) -> int:
        """How many steps there were, looked at or not."""
        return self._clock.step + 1

    @property
    def every(self) -> int:
        """The ``k`` of "every k-th step is looked at"; 1 until it has been chosen."""
        return self._clock.every

    def history(self, layer: str) -> dict[str, npt.NDArray[np.float64]]:
        """The statistics of one layer step by step.

        Args:
            layer: As named in the table.

        Returns:
            ``"step"`` and each statistic by name, one element a step that was looked at, NaN where it is not
            defined. Past a thousand steps or so the history is thinned out evenly.

        Raises:
            InputError: If no error of such a layer was seen.
        """
        seen = {name: statistics for name, _, statistics in self._seen()}
        if layer not in seen:
            names = ", ".join(map(repr, seen)) or "none yet"
            raise InputError(f"no error of a layer {layer!r} was seen; layers whose error was seen: {names}")
        return seen[layer].history()

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the error's path from the output to the input, and its size over the steps.

        Args:
            path: The picture's file; its suffix says what kind (``.png``, ``.svg``, ``.pdf``). Replaced if there.

        Raises:
            InputError: If the suffix is unknown, the folder does not exist or cannot be written to, or no error has
                been seen yet.
            MissingExtraError: If matplotlib is not installed.
        """
        layers = {name: statistics.history() for name, _, statistics in self._seen(by_arrival=True)}
        title = f"The error on its way from the output (top) to the input · {self.steps} step{'s' * (self.steps != 1)}"
        if self.every > 1:
            title += f", every {_ordinal(self.every)} looked at"
        draw(path, layers, title)

    def recent(self) -> dict[str, dict[str, float | None]]:
        """The averages of the table over the steps since this was asked last: what a logger wants every k steps.

        Returns:
            By layer, each statistic by name; None where it was not defined, or no error was seen.
        """
        return {name: statistics.recent() for name, _, statistics in self._seen()}

    def state_dict(self) -> dict[str, Any]:
        """What was seen, as tensors and numbers: for a checkpoint between two steps."""
        layers = {
            watch.name: {
                "arrival": watch.arrival,
                "outputs": {path: statistics.state() for path, statistics in watch.statistics.items()},
            }
            for watch in self._watches
        }
        clock = self._clock
        return {"step": clock.step, "every": clock.every, "chosen": clock.chosen, "layers": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, as if nothing had happened in between.

        An ``every`` that this probe was told stands; else the one that the saved probe had chosen is taken over.

        Raises:
            InputError: If the probe that was saved looked at other layers.
        """
        mine, saved = {watch.name for watch in self._watches}, set(state["layers"])
        if mine != saved:
            other = ", ".join(map(repr, sorted(mine ^ saved)))
            raise InputError(f"the saved probe looked at other layers (the two differ in {other}); give it the same")
        clock = self._clock
        clock.step = int(state["step"])
        if state["chosen"] and not clock.told:
            clock.settle(int(state["every"]))
        for watch in self._watches:
            entry = state["layers"][watch.name]
            watch.arrival = entry["arrival"]
            watch.statistics = {path: ErrorStatistics() for path in entry["outputs"]}
            for path, statistics in watch.statistics.items():
                statistics.restore(entry["outputs"][path])

    def _seen(self, by_arrival: bool = False) -> list[tuple[str, _Watch, ErrorStatistics]]:
        """Name, watch and statistics of every output whose error was seen; the first such bears the layer's name."""
        found = []
        for watch in self._watches:
            for index, (path, statistics) in enumerate(sorted(watch.statistics.items())):
                found.append((watch.name + (path if index else ""), watch, statistics))
        if by_arrival:
            found.sort(key=lambda entry: entry[1].arrival)
        return found

    def _make_table(self) -> Table:
        rows: dict[str, list[Row]] = {name: [row] for name, row in self._left_alone.items()}
        for watch in self._watches:
            if not watch.statistics:
                why = "no error arrived: " + (watch.reason or "its output does not lead to what was differentiated")
                empty: dict[str, float | int | str | None] = dict.fromkeys((*STATISTICS, "every"), None)
                rows[watch.name] = [Row(watch.name, watch.kind, "nothing seen", why, {**empty, "steps": 0})]
        for name, watch, statistics in self._seen():
            averages = statistics.averages()
            rms = averages["rms"]
            path = next(path for path, candidate in watch.statistics.items() if candidate is statistics)
            plain = path in ("", "[0]") and len(watch.statistics) == 1
            why = "" if plain else f"the error of output{path}"
            if rms is not None and not math.isfinite(rms):
                why = "the error was infinite or NaN, in some steps at least"
            elif averages["mean share"] is None and averages["sparsity"] != 1.0:
                why = "mean share and signal/noise need two examples or more in a step, all of one size"
            values = {**averages, "steps": statistics.steps, "every": self.every}
            rows.setdefault(watch.name, []).append(Row(name, watch.kind, "seen", why, values))
        ordered = sorted(rows, key=lambda name: self._order.get(name, -1))
        return Table("Error", [row for name in ordered for row in rows[name]], self._note())

    def _note(self) -> str:
        if not self._seen():
            return "No error has been seen: call backward() while the probe is attached, inside the `with` block."
        k = self.every
        text = f"Averages over the steps looked at: {'all' if k == 1 else f'every {_ordinal(k)}'} of {self.steps}"
        if self._clock.chosen and k > 1:
            text += f" (the first {_TRIAL} one after another), so that looking costs less than a tenth of the time"
        if k > 1:
            text += f"; drift is over {k} steps"
        return text + "."

    def _restart_drift(self) -> None:
        for _, _, statistics in self._seen():
            statistics.restart_drift()

    def _stop(self) -> None:
        self._clock.places.clear()
        for watch in self._watches:
            watch.attached = False
            for statistics in watch.statistics.values():
                statistics.release()


class _Clock:
    """Counts the steps and says which are looked at: the forward pre-hook of the model.

    A step is a forward pass of the whole model with gradients. Where that cannot be seen (compiled code does not run
    this hook, and not every model is called through its ``forward``), it is a backward pass.
    """

    def __init__(self, every: int | None) -> None:
        self.step = -1
        self.every = every or 1
        self.chosen = False
        self.looking = True  # whether outputs get a hook in this forward pass
        self.spent = 0.0  # seconds spent on looking in this step
        self.on_choice: Callable[[], None] = lambda: None
        self.places: list[tuple[OrderedDict[int, Any], int, _Watch]] = []  # where the hooks of the layers stand
        self.told = every is not None
        self._choosing = not self.told
        self._trial: list[tuple[float, float]] = []  # seconds of each step, and of looking in it
        self._began = 0.0
        self.counts_forward = False
        self.pending = False  # whether no error has arrived since the forward pass
        self._away = False
        self._without_gradients = False
        self._backward = -1
        self._sampled = True

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if not torch.is_grad_enabled():
            self._without_gradients = True
            return
        _refuse_transforms()
        # Within a backward pass this is a checkpointed model that runs again. Of the two forms of checkpointing, one
        # ran it without gradients before, so that it counts now.
        if torch._C._current_graph_task_id() != -1 and not self._without_gradients:
            return
        self._without_gradients = False
        self.counts_forward = self.pending = True
        self._advance()
        self.looking = self._sampled
        if self._choosing:
            self._try()
        self.put_back()
        if self.looking:
            # Outermost, whatever was attached since, as they stand after being away.
            for hooks, key, _ in self.places:
                hooks.move_to_end(key)
        else:
            # Even an idle hook costs a small layer some percent of its time.
            for hooks, key, _ in self.places:
                hooks.pop(key, None)
            self._away = True

    def put_back(self) -> None:
        """Put the hooks back where they were taken away for a forward pass."""
        if self._away:
            for hooks, key, watch in self.places:
                hooks[key] = watch
            self._away = False

    def tick(self, compiled: bool) -> bool:
        """Called for each error that arrives; says whether to look at it."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            if self.pending:
                self.pending = False
            elif compiled or not self.counts_forward:
                self._advance()
        return self._sampled or (self.counts_forward and not compiled)

    def settle(self, every: int) -> None:
        """Take over a k that was chosen before a restart."""
        self.every, self.chosen, self._choosing = every, True, False

    def _advance(self) -> None:
        self.step += 1
        self._sampled = self.step % self.every == 0

    def _try(self) -> None:
        """Note what the last step took; after some, choose k.

        By this thread's own clock, which stands still while others have the processor: a step is long enough to be held
        up by them, and looking at one error is not.
        """
        now = thread_time()
        if self.step > 1:  # the first step is slow for other reasons
            self._trial.append((now - self._began, self.spent))
        self._began, self.spent = now, 0.0
        if len(self._trial) < _TRIAL - 1:
            return
        self._choosing = False
        # Medians, since any one step may have been held up by something else.
        total = median(total for total, _ in self._trial)
        looking = _HIDDEN * median(spent for _, spent in self._trial)
        bare = max(total - looking, 0.1 * total)
        # A coarse clock may have stood still.
        self.every = max(1, math.ceil(looking / (_SHARE * bare))) if bare > 0 else 1
        self.chosen = True
        if self.every > 1:
            self.on_choice()
            self._sampled = self.looking = self.step % self.every == 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _Nothing, ()


class _ForwardEnd:
    """The forward hook of the model: whoever compiles or copies it between two steps finds all hooks in place."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.clock.put_back()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Nothing, ()


class _Watch:
    """Looks at the error of one layer: the forward hook that is attached to it."""

    _keys = itertools.count()

    def __init__(self, name: str, module: nn.Module, clock: _Clock) -> None:
        self.name, self.kind = name, type(module).__name__
        self.clock = clock
        self.attached = True
        self.reason = "it was never called with gradients"
        self.arrival = 0
        self.statistics: dict[str, ErrorStatistics] = {}
        self._batches: dict[int, int] = {}  # which dimension counts examples, by the number of dimensions
        self.key = next(self._keys)
        # Counts the errors that compiled code has shown: what the operator below is known to change.
        self.shown = torch.zeros((), dtype=torch.int64)
        _WATCHES[self.key] = self

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._trace(module, output)
        clock = self.clock
        if not clock.looking or not torch.is_grad_enabled():
            return None
        began = thread_time()
        if not clock.counts_forward:
            _refuse_transforms()
        if isinstance(output, Tensor):
            if output.requires_grad:
                result = self._hook(output, args, "", self._plain_batch(module, output))
            else:
                self.reason = "nothing below its output learns"
                result = output
        else:
            result = self._hook_each(module, args, output)
        clock.spent += thread_time() - began
        return result

    def _hook(self, output: Tensor, args: tuple[Any, ...], path: str, batch: int) -> Tensor:
        """The output, whose error will be seen: the same tensor wherever a hook can stand on it."""
        # On a leaf a hook would stay for good; on a view the next in-place operation would lose it; and on what is
        # the layer's input too, it would see the error that comes by other ways.
        if output.is_leaf or output._is_view() or (args and output is args[0]):
            return _LookForwardMode.apply(output, self.shown, self.key, path, batch)  # type: ignore[no-untyped-call, no-any-return]
        output.register_hook(functools.partial(self.see, path, batch))  # type: ignore[no-untyped-call]
        return output

    def _hook_each(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        entries, tree = tree_flatten_with_path(output)
        leaves = []
        for index, (path, leaf) in enumerate(entries):
            if isinstance(leaf, PackedSequence) and leaf.data.requires_grad:
                data = self._hook(leaf.data, (), keystr(path), _batch(module, output, leaf.data, index))
                if data is not leaf.data:
                    leaf = PackedSequence(data, *leaf[1:])
            elif isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf = self._hook(leaf, args, keystr(path), _batch(module, output, leaf, index))
            leaves.append(leaf)
        same = all(new is old for new, (_, old) in zip(leaves, entries, strict=True))
        return output if same else tree_unflatten(leaves, tree)

    def _plain_batch(self, module: nn.Module, output: Tensor) -> int:
        if output.ndim not in self._batches:
            self._batches[output.ndim] = _batch(module, output, output, 0)
        return self._batches[output.ndim]

    def see(self, path: str, batch: int, error: Tensor | None, compiled: bool = False) -> None:
        """Look at an error. Called in the backward pass."""
        clock = self.clock
        if error is None or not self.attached:
            return
        if (compiled or not clock.counts_forward or clock.pending) and not clock.tick(compiled):
            return
        began = thread_time()
        statistics = self.statistics.get(path)
        if statistics is None:
            statistics = self.statistics[path] = ErrorStatistics()
            self.arrival = self.arrival or next(_arrivals)
        statistics.add(error, batch, clock.step, clock.every)
        clock.spent += thread_time() - began

    def _trace(self, module: nn.Module, output: Any) -> Any:
        # An exported model is the bare model.
        if not torch.is_grad_enabled() or exporting():
            return None
        if isinstance(output, Tensor):
            batch = _batch(module, output, output, 0)
            return _Look.apply(output, self.shown, self.key, "", batch)  # type: ignore[no-untyped-call]
        leaves, tree = tree_flatten_with_path(output)
        flat = [leaf for _, leaf in leaves]
        for index, (path, leaf) in enumerate(leaves):
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                batch = _batch(module, output, leaf, index)
                flat[index] = _Look.apply(leaf, self.shown, self.key, keystr(path), batch)  # type: ignore[no-untyped-call]
        return tree_unflatten(flat, tree)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model, by deepcopy or through a file, carries no probe.
        return _Nothing, ()


class _Nothing:
    """The hook that a copy of a probed model has in a probe's place."""

    def __call__(self, *_: Any) -> None:
        return None


_arrivals = itertools.count(1)
_WATCHES: weakref.WeakValueDictionary[int, _Watch] = weakref.WeakValueDictionary()


class _Look(Function):
    """Identity that shows the error to a watch, where a tensor hook cannot be."""

    @staticmethod
    def forward(x: Tensor, shown: Tensor, watch: int, path: str, batch: int) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.shown, ctx.watch, ctx.path, ctx.batch = inputs

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            _show(ctx.shown, error, ctx.watch, ctx.path, ctx.batch)
        else:
            watch = _WATCHES.get(ctx.watch)
            if watch is not None:
                watch.see(ctx.path, ctx.batch, error)
        return error, None, None, None, None


class _LookForwardMode(_Look):
    """The same with a tangent for forward-mode differentiation; Dynamo refuses a Function that has one."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent.view_as(tangent)


# PyTorch binds the arguments of `apply` by this signature; stating it halves the cost of a call.
vars(_Look.forward)["__signature__"] = inspect.signature(_Look.forward)


# An operator that changes one of its arguments is not optimized away, and the compiler does not look inside.
@torch.library.custom_op("counterflow::show_error", mutates_args=("shown",))
def _show(shown: Tensor, error: Tensor, watch: int, path: str, batch: int) -> None:
    shown += 1
    found = _WATCHES.get(watch)
    if found is not None:
        found.see(path, batch, error, compiled=True)


@_show.register_fake
def _(shown: Tensor, error: Tensor, watch: int, path: str, batch: int) -> None:
    return None


def _refuse_transforms() -> None:
    if torch._C._functorch.maybe_current_level() is not None:
        raise UnsupportedError(
            "probe() keeps statistics from step to step, which torch.func cannot carry; undo it before torch.func"
        )


def _batch(module: nn.Module, output: Any, leaf: Tensor, index: int) -> int:
    """The dimension that counts examples; -1 where there is none."""
    return (*batch_dims(module, output, leaf, index), -1)[0]


def _ordinal(k: int) -> str:
    ending = "th" if 10 < k % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(k % 10, "th")
    return f"{k}{ending}"


def probe(model: nn.Module, layers: str | Sequence[str] | None = None, *, every: int | None = None) -> Probe:
    r"""Look at the error that flows backward through a model. Results stay as they are, to the bit.

    The module's docstring defines the statistics: RMS, mean share, sparsity, signal/noise and drift, for each layer
    averaged over the steps that were looked at. All errors that reach a layer in one step are pooled (a layer that is
    used several times has that many more samples). The error is that of the layer's *output*, as the loss scales it:
    a `GradScaler`'s factor is in the RMS, and in no other statistic.

    Where transforms are attached to a layer, the error is seen as it arrives, before they bend it.

    The first dimension counts examples, but for recurrent and attention layers that put time first. A layer with
    several outputs has a row for each that an error reached, such as ``lstm`` and ``lstm[1][0]``.

    Args:
        model: Gets hooks, and nothing else.
        layers: Pattern or patterns of the modules to look at (see `counterflow.handle`). By default all that have
            parameters of their own: linear, convolutional, recurrent, attention, embedding and normalization layers,
            not activations or containers.
        every: Look at every k-th step. By default the probe looks at the first eight steps, measures what that took
            and chooses the least k that keeps the cost below a tenth of a step: 1 for layers of some hundred units and
            more. As this is a measurement, give ``every`` where runs must agree in which steps they looked at.

    Returns:
        A `Probe`. ``table()`` and ``plot(path)`` work at any time, ``history(layer)`` gives numbers step by step,
        ``undo()`` or leaving the ``with`` block takes the hooks off.

    Raises:
        PatternError: If a pattern matches no module.
        InputError: If ``every`` is not a whole number >= 1, or the model has no layer to look at.
        UnsupportedError: If the named modules never run; in the forward pass, under `torch.func`.

    Note:
        A step is one forward pass of the model with gradients; each part of an accumulated gradient is a step.
        Checkpointed layers count once. Under DistributedDataParallel each rank sees its own share of the batch.
        A copy of the model carries no probe. Attach before ``torch.compile``; compiled code cannot be timed, so that
        without ``every`` it is looked at in every step. Each layer's memory is two examples' errors in float64.

    Example:
        >>> import torch, counterflow as cf
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> with cf.probe(model) as seen:
        ...     model(torch.randn(8, 4)).square().sum().backward()
        >>> [row.layer for row in seen.table()]
        ['0', '2']
        >>> round(seen.table()["2"].values["mean share"], 2)
        0.98
    """
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise InputError(f"every must be a whole number >= 1, or None to have it chosen, got {every!r}")
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    chosen: list[tuple[str, nn.Module]] = []
    left_alone = []
    for name, module in _named(model, layers):
        why = never_called(model, name, module)
        if why:
            left_alone.append(Row(name, type(module).__name__, "left alone", why))
        else:
            chosen.append((name, module))
    if not chosen:
        if left_alone:
            first = left_alone[0]
            raise UnsupportedError(f"{first.layer!r} ({first.kind}) has no error to look at: {first.why}")
        raise InputError(
            f"{type(model).__name__} has no module with parameters of its own; name what to look at by layers='...'"
        )
    if any(p.device.type == "cpu" for p in model.parameters()):
        kernel()  # compile now, not in the middle of the first step, whose time decides k
    seen = Probe(model, chosen, left_alone, every)
    reset_compiler()
    return seen


def _named(model: nn.Module, layers: str | Sequence[str] | None) -> list[tuple[str, nn.Module]]:
    if layers is None:
        return [
            (name, module)
            for name, module in model.named_modules()
            if (any(p is not None for p in module._parameters.values()) or is_parametrized(module))
            and ".parametrizations." not in f".{name}."
        ]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise InputError("layers must name a pattern such as 'blocks.*', got an empty list")
    found = {id(module): (name, module) for pattern in patterns for name, module in select(model, pattern)}
    return list(found.values())


register(
    Method(
        key="probe",
        summary="Look at the error of each layer: size, mean share, sparsity, signal to noise, drift.",
        site="tap",
        attach=lambda model, inputs: probe(model),
        examples=(mlp_example(), cnn_example()),
        identity=True,
        stateful=True,
        waivers=dict.fromkeys(
            ("grad", "vmap"),
            Waiver(
                reason="torch.func runs a model as a pure function, which cannot carry statistics from step to step.",
                error=UnsupportedError,
                match="torch.func cannot carry",
            ),
        ),
    )
)
