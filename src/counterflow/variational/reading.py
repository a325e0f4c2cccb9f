"""Which of its children a module calls as a whole: read from its source, where its graph cannot be traced."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from types import FunctionType

from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["called_whole", "places"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def places(model: nn.Module) -> Counter[int]:
    """In how many places of a model each module stands."""
    return Counter(id(child) for module in model.modules() for child in module._modules.values() if child is not None)


def called_whole(module: nn.Module, everywhere: Counter[int]) -> list[nn.Module]:
    """The children, or the elements of its containers, that a module calls and nothing else reaches into.

    What the source leaves open counts as reached into, and so does what stands in other places of the model, too.

    Args:
        module: That is itself called as a whole.
        everywhere: The `places` of the model that it is a part of.
    """
    if type(module) is nn.Sequential:
        found = list(module.children())
    else:
        uses = _uses(module)
        found = [child for name, child in module.named_children() if uses.get(name) == {"called"}]
        found += [
            element
            for name, child in module.named_children()
            if uses.get(name) == {"elements called"} and type(child) in _CONTAINERS
            for element in child.children()
        ]
    return [each for each in found if _alone(each, everywhere)]


def _alone(module: nn.Module, everywhere: Counter[int]) -> bool:
    """Whether a module and what is inside stand in no other place."""
    inside = places(module)
    return all(everywhere[id(part)] == inside[id(part)] + (part is module) for part in module.modules())


def _uses(module: nn.Module) -> dict[str, set[str]]:
    """What the forward pass does with the module's attributes; nothing where its source does not tell."""
    hidden = (value for name, value in vars(module).items() if name != "_modules")  # in a list, say
    if "forward" in vars(module) or any(isinstance(leaf, nn.Module) for leaf in tree_leaves(list(hidden))):
        return {}
    uses: dict[str, set[str]] = {}
    queue, seen = ["forward"], {"forward"}
    while queue:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(type(module), queue.pop()))))
        except (OSError, TypeError, SyntaxError):
            return {}
        function = tree.body[0]
        if not isinstance(function, ast.FunctionDef) or not function.args.args:
            return {}
        own = function.args.args[0].arg
        above = {below: node for node in ast.walk(tree) for below in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name) or node.id not in (own, "super"):
                continue
            use = above[node]
            # `self` is handed on, or asked for its modules by one of PyTorch's methods.
            if not isinstance(use, ast.Attribute) or (hasattr(nn.Module, use.attr) and use.attr != "training"):
                return {}
            if use.attr in module._modules:
                uses.setdefault(use.attr, set()).add(_use(use, above, tree))
            elif hasattr(type(module), use.attr) and use.attr not in seen:
                if not isinstance(getattr(type(module), use.attr), FunctionType):  # a property, say
                    return {}
                seen.add(use.attr)
                queue.append(use.attr)
    return uses


def _use(use: ast.Attribute, above: dict[ast.AST, ast.AST], tree: ast.Module) -> str:
    """What is done with a child in one place."""

    def called(node: ast.AST) -> bool:
        call = above[node]
        return isinstance(call, ast.Call) and call.func is node

    user = above[use]
    if called(use):
        return "called"
    if isinstance(user, ast.Subscript) and user.value is use and called(user):
        return "elements called"
    if isinstance(user, ast.For | ast.comprehension) and user.iter is use and isinstance(user.target, ast.Name):
        name = user.target.id
        loads = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
        if all(called(node) for node in loads if node.id == name):
            return "elements called"
    return "something else"
