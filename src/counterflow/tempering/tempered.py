"""`temper`: rates, attenuation and shunting on a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from counterflow.backward.reduce import prepare_ranks, world_size
from counterflow.backward.shunting import shunt as shunting
from counterflow.backward.tap import State, Tap, Transform, install
from counterflow.backward.transforms import scale
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, reset_compiler
from counterflow.tempering.activations import Bounds, bounds, checked
from counterflow.tempering.attenuation import Link, install_linked, plan_measured, plan_weights
from counterflow.tempering.layers import Layer, effective_rates, output_ratio, read_layers, set_attenuations
from counterflow.tempering.losses import Loss, resolve
from counterflow.tempering.measure import SampleInput, trace_and_measure
from counterflow.tempering.ops import operation
from counterflow.tempering.recurrent import at_hidden_state
from counterflow.tempering.trace import Trace

__all__ = ["TemperHandle", "temper"]

Attenuation = Literal["fan-out", "weights"]
Variance = Literal["bound", "measured"]
BiasRate = Literal["local", "global"]
Linked = dict[Layer, tuple[str, Transform, dict[str, Link]]]


class _Residual(Transform):
    """Turn the error of the model's output into that of the summed loss, divided by phi."""

    def __init__(self, loss: Loss, phi: float) -> None:
        self.loss, self.phi = loss, phi
        self.counts_every_row = loss.reduction != "sum"  # how many there are is what a mean is multiplied by

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        # DistributedDataParallel averages over ranks what must be summed.
        return error * (self.loss.terms(error.shape) * world_size() / self.phi)

    def __repr__(self) -> str:
        divided = f", phi = {self.phi:.4g}" if self.phi != 1 else ""
        return f"summed errors{divided}"


_LOSS_INSIDE = (
    "the loss is computed inside the model, where its error does not pass the output that temper acts on; temper the "
    "part before it (on=... in an integration), or call the model without targets and compute the loss outside"
)


class _OutputTap(Tap):
    """The tap at the model's output.

    Args:
        transform: What to do to the error.
        dims: How many dimensions each floating-point output had in the trace.
    """

    def __init__(self, transform: Transform, dims: tuple[int, ...]) -> None:
        super().__init__(transform, "")
        self.dims = dims

    def choose(self, leaves: list[Any], floating: list[int]) -> list[int]:
        found = [leaves[index].ndim for index in floating]
        same = len(found) == len(self.dims)
        # A batch of single numbers that is squeezed, or under vmap, has no dimensions either.
        if 0 in found and not (same and all(n > 0 or dims < 2 for n, dims in zip(found, self.dims, strict=True))):
            raise UnsupportedError(_LOSS_INSIDE)
        if not same:
            raise UnsupportedError(
                f"the model returns {len(found)} floating-point tensors, but returned {len(self.dims)} on "
                "sample_input; temper it in the mode of training (train() or eval()), on a sample as it is called there"
            )
        # The loss is one of the first output. What else a model returns may be its state, which comes back: its
        # error is made of errors that were multiplied already.
        return floating[:1]


class _Shunt(shunting):
    """Shunting of the errors that `_Residual` hands on."""

    summed_ranks = True


class TemperHandle(Handle):
    """What `temper` returns: a `Handle` that knows every parameter's rate."""

    def __init__(
        self,
        model: nn.Module,
        table: Table,
        undo: Sequence[Callable[[], None]],
        groups: Sequence[tuple[str, float, bool, list[nn.Parameter]]],
    ) -> None:
        super().__init__(model, table, undo)
        self._groups = tuple(groups)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        r"""Groups for a torch optimizer: every trainable parameter once.

        A layer's rate is :math:`\eta_j = \eta / (s(f_j) \sqrt{\xi_j^2})`.

        Args:
            lr: The global rate :math:`\eta`, for gradients summed over the batch; at most :math:`1/\sqrt{|T|}` for a
                batch of :math:`|T|` samples that are not redundant (equation 18).

        Returns:
            One group a rate: ``params``, ``lr`` and ``name``, which names the layers. Biases of shunted layers have
            groups of their own, whose rate does not depend on ``lr`` unless ``bias_rate="global"`` was chosen.

        Raises:
            InputError: If ``lr`` is not a finite number > 0.
        """
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not (math.isfinite(lr) and lr > 0):
            raise InputError(f"lr must be a number > 0, got {lr!r}")
        return [
            {"params": list(parameters), "lr": rate if fixed else lr * rate, "name": name}
            for name, rate, fixed, parameters in self._groups
        ]


def temper(
    model: nn.Module,
    sample_input: SampleInput,
    loss: str | nn.Module,
    *,
    shunt: bool = True,
    attenuation: Attenuation | None = "fan-out",
    variance: Variance = "bound",
    center_inputs: bool = False,
    input_power: Mapping[str, float] | None = None,
    activations: Mapping[str, Bounds] | None = None,
    local_output: bool | None = None,
    bias_rate: BiasRate = "local",
) -> TemperHandle:
    r"""Give every layer a learning rate and an error scale that follow from the architecture.

    .. math::
        \eta_j = \frac{\eta}{s(f_j)\sqrt{\xi_j^2}}, \qquad a_i = \frac{1}{s(f_i)\sqrt{|P_i|}}

    (see `counterflow.tempering` for the symbols). Do it before ``torch.compile``, DistributedDataParallel and the
    optimizer. The model is traced in its present mode (train or eval) by `torch.export`, and run once on the sample to
    measure the power of inputs, and of activations that have no bound, such as those of ReLU. Recurrent cells are
    attenuated at every step of a loop, fused recurrent layers at their outputs alone; see
    `counterflow.tempering.recurrent`.

    Gradients come out as those of the *summed* loss, also for a loss that is a mean and under
    DistributedDataParallel, and divided by :math:`\phi`; gradient clipping sees those.

    That is done to the error of the model's first floating-point output, on every call. Other outputs, such as a state
    that goes into the next call, hand their error on as it is: sum in a loss of those. Where the first output itself
    comes back (``y = model(y)``), nothing tells the error of a loss from that of the next call, and both are multiplied
    each time: have it return the next input apart from the output, or name a ``"_sum"`` loss for which the table says
    nothing of :math:`\phi`, on one process.

    The loss must be computed from that output outside the model. A model that is given its targets and returns the
    loss, as those of Hugging Face do, is refused, when tempered or when called: temper the part before the loss, or
    leave the targets out.

    Args:
        model: Changed in place: taps at the outputs of its layers, and of the model.
        sample_input: A batch that is like the data: a tensor, a tuple of positional arguments or a dictionary of named
            ones.
        loss: The name of the loss in `torch.nn.functional`, which means its default reduction, the mean, or with
            ``"_sum"`` behind it the sum; or a loss module. A mean is turned back into the sum by counting the samples
            in the model's output, where classes stand in dimension 1, as `cross_entropy` has them. So sum in the loss,
            and name the sum, where an ``ignore_index`` leaves samples out, or the loss gets the output in another
            shape: (batch, time, classes), say, flattened for it. See `counterflow.tempering.losses`.
        shunt: Whether linear and convolutional layers learn weights from centered errors and biases from the mean.
        attenuation: How errors are attenuated on their way back. ``"fan-out"`` (default): by equation 14, once and for
            all. ``"weights"``: from the weights as they are in each backward pass, every unit by
            :math:`a_i = 1/(s\sqrt{\sum_j w_{ij}^2})`, which guarantees of errors that are independent of each other
            :math:`\langle\delta_i^2\rangle \le \sum_j w_{ij}^2\langle\delta_j^2\rangle / \sum_j w_{ij}^2`, an average
            over the units that it feeds (the plain mean where those vary alike), whatever the weights are; see
            `counterflow.tempering.attenuation`. Where units cannot be followed to the weights, the layer's largest
            vector stands for all of them; where what follows is no product with weights (a normalization, say), the
            layer is attenuated by its fan-out, and the table says so. None: not at all.
        variance: ``"bound"`` (default): of the error, that of equation 13. ``"measured"``: attenuation holds the mean
            square of every layer's error to that of the layers above, by a running mean in a buffer of its module that
            backward passes update, each of them once; see `counterflow.tempering.attenuation`. Layers that are called
            several times, or whose error cannot be seen by itself, are attenuated by their fan-out, and the table says
            so. `torch.func` cannot carry such state and is refused.
        center_inputs: For small batches: whether shunted layers center inputs as well as errors, both by running means
            with momentum .9 (``backward.shunt(momentum=0.9)``): buffers of their modules that backward passes update.
            With all samples in one batch it is shunting again (equation 21). `torch.func` is refused then.
        input_power: By pattern of layers, :math:`\xi^2` where it is known better than measured, the bias input counted
            in it: ``{"person": 4.0}`` for a one-hot input with a bias.
        activations: By the name of a function in ``torch.ops.aten`` that the model calls, its bounds where they are not
            known, or to be used instead.
        local_output: Whether one or two targets at a time are active, so that errors are not attenuated by the fan-out
            into the output layer. None decides by the loss: true for `cross_entropy` and `nll_loss`.
        bias_rate: ``"local"`` (default): the mean error of a shunted bias is taken at :math:`1/(s(f_j)\sqrt{\xi_j^2})`,
            without the global rate; ``"global"``: with it. The mean is that over all calls where the layer is called
            several times.

    Returns:
        A handle: ``param_groups(lr=...)`` for the optimizer, ``table()``, ``undo()``. The rates live in the optimizer's
        groups, so ``undo()`` takes off attenuation and shunting alone.

    Raises:
        UnsupportedError: If the model cannot be traced, a layer, function or loss has no known bound, or a trainable
            parameter is not used on the sample; if the model returns a loss, or in a later call with gradients another
            number of floating-point tensors than on the sample.
        InputError: If an argument cannot be used.

    References:
        Schraudolph, Sejnowski, "Tempering Backpropagation Networks: Not All Weights are Created Equal", NIPS 1995.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> h = cf.temper(model, torch.eye(12), loss="cross_entropy_sum")
        >>> print(h.table())
        Tempered for cross_entropy_sum
        layer  kind    fan-in  fan-out  slope  range  rate  attenuation  effective  power     done
        0      Linear  4       3        1      1      0.5   1            0.5        measured  rate, shunted
        2      Linear  5       0        0.25          1.79  1            1.79       bound     rate, shunted
        >>> [round(group["lr"], 4) for group in h.param_groups(lr=0.1)]
        [0.05, 0.5, 0.1789, 1.7889]
    """
    if bias_rate not in ("local", "global"):
        raise InputError(f"bias_rate must be 'local' or 'global', got {bias_rate!r}")
    if attenuation not in ("fan-out", "weights", None):
        raise InputError(f"attenuation must be 'fan-out', 'weights' or None, got {attenuation!r}")
    if variance not in ("bound", "measured"):
        raise InputError(f"variance must be 'bound' or 'measured', got {variance!r}")
    if variance == "measured" and attenuation != "fan-out":
        raise InputError(
            f"variance='measured' takes the place of the bound in attenuation={attenuation!r}; leave that at 'fan-out'"
        )
    if center_inputs and not shunt:
        raise InputError("center_inputs=True is a way of shunting, but shunt=False; leave one of the two out")
    _refuse_wrapped(model)
    known = resolve(loss)
    given = checked(activations)
    trace = trace_and_measure(model, sample_input, given)
    _refuse_uncalled(trace)
    if trace.returns_a_loss():
        raise UnsupportedError(_LOSS_INSIDE)
    local = known.local if local_output is None else local_output
    layers = read_layers(trace, known, local, {} if input_power is None else input_power)
    phi = output_ratio(layers, known, _cancelled(trace.last_function(), known))
    linked: Linked = {}
    if attenuation is not None:
        set_attenuations(trace, layers)
    if attenuation == "weights":
        linked = _by_weights(trace, layers)
    elif variance == "measured":
        linked = _by_measured_variance(trace, layers)
    adjoint = _Shunt(momentum=0.9 if center_inputs else None)
    if shunt:
        _choose_shunted(model, layers, adjoint)
    groups = _groups(model, layers, bias_rate)

    prepare_ranks()
    output = _OutputTap(_Residual(known, phi), tuple(node.meta["val"].ndim for node in trace.output_nodes()))
    undo = [model.register_forward_hook(output, with_kwargs=True).remove]
    for layer in layers:
        if layer in linked:
            where, transform, links = linked[layer]
            undo.append(install_linked(model.get_submodule(where), transform, links))
        elif layer.tapped is not None and layer.attenuation is not None and layer.attenuation != 1.0:
            module = model.get_submodule(layer.tapped)
            tap = at_hidden_state(module, Tap(scale(layer.attenuation), ""))
            undo.append(module.register_forward_hook(tap, with_kwargs=True).remove)
        if layer.shunted:
            undo.append(install(model.get_submodule(layer.module), adjoint, model))
    reset_compiler()
    return TemperHandle(model, _table(trace, layers, known, phi, shunt), undo, groups)


def _refuse_wrapped(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        raise InputError(
            f"model is a {type(model).__name__} already; call temper before torch.compile and DistributedDataParallel"
        )
    if any(isinstance(hook, Tap) and isinstance(hook.transform, _Residual) for hook in model._forward_hooks.values()):
        raise InputError(f"this {type(model).__name__} is tempered already; undo() that first")
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"this {type(model).__name__} has no trainable parameter")


def _refuse_uncalled(trace: Trace) -> None:
    called = sorted({operation(node) for node in trace.graph.nodes} - {""})
    for name in trace.given:
        if name not in called:
            raise InputError(
                f"activations[{name!r}]: the trace of {type(trace.model).__name__} calls no such function; it calls "
                f"{', '.join(called)}"
            )


def _cancelled(last: str, loss: Loss) -> float:
    if not loss.cancels:
        return 1.0
    if last != loss.cancels:
        raise UnsupportedError(
            f"loss={loss.name!r} has a bound only behind {loss.cancels}, but the model's last step is {last!r}; use "
            "the loss that takes logits"
        )
    return (bounds(Tensor.sigmoid).slope or 1.0) if loss.cancels == "sigmoid" else 1.0


def _choose_shunted(model: nn.Module, layers: list[Layer], adjoint: shunting) -> None:
    for layer in layers:
        if layer.kind not in ("linear", "convolution"):
            continue
        module = model.get_submodule(layer.module)
        reason = adjoint.supports(module)
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            reason = "not a linear or convolutional module"
        elif any(use.scope != layer.module for use in layer.uses):
            reason = "its own forward is not called"
        elif not any(model.get_parameter(p).requires_grad for p in layer.parameters):
            continue
        if not reason:
            adjoint.check(layer.name, module)
        layer.shunted = not reason
        if reason:
            layer.notes.append(f"not shunted: {reason}")
        if layer.shunted and len(layer.uses) > 1 and module.bias is not None:
            layer.notes.append(f"its bias learns from the mean over {len(layer.uses)} calls")
    # A bias cannot learn from a mean here and from a sum there.
    summed = {id(model.get_parameter(p)) for layer in layers if not layer.shunted for p in layer.parameters}
    for layer in layers:
        if layer.shunted and id(model.get_submodule(layer.module).bias) in summed:
            layer.shunted = False
            layer.notes.append("not shunted: it shares its bias with a layer that is not")


def _by_weights(trace: Trace, layers: list[Layer]) -> Linked:
    linked: Linked = {}
    for layer in layers:
        if layer.tapped is None:
            continue
        plan = plan_weights(trace, layer)
        if isinstance(plan, str):
            layer.notes.append(f"attenuated by its fan-out: {plan}")
            continue
        transform, links = plan
        factor = transform.factor({name: getattr(module, own).detach() for name, (module, own) in links.items()})
        layer.by, layer.attenuation = "weights", float(factor.square().mean().sqrt())
        linked[layer] = (layer.tapped, transform, links)
    return linked


def _by_measured_variance(trace: Trace, layers: list[Layer]) -> Linked:
    plans = plan_measured(trace, layers)
    for layer, (_, transform, _) in plans.items():
        if transform.above:
            layer.by, layer.attenuation = "measured variance", None
    return {**plans}


def _groups(
    model: nn.Module, layers: list[Layer], bias_rate: BiasRate
) -> list[tuple[str, float, bool, list[nn.Parameter]]]:
    rates: dict[int, float] = {}
    fixed: dict[int, bool] = {}
    names: dict[int, str] = {}
    sharing: dict[int, list[tuple[Layer, str]]] = {}
    for layer in layers:
        module = model.get_submodule(layer.module)
        bias = getattr(module, "bias", None) if layer.shunted else None
        for name in layer.parameters:
            parameter = model.get_parameter(name)
            key = id(parameter)
            sharing.setdefault(key, []).append((layer, name))
            # Every call of a shunted layer gives its bias a mean; all of them are one mean over the calls' samples.
            rate = layer.rate / len(layer.uses) if parameter is bias else layer.rate
            rates[key] = min(rates.get(key, math.inf), rate)
            fixed[key] = parameter is bias and bias_rate == "local"
            names.setdefault(key, layer.name)
    for key, sharers in sharing.items():
        for layer, name in sharers if len(sharers) > 1 else ():
            others = ", ".join(repr(other.name) for other, _ in sharers if other is not layer)
            layer.notes.append(f"shares {name!r} with {others}, which learns at the smallest rate, {rates[key]:.3g}")
    groups: dict[tuple[float, bool], tuple[list[str], list[nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = id(parameter)
        if key not in rates:
            raise UnsupportedError(
                f"parameter {name!r} is not used on sample_input, so nothing tells its rate; freeze it with "
                "requires_grad_(False), or give a sample that uses it"
            )
        layers_named, parameters = groups.setdefault((rates[key], fixed[key]), ([], []))
        parameters.append(parameter)
        if names[key] not in layers_named:
            layers_named.append(names[key])
    return [
        (", ".join(named) + (" (bias)" if is_fixed else ""), rate, is_fixed, parameters)
        for (rate, is_fixed), (named, parameters) in groups.items()
    ]


def _table(trace: Trace, layers: list[Layer], loss: Loss, phi: float, shunt: bool) -> Table:
    model = trace.model
    fixed = all(layer.by == "fan-out" for layer in layers)
    effective = effective_rates(trace, layers) if fixed else None
    rows = []
    for layer in layers:
        trainable = [model.get_parameter(p).requires_grad for p in layer.parameters]
        done = ["rate"] if any(trainable) else ["frozen"]
        if layer.by != "fan-out":
            done.append(f"attenuated by {layer.by}")
        elif layer.attenuation != 1.0:
            done.append("attenuated")
        done += ["shunted"] if layer.shunted else []
        values: dict[str, float | int | str | None] = {
            "fan-in": layer.squared_power,
            "fan-out": layer.fan_out,
            "slope": layer.slope,
            "range": layer.range,
            "rate": layer.rate,
            "attenuation": layer.attenuation,
            "effective": None if effective is None else effective[layer.name],
            "power": layer.power_source,
        }
        notes = "; ".join(dict.fromkeys(layer.notes))
        kind = "Parameter" if layer.kind == "parameter" else type(model.get_submodule(layer.module)).__name__
        rows.append(Row(layer.name, kind, ", ".join(done), notes, values))
    remarks = [f"output errors are divided by phi = {phi:.4g}"] if phi != 1 else []
    if shunt and not all(layer.shunted for layer in layers):
        remarks.append("layers that are not shunted learn from plain sums")
    if not fixed:
        remarks.append("no effective rates: attenuations change in training")
    elif effective is None:
        remarks.append("no effective rates: layers that are not adjacent are connected (the paper's footnote 2)")
    return Table(f"Tempered for {loss.name}", rows, "; ".join(remarks))
