"""A recognizer of continuous speech, from recordings and their transcripts.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990: 16 mel-scale coefficients every 10 ms, phoneme models linked to words, the One-Stage algorithm.
Waves are (samples,) in [-1, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from counterflow import persist
from counterflow.audio import log_mel, read
from counterflow.exceptions import DataError, InputError
from counterflow.speech.decoding import Decoder
from counterflow.speech.gaussians import GaussianStates, add_deltas
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import Lexicon, Linkage, Phoneme
from counterflow.speech.predictors import PredictorBank
from counterflow.speech.training import train_gaussians, train_predictors

__all__ = ["ModelKind", "Recognizer", "Segment", "Word"]

ModelKind = Literal["predictors", "linear", "hidden control", "gaussians"]
_KIND = "speech recognizer"
_WINDOW, _HOP = 0.025, 0.010
_BANK = ("n_networks", "n_features", "states", "window", "hidden", "kind")
_GAUSSIAN = ("n_states", "n_features", "n_components")
_SILENT = 1e-4  # root mean square below which a recording, in [-1, 1], is called silent


@dataclass(frozen=True)
class Word:
    """A recognized word.

    Args:
        text: The word.
        start: Where it begins, in seconds.
        end: Where it ends.
        score: Minus its cost a frame, with the grammar's part; comparable within one model.
    """

    text: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Segment:
    """A word, a phone or silence, where the alignment of a transcript has it.

    Args:
        text: The word or phone.
        start: Where it begins, in seconds.
        end: Where it ends.
    """

    text: str
    start: float
    end: float


class Recognizer:
    """Phoneme models with their lexicon, grammar and features; made by `train` or `load`.

    Args:
        model: What gives each frame its costs.
        lexicon: Pronunciations.
        grammar: Which word may follow which.
        phoneme: The topology of all phonemes.
        rate: Samples a second of what it hears; the mel bands reach to half of it.
        spread: The standard deviation of each mel band over the training recordings, by which it is divided.
        deltas: How many orders of slopes stand beside the mel bands.
        scale: By how much the grammar's costs are multiplied.
        penalty: Added to the cost of each word.
        beam: States whose cost lies above the best by more are dropped.

    Raises:
        InputError: If the parts do not fit together.
    """

    def __init__(
        self,
        model: PredictorBank | GaussianStates,
        lexicon: Lexicon,
        grammar: Grammar,
        phoneme: Phoneme,
        *,
        rate: int,
        spread: Tensor,
        deltas: int = 0,
        scale: float = 1.0,
        penalty: float = 0.0,
        beam: float = 1000.0,
    ) -> None:
        count = model.n_predictors if isinstance(model, PredictorBank) else model.n_states
        if count != len(lexicon.phones) * phoneme.predictors:
            needed = f"{len(lexicon.phones)} phones with {phoneme.predictors} predictors each"
            raise InputError(f"the model has {count} predictors, and the lexicon needs {needed}")
        if model.n_features != len(spread) * (1 + deltas):
            raise InputError(f"the model sees {model.n_features} features, and {len(spread)} mel bands are given")
        self.model, self.lexicon, self.grammar, self.phoneme = model, lexicon, grammar, phoneme
        self.rate, self.spread, self.deltas = rate, spread, deltas
        self.decoder = Decoder(lexicon, grammar, phoneme, scale=scale, penalty=penalty, beam=beam)

    @classmethod
    def train(
        cls,
        waves: Sequence[Tensor],
        texts: Sequence[str | Sequence[str]],
        rate: int,
        lexicon: Lexicon,
        *,
        kind: ModelKind = "gaussians",
        grammar: Grammar | None = None,
        phoneme: Phoneme | None = None,
        n_mels: int = 16,
        deltas: int | None = None,
        components: int = 8,
        hidden: int = 16,
        passes: int = 8,
        scale: float | None = None,
        penalty: float | None = None,
        generator: torch.Generator | None = None,
        report: Callable[[int, float], None] | None = None,
    ) -> Recognizer:
        """Train a recognizer.

        Args:
            waves: Recordings, each of shape (samples,).
            texts: What is said in each.
            rate: Samples a second of all.
            lexicon: Pronunciations of at least the words in the texts; those of others can be recognized, too.
            kind: ``"gaussians"``, mixtures for each state; ``"predictors"`` are the
                paper's, ``"linear"`` ones its baseline, and with ``"hidden control"`` a phoneme has one network.
            grammar: What it will expect; by default a bigram of the texts with all words of the lexicon.
            phoneme: The topology; for Gaussians three states in a row by default, else the paper's.
            n_mels: Mel bands.
            deltas: Orders of slopes; 2 for Gaussians by default, 0 for predictors, which see earlier frames.
            components: Gaussians in a state.
            hidden: Hidden units of a predictor.
            passes: Alignments of all recordings.
            scale: Of the grammar's costs; 8 for Gaussians by default, else 1.
            penalty: For each word; 15 for Gaussians by default, else 0. This and the scale were chosen on held-out
                training speakers of CMU's an4.
            generator: Of predictors' weights and the order of recordings; torch's own if not given.
            report: Called after each pass with its number and cost.

        Returns:
            The recognizer.

        Raises:
            InputError: If words have no pronunciation (all are named), if a transcript is too long for its audio (the
                first is named), or an argument is out of range.
            DataError: If a recording is silent or not finite.
            ShapeError: If one is shorter than a frame.

        Example:
            >>> draw = torch.Generator().manual_seed(0)
            >>> waves = [0.1 * torch.randn(8000, generator=draw) for _ in range(3)]
            >>> rec = Recognizer.train(waves, ["HI", "HI HI", "HI"], 8000, Lexicon({"HI": [["H", "I"]]}), passes=2)
            >>> {word.text for word in rec.recognize(waves[0])} <= {"HI"}
            True
        """
        if kind not in ("predictors", "linear", "hidden control", "gaussians"):
            raise InputError(f"kind must be 'gaussians', 'predictors', 'linear' or 'hidden control', got {kind!r}")
        if not waves or len(waves) != len(texts):
            raise InputError(f"as many waves as texts are needed, got {len(waves)} and {len(texts)}")
        split = [text.split() if isinstance(text, str) else list(text) for text in texts]
        lexicon.words_of([word for words in split for word in words])
        gaussian = kind == "gaussians"
        topology = phoneme or (Phoneme(3, 3, skip=False) if gaussian else Phoneme())
        orders = deltas if deltas is not None else (2 if gaussian else 0)
        spectra = [_spectrum(wave, rate, n_mels, f"recording {number}") for number, wave in enumerate(waves)]
        spread = torch.cat(spectra).std(0).clamp_min(1e-3)
        features = [_features(each, spread, orders) for each in spectra]
        patterns = [Linkage(words, lexicon, topology) for words in split]
        for number, (x, pattern) in enumerate(zip(features, patterns, strict=True)):
            if len(x) < pattern.least_frames:
                raise InputError(
                    f"recording {number} lasts {len(x)} frames of 10 ms, and {' '.join(pattern.words)!r} takes "
                    f"{pattern.least_frames} or more: the transcript is too long for its audio"
                )
        size = n_mels * (1 + orders)
        model: PredictorBank | GaussianStates
        if gaussian:
            model = GaussianStates(len(lexicon.phones) * topology.predictors, size, components)
            train_gaussians(model, features, patterns, passes=passes, report=report)
        else:
            states = topology.predictors if kind == "hidden control" else 1
            networks = len(lexicon.phones) * topology.predictors // states
            shape: Literal["linear", "perceptron"] = "linear" if kind == "linear" else "perceptron"
            model = PredictorBank(networks, size, states=states, hidden=hidden, kind=shape, generator=generator)
            train_predictors(model, features, patterns, passes=passes, generator=generator, report=report)
        return cls(
            model,
            lexicon,
            grammar or Grammar.bigram(split, lexicon.pronunciations),
            topology,
            rate=rate,
            spread=spread,
            deltas=orders,
            scale=scale if scale is not None else (8.0 if gaussian else 1.0),
            penalty=penalty if penalty is not None else (15.0 if gaussian else 0.0),
        )

    def with_grammar(self, grammar: Grammar) -> Recognizer:
        """The same models under another grammar.

        Args:
            grammar: It; its words must have pronunciations.

        Returns:
            A recognizer that shares the models with this one.

        Raises:
            InputError: If a word has no pronunciation.
        """
        d = self.decoder
        return Recognizer(
            self.model,
            self.lexicon,
            grammar,
            self.phoneme,
            rate=self.rate,
            spread=self.spread,
            deltas=self.deltas,
            scale=d.scale,
            penalty=d.penalty,
            beam=d.beam,
        )

    def costs(self, wave: Tensor) -> Tensor:
        """The distance matrix of a recording, shape (frames, predictors).

        Raises:
            DataError: If it is silent or not finite.
            ShapeError: If it is shorter than a frame.
        """
        spectrum = _spectrum(wave, self.rate, len(self.spread), "the recording")
        return self.model.costs(_features(spectrum, self.spread, self.deltas))

    def recognize(self, wave: Tensor) -> list[Word]:
        """The words of a recording.

        Args:
            wave: Shape (samples,), at ``rate``.

        Returns:
            The words in order.

        Raises:
            DataError, ShapeError: As `costs`.
            InputError: If no sequence of words that the grammar permits fits.
        """
        found = self.decoder.decode(self.costs(wave)).words
        return [Word(w.text, w.start * _HOP, w.end * _HOP, -w.cost / (w.end - w.start)) for w in found]

    def transcribe(self, path: str | os.PathLike[str]) -> list[Word]:
        """The words of a file; several channels are averaged.

        Args:
            path: A WAV, FLAC or other file that soundfile knows, at ``rate``.

        Returns:
            The words in order.

        Raises:
            DataError: If it cannot be read, has another rate, or is silent or shorter than a frame.
            InputError: If no sequence of words that the grammar permits fits.
            MissingExtraError: If soundfile is not installed.
        """
        wave, rate = read(path)
        if rate != self.rate:
            raise DataError(f"{path} has {rate} samples a second, and the model {self.rate}; resample it")
        if len(wave) < round(_WINDOW * rate):
            raise DataError(f"{path} lasts {len(wave) / rate:.3f} s; {_WINDOW} s is the least")
        if float(wave.square().mean().sqrt()) < _SILENT:
            raise DataError(f"{path} is silent; leave it out, or record it louder")
        return self.recognize(wave)

    def align(self, wave: Tensor, text: str | Sequence[str]) -> tuple[list[Segment], list[Segment]]:
        """Where the words and phones of a known transcript are.

        Args:
            wave: Shape (samples,), at ``rate``.
            text: What is said.

        Returns:
            The words, and the phones with silence between them; phones lie one after the other without gaps.

        Raises:
            DataError, ShapeError: As `costs`.
            InputError: If a word has no pronunciation, or the transcript is too long for its audio.
        """
        pattern = Linkage(self.lexicon.words_of(text), self.lexicon, self.phoneme)
        states, _ = pattern.align(self.costs(wave))
        words: list[Segment] = []
        phones: list[Segment] = []
        start = 0
        path = states.tolist()
        spoken = -1
        for t in range(1, len(path) + 1):
            if t < len(path) and pattern.order[path[t]] == pattern.order[path[t - 1]]:
                continue
            state = path[t - 1]
            phones.append(Segment(self.lexicon.phones[pattern.phone[state]], start * _HOP, t * _HOP))
            word = int(pattern.word[state])
            if word >= 0 and word == spoken:
                words[-1] = Segment(words[-1].text, words[-1].start, t * _HOP)
            elif word >= 0:
                words.append(Segment(pattern.words[word], start * _HOP, t * _HOP))
            spoken, start = word, t
        return words, phones

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON.

        Args:
            folder: Where to.

        Raises:
            InputError: If it cannot be written.
        """
        bank = isinstance(self.model, PredictorBank)
        names = _BANK if bank else _GAUSSIAN
        g, d = self.grammar, self.decoder
        config = {
            "model": {"bank": bank, **{name: getattr(self.model, name) for name in names}},
            "lexicon": {word: [list(each) for each in some] for word, some in self.lexicon.pronunciations.items()},
            "grammar": {
                "arcs": [list(arc) for arc in g.arcs], "silent": [list(arc) for arc in g.silent], "start": g.start,
                "finals": [[node, cost] for node, cost in g.finals.items()],
            },
            "phoneme": asdict(self.phoneme), "rate": self.rate, "deltas": self.deltas,
            "scale": d.scale, "penalty": d.penalty, "beam": d.beam,
        }  # fmt: skip
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        persist.save(folder, _KIND, config, {"spread": self.spread, **tensors})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Recognizer:
        """Read what `save` wrote.

        Args:
            folder: Where it is.

        Returns:
            The recognizer.

        Raises:
            InputError: If it is not there, is damaged, or is another kind of model.
        """
        config, tensors = persist.load(folder, _KIND)
        try:
            sizes: dict[str, Any] = dict(config["model"])
            kind = PredictorBank if sizes.pop("bank") else GaussianStates
            state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
            model: PredictorBank | GaussianStates = persist.fill(lambda: kind(**sizes), state)
            g = config["grammar"]
            grammar = Grammar(
                [(int(a), int(b), str(word), float(cost)) for a, b, word, cost in g["arcs"]],
                start=int(g["start"]),
                finals={int(node): float(cost) for node, cost in g["finals"]},
                silent=[(int(a), int(b), float(cost)) for a, b, cost in g["silent"]],
            )
            return cls(
                model,
                Lexicon(config["lexicon"]),
                grammar,
                Phoneme(**config["phoneme"]),
                rate=int(config["rate"]),
                spread=tensors["spread"],
                deltas=int(config["deltas"]),
                **{name: float(config[name]) for name in ("scale", "penalty", "beam")},
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"the model in {folder} is damaged: {reason}; train it again") from error


def _spectrum(wave: Tensor, rate: int, n_mels: int, called: str) -> Tensor:
    if not bool(wave.isfinite().all()):
        raise DataError(f"{called} holds samples that are not finite; leave it out")
    found = log_mel(wave, rate, n_mels, window=_WINDOW, hop=_HOP)
    if float(wave.square().mean().sqrt()) < _SILENT:
        raise DataError(f"{called} is silent; leave it out, or record it louder")
    return found.float()


def _features(spectrum: Tensor, spread: Tensor, deltas: int) -> Tensor:
    """Each band relative to its mean over the utterance."""
    found = (spectrum - spectrum.mean(0)) / spread
    return add_deltas(found, orders=deltas) if deltas else found
