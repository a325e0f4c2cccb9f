r"""Recurrent layers: the paper's equations along time.

The paper hopes to extend tempering to recurrent networks, and leaves it there. What follows is our reading. Unrolled in
time, a recurrent layer is a deep network whose layers share their weights:

.. math:: h_t = f(W x_t + U h_{t-1} + b).

**Rates.** Steps are samples, as the pixels of a convolution are: their gradients add up as those of samples do, and the
ceiling of the global rate, :math:`1/\sqrt{|T|}`, counts samples times steps. The squared input power is

.. math:: \xi^2 = \xi_x^2 + \sum_{k=1}^{H} p(f)^2,

with :math:`\xi_x^2` that of the inputs and the biases, by equation 7 where they are external (the mean over samples and
steps) and by (9) else, and :math:`p(f) = 1` for a hidden state that starts within [-1, 1] and does not come from ReLU
or a projection. A layer has one rate for all its gates, that of the candidate, whose slope is at most 1.

**A cell in a loop** is tapped at :math:`h_t`, in every step. The gates of the next step are among the units that
:math:`h_t` feeds, so

.. math:: a = \frac{1}{s(f)\sqrt{|P|}}, \qquad |P| = |P_{\text{above}}| + G H,

with :math:`G` = 1, 3 and 4 gates of :math:`H` units for `nn.RNNCell`, `nn.GRUCell` and `nn.LSTMCell`. All steps have
one :math:`a`, that of the largest :math:`|P|`. Equation 13 then bounds the error in every step by the average (12) over
the errors of the next step and of the layers above, so with weights of size 1 at most it does not grow, however many
steps it goes back. It does shrink with smaller weights: PyTorch's initial ones have :math:`\langle w^2\rangle =
1/(3H)`, and the error's mean square falls by that factor, or further, at each step back. That is what (12) asks for,
but little is left for what lies far back in time. ``attenuation="weights"`` divides by the size of a unit's vector of
recurrent weights in place of :math:`\sqrt{|P|}` (see `counterflow.tempering.attenuation`): the error then shrinks no
more than slopes below their maximum make it.

* A GRU carries its state on past the gates, :math:`h_t = (1 - z) n + z h_{t-1}`. The error on this way was bounded by
  the tap of the next step and meets a weight :math:`z \le 1`: it counts as one more unit, :math:`|P| + 1`. It is
  attenuated with the rest, since both arrive at :math:`h`.
* An LSTM carries its cell state on, and that is not tapped: one factor a step would make the error decay that the cell
  state is there to keep. Errors arrive there attenuated, and add up on their way.
* The forget gate of an LSTM has the slope :math:`|c|/4`, the reset gate of a GRU one in proportion to :math:`U h`.
  Neither has a bound that the architecture knows; both are taken for at most 1.

**A fused layer** (`nn.RNN`, `nn.GRU`, `nn.LSTM`) is tapped at its output and at its last hidden states, so
:math:`|P|` counts the layers above alone. What goes back through time, and down the layers of a stack, stays inside the
kernel, where nothing can be attenuated: it is not bounded. For that, write the loop with cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import nn

from counterflow.backward.tap import Tap
from counterflow.tempering.flow import Flow
from counterflow.tempering.ops import operation
from counterflow.tempering.trace import Power, Trace, Use

__all__ = ["at_hidden_state", "hidden_state", "squared_power"]


def squared_power(trace: Trace, uses: Sequence[Use]) -> Power:
    r""":math:`\xi^2` of a recurrent layer over all its calls, and whether any of it is measured."""
    first = uses[0].facts
    assert first is not None
    hidden = int(first.others[0].meta["val"].shape[1])
    bounded = trace.squashes(uses[0].node)
    # The output of a stack stands for the layers below it.
    own = 1.0 if bounded else fmean(trace.power(trace.hidden_states(use.node)[0]).value for use in uses)
    recurrent = hidden * own**2
    if first.level > 0:
        below = own / first.kept if first.kept > 0 else 0.0
        return Power(first.fan_in * below**2 + first.biases + recurrent, not bounded)
    external = [trace.squared_input_power[use.node] for use in uses if use.node in trace.squared_input_power]
    rest = [use.facts.inputs[0] for use in uses if use.facts and use.node not in trace.squared_input_power]
    powers = [trace.power(node) for node in rest]
    inputs = fmean(external) if external else 0.0
    if powers:  # a loop may begin with an external input and go on with its own outputs
        inputs = max(inputs, first.fan_in * fmean(power.value for power in powers) ** 2 + first.biases)
    return Power(inputs + recurrent, not bounded or bool(external) or any(power.measured for power in powers))


def hidden_state(trace: Trace, uses: Sequence[Use], flows: Sequence[Flow], counted: float) -> tuple[bool, list[str]]:
    """Whether the errors of a recurrent layer's hidden state can be attenuated, and what remains unbounded.

    Args:
        trace: The trace.
        uses: The layer's calls.
        flows: Where each of them leads.
        counted: The fan-out of its hidden state.
    """
    first = uses[0]
    name = operation(first.node)
    if any(consumer.node is first.node for consumer in flows[0].consumers):
        return False, ["not attenuated: its errors stay inside the fused kernel, where they are not bounded"]
    notes = []
    if not name.endswith("_cell"):
        notes.append("what goes back through time inside the fused kernel is not bounded")
    if not counted:
        feeds = any(flow.consumers for flow in flows)
        return False, [*notes, *(["not attenuated: its hidden state feeds no layer"] if feeds else [])]
    if name.startswith("lstm") and not isinstance(trace.model.get_submodule(first.scope), nn.LSTM | nn.LSTMCell):
        return False, [*notes, "not attenuated: the cell state is no output of its own"]
    if name == "lstm_cell":
        notes.append("errors that the cell state carries are not attenuated")
    if name == "gru_cell" and any(use in flow.carried for flow in flows for use in uses):
        notes.append("the state that passes by the gates is attenuated too")
    return True, notes


class HiddenTap:
    """Has a tap act on all that an LSTM or its cell puts out but the cell state.

    Args:
        tap: The tap.
    """

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.transform = tap.transform  # as a tap has it, for those who ask what is done here

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if isinstance(module, nn.LSTMCell):
            hidden, cell = output
            return self.tap(module, args, kwargs, (hidden,))[0], cell
        outputs, (hidden, cell) = output
        outputs, hidden = self.tap(module, args, kwargs, (outputs, hidden))
        return outputs, (hidden, cell)


def at_hidden_state(module: nn.Module, tap: Tap) -> Tap | HiddenTap:
    """A tap as it goes on a module: what is no LSTM has no cell state to leave alone."""
    return HiddenTap(tap) if isinstance(module, nn.LSTM | nn.LSTMCell) else tap
