"""``counterflow speech``, on words that are made here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import soundfile

from counterflow.cli import main
from counterflow.cli.corpus import read_corpus
from counterflow.cli.speech import speech_command
from counterflow.exceptions import DataError
from counterflow.speech import ModelKind
from counterflow.speech.acoustics import KINDS

from ..speech import voices
from ..speech.voices import RATE

WORDS = {"lo": "l o", "ol": "o l", "hi": "h i", "lil": "l i l"}


def say(path: Path, text: str, seed: int) -> None:
    wave = voices.say([WORDS[word].split() for word in text.split()], seed)
    soundfile.write(path, wave, RATE, subtype="PCM_16")


def corpus(folder: Path, count: int, seed: int, kaldi: bool = False) -> dict[str, str]:
    random = np.random.default_rng(seed)
    folder.mkdir()
    texts = {
        f"{n}.{'flac' if n % 2 else 'wav'}": " ".join(random.choice([*WORDS], random.integers(1, 4)))
        for n in range(count)
    }
    for number, (name, text) in enumerate(texts.items()):
        say(folder / name, text, 1000 * seed + number)
    if kaldi:
        (folder / "wav.scp").write_text("".join(f"u{n} {name}\n" for n, name in enumerate(texts)))
        (folder / "text").write_text("".join(f"u{n} {text}\n" for n, text in enumerate(texts.values())))
    else:
        (folder / "transcripts.tsv").write_text("file\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in texts.items()))
    return texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    corpus(folder / "train", 40, 1)
    corpus(folder / "test", 8, 2, kaldi=True)
    (folder / "words.dic").write_text("".join(f"{word} {phones}\n" for word, phones in WORDS.items()))
    arguments = ["speech", "train", str(folder / "train"), "--out", str(folder / "model")]
    assert main([*arguments, "--lexicon", str(folder / "words.dic"), "--passes", "6"]) == 0
    return folder


def test_phones_that_no_transcript_has_are_named(place, tmp_path, capsys):
    dictionary = tmp_path / "words.dic"
    # "lo" has a pronunciation without them, too.
    dictionary.write_text((place / "words.dic").read_text() + "zu z u\nzi z i\nlo(2) l u\nil i l\n")
    folder, model = tmp_path / "few", str(tmp_path / "model")
    folder.mkdir()
    say(folder / "a.wav", "hi ol", 1)
    (folder / "transcripts.csv").write_text("file,text\na.wav,hi ol\n")
    asked = ["speech", "train", str(folder), "--out", model, "--lexicon", str(dictionary), "--passes", "1"]
    assert main([*asked, "--kind", "gaussians", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[2:] == ["2 phones in no transcript, which 2 words need: u z"]
    assert json.loads(captured.out)["unheard_phones"] == ["u", "z"]


def test_a_model_is_evaluated_under_several_grammars(place, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.write_text("lo hi\nlil ol lo\n\nhi\n", "utf-8-sig")
    for extra in ([], ["--grammar", "loop"], ["--grammar", str(texts)]):
        assert main(["speech", "evaluate", str(place / "model"), str(place / "test"), *extra, "--json", "-"]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert found["word_accuracy"] == 1.0
        assert (found["substitutions"], found["deletions"], found["insertions"]) == (0, 0, 0)
        assert "word accuracy 100.0%" in captured.err
        if "loop" in extra:
            assert found["perplexity"] == pytest.approx(4.0)


def test_words_of_a_grammar_that_have_no_pronunciation(place, tmp_path, capsys):
    model, test, file = str(place / "model"), str(place / "test"), str(place / "test" / "0.wav")
    texts = tmp_path / "texts"
    texts.write_text("lo hi lil ol\n\nhello\n")
    for arguments in (["evaluate", model, test], ["transcribe", model, file]):
        asked = ["speech", *arguments, "--grammar", str(texts)]
        assert main([*asked, "--oov", "skip"]) == 0
        capsys.readouterr()
        assert main(asked) == 2
        assert f"--grammar {texts}, line 3: the lexicon lacks a word: hello" in capsys.readouterr().err
        assert main([*asked, "--oov", "spell"]) == 2
        assert "and letters to spell it: hello; add it, or choose skip for oov\n" in capsys.readouterr().err
    assert main(["speech", "transcribe", model, file, "--oov", "skip"]) == 2
    assert "--oov skip: it is for the texts of --grammar FILE" in capsys.readouterr().err
    texts.write_text("hello\n")
    assert main([*asked, "--oov", "skip"]) == 2
    assert f"--grammar {texts}: texts have no words" in capsys.readouterr().err


def test_errors_are_counted(place, tmp_path, capsys):
    shutil.copytree(place / "test", tmp_path / "wrong")
    (tmp_path / "wrong" / "text").write_text("".join(f"u{n} lo\n" for n in range(8)))
    assert main(["speech", "evaluate", str(place / "model"), str(tmp_path / "wrong"), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    heard = [answer["heard"].split() for answer in found["answers"]]
    assert found["insertions"] == sum(len(words) - 1 for words in heard)
    assert found["substitutions"] == sum("lo" not in words for words in heard)


def test_captions(place, capsys):
    files = [str(place / "test" / "0.wav"), str(place / "test" / "1.flac")]
    texts = (place / "test" / "text").read_text().splitlines()
    said = [line.split(maxsplit=1)[1] for line in texts[:2]]
    assert main(["speech", "transcribe", str(place / "model"), *files]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{file}  {text}" for file, text in zip(files, said, strict=True)]
    assert main(["speech", "transcribe", str(place / "model"), files[0], "--as", "ctm"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == said[0].split()
    assert all(row[:2] == ["0", "1"] and float(row[3]) > 0 for row in rows)
    assert main(["speech", "transcribe", str(place / "model"), files[0], "--as", "srt"]) == 0
    number, times, text = capsys.readouterr().out.splitlines()[:3]
    assert (number, text) == ("1", said[0])
    assert times.startswith("00:00:00,1")
    assert main(["speech", "transcribe", str(place / "model"), files[1], "--as", "vtt"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("WEBVTT\n\n00:00:00.1")
    assert out.splitlines()[3] == said[1]


def test_several_answers_and_durations(place, tmp_path, capsys):
    model, file = str(place / "model"), str(place / "test" / "0.wav")
    said = (place / "test" / "text").read_text().splitlines()[0].split(maxsplit=1)[1]
    target = tmp_path / "answers.json"
    more = ["--n-best", "3", "--durations", "0.5", "--json", str(target)]
    assert main(["speech", "transcribe", model, file, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[0]) == (3, f"{file}  {said}")
    [answer] = json.loads(target.read_text())["answers"]
    assert [f"{file}  {each['text']}" for each in answer["alternatives"]] == lines
    assert answer["alternatives"][0]["words"] == answer["words"]
    assert main(["speech", "evaluate", model, str(place / "test"), "--durations", "0.5"]) == 0
    assert "word accuracy 100.0%" in capsys.readouterr().out


def test_features_train_a_model(place, tmp_path, capsys):
    from counterflow.audio import log_mel, read

    folder = tmp_path / "ready"
    folder.mkdir()
    rows = (place / "train" / "transcripts.tsv").read_text().splitlines()[1:13]
    for row in rows:
        name = row.split("\t")[0]
        wave, rate = read(place / "train" / name)
        np.save(folder / f"{name}.npy", log_mel(wave, rate, 12, window=0.025).numpy())
    table = folder / "transcripts.tsv"
    table.write_text("file\ttext\n" + "".join(f"{row.replace(chr(9), '.npy' + chr(9))}\n" for row in rows))
    more = ["--lexicon", str(place / "words.dic")]
    assert main(["speech", "check", str(folder), *more]) == 0
    model = str(tmp_path / "model")
    assert main(["speech", "train", str(folder), "--out", model, *more, "--kind", "gaussians", "--passes", "2"]) == 0
    assert "minutes of 12 features" in capsys.readouterr().out
    assert main(["speech", "evaluate", model, str(folder)]) == 0
    assert main(["speech", "align", model, str(folder), "--textgrid", str(tmp_path / "grids")]) == 0
    capsys.readouterr()
    assert main(["speech", "evaluate", model, str(place / "train")]) == 2
    assert "has 8000 samples a second, and the model has features" in capsys.readouterr().err
    file = folder / f"{rows[0].split(chr(9))[0]}.npy"
    np.save(file, np.nan * np.load(file))
    for arguments, name in (
        (["evaluate", model, str(folder)], file.name),
        (["align", model, str(folder), "--textgrid", str(tmp_path / "grids")], file.name),
        (["transcribe", model, str(file)], str(file)),
    ):
        assert main(["speech", *arguments]) == 2
        assert f"counterflow: {name} holds features that are not finite" in capsys.readouterr().err


def test_transcripts_are_aligned(place, tmp_path, capsys):
    target = tmp_path / "grids"
    assert main(["speech", "align", str(place / "model"), str(place / "test"), "--textgrid", str(target)]) == 0
    assert len(list(target.iterdir())) == 8
    text = (target / "0.TextGrid").read_text()
    said = (place / "test" / "text").read_text().splitlines()[0].split()[1:]
    tier = text.split('name = "phones"')[0]
    assert [line.split('"')[1] for line in tier.splitlines() if "text =" in line and '""' not in line] == said
    edges = [float(line.split("=")[1]) for line in text.split('name = "phones"')[1].splitlines() if "xm" in line][2:]
    assert all(a == b for a, b in zip(edges[1::2], edges[2::2], strict=False))
    assert edges[0] == 0
    seconds = soundfile.info(place / "test" / "0.wav").duration
    assert edges[-1] == pytest.approx(seconds, abs=1e-4)
    tiers = read_by_praat(target / "0.TextGrid")
    assert list(tiers) == ["words", "phones"]
    assert [text for _, _, text in tiers["words"] if text] == said
    phones = [text for _, _, text in tiers["phones"] if text not in ("", "SIL")]
    assert phones == [p for word in said for p in WORDS[word].split()]
    found = [edge for start, end, _ in tiers["phones"] for edge in (start, end)]
    assert found == pytest.approx(edges, abs=1e-5)


def read_by_praat(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """The intervals of each tier, as Praat itself reads them."""
    parselmouth = pytest.importorskip("parselmouth")
    grid = parselmouth.Data.read(str(path))

    def ask(what: str, *numbers: int) -> Any:
        return parselmouth.praat.call(grid, what, *numbers)

    return {
        ask("Get tier name", tier): [
            (
                ask("Get start time of interval", tier, each),
                ask("Get end time of interval", tier, each),
                ask("Get label of interval", tier, each),
            )
            for each in range(1, ask("Get number of intervals", tier) + 1)
        ]
        for tier in range(1, ask("Get number of tiers") + 1)
    }


def test_praat_reads_any_word(tmp_path):
    from counterflow.cli.captions import textgrid
    from counterflow.speech import Segment

    words = [('say "no"', 0.1, 0.4), ("naïve", 0.4, 0.75), ("日本", 0.8, 1.0)]
    path = tmp_path / "a.TextGrid"
    path.write_bytes(textgrid(1.25, {"words": [Segment(*each) for each in words], "none": []}).encode())
    tiers = read_by_praat(path)
    assert [(text, start, end) for start, end, text in tiers["words"] if text] == [
        (text, pytest.approx(start), pytest.approx(end)) for text, start, end in words
    ]
    assert tiers["none"] == [(0.0, 1.25, "")]


def test_a_corpus_is_checked_before_training(place, tmp_path, capsys):
    arguments = ["--lexicon", str(place / "words.dic")]
    assert main(["speech", "check", str(place / "train"), *arguments]) == 0
    assert "0 faults" in capsys.readouterr().out
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("loud", "long", "good"):
        say(bad / f"{name}.wav", "lo hi", 5)
    wave, _ = soundfile.read(bad / "loud.wav")
    soundfile.write(bad / "loud.wav", np.clip(40 * wave, -1, 1), RATE)
    soundfile.write(bad / "silent.wav", 0 * wave, RATE)
    soundfile.write(bad / "fast.wav", wave, 16000)
    (bad / "cut.flac").write_bytes(b"fLaC")
    rows = [
        "loud.wav,lo yo",
        f"long.wav,{'lil ' * 20}",
        "silent.wav,oy",
        "fast.wav,",
        "cut.flac,hi",
        "good.wav,hi",
        "none.wav,hi",
    ]
    (bad / "transcripts.csv").write_text("\n".join(["file,text", *rows]))
    assert main(["speech", "check", str(bad), *arguments, "--json", "-"]) == 1
    found = {fault["where"]: fault["fault"] for fault in json.loads(capsys.readouterr().out)["faults"]}
    assert "lacks 2 words: yo, oy" in found["lexicon"]
    assert "clipped" in found["loud.wav"]
    assert "too long for its audio" in found["long.wav"]
    assert "silent" in found["silent.wav"]
    assert "no transcript" in found["fast.wav"]
    assert "cannot be read" in found["cut.flac"]
    assert "cannot be read" in found["none.wav"]
    assert "1 at 16000 Hz" in found["rates"]
    assert "good.wav" not in found


def test_faults_of_a_table_are_where_they_are_said_to_be(tmp_path, capsys):
    say(tmp_path / "a.wav", "lo", 1)
    (tmp_path / "wav.scp").write_text("u1 a.wav \n")
    (tmp_path / "text").write_text("u1 hi\n")
    assert main(["speech", "check", str(tmp_path)]) == 0
    (tmp_path / "text").write_bytes("u1 caf\xe9\n".encode("latin-1"))
    assert main(["speech", "check", str(tmp_path)]) == 2
    (tmp_path / "wav.scp").unlink()
    (tmp_path / "transcripts.csv").write_text("text,file\nhi,a.wav\nhello\n")
    assert main(["speech", "check", str(tmp_path)]) == 2
    latin, bare = capsys.readouterr().err.splitlines()
    assert latin.startswith(f"counterflow: {tmp_path / 'text'} cannot be read as a table in UTF-8: ")
    assert bare == f"counterflow: {tmp_path / 'transcripts.csv'}, line 3 has no file; name one, or remove the line"


def test_a_stray_quotation_mark_swallows_no_recordings(tmp_path):
    names = ["a.wav", "b.wav", "c.wav"]
    table = tmp_path / "transcripts.tsv"
    table.write_text('file\ttext\na.wav\t"lo hi\nb.wav\tol\nc.wav\tlil"\n')
    assert [(each.name, each.text) for each in read_corpus(tmp_path)] == [
        *zip(names, ['"lo hi', "ol", 'lil"'], strict=True)
    ]
    table.unlink()
    table = tmp_path / "transcripts.csv"
    table.write_text('file,text\na.wav,"lo, hi"\nb.wav,say ""ol""\nc.wav,lil\n')
    assert [each.name for each in read_corpus(tmp_path)] == names
    table.write_text('file,text\na.wav,lo\nb.wav,"lo hi\nc.wav,lil"\n')
    with pytest.raises(
        DataError, match=r"transcripts\.csv, line 3 has a cell that goes on in the next line; close its"
    ):
        read_corpus(tmp_path)
    for cut in ('a.wav,"lo hi\nb.wav,ol\n', 'a.wav,"lo" hi\n'):
        table.write_text(f"file,text\n{cut}")
        with pytest.raises(DataError, match=r"transcripts\.csv cannot be read as a table in UTF-8: "):
            read_corpus(tmp_path)


def test_a_file_that_stands_twice_in_a_table_is_a_fault(tmp_path, capsys):
    say(tmp_path / "a.wav", "lo", 1)
    (tmp_path / "transcripts.csv").write_text("file,text\na.wav,hi\na.wav,hello\n")
    assert main(["speech", "check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == "a.wav: stands there 2 times; keep one"


def test_a_check_foresees_what_training_refuses(tmp_path, capsys):
    folder = tmp_path / "ready"
    folder.mkdir()
    for name, width in (("a", 13), ("b", 12), ("c", 13)):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(300, width)))
    (folder / "transcripts.csv").write_text("file,text\na.npy,xq\nb.npy,xq\nc.npy,xq\n")
    for oov, lexicon in (("spell", []), ("error", ["lexicon: the lexicon lacks a word: xq; add it, or choose"])):
        assert main(["speech", "check", str(folder), "--oov", oov]) == 1
        *faults, summary = capsys.readouterr().out.splitlines()
        assert summary.endswith(f"1 word, {len(faults)} fault{'s' * (len(faults) > 1)}")
        expected = [*lexicon, "b.npy: has 12 features, and a.npy has 13; a corpus has one kind"]
        assert [line[: len(start)] for line, start in zip(faults, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["transcribe", "model", "test/0.wav"], "test/0.wav"),
        (["transcribe", "model", "test/0.wav"], "model/model.json"),
        (["transcribe", "model", "test/0.wav", "--grammar", "texts"], "texts"),
        (["evaluate", "model", "test"], "test/wav.scp"),
        (["evaluate", "model", "test"], "test/text"),
        (["evaluate", "model", "test"], "test/1.flac"),
        (["align", "model", "test", "--textgrid", "grids"], "model/model.safetensors"),
        (["check", "train", "--lexicon", "words.dic"], "words.dic"),
        (["train", "train", "--out", "new", "--lexicon", "words.dic"], "train/transcripts.tsv"),
    ],
)
def test_what_is_read_is_never_overwritten(arguments, read, place, tmp_path, monkeypatch, capsys):
    for name in ("model", "test", "train"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copy(place / "words.dic", tmp_path)
    (tmp_path / "texts").write_text("lo hi\n")
    before = (tmp_path / read).read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["speech", *arguments, "--json", read]) == 2
    assert capsys.readouterr().err == f"counterflow: --json {read}: this is what is read; name another file\n"
    assert (tmp_path / read).read_bytes() == before
    (tmp_path / "link").symlink_to(read)
    assert main(["speech", *arguments, "--json", "link"]) == 2
    assert not (tmp_path / "new").exists()


def test_what_is_written_is_not_overwritten_either(place, tmp_path, capsys):
    (tmp_path / "0.TextGrid").write_text("of an earlier run")
    (tmp_path / "model.json").write_text("no model")
    written = ["--json", str(tmp_path / "0.TextGrid")]
    arguments = ["align", str(place / "model"), str(place / "test"), "--textgrid", str(tmp_path), *written]
    assert main(["speech", *arguments]) == 2
    assert "--json and --textgrid both name" in capsys.readouterr().err
    arguments = ["train", str(place / "test"), "--out", str(tmp_path), "--json", str(tmp_path / "model.json")]
    assert main(["speech", *arguments]) == 2
    assert "--json and --out both name" in capsys.readouterr().err
    (tmp_path / "model.json").unlink()
    target = tmp_path / "training.safetensors"
    arguments[-1] = str(target)
    assert main(["speech", *arguments]) == 2
    assert capsys.readouterr().err == (
        f"counterflow: --json and --out both name {target}; give each a file of its own\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["0.TextGrid"]


def test_kinds_have_one_name_on_the_command_line_and_in_python():
    [shown] = get_args(get_type_hints(speech_command)["kind"])[:-1]
    assert get_args(shown) == get_args(ModelKind) == tuple(KINDS)


def test_predictors_train_from_the_command_line(place, tmp_path):
    remedies = ["--corrective", "1", "--contexts", "4", "--own-phones", "lo,ol"]
    for kind, more in (("predictors", remedies), ("hidden-control", [])):
        arguments = ["speech", "train", str(place / "test"), "--out", str(tmp_path / kind), "--kind", kind, *more]
        assert main([*arguments, "--lexicon", str(place / "words.dic"), "--passes", "1", "--seed", "3"]) == 0
        assert {each.name for each in (tmp_path / kind).iterdir()} == {"model.safetensors", "model.json"}
    words = json.loads((tmp_path / "predictors" / "model.json").read_text())["config"]["lexicon"]
    assert words["lo"] == [["#-l:lo+o:lo", "l:lo-o:lo+#"]]


def test_what_cannot_be_used_is_said_in_one_line(place, tmp_path, capsys):
    empty, model, test = tmp_path / "empty", str(place / "model"), str(place / "test")
    empty.mkdir()
    short = tmp_path / "short.dic"
    short.write_text("hi h i\n")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "wav.scp").write_text("a sox x.wav -t wav - |\n")
    (wrong / "text").write_text("a hi\n")
    twice, forced = tmp_path / "twice", tmp_path / "long.fst"
    twice.mkdir()
    (twice / "wav.scp").write_text("a a.wav\na b.wav\n")
    (twice / "text").write_text("a hi\n")
    forced.write_text("".join(f"{n} {n + 1} lil\n" for n in range(200)) + "200\n")
    cells, long = tmp_path / "cells", tmp_path / "long"
    for folder, rows in ((cells, "a.wav,hi\na.wav,hi, lo\n"), (long, f"0.wav,{'hi ' * 400}\n")):
        folder.mkdir()
        (folder / "transcripts.csv").write_text(f"file,text\n{rows}")
        shutil.copy(place / "test" / "0.wav", folder)
    dictionary, grids = str(place / "words.dic"), tmp_path / "none of these"
    cases = [
        (["train", test], "needs --out MODEL"),
        (["train", test, test, "--out", "x"], "takes CORPUS, got 2 paths"),
        (["train", str(empty), "--out", str(tmp_path / "m")], "holds 0 of transcripts.csv"),
        (["check", __file__], "test_speech.py is no folder; a corpus is one with recordings and transcripts.csv"),
        (["train", test, "--out", str(tmp_path / "m"), "--lexicon", str(short)], "words: "),
        (["train", str(wrong), "--out", str(tmp_path / "m"), "--lexicon", str(short)], "is a command, and none is run"),
        (["train", str(twice), "--out", str(tmp_path / "m")], "'a' stands there more than once"),
        (["train", test, "--out", "x", "--seed", str(2**64)], "--seed 18446744073709551616"),
        (["train", test, "--out", "x", "--lexicon", dictionary, "--corrective", "1"], "corrective=1"),
        (["transcribe", model, str(place / "test" / "0.wav"), "--grammar", str(forced)], "0.wav: no sequence of words"),
        (["evaluate", model, test, "--grammar", str(forced)], "u0: no sequence of words"),
        (["train", test, "--out", str(short)], "this is a file"),
        (["train", test, "--out", "x", "--grammar", "loop"], "--grammar is not for speech train"),
        (["train", test, "--out", "x", "--passes", "0"], "--passes 0"),
        (["transcribe", model, "none.wav", "--contexts", "3"], "--contexts is not for speech transcribe"),
        (["transcribe", model], "takes MODEL FILE..."),
        (["transcribe", model, "a.wav", "b.wav", "--as", "srt"], "captions are of one file, got 2"),
        (["transcribe", model, "a.wav", "--as", "ctm", "--n-best", "2"], "--as ctm holds one answer"),
        (["transcribe", model, "a/x.wav", "b/x.wav", "--as", "ctm"], "2 files are called 'x'; CTM knows a file by"),
        (["transcribe", model, "a b.wav", "a_b.wav", "--as", "ctm"], "2 files are called 'a_b'; CTM knows a file by"),
        (["transcribe", model, "a.wav", "--n-best", "0"], "--n-best 0"),
        (["transcribe", model, "a.wav", "--durations", "-1"], "--durations -1"),
        (["transcribe", str(empty), "x.wav"], "holds no model"),
        (["transcribe", model, "none.wav"], "cannot be read"),
        (["transcribe", model, "none.wav", "--grammar", str(empty)], "neither loop nor a file"),
        (["align", model, test], "needs --textgrid DIR"),
        (["align", str(empty), str(empty), "--textgrid", str(short)], "this is a file; name a folder"),
        (["align", str(empty), str(empty), "--textgrid", str(short / "in")], "cannot be written: Not a directory"),
        (["align", model, str(long), "--textgrid", str(grids)], "0.wav: 'hi hi hi"),
        (["train", str(long), "--out", str(tmp_path / "m"), "--lexicon", dictionary], "0.wav lasts"),
        (["train", str(cells), "--out", str(tmp_path / "m"), "--lexicon", dictionary], "line 3 has more cells"),
        (["evaluate", model, test, "--json", str(empty)], "this is a folder"),
    ]
    for arguments, expected in cases:
        assert main(["speech", *arguments]) == 2, arguments
        line = capsys.readouterr().err
        assert expected in line
        assert line.count("\n") == 1
        assert len(line) < 400
    assert not grids.exists()
    assert not (tmp_path / "m").exists()


def test_an_example_corpus_is_spoken(tmp_path, capsys, monkeypatch):
    """By a stand-in for espeak-ng that writes a tone as long as its text."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["speech", "example", str(tmp_path / "corpus")]) == 2
    assert "espeak-ng is not installed" in capsys.readouterr().err
    program = tmp_path / "espeak-ng"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, wave\n"
        "text = sys.argv[-1]\n"
        "assert text.islower() and sys.argv[1] == '-v'\n"
        "with wave.open(sys.argv[sys.argv.index('-w') + 1], 'wb') as file:\n"
        "    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)\n"
        "    file.writeframes(bytes(range(1, 101)) * 100 * len(text))\n"
    )
    program.chmod(0o755)
    for folder in ("one", "two"):
        assert main(["speech", "example", str(tmp_path / folder), "--count", "3", "--seed", "5"]) == 0
    assert "3 recordings" in capsys.readouterr().out
    one, two = ((tmp_path / folder / "transcripts.csv").read_text() for folder in ("one", "two"))
    assert one == two
    assert main(["speech", "check", str(tmp_path / "one")]) == 0
    assert "3 recordings" in capsys.readouterr().out
    assert main(["speech", "example", str(tmp_path / "one")]) == 2
    assert "is not empty" in capsys.readouterr().err
    (tmp_path / "four").mkdir()
    for target in ("five", "four/0000.wav"):
        folder = str(tmp_path / target[:4])
        assert main(["speech", "example", folder, "--count", "1", "--json", str(tmp_path / target)]) == 2
        assert f"recordings are written there; name a file outside of {folder}" in capsys.readouterr().err
        assert not (tmp_path / target).exists()
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such voice')\n")
    assert main(["speech", "example", str(tmp_path / "three"), "--count", "1"]) == 2
    assert "no such voice" in capsys.readouterr().err
