"""How far alignments are from labels by hand, which the paper does not measure: Berlin emotional speech.

A model learns from the training speakers' phones and their order, not from their times, and aligns both these
speakers and those whom it has not heard. Silence may be at the ends of an utterance and where the labels have some.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from counterflow.audio import log_mel
from counterflow.lab.data import emodb
from counterflow.lab.papers.speech.corpora import Corpus, centered
from counterflow.lab.papers.speech.listening import aligned
from counterflow.lab.papers.speech.models import fit, topology
from counterflow.lab.trials import Outcome, Trial
from counterflow.speech import Lexicon, Linkage, Segment, boundary_error, segments

__all__ = ["align_labeled"]


@functools.lru_cache(maxsize=2)
def _load(utterances: int | None) -> tuple[Corpus, tuple[tuple[Segment, ...], ...]]:
    """Utterances that have labels, and these."""
    data = emodb()
    chosen = [index for index, clip in enumerate(data.clips) if clip.phones]
    if utterances is not None:
        chosen = chosen[:: -(-len(chosen) // utterances)]
    words: dict[str, list[tuple[str, ...]]] = {}
    texts, labels = [], []
    for index in chosen:
        clip = data.clips[index]
        runs: list[list[str]] = [[]]
        for phone in clip.phones or ():
            if phone.symbol != "sil":
                runs[-1].append(phone.symbol)
            elif runs[-1]:
                runs.append([])
        names = [f"{clip.id} {number}" for number, run in enumerate(runs) if run]
        words |= {name: [tuple(run)] for name, run in zip(names, filter(None, runs), strict=True)}
        texts.append(tuple(names))
        labels.append(tuple(Segment(p.symbol, p.start, p.end) for p in clip.phones or () if p.symbol != "sil"))
    waves = [torch.from_numpy(data[index]) for index in chosen]
    features = centered([log_mel(wave, data.rate, 16, window=0.025) for wave in waves])
    parts = tuple(data.clips[index].speaker for index in chosen)
    roles = tuple(data.clips[index].split for index in chosen)
    return Corpus(features, tuple(texts), parts, roles, Lexicon(words)), tuple(labels)


def align_labeled(trial: Trial) -> Outcome:
    """Train on the training speakers, align all, and compare with the labels."""
    settings: Mapping[str, Any] = trial.settings
    corpus, labels = _load(settings["utterances"])
    model = trial.treatment.removeprefix("hand ")
    metrics: dict[str, list[float | None]] = {}

    def fits(index: int) -> bool:
        pattern = Linkage(corpus.texts[index], corpus.lexicon, topology(model))
        return len(corpus.features[index]) >= pattern.least_frames

    learned = [index for index in corpus.of("train") if fits(index)]
    corpus = corpus.scaled(learned)
    fitted = fit(model, corpus, learned, settings, trial.seeds[0])
    metrics["seconds"] = [fitted.seconds]
    for name, judged in (("heard", learned), ("new", [index for index in corpus.of("test") if fits(index)])):
        found: list[Sequence[Segment]] = []
        for index in judged:
            _, states, _, pattern = aligned(fitted, corpus, index)
            found.append(segments(pattern, states, corpus.lexicon.phones, shift=settings["shift"])[1])
        error = boundary_error(found, [labels[index] for index in judged])
        for part in ("mean", "median", "bias", "within", "count"):
            metrics[f"{name} {part}"] = [float(getattr(error, part))]
    return Outcome(metrics)
