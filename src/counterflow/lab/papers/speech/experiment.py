"""The trials behind the LPNN paper's numbers and figures, and what is measured from them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from counterflow.lab.papers.speech import plan
from counterflow.lab.papers.speech.corpora import ARPABET, FOLDS, Corpus, load
from counterflow.lab.papers.speech.figures import exhibits
from counterflow.lab.papers.speech.handlabels import align_labeled
from counterflow.lab.papers.speech.listening import (
    PENALTIES,
    SCALES,
    aligned,
    errors_of,
    explained,
    grammar_near,
    recognized,
)
from counterflow.lab.papers.speech.measuring import measure
from counterflow.lab.papers.speech.models import Fitted, bank_of, fit
from counterflow.lab.trials import Context, Outcome, Paper, Trial
from counterflow.seeding import torch_generator
from counterflow.speech import Grammar, Linkage, discrimination

__all__ = ["PAPER"]

MIDDLE = 111.0
LOW = 5.0
MELS = 16


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    if trial.treatment == "speed":
        return _speed(trial)
    if trial.treatment.startswith("hand "):
        return align_labeled(trial)
    *sweep, name, model = trial.treatment.split(" ", 2 if trial.treatment.startswith("sweep ") else 1)
    settings: Mapping[str, Any] = trial.settings
    corpus = load(name, settings["utterances"])
    learned, judged = _shares(corpus, name, trial.seeds[0], settings if sweep else None)
    corpus = corpus.scaled(learned)
    fitted = fit(model, corpus, learned, settings, trial.seeds[0])
    context.progress(0.7, "trained")
    if sweep:
        return Outcome(
            {"seconds": [fitted.seconds], "parameters": [float(fitted.parameters)]},
            {"grid": _grid(fitted, corpus, judged)},
        )
    return _judged(fitted, corpus, learned, judged, settings["scale"], settings["penalty"], model)


def _shares(corpus: Corpus, name: str, fold: int, sweep: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """The utterances that a model learns from, and those that judge it, or choose it in a sweep."""
    if name == "an4":
        if sweep is None:
            return corpus.of("train", "choose"), corpus.of("test")
        speakers = sorted({corpus.parts[index] for index in corpus.of("train")})[: sweep["speakers"]]
        learned = [index for index in corpus.of("train") if corpus.parts[index] in speakers]
        judged = corpus.of("choose")
    else:
        if sweep is None:
            return corpus.of(*(str(n) for n in range(FOLDS) if n != fold)), corpus.of(str(fold))
        chooses = (fold + 1) % FOLDS
        learned = corpus.of(*(str(n) for n in range(FOLDS) if n not in (fold, chooses)))
        judged = corpus.of(str(chooses))
    return learned, judged[:: -(-len(judged) // sweep["choosing"])]


def _grid(fitted: Fitted, corpus: Corpus, judged: Sequence[int]) -> list[float]:
    """Word accuracy at the middle perplexity for all scales and penalties."""
    said = [corpus.texts[index] for index in judged]
    grammar, _ = grammar_near(MIDDLE, corpus.texts, said, corpus.lexicon.pronunciations)
    costs = [fitted.costs(corpus.features[index]) for index in judged]
    return [
        errors_of(said, recognized(fitted, costs, grammar, scale, penalty)).accuracy
        for scale in SCALES
        for penalty in PENALTIES
    ]


def _judged(
    fitted: Fitted,
    corpus: Corpus,
    learned: Sequence[int],
    judged: Sequence[int],
    scale: float,
    penalty: float,
    model: str,
) -> Outcome:
    said = [corpus.texts[index] for index in judged]
    words = list(corpus.lexicon.pronunciations)
    loop = Grammar.loop(words)
    middle = grammar_near(MIDDLE, corpus.texts, said, words)
    grammars = {"middle": middle}
    if model in ("lpnn", "mixture"):
        texts = [corpus.texts[index] for index in learned]
        bigram = Grammar.bigram(texts, words)
        grammars |= {
            "low": grammar_near(LOW, corpus.texts, said, words),
            "loop": (loop, loop.perplexity(said)),
            "low training": grammar_near(LOW, texts, said, words),
            "middle training": grammar_near(MIDDLE, texts, said, words),
            "bigram training": (bigram, bigram.perplexity(said)),
        }
    metrics: dict[str, list[float | None]] = {
        "seconds": [fitted.seconds],
        "parameters": [float(fitted.parameters)],
        "phones": [float(len(fitted.lexicon.phones))],
    }
    curves: dict[str, Sequence[float | None]] = {}
    began = time.process_time()
    costs = [fitted.costs(corpus.features[index]) for index in judged]
    metrics["seconds of costs"] = [time.process_time() - began]
    metrics["seconds of speech"] = [sum(map(len, costs)) / 100]
    speakers = sorted({corpus.parts[index] for index in judged})
    for name, (grammar, perplexity) in grammars.items():
        began = time.process_time()
        heard = recognized(fitted, costs, grammar, scale, penalty)
        metrics[f"{name} seconds"] = [time.process_time() - began]
        counted = errors_of(said, heard)
        metrics[name] = [counted.accuracy]
        metrics[f"{name} perplexity"] = [perplexity]
        for part in ("words", "substitutions", "deletions", "insertions"):
            metrics[f"{name} {part}"] = [float(getattr(counted, part))]
        mine = [[n for n, index in enumerate(judged) if corpus.parts[index] == speaker] for speaker in speakers]
        curves[f"{name} speakers"] = [
            errors_of([said[n] for n in some], [heard[n] for n in some]).accuracy for some in mine
        ]
    if fitted.bank is not None:
        _look(fitted, corpus, judged, metrics, curves, pictures=model == "lpnn")
    return Outcome(metrics, curves)


def _look(
    fitted: Fitted,
    corpus: Corpus,
    judged: Sequence[int],
    metrics: dict[str, list[float | None]],
    curves: dict[str, Sequence[float | None]],
    *,
    pictures: bool,
) -> None:
    """What the predictors do along the alignment with what was said, and phonemes alone over whole utterances."""
    each = fitted.phoneme.predictors
    tables, paths, on_path, frames, kept = [], [], [], [], []
    for index in judged:
        if len(corpus.features[index]) < Linkage(corpus.texts[index], fitted.lexicon, fitted.phoneme).least_frames:
            continue
        distances, _, predictors, _ = aligned(fitted, corpus, index)
        tables.append(distances)
        paths.append(predictors)
        on_path.append(distances.gather(1, predictors[:, None])[:, 0])
        frames.append(corpus.features[index])
        kept.append(index)
    metrics["error"] = [float(torch.cat(on_path).mean())]
    speakers = [corpus.parts[index] for index in kept]
    curves["error speakers"] = [
        float(torch.cat([on_path[n] for n, of in enumerate(speakers) if of == speaker]).mean())
        for speaker in sorted(set(speakers))
    ]
    metrics["explained"] = [explained(on_path, frames)]
    found = discrimination(torch.cat(tables), torch.cat(paths), each)
    for name in ("rank", "ratio", "frame_error", "chance"):
        metrics[name] = [getattr(found, name)]
    if not pictures:
        return
    assert fitted.bank is not None
    alone = {}
    for phone in ("EH", "Z", "M"):
        if phone in fitted.lexicon.phones:
            first = fitted.lexicon.phones.index(phone) * each
            alone[phone] = first
            best = [table[:, first : first + each].amin(1) for table in tables]
            metrics[f"explained by {phone}"] = [explained(best, frames)]
    # The utterance of figures 3 and 5: the first that lasts at least 1.5 s.
    index = next((n for n in judged if len(corpus.features[n]) >= 150), judged[0])
    distances, states, predictors, pattern = aligned(fitted, corpus, index)
    x = corpus.features[index]
    with torch.no_grad():
        predicted = fitted.bank(x)
    curves["picture.actual"] = x.flatten().tolist()
    curves["picture.predicted"] = predicted[torch.arange(len(x)), predictors].flatten().tolist()
    for phone, first in alone.items():
        nearest = distances[:, first : first + each].argmin(1) + first
        curves[f"picture.{phone}"] = predicted[torch.arange(len(x)), nearest].flatten().tolist()
    curves["picture.phones"] = [
        float(ARPABET.index(fitted.lexicon.phones[number])) for number in pattern.phone[states.numpy()]
    ]
    curves["picture.words"] = [float(number) for number in pattern.word[states.numpy()]]
    curves["picture.text"] = [float(ord(letter)) for letter in " ".join(corpus.texts[index])]
    metrics["picture score"] = [float(distances.gather(1, predictors[:, None]).sqrt().sum()) / len(x)]


def _speed(trial: Trial) -> Outcome:
    """Seconds for all distances of some frames: 2-state phonemes, 40 of them, both ways in turn."""
    settings: Mapping[str, Any] = trial.settings
    x = torch.randn(settings["frames"], MELS, generator=torch_generator(0, "frames"))
    banks = {name: bank_of(name, 40, MELS, settings, 0) for name in ("two states", "hidden control")}
    for bank in banks.values():
        bank.costs(x)
    times: dict[str, list[float]] = {name: [] for name in banks}
    for _ in trial.seeds:
        least = dict.fromkeys(banks, float("inf"))
        for _ in range(5):
            for name, bank in banks.items():
                began = time.process_time()
                for _ in range(5):
                    bank.costs(x)
                least[name] = min(least[name], (time.process_time() - began) / 5)
        for name, seconds in least.items():
            times[name].append(seconds)
    metrics: dict[str, list[float | None]] = {name: [*values] for name, values in times.items()}
    for name, bank in banks.items():
        count = sum(each.numel() for each in bank.parameters())
        # What the first layer makes of a second of speech: once a network.
        sums = 100 * bank.n_networks * bank.hidden
        metrics[f"{name} parameters"] = [float(count)] * len(trial.seeds)
        metrics[f"{name} bytes"] = [4.0 * (count + sums)] * len(trial.seeds)
        metrics[f"{name} predictions"] = [float(bank.n_predictors)] * len(trial.seeds)
    return Outcome(metrics)


PAPER = Paper(
    key=plan.KEY,
    revision=2,
    trials=plan.all_trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
