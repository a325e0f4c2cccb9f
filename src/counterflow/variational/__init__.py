r"""Variational dropout: weights with a posterior, noise that is drawn where it is cheap, and rates that are learned.

D. P. Kingma, T. Salimans, M. Welling, "Variational Dropout and the Local Reparameterization Trick", Advances in Neural
Information Processing Systems 28 (NIPS), 2015.

=====================================  =================================================================================
the paper                              here
=====================================  =================================================================================
:math:`\theta`, :math:`\mu`            ``weight``: posterior means
:math:`\alpha`                         ``rate``, as ``log_alpha()``; :math:`\alpha = p / (1 - p)`
:math:`\sigma^2`                       ``log_variance``, of a posterior with a variance of its own
:math:`\gamma, \delta, \zeta`          mean, variance and noise of the pre-activations
A, B                                   ``noise="A"``, on the inputs, and ``"B"``, on the pre-activations
:math:`N, M`                           ``data_size``, and the size of a batch
=====================================  =================================================================================

Inputs are ``(batch, ..., features)`` for linear layers and ``(batch, channels, ...)`` for convolutions.
"""

import counterflow.variational.methods  # noqa: F401  it registers itself
from counterflow.variational.attention import VariationalMultiheadAttention
from counterflow.variational.conversion import VariationalHandle, deterministic, make_variational
from counterflow.variational.divergence import Approximation, dropout_kl, gaussian_kl
from counterflow.variational.dropout import GaussianDropout
from counterflow.variational.estimators import estimating, gradient_variance
from counterflow.variational.layers import (
    VariationalConv1d,
    VariationalConv2d,
    VariationalConv3d,
    VariationalLinear,
)
from counterflow.variational.noise import Estimator
from counterflow.variational.objective import Bound, elbo, kl, warm_up
from counterflow.variational.posterior import Noise, Rates
from counterflow.variational.predictive import Draws, sample
from counterflow.variational.priors import GaussianPrior, Prior, ScaleMixturePrior
from counterflow.variational.pruning import prune

__all__ = [
    "Approximation",
    "Bound",
    "Draws",
    "Estimator",
    "GaussianDropout",
    "GaussianPrior",
    "Noise",
    "Prior",
    "Rates",
    "ScaleMixturePrior",
    "VariationalConv1d",
    "VariationalConv2d",
    "VariationalConv3d",
    "VariationalHandle",
    "VariationalLinear",
    "VariationalMultiheadAttention",
    "deterministic",
    "dropout_kl",
    "elbo",
    "estimating",
    "gaussian_kl",
    "gradient_variance",
    "kl",
    "make_variational",
    "prune",
    "sample",
    "warm_up",
]
