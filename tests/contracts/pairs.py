"""Two methods on one model: attached one after the other, trained on digits, and undone.

`python -m tests.contracts.pairs FILE [METHOD]` tries every ordered pair of methods that attach to a plain model, on
both kinds of layers, and writes what came of each: the docs' table of combinations is made from it. With a method, what
the file says of pairs without it stays.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import counterflow  # noqa: F401 - enters the methods in the registry
from counterflow.exceptions import CounterflowError
from counterflow.lab import data
from counterflow.registry import Method, methods

from . import checks

STEPS = 6
BATCH = 64
KINDS: Mapping[str, str] = {"linear": "mlp", "convolution": "cnn"}


def pairable(kind: str) -> list[Method]:
    """Methods that attach to a plain model of a kind, by their own examples, in the order of their keys."""
    found = [each for each in methods().values() if any(example.name == KINDS[kind] for example in each.examples)]
    return sorted(found, key=lambda method: method.key)  # that of registration depends on what was imported first


def make(kind: str) -> nn.Module:
    """A net of digits; its hidden units are rectified, so that units can compete in their place."""
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
    )


def digits(kind: str) -> tuple[Tensor, Tensor]:
    """The first of them, as the net takes them."""
    found = data.digits()
    x = torch.tensor(found.train_images[: STEPS * BATCH] / found.maximum, dtype=torch.float32).reshape(-1, 64)
    y = torch.tensor(found.train_labels[: STEPS * BATCH])
    return (x if kind == "linear" else x.reshape(-1, 1, 8, 8)), y


def train(first: Method, second: Method, kind: str) -> list[float]:
    """Losses by step. The model that is left after undo is the bare one, with the weights that it has learned."""
    x, y = digits(kind)
    bare = make(kind)
    before = checks.hooks(bare)
    model = bare
    handles = []
    for method in (first, second):
        handle = method.attach(model, x[:BATCH])
        handles.append(handle)
        model = handle.model
    losses = []
    torch.manual_seed(1)
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="sum")
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad
        losses.append(float(loss.detach()))
    for handle in reversed(handles):
        handle.undo()
        model = handle.model
    assert all(map(math.isfinite, losses)), f"losses are not finite: {losses}"
    assert checks.hooks(model) == before, "undo leaves something behind"
    plain = make(kind)
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    for got in (model, plain):
        got.zero_grad()
        nn.functional.cross_entropy(got(x[:BATCH]), y[:BATCH], reduction="sum").backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, "after undo a parameter has no gradient"
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), "after undo gradients are not the plain model's"
    return losses


def outcome(first: Method, second: Method, kind: str) -> str:
    """Empty where the pair works, or the line in which it is refused."""
    try:
        losses = train(first, second, kind)
    except CounterflowError as error:
        return " ".join(str(error).split())
    assert train(first, second, kind) == losses, "a second run differs"
    return ""


def main(target: Path, only: str | None = None) -> int:
    """Try all, or all with one method, and write what came of each."""
    if only is not None and only not in methods():
        print(f"METHOD={only}: there is no such method; there are {', '.join(sorted(methods()))}", file=sys.stderr)
        return 2
    known = {} if only is None else json.loads(target.read_text("utf-8"))
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    faults = 0
    for kind in KINDS:
        cells: dict[str, str] = {}
        for number, first in enumerate(pairable(kind), 1):
            print(f"{kind}: {number} of {len(pairable(kind))}, {first.key}", file=sys.stderr)
            for second in pairable(kind):
                pair = f"{first.key}, {second.key}"
                if only not in (None, first.key, second.key) and pair in known.get(kind, {}):
                    cells[pair] = known[kind][pair]
                    continue
                try:
                    cells[pair] = outcome(first, second, kind)
                except Exception as error:
                    faults += 1
                    print(f"{kind}: {pair}: {type(error).__name__}: {error}", file=sys.stderr)
        found[kind] = cells
    new = target.with_name(f"{target.name}.new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(new, target)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
