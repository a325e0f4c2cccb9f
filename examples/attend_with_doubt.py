"""Attention through a variational classifier: what it doubts, it does not insist on.

    python examples/attend_with_doubt.py [PICTURE] [SEEDS] [PASSES] [EPOCHS]

Two microphones hear words and a noise, independent component analysis takes them apart, and a classifier that has
learned from clean words tells the unmixing matrices what it expected to hear: its own strongest output is its target,
and its error goes back through its net to the spectra. Such attention insists on wrong words as firmly as on right
ones. A variational classifier holds many weights possible. The mean of its outputs over draws of them is small where
the draws disagree, so that words weighed by the margin of the mean count little where it doubts, and the error that
goes back is averaged over the draws as well. One would want it where some words are hard to hear: no label says
which.

The four words are ridges of energy that rise, fall, or turn. Plain and variational classifiers have the same
perceptron, examples and steps; without attention the matrices have as many passes of analysis alone. With it, each
has the best of as many weights of attention (in the table as its rate), chosen on other seeds than it is judged by.
"""

from __future__ import annotations

import torch
from arguments import run
from comparison import Comparison, compare, error_path
from torch import Tensor, nn

import counterflow as cf
from counterflow.audio import ShortTime
from counterflow.separation import BipolarSigmoid, FrequencyICA, WordClassifier, attend, pad_spectra

LABELS = ["rise", "fall", "arch", "bowl"]
TRANSFORM, RATE, BINS = ShortTime(64, 32), 8000, 33
MELS, FRAMES, HIDDEN, DRAWS = 8, 10, 16, 16
COUNTS = (64, 40)  # clean words to learn from, and words in a scene
LEVEL = 20.0  # of the noise
ALONE, GAMMAS = (0.0,), (30.0, 100.0, 300.0, 1000.0)


def words(count: int, source: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Spectra (bins, frames) of unequal length, and which words they are."""
    found = []
    for number in range(count):
        time = torch.linspace(0, 1, int(torch.randint(14, 22, (), generator=source)))
        time = time ** (0.3 * torch.randn((), generator=source)).exp()
        course = (time, 1 - time, 1 - (2 * time - 1).abs(), (2 * time - 1).abs())[number % 4]
        ridge = 6 + 18 * course + 2 * torch.randn((), generator=source)
        shape = (-0.5 * ((torch.arange(float(BINS))[:, None] - ridge) / 3).square()).exp() + 0.1
        found.append(shape * torch.randn(BINS, len(time), dtype=torch.complex64, generator=source))
    return found, torch.arange(count) % len(LABELS)


def scene(source: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Words and a noise that comes and goes, mixed alike for all; each (microphones, bins, frames)."""
    spectra, labels = words(COUNTS[1], source)
    mixing = torch.eye(2) + 0.7 * torch.randn(BINS, 2, 2, dtype=torch.complex64, generator=source)
    heard = []
    for each in spectra:
        loud = LEVEL * torch.rand(each.shape[1], generator=source).square() * 2
        noise = loud * torch.randn(each.shape, dtype=torch.complex64, generator=source)
        heard.append((mixing @ torch.stack([each, noise], 1)).transpose(0, 1))
    return heard, labels


class Doubting(nn.Module):
    """The mean of a variational classifier's outputs over draws of its weights, the same draws whenever it is asked."""

    def __init__(self, classifier: WordClassifier) -> None:
        super().__init__()
        self.classifier = classifier.train()

    def forward(self, spectra: Tensor, lengths: Tensor) -> Tensor:
        """From spectra (items, bins, frames) and lengths to outputs (items, labels)."""
        features = self.classifier.features(spectra, lengths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            said = self.classifier.judge(features.repeat(DRAWS, 1, 1))
        return said.unflatten(0, (DRAWS, -1)).mean(0)


def taught(variational: bool, source: torch.Generator, seed: int, epochs: int) -> nn.Module:
    """A classifier that has learned clean words, by the squared error and, if it is variational, its divergence."""
    spectra, labels = words(COUNTS[0], source)
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(FRAMES * MELS, HIDDEN), BipolarSigmoid(), nn.Linear(HIDDEN, len(LABELS)), BipolarSigmoid()
    )
    if variational:
        net = cf.make_variational(net, rates="unit", noise="A").model
    classifier = WordClassifier(LABELS, RATE, TRANSFORM, n_mels=MELS, frames=FRAMES, net=net)
    with torch.no_grad():
        features = classifier.features(*pad_spectra(spectra))
        classifier.center.copy_(features.flatten(1).mean(0))
        classifier.width.copy_(features.flatten(1).std(0))
    targets = 2.0 * nn.functional.one_hot(labels, len(LABELS)) - 1
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(40):
            errors = 0.5 * (targets[rows] - classifier.judge(features[rows])).square().sum(1)
            optimizer.zero_grad()
            (cf.variational.elbo(errors, net, data_size=len(labels)).loss if variational else errors.mean()).backward()
            optimizer.step()
    return Doubting(classifier) if variational else classifier.eval()


def main(picture: str = "", seeds: int | str = 6, passes: int | str = 10, epochs: int | str = 40) -> Comparison:
    """Hear all scenes in all ways."""
    seeds, passes, epochs = int(seeds), int(passes), int(epochs)
    ways = {
        f"{'variational' if doubts else 'plain'} classifier, {'attention' if attends else 'separation alone'}": doubts
        for doubts in (False, True)
        for attends in (False, True)
    }
    made: dict[tuple[bool, int], tuple[nn.Module, FrequencyICA, list[Tensor], Tensor]] = {}

    def prepared(doubts: bool, seed: int) -> tuple[nn.Module, FrequencyICA, list[Tensor], Tensor]:
        if (doubts, seed) not in made:
            source = torch.Generator().manual_seed(seed)
            classifier = taught(doubts, source, seed, epochs)
            heard, labels = scene(source)
            made[doubts, seed] = classifier, FrequencyICA(iterations=3).fit(heard), heard, labels
        return made[doubts, seed]

    def score(way: str, gamma: float, seed: int) -> float:
        classifier, ica, heard, labels = prepared(ways[way], seed)
        found = attend(ica, heard, classifier, gamma=gamma, passes=passes, weighting="margin", diverging="stop")
        return 100.0 * float((found.outputs[-1].argmax(1) != labels).double().mean())

    rates = {way: GAMMAS if "attention" in way else ALONE for way in ways}
    found = compare(f"Errors in {COUNTS[1]} words beside a noise, %", list(ways), rates, score, seeds, tuning=2)
    for name, doubts in {"a plain classifier": False, "a variational classifier, one draw": True}.items():
        classifier, ica, heard, _ = prepared(doubts, 0)
        batch, lengths = pad_spectra([ica.separate(each)[0] for each in heard])
        model: nn.Module = classifier.classifier if isinstance(classifier, Doubting) else classifier

        def step(model: nn.Module = model, batch: Tensor = batch, lengths: Tensor = lengths) -> None:
            said = model(batch.requires_grad_(), lengths)
            expected = 2.0 * nn.functional.one_hot(said.argmax(1), len(LABELS)) - 1
            (0.5 * (expected - said).square().sum()).backward()

        found.paths[name] = error_path(model, step, ["net.2", "net.0", "features"])
    found.heading = "What a classifier expected to hear, on its way to the spectra"
    return found.show(picture)


if __name__ == "__main__":
    run(main)
