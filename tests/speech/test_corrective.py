"""Corrective training, phonemes in context, function words, and the classifier of frames."""

from __future__ import annotations

import math

import pytest
import torch

from counterflow.exceptions import InputError, ShapeError
from counterflow.speech import (
    Grammar,
    Lexicon,
    Linkage,
    Phoneme,
    PredictorBank,
    StateClassifier,
    bare_phone,
    cases_of,
    in_context,
    own_phones,
    train_corrective,
    train_predictors,
)

LEXICON = Lexicon({"ab": [("A", "B")], "ba": [("B", "A")], "the": [("A",), ("B",)]})
PHONEME = Phoneme(2, 2, skip=False)


def utterances(count: int, seed: int) -> tuple[list[torch.Tensor], list[Linkage]]:
    """Frames that turn about a point, faster in A than in B."""
    draw = torch.Generator().manual_seed(seed)
    found, patterns = [], []
    for number in range(count):
        word = ("ab", "ba")[number % 2]
        speeds = torch.tensor(
            [0.0] * 5 + [{"A": 0.9, "B": 0.3}[p.upper()] for p in word for _ in range(12)] + [0.0] * 5
        )
        angle = speeds.cumsum(0)
        frames = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(len(speeds), 2, generator=draw)
        found.append(frames)
        patterns.append(Linkage([word], LEXICON, PHONEME))
    return found, patterns


def test_corrective_training_leaves_fewer_frames_to_rivals():
    x, patterns = utterances(12, 0)
    draw = torch.Generator().manual_seed(1)
    bank = PredictorBank(len(LEXICON.phones) * 2, 2, hidden=6, generator=draw)
    train_predictors(bank, x, patterns, passes=6, generator=draw)
    reports = []
    shares = train_corrective(
        bank, x, patterns, passes=8, lr=0.01, generator=draw, report=lambda *each: reports.append(each)
    )
    assert shares[-1] < 0.7 * shares[0]
    assert reports == list(enumerate(shares))


def test_a_corrective_step_is_the_derivative_of_what_is_documented():
    """One utterance, one step of plain size: Adam's first step has the sign of the gradient."""
    x, patterns = utterances(1, 2)
    draw = torch.Generator().manual_seed(3)
    bank = PredictorBank(len(LEXICON.phones) * 2, 2, hidden=3, generator=draw).double()
    frames = x[0].double()
    before = [p.detach().clone() for p in bank.parameters()]
    costs = bank.costs(frames)
    states, total = patterns[0].align(costs)
    own = torch.from_numpy(patterns[0].units)[states]
    every = (bank(frames) - frames[:, None]).square().sum(-1)
    tau = total / len(frames)
    loss = 0.0
    for t in range(len(frames)):
        rivals = [n for n in range(bank.n_predictors) if n // 2 != int(own[t]) // 2]
        rival = min(rivals, key=lambda n, t=t: float(costs[t, n]))
        d = every[t, own[t]]
        loss = loss + torch.sigmoid((d - every[t, rival]) / tau) + 0.1 / tau * d
    gradients = torch.autograd.grad(loss, list(bank.parameters()))
    train_corrective(bank, [frames], patterns, passes=1, lr=1e-6, batch=1)
    for start, end, gradient in zip(before, bank.parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-6
        assert torch.equal((start - end)[clear].sign(), gradient[clear].sign())


def test_cases_of_one_phone_are_not_rivals():
    """Two cases of A: the other is a copy of what is aligned, and its errors would be the nearest everywhere."""
    x, patterns = utterances(2, 5)
    named = in_context(LEXICON, ["ab ab ba ba"], minimum=1)
    cases = cases_of(named, LEXICON)
    patterns = [Linkage(p.words, named, PHONEME) for p in patterns]

    def shares(phones: list[int] | None) -> float:
        bank = PredictorBank(len(named.phones) * 2, 2, hidden=3, generator=torch.Generator().manual_seed(6))
        first = [cases.index(case) for case in cases]
        with torch.no_grad():
            for parameter in bank.parameters():  # all cases of a phone predict alike, but for a trace
                each = parameter.view(len(cases), 2, *parameter.shape[1:])
                each.copy_(each[first] + 1e-6 * torch.arange(len(cases)).view(-1, *[1] * (each.dim() - 1)))
        return train_corrective(bank, x, patterns, phones=phones, passes=1, batch=2)[0]

    assert max(cases) + 1 < len(cases)
    assert shares(cases) < shares(None)
    assert shares(list(range(len(cases)))) == shares(None)


def test_what_corrective_training_refuses():
    x, patterns = utterances(1, 4)
    bank = PredictorBank(len(LEXICON.phones) * 2, 2)
    for arguments, changes, match in (
        ((bank, [], []), {}, "as many utterances"),
        ((bank, x, patterns), {"lr": 0.0}, "lr above 0"),
        ((bank, x, patterns), {"anchor": -1.0}, "anchor 0 or more"),
        ((PredictorBank(2, 2), x, patterns), {}, "one phoneme"),
        ((bank, x, patterns), {"phones": [1] * len(LEXICON.phones)}, "one phoneme"),
        ((bank, x, patterns), {"phones": [0, 1]}, "phones has 2 numbers, and the bank has 3 phones"),
    ):
        with pytest.raises(InputError, match=match):
            train_corrective(*arguments, **changes)


def test_contexts_are_told_apart_where_they_are_frequent():
    found = in_context(LEXICON, ["ab ab ab ba"], minimum=3)
    assert found.pronunciations["ab"] == (("#-A+B", "A-B+#"),)
    assert found.pronunciations["ba"] == (("B", "A"),)
    assert in_context(LEXICON, ["ab"], minimum=2).pronunciations == LEXICON.pronunciations
    # Three contexts end in #: none of them is frequent, together they are.
    wide = Lexicon({"xa": [("X", "A")], "ya": [("Y", "A")], "za": [("Z", "A")]})
    assert in_context(wide, ["xa ya za"], minimum=3).pronunciations["ya"] == (("Y", "A+#"),)
    assert {bare_phone(name) for name in found.phones} == {"SIL", "A", "B"}
    with pytest.raises(InputError, match="minimum"):
        in_context(LEXICON, ["ab"], minimum=0)
    with pytest.raises(InputError, match="the string 'ab ba'; give a list"):
        in_context(LEXICON, "ab ba", minimum=1)


def test_function_words_have_phones_of_their_own():
    found = own_phones(LEXICON, ["the"])
    assert found.pronunciations["the"] == (("A:the",), ("B:the",))
    assert found.pronunciations["ab"] == LEXICON.pronunciations["ab"]
    with pytest.raises(InputError, match="lacks a word: an"):
        own_phones(LEXICON, ["an"])


def test_flattened_bigrams_end_in_a_loop():
    texts = [["a", "b"], ["a", "c"], ["a", "b"]]
    perplexities = [Grammar.bigram(texts, "abcd", flatten=share).perplexity(texts) for share in (0.0, 0.3, 0.7, 0.9999)]
    assert perplexities == sorted(perplexities)
    assert perplexities[-1] == pytest.approx(5.0, rel=1e-3)  # four words and the end
    for share in (0.0, 0.4):
        grammar = Grammar.bigram(texts, "abcd", flatten=share)
        [node] = {target for _, target, word, _ in grammar.arcs if word == "a"}
        [(back, off)] = [(target, cost) for source, target, cost in grammar.silent if source == node]
        seen = {word: cost for source, _, word, cost in grammar.arcs if source == node}
        every = {word: off + cost for source, _, word, cost in grammar.arcs if source == back}
        ends = grammar.finals.get(node, off + grammar.finals[back])
        assert sum(math.exp(-cost) for cost in [*(every | seen).values(), ends]) == pytest.approx(1.0)
    with pytest.raises(InputError, match="flatten"):
        Grammar.bigram(texts, flatten=1.0)


def test_a_classifier_is_a_perceptron_divided_by_priors():
    draw = torch.Generator().manual_seed(5)
    model = StateClassifier(3, 2, reach=1, hidden=4, layers=1, dropout=0.0, generator=draw)
    x = torch.randn(5, 2, generator=draw)
    model.fit([x], [torch.tensor([0, 0, 0, 1, 2])], passes=1, lr=1e-9, batch=5, generator=draw)
    first, last = model.linears
    for t in range(5):
        window = torch.cat([x[max(t - 1, 0)], x[t], x[min(t + 1, 4)]])
        posterior = (last.weight @ (first.weight @ window + first.bias).relu() + last.bias).softmax(0)
        prior = torch.tensor([4.0, 2.0, 2.0]) / 5
        torch.testing.assert_close(model.costs(x)[t], -(posterior / prior).log())


def test_a_classifier_learns_from_neighbors():
    """The state is the sign of the frame before: no frame tells its own."""
    draw = torch.Generator().manual_seed(6)
    x = [torch.randn(200, 1, generator=draw).sign() for _ in range(3)]
    states = [torch.cat([torch.zeros(1), (each[:-1, 0] > 0).float()]).long() for each in x]
    blind, seeing = (StateClassifier(2, 1, reach=r, hidden=8, dropout=0.0, generator=draw) for r in (0, 1))
    curves = [model.fit(x, states, passes=30, batch=32, lr=0.01, generator=draw)[-1] for model in (blind, seeing)]
    assert curves[0] > 0.6
    assert curves[1] < 0.1


def test_what_a_classifier_refuses():
    model = StateClassifier(2, 3)
    x = torch.randn(4, 3)
    for changes in ({"hidden": 0}, {"reach": -1}, {"dropout": 1.0}, {"layers": True}):
        with pytest.raises(InputError):
            StateClassifier(2, 3, **changes)
    with pytest.raises(InputError, match="states must lie between 0 and 1"):
        model.fit([x], [torch.tensor([0, 1, 2, 0])])
    with pytest.raises(InputError, match="as many utterances"):
        model.fit([], [])
    with pytest.raises(InputError, match="no frames"):
        model.fit([x[:0]], [torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(ShapeError, match="its alignment"):
        model.fit([x], [torch.tensor([0])])
    with pytest.raises(ShapeError, match="it needs"):
        model.costs(torch.randn(4, 2))
