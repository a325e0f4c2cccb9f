"""Two answers to one question: recurrent members of competing units share the examples, each within a memory budget.

    python examples/diverse_readers.py [PICTURE] [SEEDS] [UPDATES] [LONG]

A sequence begins with one of three signs, and each sign has two right answers, of which an example names one by
chance. One net can only hedge. Of two members trained by multiple choice one learns the one answer and the other the
other, and an oracle who may pick is content: the error of an example goes to the member that was nearest, and to no
other. Within a member units compete in pairs, so that the error goes to half of them only. And of all steps a member
keeps no more for the way back than a budget allows; the rest is computed again. One would want all three for
ensembles of readers of long sequences: members that differ, units that share the work out, and memory that does not
grow with either.

The budget changes no gradient, which its rows show, and what it is for stands beside them: the most bytes that an
update of 120 steps had made and still held, whatever for. The budget is for what the way back needs; the outputs of
all steps, which `counterflow.bptt.unroll` gives back, are the caller's, and here they are most of what is held. All
ways have the same data, first weights and updates, and each the best of as many rates, chosen on other seeds than it
is judged by.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from comparison import Comparison, compare, error_path
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import counterflow as cf

SIGNS, STEPS, BATCH, WIDTH, JUDGED = 3, 12, 32, 16, 600
BUDGET = "24KiB"
RATES = (0.01, 0.03)
SPLIT = nn.CrossEntropyLoss(reduction="none")


class Core(nn.Module):
    """One step: ``(x_t, state) -> (y_t, state)``, which begins by remembering all."""

    def __init__(self, competing: bool) -> None:
        super().__init__()
        self.inputs, self.recurrent = nn.Linear(SIGNS, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.act = cf.LocalWinnerTakeAll(2) if competing else nn.ReLU()
        nn.init.eye_(self.recurrent.weight)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state is the output."""
        state = self.act(self.inputs(x) + self.recurrent(state))
        return state, state


class Reader(nn.Module):
    """Reads a sequence, within a budget or by a plain loop, and answers."""

    def __init__(self, competing: bool, budget: str | None) -> None:
        super().__init__()
        self.core, self.head, self.budget = Core(competing), nn.Linear(WIDTH, SIGNS), budget

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, signs) to (batch, answers)."""
        state = x.new_zeros(len(x), WIDTH)
        if self.budget is not None and torch.is_grad_enabled():
            _, state = cf.bptt.unroll(self.core, x, state, budget=self.budget)
        else:
            for now in x.unbind(1):
                _, state = self.core(now, state)
        return self.head(state)


class Held(TorchDispatchMode):
    """The most bytes that operations had made and that were alive whenever a core began a step."""

    def __init__(self, ensemble: nn.Module) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.most = 0
        for module in ensemble.modules():
            if isinstance(module, Core):
                module.register_forward_pre_hook(self.look)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Remember what an operation has made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.alive.setdefault(StorageWeakRef(leaf.untyped_storage()), leaf.untyped_storage().nbytes())
        return result

    def look(self, *_: object) -> None:
        """Count what is alive now."""
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(self.alive.values()))


def examples(count: int, source: torch.Generator, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """A sign, then noise, (count, steps, signs); and one of its two answers."""
    signs = torch.randint(SIGNS, (count,), generator=source)
    x = 0.1 * torch.randn(count, steps, SIGNS, generator=source)
    x[:, 0] += nn.functional.one_hot(signs, SIGNS)
    return x, (signs + torch.randint(2, (count,), generator=source)) % SIGNS


def readers(competing: bool, budget: bool, seed: int) -> cf.MultipleChoice:
    """Two members as they begin."""
    torch.manual_seed(seed)
    return cf.MultipleChoice([Reader(competing, BUDGET if budget else None) for _ in range(2)])


def learn(ensemble: cf.MultipleChoice, choosing: bool, x: Tensor, y: Tensor) -> None:
    """Gradients of one batch: of the winners, or of every member on every example."""
    if choosing:
        ensemble.step(x, y, SPLIT)
    else:
        for member in ensemble.members:
            SPLIT(member(x), y).mean().backward()


def main(picture: str = "", seeds: int | str = 6, updates: int | str = 60, long: int | str = 120) -> Comparison:
    """Train all ways on all seeds."""
    seeds, updates = int(seeds), int(updates)
    ways = {
        "none of the three": (False, False, False),
        "competing units": (True, False, False),
        "multiple choice": (False, True, False),
        "memory budget": (False, False, True),
        "competing units, multiple choice": (True, True, False),
        "all three": (True, True, True),
    }

    def score(way: str, rate: float, seed: int) -> float:
        competing, choosing, budget = ways[way]
        ensemble = readers(competing, budget, seed)
        optimizer = torch.optim.Adam(ensemble.parameters(), rate)
        source = torch.Generator().manual_seed(seed)
        for _ in range(updates):
            optimizer.zero_grad()
            learn(ensemble, choosing, *examples(BATCH, source))
            nn.utils.clip_grad_norm_(ensemble.parameters(), 1.0)
            optimizer.step()
        x, y = examples(JUDGED, torch.Generator().manual_seed(10_000 + seed))
        with torch.no_grad():
            return 100.0 * float((ensemble(x).argmax(-1) != y).all(0).double().mean())

    found = compare("Examples that no member has right, %", list(ways), RATES, score, seeds)
    batch, longer = (examples(BATCH, torch.Generator().manual_seed(0), steps) for steps in (STEPS, int(long)))
    for way, (competing, choosing, budget) in ways.items():
        ensemble = readers(competing, budget, 0)
        with Held(ensemble) as held:
            learn(ensemble, choosing, *longer)
        found.notes.setdefault(way, {})["held"] = f"{held.most / 1024:.0f} KiB"
        if way in ("none of the three", "all three"):
            layers = {
                "members.0.head": "answer",
                "members.0.core.recurrent": "recurrent layer",
                "members.0.core.inputs": "input layer",
            }
            found.paths[way] = error_path(ensemble, lambda e=ensemble, c=choosing: learn(e, c, *batch), layers)
    found.heading = "The error of one of two members, at its first step"
    return found.show(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
