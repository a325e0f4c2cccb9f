"""The paper's update in a few lines of NumPy: a slow transliteration that `temper` is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def tempered_step(
    weights: list[Array], biases: list[Array], x: Array, targets: Array, lr: float, shunt: bool
) -> tuple[list[Array], list[Array]]:
    """One batch update of tanh layers under a logistic output with cross-entropy; the output is a local code.

    Args:
        weights: One (out, in) matrix a layer.
        biases: One vector a layer.
        x: (samples, features), one-hot.
        targets: (samples, outputs).
        lr: The global rate.
        shunt: Whether errors are shunted.

    Returns:
        The weights and biases after it.
    """
    # Activations, equation 1.
    activations = [x]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        activations.append(np.tanh(activations[-1] @ w.T + b))
    output = 1 / (1 + np.exp(-(activations[-1] @ weights[-1].T + biases[-1])))
    # Rates, equations 8 and 9: p = s = 1 for tanh, s = 1/4 for the logistic; a one-hot input has (1 + 1)^2 = 4.
    last = len(weights) - 1
    power = [4.0] + [w.shape[1] + 1.0 for w in weights[1:]]
    slope = [1.0] * last + [0.25]
    local = [1 / (s * np.sqrt(p)) for s, p in zip(slope, power, strict=True)]
    # Errors, equations 10, 11 and 14: phi = 1, and no attenuation directly below the output.
    error = targets - output
    new_weights, new_biases = [], []
    for i in range(last, -1, -1):
        centered = error - error.mean(0) if shunt else error
        new_weights.insert(0, weights[i] + lr * local[i] * centered.T @ activations[i])
        step = local[i] * error.mean(0) if shunt else lr * local[i] * error.sum(0)
        new_biases.insert(0, biases[i] + step)
        if i > 0:
            attenuation = 1.0 if i == last else 1 / np.sqrt(weights[i].shape[0])
            error = attenuation * (1 - activations[i] ** 2) * (error @ weights[i])
    return new_weights, new_biases
