"""A probe's table in TensorBoard, and in whatever else takes numbers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow.exceptions import InputError
from counterflow.integrations import log_probe

from .nets import needed

NAMES = {
    f"error/{statistic}/{layer}"
    for statistic in ("rms", "mean_share", "sparsity", "signal_to_noise", "drift")
    for layer in ("0", "2")
}


def train(log: Callable[[Any, int], object], steps: int = 12, every: int = 4) -> dict[str, list[float]]:
    """Train and log; what the probe saw step by step, averaged between two entries of the log."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with cf.probe(model, every=1) as seen:
        for step in range(1, steps + 1):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % every == 0:
                log(seen, step)
    wanted = {}
    for layer in ("0", "2"):
        history = seen.history(layer)
        for name, key in (("rms", "rms"), ("signal_to_noise", "signal/noise"), ("drift", "drift")):
            parts = history[key].reshape(-1, every)
            wanted[f"error/{name}/{layer}"] = np.nanmean(parts, 1).tolist()
    return wanted


@pytest.mark.filterwarnings("ignore")  # what the package warns of is not ours to mend
def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    needed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        wanted = train(lambda seen, step: log_probe(seen, writer, step))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == NAMES
    for name, values in wanted.items():
        found = events.Scalars(name)
        assert [event.step for event in found] == [4, 8, 12]
        np.testing.assert_allclose([event.value for event in found], values, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_take_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = needed("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    # Nothing of the machine is looked at, which would only take time.
    quiet = wandb.Settings(
        console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
    )
    run = wandb.init(mode="offline", dir=str(tmp_path), project="error", settings=quiet)
    try:
        wanted = train(lambda seen, step: log_probe(seen, run, step))
        run.log({})  # the last step counts once it is closed
        found = dict(run.summary)
    finally:
        run.finish()
    assert found.keys() >= NAMES
    assert found["_step"] == 12
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values[-1])
    assert list(tmp_path.rglob("run-*.wandb"))


def test_loggers_of_every_kind_are_given_the_same() -> None:
    class Metrics:
        def log_metrics(self, values: dict[str, float], step: int) -> None:
            self.values = (values, step)

    class Log:
        def log(self, values: dict[str, float], step: int) -> None:
            self.values = (values, step)

    model = nn.Linear(3, 2)
    with cf.probe(model, every=1) as seen:
        model(torch.randn(4, 3)).sum().backward()
        first, second = Metrics(), Log()
        given = log_probe(seen, first, 1, prefix="net")
        assert {"net/rms/", "net/mean_share/", "net/sparsity/"} <= set(given)
        assert first.values == (given, 1)
        assert log_probe(seen, second, 2) == {}  # nothing new was seen
        assert second.values == ({}, 2)
        with pytest.raises(InputError, match=r"to must have add_scalar\(\), log_metrics\(\) or log\(\)"):
            log_probe(seen, 3, 1)
    with pytest.raises(InputError, match="seen must be what"):
        log_probe(model, print, 1)  # type: ignore[arg-type]
