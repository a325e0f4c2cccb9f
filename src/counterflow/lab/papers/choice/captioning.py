"""Table 1 and figure 7 on other data: a captioner that is told another caption of the same picture.

There are no pictures here. The input is a picture's first caption, the references are the other four; every model reads
it by the same recurrent encoder. Ambiguity stays: four people have said four different things. The encoder is trained
first to tell which words the other four use, as the paper's is to tell which things a picture shows; trained with a
decoder instead, it is not listened to before thousands of updates. In the *frozen* setting members are decoders on its
features, which do not change; in the *fine-tuned* one they go on from there together with the encoder, through which
the sum of all members' gradients goes: a shared trunk.

Decoders know from the start how often each word is used, as is common for captioners: else the member that learns this
first wins every sentence, and its rivals never recover.

Rate, width and number of updates were settled by a few runs on training pictures held out; no test picture had a part
in it. What was tried against members that win nothing all the same: a fifth of the rate, a rate that rises over 200
updates, dropout of a half, six times as many updates. Each left one or two of five members without sentences. A later
work's remedy, annealed weights, is run as well, at a temperature that nothing was tried for; it judges no claim.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import counterflow as cf
from counterflow.choice import annealed, cider_d, distinct_ngrams, mean_length, oracle_cider_d
from counterflow.lab.data import captions
from counterflow.lab.loop import Batches, Curves, train
from counterflow.lab.papers.choice.captioner import END, PAD, UNKNOWN, Decoder, TextEncoder, beam_search
from counterflow.lab.papers.choice.ensembles import Part, Problem, alternate, fit, in_turn
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, seed_of

__all__ = ["Corpus", "corpus", "learn"]

RATE, BATCH = 5e-3, 50
BEAM = 2
LONGEST = 18  # words
SCALE = 10  # CIDEr-D's highest value
WATCHED = 100  # sentences for the curve of the oracle loss
HOT, COLD = 10.0, 0.1  # temperatures of annealed weights at both ends, in nats a sentence

Sentences = list[list[int]]


@dataclass(frozen=True)
class Corpus:
    """Sentences as tokens.

    Args:
        words: The vocabulary; the first four stand for the special tokens.
        inputs: The first caption of each training picture, ``(pictures, time)``.
        targets: The other four, ``(pictures, 4, time)``.
        references: The same as words, for the metrics.
        test_inputs: Of the test pictures.
        test_references: Of the test pictures.
    """

    words: tuple[str, ...]
    inputs: Tensor
    targets: Tensor
    references: list[list[list[str]]]
    test_inputs: Tensor
    test_references: list[list[list[str]]]

    def spoken(self, sentences: Sequence[list[int]]) -> list[list[str]]:
        """Tokens as words."""
        return [[self.words[token] for token in sentence] for sentence in sentences]


@functools.lru_cache(maxsize=1)
def corpus(examples: int, tested: int, rare: int) -> Corpus:
    """Captions in small letters without punctuation; words that occur less often than ``rare`` are unknown."""
    data = captions()
    parts = {}
    for name, split, count in (("train", "train", examples), ("test", "test", tested)):
        chosen = numpy_generator(0, "choice captions", name).permutation(data.indices(split))[:count]
        parts[name] = [
            [re.findall(r"[a-z]+", caption.lower()) for caption in data[int(index)].captions] for index in chosen
        ]
    counts = Counter(word for several in parts["train"] for caption in several for word in caption)
    words = ("<pad>", "<begin>", "<end>", "<unknown>", *sorted(w for w, count in counts.items() if count >= rare))
    numbers = {word: number for number, word in enumerate(words)}

    def tokens(sentences: list[list[str]]) -> Tensor:
        padded = torch.full((len(sentences), LONGEST), PAD)
        for row, sentence in zip(padded, sentences, strict=True):
            known = [numbers.get(word, UNKNOWN) for word in sentence[:LONGEST]] or [UNKNOWN]
            row[: len(known)] = torch.tensor(known)
        return padded

    return Corpus(
        words,
        tokens([several[0] for several in parts["train"]]),
        torch.stack([tokens([several[j] for several in parts["train"]]) for j in range(1, 5)], 1),
        [several[1:] for several in parts["train"]],
        tokens([several[0] for several in parts["test"]]),
        [several[1:] for several in parts["test"]],
    )


def loss(out: Any, tokens: Tensor) -> Tensor:
    """Per-example losses of a decoder's output."""
    found: Tensor = out(tokens)
    return found


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], RATE, fused=True)


class _Describer(nn.Module):
    """An encoder and what tells from its features which words are used."""

    def __init__(self, encoder: TextEncoder, frequencies: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.words = nn.Linear(encoder.rnn.hidden_size, len(frequencies))
        with torch.no_grad():
            self.words.weight.zero_()
            self.words.bias.copy_(torch.logit(frequencies.clamp(1e-4, 1 - 1e-4)))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.words(self.encoder(tokens))
        return found


def _pretrain(encoder: TextEncoder, data: Corpus, seed: int, updates: int, context: Context) -> None:
    """Teach an encoder which words a picture's other captions use."""
    used = torch.zeros(len(data.inputs), len(data.words)).scatter_(1, data.targets.flatten(1), 1.0)
    used[:, : UNKNOWN + 1] = 0.0
    net = _Describer(encoder, used.mean(0))
    batches = Batches(len(used), min(BATCH, len(used)), seed_of(seed, "words"))

    def cost(rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(data.inputs[rows]), used[rows], reduction="sum") / len(rows)

    def look() -> dict[str, float]:
        with torch.no_grad():
            return {"error": float(cost(torch.arange(min(WATCHED, len(used)))))}

    train(net, _adam(net), lambda update: cost(torch.from_numpy(batches[update])), look, (0, updates), context)


def _log_frequencies(sentences: Tensor, vocabulary: int) -> Tensor:
    """The logarithm of how often each token follows in sentences; half a time where it does not."""
    counts = torch.bincount(sentences.flatten(), minlength=vocabulary).float()
    counts[PAD] = 0
    counts[END] = len(sentences)
    counts += 0.5
    return torch.log(counts / counts.sum())


class _Task:
    """What all methods of a seed share: the corpus, the trained encoder, and the decoders' initial weights."""

    def __init__(self, seed: int, settings: Mapping[str, Any], context: Context) -> None:
        self.seed, self.settings, self.context = seed, settings, context
        self.corpus = corpus(settings["examples"], settings["tested"], settings["rare"])
        vocabulary, width = len(self.corpus.words), settings["width"]
        self.targets = self.corpus.targets.flatten(0, 1)  # four in a row are of one picture
        self.encoder = TextEncoder(vocabulary, width, seed_of(seed, "encoder"))
        _pretrain(self.encoder, self.corpus, seed, settings["updates"], Part(context, "encoder", 0.0, 0.1))
        self.encoder.requires_grad_(False)
        with torch.no_grad():
            self.features = torch.cat([self.encoder(piece) for piece in torch.split(self.corpus.inputs, 500)])
        self.nets = [Decoder(vocabulary, width, seed_of(seed, "member", m)) for m in range(settings["members"])]
        heard = _log_frequencies(self.targets, vocabulary)
        for net in self.nets:
            with torch.no_grad():
                net.words.bias.copy_(heard)

    def problem(self, frozen: bool) -> Problem:
        """The task on the encoder's features, or on its inputs."""
        size = len(self.targets)
        of = self.features if frozen else self.corpus.inputs
        few = torch.arange(min(WATCHED, size))

        def batch(rows: Tensor) -> tuple[Tensor, Tensor]:
            return of[rows // 4], self.targets[rows]

        return Problem(
            batches=Batches(size, BATCH, self.seed),
            batch=batch,
            loss=loss,
            optimizer=_adam,
            updates=self.settings["updates"],
            losses=lambda ensemble: ensemble.losses(*batch(few), loss),
            examples=size,
        )

    def speak(self, net: Decoder, encoder: TextEncoder) -> list[list[str]]:
        """A member's sentences on the test pictures."""
        with torch.no_grad():
            beams = beam_search(net, encoder(self.corpus.test_inputs), BEAM, LONGEST)
        return self.corpus.spoken([each[0] for each in beams])


def learn(method: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One seed's ensembles.

    Args:
        method: ``"main"`` (independent and sMCL, frozen and fine-tuned, and beam search), ``"dey"``, ``"mcl"`` or
            ``"annealed"`` (sMCL, of which losers' gradients fade as it cools).
        seed: Of weights and batches.
        settings: ``members``, ``sizes`` (of sMCL's ensembles), ``updates``, ``rounds``, ``width``, ``examples``,
            ``tested``, ``rare``.
        context: The trial's.

    Returns:
        ``METHOD m``, oracle CIDEr-D of m members (or a beam of width m); of the largest ensembles ``METHOD grams n``
        and ``METHOD length``, and ``METHOD same``, the percentage of pictures for which two members or more say the
        same. METHOD is ``independent``, ``smcl``, ``independent tuned``, ``smcl tuned``, ``dey``, ``mcl``,
        ``annealed`` or ``beam``.
    """
    task = _Task(seed, settings, context)
    if method == "main":
        return _main(task)
    curves: Curves
    ensemble = cf.MultipleChoice(task.nets)
    of = Part(context, method, 0.1, 0.9)
    if method == "dey":
        turn, parts = in_turn(list(task.nets), task.problem(frozen=True), of, lambda net: _consensus(task, net))
        curves = {"mean weight": turn.mean_weight.tolist(), "gradient": [part["gradient 0"][-1] for part in parts]}
        sizes = range(1, len(task.nets) + 1)
    elif method == "annealed":
        curves = fit(ensemble, task.problem(frozen=True), of, _cooled)
        sizes = range(len(task.nets), len(task.nets) + 1)
    else:

        def measure(ensemble: cf.MultipleChoice) -> Tensor:
            with torch.no_grad():
                rows = torch.split(torch.arange(len(task.targets)), 500)
                return torch.cat([ensemble.losses(task.features[r // 4], task.targets[r], loss) for r in rows], 1)

        done, parts = alternate(ensemble, task.problem(frozen=True), of, measure, settings["rounds"])
        curves = {"error": [part["error"][-1] for part in parts], "entropy": [float(each.entropy) for each in done]}
        sizes = range(len(task.nets), len(task.nets) + 1)
    return Outcome(_scores(method, [task.speak(net, task.encoder) for net in task.nets], task, sizes), curves)


def _cooled(losses: Tensor, share: float) -> Tensor:
    """Annealed weights, whose temperature falls by equal factors."""
    return annealed(losses, HOT * (COLD / HOT) ** share)


def _main(task: _Task) -> Outcome:
    settings, context = task.settings, task.context
    members, sizes = settings["members"], settings["sizes"]
    metrics: dict[str, list[float | None]] = {}
    curves: Curves = {}
    fresh = [{name: value.clone() for name, value in net.state_dict().items()} for net in task.nets]
    read = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    stages = [("independent", members), *(("smcl", size) for size in sizes)]
    share = 0.9 / (2 * len(stages))
    for number, (method, size) in enumerate(stages):
        for net, state in zip(task.nets, fresh, strict=True):
            net.load_state_dict(state)
        task.encoder.load_state_dict(read)
        task.encoder.requires_grad_(False)
        nets, k = task.nets[:size], members if method == "independent" else 1
        of = range(1, size + 1) if method == "independent" else range(size, size + 1)
        where = Part(context, f"{method} {size}", 0.1 + 2 * number * share, share)
        found = fit(cf.MultipleChoice(nets, k=k), task.problem(frozen=True), where)
        curves |= {f"{method} {size} {name}": found[name] for name in ("error", "entropy", "dead")}
        metrics |= _scores(method, [task.speak(net, task.encoder) for net in nets], task, of)
        if method == "independent":
            metrics |= _beams(task, nets[0], members)
        task.encoder.requires_grad_(True)
        where = Part(context, f"{method} {size} tuned", 0.1 + (2 * number + 1) * share, share)
        later = task.settings["updates"]
        fit(cf.MultipleChoice(nets, task.encoder, k=k), task.problem(frozen=False), where, first=later)
        # A fine-tuned encoder belongs to an ensemble of its size: its first members are none of a smaller one.
        last = range(size, size + 1)
        metrics |= _scores(f"{method} tuned", [task.speak(net, task.encoder) for net in nets], task, last)
    return Outcome(metrics, curves)


def _beams(task: _Task, net: Decoder, widest: int) -> dict[str, list[float | None]]:
    """All sentences of one model's beams of each width."""
    metrics: dict[str, list[float | None]] = {}
    with torch.no_grad():
        features = task.encoder(task.corpus.test_inputs)
    for width in range(1, widest + 1):
        beams = beam_search(net, features, width, LONGEST)
        sets = [task.corpus.spoken([each[place] for each in beams]) for place in range(width)]
        metrics |= _scores("beam", sets, task, range(width, width + 1), last=width == widest)
    return metrics


def _scores(
    method: str, spoken: list[list[list[str]]], task: _Task, sizes: range, last: bool = True
) -> dict[str, list[float | None]]:
    references = task.corpus.test_references
    metrics: dict[str, list[float | None]] = {
        f"{method} {size}": [oracle_cider_d(spoken[:size], references)] for size in sizes
    }
    if last and len(spoken) == task.settings["members"]:
        metrics |= {f"{method} grams {n}": [distinct_ngrams(spoken, n)] for n in range(1, 5)}
        metrics[f"{method} length"] = [mean_length(spoken)]
        said = [len({tuple(each) for each in several}) for several in zip(*spoken, strict=True)]
        metrics[f"{method} same"] = [100 * sum(n < len(spoken) for n in said) / len(said)]
    return metrics


def _consensus(task: _Task, net: nn.Module) -> Tensor:
    """CIDEr-D over 10 of a member's sentence for the picture of each training sentence."""
    assert isinstance(net, Decoder)
    pieces: Sentences = []
    for piece in torch.split(task.features, 500):
        pieces += [each[0] for each in beam_search(net, piece, BEAM, LONGEST)]
    scores = torch.tensor(cider_d(task.corpus.spoken(pieces), task.corpus.references)) / SCALE
    return scores.clamp(0, 1).repeat_interleave(4).float()
