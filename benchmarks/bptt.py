"""Backpropagation through time within a budget: does it keep its promises, and what do they cost? One thread.

    python benchmarks/bptt.py [--only PART ...] [--json FILE] [--long FOLDER]

Parts:

promise  Forward operations executed, counted inside the core, are the plan's. What is kept, counted storage by storage
         through saved-tensor hooks, is never above the budget, and resident memory (a process of its own for each
         budget) grows by 32 MiB more at most.
overhead An iteration over what its plan says from measured step times: (F - n) f + n (f' + b), with f the time of a
         step without a graph and f' + b the time of a step of plain backpropagation through time. The bar is 1.10.
         What bounds it stands beside: the same with f' + b of steps whose backward pass follows their forward pass at
         once. These find the caches filled with the other pass's tensors, which no plan can avoid.
peer     At equal memory beside torch.utils.checkpoint with sqrt(t) segments, and at budgets below all that any number
         of segments can reach.
solvers  The time to make a plan and list its actions, beside checkpoint-schedules and pyrevolve, which are in
         counterflow[peers] and used nowhere else. Each once, since some of them keep what they computed, after a small
         problem that loads modules and kernels. Their counts of forward operations are printed beside ours.
table    The mixed strategy's table for 10,000 steps and 1,000 slots, at whole and fractional costs of an internal
         state. The bar is 5 s.
chunks   Fused chunks within 10% of the memory of one call of nn.LSTM, over that call. The bar is 1.4.
long     100,000 steps, inputs streamed from disk (a file is written to FOLDER: 6.5 GB), within 256 MiB: what plain
         backpropagation through time cannot do in this memory. Its gradient is compared with full backpropagation on a
         prefix; the floor beside its time is the plan's cost in measured step times. Some twenty minutes.

Times are processor seconds of one thread, and only their ratios mean something: medians over repeats that run what is
compared in turns. Solvers, tables and the long run are timed once.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from counterflow import bptt
from counterflow.lab.papers.bptt.ledger import Ledger
from counterflow.lab.papers.bptt.timing import plain

sys.path.insert(0, str(Path(__file__).parent))
from common import bars
from common.command import folder, output, status_of
from common.measuring import in_turns, ratio
from common.records import read_record, write_record

WIDTH, BATCH, STEPS = 256, 64, 1000
MEBI = 2**20
TABLE_STEPS, TABLE_SLOTS = 10_000, 1000
LONG_STEPS, LONG_BUDGET, PREFIX = 100_000, 256 * MEBI, 300
INPUTS = "inputs.f32"


class Net:
    """The paper's LSTM, a batch of sequences, and the errors of its outputs."""

    def __init__(self, steps: int | None = None, fused: bool = False) -> None:
        torch.manual_seed(0)
        self.steps = steps = steps or STEPS
        self.core: nn.Module = nn.LSTM(WIDTH, WIDTH, batch_first=True) if fused else nn.LSTMCell(WIDTH, WIDTH)
        rows = (1, BATCH, WIDTH) if fused else (BATCH, WIDTH)
        self.start = (torch.zeros(rows), torch.zeros(rows))
        self.x = torch.randn(BATCH, steps, WIDTH)
        self.errors = torch.randn(BATCH, steps, WIDTH)

    def seconds(self, forward: Callable[[], Tensor]) -> float:
        """Of one iteration."""
        self.core.zero_grad()
        gc.collect()
        began = time.process_time()
        forward().backward(self.errors)
        return time.process_time() - began

    def unrolled(self, **options: Any) -> Tensor:
        y: Tensor = bptt.unroll(self.core, self.x, self.start, **options)[0]
        return y

    def kept(self, forward: Callable[[nn.Module], Tensor]) -> Ledger:
        """An iteration with every byte counted."""
        ledger = Ledger(self.core, [self.x])
        forward(ledger).backward(self.errors)
        return ledger

    def kept_within(self, **options: Any) -> Ledger:
        """An iteration of ours with every byte counted."""
        return self.kept(lambda core: bptt.unroll(core, self.x, self.start, **options)[0])

    def seconds_within(self, **options: Any) -> float:
        """Of one iteration of ours."""
        return self.seconds(lambda: self.unrolled(**options))

    def seconds_plain(self) -> float:
        """Of one iteration of plain backpropagation through time."""
        return self.seconds(lambda: plain(self.core, self.x, self.start))


def promise() -> Iterator[dict[str, Any]]:
    net = Net()
    for option in bptt.explain(net.core, net.x, net.start, budgets=["2MiB", "8MiB", "32MiB", "128MiB"]):
        ledger = net.kept_within(budget=option.budget)
        grown = json.loads(
            subprocess.run(
                [sys.executable, __file__, "--resident", str(option.budget)], check=True, capture_output=True, text=True
            ).stdout
        )
        yield {
            "budget": option.budget,
            "strategy": option.strategy,
            "planned": option.forwards,
            "executed": ledger.calls,
            "kept": ledger.peak,
            "resident": grown,
            "pass": ledger.calls == option.forwards
            and ledger.peak <= option.budget
            and grown <= option.budget + bars.RESIDENT,
        }


def resident(budget: int) -> int:
    """By how many bytes the resident memory of this process grows at most in one iteration within a budget."""
    net = Net()
    weights = torch.ones(WIDTH)

    def loss(t: int, y: Tensor) -> Tensor:
        return y @ weights @ torch.ones(BATCH)

    def iterate(inputs: Tensor, size: int) -> None:
        bptt.unroll(net.core, inputs, net.start, budget=size, loss_fn=loss)[0].backward()

    bptt.plan(10, 5, internal_cost=2)  # loads numba
    iterate(net.x[:, :8], 16 * MEBI)  # what is loaded or allocated once
    gc.collect()
    with Watch() as watch:
        iterate(net.x, budget)
    return watch.grown


class Watch:
    """By how much this process's own memory grows at most while it is entered; mapped files are not counted."""

    def __enter__(self) -> Watch:
        self.grown, self._begin, self._over = 0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._note()  # what is still held, where the thread got no time

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self._note()

    def _note(self) -> None:
        self.grown = max(self.grown, self._now() - self._begin)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def step_times(net: Net, repeats: int) -> tuple[float, float, float]:
    """Seconds of a step without a graph; of a step of plain backpropagation through time, backward included; and of a
    step whose backward pass follows its forward pass at once, as in a plan.
    """

    def bare() -> float:
        began = time.process_time()
        with torch.no_grad():
            plain(net.core, net.x, net.start)
        return time.process_time() - began

    def in_turn() -> float:
        parameters = [*net.core.parameters()]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        state, errors = net.start, (torch.zeros(BATCH, WIDTH), torch.zeros(BATCH, WIDTH))
        began = time.process_time()
        for t in range(net.steps):
            begin = [s.detach().requires_grad_() for s in state]
            ends = net.core(net.x[:, t], tuple(begin))
            given = (errors[0] + net.errors[:, t], errors[1])
            *errors, a, b, c, d = torch.autograd.grad(ends, [*begin, *parameters], given)
            for total, gradient in zip(sums, (a, b, c, d), strict=True):
                total.add_(gradient)
            state = tuple(end.detach() for end in ends)
        return time.process_time() - began

    found = in_turns({"bare": bare, "plain": net.seconds_plain, "in turn": in_turn}, repeats)
    times = [float(np.median(found[name])) / net.steps for name in ("bare", "plain", "in turn")]
    return times[0], times[1], times[2]


def overhead(repeats: int = 5) -> Iterator[dict[str, Any]]:
    net = Net()
    net.seconds_plain()
    cases: dict[str, dict[str, Any]] = {
        "internal": {"slots": 50},
        "hidden": {"slots": 50},
        "mixed": {"budget": "32MiB"},
    }
    for strategy, memory in cases.items():
        options: dict[str, Any] = {**memory, "strategy": strategy}
        forwards = net.kept_within(**options).calls
        pairs = []
        for _ in range(repeats):
            bare, whole, turn = step_times(net, 1)
            again = (forwards - STEPS) * bare
            pairs.append((net.seconds_within(**options), again + STEPS * whole, again + STEPS * turn, STEPS * whole))
        measured, predicted, bound, alone = (list(column) for column in zip(*pairs, strict=True))
        found = ratio(measured, predicted)
        yield {
            "strategy": strategy,
            "memory": str(next(iter(memory.values()))),
            "forwards": forwards,
            **found,
            "over steps in turn": ratio(measured, bound)["ratio"],
            "over plain": ratio(measured, alone)["ratio"],
            "pass": found["ratio"] <= bars.OVERHEAD,
        }


def segmented(core: nn.Module, x: Tensor, start: tuple[Tensor, Tensor], length: int) -> Tensor:
    """Chen's segments, as torch.utils.checkpoint has them."""

    def run(part: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, state = [], (h, c)
        for step in part.unbind(1):
            y, state = core(step, state) if isinstance(core, Ledger) else (lambda s: (s[0], s))(core(step, state))
            outputs.append(y)
        return torch.stack(outputs, 1), *state

    outputs, (h, c) = [], start
    for part in x.split(length, 1):
        y, h, c = checkpoint(run, part, h, c, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    return torch.cat(outputs, 1)


def peer(repeats: int = 5) -> Iterator[dict[str, Any]]:
    net = Net()

    def keep(length: int) -> Ledger:
        return net.kept(lambda core: segmented(core, net.x, net.start, length))

    def theirs() -> float:
        return net.seconds(lambda: segmented(net.core, net.x, net.start, math.isqrt(STEPS)))

    root = keep(math.isqrt(STEPS))
    least = min(keep(length).peak for length in (8, 16, 24, 48))
    for budget in (root.peak, least // 2, least // 8):
        ours = net.kept_within(budget=budget)
        found = in_turns({"ours": partial(net.seconds_within, budget=budget), "theirs": theirs}, repeats)
        over = ratio(found["ours"], found["theirs"])
        yield {
            "budget": budget,
            "kept": ours.peak,
            "calls": ours.calls,
            "segments keep": root.peak,
            "segments call": root.calls,
            "least of segments": least,
            **over,
            "pass": ours.peak <= budget and (budget < root.peak or over["ratio"] <= bars.SEGMENTS),
        }


def solvers(sizes: Sequence[tuple[int, int]] = ((1000, 50), (10_000, 100))) -> Iterator[dict[str, Any]]:
    for steps, slots in sizes:
        ways: dict[str, Callable[[int, int], int]] = {
            f"counterflow, {strategy}": partial(_listed, strategy) for strategy in ("hidden", "internal", "mixed")
        }
        if importlib.util.find_spec("pyrevolve") is not None:
            ways["pyrevolve, CRevolve"] = _pyrevolve
        if importlib.util.find_spec("checkpoint_schedules") is not None and steps <= 1000:  # minutes beyond
            ways |= {f"checkpoint-schedules, {name}": partial(_schedule, name) for name in SCHEDULES}
        for name, way in ways.items():
            way(20, 5)  # modules and kernels are loaded
            began = time.process_time()
            forwards = way(steps, slots)
            seconds = time.process_time() - began
            found = {"solver": name, "steps": steps, "slots": slots, "forwards": forwards}
            yield {**found, "seconds": seconds, "warm": True}
    for package in ("pyrevolve", "checkpoint_schedules"):
        if importlib.util.find_spec(package) is None:
            yield {"solver": package, "missing": "pip install 'counterflow[peers]'"}


def table() -> Iterator[dict[str, Any]]:
    bptt.plan(10, 5, internal_cost=2)  # numba is loaded once
    for cost in (2.0, 5.0, 3.5):
        began = time.process_time()
        made = bptt.plan(TABLE_STEPS, TABLE_SLOTS, "mixed", internal_cost=cost)
        seconds = time.process_time() - began
        yield {
            "steps": TABLE_STEPS,
            "slots": TABLE_SLOTS,
            "internal cost": cost,
            "forwards": made.forwards,
            "seconds": seconds,
            "pass": seconds <= bars.TABLE,
        }


def _listed(strategy: Any, steps: int, slots: int) -> int:
    made = bptt.plan(steps, slots, strategy, internal_cost=5)
    for _ in made:
        pass
    return made.forwards


def _pyrevolve(steps: int, slots: int) -> int:
    from pyrevolve.schedulers import CRevolve

    return round(CRevolve(slots, steps).ratio * steps) + steps  # every turn runs its step, which it does not count


def _schedule(name: str, steps: int, slots: int) -> int:
    import checkpoint_schedules as peers

    made = SCHEDULES[name](peers, steps, slots)
    return int(sum(action.n1 - action.n0 for action in made if isinstance(action, peers.Forward)))  # NumPy's integers


SCHEDULES: dict[str, Callable[[Any, int, int], Any]] = {
    "Multistage": lambda peers, steps, slots: peers.MultistageCheckpointSchedule(steps, slots, 0),
    "Mixed": lambda peers, steps, slots: peers.MixedCheckpointSchedule(steps, slots, storage=peers.StorageType.RAM),
    "Revolve": lambda peers, steps, slots: peers.Revolve(steps, slots),
}


def chunks(repeats: int = 5) -> Iterator[dict[str, Any]]:
    net = Net(fused=True)

    def whole(core: nn.Module) -> Tensor:
        y: Tensor = core(net.x, net.start)[0]
        return y

    everything = net.kept(whole).peak
    budget = everything // 10
    (option,) = bptt.explain(net.core, net.x, net.start, budgets=[budget])
    # The layer itself counts, since chunks are for PyTorch's own layers and not for what wraps them.
    ledger = Ledger(net.core, [net.x], run=partial(nn.LSTM.forward, net.core))
    net.core.forward = ledger.forward
    net.seconds_within(budget=budget, chunk=option.chunk)
    del net.core.forward
    ways = {"fused": lambda: net.seconds(lambda: whole(net.core)), "ours": partial(net.seconds_within, budget=budget)}
    found = in_turns(ways, repeats, warm=1)
    over = ratio(found["ours"], found["fused"])
    yield {
        "one call keeps": everything,
        "budget": budget,
        "kept": ledger.peak,
        "chunk": option.chunk,
        "planned": option.forwards,
        "executed": ledger.calls,
        "forwards a step": option.forwards_per_step,
        **over,
        "pass": over["ratio"] <= bars.CHUNKS and ledger.peak <= budget,
    }


class Streamed:
    """The paper's net over inputs that are read from disk, with a loss at every step."""

    def __init__(self, folder: Path) -> None:
        self.inputs = np.memmap(folder / INPUTS, np.float32, "r", shape=(LONG_STEPS, BATCH, WIDTH))
        self.net = Net()
        self.target = torch.randn(WIDTH)

    def read(self, t: int) -> Tensor:
        return torch.from_numpy(np.array(self.inputs[t]))

    def loss(self, t: int, y: Tensor) -> Tensor:
        return (y - self.target).square().mean()

    def within(self, budget: int, steps: int) -> Tensor:
        run = bptt.unroll(self.net.core, self.read, self.net.start, budget=budget, steps=steps, loss_fn=self.loss)
        return run[0]

    def in_full(self, steps: int) -> Tensor:
        state, total = self.net.start, torch.zeros(())
        for t in range(steps):
            state = self.net.core(self.read(t), state)
            total = total + self.loss(t, state[0])
        return total

    def gradient(self, total: Tensor) -> list[Tensor]:
        self.net.core.zero_grad()
        total.backward()
        return [parameter.grad.double().clone() for parameter in self.net.core.parameters()]


def stream(folder: Path) -> dict[str, Any]:
    """The long run, in a process that has not yet allocated anything which could hide its growth."""
    streamed = Streamed(folder)
    bptt.plan(10, 5, internal_cost=2)  # loads numba
    streamed.gradient(streamed.within(LONG_BUDGET, 4))  # what is loaded or allocated once
    gc.collect()
    began, wall = time.process_time(), time.monotonic()
    with Watch() as watch:
        found = streamed.gradient(streamed.within(LONG_BUDGET, LONG_STEPS))
    return {
        "resident": watch.grown,
        "seconds": time.process_time() - began,
        "wall": time.monotonic() - wall,
        "finite": all(bool(gradient.isfinite().all()) for gradient in found),
    }


def long(folder: Path) -> Iterator[dict[str, Any]]:
    """The run that plain backpropagation through time cannot do."""
    path = folder / INPUTS
    try:
        yield long_run(folder)
    finally:
        path.unlink(missing_ok=True)


def long_run(folder: Path) -> dict[str, Any]:
    """Its row; the inputs stay in the folder."""
    generator = np.random.default_rng(0)
    stored = np.memmap(folder / INPUTS, np.float32, "w+", shape=(LONG_STEPS, BATCH, WIDTH))
    for first in range(0, LONG_STEPS, 1000):
        part = stored[first : first + 1000]
        part[:] = generator.standard_normal(part.shape, np.float32)
    stored.flush()
    del stored, part
    streamed = Streamed(folder)
    core, start = streamed.net.core, streamed.net.start
    sizes = bptt.measure(core, streamed.read(0), start, loss_fn=streamed.loss)
    tight = sizes.smallest + 8 * sizes.internal  # few slots, so that much of the prefix is run again
    exact = streamed.gradient(streamed.in_full(PREFIX))
    ours = streamed.gradient(streamed.within(tight, PREFIX))
    wrong = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True))
    bare, whole, _ = step_times(streamed.net, 2)
    (option,) = bptt.explain(core, streamed.read, start, steps=LONG_STEPS, budgets=[LONG_BUDGET], loss_fn=streamed.loss)
    print(f"long: {option.forwards} forward operations to run", file=sys.stderr, flush=True)
    run = streamed_apart(folder)
    floor = (option.forwards - LONG_STEPS) * bare + LONG_STEPS * whole
    return {
        "steps": LONG_STEPS,
        "batch": BATCH,
        "budget": LONG_BUDGET,
        "plain would keep": sizes.smallest + LONG_STEPS * sizes.shared,
        "strategy": option.strategy,
        "forwards a step": option.forwards_per_step,
        "predicted": option.memory,
        "floor": floor,
        "ratio": run["seconds"] / floor,
        "prefix": PREFIX,
        "prefix error": wrong,
        **run,
        "pass": run["finite"] and wrong < 1e-4 and run["resident"] <= LONG_BUDGET + bars.RESIDENT,
    }


def streamed_apart(folder: Path) -> dict[str, Any]:
    """``stream`` in a process of its own."""
    found: dict[str, Any] = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--stream", str(folder)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )
    return found


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "promise": promise,
    "overhead": overhead,
    "peer": peer,
    "solvers": solvers,
    "table": table,
    "chunks": chunks,
}


def show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*PARTS], metavar="PART", help="these parts (default all)")
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there, beside those of others")
    parser.add_argument("--long", type=folder, metavar="FOLDER", help="the long run too; its inputs are written there")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.resident is not None:
        print(resident(arguments.resident))
        return 0
    if arguments.stream is not None:
        print(json.dumps(stream(arguments.stream)))
        return 0
    if arguments.long is not None:
        needed, free = 4 * LONG_STEPS * BATCH * WIDTH, shutil.disk_usage(arguments.long).free
        if free < needed:
            parser.error(f"--long {arguments.long}: {free / 1e9:.1f} GB are free, and {needed / 1e9:.1f} are needed")
    wanted = {name: PARTS[name] for name in (PARTS if arguments.only is None else arguments.only)}
    if arguments.long is not None:
        wanted["long"] = partial(long, arguments.long)
    found: dict[str, Any] = {"parts": {}, **read_record(arguments.json)}
    print(f"LSTM {WIDTH}, batch {BATCH}, {STEPS} steps, one thread, torch {torch.__version__}")
    for name, part in wanted.items():
        rows = []
        print(f"\n{name}")
        for row in part():
            rows.append(row)
            told = {key: value for key, value in row.items() if key != "pass"}
            verdict = {True: "  pass", False: "  MISS", None: ""}[row.get("pass")]
            print("  " + ", ".join(f"{key} {show(value)}" for key, value in told.items()) + verdict, flush=True)
        found["parts"][name] = rows
        found |= {"threads": 1, "torch": torch.__version__, "steps": STEPS, "width": WIDTH, "batch": BATCH}
        write_record(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
