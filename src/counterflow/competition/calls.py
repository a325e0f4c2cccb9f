"""What a model calls in a forward pass: layers and functions, where, and on the results of which others.

Seen by `torch.fx` where no example is at hand, else in a trial forward pass, which follows any Python.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from counterflow.competition.layers import LocalWinnerTakeAll
from counterflow.exceptions import UnsupportedError

__all__ = ["Call", "is_leaf", "see", "trace", "upstream"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TORCH = str(Path(torch.__file__).parent)


@dataclass(eq=False)
class Call:
    """One call of a layer or of a function.

    Args:
        what: The layer, or the name of the function.
        name: The layer's dotted name; of a function, that of the module in whose forward it is called.
        place: File, line and code of the call, as far as known.
        inputs: The calls whose results it is given, its data first.
        shape: That of its result; None where nothing was computed.
    """

    what: nn.Module | str
    name: str
    place: str
    inputs: list[Call] = field(default_factory=list)
    shape: tuple[int, ...] | None = None

    def is_a(self, *kinds: type[nn.Module]) -> bool:
        """Whether it is a layer of these kinds."""
        return isinstance(self.what, kinds)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is looked at as a whole: PyTorch's own layers, and competing units."""
    if isinstance(module, LocalWinnerTakeAll):
        return True
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, _CONTAINERS)


def upstream(calls: list[Call]) -> Iterator[Call]:
    """What these calls' results depend on, themselves included, each once, the nearest first."""
    seen, queue = set(calls), list(calls)
    while queue:
        call = queue.pop(0)
        yield call
        new = [each for each in call.inputs if each not in seen]
        seen.update(new)
        queue += new


class _Tracer(fx.Tracer):
    """Records where each call stands in the user's code."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


def trace(model: nn.Module) -> list[Call]:
    """The calls of a model, without running it.

    Raises:
        UnsupportedError: If `torch.fx` cannot follow its Python.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the user's own code raises on values that are not there
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(
            f"the forward pass of {type(model).__name__} depends on more than torch.fx can follow ({reason}); give an "
            "example to run it on: inputs=x"
        ) from error
    names = {id(module): name for name, module in model.named_modules()}
    calls: dict[fx.Node, Call] = {}
    for node in graph.nodes:
        inputs = [calls[each] for each in node.all_input_nodes if each in calls]
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            calls[node] = Call(module, names[id(module)], "", inputs)
        elif node.op in ("call_function", "call_method"):
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            stack = node.meta.get("nn_module_stack") or {}
            scope = next(reversed(stack.values()))[0] if stack else ""
            calls[node] = Call(what, scope, _place_of_text(node.stack_trace or ""), inputs)
    return list(calls.values())


def _place_of_text(stack: str) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+), in \w+(?:\n\s+(\S.*))?', stack)
    mine = [frame for frame in found if not frame[0].startswith(_TORCH)]
    return _place(*mine[-1]) if mine else ""


def _place(file: str, line: str | int, code: str) -> str:
    return f"{Path(file).name}:{line}" + (f": {code.strip()}" if code.strip() else "")


class _Seen(TorchFunctionMode):
    """Notes the functions that are called outside of leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.scopes: list[str] = [""]
        self.inside = 0  # leaves that are being called
        self._made_by: dict[int, Call] = {}
        self._kept: list[Tensor] = []  # so that no identity is used twice

    def note(self, call: Call, inputs: Any, output: Any) -> None:
        """Enter a call, what it was given and what it returned."""
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        found = (self._made_by.get(id(each)) for each in tree_leaves(inputs))
        call.inputs = list(dict.fromkeys(each for each in found if each is not None))
        if tensors:
            call.shape = tuple(tensors[0].shape)
        self.calls.append(call)
        for tensor in tensors:
            self._made_by[id(tensor)] = call
            self._kept.append(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside and any(isinstance(each, Tensor) for each in tree_leaves(output)):
            name = getattr(func, "__name__", str(func))
            self.note(Call(name, self.scopes[-1], _place_now()), (args, kwargs), output)
        return output


def _place_now() -> str:
    for frame in traceback.StackSummary.extract(traceback.walk_stack(None), lookup_lines=False):
        if not frame.filename.startswith(_TORCH) and frame.filename != __file__:
            line = frame.lineno or 0
            return _place(frame.filename, line, linecache.getline(frame.filename, line))
    return ""


def see(model: nn.Module, inputs: Any) -> list[Call]:
    """The calls of a model in a trial forward pass, in eval mode and without gradients; nothing stays changed.

    Args:
        model: Any model.
        inputs: A tensor, a tuple of arguments or a dictionary of named ones.
    """
    seen = _Seen()

    def enter(module: nn.Module, args: Any) -> None:
        seen.scopes.append(names[id(module)])
        seen.inside += is_leaf(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = seen.scopes.pop()
        if is_leaf(module):
            seen.inside -= 1
            if not seen.inside:
                seen.note(Call(module, name, ""), (args, kwargs), output)

    names = {id(module): name for name, module in model.named_modules()}
    training = {module: module.training for module in model.modules()}
    hooks: list[Any] = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    try:
        model.eval()
        with torch.random.fork_rng(), torch.no_grad(), seen:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return seen.calls
