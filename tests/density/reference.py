"""Slow transliterations of the paper's equations, for tiny models, written in loops over states and paths."""

from __future__ import annotations

import itertools
import math

import numpy as np


def log_normal(x, mean, variance):
    """Logarithm of an axis-aligned Gaussian's density."""
    return -0.5 * sum(math.log(2 * math.pi * v) + (a - m) ** 2 / v for a, m, v in zip(x, mean, variance, strict=True))


def joint(path, x, pi, a, mean, variance):
    """Equation 15's joint log-likelihood, of one path."""
    total = math.log(pi[path[0]]) + log_normal(x[0], mean[path[0]], variance[path[0]])
    for t in range(1, len(x)):
        total += math.log(a[path[t - 1]][path[t]]) + log_normal(x[t], mean[path[t]], variance[path[t]])
    return total


def enumerate_paths(x, pi, a, mean, variance):
    """The log-likelihood, <delta_st>, sum of <delta_st delta_st-1>, and the best path, by visiting every path."""
    S = len(pi)
    paths = list(itertools.product(range(S), repeat=len(x)))
    logs = np.array([joint(path, x, pi, a, mean, variance) for path in paths])
    total = np.logaddexp.reduce(logs)
    gamma, xi = np.zeros((len(x), S)), np.zeros((S, S))
    for path, log in zip(paths, logs, strict=True):
        p = math.exp(log - total)
        for t, state in enumerate(path):
            gamma[t, state] += p
            if t:
                xi[path[t - 1], state] += p
    best = int(logs.argmax())
    return total, gamma, xi, paths[best], logs[best]


def derivatives(x, pi, a, mean, variance):
    """Equations 16 to 19, in the paper's order: theta^(a), theta^(pi), mu, theta^(v)."""
    _, gamma, xi, *_ = enumerate_paths(x, pi, a, mean, variance)
    T, S = gamma.shape
    D = x.shape[1]
    to_a, to_pi, to_mu, to_v = np.zeros((S, S)), np.zeros(S), np.zeros((S, D)), np.zeros((S, D))
    for i in range(S):
        to_pi[i] = gamma[0, i] - pi[i]
        for j in range(S):
            to_a[i, j] = xi[i, j] - sum(gamma[t - 1, i] for t in range(1, T)) * a[i][j]
        for d in range(D):
            to_mu[i, d] = sum(gamma[t, i] * (x[t, d] - mean[i, d]) for t in range(T)) / variance[i, d]
            to_v[i, d] = 0.5 * sum(gamma[t, i] * ((x[t, d] - mean[i, d]) ** 2 / variance[i, d] - 1) for t in range(T))
    return to_a, to_pi, to_mu, to_v
