"""One rank of a distributed training run, started by torchrun: ``ranks.py FOLDER [die]``.

It trains whitened nets, writes a checkpoint after every step, and goes on from there if there is one. With ``die``, the
second rank is killed in the middle of the first attempt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import counterflow as cf
from counterflow.whitening import projection

STEPS, BATCH, DIES_AFTER = 14, 16, 8
X = torch.randn(STEPS * BATCH, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
T = torch.randint(3, (STEPS * BATCH,), generator=torch.Generator().manual_seed(2))

_ZCA: dict[str, Any] = {"samples": 32, "basis": "zca"}
Case = tuple[Callable[[nn.Module], torch.optim.Optimizer], dict[str, Any], bool]
CASES: dict[str, Case] = {
    # The optimizer, options of whiten(), and whether statistics come from a loader.
    "sgd": (lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9), {"samples": 40}, False),
    "errors": (lambda m: torch.optim.SGD(m.parameters(), lr=0.01), {"samples": 40, "errors": 0.1}, False),
    # There are fewer examples than inputs, so that eigenvalues coincide: their PCA is up to chance, their ZCA is not.
    "diagonal": (lambda m: torch.optim.SGD(m.parameters(), lr=0.02), {**_ZCA, "diagonal": True}, True),
    "adam": (lambda m: torch.optim.Adam(m.parameters(), lr=0.01), _ZCA, True),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()


def train(case: str, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train; what `state_dict` holds afterwards."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimize, options, with_loader = CASES[case]
    model = net()
    optimizer = optimize(model)
    loader = [X[:32].chunk(ranks)[rank], X[32:]] if with_loader else None  # 32 are enough
    h = cf.whiten(model, optimizer, every=5, epsilon=0.1, loader=loader, **options)
    start = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    for step in range(start, STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        x, t = (whole[part].chunk(ranks)[rank] for whole in (X, T))
        optimizer.zero_grad()
        F.cross_entropy(parallel(x), t).backward()
        optimizer.step()
        if checkpoint is not None and rank == 0:
            new = checkpoint.with_suffix(".new")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, new)
            new.replace(checkpoint)
        if checkpoint is not None and (sys.argv[2:], rank, step + 1, _attempt()) == (["die"], 1, DIES_AFTER, 0):
            os.kill(os.getpid(), signal.SIGKILL)
    state = model.state_dict()
    h.undo()
    return state


def _attempt() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    solved, basis = 0, projection.whitening_basis

    def counting(*args: Any) -> Any:
        nonlocal solved
        solved += 1
        return basis(*args)

    projection.whitening_basis = counting
    for case in CASES:
        state = train(case, folder / f"{case}.checkpoint")
        if dist.get_rank() == 0:
            torch.save(state, folder / f"{case}.pt")
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, solved)
    if dist.get_rank() == 0:
        (folder / "done.json").write_text(json.dumps({"solved": counts, "attempt": _attempt()}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, and abort it
