"""What every registered method must keep, one plain function a contract.

A check builds what it needs from an example, and raises `AssertionError` where the method breaks the contract.
`hold` runs a check as the registry entry says: where the entry waives the contract, the declared error must come.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from counterflow.exceptions import ShapeError, UnsupportedError
from counterflow.handle import Handle
from counterflow.registry import Contract, Example, Method

BATCH = 8
Gradients = dict[str, Tensor]
Data = tuple[Tensor, Tensor]
Check = Callable[[Method, Example], None]


def make_model(example: Example, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return example.model()


def make_data(example: Example, size: int = BATCH, seed: int = 1) -> Data:
    torch.manual_seed(seed)
    return example.inputs(size), example.targets(size)


def attached(method: Method, example: Example, seed: int = 0) -> tuple[nn.Module, Handle]:
    model = make_model(example, seed)
    handle = method.attach(model, make_data(example)[0])
    return handle.model, handle


def double(data: Data) -> Data:
    x, t = (part.double() if part.is_floating_point() else part for part in data)
    return x, t


def gradients(
    example: Example,
    model: nn.Module,
    data: Data,
    forward: Callable[[Tensor], Tensor] | None = None,
    factor: float = 1.0,
    seed: int = 2,
) -> Gradients:
    """Gradients of the summed loss by parameter name; that of a floating-point input is called ``<input>``."""
    x, t = data
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    model.zero_grad()
    torch.manual_seed(seed)
    (factor * example.loss((model if forward is None else forward)(x), t)).backward()
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if x.grad is not None:
        result["<input>"] = x.grad
    model.zero_grad()
    return result


def assert_equal(got: Gradients, wanted: Gradients, what: str) -> None:
    """Equal to the bit."""
    assert list(got) == list(wanted), f"{what}: gradients of {set(got) ^ set(wanted)} are there or not"
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, f"{what}: {name} has dtype {got[name].dtype}"
        assert torch.equal(got[name], value), f"{what}: {name} differs by {(got[name] - value).abs().max()}"


def assert_close(got: Gradients, wanted: Gradients, what: str, tolerance: float = 1e-5) -> None:
    """Close, relative to the largest element of each gradient."""
    assert set(got) == set(wanted), f"{what}: gradients of {set(got) ^ set(wanted)} are there or not"
    got, wanted = ({name: value.double() for name, value in each.items()} for each in (got, wanted))
    # A centered error's sum is nothing but rounding: such gradients are measured by the largest of all.
    floor = 0.1 * max(float(v.abs().max()) for v in wanted.values())
    for name, value in wanted.items():
        largest = max(float(value.abs().max()), floor)
        off = float((got[name] - value).abs().max())
        assert off <= tolerance * largest, f"{what}: {name} is off by {off} of {largest}"


def add(first: Gradients, second: Gradients) -> Gradients:
    return {name: first[name] + second[name] for name in first if name != "<input>"}


def own_state(model: nn.Module, bare: nn.Module) -> dict[str, Tensor]:
    """The buffers that attaching has added."""
    known = {name for name, _ in bare.named_buffers()}
    return {name: value.clone() for name, value in model.named_buffers() if name not in known}


def hooks(model: nn.Module) -> dict[str, Any]:
    """All that may be hung on the modules and parameters of a model, by where it hangs."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name}.__dict__"] = sorted(module.__dict__)
        found[f"{name}.buffers"] = sorted(module._buffers)
        found[f"{name}.class"] = type(module)
        for kind, value in vars(module).items():
            if "hooks" in kind:
                found[f"{name}.{kind}"] = len(value or ())
    for name, parameter in model.named_parameters():
        found[f"{name}.hooks"] = len(parameter._backward_hooks or ())
        found[f"{name}.post"] = len(parameter._post_accumulate_grad_hooks or ())
        found[f"{name}.dict"] = sorted(vars(parameter))
    return found


def check_forward(method: Method, example: Example) -> None:
    if not method.keeps_forward:
        return
    bare = make_model(example)
    model, _ = attached(method, example)
    data = make_data(example)
    for mode in (True, False):
        bare.train(mode)
        model.train(mode)
        for _ in range(2):  # a forward pass that leaves something behind shows in the second one
            assert torch.equal(model(data[0]), bare(data[0])), f"outputs differ with train({mode})"
        with torch.no_grad():
            assert torch.equal(model(data[0]), bare(data[0])), f"outputs differ without gradients, train({mode})"
    before = own_state(model, bare)
    model(data[0])
    for name, value in own_state(model, bare).items():
        assert torch.equal(value, before[name]), f"a forward pass changes {name}; recomputation would again"
    gradients(example, model, data)
    assert torch.equal(model(data[0]), bare(data[0])), "outputs differ after a backward pass"


def check_identity(method: Method, example: Example) -> None:
    bare, data = make_model(example), make_data(example)
    model, _ = attached(method, example)
    wanted, got = gradients(example, bare, data), gradients(example, model, data)
    if method.identity:
        assert_equal(got, wanted, "not the identity that it declares")
    else:
        same = all(torch.equal(got[name], wanted[name]) for name in wanted if name in got)
        assert not same, "it changes no gradient, but does not declare identity=True"


def check_state_dict(method: Method, example: Example) -> None:
    bare = make_model(example)
    model, _ = attached(method, example)
    data = make_data(example)
    keys, bare_keys = list(model.state_dict()), list(bare.state_dict())
    assert [key for key in keys if key in set(bare_keys)] == bare_keys, "keys of the bare model are missing"
    extra = [key for key in keys if key not in set(bare_keys)]
    if extra or own_state(model, bare):
        assert method.stateful or method.adds_buffers, f"undeclared state: {extra or own_state(model, bare)}"
    result = model.load_state_dict(bare.state_dict(), strict=False)
    assert not result.unexpected_keys, f"a bare checkpoint has unexpected keys: {result.unexpected_keys}"
    assert result.missing_keys == extra, f"a bare checkpoint misses {result.missing_keys}"
    # What a checkpoint holds is enough to go on.
    gradients(example, model, data)
    saved = copy.deepcopy(model.state_dict())
    wanted = gradients(example, model, data)
    again, _ = attached(method, example, seed=7)
    again.load_state_dict(saved)
    assert_equal(gradients(example, again, data), wanted, "restored from a state_dict")
    if method.stateful and not method.identity:  # what only looks may keep what it saw elsewhere
        fresh, kept = own_state(attached(method, example)[0], bare), own_state(model, bare)
        assert any(not torch.equal(kept[key], fresh[key]) for key in fresh), "stateful, but keeps nothing"


def check_parameters(method: Method, example: Example) -> None:
    bare = make_model(example)
    parameters = dict(bare.named_parameters())
    modules = {name: (module, type(module)) for name, module in bare.named_modules()}
    handle = method.attach(bare, make_data(example)[0])
    now = dict(handle.model.named_parameters())
    assert list(now) == list(parameters), "names of parameters change"
    assert all(now[name] is p for name, p in parameters.items()), "Parameter objects are exchanged"
    assert {name: (m, type(m)) for name, m in handle.model.named_modules()} == modules, "modules change"


def check_undo(method: Method, example: Example) -> None:
    data = make_data(example)
    bare = make_model(example)
    wanted = gradients(example, bare, data)
    model = make_model(example)
    before = hooks(model)
    handle = method.attach(model, data[0])
    assert handle.attached, "the handle says that it is not attached"
    gradients(example, handle.model, data)
    handle.undo()
    handle.undo()
    assert not handle.attached, "the handle says that it is attached still"
    after = hooks(handle.model)
    left = {key: value for key, value in after.items() if value != before.get(key)}
    assert after == before, f"undo leaves behind: {left}"
    assert_equal(gradients(example, handle.model, data), wanted, "after undo")
    with method.attach(handle.model, data[0]) as second:
        gradients(example, second.model, data)
    assert hooks(second.model) == before, "leaving the with block leaves something behind"
    assert_equal(gradients(example, second.model, data), wanted, "after the with block")


def check_deepcopy(method: Method, example: Example) -> None:
    data = make_data(example)
    model, handle = attached(method, example)
    twin = copy.deepcopy(model)
    reference, _ = attached(method, example)
    first, second = (gradients(example, reference, data) for _ in range(2))
    assert_equal(gradients(example, model, data), first, "the original, after a copy was made")
    assert_equal(gradients(example, twin, data), first, "the copy, which must not share the original's state")
    handle.undo()
    assert_equal(gradients(example, twin, data), second, "the copy, after undo of the original")


def check_compile(method: Method, example: Example, backend: str = "aot_eager") -> None:
    data = make_data(example)
    reference, _ = attached(method, example)
    wanted = [gradients(example, reference, data) for _ in range(2)]
    model, _ = attached(method, example)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    got = [gradients(example, model, data, compiled) for _ in range(2)]
    if method.random and backend == "inductor":  # draws numbers of its own
        return
    for step in range(2):
        assert_close(got[step], wanted[step], f"compiled by {backend}, step {step}")
    if example is method.examples[0]:  # three compilations more, for what does not depend on the layers
        _after_compile(method, example)


def _after_compile(method: Method, example: Example) -> None:
    """Attaching and undo take effect on a model that runs compiled already."""
    data = make_data(example)
    reference, _ = attached(method, example)
    wanted = gradients(example, reference, data)
    model = make_model(example)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    bare = gradients(example, model, data, compiled)
    handle = method.attach(model, data[0])
    assert_close(gradients(example, model, data, compiled), wanted, "attached after the first compiled call")
    handle.undo()
    assert_close(gradients(example, model, data, compiled), bare, "undone after a compiled call")


def _functional(
    example: Example, model: nn.Module, data: Data, weights: dict[str, Tensor], buffers: dict[str, Tensor]
) -> Gradients:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return example.loss(functional_call(model, (weights, buffers), (x,)), data[1])

    torch.manual_seed(2)
    result: Gradients = grad(loss)(weights, data[0])
    return result


def check_grad(method: Method, example: Example) -> None:
    data = make_data(example)
    model, _ = attached(method, example)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    got = _functional(example, model, data, weights, dict(model.named_buffers()))
    reference, _ = attached(method, example)
    wanted = gradients(example, reference, data)
    wanted.pop("<input>", None)
    assert_close(got, wanted, "torch.func.grad")


def check_vmap(method: Method, example: Example) -> None:
    data = make_data(example)
    randomness = "different" if method.random else "error"
    # Over models.
    models = [attached(method, example, seed)[0] for seed in range(3)]
    weights, buffers = stack_module_state(models)
    weights = {name: p.detach() for name, p in weights.items()}
    base = models[0]

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Gradients:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return example.loss(functional_call(base, (weights, buffers), (data[0],)), data[1])

        result: Gradients = grad(loss)(weights)
        return result

    got = vmap(one, randomness=randomness)(weights, buffers)
    assert all(bool(value.isfinite().all()) for value in got.values()), "vmap over models: not finite"
    for index, model in enumerate(models):
        wanted = gradients(example, model, data)
        wanted.pop("<input>", None)
        if not method.random:
            mine = {name: value[index] for name, value in got.items()}
            assert_close(mine, wanted, f"vmap over models, model {index}")
    # Over the examples of a batch.
    own = dict(base.named_buffers())

    def sample(x: Tensor, t: Tensor) -> Gradients:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return example.loss(functional_call(base, (weights, own), (x[None],)), t[None])

        result: Gradients = grad(loss)({name: p.detach() for name, p in base.named_parameters()})
        return result

    each = vmap(sample, randomness=randomness)
    if method.batch_coupled:
        try:
            each(*data)
        except ShapeError:
            return
        raise AssertionError("it couples the batch, but does not raise ShapeError under per-sample vmap")
    got = each(*data)
    for index in range(BATCH):
        alone = gradients(example, base, (data[0][index : index + 1], data[1][index : index + 1]))
        alone.pop("<input>", None)
        if not method.random:
            mine = {name: value[index] for name, value in got.items()}
            assert_close(mine, alone, f"per-sample vmap, example {index}")


def check_checkpoint(method: Method, example: Example) -> None:
    data = make_data(example)
    reference, _ = attached(method, example)
    wanted = [gradients(example, reference, data) for _ in range(2)]
    for use_reentrant in (False, True):
        model, _ = attached(method, example)

        def forward(x: Tensor, model: nn.Module = model, use_reentrant: bool = use_reentrant) -> Tensor:
            # The reentrant form needs an input that requires a gradient.
            tie = torch.zeros((), device=x.device, requires_grad=True)
            result = checkpoint(lambda x, tie: model(x), x, tie, use_reentrant=use_reentrant)
            assert isinstance(result, Tensor)
            return result

        for step in range(2):
            got = gradients(example, model, data, forward)
            assert_close(got, wanted[step], f"checkpoint(use_reentrant={use_reentrant}), step {step}", 1e-6)


def check_amp(method: Method, example: Example) -> None:
    data = make_data(example)
    model, _ = attached(method, example)
    wanted = gradients(example, model, data)

    def forward(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        with torch.autocast(x.device.type, dtype=dtype):
            return model(x)

    model, _ = attached(method, example)
    got = gradients(example, model, data, lambda x: forward(x).float())
    bare = make_model(example)
    plain = gradients(example, bare, data)
    model = bare
    cost = gradients(example, bare, data, lambda x: forward(x).float())  # what bfloat16 costs by itself
    floor = 0.1 * max(float(v.norm()) for v in wanted.values())
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, f"bfloat16 autocast: {name} has dtype {got[name].dtype}"
        assert bool(got[name].isfinite().all()), f"bfloat16 autocast: {name} is not finite"
        if method.random or method.discontinuous:  # numbers drawn in another dtype are others, and so are winners
            continue
        off = float((got[name] - value).norm()) / max(float(value.norm()), floor)
        own = float((cost[name] - plain[name]).norm()) / float(plain[name].norm())
        assert off <= 0.05 + 3 * own, f"bfloat16 autocast: {name} is off by {off:.2g}, {own:.2g} without"
    if not method.homogeneous:
        model, _ = attached(method, example)
        try:
            forward(data[0], torch.float16)
        except UnsupportedError:
            return
        raise AssertionError("it is not homogeneous, but is not refused under float16 autocast")


def check_accumulation(method: Method, example: Example) -> None:
    data = make_data(example)
    halves = [(data[0][part], data[1][part]) for part in (slice(0, 4), slice(4, BATCH))]
    model, _ = attached(method, example)
    torch.manual_seed(2)
    for x, t in halves:
        example.loss(model(x), t).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    reference, _ = attached(method, example)
    if method.random:
        assert all(bool(value.isfinite().all()) for value in got.values()), "accumulated: not finite"
        return
    if method.batch_coupled:  # what is coupled is each part by itself; state goes on from part to part
        wanted = add(*(gradients(example, reference, half) for half in halves))
    else:
        wanted = gradients(example, reference, data)
        wanted.pop("<input>", None)
    assert_close(got, wanted, "accumulated over two halves of the batch")


def check_double(method: Method, example: Example) -> None:
    data = make_data(example)
    single = gradients(example, attached(method, example)[0], data)
    bare = make_model(example).double()
    handle = method.attach(bare, double(data)[0])
    model = handle.model
    got = gradients(example, model, double(data))
    for name, value in got.items():
        assert value.dtype == torch.float64, f"{name} has dtype {value.dtype} in a float64 model"
    if not method.random:
        assert_close(single, got, "float32 against float64", 1e-4)
    if method.identity:
        _finite_differences(example, model, double(data), got)


def _finite_differences(example: Example, model: nn.Module, data: Data, got: Gradients) -> None:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        direction, start, step = torch.randn_like(parameter), parameter.detach().clone(), 1e-6
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.copy_(start + sign * step * direction)
                values.append(float(example.loss(model(data[0]), data[1])))
                parameter.copy_(start)
        slope = (values[0] - values[1]) / (2 * step)
        mine = float((got[name] * direction).sum())
        assert abs(slope - mine) <= 1e-6 * max(1.0, abs(slope)), f"{name}: slope {slope}, gradient {mine}"


def check_scaling(method: Method, example: Example) -> None:
    data = make_data(example)
    models = [attached(method, example)[0] for _ in range(2)]
    # The second step, since what keeps state may only show there.
    one = [gradients(example, models[0], data) for _ in range(2)][1]
    gradients(example, models[1], data)
    eight = gradients(example, models[1], data, factor=8.0)
    scaled = {name: 8 * value for name, value in one.items()}
    if method.homogeneous:
        assert_close(eight, scaled, "8 times the loss", 1e-6)
        return
    try:
        assert_close(eight, scaled, "8 times the loss", 1e-4)
    except AssertionError:
        return
    raise AssertionError("it scales with the loss, but is declared not to")


CHECKS: dict[Contract, Check] = {
    "forward": check_forward,
    "identity": check_identity,
    "state_dict": check_state_dict,
    "parameters": check_parameters,
    "undo": check_undo,
    "deepcopy": check_deepcopy,
    "compile": check_compile,
    "grad": check_grad,
    "vmap": check_vmap,
    "checkpoint": check_checkpoint,
    "amp": check_amp,
    "accumulation": check_accumulation,
    "double": check_double,
    "scaling": check_scaling,
}
CONTRACTS: tuple[Contract, ...] = get_args(Contract)


def hold(method: Method, contract: Contract, example: Example, check: Check | None = None) -> None:
    """Run one contract's check on one example; where the method waives it, the declared error must come.

    Args:
        method: The entry.
        contract: What it is held to.
        example: One of its examples.
        check: By default the contract's of `CHECKS`.
    """
    run = check or CHECKS[contract]
    waiver = method.waivers.get(contract)
    if waiver is None:
        run(method, example)
        return
    try:
        run(method, example)
    except waiver.error as error:
        if not re.search(waiver.match, str(error)):
            raise AssertionError(f"the waiver expects {waiver.match!r}, got {error}") from error
        return
    raise AssertionError(f"{method.key} keeps {contract!r}: take its waiver out")
