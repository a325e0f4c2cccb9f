"""Alignment and recognition of speech."""

from __future__ import annotations

from typing import Any

from .markup import MET, record, table
from .ratios import over_best_path  # what finds benchmarks/ is there


def benchmark_of_speech() -> str:
    """What ``benchmarks/speech.py`` found when its committed results were made."""
    found = record("speech")

    def over(row: dict[str, Any]) -> str:
        spread = f" ({row['low']:.4g} to {row['high']:.4g})" if "low" in row else ""
        return f"{row['ratio']:.4g}{spread}"

    whole = over_best_path(found["parts"]["alignment"])

    def held(row: dict[str, Any]) -> tuple[str, str]:
        if row["way"] not in whole:
            return "", ""
        return over(whole[row["way"]]), MET[whole[row["way"]]["ratio"] >= row["bar"]]

    ways = [
        (
            row["way"],
            f"{row['microseconds']:.4g}",
            "" if row["bar"] is None else f"{row['bar']:g}",
            over(row),
            MET[row["pass"]],
            *held(row),
        )
        for row in found["parts"]["alignment"]
        if "missing" not in row
    ]
    columns = ("way to align", "microseconds", "at least", "over our kernel", "target", "over best_path", "target")
    # Records were once made otherwise.
    taken = any("low" in row for row in found["parts"]["alignment"])
    turns = "what is compared taking turns" if taken else "what is compared one after the other"
    banks = [
        (row["bank"], f"{row['parameters']:,}", f"{row['milliseconds']:.1f}", MET[row["pass"]])
        for row in found["parts"]["predictors"]
    ]
    words = [
        (str(row["words"]), str(row["seconds"]), f"{row['real-time factor']:.4f}", MET[row["pass"]])
        for row in found["parts"]["recognition"]
    ]
    return "\n\n".join(
        [
            f"Medians within one run, {found['threads']} thread, torch {found['torch']}, {turns}.",
            table(columns, ways),
            table(("predictors, 10 s of speech", "parameters", "ms", "target"), banks),
            table(("words", "seconds of speech", "real-time factor", "target"), words),
            "Time grows with the power of: "
            + ", ".join(f"{along} {power:.2f}" for along, power in found["growth"].items())
            + ".",
        ]
    )


def errors_of_the_recognizer() -> str:
    """What ``benchmarks/recognizer.py`` found when its committed results were made."""
    found = record("recognizer")
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
                    "" if bar is None else MET[run["pass"][grammar]],
                    f"{worst:.0f}",
                )
            )
    heads = ("attempt", "task, model", "grammar", "word error, %", "sketch", "at most", "target", "seconds to train")
    return table(heads, rows)


def files_of_speech() -> str:
    """What ``benchmarks/speech_files.py`` found when its committed results were made."""
    found = record("speech_files")
    files, hour = found["files"], found.get("hour", {"rows": []})
    learned, judged = files["files"]
    rows = [
        (name, f"{row['training files']:.1f}", f"{row['test files']:.1f}", f"{row['real-time factor']:.4f}")
        for name, row in files["rows"].items()
    ]
    passes = [
        (row["what"], f"{row['speech'] / 60:.1f}", f"{row['seconds']:.1f}", f"{row['hour']:.1f}")
        for row in hour["rows"]
    ]
    bars, kept = files["bars"], files["pass"]
    return "\n\n".join(
        [
            table(("recognizer", f"{learned} training files", f"{judged} test files", "real-time factor"), rows),
            f"Ours learned from the {learned} training files in {files['seconds of training']:.0f} s and is "
            f"{files['times faster']:.1f} times as fast (at least {bars['times faster']:g}: "
            f"{MET[kept['times faster']]}), at a real-time factor of at most {bars['real-time factor']:g}: "
            f"{MET[kept['real-time factor']]}. On {files['prompts']['files']} telephone prompts, which are 8 kHz and "
            f"were resampled for it, pocketsphinx has a word error of {files['prompts']['error']:.1f}%.",
            *([table(("a pass of", "minutes of speech", "seconds", "an hour, in seconds"), passes)] if passes else []),
        ]
    )
