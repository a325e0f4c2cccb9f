"""A recognizer of sounds that are made here, from recordings to words and back from disk."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from counterflow.audio import read_parts
from counterflow.exceptions import DataError, InputError, ShapeError
from counterflow.speech import (
    Alternative,
    Grammar,
    Lexicon,
    Linkage,
    Recognizer,
    Word,
    acoustics,
    n_best,
    plot_predictions,
)
from counterflow.speech.answers import cheapest, in_turn

from . import voices
from .voices import RATE

LEXICON = Lexicon({word: [[*word]] for word in ("lo", "ol", "hi", "lil")})


def say(words: list[str], seed: int) -> torch.Tensor:
    phones = [LEXICON.pronunciations[word][0] for word in words]
    return torch.tensor(voices.say(phones, seed, pauses=True), dtype=torch.float32)


def corpus(count: int, seed: int) -> tuple[list[torch.Tensor], list[str]]:
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(list(LEXICON.pronunciations), random.integers(1, 4))) for _ in range(count)]
    return [say(text.split(), 1000 * seed + number) for number, text in enumerate(texts)], texts


@pytest.fixture(scope="module")
def trained() -> dict[str, Recognizer]:
    waves, texts = corpus(40, 1)
    found = {}
    for kind in ("combined", "classifier", "gaussians", "predictors", "linear", "hidden-control"):
        found[kind] = Recognizer.train(
            waves,
            texts,
            RATE,
            LEXICON,
            kind=kind,
            components=2,
            hidden=32 if kind in ("combined", "classifier") else 8,
            contexts=8 if kind == "combined" else None,
            generator=torch.Generator().manual_seed(0),
        )
    return found


@pytest.mark.parametrize("kind", ["combined", "classifier", "gaussians", "predictors", "linear", "hidden-control"])
def test_two_voices_are_understood_and_the_model_survives_the_disk(trained, kind, tmp_path):
    rec = trained[kind]
    waves, texts = corpus(12, 2)
    found = [rec.recognize(wave) for wave in waves]
    assert [" ".join(word.text for word in words) for words in found] == texts
    rec.save(tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".safetensors", ".json"}
    again = Recognizer.load(tmp_path / "model")
    soundfile.write(tmp_path / "one.wav", np.stack([waves[0], waves[0]], 1), RATE, subtype="FLOAT")  # stereo
    assert again.transcribe(tmp_path / "one.wav") == found[0]
    assert all(0 <= word.start < word.end <= len(waves[0]) / RATE for word in found[0])


def test_words_are_where_they_were_put(trained):
    wave = say(["hi", "lo"], 3)
    words, phones = trained["gaussians"].align(wave, "hi lo")
    assert [word.text for word in words] == ["hi", "lo"]
    assert [phone.text for phone in phones if phone.text != "SIL"] == list("hilo")
    assert all(a.end == b.start for a, b in itertools.pairwise(phones))
    assert words[0].start == pytest.approx(0.15, abs=0.04)
    loud = wave.abs() > 0.02
    assert words[-1].end == pytest.approx(float(loud.nonzero()[-1]) / RATE, abs=0.04)


@pytest.mark.parametrize("kind", ["combined", "gaussians", "predictors"])
@pytest.mark.parametrize("sizes", [(1,), (700, 33), (100_000,)])
def test_a_stream_equals_the_batch(trained, kind, sizes):
    """Both with a running mean, whatever the samples come in."""
    rec = trained[kind]
    wave = torch.cat(corpus(3, 4)[0])
    if sizes == (1,):  # a sample at a time
        wave = wave[: RATE // 2]
    stream, place, found = rec.stream(), 0, []
    for size in itertools.cycle(sizes):
        found += stream.push(wave[place : place + size])
        place += size
        if place >= len(wave):
            break
    assert [replace(w, score=0.0) for w in found + stream.finish()] == [
        replace(w, score=0.0) for w in rec.recognize(wave, running=True)
    ]


def test_the_first_word_is_out_before_the_audio_ends_and_memory_stays(trained):
    rec = trained["gaussians"]
    stream = rec.stream()
    waves, texts = corpus(40, 6)
    found, sizes = [], []
    for wave in waves:
        for part in wave.split(RATE // 10):
            found += stream.push(part)
        sizes.append((len(stream._samples), len(stream._frames), stream._decoder.records))
    assert len(found) >= len(" ".join(texts).split()) - 3
    assert [max(column) for column in zip(*sizes[:4], strict=True)] >= [
        max(column) / 1.5 - 1 for column in zip(*sizes[4:], strict=True)
    ]
    said = " ".join(word.text for word in found + stream.finish())
    assert said == " ".join(texts)


def test_phones_in_context_are_called_by_their_own_names(trained):
    rec = trained["combined"]
    assert {"#-l+o", "h-i+#"} <= {*rec.lexicon.phones}
    words, phones = rec.align(say(["hi", "lo"], 3), "hi lo")
    assert [word.text for word in words] == ["hi", "lo"]
    assert [phone.text for phone in phones if phone.text != "SIL"] == list("hilo")


def test_several_answers_and_how_long_phones_last(trained, tmp_path):
    rec = trained["gaussians"]
    waves, texts = corpus(3, 8)
    found = rec.n_best(waves[0], 3)
    assert next(each.text for each in found) == texts[0]
    assert len({each.text for each in found}) == 3
    assert sorted(each.cost for each in found) == [each.cost for each in found]
    rec.save(tmp_path / "model")
    again = Recognizer.load(tmp_path / "model")
    assert (again.durations.means, again.durations.deviations) == (rec.durations.means, rec.durations.deviations)
    # A word of very short phones is not what was said, however well it sounds.
    sorted_anew = again.n_best(waves[0], 3, durations=50.0)
    assert sorted_anew[0].text == texts[0]
    assert sorted_anew[1].cost - sorted_anew[0].cost > found[1].cost - found[0].cost
    assert [word.text for word in again.recognize(waves[0], durations=1.0)] == texts[0].split()
    # A file that was cut at pauses, where the end of a sentence is the file's.
    soundfile.write(tmp_path / "one.wav", waves[0].numpy(), RATE, subtype="FLOAT")
    parts = [(0.0, waves[0], RATE), (10.0, waves[1], RATE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("counterflow.speech.recognizer.read_parts", lambda path: iter(parts))
        both = rec.alternatives(tmp_path / "one.wav", 3)
        words = rec.transcribe(tmp_path / "one.wav")
    assert both[0].text == f"{texts[0]} {texts[1]}"
    assert both[0].words[-1].start > 10
    assert [(word.text, word.start) for word in both[0].words] == [(word.text, word.start) for word in words]
    whole = n_best(rec.decoder, torch.cat([rec.costs(wave) for _, wave, _ in parts]), 3)
    assert [each.text for each in both] == [each.text for each in whole]
    behind = [[each.cost - several[0].cost for each in several] for several in (both, whole)]
    assert behind[0] == pytest.approx(behind[1])
    with pytest.raises(InputError, match="durations must be 0 or more"):
        rec.n_best(waves[0], durations=-1.0)
    bare = Recognizer(rec.model, LEXICON, rec.grammar, rec.phoneme, rate=RATE, spread=rec.spread, deltas=2)
    with pytest.raises(InputError, match="has no durations of phones; train it again"):
        bare.recognize(waves[0], durations=1.0)


def test_the_best_of_two_parts_differ_in_their_words():
    """One word and two of it follow each other in two ways, of which the cheaper counts."""

    def heard(**costs: float) -> list[Alternative]:
        return [
            Alternative(tuple(Word("a", n, n + 1, 0.0) for n in range(len(name))), cost) for name, cost in costs.items()
        ]

    pairs = in_turn(heard(a=1.0, aa=1.5), heard(aa=1.0, a=2.0), 10.0)
    found = cheapest(pairs, 3)
    assert [(each.text, each.cost) for each in found] == [("a a a", 2.0), ("a a a a", 2.5), ("a a", 3.0)]
    assert [word.start for word in found[0].words] == [0.0, 10.0, 11.0]
    assert len(cheapest(pairs, 2)) == 2


def test_features_that_are_ready(trained, tmp_path):
    """Cepstra of quite unequal spreads in the place of waves."""
    draw = torch.Generator().manual_seed(0)
    points = {phone: torch.randn(5, generator=draw) for phone in LEXICON.phones}
    scales = torch.tensor([30.0, 3.0, 1.0, 0.1, 0.05])

    def heard(text: str) -> torch.Tensor:
        phones = ["SIL", *(phone for word in text.split() for phone in LEXICON.pronunciations[word][0]), "SIL"]
        x = torch.cat([points[phone].expand(10, 5) for phone in phones])
        return (x + 0.2 * torch.randn(x.shape, generator=draw)) * scales

    texts = corpus(24, 1)[1]
    rec = Recognizer.train([heard(text) for text in texts], texts, None, LEXICON, kind="gaussians", components=1)
    x = heard("lo hi")
    assert [word.text for word in rec.recognize(x)] == ["lo", "hi"]
    assert rec.seconds(x) == pytest.approx(0.6)
    rec.save(tmp_path / "model")
    again = Recognizer.load(tmp_path / "model")
    np.save(tmp_path / "x.npy", x.numpy())
    assert again.transcribe(tmp_path / "x.npy") == rec.recognize(x)
    stream = again.stream()
    words = [word.text for part in x.split(7) for word in stream.push(part)] + [w.text for w in stream.finish()]
    assert words == [word.text for word in rec.recognize(x, running=True)]
    with pytest.raises(ShapeError, match=r"ready features are \(frames, 5\)"):
        rec.recognize(x[:, :4])
    with pytest.raises(DataError, match="holds features that are not finite"):
        rec.recognize(x / 0)
    np.save(tmp_path / "flat.npy", x.numpy()[0])
    for name, content, match in (
        ("flat.npy", None, r"shape \(5,\)"),
        ("cut.npy", b"\x93NUMPY", "cannot be read as features"),
        ("none.npy", None, "cannot be read as features"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match):
            rec.transcribe(tmp_path / name)


def test_a_long_file_is_cut_at_pauses(trained, tmp_path, monkeypatch):
    rec = trained["gaussians"]
    waves, texts = corpus(30, 7)
    pause = 0.002 * torch.randn(RATE // 2, generator=torch.Generator().manual_seed(0))
    wave = torch.cat([part for each in waves for part in (each, pause)])
    soundfile.write(tmp_path / "long.wav", wave.numpy(), RATE, subtype="FLOAT")
    parts = list(read_parts(tmp_path / "long.wav", longest=8.0, shortest=3.0))
    assert len(parts) > 3
    assert torch.equal(torch.cat([part for _, part, _ in parts]), wave)
    assert all(3.0 <= len(part) / RATE <= 8.0 for _, part, _ in parts[:-1])
    monkeypatch.setattr("counterflow.speech.recognizer.read_parts", lambda path: iter(parts))
    words = rec.transcribe(tmp_path / "long.wav")
    assert " ".join(word.text for word in words) == " ".join(texts)
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(words))
    # In place: where a word begins there is sound.
    for word in words:
        assert wave[int(RATE * word.start) : int(RATE * word.end)].abs().max() > 0.02
    monkeypatch.setattr("counterflow.speech.recognizer.read_parts", lambda path: iter([(0.0, 0 * wave, RATE)]))
    with pytest.raises(DataError, match="is silent"):
        rec.transcribe(tmp_path / "long.wav")
    with pytest.raises(InputError, match="shortest must lie"):
        next(read_parts(tmp_path / "long.wav", shortest=40.0))


def test_the_grammar_of_a_long_file_goes_on_from_part_to_part(trained, monkeypatch):
    """A command that is spoken on both sides of a cut, and noise in which there is none."""
    command = Grammar([(0, 1, "lil", 0.0), (1, 2, "hi", 0.0)], start=0, finals={2: 0.0})
    rec = trained["gaussians"].with_grammar(command)
    noise = 0.01 * torch.randn(240, generator=torch.Generator().manual_seed(0))
    heard = [(0.0, noise), (1.0, say(["lil"], 3)), (8.0, say(["hi"], 4)), (12.0, noise)]
    monkeypatch.setattr(
        "counterflow.speech.recognizer.read_parts", lambda path: iter([(start, wave, RATE) for start, wave in heard])
    )
    words = rec.transcribe("a.wav")
    assert [word.text for word in words] == ["lil", "hi"]
    whole = rec.decoder.decode(torch.cat([rec.costs(wave) for _, wave in heard]))
    assert [-word.score for word in words] == [span.cost / (span.end - span.start) for span in whole.words]
    for word, (start, wave) in zip(words, heard[1:3], strict=True):
        assert start < word.start < word.end < start + len(wave) / RATE
    several = rec.alternatives("a.wav", 2)
    assert [each.text for each in several] == ["lil hi"]
    assert several[0].words[1].start == words[1].start
    assert [word.text for word in rec.transcribe("a.wav", durations=1.0)] == ["lil", "hi"]
    # A sequence goes on from where it leads, and not from where another does.
    ways = [(0, 1, "lil", 0.0), (1, 2, "hi", 0.0), (0, 3, "hi", 0.0), (3, 2, "lo", 0.0)]
    several = rec.with_grammar(Grammar(ways, start=0, finals={2: 0.0})).alternatives("a.wav", 9)
    assert {each.text for each in several} == {"lil hi", "hi lo"}
    # One word is the best of what is heard first, and leaves no room for the second.
    heard[:] = [(0.0, say(["lil"], 3)), (7.0, noise)]
    with pytest.raises(InputError, match=r"no sequence of words .* or ask for more than 1, .* from 7.0 s"):
        rec.alternatives("a.wav", 1)
    rec.decoder.beam = math.inf
    assert rec.alternatives("a.wav", 9)[0].text == " ".join(word.text for word in rec.transcribe("a.wav")) == "lil hi"


def test_equal_seeds_give_equal_recognizers(trained):
    waves, texts = corpus(40, 1)
    draw = torch.Generator().manual_seed(0)
    again = Recognizer.train(waves, texts, RATE, LEXICON, kind="linear", components=2, hidden=8, generator=draw)
    assert torch.equal(again.model.inner, trained["linear"].model.inner)


def test_audio_that_cannot_be_heard_is_refused(trained, tmp_path):
    rec, wave = trained["gaussians"], say(["hi"], 4).numpy()
    cases = {
        "empty": (wave[:0], RATE, "holds no samples"),
        "short": (wave[:100], RATE, "lasts 0.01.* s; 0.025 s is the least"),
        "silent": (0 * wave, RATE, "is silent"),
        "fast": (wave, 16000, "has 16000 samples a second, and the model 8000; resample it"),
    }
    for name, (samples, rate, match) in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate)
        with pytest.raises(DataError, match=match):
            rec.transcribe(tmp_path / f"{name}.wav")
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, wave, RATE)
    (tmp_path / "cut.flac").write_bytes(whole.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be read"):
        rec.transcribe(tmp_path / "cut.flac")
    with pytest.raises(ShapeError, match="one window of 25 ms"):
        rec.recognize(torch.zeros(10))
    two = torch.from_numpy(np.stack([wave, wave])).float()
    for hear in (rec.recognize, rec.stream().push):
        with pytest.raises(ShapeError, match=r"average .* channels"):
            hear(two)
        with pytest.raises(InputError, match="of floating point"):
            hear((32767 * two[0]).to(torch.int16))
    with pytest.raises(InputError, match="no sequence of words that the grammar permits fits"):
        Recognizer(
            rec.model, LEXICON, Grammar([(0, 1, "lil", 0.0)], start=0, finals={1: 0.0}), rec.phoneme,
            rate=RATE, spread=rec.spread, deltas=2,
        ).recognize(torch.from_numpy(wave[:240]))  # fmt: skip


def test_what_cannot_be_trained_is_said(trained):
    waves, texts = corpus(2, 5)

    def train(**changes: object) -> None:
        Recognizer.train(**{"waves": waves, "texts": texts, "rate": RATE, "lexicon": LEXICON, "passes": 1, **changes})

    for changes, match in (
        ({"texts": ["yo lo", "oy"]}, "lacks 2 words: yo, oy"),
        ({"texts": texts[:1]}, "as many waves as texts"),
        ({"texts": [texts[0], "lil " * 90]}, "recording 1 lasts .* the transcript is too long for its audio"),
        ({"kind": "big"}, "kind must be"),
        ({"deltas": 1}, "deltas=1: kind 'combined'"),
    ):
        with pytest.raises(InputError, match=match):
            train(**changes)
    with pytest.raises(DataError, match="recording 1 is silent"):
        train(waves=[waves[0], 0 * waves[1]])
    rec = trained["gaussians"]
    with pytest.raises(InputError, match="the lexicon needs 2 phones"):
        Recognizer(rec.model, Lexicon({"a": [["a"]]}), rec.grammar, rec.phoneme, rate=RATE, spread=rec.spread)
    with pytest.raises(InputError, match="the model sees 48 features"):
        Recognizer(rec.model, LEXICON, rec.grammar, rec.phoneme, rate=RATE, spread=rec.spread)


def test_a_damaged_model_is_refused(trained, tmp_path: Path):
    trained["gaussians"].save(tmp_path)
    file = tmp_path / "model.json"
    text = json.loads(file.read_text())
    for name, value in (
        ("rate", "fast"),
        ("durations", [[0.0], [1.0]]),
        ("phones", ["l"]),
        ("phoneme", {"states": 5}),
        ("model", {"made as": "gaussians", "n_states": 1}),
        ("lexicon", []),
    ):
        file.write_text(json.dumps({**text, "config": {**text["config"], name: value}}))
        with pytest.raises(InputError, match="is damaged"):
            Recognizer.load(tmp_path)


def test_pictures_of_what_is_predicted(trained, tmp_path):
    wave, rec = say(["hi", "lo"], 3), trained["predictors"]
    cost = plot_predictions(rec, wave, "hi lo", tmp_path / "figure.png", phones=["i", "l"])
    assert cost == pytest.approx(Linkage(["hi", "lo"], LEXICON).align(rec.costs(wave))[1] / len(rec.costs(wave)))
    picture = (tmp_path / "figure.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    plot_predictions(rec, wave, "hi lo", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes() != picture  # two spectrograms rather than four
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    for other, changes, match in (
        (trained["gaussians"], {}, "does not predict frames"),
        (rec, {"phones": ["x"]}, "has no phone 'x'"),
        (rec, {"path": tmp_path / "figure.txt"}, "suffix must be .png"),
        (rec, {"path": tmp_path / "none" / "figure.png"}, "there is no folder"),
    ):
        with pytest.raises(InputError, match=match):
            plot_predictions(other, wave, "hi lo", **{"path": tmp_path / "figure.png", **changes})


def test_corrective_passes_are_for_predictors(trained):
    waves, texts = corpus(4, 1)
    draw = torch.Generator().manual_seed(0)
    for kind in ("combined", "classifier", "gaussians"):
        with pytest.raises(InputError, match="corrective=1"):
            Recognizer.train(waves, texts, RATE, LEXICON, kind=kind, corrective=1)
    found = [
        Recognizer.train(
            waves, texts, RATE, LEXICON, kind="linear", passes=1, corrective=passes, generator=draw.manual_seed(0)
        )
        for passes in (0, 1)
    ]
    assert not torch.equal(found[0].model.inner, found[1].model.inner)


def test_corrective_passes_know_which_phones_are_cases_of_one(trained, monkeypatch):
    waves, texts = corpus(4, 1)
    asked = []
    monkeypatch.setattr(acoustics, "train_corrective", lambda *given, **named: asked.append(named["phones"]))
    model = Recognizer.train(waves, texts, RATE, LEXICON, kind="linear", passes=1, corrective=1, contexts=1)
    assert asked == [[LEXICON.phones.index(phone) for phone in model.phones]]
    assert len(set(asked[0])) < len(asked[0])
