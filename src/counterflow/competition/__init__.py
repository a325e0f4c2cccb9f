r"""Competing units: local winner-take-all, which sends the error through the winner of each block alone.

Srivastava, Masci, Kazerounian, Gomez, Schmidhuber, "Compete to Compute", NIPS 2013.

==========================  ====================================================================================
the paper                   here
==========================  ====================================================================================
:math:`x`                   what the layer before has got, whose outputs are the net inputs ``x`` of `lwta`
:math:`f`                   ``activation`` (2); the identity by default
:math:`h_i^j`               the activation of unit :math:`j` of block :math:`i`
:math:`g`                   ``competition`` (1); the hard winner-take-all by default
:math:`n`                   ``block``; LWTA-n is ``LocalWinnerTakeAll(n)``
:math:`B`                   blocks: as many as there are winners
:math:`y_i^j`               what `lwta` returns
==========================  ====================================================================================

Units of a block are neighbors along one dimension of a tensor of any shape: ``(batch, units)``, ``(batch, channels,
height, width)``, ``(batch, time, units)``; unit :math:`j` of block :math:`i` stands at index :math:`in + j`, from 0.
"""

from counterflow.competition import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.competition.analysis import Subnetworks, monitor, subnetworks, winners_of
from counterflow.competition.exchange import compete
from counterflow.competition.forgetting import Forgetting, Task, measure_forgetting
from counterflow.competition.layers import Competition, LocalWinnerTakeAll, k_winners, lwta, soft_winner, winners
from counterflow.competition.schedules import AnnealedRate, MomentumRamp, max_norm

__all__ = [
    "AnnealedRate",
    "Competition",
    "Forgetting",
    "LocalWinnerTakeAll",
    "MomentumRamp",
    "Subnetworks",
    "Task",
    "compete",
    "k_winners",
    "lwta",
    "max_norm",
    "measure_forgetting",
    "monitor",
    "soft_winner",
    "subnetworks",
    "winners",
    "winners_of",
]
