"""Alignment, predictors and recognition beside other ways to do the same.

    python benchmarks/speech.py [--json FILE] [--plot PNG] [--repeats N]
    python benchmarks/speech.py --redraw --json evidence/benchmarks/speech.json --plot docs/images/speech-growth.png

Alignment is of 300 frames with 60 states in a left-right chain. `best_path` is beside librosa's Viterbi decoder (which
knows dense transitions), its dynamic time warping on the same matrix, and a recursion that goes through the rows in
NumPy or in torch. So is its kernel alone ("bare"), without checks and into an array that is there before, to which
hmmlearn's kernel (dense, too) compares. The bars were set for the kernel alone; `best_path` is held to the same.
Predictors are 40 phonemes of three, and two
states a phoneme as networks of their own or under hidden control, on 10 s of speech. Recognition is a loop of random
words of four phones over random costs, without features: seconds of processor over seconds of speech. Times are
processor time of one thread, medians; what is compared takes turns, and a ratio is the median of the turns' ratios.
Bars are those that were set before the code was written.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterflow.speech import Decoder, Grammar, Lexicon, Phoneme, PredictorBank, best_path, kernels

sys.path.insert(0, str(Path(__file__).parent))
from common import bars
from common.command import output, positive, status_of
from common.measuring import in_turns, ratio, timed
from common.pictures import write_drawn
from common.records import read_record, write_record


def enough(call: Callable[[], object]) -> int:
    """How many calls, after one that warms up, the clock can tell apart from none: 5 ms."""
    call()
    count = 1
    while count * timed(call, count)() <= 0.005:
        count *= 2
    return count


def seconds_of(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of processor time for a call of each, in turns."""
    return in_turns({name: timed(call, enough(call)) for name, call in calls.items()}, repeats)


def numpy_rows(costs: np.ndarray) -> np.ndarray:
    """The best path by a recursion over rows."""
    T, S = costs.shape
    total = np.full(S, np.inf)
    total[0] = costs[0, 0]
    moved = np.zeros((T, S), bool)
    for t in range(1, T):
        before = np.concatenate([[np.inf], total[:-1]])
        moved[t] = before < total
        total = np.where(moved[t], before, total) + costs[t]
    return trace(moved)


def torch_rows(costs: torch.Tensor) -> np.ndarray:
    """The same with tensors."""
    T, S = costs.shape
    infinite = torch.full((1,), torch.inf)
    total = torch.cat([costs[0, :1], infinite.expand(S - 1)])
    moved = [torch.zeros(S, dtype=torch.bool)]
    for t in range(1, T):
        before = torch.cat([infinite, total[:-1]])
        moved.append(before < total)
        total = torch.where(moved[-1], before, total) + costs[t]
    return trace(torch.stack(moved).numpy())


def trace(moved: np.ndarray) -> np.ndarray:
    """The path back from the last state."""
    T, S = moved.shape
    path = np.empty(T, np.int64)
    state = S - 1
    for t in range(T - 1, -1, -1):
        path[t] = state
        state -= int(moved[t, state])
    return path


def alignment(repeats: int, frames: int = 300, states: int = 60) -> list[dict[str, Any]]:
    """Our kernel and `best_path` beside the others; those that find the same path are checked to do so."""
    costs = np.random.default_rng(0).random((frames, states), dtype=np.float32)
    table, sizes = costs[None], (np.array([frames]), np.array([states]))
    path = np.empty((1, frames), np.int64)
    whole = torch.from_numpy(table)
    step = np.triu(np.tril(np.full((states, states), 0.5), 1))
    step[-1, -1] = 1.0
    first = np.eye(states)[0]
    likelihood = np.exp(-costs.T.astype(float))
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: kernels.chains(table, *sizes, False, path),
        "best_path": lambda: best_path(whole),
        "numpy rows": lambda: numpy_rows(costs),
        "torch rows": lambda: torch_rows(whole[0]),
    }
    missing = []
    try:
        from librosa import sequence
    except ImportError as error:
        missing.append(f"librosa: {error}")
    else:
        moves = np.array([[0, 1], [1, 1]])
        calls["librosa viterbi"] = lambda: sequence.viterbi(likelihood, step, p_init=first)
        calls["librosa dtw"] = lambda: sequence.dtw(C=costs.T, step_sizes_sigma=moves, backtrack=True)
    try:
        from hmmlearn import _hmmc
    except ImportError as error:
        missing.append(f"hmmlearn: {error}")
    else:
        scores = -costs.astype(float)
        calls["hmmlearn"] = lambda: _hmmc.viterbi(first, step, scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms of zero
        calls["bare"]()
        for name in ("numpy rows", "torch rows"):
            assert np.array_equal(calls[name](), path[0]), name
        times = seconds_of(calls, repeats)
    rows = []
    for name, seconds in times.items():
        found = ratio(seconds, times["bare"])
        bar = bars.ALIGNMENT.get(name)
        row = {"way": name, "microseconds": 1e6 * float(np.median(seconds)), **found, "bar": bar}
        if name in bars.PUBLIC_CALLS:
            public = ratio(seconds, times["best_path"])
            row["over best_path"] = {**public, "pass": public["ratio"] >= bars.ALIGNMENT[name]}
        rows.append({**row, "pass": None if bar is None else found["ratio"] >= bar})
    return rows + [{"way": text, "missing": True} for text in missing]


def predictors(repeats: int, frames: int = 1000) -> list[dict[str, Any]]:
    """All predictions and distances of 10 s."""
    torch.manual_seed(0)
    x = torch.randn(frames, 16)
    banks = {
        "40 phonemes of 3": PredictorBank(120, 16),
        "40 phonemes of 2": PredictorBank(80, 16),
        "40 phonemes of 2, hidden control": PredictorBank(40, 16, states=2),
        "one network, 80 states": PredictorBank(1, 16, states=80),
        "40 phonemes of 3, linear": PredictorBank(120, 16, kind="linear"),
    }
    times = seconds_of({name: partial(bank.costs, x) for name, bank in banks.items()}, repeats)
    rows = []
    for name, bank in banks.items():
        milliseconds = 1e3 * float(np.median(times[name]))
        met = milliseconds < bars.PREDICTORS_MS if name == "40 phonemes of 3" else None
        size = sum(each.numel() for each in bank.parameters())
        rows.append({"bank": name, "parameters": size, "milliseconds": milliseconds, "pass": met})
    return rows


SIZES = ((50, 10), (100, 10), (200, 10), (400, 10), (100, 5), (100, 20), (100, 40))


def recognition(repeats: int, sizes: Sequence[tuple[int, int]] = SIZES) -> list[dict[str, Any]]:
    """The One-Stage algorithm over vocabularies and durations."""
    random = np.random.default_rng(0)
    calls = {}
    for words, seconds in sizes:
        phones = [[f"p{phone}" for phone in random.integers(39, size=4)] for _ in range(words)]
        lexicon = Lexicon({f"w{number}": [each] for number, each in enumerate(phones)})
        phoneme = Phoneme(3, 3, skip=False)
        decoder = Decoder(lexicon, Grammar.loop(lexicon.pronunciations), phoneme)
        costs = torch.from_numpy(random.random((100 * seconds, 3 * len(lexicon.phones))))
        calls[f"{words} words, {seconds} s"] = partial(decoder.decode, costs)
    rows = []
    for (words, seconds), took in zip(sizes, seconds_of(calls, repeats).values(), strict=True):
        factor = float(np.median(took)) / seconds
        met = factor <= bars.REAL_TIME if (words, seconds) == (100, 10) else None
        rows.append({"words": words, "seconds": seconds, "real-time factor": factor, "pass": met})
    return rows


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Sizes and seconds of processor time along vocabularies, of 10 s, and along durations, of 100 words."""
    found = {}
    for along, (fixed, value) in {"words": ("seconds", 10), "seconds": ("words", 100)}.items():
        some = sorted((row for row in rows if row[fixed] == value), key=lambda row: row[along])
        found[along] = [row[along] for row in some], [row["real-time factor"] * row["seconds"] for row in some]
    return found


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The power with which time grows along each; 1 is linear."""
    return {
        along: float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) for along, (sizes, times) in curves(rows).items()
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How time grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    names = {"words": "words, 10 s of speech", "seconds": "seconds of speech, 100 words"}
    for axes, (along, (sizes, times)) in zip(figure.subplots(1, 2), curves(rows).items(), strict=True):
        axes.plot(sizes, [1e3 * each for each in times], "o-", label="measured")
        axes.plot(sizes, [1e3 * times[0] * size / sizes[0] for size in sizes], ":", label="linear")
        axes.set_xlabel(names[along])
        axes.set_ylabel("ms of recognition")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.legend()
    write_drawn(figure, path, curves(rows))


def said(row: Mapping[str, Any]) -> str:
    """A row in one line, with what it passes or misses."""
    numbers = []
    for key, value in row.items():
        if isinstance(value, dict):
            numbers.append(f"{key}: {said(value)}")
        elif key != "pass":
            numbers.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}")
    verdict = {True: "  pass", False: "  MISS", None: ""}[row.get("pass")]
    return ", ".join(numbers) + verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there")
    parser.add_argument("--plot", metavar="PNG", type=output, help="draw how recognition grows into there")
    parser.add_argument("--repeats", type=positive, default=15, metavar="N", help="measurements of each (default 15)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing; --plot is of what --json has")
    arguments = parser.parse_args()
    if arguments.redraw:
        record = read_record(arguments.json)
        if arguments.plot is None or "parts" not in record:
            parser.error("--redraw needs --plot, and --json FILE that is there")
        draw(record["parts"]["recognition"], arguments.plot)
        return 0
    torch.set_num_threads(1)
    found = {}
    for part, rows in (("alignment", alignment), ("predictors", predictors), ("recognition", recognition)):
        found[part] = rows(arguments.repeats)
        print(part)
        for row in found[part]:
            print(f"  {said(row)}", flush=True)
    powers = growth(found["recognition"])
    print("growth", ", ".join(f"{along} {power:.2f}" for along, power in powers.items()))
    if arguments.plot:
        draw(found["recognition"], arguments.plot)
    content = {"threads": 1, "torch": torch.__version__, "parts": found, "growth": powers}
    write_record(arguments.json, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(status_of(main))
