"""The step of multiple choice learning beside the naive one: the time of forward and backward, and the peak of memory.

    python benchmarks/choice.py [--json FILE] [--repeats N] [--formats FORMAT ...]

Ensembles of CIFAR10-Quick with Caffe's initialization. The naive step builds a graph of all members and masks their
losses; ours runs all members without a graph, and the winners' rows again. Processor time of one thread, both taking
turns, medians of the turns' ratios; ``again`` is a second naive ensemble: what the measurement itself is worth. Memory
is the peak of what lives on torch's allocator during a step above what it leaves, from its profiler. The bars are 0.65
and 0.56 for five members at batches of 128 and 350, 0.57 and 0.50 for ten, and no more memory than the naive step. The
floor is (F + (F + B) / M) / (F + B) for measured times F without a graph and B of one member. Both steps are run with
pictures and weights as they come and in the channels-last format, in which the forward pass is a smaller part of the
whole: max pooling is several times as fast in it. Rows in the JSON file that are not run again stay.

The peer is torchensemble's VotingClassifier, a plain ensemble that owns its loop: an epoch of ours with k = M in a
plain loop over one of its fit(), SGD, the same DataLoader. It declares torchvision, which it does not need here:
`pip install --no-deps torchensemble`. If it is missing it is left out, and said so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import counterflow as cf
from counterflow.lab.papers.choice.nets import quick

sys.path.insert(0, str(Path(__file__).parent))
from common.command import output, positive, status_of
from common.measuring import in_turns, ratio, timed
from common.records import read_record, write_record

BARS = {(5, 128): 0.65, (5, 350): 0.56, (10, 128): 0.57, (10, 350): 0.50}
PEER = "torchensemble VotingClassifier"
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out, y, reduction="none")


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(256, (size, 3, 32, 32)).float() - 128, torch.randint(10, (size,))


def steps_of(members: int, batch: int, form: str) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of each kind."""
    x, y = batch_of(batch)
    x = x.contiguous(memory_format=FORMATS[form])

    def ensemble() -> cf.MultipleChoice:
        return cf.MultipleChoice([quick(seed).to(memory_format=FORMATS[form]) for seed in range(members)])

    def naive(model: cf.MultipleChoice) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            loss, _ = cf.oracle_loss(model.losses(x, y, cross_entropy))
            loss.backward()

        return step

    def ours(model: cf.MultipleChoice) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            model.step(x, y, cross_entropy)

        return step

    return {"naive": naive(ensemble()), "again": naive(ensemble()), "ours": ours(ensemble())}


def floor(members: int, batch: int, form: str, repeats: int) -> float:
    """What the number of forward and backward passes allows."""
    x, y = batch_of(batch)
    x = x.contiguous(memory_format=FORMATS[form])
    net = quick(0).to(memory_format=FORMATS[form])

    def both() -> None:
        net.zero_grad()
        cross_entropy(net(x), y).mean().backward()

    def forward() -> None:
        with torch.no_grad():
            net(x)

    times = in_turns({"both": timed(both), "forward": timed(forward)}, repeats, warm=2)
    return ratio(times["forward"], times["both"])["ratio"] + 1 / members


def peak(call: Callable[[], object]) -> int:
    """The most bytes that live at once during a call, above what it leaves: the gradients, before it as after it."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    lives = np.cumsum([size for _, size in changes])
    # Against the end and not the beginning: what was there before is freed unseen.
    return int(lives.max() - lives[-1])


def case(members: int, batch: int, form: str, repeats: int) -> dict[str, Any]:
    """One row."""
    steps = steps_of(members, batch, form)
    times = in_turns({name: timed(step) for name, step in steps.items()}, repeats, warm=2)
    memory = {name: peak(steps[name]) for name in ("naive", "ours")}
    row: dict[str, Any] = {"members": members, "batch": batch, "format": form, "bar": BARS.get((members, batch))}
    row |= {"naive ms": 1e3 * float(np.median(times["naive"])), "again": ratio(times["again"], times["naive"])["ratio"]}
    row |= {**ratio(times["ours"], times["naive"]), "ratios": "turn by turn"}
    row |= {"floor": floor(members, batch, form, repeats), "naive bytes": memory["naive"], "bytes": memory["ours"]}
    met = memory["ours"] <= memory["naive"] and (row["bar"] is None or row["ratio"] <= row["bar"])
    return row | {"pass": met}


def peer(repeats: int, members: int = 5, batch: int = 128, batches: int = 4) -> dict[str, Any]:
    """A plain ensemble's epoch beside that of torchensemble."""
    row: dict[str, Any] = {"peer": PEER, "members": members, "batch": batch}
    try:
        from torchensemble import VotingClassifier
    except ImportError:
        return row | {"missing": "torchensemble is not installed"}
    x, y = batch_of(batch * batches)
    loader: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch, shuffle=True)
    ours = cf.MultipleChoice([quick(seed) for seed in range(members)], k=members)
    optimizer = torch.optim.SGD(ours.parameters(), 1e-3, momentum=0.9)

    def epoch() -> None:
        for inputs, labels in loader:
            optimizer.zero_grad()
            ours.step(inputs, labels, cross_entropy)
            optimizer.step()

    logging.disable(logging.INFO)  # it tells of every member
    model = VotingClassifier(estimator=quick(0), n_estimators=members, cuda=False)
    model.set_optimizer("SGD", lr=1e-3, momentum=0.9)

    def theirs() -> None:
        model.fit(loader, epochs=1, save_model=False, log_interval=10**9)

    times = in_turns({"ours": timed(epoch), "theirs": timed(theirs)}, repeats, warm=1)
    return row | {**ratio(times["ours"], times["theirs"]), "ratios": "turn by turn"}


def merged(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with one that has been measured, in the place of an older one of the same case."""

    def case_of(each: dict[str, Any]) -> tuple[Any, ...]:
        return each["format"], each["members"], each["batch"]

    return [*(each for each in rows if case_of(each) != case_of(row)), row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there, beside those of others")
    parser.add_argument("--repeats", type=positive, default=15, metavar="N", help="steps of each kind (default 15)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="memory formats (both)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    unknown = {"peer": PEER, "members": 5, "batch": 128, "missing": "not measured yet"}
    found = {"rows": [], "peer": unknown, **read_record(arguments.json)}
    found |= {"threads": 1, "torch": torch.__version__}
    for form, (members, batch) in itertools.product(arguments.formats, BARS):
        row = case(members, batch, form, arguments.repeats)
        found["rows"] = merged(found["rows"], row)
        write_record(arguments.json, found)  # what is not measured again stays, and what is done is kept
        told = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}), floor {row['floor']:.2f}"
        memory = f"{row['bytes'] / 2**20:.0f} MiB over {row['naive bytes'] / 2**20:.0f}"
        verdict = "pass" if row["pass"] else "MISS"
        what = f"M={members:<3} batch {batch:<4} {form:14}"
        print(f"{what} {told}, again {row['again']:.2f}; {memory}  {verdict}", flush=True)
    beside = peer(max(arguments.repeats // 3, 1))
    print(f"{beside['peer']}: {beside.get('missing') or format(beside['ratio'], '.2f')}")
    found["peer"] = beside
    write_record(arguments.json, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(status_of(main))
