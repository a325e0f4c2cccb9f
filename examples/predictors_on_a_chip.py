"""An analog array learns to recognize words: its networks predict, and an alignment says which of them learns.

    python examples/predictors_on_a_chip.py [PICTURE] [SEEDS] [EPOCHS]

A linked predictive recognizer has a small network for each phone, which predicts the next frame of speech from those
before. A word is the chain of its phones' networks: the best alignment of the frames with the chain says what the
word costs, and the cheapest word is heard. Such a bank is what analog arrays are good at, many small sums of products
that all run at once; the alignment is what they are bad at, and stays in the computer. So forward pass, error and
weights' changes go through the array, and the computer tells each frame's error which network it belongs to. One
would want it for a recognizer that listens all the time on very little power, and that has to learn around its own
cells.

Here the words are the six orders of three phones, and a phone is a way of turning. An alignment by networks that know
nothing is worth nothing, so that all begin with words in three equal parts; without an alignment it stays at that;
without the array all is in floating point. A bank that was trained in floating point and then moved to the array
shows whether learning on the array is worth its while. The array is the chip of the analog paper, and the same with
the offsets of its multipliers trimmed away. All ways have the same data, first weights and steps, and each the best
of as many rates, chosen on other seeds than it is judged by.
"""

from __future__ import annotations

import contextlib
import itertools
import sys

import torch
from comparison import Comparison, compare, error_path
from torch import Tensor, nn

import counterflow as cf
from counterflow.analog import DeviceModel
from counterflow.exceptions import InputError

PHONES, FRAMES, COUNTS = 3, 30, (24, 240)
FLAT = 2  # epochs in equal parts, with which every way begins
WORDS = torch.tensor(list(itertools.permutations(range(PHONES))))
SPEEDS = torch.tensor([0.4, 1.1, 1.9])
RATES = (0.005, 0.01, 0.02, 0.04)
CHIP = DeviceModel.paper()
TRIMMED = CHIP.without("multiplier_offset", "update_offset")


def utterances(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames that turn at their phone's speed, (count, frames, 2); phones last 4 frames or longer. And the words."""
    words = torch.arange(count) % len(WORDS)
    free = FRAMES - 4 * PHONES
    cuts = torch.randint(free + 1, (count, PHONES - 1), generator=source).sort(1).values
    ends = cuts + 4 * torch.arange(1, PHONES)
    place = (torch.arange(FRAMES)[:, None] >= ends[:, None]).sum(-1)
    speed = SPEEDS[WORDS[words].gather(1, place)]
    angle = speed.cumsum(1) + 6.3 * torch.rand(count, 1, generator=source)
    noise = 0.05 * torch.randn(count, FRAMES, 2, generator=source)
    return 0.5 * torch.stack([angle.cos(), angle.sin()], -1) + noise, words


class Recognizer(nn.Module):
    """A network for each phone, as layers, so that they can be put on an array."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        bank = cf.speech.PredictorBank(PHONES, 2, hidden=6, generator=torch.Generator().manual_seed(seed))
        self.window, self.networks = bank.window, bank.as_layers()

    def forward(self, x: Tensor) -> Tensor:
        """Squared distances of frames from what each phone predicts, (batch, frames, phones)."""
        seen = torch.cat([x[:, :1].expand(-1, self.window, -1), x[:, :-1]], 1)
        predicted = self.networks(seen.mT).unflatten(1, (PHONES, 2)).permute(0, 3, 1, 2)
        return (x.unsqueeze(2) - predicted).square().sum(-1)

    def cost(self, x: Tensor, words: Tensor, aligned: bool = True) -> Tensor:
        """What words cost, (batch,), along the best path or in equal parts; its error goes to the path's phones."""
        chain = self(x).gather(2, WORDS[words][:, None].expand(-1, FRAMES, -1))
        if aligned:
            return cf.speech.path_error(chain)[0]
        equal = torch.arange(FRAMES) * PHONES // FRAMES
        return chain[:, torch.arange(FRAMES), equal].sum(1)

    @torch.no_grad()
    def errors(self, x: Tensor, words: Tensor) -> float:
        """Words that are heard wrongly, %; guessing where the distances are no numbers any more."""
        distances = self(x)
        if not bool(distances.isfinite().all()):
            return 100.0 * (1 - 1 / len(WORDS))
        costs = [
            cf.speech.path_error(distances[:, :, chain])[0] for chain in WORDS
        ]  # the networks run once, whatever the number of words
        return 100.0 * float((torch.stack(costs).argmin(0) != words).double().mean())


def task(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Utterances to learn from, and to judge by."""
    source = torch.Generator().manual_seed(seed)
    return [utterances(count, source) for count in COUNTS]


def trained(device: DeviceModel | None, aligned: bool, rate: float, seed: int, epochs: int) -> Recognizer:
    """A recognizer that has learned, on the array or not."""
    x, words = task(seed)[0]
    model = Recognizer(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    noise = torch.Generator().manual_seed(seed)
    if device is not None:
        cf.analog.deploy(model.networks, device, optimizer=optimizer, inputs=x[:1].mT, seed=seed, generator=noise)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(2):
            optimizer.zero_grad()
            with contextlib.suppress(InputError):  # distances that are no numbers: it has diverged, and learns no more
                model.cost(x[rows], words[rows], aligned and epoch >= FLAT).sum().backward()
                optimizer.step()
    return model


def main(picture: str = "", seeds: int | str = 8, epochs: int | str = 6) -> Comparison:
    """Train all ways on all seeds."""
    seeds, epochs = int(seeds), int(epochs)
    ways: dict[str, tuple[DeviceModel | None, bool]] = {
        "equal parts, in floating point": (None, False),
        "aligned, in floating point": (None, True),
        "the same, moved to the array": (None, True),
        "equal parts, on the array": (TRIMMED, False),
        "aligned, on the array": (TRIMMED, True),
        "aligned, on the untrimmed array": (CHIP, True),
    }

    def score(way: str, rate: float, seed: int) -> float:
        model = trained(*ways[way], rate, seed, epochs)
        x, words = task(seed)[1]
        if "moved" in way:
            cf.analog.deploy(model.networks, TRIMMED, inputs=x[:1].mT, seed=seed)
        return model.errors(x, words)

    whole = "aligned, on the array"
    found = compare(
        f"Errors in {COUNTS[1]} new words, %",
        list(ways),
        RATES,
        score,
        seeds,
        asked=[(whole, other) for other in ways if other != whole],
    )
    x, words = task(0)[0]
    for name, device, learned in (
        ("in floating point, at first", None, 0),
        ("on the array, at first", TRIMMED, 0),
        ("on the array, having learned", TRIMMED, epochs),
    ):
        model = trained(device, True, found.rates[whole], 0, learned)
        layers = {"2": "predictions", "1": "hidden units", "0": "their net inputs"}
        found.paths[name] = error_path(
            model.networks, lambda model=model: model.cost(x, words).sum().backward(), layers
        )
    found.heading = "The error of the phones' networks, along the alignment"
    return found.show(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
