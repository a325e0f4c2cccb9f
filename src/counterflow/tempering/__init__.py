r"""Tempering: learning rates and error scales for each layer, from the network's architecture alone.

Schraudolph, Sejnowski, "Tempering Backpropagation Networks: Not All Weights are Created Equal", NIPS 1995.

=========================  ==================================================================================
the paper                  here
=========================  ==================================================================================
:math:`f_j, y_j, x_j`      a unit's activation function, its net input, its activation
:math:`\eta`               ``lr`` of `TemperHandle.param_groups`
:math:`\eta_j / \eta`      the table's ``rate``: :math:`1 / (s(f_j)\sqrt{\xi_j^2})` (8)
:math:`\xi_j^2`            the table's ``fan-in``: the total squared input power (7, 9), the bias input counted in it
:math:`s(f)`               the table's ``slope``: :math:`\max |f'|` (5)
:math:`p(f)`               the table's ``range``: :math:`\max f^2` (9)
:math:`|P_i|`              the table's ``fan-out``: how many units a unit feeds
:math:`a_i`                the table's ``attenuation``: :math:`1 / (s(f_i)\sqrt{|P_i|})` (14)
:math:`\phi_j`             the scale of the output error (10), see `counterflow.tempering.losses`
:math:`\eta^*`             the ceiling of the global rate, :math:`1/\sqrt{|T|}` for a batch of :math:`|T|` samples (18)
=========================  ==================================================================================

Rates refer to gradients *summed* over the batch (15).

What the scan damages, and how it was derived:

* (7): :math:`\xi_j^2 = \langle (\sum_i x_i^2)^2 \rangle`. It must be so for (6) to follow from (3), and a local code
  with its bias then has :math:`(1 + 1)^2 = 4`, as section 6 says. Its root enters (8): figure 1 has 4, 13, 13 and 7,
  and effective rates of 1.512, .277, .113 and .059 from output to input, which the figure rounds down.
* (9): for inputs from other units :math:`\xi_j^2 = \sum_i p(f_i)^2`.
* (10): see `counterflow.tempering.losses`.
* (14): follows from setting (12) equal to (13).
* (19): a bias learns from the mean error, with the local rate but without the global one:
  :math:`\Delta b_j = \langle\delta_j\rangle / (s(f_j)\sqrt{\xi_j^2})`. Of the readings that the text allows this one
  comes nearest to the published numbers; ``bias_rate="global"`` is the other one.

Beyond the paper, for networks that it does not treat:

* Convolution: fan-in is the size of its patch; pixels are samples, for the ceiling of the global rate too.
* An embedding is a linear layer on a one-hot input (:math:`\xi^2 = 1`), a bare parameter a unit's bias (the same).
  Of a bag of words as many inputs are active as there are words, so `nn.EmbeddingBag` is refused.
* Normalization has inputs of unit power (:math:`\xi^2 = 1 + 1` with a bias), an elementwise scale of unit power at
  least.
* External inputs are measured by (7) on the sample. Where a function has no bound, as ReLU has none, its :math:`p` is
  the mean square on the sample, at the start; state ``input_power`` where it will grow.
* A skip is no unit: what lies behind it is fed by the layer before it too.
* Fixed linear maps (pooling, means, the mixing of attention) count as weights, and leave the scale of the error as it
  is.
* Recurrent layers are deep networks in time: steps are samples, fan-in and fan-out count the recurrent connections,
  and errors are attenuated where they can be reached (see `counterflow.tempering.recurrent`).
"""

from counterflow.tempering import methods as _methods  # noqa: F401 - enters it in the registry
from counterflow.tempering.activations import Bounds
from counterflow.tempering.tempered import TemperHandle, temper

__all__ = ["Bounds", "TemperHandle", "temper"]
