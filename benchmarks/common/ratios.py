"""All that the benchmarks measured, from their committed records: each ratio with its target.

The records are as different as what they measure. Here is the one place that knows their shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import bars

EVIDENCE = Path(__file__).resolve().parents[2] / "evidence" / "benchmarks"

Sign = Literal["at most", "below", "at least"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """One measured number.

    Attributes:
        what: What was measured, over what.
        value: The number.
        unit: What it is in; nothing for a plain ratio.
        spread: Its quartiles or extremes, where the record has them.
        sign: On which side of the target it should be.
        bar: The target, if there is one.
        met: Whether the target is met; nothing without a target.
        says: What the record says where there is no target, such as *helps*.
    """

    what: str
    value: float
    unit: str = ""
    spread: tuple[float, float] | None = None
    sign: Sign = "at most"
    bar: float | None = None
    met: bool | None = None
    says: str = ""

    @property
    def measured(self) -> str:
        """The number with its spread and unit."""
        text = number(self.value)
        if self.spread is not None:
            text += f" ({number(self.spread[0])} to {number(self.spread[1])})"
        return f"{text} {self.unit}".rstrip()

    @property
    def target(self) -> str:
        """The target in words."""
        return "" if self.bar is None else f"{self.sign} {self.bar:,g} {self.unit}".rstrip()

    @property
    def verdict(self) -> str:
        """*met* or *missed*, or what the record says."""
        return self.says if self.met is None else "met" if self.met else "missed"


def number(value: float) -> str:
    """Two decimals, or three digits where a number is below 1 or above 100."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def held(
    what: str,
    value: float,
    sign: Sign,
    bar: float | None,
    met: bool | None = None,
    *,
    unit: str = "",
    row: Record | None = None,
) -> Ratio:
    """A number that is held to a target.

    Args:
        what: What was measured, over what.
        value: The number.
        sign: On which side of the target it should be.
        bar: The target, if there is one.
        met: What the record says of it, which may ask for more than the number; else the number decides.
        unit: What it is in.
        row: Where the quartiles are, if there are any.
    """
    if bar is None:
        met = None
    elif met is None:
        met = {"at most": value <= bar, "below": value < bar, "at least": value >= bar}[sign]
    spread = (row["low"], row["high"]) if row and "low" in row else None
    return Ratio(what, value, unit, spread, sign, bar, met)


def _probe(found: Record) -> Iterator[Ratio]:
    for row in found["results"]:
        spread = {"low": row["quartiles"][0], "high": row["quartiles"][1]}
        looked = "every step" if row["k"] == 1 else f"one step of {row['k']}"
        what = f"a step with a probe over one without, ten layers of {row['width']}, {looked} looked at"
        yield held(what, row["ratio"], "below", found["bar"], row["pass"], row=spread)


def _tempering(found: Record) -> Iterator[Ratio]:
    for task in found["tasks"].values():
        for treatment, peers in task["ratios"].items():
            for peer, row in peers.items():
                if row is None:
                    continue
                over = f"{treatment} over {peer}, {task['title']}"
                yield Ratio(f"training loss: {over}", row["train"], says=row["says"])
                yield Ratio(f"time of a step: {over}", row["time"])


def _whitening(found: Record) -> Iterator[Ratio]:
    step = found["step"]
    spread = {"low": min(step["periods"]), "high": max(step["periods"])}
    what = "a step on the deep auto-encoder, whitening included, over plain SGD"
    yield held(what, step["ratio"], "at most", bars.WHITENED_STEP, step["pass"], row=spread)
    for task in found["tasks"].values():
        for form, others in task["compared"].items():
            for other, row in others.items():
                over = f"{form} over {other}, {task['title']}"
                if row["loss"] is None:
                    continue
                yield Ratio(f"loss after equal updates: {over}", row["loss"], says=row["updates"])
                yield Ratio(f"loss after equal time: {over}", row["loss in time"], says=row["time"])
                yield Ratio(f"time of an update: {over}", row["seconds"])


def _variational(found: Record) -> Iterator[Ratio]:
    for row in found["rows"]:
        if row["treatment"] != "plain":
            what = f"a step with {row['treatment']}, over the plain net"
            yield held(what, row["ratio"], "at most", row["bar"], row["pass"], row=row)


def _competition(found: Record) -> Iterator[Ratio]:
    for row in found["rows"]:
        form = "compiled" if row["compiled"] else "plain"
        targets = bars.COMPETITION.get((row["net"], row["batch"], form), {})
        for block in (2, 4):
            compiled = ", compiled" if row["compiled"] else ""
            what = f"a step with blocks of {block} over ReLU's, {row['net']} net{compiled}, batch {row['batch']}"
            yield held(what, row[str(block)], "at most", targets.get(block))


def _by_turns(row: Record) -> Record | None:
    """A row whose quartiles are those of its ratio: not where that is one of medians, as in records of old."""
    return row if row.get("ratios") == "turn by turn" else None


def _choice(found: Record) -> Iterator[Ratio]:
    for row in found["rows"]:
        case = f"{row['members']} members, batch {row['batch']}, {row['format']}"
        yield held(f"a step over the naive one, {case}", row["ratio"], "at most", row["bar"], row=_by_turns(row))
        yield held(f"its peak memory over the naive one's, {case}", row["bytes"] / row["naive bytes"], "at most", 1.0)
    beside = found["peer"]
    if "missing" not in beside:
        what = f"an epoch of a plain ensemble of {beside['members']} over {beside['peer']}'s"
        yield held(what, beside["ratio"], "at most", None, row=_by_turns(beside))


def _density(found: Record) -> Iterator[Ratio]:
    for size in found["one"]:
        for peer, row in size["faster than"].items():
            what = f"times as fast as {peer}, {size['states']} states"
            yield held(what, row["ratio"], "at least", row["bar"], row["pass"], row=row)
    for pair, row in found["paper"]["faster than"].items():
        ours, _, peer = pair.partition(" / ")
        what = f"times as fast as {peer}, the paper's size, {ours}"
        yield held(what, row["ratio"], "at least", row["bar"], row["pass"], row=row)
    cost, cold = found["cost"], found["cold"]
    what = "memory that is kept for going back, over the posteriors'"
    yield held(what, cost["kept at most"], "at most", cost["bar"], cost["pass"])
    what = "the first call, kernels cached"
    yield held(what, cold["seconds"], "at most", cold["bar"], cold["pass"], unit="s")


def over_best_path(rows: Sequence[Record]) -> dict[str, Record]:
    """Calls that a user makes, over our `best_path`: in records of old the ratio of their medians."""
    times = {row["way"]: row["microseconds"] for row in rows if "missing" not in row}
    turns = {row["way"]: row["over best_path"] for row in rows if "over best_path" in row}
    there = [name for name in bars.PUBLIC_CALLS if name in times]
    return {name: turns.get(name) or {"ratio": times[name] / times["best_path"]} for name in there}


def _speech(found: Record) -> Iterator[Ratio]:
    parts = found["parts"]
    for name, row in over_best_path(parts["alignment"]).items():
        what = f"alignment of 300 frames: {name} over best_path"
        yield held(what, row["ratio"], "at least", bars.ALIGNMENT[name], row=row)
    for row in parts["alignment"]:
        if "missing" not in row and row["way"] != "bare":
            what = f"alignment of 300 frames: {row['way']} over our kernel alone"
            yield held(what, row["ratio"], "at least", row["bar"], row["pass"], row=row)
    for row in parts["predictors"]:
        bar = None if row["pass"] is None else bars.PREDICTORS_MS
        what = f"predictions of 10 s of speech: {row['bank']}"
        yield held(what, row["milliseconds"], "below", bar, row["pass"], unit="ms")
    for row in parts["recognition"]:
        bar = None if row["pass"] is None else bars.REAL_TIME
        what = f"real-time factor of {row['words']} words, {row['seconds']} s"
        yield held(what, row["real-time factor"], "at most", bar, row["pass"])


def _speech_files(found: Record) -> Iterator[Ratio]:
    files = found["files"]
    wanted, kept = files["bars"], files["pass"]
    wrong = {name: row["test files"] for name, row in files["rows"].items()}
    # Speed without this would be half of what there is to say.
    said = f"word error on test files {number(wrong['ours'])} %, its {number(wrong['pocketsphinx'])} %"
    what = f"recognition of files: times as fast as pocketsphinx ({said})"
    yield held(what, files["times faster"], "at least", wanted["times faster"], kept["times faster"])
    what = "recognition of files: real-time factor"
    ours = files["rows"]["ours"]["real-time factor"]
    yield held(what, ours, "at most", wanted["real-time factor"], kept["real-time factor"])


def _recognizer(found: Record) -> Iterator[Ratio]:
    for name, run in sorted(found.items(), key=lambda each: -each[1]["attempt"]):  # what it is now comes first
        for grammar, error in run["errors"].items():
            what = f"word error, {name}, {grammar} (attempt {run['attempt']})"
            yield held(what, error, "at most", run["bars"].get(grammar), run["pass"].get(grammar), unit="%")
        worst = max(run["seconds"]) if isinstance(run["seconds"], list) else run["seconds"]
        what = f"time to train, {name} (attempt {run['attempt']})"
        yield held(what, worst, "at most", run["bars"]["seconds"], run["pass"]["seconds"], unit="s")


def _noise_control(found: Record) -> Iterator[Ratio]:
    learned, wanted = found["perceptron"], found["bars"]
    what, unit = "connection updates of a perceptron of 25-10-1", "million a second"
    updates = learned["updates"] / 1e6
    yield held(what, updates, "at least", wanted["updates"] / 1e6, learned["pass"]["updates"], unit=unit)
    what = "times as fast as torch's autograd, sample by sample"
    yield held(what, learned["autograd"], "at least", wanted["autograd"], learned["pass"]["autograd"])
    for row in found["filters"]:
        what = f"times as fast as padasip, {row['filter']}, {row['taps']} taps"
        yield held(what, row["ratio"], "at least", row["bar"], row["pass"])
    for row in found["chip"]:
        yield held(f"a chip, {row['device']}, over the perceptron", row["ratio"], "at most", row["bar"], row["pass"])


def _separation(found: Record) -> Iterator[Ratio]:
    for bar in found["bars"]:
        words = re.fullmatch(r"(.*) \((?:(dB), )?(at most|at least|below) (\S+)\)", bar["target"])
        assert words is not None, bar["target"]
        what, unit, sign, wanted = words.groups()
        # The groups of the pattern are the signs that there are.
        yield held(what, bar["value"], sign, float(wanted), bar["pass"], unit=unit or "")  # type: ignore[arg-type]


def _bptt(found: Record) -> Iterator[Ratio]:
    parts = found["parts"]
    for row in parts.get("overhead", ()):
        memory = f"{row['memory']} slots" if row["memory"].isdigit() else row["memory"]
        what = f"an iteration over its plan's cost, {row['strategy']}, {memory}"
        yield held(what, row["ratio"], "at most", bars.OVERHEAD, row["pass"], row=row)
    for row in parts.get("peer", ()):
        equal = row["budget"] >= row["segments keep"]
        share = f"{row['budget'] / row['segments keep']:.0%} of its memory"
        over = "at equal memory" if equal else f"at {share}"
        what = f"an iteration over torch.utils.checkpoint's on segments, {over}"
        yield held(what, row["ratio"], "at most", bars.SEGMENTS if equal else None, row["pass"], row=row)
        if not equal:
            yield held(f"bytes that are kept over {share}", row["kept"] / row["budget"], "at most", 1.0, row["pass"])
    for row in parts.get("chunks", ()):
        share = row["budget"] / row["one call keeps"]
        what = f"fused chunks over one call of nn.LSTM, at {share:.0%} of its memory"
        yield held(what, row["ratio"], "at most", bars.CHUNKS, row["pass"], row=row)
    for row in parts.get("promise", ()):
        what = f"bytes that are kept over the budget of {row['budget'] / 2**20:g} MiB, forwards as planned"
        yield held(what, row["kept"] / row["budget"], "at most", 1.0, row["pass"])
    for row in parts.get("table", ()):
        slots = f"{row['slots']:,} slots, {row['internal cost']:g} an internal state"
        what = f"the mixed strategy's table, {row['steps']:,} steps, {slots}"
        yield held(what, row["seconds"], "at most", bars.TABLE, row["pass"], unit="s")
    for row in parts.get("long", ()):
        what, bar = f"resident memory of {row['steps']:,} steps", (row["budget"] + bars.RESIDENT) / 2**20
        said = f"{what} within {row['budget'] / 2**20:g} MiB, gradients as plain"
        yield held(said, row["resident"] / 2**20, "at most", bar, row["pass"], unit="MiB")
        yield Ratio(f"{row['steps']:,} steps over their plan's cost, inputs read from a file", row["ratio"])
    ours = [row for row in parts.get("solvers", ()) if row["solver"].startswith("counterflow")]
    for row in parts.get("solvers", ()):
        for own in ours:
            same = all(row[key] == own[key] for key in ("steps", "slots", "forwards"))
            if same and row is not own:
                cold = "" if "warm" in row else ", loading its modules included"
                what = f"making a plan of {row['steps']:,} steps: {row['solver']} over {own['solver']}{cold}"
                yield Ratio(what, row["seconds"] / own["seconds"])


@dataclass(frozen=True)
class Benchmark:
    """A script of ``benchmarks/``: its subject in a few words, and how its record is read."""

    title: str
    read: Callable[[Record], Iterator[Ratio]]


BENCHMARKS = {
    "probe": Benchmark("cf.probe", _probe),
    "tempering": Benchmark("tempering beside optimizers", _tempering),
    "whitening": Benchmark("whitening beside optimizers", _whitening),
    "variational": Benchmark("noise on weights", _variational),
    "competition": Benchmark("competing units", _competition),
    "choice": Benchmark("multiple choice learning", _choice),
    "density": Benchmark("hidden Markov models", _density),
    "speech": Benchmark("alignment and predictors", _speech),
    "speech_files": Benchmark("recognition of files", _speech_files),
    "recognizer": Benchmark("the recognizer's errors", _recognizer),
    "noise_control": Benchmark("noise control and chips", _noise_control),
    "separation": Benchmark("separation of rooms", _separation),
    "bptt": Benchmark("backpropagation through time within a budget", _bptt),
}


def measured(folder: Path = EVIDENCE) -> dict[str, list[Ratio]]:
    """The ratios of every benchmark whose record is there, by the script's name."""
    found = {}
    for name, benchmark in BENCHMARKS.items():
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = list(benchmark.read(json.loads(path.read_text("utf-8"))))
    return found


def kept(rows: list[Ratio]) -> tuple[int, int]:
    """How many targets are met, of how many."""
    met = [row.met for row in rows if row.met is not None]
    return sum(met), len(met)
