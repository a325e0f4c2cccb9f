"""A probe's table as scalars: for TensorBoard, Weights & Biases, and whatever else takes numbers by name."""

from __future__ import annotations

from typing import Any

from counterflow.backward.probe import Probe
from counterflow.exceptions import InputError

__all__ = ["log_probe"]

_NAMES = {"mean share": "mean_share", "signal/noise": "signal_to_noise"}  # a slash would begin a section


def log_probe(seen: Probe, to: Any, step: int, *, prefix: str = "error") -> dict[str, float]:
    """Log what a probe saw since it was logged last.

    The scalars are ``error/rms/LAYER``, and so on for ``mean_share``, ``sparsity``, ``signal_to_noise`` and ``drift``:
    averages over the steps that were looked at since the last call (`Probe.recent`). What is not defined is left out.

    Args:
        seen: What `counterflow.probe` returned.
        to: Where to: a TensorBoard ``SummaryWriter`` or all else with ``add_scalar(name, value, step)``; a Lightning
            logger, with ``log_metrics(values, step)``; a run of Weights & Biases or all else with ``log(values,
            step=step)``; a function of (values, step).
        step: The number of the step, as the logger counts.
        prefix: What the names begin with.

    Returns:
        The scalars by name.

    Raises:
        InputError: If ``seen`` is no probe, or ``to`` has none of these.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow.integrations import log_probe
        >>> model = torch.nn.Linear(4, 1)
        >>> with cf.probe(model) as seen:
        ...     for step in range(2):
        ...         model(torch.eye(4) * (step + 1)).square().sum().backward()
        >>> values = log_probe(seen, lambda values, step: print(step, *values), step=2)
        2 error/rms/ error/mean_share/ error/sparsity/ error/signal_to_noise/ error/drift/
        >>> values["error/rms/"] > 0
        True
    """
    if not isinstance(seen, Probe):
        raise InputError(f"seen must be what cf.probe(model) returned, got {type(seen).__name__}")
    put = _writer(to)
    values = {
        f"{prefix}/{_NAMES.get(name, name)}/{layer}": value
        for layer, statistics in seen.recent().items()
        for name, value in statistics.items()
        if value is not None
    }
    put(values, step)
    return values


def _writer(to: Any) -> Any:
    """The function of (values, step) that a logger amounts to."""
    if hasattr(to, "add_scalar"):

        def each(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                to.add_scalar(name, value, step)

        return each
    if hasattr(to, "log_metrics"):
        return lambda values, step: to.log_metrics(values, step)
    if hasattr(to, "log"):
        return lambda values, step: to.log(values, step=step)
    if callable(to):
        return to
    raise InputError(
        "to must have add_scalar(), log_metrics() or log(), or be a function of (values, step), "
        f"got {type(to).__name__}"
    )
