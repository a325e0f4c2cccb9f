"""Tracing a model, and running the trace once on the sample to measure what has no bound."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from counterflow.exceptions import InputError, UnsupportedError
from counterflow.tempering.activations import UNARY, Bounds
from counterflow.tempering.ops import operation
from counterflow.tempering.trace import Trace

__all__ = ["SampleInput", "trace_and_measure"]

SampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any]


def trace_and_measure(model: nn.Module, sample_input: SampleInput, given: Mapping[str, Bounds]) -> Trace:
    """Trace a model in its present mode and measure its activations. The model is left as it was.

    Raises:
        InputError: If the sample is of no use.
        UnsupportedError: If the model cannot be traced, or a parameter not classified.
    """
    args, kwargs = _arguments(sample_input)
    program = _export(model, args, kwargs)
    graph = program.graph_module.graph
    parameters: dict[fx.Node, str] = {}
    inputs: set[fx.Node] = set()
    values: list[Any] = []
    leaves = iter(tree_leaves((args, kwargs)))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.PARAMETER:
            assert spec.target is not None
            parameters[node] = spec.target
            values.append(program.state_dict[spec.target])
        elif spec.kind is InputKind.USER_INPUT:
            inputs.add(node)
            values.append(next(leaves))
        elif spec.target in program.state_dict:
            values.append(program.state_dict[spec.target])
        else:
            values.append(program.constants[spec.target])
    trace = Trace(model, graph, parameters, inputs, given)
    # Dropout draws from a generator of its own, so that the same call measures the same.
    with torch.no_grad(), _quiet_warnings(), torch.random.fork_rng(_devices(values)):
        torch.manual_seed(0)
        copied = [v.clone() if isinstance(v, Tensor) else v for v in values]  # in-place steps change the copy
        _Recorder(program.graph_module, trace).run(*copied)
    return trace


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    copied = copy.deepcopy(model)
    try:
        with (
            torch.no_grad(),
            _quiet_warnings(),
            torch.random.fork_rng(_devices([args, kwargs, list(model.parameters())])),
        ):
            packed = _packed_layers(copied, args, kwargs)
    except Exception as error:
        raise InputError(
            f"sample_input: {type(model).__name__} fails on it: {type(error).__name__}: {_first_line(error)}"
        ) from error
    copied = copy.deepcopy(model)  # a forward pass may have changed buffers
    try:
        # What export says of a failure is long, and its reason is told below.
        with torch.enable_grad(), _quiet_warnings(), _silence():
            return torch.export.export(copied, args, kwargs, strict=False)
    except Exception as error:
        if packed:
            raise UnsupportedError(
                f"{packed[0]!r} is given a packed sequence, which torch.export cannot follow; temper the model on a "
                "sample that it does not pack, and pack in training"
            ) from error
        raise UnsupportedError(
            f"temper follows the data through {type(model).__name__} by torch.export, which stopped: "
            f"{_first_line(error)}"
        ) from error


def _packed_layers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Run a copy of a model once; the names of its recurrent layers that packed sequences came to."""
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if any(isinstance(value, PackedSequence) for value in (*given, *named.values())):
                found.append(name)

        return look

    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(hook(name), with_kwargs=True)
    model(*args, **kwargs)
    return found


def _devices(values: Any) -> list[int]:
    """The graphics cards whose generators a run may use."""
    return sorted({v.get_device() for v in tree_leaves(values) if isinstance(v, Tensor) and v.is_cuda})


@contextlib.contextmanager
def _quiet_warnings() -> Iterator[None]:
    """What the model warns of, it warns of in the user's own run too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:240]


def _arguments(sample_input: SampleInput) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(sample_input, Mapping):
        kwargs = dict(sample_input)
    elif isinstance(sample_input, tuple):
        args = sample_input
    elif isinstance(sample_input, Tensor):
        args = (sample_input,)
    else:
        raise InputError(
            "sample_input must be a tensor, a tuple of positional arguments or a dictionary of named ones, got "
            f"{type(sample_input).__name__}"
        )
    for leaf in tree_leaves((args, kwargs)):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.numel() == 0:
            raise InputError(f"sample_input is empty: a tensor of shape {tuple(leaf.shape)}")
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise InputError("sample_input holds NaN or infinite values; powers cannot be measured on them")
    return args, kwargs


class _Recorder(fx.Interpreter):
    """Runs the trace and keeps mean squares, and slopes of functions without a bound."""

    def __init__(self, module: fx.GraphModule, trace: Trace) -> None:
        super().__init__(module)
        self.trace = trace

    def run_node(self, n: fx.Node) -> Any:
        # Before the node itself, which may work in place.
        self._input_power(n)
        self._slope(n)
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.trace.mean_square[n] = value.double().square().mean().item()
        return value

    def _input_power(self, n: fx.Node) -> None:
        """Equation 7 to the letter where all inputs are external: the mean of (sum of squares) squared."""
        uses = self.trace.uses_at(n)
        if not uses or uses[0].kind not in ("linear", "convolution", "recurrent"):
            return
        facts = uses[0].facts
        assert facts is not None
        if facts.kind == "recurrent":
            x = facts.inputs[0]
            if self.trace.is_external(x):
                total = self.env[x].double().square().sum(-1) + facts.biases
                self.trace.squared_input_power[n] = total.square().mean().item()
            return
        if not all(self.trace.is_external(x) for x in facts.inputs):
            return

        def value(node: fx.Node) -> Any:
            tensor = self.env[node]
            if node in facts.inputs:
                return tensor.double().square()
            return torch.ones_like(tensor, dtype=torch.float64)  # weights and biases

        args = fx.map_arg(n.args, value)
        total = n.target(*args, **fx.map_arg(n.kwargs, value))  # type: ignore[operator]
        self.trace.squared_input_power[n] = total.square().mean().item()

    def _slope(self, n: fx.Node) -> None:
        if operation(n) not in UNARY or self.trace.bounds(n).slope is not None:
            return
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if not (isinstance(args[0], Tensor) and args[0].is_floating_point()):
            return
        with torch.enable_grad():
            u = args[0].detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(n.target(u.clone(), *args[1:], **kwargs).sum(), u)  # type: ignore[operator]
        self.trace.measured_slope[n] = slope.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
