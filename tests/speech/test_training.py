"""A synthetic language of two speakers, learned from transcripts alone and recognized whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterflow.exceptions import DivergenceError, InputError
from counterflow.speech import (
    Decoder,
    GaussianStates,
    Grammar,
    Lexicon,
    Linkage,
    Phoneme,
    PredictorBank,
    Recognizer,
    StateClassifier,
    discrimination,
    flat_start,
    train_gaussians,
    train_predictors,
)

LEXICON = Lexicon({"tip": [[*"tip"]], "pit": [[*"pit"]], "top": [[*"top"]], "pat": [[*"pat"], [*"pot"]]})
PHONEME = Phoneme(2, 2, skip=False)


def corpus(count: int, seed: int) -> tuple[list[torch.Tensor], list[list[str]]]:
    """Each phone turns the frame toward a point of its own; one voice speaks higher than the other."""
    random = np.random.default_rng(seed)
    points = np.random.default_rng(99).normal(size=(len(LEXICON.phones), 4)) * 1.5
    utterances, texts = [], []
    for number in range(count):
        words = [str(each) for each in random.choice(list(LEXICON.pronunciations), random.integers(1, 4))]
        variants = [random.integers(len(LEXICON.pronunciations[word])) for word in words]
        phones = [0, *(p for w, v in zip(words, variants, strict=True) for p in LEXICON.spelled(w, v)), 0]
        frame, frames = points[0], []
        for phone in phones:
            for _ in range(random.integers(4, 9)):
                frame = frame + 0.6 * (points[phone] - frame) + 0.05 * random.normal(size=4)
                frames.append(frame)
        utterances.append(torch.tensor(np.array(frames) + 0.1 * (-1) ** number, dtype=torch.float32))
        texts.append(words)
    return utterances, texts


def patterns_of(texts: list[list[str]]) -> list[Linkage]:
    return [Linkage(words, LEXICON, PHONEME) for words in texts]


N = len(LEXICON.phones) * PHONEME.predictors


@pytest.mark.parametrize("kind", ["perceptron", "linear", "hidden control", "gaussian", "mixture"])
def test_two_voices_are_recognized_without_error(kind):
    utterances, texts = corpus(60, 0)
    torch.manual_seed(0)
    if kind in ("gaussian", "mixture"):
        model = GaussianStates(N, 4, 2 if kind == "mixture" else 1)
        curve = train_gaussians(model, utterances, patterns_of(texts), passes=6)
    else:
        sizes = {"hidden control": (N // 2, 2, "perceptron")}.get(kind, (N, 1, kind))
        model = PredictorBank(sizes[0], 4, states=sizes[1], kind=sizes[2], window=1, hidden=8)
        draw = torch.Generator().manual_seed(0)
        curve = train_predictors(model, utterances, patterns_of(texts), passes=12, lr=0.03, generator=draw)
    assert curve[-1] < curve[0]
    decoder = Decoder(LEXICON, Grammar.loop(LEXICON.pronunciations), PHONEME, penalty=1.0)
    fresh, spoken = corpus(20, 1)
    assert [decoder.decode(model.costs(x)).text.split() for x in fresh] == spoken
    costs = torch.cat([model.costs(x) for x in fresh])
    path = torch.cat(
        [torch.from_numpy(p.units)[p.align(model.costs(x))[0]] for x, p in zip(fresh, patterns_of(spoken), strict=True)]
    )
    found = discrimination(costs, path, PHONEME.predictors)
    assert found.rank < 0.6 * found.chance
    assert found.frame_error < 0.4


def test_equal_seeds_give_equal_models():
    utterances, texts = corpus(6, 2)
    banks = []
    for _ in range(2):
        torch.manual_seed(3)
        banks.append(PredictorBank(N, 4))
        train_predictors(
            banks[-1], utterances, patterns_of(texts), passes=2, batch=1, generator=torch.Generator().manual_seed(4)
        )
    assert all(torch.equal(a, b) for a, b in zip(*(bank.parameters() for bank in banks), strict=True))


def test_the_flat_start_gives_each_phone_its_share():
    pattern = Linkage(["pat", "tip"], LEXICON, PHONEME)
    path = flat_start(pattern, 32)
    a, i, p, t = (LEXICON.phones.index(each) for each in "aipt")
    wanted = [0, p, a, t, t, i, p, 0]
    assert path.tolist() == [2 * phone + half for phone in wanted for half in (0, 0, 1, 1)]
    assert flat_start(Linkage([], LEXICON, PHONEME), 4).tolist() == [0, 0, 1, 1]
    bare = Linkage(["pat", "tip"], LEXICON, PHONEME, silence=False)
    assert flat_start(bare, 12).tolist() == [2 * phone + half for phone in wanted[1:-1] for half in (0, 1)]
    with pytest.raises(InputError, match="'pat tip' takes 12 frames or more, and there are 11"):
        flat_start(bare, 11)


def test_the_order_of_utterances_and_reports():
    utterances, texts = corpus(5, 5)
    seen = []
    bank = PredictorBank(N, 4)
    curve = train_predictors(bank, utterances, patterns_of(texts), passes=3, report=lambda *each: seen.append(each))
    assert seen == list(enumerate(curve))


def test_what_cannot_be_trained_is_said():
    utterances, texts = corpus(2, 6)
    bank, patterns = PredictorBank(N, 4), patterns_of(texts)
    for call, match in (
        (lambda: train_predictors(bank, [], []), "as many utterances as patterns"),
        (lambda: train_predictors(bank, utterances, patterns, passes=0), "passes must be"),
        (lambda: train_predictors(bank, utterances, patterns, lr=0.0), "lr above 0"),
        (lambda: train_gaussians(GaussianStates(N, 4), [utterances[0][:3]], patterns[:1]), "too long for its audio"),
        (lambda: discrimination(torch.rand(3, 4), torch.zeros(2, dtype=torch.int64), 2), "are needed"),
    ):
        with pytest.raises(InputError, match=match):
            call()


def test_networks_that_run_away_say_at_which_rate():
    utterances, texts = corpus(2, 6)
    paths = [flat_start(pattern, len(x)) for x, pattern in zip(utterances, patterns_of(texts), strict=True)]
    with pytest.raises(DivergenceError, match=r"diverged in pass \d with lr=1e\+30"):
        StateClassifier(N, 4, reach=1, hidden=8).fit(utterances, paths, passes=3, lr=1e30)
    with pytest.raises(DivergenceError, match="diverged in pass 1 with lr="):
        train_predictors(PredictorBank(N, 4), [x * torch.inf for x in utterances], patterns_of(texts))


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "after"), [("predictors", 0), ("gaussians", 0), ("classifier", 0), ("classifier", 1), ("classifier", 2)]
)
def test_what_was_killed_and_is_resumed_gives_the_same_model(kind, after, tmp_path):
    """Killed after a pass, in each stage, and called again with the same arguments."""
    draw = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(4000, generator=draw) for _ in range(4)]
    lexicon = Lexicon({"HI": [["H", "I"]], "HO": [["H", "O"]]})
    texts = ["HI", "HO HI", "HO", "HI HO"]

    def train(**options):
        seeded = torch.Generator().manual_seed(1)
        return Recognizer.train(
            waves, texts, 8000, lexicon, kind=kind, passes=2, components=1, hidden=6, generator=seeded, **options
        )

    whole = train()
    state = tmp_path / "state"

    def kill(number, cost):
        if number == after:
            raise KilledError

    with pytest.raises(KilledError):
        train(report=kill, checkpoint=state)
    assert state.is_file()
    with pytest.raises(InputError, match="another training run"):
        Recognizer.train(waves, texts, 8000, lexicon, kind="linear", passes=2, generator=draw, checkpoint=state)
    seen = []
    again = train(report=lambda number, cost: seen.append(number), checkpoint=state)
    assert seen[0] == after + 1  # no pass is done again
    # What was killed before the model was saved has it still.
    last = train(report=lambda number, cost: seen.append(-1), checkpoint=state)
    assert -1 not in seen
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
        assert torch.equal(value, last.model.state_dict()[name]), name


def test_texts_without_words_are_refused_before_the_passes():
    waves, lexicon = [torch.randn(4000)], Lexicon({"HI": [["H", "I"]]})
    seen = []
    with pytest.raises(InputError, match="texts have no words"):
        Recognizer.train(waves, [""], 8000, lexicon, kind="gaussians", report=lambda number, cost: seen.append(number))
    assert not seen


def test_a_state_that_cannot_be_read_is_refused(tmp_path):
    waves, lexicon = [torch.randn(4000)], Lexicon({"HI": [["H", "I"]]})
    with pytest.raises(InputError, match="needs a generator"):
        Recognizer.train(waves, ["HI"], 8000, lexicon, checkpoint=tmp_path / "state")
    (tmp_path / "state").write_bytes(b"no")
    draw = torch.Generator()
    with pytest.raises(InputError, match="is no state of a training run"):
        Recognizer.train(waves, ["HI"], 8000, lexicon, generator=draw, checkpoint=tmp_path / "state")
