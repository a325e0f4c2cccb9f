r"""Multiple choice learning: the error goes back only to the members of an ensemble that do best on an example.

Lee, Purushwalkam, Cogswell, Ranjan, Crandall, Batra, "Stochastic Multiple Choice Learning for Training Diverse Deep
Ensembles", NIPS 2016.

==============================  ==================================================================================
the paper                       here
==============================  ==================================================================================
:math:`f_1 \dots f_M`           ``members`` of `MultipleChoice`
:math:`\ell(y_i, f_m(x_i))`     ``losses[m, i]``, per-example losses of shape ``(members, batch)``
:math:`p_{i,m}`                 ``winners[m, i]``, a boolean mask; every column holds ``k`` winners
:math:`k`                       ``k``: 1 is the oracle loss, M a plain ensemble (section 4.1)
==============================  ==================================================================================
"""

from counterflow.choice import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.choice.baselines import Round, train_alternating, train_in_turn
from counterflow.choice.ensemble import MultipleChoice, Step
from counterflow.choice.metrics import (
    assignment_matrix,
    cider_d,
    distinct_ngrams,
    mean_length,
    oracle_accuracy,
    oracle_cider_d,
    oracle_mean_iou,
    plot_assignments,
)
from counterflow.choice.oracle import annealed, choose, oracle_loss, relaxed, weighted_loss, winners, winners_only

__all__ = [
    "MultipleChoice",
    "Round",
    "Step",
    "annealed",
    "assignment_matrix",
    "choose",
    "cider_d",
    "distinct_ngrams",
    "mean_length",
    "oracle_accuracy",
    "oracle_cider_d",
    "oracle_loss",
    "oracle_mean_iou",
    "plot_assignments",
    "relaxed",
    "train_alternating",
    "train_in_turn",
    "weighted_loss",
    "winners",
    "winners_only",
]
