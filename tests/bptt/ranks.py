"""One of two processes of `test_ranks`: DistributedDataParallel around cores that run within a budget.

Run as a script, ``ranks.py RANK PORT OUT``; the first process writes to OUT, as JSON, what went wrong by case.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from counterflow.bptt import limit, unroll

BATCH, TIME, WIDTH = 6, 15, 3


class Model(nn.Module):
    """A cell, a fused layer and a head; with ``unused``, a layer that the first rank alone uses."""

    def __init__(self, budgeted: bool, unused: bool) -> None:
        super().__init__()
        self.cell, self.layer, self.head = nn.GRUCell(WIDTH, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)
        self.budgeted = budgeted
        if unused:
            self.extra = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.budgeted:
            y, _ = unroll(self.cell, x, slots=3, strategy="hidden")
        else:
            state, steps = x.new_zeros(len(x), 4), []
            for t in range(TIME):
                state = self.cell(x[:, t], state)
                steps.append(state)
            y = torch.stack(steps, 1)
        y = self.head(self.layer(y)[0])
        if hasattr(self, "extra") and dist.get_rank() == 0:
            y = y + 0 * self.extra(x.new_ones(1)).sum()
        return y


def make(budgeted: bool, unused: bool) -> Model:
    torch.manual_seed(0)
    model = Model(budgeted, unused).double()
    if budgeted:
        limit(model, "24KiB", chunk=2)
    return model


def gradients(model: nn.Module, forward: nn.Module, x: Tensor) -> dict[str, Tensor]:
    forward(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(options: dict[str, bool]) -> None:
    torch.manual_seed(1)
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    unused = options.get("find_unused_parameters", False)
    plain = make(False, unused)
    wanted = gradients(plain, plain, x)
    model = make(True, unused)
    parallel = DistributedDataParallel(model, **options)
    mine = x[:2] if dist.get_rank() == 0 else x[2:]
    for step in range(3):
        parallel.zero_grad()
        got = gradients(model, parallel, mine)
        for name, value in wanted.items():
            if not name.startswith("extra"):
                off = float((2 * got[name] - value).abs().max())
                assert off < 1e-10, f"{options}, step {step}: {name} is off by {off}"


def main(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, str | None] = {}
    for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        error: str | None = None
        try:
            check(options)
        except Exception as problem:
            error = f"rank {rank}: {type(problem).__name__}: {problem}"
        errors: list[str | None] = [None, None]
        dist.all_gather_object(errors, error)
        found["".join(options) or "plain"] = next((each for each in errors if each), None)
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.barrier()  # nobody leaves while the other still talks to them
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # the threads of gloo and of the compiler can abort an interpreter that takes itself apart
