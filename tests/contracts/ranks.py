"""One rank of the distributed contract: two processes with a part of the batch each, against one with all of it.

Run as a script, ``ranks.py RANK PORT OUT``, by `test_ranks`. All methods go through one pair of processes, to save
the start-up; the first writes to OUT, as JSON, what went wrong by method and example, null where nothing did.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import counterflow  # noqa: F401 - enters the methods in the registry
from counterflow.registry import Example, Method, methods

if __package__:
    from . import broken, checks
else:  # as a script, whose own folder is on the path
    import broken
    import checks

RANKS = 2
SIZES = (1, 7)  # unequal on purpose; one example by itself would be refused
STEPS = 2

Run = tuple[list[checks.Gradients], checks.Gradients]  # gradients by step, and state afterwards


class _WithUnused(nn.Module):
    """A model beside a layer that the first rank alone uses, which needs ``find_unused_parameters``."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.extra = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.core(x)
        return y + 0.0 * self.extra(y.new_ones(1)).sum() if dist.get_rank() == 0 else y


def alone(method: Method, example: Example) -> Run:
    """What one process makes of the whole batch."""
    model, _ = checks.attached(method, example)
    data = checks.make_data(example, sum(SIZES))
    steps = [checks.gradients(example, model, data) for _ in range(STEPS)]
    for step in steps:
        step.pop("<input>", None)
    return steps, checks.own_state(model, checks.make_model(example))


def _summed(own: checks.Gradients) -> checks.Gradients:
    """Gradients of all ranks' parts, added up."""
    own.pop("<input>", None)
    for value in own.values():
        dist.all_reduce(value)
    return own


def together(method: Method, example: Example, unused: bool) -> tuple[Run, list[checks.Gradients]]:
    """What two make of it; and where there is noise, the sum of what each makes of its part with the same noise."""
    wanted: list[checks.Gradients] = []
    full = checks.make_data(example, sum(SIZES))
    mine = slice(0, SIZES[0]) if dist.get_rank() == 0 else slice(SIZES[0], None)
    x, t = full[0][mine], full[1][mine]
    model, handle = checks.attached(method, example)
    seeds = [RANKS * index + dist.get_rank() for index in range(STEPS)]  # noise of its own on every rank
    if method.random:  # before the model is wrapped: from then on every backward pass is everybody's
        wanted = [_summed(checks.gradients(example, model, (x, t), seed=seed)) for seed in seeds]
    wrapped = _WithUnused(model) if unused else model
    parallel = DistributedDataParallel(wrapped, find_unused_parameters=unused)
    steps = []
    for seed in seeds:
        torch.manual_seed(seed)
        parallel.zero_grad()
        example.loss(parallel(x), t).backward()
        # The loss is a sum, and DistributedDataParallel averages.
        factor = 1 if method.sums_ranks else RANKS
        steps.append({name: factor * p.grad for name, p in model.named_parameters() if p.grad is not None})
    state = checks.own_state(model, checks.make_model(example))
    handle.undo()
    return (steps, state), wanted


def check_ranks(wanted: Run, method: Method, example: Example) -> None:
    # All collective work first: a rank that stopped at a difference would leave the other one waiting.
    runs = {unused: together(method, example, unused) for unused in (False, True)}
    for unused, ((steps, state), noisy) in runs.items():
        what = f"two ranks, find_unused_parameters={unused}"
        for index, got in enumerate(steps):
            checks.assert_close(got, (noisy if method.random else wanted[0])[index], f"{what}, step {index}")
        if state and not method.random:
            checks.assert_close(state, wanted[1], f"{what}: state")


def main(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    entries = [*methods().values(), *(entry for entry, contract in broken.METHODS if contract == "ddp")]
    cases = [(method, example) for method in entries for example in method.examples]
    expected = [None if "ddp" in method.waivers else alone(method, example) for method, example in cases]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, str | None] = {}
    for (method, example), wanted in zip(cases, expected, strict=True):
        error: str | None = None
        try:
            checks.hold(method, "ddp", example, partial(check_ranks, wanted))
        except Exception as problem:
            error = f"rank {rank}: {type(problem).__name__}: {problem}"
        errors: list[str | None] = [None] * RANKS
        dist.all_gather_object(errors, error)
        found[f"{method.key}-{example.name}"] = next((each for each in errors if each), None)
    if rank == 0:
        out.write_text(json.dumps(found))
    dist.barrier()  # nobody leaves while the other still talks to them
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # the threads of gloo and of the compiler can abort an interpreter that takes itself apart
