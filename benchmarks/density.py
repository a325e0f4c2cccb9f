"""Hidden Markov models as layers: forward and all gradients, beside dynamax, hmmlearn, pomegranate and a torch loop.

    python benchmarks/density.py [--only one|paper|cost|cold ...] [--rounds N] [--json FILE] [--plot PNG]
    python benchmarks/density.py --redraw --json evidence/benchmarks/density.json --plot docs/images/density-cost.png

one    One model of S = 3, 10, 50 states, 32 sequences of 200 frames of 13 features, float64: likelihood and gradients
       to all parameters. Beside it jitted dynamax (warm; what its compilation takes stands beside), a torch loop over
       time with autograd, pomegranate (float32), and what hmmlearn takes for the score alone. Bars: 1.5 times faster
       than dynamax; 12 (S = 3, 10) and 30 (S = 50) times faster than the loop; 30 times faster than pomegranate; not
       slower than hmmlearn. The floor of products and exponentials alone was estimated beforehand.
paper  24 models of 4 states, 64 sequences of 200 frames of 24 features, float64, beside hmmlearn's score a sequence at
       a time and of all aggregated. Bars: forward only 20 and 6 times faster, with all gradients 8 and 2.5 times.
cost   Time over frames, models and sequences, and what is kept for going back, in posteriors (at most 2).
cold   The first call in a fresh process whose kernels are cached, without imports (at most 0.3 s). Beside it, the part
       of it that numba loads for its first kernel of any kind, what the imports take, and the same of dynamax.

Times are processor time of one core, all in turns within one run, the least of a few calls in each round: ratios are
medians over the rounds, with their quartiles. The same ratio by the clock on the wall stands beside, which others on
the machine disturb. A peer that is not installed is said to be missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from counterflow.density import GaussianHMM

sys.path.insert(0, str(Path(__file__).parent))
from common import measuring
from common.command import output, positive, status_of
from common.pictures import write_drawn
from common.records import read_record, write_record

FLOOR = {3: 0.5, 10: 1.0, 50: 7.0}
LOOP_BAR = {3: 12.0, 10: 12.0, 50: 30.0}
COLD_BAR, MEMORY_BAR = 0.3, 2.0
TURN = 0.1  # processor seconds that the slowest work has in a round, unless one call takes longer


class Times(NamedTuple):
    """Seconds of a work, round by round: the processor's, and the wall clock's."""

    processor: list[float]
    wall: list[float]


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Seconds of each work, one round after the other, after a call that warms up.

    In a round works that are short are called up to ten times, in turns, and the least time of each counts: others on
    the machine only add to it. All are called equally often, since the least of more calls would be less.
    """
    seconds = {name: Times([], []) for name in works}
    # A peer may have changed it; another thread that waits for work spends processor time, which would count here.
    torch.set_num_threads(1)
    for work in works.values():
        work()
    for _ in range(rounds):
        calls: dict[str, Times] = {name: Times([], []) for name in works}
        for _ in range(10):
            for name, work in works.items():
                began = time.process_time(), time.perf_counter()
                work()
                calls[name].processor.append(time.process_time() - began[0])
                calls[name].wall.append(time.perf_counter() - began[1])
            if max(sum(each.processor) for each in calls.values()) >= TURN:
                break
        for name, each in calls.items():
            seconds[name].processor.append(min(each.processor))
            seconds[name].wall.append(min(each.wall))
    return seconds


def ratio(other: Times, ours: Times, bar: float) -> dict[str, Any]:
    """How many times faster ours is, round by round."""
    found = measuring.ratio(other.processor, ours.processor)
    wall = measuring.ratio(other.wall, ours.wall)["ratio"]
    return {**found, "wall": wall, "bar": bar, "pass": found["ratio"] >= bar}


def milliseconds(seconds: Mapping[str, Times]) -> dict[str, float]:
    """Medians of processor time."""
    return {name: 1e3 * float(np.median(each.processor)) for name, each in seconds.items()}


def bank_of(models: int, states: int, features: int) -> GaussianHMM:
    """A bank with parameters that are not all alike."""
    torch.manual_seed(0)
    bank = GaussianHMM(models, states, features, dtype=torch.float64)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_(std=0.5)
    return bank


def gradients(bank: GaussianHMM, x: Tensor) -> Callable[[], object]:
    """Likelihood and all gradients."""
    parameters = list(bank.parameters())
    return lambda: torch.autograd.grad(bank.log_likelihood(x).sum(), parameters)


def forward(bank: GaussianHMM, x: Tensor) -> Callable[[], object]:
    """The likelihood alone."""

    def work() -> object:
        with torch.no_grad():
            return bank.log_likelihood(x)

    return work


def hmmlearns(bank: GaussianHMM) -> list[Any]:
    """The same models in hmmlearn, in its faster implementation."""
    from hmmlearn.hmm import GaussianHMM as Peer

    found = []
    for m in range(bank.n_models):
        peer = Peer(bank.n_states, "diag", implementation="scaling")
        peer.startprob_ = bank.log_initial()[m].exp().detach().numpy()
        peer.transmat_ = bank.log_transitions()[m].exp().detach().numpy()
        peer.means_ = bank.means[m, :, 0].detach().numpy()
        peer.covars_ = bank.variances()[m, :, 0].detach().numpy()
        found.append(peer)
    return found


def dynamaxes(bank: GaussianHMM, x: Tensor) -> Callable[[], object]:
    """Jitted value and gradients of dynamax's filter, with the same densities."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")  # one thread, as all others have
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import hmm_filter

    jax.config.update("jax_enable_x64", True)
    values = [bank.initial_logits, bank.transition_logits, bank.means, bank.log_variances]
    parameters = [jnp.asarray(each[0].detach().numpy()) for each in values if each is not None]
    data = jnp.asarray(x.numpy())

    def likelihood(parameters: Any) -> Any:
        pi, a, mean, log_variance = parameters
        mean, log_variance = mean[:, 0], log_variance[:, 0]

        def one(sequence: Any) -> Any:
            away = (sequence[:, None] - mean) ** 2 * jnp.exp(-log_variance)
            log_b = -0.5 * (away + log_variance + jnp.log(2 * jnp.pi)).sum(-1)
            return hmm_filter(jax.nn.softmax(pi), jax.nn.softmax(a, -1), log_b).marginal_loglik

        return jax.vmap(one)(data).sum()

    compiled = jax.jit(jax.value_and_grad(likelihood))
    return lambda: jax.block_until_ready(compiled(parameters))


def pomegranates(bank: GaussianHMM, x: Tensor) -> Callable[[], object]:
    """The same in pomegranate, which is float32; many of its gradients are None."""
    from pomegranate.distributions import Normal
    from pomegranate.hmm import DenseHMM

    S = bank.n_states
    means, variances = bank.means[0, :, 0].detach().float(), bank.variances()[0, :, 0].detach().float()
    peer = DenseHMM(
        [Normal(means[s], variances[s], covariance_type="diag") for s in range(S)],
        edges=bank.log_transitions()[0].exp().detach().float().tolist(),
        starts=bank.log_initial()[0].exp().detach().float().tolist(),
    )
    data = x.float()
    for parameter in peer.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def work() -> object:
        loss = peer.log_probability(data).sum()
        leaves = [parameter for parameter in peer.parameters() if parameter.requires_grad]
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    return work


def one(rounds: int, batch: int = 32, steps: int = 200, sizes: tuple[int, ...] = (3, 10, 50)) -> list[dict[str, Any]]:
    """One model, all peers."""
    rows = []
    for states in sizes:
        bank = bank_of(1, states, 13)
        loop = bank_of(1, states, 13)
        loop.backend = "autograd"
        x = torch.randn(batch, steps, 13, dtype=torch.float64)
        works: dict[str, Callable[[], object]] = {"ours": gradients(bank, x), "torch loop": gradients(loop, x)}
        missing, compiling = [], None
        peers = {"hmmlearn": "hmmlearn", "dynamax": "dynamax", "pomegranate": "pomegranate"}
        for name, package in peers.items():
            if importlib.util.find_spec(package) is None:
                missing.append(name)
        if "hmmlearn" not in missing:
            (peer,) = hmmlearns(bank)
            together, lengths = x.flatten(0, 1).numpy(), [steps] * batch
            works["hmmlearn"] = lambda peer=peer, data=together, n=lengths: peer.score(data, n)  # type: ignore[misc]
        if "dynamax" not in missing:
            works["dynamax"] = dynamaxes(bank, x)
            began = time.perf_counter()
            works["dynamax"]()
            compiling = time.perf_counter() - began
        if "pomegranate" not in missing:
            works["pomegranate"] = pomegranates(bank, x)
        seconds = in_turns(works, rounds)
        bars = {"torch loop": LOOP_BAR.get(states, 12.0), "hmmlearn": 1.0, "dynamax": 1.5, "pomegranate": 30.0}
        rows.append(
            {
                "states": states,
                "milliseconds": milliseconds(seconds),
                "estimated floor": FLOOR.get(states),
                "faster than": {
                    name: ratio(seconds[name], seconds["ours"], bars[name]) for name in seconds if name != "ours"
                },
                "dynamax compiles": compiling,
                "missing": missing,
            }
        )
    return rows


def paper(rounds: int, batch: int = 64, steps: int = 200, models: int = 24) -> dict[str, Any]:
    """The paper's size beside hmmlearn."""
    bank = bank_of(models, 4, 24)
    x = torch.randn(batch, steps, 24, dtype=torch.float64)
    works = {"forward": forward(bank, x), "all gradients": gradients(bank, x)}
    missing = importlib.util.find_spec("hmmlearn") is None
    if not missing:
        peers, data = hmmlearns(bank), x.numpy()
        together, lengths = x.flatten(0, 1).numpy(), [steps] * batch
        works["hmmlearn, a sequence"] = lambda: [[peer.score(each) for each in data] for peer in peers]
        works["hmmlearn, aggregated"] = lambda: [peer.score(together, lengths) for peer in peers]
    seconds = in_turns(works, rounds)
    bars = {"forward": (20.0, 6.0), "all gradients": (8.0, 2.5)}
    names = () if missing else ("hmmlearn, a sequence", "hmmlearn, aggregated")
    return {
        "milliseconds": milliseconds(seconds),
        "faster than": {
            f"{ours} / {name}": ratio(seconds[name], seconds[ours], bar)
            for ours, pair in bars.items()
            for name, bar in zip(names, pair, strict=bool(names))
        },
        "missing": ["hmmlearn"] if missing else [],
    }


def kept_bytes(bank: GaussianHMM, x: Tensor) -> int:
    """What autograd keeps for going back, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = bank.log_likelihood(x)
    del held
    return sum(kept.values())


def cost(rounds: int, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Time and memory over frames, models and sequences, each doubled three times from the same middle.

    Times are the least of all rounds, in which the four sizes take turns.
    """
    sizes = sizes or {"frames": 200, "models": 8, "sequences": 32}
    curves: dict[str, list[dict[str, float]]] = {}
    for what in sizes:
        works, kept = {}, {}
        for factor in (1, 2, 4, 8):
            size = {**sizes, what: sizes[what] * factor}
            bank = bank_of(size["models"], 4, 8)
            x = torch.randn(size["sequences"], size["frames"], 8, dtype=torch.float64)
            works[str(size[what])] = gradients(bank, x)
            kept[str(size[what])] = kept_bytes(bank, x) / (8 * size["sequences"] * size["frames"] * size["models"] * 4)
        took = in_turns(works, rounds)
        curves[what] = [
            {"size": int(name), "milliseconds": 1e3 * min(each.processor), "posteriors": kept[name]}
            for name, each in took.items()
        ]
    powers = {}
    for what, rows in curves.items():
        doubled, times = (np.log([row[key] for row in rows]) for key in ("size", "milliseconds"))
        powers[what] = float(np.polyfit(doubled, times, 1)[0])
    most = max(row["posteriors"] for rows in curves.values() for row in rows)
    return {"curves": curves, "powers": powers, "kept at most": most, "bar": MEMORY_BAR, "pass": most <= MEMORY_BAR}


OURS_COLD = """
import time
began = time.process_time()
import torch, counterflow as cf
import counterflow.density.fused
imported = time.process_time()
from numba.core.registry import cpu_target
bank, x = cf.density.GaussianHMM(2, 10, 13, dtype=torch.float64), torch.randn(32, 200, 13).double()
torch.set_num_threads(1)
ready = time.process_time()
cpu_target.target_context.refresh()
loaded = time.process_time()
bank.log_likelihood(x).sum().backward()
print(imported - began, loaded - ready, time.process_time() - loaded)
"""
DYNAMAXS_COLD = """
import sys, time
began = time.process_time()
import jax, torch
import dynamax.hidden_markov_model
imported = time.process_time()
sys.path.insert(0, "benchmarks")
from density import bank_of, dynamaxes
work = dynamaxes(bank_of(1, 10, 13), torch.randn(32, 200, 13).double())
ready = time.process_time()
work()
print(imported - began, 0.0, time.process_time() - ready)
"""


def cold() -> dict[str, Any]:
    """The first call in a fresh process, after one that has filled the cache; and dynamax's, in the same way."""

    def medians(script: str, times: int) -> list[float]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        took = []
        for _ in range(times):
            command = [sys.executable, "-c", script]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[1]
            )
            took.append([float(each) for each in done.stdout.split()])
        found: list[float] = np.median(took[1:] or took, axis=0).tolist()
        return found

    imports, numbas, seconds = medians(OURS_COLD, 4)
    whole = seconds + numbas
    found: dict[str, Any] = {"seconds": whole, "numba loads": numbas, "bar": COLD_BAR, "pass": whole <= COLD_BAR}
    found["imports"] = imports
    if importlib.util.find_spec("dynamax") is not None:
        theirs = medians(DYNAMAXS_COLD, 1)
        found["dynamax"] = {"imports": theirs[0], "seconds": theirs[2]}
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """The cost's curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (what, rows) in zip(figure.subplots(1, 3), found["curves"].items(), strict=True):
        sizes, times = ([row[key] for row in rows] for key in ("size", "milliseconds"))
        axes.loglog(sizes, times, "o-")
        axes.loglog(sizes, [times[0] * size / sizes[0] for size in sizes], ":", label="linear")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.set_yticks(times, [f"{each:.3g}" for each in times])
        axes.minorticks_off()
        axes.set_xlabel(what)
        axes.set_ylabel("ms, forward and all gradients")
        axes.legend()
    write_drawn(figure, path, found["curves"])


def show(found: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"torch {found['torch']}, {found['threads']} thread"]

    def bars(rows: Mapping[str, Mapping[str, Any]]) -> None:
        for name, row in rows.items():
            met = "met" if row["pass"] else "MISSED"
            spread = f"({row['low']:.2f} to {row['high']:.2f}, {row['wall']:.2f} on the wall)"
            lines.append(f"  {row['ratio']:8.2f} {spread} times faster: {name}; at least {row['bar']:g}: {met}")

    for row in found.get("one", []):
        times = ", ".join(f"{name} {each:.2f}" for name, each in row["milliseconds"].items())
        lines.append(f"S = {row['states']}, ms: {times}; estimated floor {row['estimated floor']}")
        bars(row["faster than"])
        if row["missing"]:
            lines.append(f"  missing: {', '.join(row['missing'])}")
        if row["dynamax compiles"] is not None:
            lines.append(f"  dynamax compiles in {row['dynamax compiles']:.1f} s")
    if "paper" in found:
        times = ", ".join(f"{name} {each:.1f}" for name, each in found["paper"]["milliseconds"].items())
        lines.append(f"the paper's size, ms: {times}")
        bars(found["paper"]["faster than"])
    if "cost" in found:
        powers = ", ".join(f"{what} {power:.2f}" for what, power in found["cost"]["powers"].items())
        met = "met" if found["cost"]["pass"] else "MISSED"
        lines.append(f"cost grows with the power of: {powers}")
        most, bar = found["cost"]["kept at most"], found["cost"]["bar"]
        lines.append(f"kept for going back: {most:.2f} posteriors; at most {bar:g}: {met}")
    if "cold" in found:
        met = "met" if found["cold"]["pass"] else "MISSED"
        lines.append(f"the first call, kernels cached: {found['cold']['seconds']:.3f} s; at most {COLD_BAR}: {met}")
        lines.append(f"  of which numba loads for {found['cold']['numba loads']:.2f} s, once in a process")
        lines.append(f"  imports before it take {found['cold']['imports']:.2f} s")
        if "dynamax" in found["cold"]:
            theirs = found["cold"]["dynamax"]
            lines.append(f"  dynamax: {theirs['seconds']:.2f} s, imports before it {theirs['imports']:.2f} s")
    return "\n".join(lines)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=("one", "paper", "cost", "cold"), action="append", help="this part; may be given again"
    )
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="of all works (default 7)")
    parser.add_argument(
        "--json", metavar="FILE", type=output, help="put the results in there, beside those of other parts"
    )
    parser.add_argument("--plot", metavar="PNG", type=output, help="draw the part `cost` into there")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; --plot is of what --json has")
    parser.add_argument("--machine", default="", help="what is to be said of the machine, in a sentence")
    options = parser.parse_args()
    if options.plot is not None and options.only is not None and "cost" not in options.only:
        parser.error("--plot draws the part cost, which --only leaves out")
    record = {"machine": "", **read_record(options.json)}
    if options.redraw:
        if options.plot is None or "cost" not in record:
            parser.error("--redraw needs --plot, and --json FILE that has the part cost")
        draw(record["cost"], options.plot)
        return 0
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        # Jax's threads heed no option of a thread's number, and processor time counts them all.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parts = options.only or ["one", "paper", "cost", "cold"]
    found: dict[str, Any] = {"torch": torch.__version__.split("+")[0], "threads": 1}
    found |= {"machine": options.machine} if options.machine else {}
    makers: dict[str, Callable[[], Any]] = {
        "one": lambda: one(options.rounds),
        "paper": lambda: paper(options.rounds),
        "cost": lambda: cost(options.rounds),
        "cold": cold,
    }
    for part in parts:
        found[part] = makers[part]()
        record |= found
        write_record(options.json, record)
    print(show(found))
    if options.plot is not None:
        draw(found["cost"], options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
