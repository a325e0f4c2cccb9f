"""One trial: every method in one room, at every level, on training words and on words that were never heard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from counterflow.lab.papers.separation import words as task
from counterflow.lab.trials import Context, Outcome
from counterflow.separation import Attended, FrequencyICA, WordClassifier, attend, pad_spectra, recognize

__all__ = ["listen"]

# Training and test words get stretches of the noise of their own.
STRETCHES = {"train": (0.0, 0.5), "test": (0.5, 1.0)}


def listen(settings: Any, seed: int, context: Context) -> Outcome:
    """Score every method.

    Curves hold one number a word, 1 where it was not recognized (``"train 15 att"``), and for figure 3 the false
    recognition rate in percent by pass (``"gamma 15 50"``, ``"rate 15 0.5"``). One weight serves all rooms, and in
    some of them matrices run away. Once `attend` finds that they diverge, that pass is taken back, and the method
    stays where it was; for methods it is counted (``"train 15 att stopped at"``). The words are lost some passes
    earlier: a curve of figure 3 that ends near what guessing gives is one that ran away.
    """
    words = task.draw_words(settings["held out"], settings["fold"], settings["words"], settings["learned"])
    where = task.scene(settings["noise"], seed, settings["reverberation"], settings["drive"])
    classifier = task.classifier_of(where, words, settings["epochs"], seed)
    curves: dict[str, list[float]] = {}
    metrics: dict[str, list[float | None]] = {}
    cases = [(split, snr) for split in settings["splits"] for snr in settings["snrs"]]
    for done, (split, snr) in enumerate(cases):
        numbers = words.training if split == "train" else words.test
        labels = torch.tensor([int(label) for label in task.labels_of(numbers)])
        spectra = task.spectra_at(where, numbers, snr, STRETCHES[split])
        name = f"{split} {'clean' if snr == task.CLEAN else snr}"
        # Trials of figure 3's learning rates alone have no methods.
        if settings.get("methods", True):
            found, stopped = _methods(settings, spectra, labels, classifier)
        else:
            found, stopped = {}, {}
        metrics |= {f"{name} {method} stopped at": [float(turn)] for method, turn in stopped.items()}
        for method, outputs in found.items():
            missed = (outputs.argmax(1) != labels).float()
            curves[f"{name} {method}"] = missed.tolist()
            metrics[f"{name} {method}"] = [100 * float(missed.mean())]
        if split == "train":
            curves |= _by_pass(settings, spectra, labels, classifier, name.split()[1])
        context.progress((done + 1) / len(cases), name)
    return Outcome(metrics=metrics, curves=curves)


def _ica(settings: Any, spectra: list[Tensor]) -> FrequencyICA:
    return FrequencyICA(rate=settings["rate"], iterations=settings["iterations"]).fit(spectra)


def _methods(
    settings: Any, spectra: list[Tensor], labels: Tensor, classifier: WordClassifier
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The classifier's outputs for each word by method, and the pass at which a method had to stop."""
    found: dict[str, Tensor] = {}
    stopped: dict[str, int] = {}
    with torch.no_grad():
        batches = [spectra[at : at + 64] for at in range(0, len(spectra), 64)]
        found["mlp"] = torch.cat([classifier(*pad_spectra([each[0] for each in batch])) for batch in batches])
    ica = _ica(settings, spectra)
    plain = attend(ica, spectra, classifier, gamma=0.0, passes=settings["passes"])
    found["ica"], found["gamma0"] = plain.outputs[0], plain.outputs[-1]

    def attended(method: str, items: list[Tensor], gamma: float, **options: Any) -> Attended:
        options |= {"passes": settings["passes"], "voice": plain.voice, "diverging": "stop"}
        result = attend(ica, items, classifier, gamma=gamma, **options)
        if result.diverged is not None:
            stopped[method] = result.diverged
        return result

    found["att"] = attended("att", spectra, settings["gamma"]).outputs[-1]
    found["inverse"] = attended("inverse", spectra, settings["inverse"], form="inverse").outputs[-1]
    found["oracle"] = attended("oracle", spectra, settings["gamma"], targets=labels).outputs[-1]
    # Matrices that are adapted on one half of the words are scored on the other.
    half = torch.zeros_like(found["ica"])
    for first in (0, 1):
        mine, others = spectra[first::2], spectra[1 - first :: 2]
        adapted = attended("half", mine, settings["gamma"]).ica
        half[1 - first :: 2] = recognize(adapted, others, classifier, plain.voice)
    found["half"] = half
    return found, stopped


def _by_pass(
    settings: Any, spectra: list[Tensor], labels: Tensor, classifier: WordClassifier, level: str
) -> dict[str, list[float]]:
    """Figure 3: false recognition rates by pass, for several weights and rates; and each word at the last pass."""
    if not settings["gammas"]:
        return {}
    ica = _ica(settings, spectra)
    found: dict[str, list[float]] = {}
    cases = [("gamma", gamma, gamma, 1.0) for gamma in settings["gammas"]]
    cases += [("rate", rate, settings["gamma"], rate) for rate in settings["rates"] if rate != 1.0]
    for kind, number, gamma, rate in cases:
        options = {"passes": settings["passes"], "rate": rate * settings["rate"]}
        seen = attend(ica, spectra, classifier, gamma=gamma, diverging="stop", **options)
        missed = (seen.outputs.argmax(2) != labels).float()
        found[f"{kind} {level} {number:g}"] = (100 * missed.mean(1)).tolist()
        found[f"{kind} {level} {number:g} words"] = missed[-1].tolist()
        if kind == "gamma" and gamma == settings["gamma"]:
            found[f"rate {level} 1"] = found[f"{kind} {level} {number:g}"]
            found[f"rate {level} 1 words"] = found[f"{kind} {level} {number:g} words"]
            found[f"start {level} words"] = missed[0].tolist()
    return found
