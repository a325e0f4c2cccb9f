"""The paper's figures 3 and 5 redrawn, and tables of all that was compared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.speech import plan
from counterflow.lab.papers.speech.corpora import ARPABET
from counterflow.lab.papers.speech.listening import PENALTIES, SCALES
from counterflow.lab.papers.speech.measuring import judged_an4, judged_prompts, values
from counterflow.lab.papers.speech.models import CONFIGS, LABELS, configured
from counterflow.lab.report import Exhibit, Figure, TableExhibit
from counterflow.lab.report.exhibit import Cell
from counterflow.lab.trials import ClaimResult, Profile, Record, Trial, claims_of, find

__all__ = ["exhibits"]

# The published accuracies at the middle perplexity, and the claims that hold them.
PUBLISHED = {"lpnn": "cmp.lpnn", "gaussian": "cmp.gaussian", "gaussian delta": "cmp.gaussian_delta"}


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    found: list[Exhibit | None] = [
        _figure_3(profile, records),
        _figure_5(profile, records),
        _models(profile, records),
        _grammars(profile, records),
        _told_apart(profile, records),
        _hidden_control(profile, records),
        _sweep(profile, records),
        _by_hand(profile, records),
        _references(profile, records),
    ]
    return [exhibit for exhibit in found if exhibit is not None]


def _mean(samples: Sequence[float]) -> float | None:
    return float(np.mean(samples)) if len(samples) else None


def _published(claim: str) -> float | None:
    return next((each.value for each in claims_of(plan.KEY) if each.id == claim), None)


def _heat(values: Sequence[Any], frames: int, **more: Any) -> dict[str, Any]:
    table = np.array(values, dtype=float).reshape(frames, -1).T
    return {
        "type": "heatmap", "z": np.round(table, 3), "dx": 0.01, "zmin": -2.5, "zmax": 2.5, "colorscale": "Greys",
        "showscale": False, **more,
    }  # fmt: skip


def _stacked(rows: Sequence[tuple[str, dict[str, Any]]], ticks: tuple[list[float], list[str]]) -> dict[str, Any]:
    """Spectrograms one below the other, with the phones below the last."""
    data, layout = [], {}
    height = 1.0 / len(rows)
    for number, (name, heat) in enumerate(rows, 1):
        suffix = "" if number == 1 else str(number)
        data.append({**heat, "xaxis": "x", "yaxis": f"y{suffix}"})
        top = 1.0 - (number - 1) * height
        layout[f"yaxis{suffix}"] = {"domain": [top - 0.86 * height, top], "title": {"text": name}}
    layout["xaxis"] = {
        "anchor": f"y{len(rows) if len(rows) > 1 else ''}",
        "tickmode": "array", "tickvals": ticks[0], "ticktext": ticks[1], "title": {"text": "phones of the best path"},
    }  # fmt: skip
    return {"data": data, "layout": {**layout, "height": 190 * len(rows) + 60}}


def _picture(profile: Profile, records: Sequence[Record]) -> tuple[Record, str, tuple[list[float], list[str]]] | None:
    runs = judged_prompts(profile, "lpnn", records)
    if not runs or "picture.phones" not in runs[0].curves:
        return None
    curves = runs[0].curves
    phones = [int(value or 0) for value in curves["picture.phones"]]
    edges = [0, *(t for t in range(1, len(phones)) if phones[t] != phones[t - 1]), len(phones)]
    middles = [0.005 * (a + b) for a, b in itertools.pairwise(edges)]
    names = [ARPABET[phones[start]].replace("SIL", "-") for start in edges[:-1]]
    text = "".join(chr(int(value or 32)) for value in curves["picture.text"])
    return runs[0], text, (middles, names)


def _figure_3(profile: Profile, records: Sequence[Record]) -> Figure | None:
    picture = _picture(profile, records)
    if picture is None:
        return None
    record, text, ticks = picture
    frames = len(record.curves["picture.phones"])
    rows = [(name, _heat(record.curves[f"picture.{name}"], frames)) for name in ("actual", "predicted")]
    score = record.metrics["picture score"][0]
    return Figure(
        "Figure 3: actual and predicted spectrogram",
        f"“{text.lower()}”, a prompt that was not learned from: 16 mel coefficients, and what the network in charge "
        f"predicted of each frame from the two before it. The mean distance of a frame is {score:.3g}; the paper's "
        "sentence has a score of 17.61, of which it does not say what it sums.",
        _stacked(rows, ticks),
        "Two gray spectrograms, one below the other, that look much alike; the lower is smoother.",
    )


def _figure_5(profile: Profile, records: Sequence[Record]) -> Figure | None:
    picture = _picture(profile, records)
    if picture is None:
        return None
    record, text, ticks = picture
    frames = len(record.curves["picture.phones"])
    names = {f"picture.{phone}": f"/{phone.lower()}/" for phone in ("EH", "Z") if f"picture.{phone}" in record.curves}
    rows = [("actual", _heat(record.curves["picture.actual"], frames))]
    rows += [(name, _heat(record.curves[curve], frames)) for curve, name in names.items()]
    if not names:
        return None
    shares = [
        record.metrics[f"explained by {phone}"][0] for phone in ("EH", "Z") if f"picture.{phone}" in record.curves
    ]
    return Figure(
        "Figure 5: predictions of single phoneme models",
        f"“{text.lower()}” as {' and '.join(names.values())} alone predict it, each frame by the nearest of "
        f"the model's "
        f"networks. Over all test prompts of this fold they explain {' and '.join(f'{s:.3g}' for s in shares)} of the "
        "variance.",
        _stacked(rows, ticks),
        "Three gray spectrograms, the actual one and two predictions of it, which are both similar to it.",
    )


def _models(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for model, label in LABELS.items():
        prompts, an4 = judged_prompts(profile, model, records), judged_an4(profile, model, records)
        if prompts or an4:
            rows.append(
                [
                    label,
                    _published(PUBLISHED[model]) if model in PUBLISHED else None,
                    _mean(values(prompts, "middle")),
                    _mean(values(an4, "middle")),
                    _mean(values(prompts, "parameters")),
                    _mean(values(prompts, "seconds")),
                ]
            )
    if not rows:
        return None
    return TableExhibit(
        "Section 3, 4 and 6: models at the middle perplexity",
        "Word accuracy in percent: published (perplexity 111, one speaker), on the prompts at perplexity 111 "
        "(mean of the "
        "folds), on AN4's test speakers at its largest, 97 or the nearest that a bigram of all texts has; "
        "numbers learned "
        "and seconds of training for a fold. Mixtures and the two that follow corrective training are not in "
        "the paper.",
        ("model", "published", "prompts", "AN4", "parameters", "seconds"),
        rows,
    )


def _grammars(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    labels = {
        "low": "all texts, sharpest", "middle": "all texts, flattened", "loop": "none",
        "low training": "training texts, sharpest", "middle training": "training texts, flattened",
        "bigram training": "training texts, plain bigram",
    }  # fmt: skip
    published = {"low": "acc.5", "middle": "acc.111", "loop": "acc.402"}
    rows: list[list[Cell]] = []
    for model in ("lpnn", "mixture"):
        prompts, an4 = judged_prompts(profile, model, records), judged_an4(profile, model, records)
        for name, label in labels.items():
            if not (prompts or an4):
                continue
            row: list[Cell] = [f"{LABELS[model]}: {label}"]
            row.append(_published(published[name]) if model == "lpnn" and name in published else None)
            for runs in (prompts, an4):
                row += [_mean(values(runs, f"{name} perplexity")), _mean(values(runs, name))]
            rows.append(row)
    if not rows:
        return None
    return TableExhibit(
        "Section 3: word accuracy under grammars",
        "Grammars are bigrams with back-off. A larger discount flattens them; the sharpest is the one whose "
        "perplexity is "
        "nearest to 5. The paper's grammars are made of the sentences that are recognized, as those of all texts are; "
        "those of training texts know nothing of what is tested but its words.",
        ("grammar", "published", "prompts: perplexity", "prompts: accuracy", "AN4: perplexity", "AN4: accuracy"),
        rows,
    )


def _told_apart(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for model in ("lpnn", "corrective", "linear", "two states", "hidden control", "global"):
        runs = judged_prompts(profile, model, records)
        if runs:
            names = ("explained", "rank", "chance", "ratio", "frame_error")
            rows.append([LABELS[model], *(_mean(values(runs, name)) for name in names)])
    if not rows:
        return None
    return TableExhibit(
        "Section 5: how far phonemes are told apart",
        "On test prompts, along the alignment with what was said: the share of the variance that is "
        "explained, the rank of "
        "the aligned phoneme's error among all and of one drawn at random, the median ratio of its error to the best "
        "other one's, and the share of frames on which another is better.",
        ("model", "explained", "rank", "chance", "ratio", "frames wrong"),
        rows,
    )


def _hidden_control(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    timed = find(records, [plan.speed_trial(profile)])
    if not timed:
        return None
    [record] = timed
    frames = record.settings["frames"]
    rows: list[list[Cell]] = [
        [
            LABELS[name],
            record.metrics[f"{name} parameters"][0],
            record.metrics[f"{name} predictions"][0],
            1e3 * float(np.median([v or 0.0 for v in record.metrics[name]])),
        ]
        for name in ("two states", "hidden control")
    ]
    return TableExhibit(
        "Section 4: what hidden control costs",
        f"40 phonemes: numbers learned, predictions of a frame, and milliseconds for all distances of {frames} frames.",
        ("model", "parameters", "predictions", "milliseconds"),
        rows,
    )


def _sweep(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    size = plan.SIZE[profile]
    for number, corpus in enumerate(("prompts", "an4")):
        folds = size.folds if corpus == "prompts" else (0,)
        for model in size.models[number]:
            sweeps = [plan.sweep_trials(profile, corpus, fold, model, records) for fold in folds]
            tried: dict[str, list[Record]] = {}
            chosen: Counter[str] = Counter()
            for trials in sweeps:
                found = find(records, trials)
                names = [_settings(model, trial) for trial in trials]
                for name, record in zip(names, found, strict=False):
                    tried.setdefault(name, []).append(record)
                if found:
                    chosen[max(zip(names, found, strict=True), key=lambda one: plan.pair_of(one[1])[2])[0]] += 1
            for name, found in tried.items():
                pairs = Counter(f"{scale:g} and {penalty:g}" for scale, penalty, _ in map(plan.pair_of, found))
                accuracy = _mean([plan.pair_of(record)[2] for record in found])
                best = "; ".join(pair for pair, _ in pairs.most_common())
                seconds = _mean(values(found, "seconds"))
                rows.append([corpus, LABELS[model], name, accuracy, best, float(chosen[name]), seconds])
    if not rows:
        return None
    return TableExhibit(
        "The sweep",
        "Every model had the same budget: six settings, each with grammar scales "
        f"{', '.join(f'{s:g}' for s in SCALES)} and word penalties {', '.join(f'{p:g}' for p in PENALTIES)}. Models "
        "that are built on the predictive networks have the settings that these chose, and a pair of their own. Word "
        "accuracy on the next fold of the prompts (its mean, and how many of the folds chose the settings), and on "
        "AN4's speakers who were put aside for this; the best pairs of each setting.",
        ("corpus", "model", "settings", "accuracy", "scale and penalty", "chosen", "seconds"),
        rows,
    )


def _settings(model: str, trial: Trial) -> str:
    return ", ".join(f"{name} {trial.settings[name]:g}" for name in CONFIGS[configured(model)][0])


def _by_hand(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    rows: list[list[Cell]] = []
    for trial in plan.hand_trials(profile):
        for record in find(records, [trial]):
            for part, label in (("heard", "learned from"), ("new", "new speakers")):
                numbers = [record.metrics[f"{part} {name}"][0] or 0.0 for name in ("median", "mean", "bias", "within")]
                model = LABELS[trial.treatment.removeprefix("hand ")]
                rows.append([model, label, *(1e3 * each for each in numbers[:3]), 100 * numbers[3]])
                rows[-1].append(record.metrics[f"{part} count"][0])
    if not rows:
        return None
    return TableExhibit(
        "Outside the paper: alignment beside labels by hand",
        "Berlin emotional speech, phones in German. Models learn from the training speakers' phones and their "
        "order, not from times. How far the beginnings of phones are from the labels': median, mean and bias of "
        "the difference in milliseconds, the share within 20 ms in percent, and how many were compared.",
        ("model", "utterances", "median, ms", "mean, ms", "bias, ms", "within 20 ms, %", "boundaries"),
        rows,
    )


def _references(profile: Profile, records: Sequence[Record]) -> TableExhibit | None:
    prompts, an4 = judged_prompts(profile, "mixture", records), judged_an4(profile, "mixture", records)
    if not (prompts or an4):
        return None

    def wrong(runs: Sequence[Record], name: str) -> float | None:
        accuracy = _mean(values(runs, name))
        return None if accuracy is None else 100.0 - accuracy

    # Sketched beforehand, its scale and penalty tuned on the speakers that it is judged by.
    rows: list[list[Cell]] = [
        ["AN4, free loop", 18.8, wrong(an4, "loop"), wrong(judged_an4(profile, "lpnn", records), "loop")],
        ["AN4, training bigram", 12.3, wrong(an4, "bigram training"), _wrong_lpnn(profile, records, True)],
        ["prompts, free loop", 30.7, wrong(prompts, "loop"), wrong(judged_prompts(profile, "lpnn", records), "loop")],
        ["prompts, training bigram", 18.3, wrong(prompts, "bigram training"), _wrong_lpnn(profile, records, False)],
    ]
    return TableExhibit(
        "Outside the paper: today's simple recognizer",
        "Word error in percent: a sketch of Gaussian mixtures whose grammar scale and word penalty were tuned on the "
        "test speakers, our mixtures, and the predictive networks, both tuned on others. Beside pocketsphinx the "
        "recognizer is measured by benchmarks/speech_files.py, on AN4's few recordings whose audio is here and on "
        "prompts that are resampled for its model of 16 kHz, which is a handicap.",
        ("task", "sketch", "mixtures", "predictive networks"),
        rows,
    )


def _wrong_lpnn(profile: Profile, records: Sequence[Record], an4: bool) -> float | None:
    runs = (judged_an4 if an4 else judged_prompts)(profile, "lpnn", records)
    accuracy = _mean(values(runs, "bigram training"))
    return None if accuracy is None else 100.0 - accuracy
