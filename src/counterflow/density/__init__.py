"""Backpropagation through competing hidden Markov models.

Source: Brown, Hinton, "Relative Density Nets: A New Way to Combine Backpropagation with HMMs", NIPS 2001.
"""

from counterflow.density import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.density.backends import use_backend
from counterflow.density.classifier import RelativeDensityClassifier
from counterflow.density.hmm import Backend, GaussianHMM, Tied, Topology, pad
from counterflow.density.nets import (
    Alphanet,
    ComparativeDensityNet,
    ComparativeDensityNet1,
    DensityNet,
    MatchedSizes,
    MixtureNet,
    RelativeDensityNet,
    matched_sizes,
)
from counterflow.density.training import Training, conjugate_gradients, train

__all__ = [
    "Alphanet",
    "Backend",
    "ComparativeDensityNet",
    "ComparativeDensityNet1",
    "DensityNet",
    "GaussianHMM",
    "MatchedSizes",
    "MixtureNet",
    "RelativeDensityClassifier",
    "RelativeDensityNet",
    "Tied",
    "Topology",
    "Training",
    "conjugate_gradients",
    "matched_sizes",
    "pad",
    "train",
    "use_backend",
]
