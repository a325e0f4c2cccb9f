"""A recognizer of continuous speech, from recordings and their transcripts.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990: 16 mel-scale coefficients every 10 ms, phoneme models linked to words, the One-Stage algorithm.
Waves are (samples,) in [-1, 1].
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from counterflow import persist
from counterflow.audio import read_parts
from counterflow.audio.files import is_silent
from counterflow.exceptions import DataError, InputError
from counterflow.speech.acoustics import (
    HOP,
    KINDS,
    WINDOW,
    Clock,
    Model,
    ModelKind,
    RunningMean,
    features_of,
    fit_model,
    known_kind,
    read_ready,
    sizes_of,
    spectrum_of,
    states_of,
)
from counterflow.speech.answers import Alternative, Segment, Word, alternative, cheapest, in_turn, segments, spoken
from counterflow.speech.contexts import cases_of, in_context
from counterflow.speech.decoding import Decoder, WordSpan
from counterflow.speech.durations import Durations, rescore
from counterflow.speech.gaussians import add_deltas
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import Lexicon, Linkage, Phoneme, brief
from counterflow.speech.nbest import n_best
from counterflow.speech.resume import Checkpoint
from counterflow.speech.storage import KIND, damaged, grammar_from, grammar_to, lexicon_to, model_from
from counterflow.speech.streaming import RecognizerStream

__all__ = ["Recognizer"]

_LOOKED_AT = 10  # sequences of words that durations sort anew


class Recognizer:
    """Phoneme models with their lexicon, grammar and features; made by `train` or `load`.

    Args:
        model: What gives each frame its costs.
        lexicon: Pronunciations.
        grammar: Which word may follow which.
        phoneme: The topology of all phonemes.
        rate: Samples a second of what it hears; the mel bands reach to half of it. None if it takes features that are
            ready, such as cepstra, 100 frames a second, in the place of waves: shape (frames, features).
        spread: The standard deviation of each band over the training recordings, by which it is divided.
        center: Its mean, from which a running mean begins; zero if not given.
        deltas: How many orders of slopes stand beside the mel bands.
        scale: By how much the grammar's costs are multiplied.
        penalty: Added to the cost of each word.
        beam: States whose cost lies above the best by more are dropped.
        durations: How long its phones last, for those who ask for them.
        phones: What `align` calls the lexicon's phones, which may be cases of others; by their names if not given.

    Raises:
        InputError: If the parts do not fit together.
    """

    def __init__(
        self,
        model: Model,
        lexicon: Lexicon,
        grammar: Grammar,
        phoneme: Phoneme,
        *,
        rate: int | None,
        spread: Tensor,
        center: Tensor | None = None,
        deltas: int = 0,
        scale: float = 1.0,
        penalty: float = 0.0,
        beam: float = 1000.0,
        durations: Durations | None = None,
        phones: Sequence[str] | None = None,
    ) -> None:
        count = states_of(model)
        if count != len(lexicon.phones) * phoneme.predictors:
            needed = f"{len(lexicon.phones)} phones with {phoneme.predictors} predictors each"
            raise InputError(f"the model has {count} predictors, and the lexicon needs {needed}")
        if model.n_features != len(spread) * (1 + deltas):
            raise InputError(f"the model sees {model.n_features} features, and {len(spread)} bands are given")
        self.model, self.lexicon, self.grammar, self.phoneme = model, lexicon, grammar, phoneme
        if rate is not None and not rate >= 1:
            raise InputError(f"rate must be 1 or more, or None for features that are ready, got {rate}")
        self.rate, self.spread, self.deltas = rate, spread, deltas
        self.clock = Clock.of(rate)
        self.center = torch.zeros_like(spread) if center is None else center
        if self.center.shape != spread.shape:
            raise InputError(f"center has shape {tuple(self.center.shape)}, and spread {tuple(spread.shape)}")
        if durations is not None and len(durations.means) != len(lexicon.phones):
            raise InputError(f"durations are of {len(durations.means)} phones, the lexicon's {len(lexicon.phones)}")
        self.durations, self.phones = durations, tuple(lexicon.phones if phones is None else phones)
        if len(self.phones) != len(lexicon.phones):
            raise InputError(f"phones has {len(self.phones)} names for the lexicon's {len(lexicon.phones)}")
        self.decoder = Decoder(lexicon, grammar, phoneme, scale=scale, penalty=penalty, beam=beam)

    @classmethod
    def train(
        cls,
        waves: Sequence[Tensor],
        texts: Sequence[str | Sequence[str]],
        rate: int | None,
        lexicon: Lexicon,
        *,
        kind: ModelKind = "combined",
        grammar: Grammar | None = None,
        phoneme: Phoneme | None = None,
        n_mels: int = 16,
        deltas: int | None = None,
        components: int = 8,
        hidden: int | None = None,
        passes: int | None = None,
        contexts: int | None = None,
        corrective: int = 0,
        scale: float | None = None,
        penalty: float | None = None,
        generator: torch.Generator | None = None,
        report: Callable[[int, float], None] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Recognizer:
        """Train a recognizer.

        Args:
            waves: Recordings, each of shape (samples,).
            texts: What is said in each.
            rate: Samples a second of all. None if ``waves`` are features that are ready, such as cepstra, each of
                shape (frames, features), 100 frames a second; they are divided by their standard deviations.
            lexicon: Pronunciations of at least the words in the texts; others can be recognized, too, if all of their
                phones are in the texts.
            kind: ``"combined"``, a network that tells states of phones in context apart together with the mixtures of
                Gaussians that have aligned for it; ``"classifier"`` or ``"gaussians"``, one of these alone;
                ``"predictors"`` are the paper's, ``"linear"`` ones its baseline, and with ``"hidden-control"`` a
                phoneme has one network.
            grammar: What it will expect; by default a bigram of the texts with all words of the lexicon.
            phoneme: The topology; for predictors the paper's by default, else three states in a row.
            n_mels: Mel bands; of no meaning for ready features.
            deltas: Orders of slopes; 2 for Gaussians by default, 0 for networks, which see other frames. Those that are
                combined have theirs.
            components: Gaussians in a state.
            hidden: Hidden units; by default 16 of a predictor, 256 of each layer of a classifier.
            passes: Over all recordings. A classifier's are 6 where it is combined, and follow 8 alignments; else 8.
            contexts: How often a phone has to occur in the texts between two others to have a model of its own there,
                as `in_context`; 0 is never. 30 where models are combined, else never.
            corrective: Passes of corrective training that follow, for predictors.
            scale: Of the grammar's costs; 1 for predictors by default, for others what was best on held-out training
                speakers of CMU's an4.
            penalty: For each word; likewise, and 0 for predictors.
            generator: Of predictors' weights and the order of recordings; torch's own if not given.
            report: Called after each pass with its number and cost; a classifier's passes count on from those of its
                Gaussians.
            checkpoint: A file that keeps the state after each pass. What was killed and is called again with the same
                arguments goes on from there, and ends with the same model. It takes a ``generator`` of the same seed.
                Remove the file when the recognizer is saved.

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
        known_kind(kind)
        if corrective < 0 or (corrective and kind in ("combined", "classifier", "gaussians")):
            raise InputError(f"corrective={corrective} takes 0 or more passes of predictors, and kind is {kind!r}")
        if kind == "combined" and deltas:
            raise InputError(f"deltas={deltas}: kind 'combined' gives slopes to its Gaussians by itself; leave it out")
        usual = KINDS[kind]
        if not waves or len(waves) != len(texts):
            raise InputError(f"as many waves as texts are needed, got {len(waves)} and {len(texts)}")
        split = [text.split() if isinstance(text, str) else list(text) for text in texts]
        lexicon.words_of([word for words in split for word in words])
        topology = phoneme or usual.phoneme
        orders = usual.deltas if deltas is None else deltas
        if rate is None:
            n_mels = waves[0].shape[-1]
        spectra = [spectrum_of(wave, rate, n_mels, f"recording {number}") for number, wave in enumerate(waves)]
        spread = torch.cat(spectra).std(0).clamp_min(1e-3)
        patterns = [Linkage(words, lexicon, topology) for words in split]
        for number, (x, pattern) in enumerate(zip(spectra, patterns, strict=True)):
            if len(x) < pattern.least_frames:
                raise InputError(
                    f"recording {number} lasts {len(x)} frames of 10 ms, and {brief(pattern.words)!r} takes "
                    f"{pattern.least_frames} or more: the transcript is too long for its audio"
                )
        least = usual.contexts if contexts is None else contexts
        known = in_context(lexicon, split, minimum=least) if least else lexicon
        named = [Linkage(words, known, topology) for words in split] if least else patterns
        own = cases_of(known, lexicon)
        expected = grammar or Grammar.bigram(split, known.pronunciations)
        state = None
        if checkpoint is not None:
            if generator is None:
                raise InputError("checkpoint needs a generator, so that what is resumed draws the same numbers")
            sizes = [
                kind, asdict(topology), orders, components, hidden, passes, corrective, n_mels, rate, contexts,
                generator.initial_seed(),
            ]  # fmt: skip
            state = Checkpoint(checkpoint, {"sizes": sizes, "texts": split, "words": lexicon.pronunciations}, spectra)
        model = fit_model(
            kind,
            spectra,
            spread,
            patterns,
            named,
            own,
            deltas=orders,
            components=components,
            hidden=usual.hidden if hidden is None else hidden,
            passes=usual.passes if passes is None else passes,
            corrective=corrective,
            generator=generator,
            report=report,
            checkpoint=state,
        )
        heard = [
            (p, p.align(model.costs(features_of(x, spread, orders)))[0]) for x, p in zip(spectra, named, strict=True)
        ]
        return cls(
            model,
            known,
            expected,
            topology,
            rate=rate,
            spread=spread,
            center=torch.cat(spectra).mean(0),
            deltas=orders,
            scale=usual.scale if scale is None else scale,
            penalty=usual.penalty if penalty is None else penalty,
            beam=usual.beam,
            durations=Durations(heard, len(known.phones)) if any(split) else None,
            phones=[lexicon.phones[number] for number in own],
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
            center=self.center,
            deltas=self.deltas,
            scale=d.scale,
            penalty=d.penalty,
            beam=d.beam,
            durations=self.durations,
            phones=self.phones,
        )

    def costs(self, wave: Tensor, *, running: bool = False) -> Tensor:
        """The distance matrix of a recording, shape (frames, predictors).

        Args:
            wave: Shape (samples,), at ``rate``; ready features of shape (frames, features) where ``rate`` is None.
            running: Whether bands are relative to their mean until each frame, as in `stream`, rather than to that of
                the whole recording.

        Raises:
            DataError: If it is silent or not finite.
            ShapeError: If it is shorter than a frame.
        """
        spectrum = spectrum_of(wave, self.rate, len(self.spread), "the recording")
        if not running:
            return self.model.costs(features_of(spectrum, self.spread, self.deltas))
        found = (spectrum - RunningMean(self.center)(spectrum)) / self.spread
        return self.model.costs(add_deltas(found, orders=self.deltas) if self.deltas else found)

    def seconds(self, wave: Tensor) -> float:
        """How long a recording lasts.

        Args:
            wave: As `costs`.
        """
        return len(wave) * HOP if self.rate is None else len(wave) / self.rate

    def recognize(self, wave: Tensor, *, running: bool = False, durations: float = 0.0) -> list[Word]:
        """The words of a recording.

        Args:
            wave: As `costs`.
            running: As `costs`.
            durations: What the durations of phones count for, by which the ten best sequences of words are sorted
                anew; 0 leaves them out.

        Returns:
            The words in order.

        Raises:
            DataError, ShapeError: As `costs`.
            InputError: If no sequence of words that the grammar permits fits, or durations are asked for that the model
                does not have.
        """
        if durations:
            return list(self.n_best(wave, 1, running=running, durations=durations)[0].words)
        return [spoken(span, self.clock) for span in self.decoder.decode(self.costs(wave, running=running)).words]

    def n_best(self, wave: Tensor, n: int = 10, *, running: bool = False, durations: float = 0.0) -> list[Alternative]:
        """The best sequences of words of a recording.

        Args:
            wave: As `costs`.
            n: How many at most.
            running: As `costs`.
            durations: As `recognize`; of as many sequences as are asked for, ten at least.

        Returns:
            Alternatives in rising order of cost, all of different words.

        Raises:
            DataError, ShapeError, InputError: As `recognize`; ``InputError`` also if ``n`` is below 1.
        """
        self._require(n, durations)
        return self._best(self.decoder, self.costs(wave, running=running), n, durations)

    def _require(self, n: int, durations: float) -> None:
        if n < 1:
            raise InputError(f"n must be 1 or more, got {n}")
        if not (math.isfinite(durations) and durations >= 0):
            raise InputError(f"durations must be 0 or more, got {durations}")
        if durations and self.durations is None:
            raise InputError("the model has no durations of phones; train it again")

    def _best(self, decoder: Decoder, costs: Tensor, n: int, durations: float) -> list[Alternative]:
        if not durations or self.durations is None:
            return [alternative(each, self.clock) for each in n_best(decoder, costs, n)]
        found = rescore(decoder, costs, self.durations, n=max(n, _LOOKED_AT), weight=durations)
        return [alternative(each, self.clock) for each in found[:n]]

    def stream(self) -> RecognizerStream:
        """Begin to recognize samples as they come; bands are relative to a running mean.

        Returns:
            What samples are pushed into.

        Example:
            >>> draw = torch.Generator().manual_seed(0)
            >>> waves = [0.1 * torch.randn(8000, generator=draw) for _ in range(3)]
            >>> rec = Recognizer.train(waves, ["HI", "HI HI", "HI"], 8000, Lexicon({"HI": [["H", "I"]]}), passes=2)
            >>> stream = rec.stream()
            >>> words = [word for part in waves[0].split(500) for word in stream.push(part)] + stream.finish()
            >>> words == rec.recognize(waves[0], running=True)
            True
        """
        return RecognizerStream(self)

    def transcribe(self, path: str | os.PathLike[str], *, durations: float = 0.0) -> list[Word]:
        """The words of a file; several channels are averaged.

        What lasts more than half a minute is read in parts that end at pauses, so that memory does not grow with the
        file; bands are relative to their mean over the part. The grammar goes on from part to part; with
        ``durations``, as in `alternatives`.

        Args:
            path: A WAV, FLAC or other file that soundfile knows, at ``rate``; where that is None, a NumPy file of
                features.
            durations: As `recognize`.

        Returns:
            The words in order.

        Raises:
            DataError: If it cannot be read, has another rate, or is silent or shorter than a frame.
            InputError: If no sequence of words that the grammar permits fits.
            MissingExtraError: If soundfile is not installed.
        """
        if durations:
            return list(self.alternatives(path, 1, durations=durations)[0].words)
        stream, spans = self.decoder.stream(), list[WordSpan]()
        firsts, starts = [0], list[float]()  # the frame and the second at which each part begins
        for start, wave in self._parts(path):
            costs = self.costs(wave)
            spans += stream.push(costs)
            starts.append(start)
            firsts.append(firsts[-1] + len(costs))
        spans += stream.finish().words

        def second(frame: int, part: int) -> float:
            return starts[part] + self.clock(frame - firsts[part])

        return [
            replace(
                spoken(span, self.clock),
                start=second(span.start, bisect_right(firsts, span.start) - 1),
                end=second(span.end, bisect_left(firsts, span.end) - 1),
            )
            for span in spans
        ]

    def alternatives(self, path: str | os.PathLike[str], n: int = 10, *, durations: float = 0.0) -> list[Alternative]:
        """The best sequences of words of a file, of any length.

        What lasts more than half a minute is cut at pauses, and no word crosses a cut. As in `transcribe`, the grammar
        goes on from part to part: each is heard after the ``n`` best sequences until then, once for each state in which
        they leave the grammar. A sequence that is among the best of the file, but was not until a pause, is missing.

        Args:
            path: As `transcribe`.
            n: How many at most.
            durations: As `recognize`.

        Returns:
            Alternatives in rising order of cost, all of different words.

        Raises:
            DataError, InputError, MissingExtraError: As `transcribe`; ``InputError`` also if ``n`` is below 1, or none
                of the best until a pause can go on.
        """
        self._require(n, durations)
        found = [Alternative((), 0.0)]
        for start, wave, last in _last_marked(self._parts(path)):
            costs = self.costs(wave)
            kept = max(n, _LOOKED_AT) if durations and not last else n  # so many are found in any case
            states: dict[frozenset[tuple[int, float]], list[Alternative]] = {}
            for each in found:
                nodes = self.grammar.reached([word.text for word in each.words])
                states.setdefault(frozenset(nodes.items()), []).append(each)
            longer: list[Alternative] = []
            refused: InputError | None = None
            for state, before in states.items():
                grammar = self.grammar.onward(dict(state), anywhere=not last)
                if len(costs) < self.phoneme.least_frames and grammar.start in grammar.finals:
                    # Not even silence fits, and none is needed.
                    heard = [Alternative((), self.decoder.scale * grammar.finals[grammar.start])]
                else:
                    try:
                        heard = self._best(self.decoder.with_grammar(grammar), costs, kept, durations)
                    except InputError as error:  # nothing that may follow these fits
                        refused = error
                        continue
                longer += in_turn(before, heard, start)
            if refused is not None and not longer:
                more = f"; or ask for more than {n}, which may go on otherwise from {start:.1f} s" if start else ""
                raise InputError(f"{refused}{more}") from refused
            found = cheapest(longer, kept)
        return found

    def _parts(self, path: str | os.PathLike[str]) -> Iterator[tuple[float, Tensor]]:
        """What is to be heard of a file, each part with the second at which it begins."""
        if self.rate is None:
            yield 0.0, read_ready(path)
            return
        heard = False
        for start, wave, rate in read_parts(path):
            if rate != self.rate:
                raise DataError(f"{path} has {rate} samples a second, and the model {self.rate}; resample it")
            if len(wave) < round(WINDOW * rate):
                if start == 0:
                    raise DataError(f"{path} lasts {len(wave) / rate:.3f} s; {WINDOW} s is the least")
                continue
            if is_silent(wave):
                continue
            heard = True
            yield start, wave
        if not heard:
            raise DataError(f"{path} is silent; leave it out, or record it louder")

    def align(self, wave: Tensor, text: str | Sequence[str]) -> tuple[list[Segment], list[Segment]]:
        """Where the words and phones of a known transcript are.

        Args:
            wave: As `costs`.
            text: What is said.

        Returns:
            The words, and the phones with silence between them; phones lie one after the other without gaps. A boundary
            is put between the centers of the windows of two frames.

        Raises:
            DataError, ShapeError: As `costs`.
            InputError: If a word has no pronunciation, or the transcript is too long for its audio.
        """
        pattern = Linkage(self.lexicon.words_of(text), self.lexicon, self.phoneme)
        states, _ = pattern.align(self.costs(wave))
        return segments(pattern, states, self.phones, step=self.clock.step, shift=self.clock.shift)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON.

        Args:
            folder: Where to.

        Raises:
            InputError: If it cannot be written.
        """
        d = self.decoder
        config = {
            "model": sizes_of(self.model), "lexicon": lexicon_to(self.lexicon), "grammar": grammar_to(self.grammar),
            "phones": list(self.phones), "phoneme": asdict(self.phoneme), "rate": self.rate, "deltas": self.deltas,
            "scale": d.scale, "penalty": d.penalty, "beam": d.beam,
            "durations": None if self.durations is None else [self.durations.means, self.durations.deviations],
        }  # fmt: skip
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        persist.save(folder, KIND, config, {"spread": self.spread, "center": self.center, **tensors})

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
        config, tensors = persist.load(folder, KIND)
        with damaged(folder):
            model, lasting = model_from(config, tensors), config.get("durations")
            return cls(
                model,
                Lexicon(config["lexicon"]),
                grammar_from(config["grammar"]),
                Phoneme(**config["phoneme"]),
                rate=None if config["rate"] is None else int(config["rate"]),
                spread=tensors["spread"],
                center=tensors["center"],
                deltas=int(config["deltas"]),
                durations=None if lasting is None else Durations.of(*lasting),
                phones=None if config.get("phones") is None else [str(each) for each in config["phones"]],
                **{name: float(config[name]) for name in ("scale", "penalty", "beam")},
            )


def _last_marked(parts: Iterator[tuple[float, Tensor]]) -> Iterator[tuple[float, Tensor, bool]]:
    """Parts, and whether each is the last."""
    here = next(parts)
    for following in parts:
        yield *here, False
        here = following
    yield *here, True
