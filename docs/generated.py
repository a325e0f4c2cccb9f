"""The parts of the documentation that are generated when it is built, so that they cannot be out of date.

``.. generated:: NAME [ARGUMENT]`` puts the reStructuredText of one of ``PARTS`` in its place.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import string
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from counterflow import cli
from counterflow.lab import data
from counterflow.lab.trials import claims_of, load_paper, paper_keys
from counterflow.registry import Method, methods

__all__ = ["PARTS", "setup"]

WIDTH = 104
DOCS = Path(__file__).parent
EVIDENCE = DOCS.parent / "evidence"


def plain(text: str) -> str:
    """Text in which nothing is markup; ``N. N. Name`` would begin an enumerated list."""
    return "\\ " + re.sub(r"([\\`*_|])", r"\\\1", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """A list-table; cells are reStructuredText."""
    rows = [*rows]
    assert all(len(row) == len(head) for row in rows), f"a row has not the columns {', '.join(head)}"
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if column == 0 else '  -'} {cell}" for column, cell in enumerate(row)]
    return "\n".join(lines)


def methods_table() -> str:
    """All registered methods and what each does."""
    return table(
        ("method", "site", "what it does"),
        ((f"``{m.key}``", m.site, plain(m.summary)) for m in methods().values()),
    )


def declarations_table() -> str:
    """What each method declares."""
    return table(
        ("method", "identity", "keeps the forward pass", "couples the batch", "homogeneous", "stateful", "random"),
        ((f"``{m.key}``", *map(_mark, _declared(m))) for m in methods().values()),
    )


def _declared(method: Method) -> tuple[bool, ...]:
    return (
        method.identity,
        method.keeps_forward,
        method.batch_coupled,
        method.homogeneous,
        method.stateful,
        method.random,
    )


def _mark(value: bool) -> str:
    return "yes" if value else "–"


def waivers_table() -> str:
    """Contracts that methods cannot keep."""
    rows = [
        (f"``{method.key}``", f"``{contract}``", plain(waiver.reason), f"``{waiver.error.__name__}``")
        for method in methods().values()
        for contract, waiver in method.waivers.items()
    ]
    return table(("method", "contract", "why", "what a user sees"), rows) if rows else "No method waives a contract."


def pairs_table(kind: str) -> str:
    """Every ordered pair of methods on one kind of layers, as tests/contracts/pairs.py found it."""
    cells = json.loads((DOCS / "combinations.json").read_text("utf-8"))[kind]
    keys = list(dict.fromkeys(pair.split(", ")[0] for pair in cells))
    reasons = list(dict.fromkeys(reason for reason in cells.values() if reason))
    rows = []
    for number, first in enumerate(keys, 1):
        marks = [cells[f"{first}, {second}"] for second in keys]
        shown = [f"({string.ascii_lowercase[reasons.index(each)]})" if each else "✓" for each in marks]
        rows.append((f"{number} ``{first}``", *shown))
    notes = [f"({string.ascii_lowercase[at]}) {plain(reason)}" for at, reason in enumerate(reasons)]
    return "\n\n".join([table(("first, then →", *map(str, range(1, len(keys) + 1))), rows), *notes])


def papers_table() -> str:
    """The papers of the lab."""
    rows = []
    for key in paper_keys():
        paper = load_paper(key)
        rows.append((f"``{key}``", plain(paper.citation), str(len(claims_of(key)))))
    return table(("key", "paper", "claims"), rows)


def claims_table(key: str) -> str:
    """The claims of one paper, as ``published.toml`` has them."""
    rows = []
    for claim in claims_of(key):
        number = "" if claim.value is None else f"{claim.value:g}"
        number += "" if claim.spread is None else f" ± {claim.spread:g}"
        rows.append((f"``{claim.id}``", plain(claim.claim), claim.kind, number, plain(claim.at)))
    return table(("id", "claim", "kind", "published", "where"), rows)


def datasets_table() -> str:
    """The catalog of data sets."""
    rows = []
    for entry in data.CATALOG.values():
        title = f"`{entry.title} <{entry.publisher}>`__" if entry.publisher else entry.title
        splits = ", ".join(f"{size} {name}" for name, size in entry.splits.items())
        differs = next((f" Here: {form.differs}." for form in entry.forms if form.differs), "")
        what = f"{title}: {entry.description} ({splits}).{differs}"
        rows.append((f"``{entry.name}``", what, entry.provided, plain(entry.license), plain(entry.citation)))
    return table(("name", "what it is", "provided as", "license", "cite"), rows)


def command_help(verb: str) -> str:
    """What ``counterflow VERB --help`` prints."""
    arguments = ["--help"] if verb == "counterflow" else [verb, "--help"]
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main(arguments)
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    # Paragraphs are left to the terminal to break.
    lines = (textwrap.fill(line, WIDTH) if len(line) > WIDTH else line for line in printed.getvalue().splitlines())
    return ".. code-block:: text\n\n" + textwrap.indent("\n".join(lines), "   ")


def commands() -> str:
    """A section a verb, with its help."""
    sections = []
    for verb in cli.VERBS:
        title = f"``counterflow {verb}``"
        sections.append(f"{title}\n{'-' * len(title)}\n\n{command_help(verb)}")
    return "\n\n".join(sections)


def benchmark_of_tempering() -> str:
    """What ``benchmarks/tempering.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "tempering.json").read_text())["tasks"]
    parts = []
    for name, task in found.items():
        title = task["title"][0].upper() + task["title"][1:]
        rows = []
        for treatment, row in task["treatments"].items():
            if "train" not in row:
                rows.append((plain(treatment), f"{row['rate']:.3g}", f"diverged on {row['diverged']} seeds", "", ""))
                continue
            error = f"{row['error']['median']:.2%}" if "error" in row else ""
            spread = f"{row['train']['median']:.4f} ({row['train']['low']:.4f} to {row['train']['high']:.4f})"
            rate = f"{row['rate']:.3g}" + ("" if row["interior"] else " (edge)")
            rows.append((plain(treatment), rate, spread, f"{row['test']['median']:.4f}", error))
        head = ("treatment", "best rate", "final training loss", "test loss", "test error")
        ratios = []
        for treatment, peers in task["ratios"].items():
            for peer, row in peers.items():
                over = f"{plain(treatment)} / {peer}"
                if row is None:
                    ratios.append((over, "", "", "", "", "not compared: missing or diverged"))
                    continue
                steps = "not reached" if row["steps"] is None else f"{row['steps']:.2f}"
                numbers = (f"{row['train']:.2f}", f"{row['test']:.2f}", steps, f"{row['time']:.2f}")
                ratios.append((over, *numbers, row["says"]))
        heads = ("ratio", "training loss", "test loss", "steps to its loss", "time a step", "tempering it")
        picture = "\n".join(
            f".. figure:: images/tempering-{name}-{word}.png\n   :alt: {alt}\n\n   {alt}\n"
            for word, alt in (
                ("plain", f"{title}: the error's path in the untrained net, plain."),
                ("tempered", f"{title}: the same net, tempered."),
            )
        )
        line = "-" * len(title)
        trivial = f"The trivial loss is {task['trivial']:.4f}: whoever is not below it has learned nothing."
        parts.append(f"{title}\n{line}\n\n{trivial}\n\n{table(head, rows)}\n\n{table(heads, ratios)}\n\n{picture}")
    return "\n\n".join(parts)


def benchmark_of_budgets() -> str:
    """What ``benchmarks/bptt.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "bptt.json").read_text())
    rows = found["parts"]
    net = f"LSTM cell of width {found['width']}, batch {found['batch']}, {found['steps']} steps"
    machine = f"{found['threads']} thread, torch {found['torch']}"
    sections = [f"{net}; {machine}. Ratios are medians within one run, with their quartiles."]

    def show(title: str, part: str, head: Sequence[str], cells: Callable[[dict[str, Any]], tuple[str, ...]]) -> None:
        if part not in rows:
            return
        met = {True: "met", False: "missed", None: ""}
        lines = [(*cells(row), met[row.get("pass")]) for row in rows[part] if "missing" not in row]
        sections.append(f"**{title}**\n\n{table((*head, 'target'), lines)}")

    def spread(row: dict[str, Any]) -> str:
        return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"

    show(
        "The promise: forward operations as planned, and never more bytes than the budget",
        "promise",
        ("budget", "strategy", "forwards planned", "executed", "kept for autograd", "resident memory grew by"),
        lambda row: (
            size_text(row["budget"]),
            row["strategy"],
            f"{row['planned']:,}",
            f"{row['executed']:,}",
            size_text(row["kept"]),
            size_text(row["resident"]),
        ),
    )
    show(
        "An iteration over the plan's cost in measured step times (at most 1.10)",
        "overhead",
        (
            "strategy",
            "slots or budget",
            "forwards",
            "over the plan's cost",
            "over it, forward and backward in turn",
            "over plain",
        ),
        lambda row: (
            row["strategy"],
            row["memory"],
            f"{row['forwards']:,}",
            spread(row),
            f"{row['over steps in turn']:.2f}",
            f"{row['over plain']:.2f}",
        ),
    )
    show(
        "Beside torch.utils.checkpoint on sqrt(t) segments (at equal memory at most 1.00)",
        "peer",
        ("budget", "our forwards", "their forwards", "their memory", "our time over theirs"),
        lambda row: (
            size_text(row["budget"]),
            f"{row['calls']:,}",
            f"{row['segments call']:,}",
            size_text(row["segments keep"]),
            spread(row),
        ),
    )
    show(
        "Fused chunks within a tenth of the memory of one call of nn.LSTM, over that call (at most 1.4)",
        "chunks",
        ("budget", "chunk", "forwards a step", "our time over one call's"),
        lambda row: (size_text(row["budget"]), str(row["chunk"]), f"{row['forwards a step']:.2f}", spread(row)),
    )
    show(
        "Making a plan and listing its actions",
        "solvers",
        ("solver", "steps", "slots", "forwards", "seconds"),
        lambda row: (
            plain(row["solver"]),
            f"{row['steps']:,}",
            str(row["slots"]),
            f"{row['forwards']:,}",
            f"{row['seconds']:.3g}",
        ),
    )
    show(
        "The mixed strategy's table (at most 5 s)",
        "table",
        ("steps", "slots", "cost of an internal state", "forwards", "seconds"),
        lambda row: (
            f"{row['steps']:,}",
            f"{row['slots']:,}",
            f"{row['internal cost']:g}",
            f"{row['forwards']:,}",
            f"{row['seconds']:.2f}",
        ),
    )
    show(
        "What plain backpropagation through time cannot do here: inputs streamed from disk",
        "long",
        ("steps", "budget", "plain would keep", "resident memory grew by", "seconds", "over the floor", "prefix error"),
        lambda row: (
            f"{row['steps']:,}",
            size_text(row["budget"]),
            size_text(row["plain would keep"]),
            size_text(row["resident"]),
            f"{row['seconds']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['prefix error']:.1g}",
        ),
    )
    return "\n\n".join(sections)


def accuracy_of_divergences() -> str:
    """How far the approximations of the divergence lie from numerical integration of Dawson's function."""
    import numpy as np
    import torch
    from scipy.special import dawsn

    from counterflow.variational import dropout_kl

    at = np.arange(-8, 9, 2)
    rows = []
    for log_alpha in at:
        root = np.sqrt(0.5 * np.exp(-float(log_alpha)))
        cells = [f"{log_alpha}", f"{-root * dawsn(root):.5f}"]
        for kind in ("exact", "sigmoid", "polynomial"):
            if kind == "polynomial" and log_alpha > 0:
                cells.append("refused")
                continue
            rate = torch.tensor(float(log_alpha), dtype=torch.float64, requires_grad=True)
            dropout_kl(rate, kind, 1.0 if kind == "polynomial" else None).backward()
            cells.append(f"{abs(float(rate.grad) + root * dawsn(root)):.0e}")
        rows.append(tuple(cells))
    heads = (
        ":math:`\\log\\alpha`",
        ":math:`d KL / d\\log\\alpha`",
        "exact: off by",
        "sigmoid: off by",
        "polynomial: off by",
    )
    return table(heads, rows)


def benchmark_of_whitening() -> str:
    """What ``benchmarks/whitening.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "whitening.json").read_text())
    step = found["step"]
    met = "met" if step["pass"] else "missed"
    row = (
        f"{step['ratio']:.2f} ({min(step['periods']):.2f} to {max(step['periods']):.2f})",
        f"{step['floor']:.2f}",
        f"{step['share of projections']:.1%}",
        f"{step['share of statistics']:.1%}",
        f"{step['plain milliseconds']:.3g}",
        met,
    )
    head = ("over plain SGD", "the floor in products", "share of projections", "of statistics", "plain, ms", "target")
    parts = [f"**A step on the auto-encoder, whitening included (at most 1.5)**\n\n{table(head, [row])}"]
    for task in found["tasks"].values():
        title = task["title"][0].upper() + task["title"][1:]
        rows = []
        for method, each in task["methods"].items():
            last = sorted(curve[-1] for curve in each["curves"])
            other = next(key for key in each if key in ("epsilon", "momentum", "beta1", "damping"))
            loss = f"{last[len(last) // 2]:.4f} ({last[0]:.4f} to {last[-1]:.4f})" if last else "diverged"
            rate = f"{each['rate']:.3g}" + ("" if each["interior"] else " (edge)")
            took = f"{1e3 * task['seconds'][method]:.1f}" if method in task["seconds"] else ""
            rows.append((method, rate, f"{other} {each[other]:g}", loss, took))
        against = [
            (f"{form} / {method}", "diverged", row["updates"], "", row["time"], "")
            if row["loss"] is None
            else (
                f"{form} / {method}",
                f"{row['loss']:.2f}",
                row["updates"],
                f"{row['loss in time']:.2f}",
                row["time"],
                f"{row['seconds']:.2f}",
            )
            for form, others in task["compared"].items()
            for method, row in others.items()
        ]
        behind = ", ".join(task["behind on time"])
        ahead = "yes" if task["ahead of all on updates"] else "no"
        verdict = f"PRONG as in the paper, ahead of all after equally many updates: {ahead}. " + (
            f"Behind in equal time: {behind}." if behind else "Ahead or level in equal time: with all."
        )
        heads = ("ratio", "loss, equal updates", "PRONG is", "loss, equal time", "PRONG is", "time an update")
        names = ("method", "best rate", "other parameter", "final training loss", "ms an update")
        parts.append(f"**{title}**\n\n{verdict}\n\n{table(names, rows)}\n\n{table(heads, against)}")
    return "\n\n".join(parts)


def benchmark_of_competition() -> str:
    """What ``benchmarks/competition.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "competition.json").read_text())
    met = {True: "met", False: "missed", None: ""}
    rows = [
        (
            row["net"] + (", compiled" if row["compiled"] else ""),
            str(row["batch"]),
            f"{row['relu ms']:.1f} ms",
            *(f"{row[kind]:.3f}" for kind in ("again", "2", "4")),
            met[row["pass"]],
        )
        for row in found["rows"]
    ]
    head = ("net", "batch", "ReLU's step", "ReLU again", "blocks of two", "blocks of four", "target")
    machine = f"Medians within one run, {found['threads']} thread, torch {found['torch']}."
    return f"{machine}\n\n{table(head, rows)}"


def benchmark_of_choice() -> str:
    """What ``benchmarks/choice.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "choice.json").read_text())
    rows = [
        (
            str(row["members"]),
            str(row["batch"]),
            row["format"],
            f"{row['naive ms']:.0f} ms",
            f"{row['again']:.2f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['floor']:.2f}",
            f"{row['bar']:g}",
            f"{size_text(row['bytes'])} of {size_text(row['naive bytes'])}",
            "met" if row["pass"] else "missed",
        )
        for row in found["rows"]
    ]
    head = (
        "members",
        "batch",
        "memory format",
        "naive step",
        "naive again",
        "ours over it",
        "floor",
        "at most",
        "peak memory",
        "target",
    )
    beside = found["peer"]
    told = beside.get("missing") or f"{beside['ratio']:.2f} ({beside['low']:.2f} to {beside['high']:.2f})"
    epoch = (
        f"An epoch of a plain ensemble of {beside['members']} in a loop of one's own, over {beside['peer']}: {told}."
    )
    machine = f"Medians and quartiles within one run, {found['threads']} thread, torch {found['torch']}."
    return f"{machine}\n\n{table(head, rows)}\n\n{epoch}"


def benchmark_of_noise() -> str:
    """What ``benchmarks/variational.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "variational.json").read_text())
    met = {True: "met", False: "missed", None: ""}
    rows = [
        (
            plain(row["treatment"]),
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            "" if row["bar"] is None else f"{row['bar']:g}",
            met[row["pass"]],
        )
        for row in found["rows"]
    ]
    head = ("noise and rates, or package", "over the plain net", "at most", "target")
    missing = "".join(f" {text[0].upper()}{text[1:]}." for text in found["missing"])
    blocks = (
        f" Gradients of weights in blocks that stay in the cache take {found['in blocks']:.2f} of whole ones' time."
    )
    memory = " Freed memory is kept by the process." if found["keeps memory"] else ""
    said = f"Medians and quartiles of {found['repeats']} steps, torch {found['torch']}.{memory}{missing}"
    return f"{said}\n\n{table(head, rows)}\n\n{blocks.strip()}"


def benchmark_of_noise_control() -> str:
    """What ``benchmarks/noise_control.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "noise_control.json").read_text())
    met, bars = {True: "met", False: "missed", None: ""}, found["bars"]
    learned = found["perceptron"]
    targets = [
        (
            "perceptron 25-10-1, connection updates a second",
            f"{learned['updates'] / 1e6:.0f} million",
            f"at least {bars['updates'] / 1e6:.0f} million",
            met[learned["pass"]["updates"]],
        ),
        (
            "the same over torch's autograd, sample by sample",
            f"{learned['autograd']:.0f} times",
            f"at least {bars['autograd']:.0f}",
            met[learned["pass"]["autograd"]],
        ),
    ]
    targets += [
        (
            f"{row['filter']}, {row['taps']} taps, over padasip (outputs {row['apart']:.0e} apart)",
            f"{row['ratio']:.0f} times",
            f"at least {row['bar']:.0f}",
            met[row["pass"]],
        )
        for row in found["filters"]
    ]
    targets += [
        (
            f"chip, {row['device']}, over the perceptron",
            f"{row['ratio']:.1f} times",
            "" if row["bar"] is None else f"at most {row['bar']:g}",
            met[row["pass"]],
        )
        for row in found["chip"]
    ]
    times = [("perceptron", f"{learned['nanoseconds']:.0f}", f"{learned['real-time factor']:.5f}")]
    times += [
        (row.get("filter") or row["controller"], f"{row['nanoseconds']:.0f}", f"{row['real-time factor']:.5f}")
        for row in (*found["filters"], *found["others"])
    ]
    grown = [
        (
            f"{row['samples']:,}",
            f"{row['connections']:,}",
            f"{row['nanoseconds a sample']:.0f}",
            f"{row['picoseconds a connection']:.0f}",
        )
        for row in found["scaling"]
    ]
    return "\n\n".join(
        [
            f"{found['machine']}, numba {found['numba']}, torch {found['torch']}.",
            table(("what", "measured", "target", "target"), targets),
            table(("controller", "nanoseconds a sample", "real-time factor at 16 kHz"), times),
            table(("samples", "connections", "nanoseconds a sample", "picoseconds a connection"), grown),
        ]
    )


def benchmark_of_speech() -> str:
    """What ``benchmarks/speech.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "speech.json").read_text())
    met = {True: "met", False: "missed", None: ""}
    ways = [
        (
            row["way"],
            f"{row['microseconds']:.4g}",
            f"{row['ratio']:.4g}",
            "" if row["bar"] is None else f"{row['bar']:g}",
            met[row["pass"]],
        )
        for row in found["parts"]["alignment"]
        if "missing" not in row
    ]
    banks = [
        (row["bank"], f"{row['parameters']:,}", f"{row['milliseconds']:.1f}", met[row["pass"]])
        for row in found["parts"]["predictors"]
    ]
    words = [
        (str(row["words"]), str(row["seconds"]), f"{row['real-time factor']:.4f}", met[row["pass"]])
        for row in found["parts"]["recognition"]
    ]
    return "\n\n".join(
        [
            f"Medians within one run, {found['threads']} thread, torch {found['torch']}.",
            table(("way to align", "microseconds", "over the bare call", "at least", "target"), ways),
            table(("predictors, 10 s of speech", "parameters", "ms", "target"), banks),
            table(("words", "seconds of speech", "real-time factor", "target"), words),
            "Time grows with the power of: "
            + ", ".join(f"{along} {power:.2f}" for along, power in found["growth"].items())
            + ".",
        ]
    )


def errors_of_the_recognizer() -> str:
    """What ``benchmarks/recognizer.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "recognizer.json").read_text())
    rows = []
    for name, run in found.items():
        worst = max(run["seconds"]) if isinstance(run["seconds"], list) else run["seconds"]
        for grammar, error in run["errors"].items():
            bar = run["bars"].get(grammar)
            rows.append(
                (
                    str(run["attempt"]),
                    name,
                    grammar,
                    f"{error:.1f}",
                    f"{run['sketch'][grammar]:.1f}",
                    "" if bar is None else f"{bar:g}",
                    "" if bar is None else ("met" if run["pass"][grammar] else "missed"),
                    f"{worst:.0f}",
                )
            )
    heads = ("attempt", "task, model", "grammar", "word error, %", "sketch", "at most", "target", "seconds to train")
    return table(heads, rows)


def files_of_speech() -> str:
    """What ``benchmarks/speech_files.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "speech_files.json").read_text())
    met = {True: "met", False: "missed"}
    files, hour = found["files"], found.get("hour", {"rows": []})
    learned, judged = files["files"]
    rows = [
        (name, f"{row['training files']:.1f}", f"{row['test files']:.1f}", f"{row['real-time factor']:.4f}")
        for name, row in files["rows"].items()
    ]
    passes = [
        (row["what"], f"{row['speech'] / 60:.1f}", f"{row['seconds']:.1f}", f"{row['hour'] / 60:.1f}")
        for row in hour["rows"]
    ]
    bars, kept = files["bars"], files["pass"]
    return "\n\n".join(
        [
            table(("recognizer", f"{learned} training files", f"{judged} test files", "real-time factor"), rows),
            f"Ours learned from the {learned} training files in {files['seconds of training']:.0f} s and is "
            f"{files['times faster']:.1f} times as fast (at least {bars['times faster']:g}: "
            f"{met[kept['times faster']]}), at a real-time factor of at most {bars['real-time factor']:g}: "
            f"{met[kept['real-time factor']]}. On {files['prompts']['files']} telephone prompts, which are 8 kHz and "
            f"were resampled for it, pocketsphinx has a word error of {files['prompts']['error']:.1f}%.",
            *([table(("a pass of", "minutes of speech", "seconds", "an hour, in minutes"), passes)] if passes else []),
        ]
    )


def benchmark_of_density() -> str:
    """What ``benchmarks/density.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "density.json").read_text())
    met = {True: "met", False: "missed"}
    heads = ("beside", "theirs, ms", "ours, ms", "times faster", "on the wall", "at least", "target")
    rows, missing = [], set()

    def add(name: str, theirs: float, ours: float, row: dict[str, Any]) -> None:
        spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        cells = (f"{theirs:.2f}", f"{ours:.2f}", spread, f"{row['wall']:.2f}", f"{row['bar']:g}", met[row["pass"]])
        rows.append((name, *cells))

    for size in found["one"]:
        for peer, row in size["faster than"].items():
            times = size["milliseconds"]
            add(f"S = {size['states']}: {peer}", times[peer], times["ours"], row)
        missing |= set(size["missing"])
    for pair, row in found["paper"]["faster than"].items():
        ours, _, peer = pair.partition(" / ")
        times = found["paper"]["milliseconds"]
        add(f"the paper's size, {ours}: {peer}", times[peer], times[ours], row)
    floors = ", ".join(f"{size['estimated floor']:g} (S = {size['states']})" for size in found["one"])
    cost, cold = found["cost"], found["cold"]
    powers = ", ".join(f"{what} {power:.2f}" for what, power in cost["powers"].items())
    lines = [
        f"Medians and quartiles within one run of the least of a few calls, {found['threads']} thread, torch "
        f"{found['torch']}. {found['machine']}",
        table(heads, rows),
        f"Estimated floor of products and exponentials alone, in ms: {floors}.",
        f"Time grows with the power of: {powers}.",
        f"Kept for going back: at most {cost['kept at most']:.2f} of the posteriors (at most 2: {met[cost['pass']]}).",
        f"The first call with cached kernels: {cold['seconds']:.2f} s (at most 0.3: {met[cold['pass']]}), of which "
        f"numba loads for {cold['numba loads']:.2f} s, once in a process; imports before it take "
        f"{cold['imports']:.2f} s.",
    ]
    if "dynamax" in cold:
        theirs = cold["dynamax"]
        lines.append(
            f"The first call of dynamax, measured in the same way: {theirs['seconds']:.2f} s, nearly all of it "
            f"compiling, and again for every new shape; imports before it take {theirs['imports']:.2f} s."
        )
    if missing:
        lines.append(f"Not installed when this was measured: {', '.join(sorted(missing))}.")
    return "\n\n".join(lines)


def benchmark_of_separation() -> str:
    """What ``benchmarks/separation.py`` found when its committed results were made."""
    found = json.loads((EVIDENCE / "benchmarks" / "separation.json").read_text())
    met = {True: "met", False: "missed"}
    bars = [(plain(bar["target"]), f"{bar['value']:.3g}", met[bar["pass"]]) for bar in found["bars"]]
    rooms = [
        (
            f"{row['condition']}, {row['reverberation']:g} s",
            name,
            str(each["rooms"]),
            f"{each['median']:.2f}",
            f"{each['worst']:.2f}",
            f"{each['iterations']:.3f}",
            f"{each['real-time factor']:.4f}",
        )
        for row in found["rows"]
        for name, each in row["methods"].items()
    ]
    head = (
        "against, reverberation",
        "method",
        "rooms",
        "median SDR improvement, dB",
        "worst",
        "iterations, s",
        "real-time factor",
    )
    return "\n\n".join(
        [
            f"Processor time of {found['threads']} thread, torch {found['torch']}, while other work went on beside it. "
            "Slow methods were run in fewer rooms, and are compared with the default in those.",
            table(("target", "measured", ""), bars),
            table(head, rooms),
        ]
    )


def size_text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


PARTS: dict[str, Callable[..., str]] = {
    "benchmark_bptt": benchmark_of_budgets,
    "benchmark_choice": benchmark_of_choice,
    "benchmark_competition": benchmark_of_competition,
    "benchmark_noise_control": benchmark_of_noise_control,
    "benchmark_recognizer": errors_of_the_recognizer,
    "benchmark_density": benchmark_of_density,
    "benchmark_separation": benchmark_of_separation,
    "benchmark_speech": benchmark_of_speech,
    "benchmark_speech_files": files_of_speech,
    "benchmark_tempering": benchmark_of_tempering,
    "benchmark_variational": benchmark_of_noise,
    "benchmark_whitening": benchmark_of_whitening,
    "kl_accuracy": accuracy_of_divergences,
    "pairs": pairs_table,
    "methods": methods_table,
    "declarations": declarations_table,
    "waivers": waivers_table,
    "papers": papers_table,
    "claims": claims_table,
    "datasets": datasets_table,
    "help": command_help,
    "commands": commands,
}


class Generated(SphinxDirective):
    """Puts one of the parts where it stands."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The part's nodes."""
        name, *rest = self.arguments
        return self.parse_text_to_nodes(PARTS[name](*rest), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Called by ``conf.py``."""
    app.add_directive("generated", Generated)
