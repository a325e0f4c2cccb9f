"""The captioner of figure 3c: an encoder, a decoder with long short-term memory, and beam search.

The encoder's output is the decoder's first input, as in neuraltalk2. An encoder of pictures is a small convolutional
net; one of texts is recurrent. Token 0 is padding, 1 begins a sentence, 2 ends it, and 3 stands for words that are not
in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterflow.seeding import torch_generator

__all__ = ["BEGIN", "END", "PAD", "UNKNOWN", "Decoder", "TextEncoder", "beam_search", "picture_encoder"]

PAD, BEGIN, END, UNKNOWN = range(4)


def _draw(module: nn.Module, seed: int) -> None:
    """Every weight from a normal distribution of deviation fan-in^-1/2, every bias zero."""
    generator = torch_generator(seed, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.zero_()


class TextEncoder(nn.Module):
    """The last state of a recurrent net that reads a sentence.

    Args:
        vocabulary: How many tokens there are.
        width: Of embedding, state and output.
        seed: Of the weights.
    """

    def __init__(self, vocabulary: int, width: int, seed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        _draw(self, seed)

    def forward(self, tokens: Tensor) -> Tensor:
        """From sentences ``(batch, time)``, padded at their ends, to ``(batch, width)``."""
        states, _ = self.rnn(self.embedding(tokens))
        last = (tokens != PAD).sum(1).clamp(min=1) - 1
        found: Tensor = states[torch.arange(len(tokens)), last]
        return found


def picture_encoder(width: int, seed: int) -> nn.Sequential:
    """Two convolutions and a layer: from pictures ``(batch, 3, height, width)`` to ``(batch, width)``."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, width),
    )
    _draw(net, seed)
    return net


class Decoder(nn.Module):
    """A language model that is told what to speak of before the first word.

    Its output is a function from sentences to their losses, since it reads the right words while it learns: the loss
    function of a step is then ``lambda out, tokens: out(tokens)``.

    Args:
        vocabulary: How many tokens there are.
        width: Of embedding, state and the encoder's output.
        seed: Of the weights.
    """

    def __init__(self, vocabulary: int, width: int, seed: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.words = nn.Linear(width, vocabulary)
        _draw(self, seed)

    def forward(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """From the encoder's output, ``(batch, width)``, to the function `losses` of its sentences."""
        return lambda tokens: self.losses(features, tokens)

    def losses(self, features: Tensor, tokens: Tensor) -> Tensor:
        """The mean negative log-likelihood of a word of each sentence, its end included.

        Args:
            features: The encoder's output, ``(batch, width)``.
            tokens: Sentences without beginning and end, padded, ``(batch, time)``.

        Returns:
            ``(batch,)``.
        """
        tokens = tokens[:, : max(int((tokens != PAD).sum(1).max()), 1)]
        lengths = (tokens != PAD).sum(1)
        begin = tokens.new_full((len(tokens), 1), BEGIN)
        inputs = torch.cat([self.first(features)[:, None], self.embedding(torch.cat([begin, tokens], 1))], 1)
        states, _ = self.rnn(inputs)
        targets = F.pad(tokens, (0, 1))
        targets[torch.arange(len(tokens)), lengths] = END
        spoken = targets != PAD
        # Only where there is a word: the layer over the vocabulary is most of the cost.
        each = F.cross_entropy(self.words(states[:, 1:][spoken]), targets[spoken], reduction="none")
        losses = each.new_zeros(targets.shape).masked_scatter(spoken, each)
        return losses.sum(1) / (lengths + 1)


@torch.no_grad()
def beam_search(decoder: Decoder, features: Tensor, width: int = 2, longest: int = 18) -> list[list[list[int]]]:
    """The likeliest sentences that a beam finds.

    Args:
        decoder: The language model.
        features: The encoder's output, ``(batch, width of it)``.
        width: Of the beam.
        longest: A sentence that has not ended then is cut there.

    Returns:
        For each example ``width`` sentences as lists of tokens, the likeliest first.
    """
    n, vocabulary = len(features), decoder.words.out_features
    _, state = decoder.rnn(decoder.first(features)[:, None])
    state = tuple(each.repeat_interleave(width, 1) for each in state)
    # One beam is alive at first: else all would hold the same sentence.
    scores = torch.full((n, width), -torch.inf)
    scores[:, 0] = 0.0
    tokens = torch.full((n, width, 1), BEGIN)
    ended = torch.zeros(n, width, dtype=torch.bool)
    rows = torch.arange(n)[:, None]
    for _ in range(longest):
        hidden, state = decoder.rnn(decoder.embedding(tokens[:, :, -1].reshape(-1, 1)), state)
        logits = decoder.words(hidden[:, 0]).view(n, width, vocabulary)
        logits[:, :, [PAD, BEGIN, UNKNOWN]] = -torch.inf
        steps = logits.log_softmax(-1)
        steps[ended] = -torch.inf
        steps[:, :, END].masked_fill_(ended, 0.0)  # an ended sentence stays as it is
        scores, best = (scores[:, :, None] + steps).view(n, -1).topk(width)
        parent, word = best // vocabulary, best % vocabulary
        tokens = torch.cat([tokens[rows, parent], word[:, :, None]], 2)
        ended = ended[rows, parent] | (word == END)
        flat = (rows * width + parent).flatten()
        state = tuple(each[:, flat] for each in state)
        if bool(ended.all()):
            break
    return [[_sentence(beam) for beam in beams] for beams in tokens[:, :, 1:].tolist()]


def _sentence(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(END)] if END in tokens else tokens
