"""``counterflow separate``, on recordings that are made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from counterflow.audio import Room, images, read, read_channels, write
from counterflow.cli import main
from counterflow.exceptions import DivergenceError

RATE = 8000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a word and a noise, what each leaves at the first microphone, clips of words, and their model."""
    folder = tmp_path_factory.mktemp("place")
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(4000) / RATE

    def word(rising: bool) -> torch.Tensor:
        sweep = 400 + 1800 * (time if rising else 0.5 - time)
        tone = (2 * torch.pi * torch.cumsum(sweep, 0) / RATE).sin() * (torch.pi * time / 0.5).sin()
        return 0.3 * tone + 0.01 * torch.randn(4000, generator=generator)

    for name in ("down", "up"):
        (folder / "words" / name).mkdir(parents=True)
        for number in range(8):
            write(folder / "words" / name / f"{number}.wav", word(name == "up"), RATE)
    loud = (torch.rand(40, generator=generator) ** 2).repeat_interleave(100)
    noise = 0.2 * loud * torch.randn(4000, generator=generator)
    sources = torch.stack([word(True), noise]).repeat(1, 4)
    parts = images(sources, Room.draw(0.05, seed=2).responses(RATE))
    write(folder / "two.wav", parts.sum(0), RATE)
    write(folder / "word.wav", parts[:, :, :4000].sum(0), RATE)
    for number, part in enumerate(parts, 1):
        write(folder / f"part-{number}.wav", part[0], RATE)
    model = ["--out", str(folder / "model"), "--epochs", "15"]
    assert main(["separate", "train", str(folder / "words"), *model]) == 0
    return folder


def test_sources_are_written_scored_and_drawn(place, tmp_path, capsys):
    references = [str(place / f"part-{n}.wav") for n in (1, 2)]
    extra = ["--references", *references, "--plot", str(tmp_path / "picture.png"), "--json", "-"]
    assert main(["separate", "run", str(place / "two.wav"), "--out", str(tmp_path / "out"), *extra]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["sources"] == [str(tmp_path / "out" / f"source-{n}.wav") for n in (1, 2)]
    waves = torch.stack([read(each)[0] for each in found["sources"]])
    torch.testing.assert_close(waves.sum(0), read_channels(place / "two.wav")[0][0], atol=1e-3, rtol=0)
    assert [row["reference"] for row in found["improvement"]] == [1, 2]
    assert sorted(row["source"] for row in found["improvement"]) == [1, 2]
    assert sum(row["sdr_improvement"] for row in found["improvement"]) > 2, found["improvement"]
    assert "SIR" in captured.err
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize("method", ["iva", "ica"])
def test_a_classifier_finds_the_voice_and_names_the_word(method, place, tmp_path, capsys):
    extra = ["--attend", str(place / "model"), "--passes", "2", "--method", method]
    json_path = tmp_path / "found.json"
    arguments = [str(place / "word.wav"), "--out", str(tmp_path), *extra, "--json", str(json_path)]
    assert main(["separate", "run", *arguments]) == 0
    found = json.loads(json_path.read_text())
    assert found["word"] == "up"
    assert found["confidence"] > 0.5
    assert "heard in source 1: up" in capsys.readouterr().out


def test_training_says_what_is_to_be_expected(place, tmp_path, capsys):
    model = ["--out", str(tmp_path / "again"), "--epochs", "15"]
    assert main(["separate", "train", str(place / "words"), *model, "--json", "-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["words"] == ["down", "up"]
    assert found["held_out"] == 4
    assert found["held_out_accuracy"] == 1.0
    assert "100.0% of 4 right" in captured.err
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (place / "model" / name).read_bytes()


def test_clipped_samples_are_told_of_and_on_line_works(place, tmp_path, capsys):
    wave, rate = read_channels(place / "two.wav")
    write(tmp_path / "clipped.wav", (20 * wave).clamp(-1, 1), rate)
    assert main(["separate", "run", str(tmp_path / "clipped.wav"), "--out", str(tmp_path / "out"), "--online"]) == 0
    assert "are clipped" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "{place}/part-1.wav", "--out", "{tmp}"], "two microphones"),
        (["run", "{tmp}/copies.wav", "--out", "{tmp}"], "copies.wav: channels 0 and 1 of mixture are copies"),
        (["run", "{tmp}/silent.wav", "--out", "{tmp}"], "silent"),
        (["run", "{tmp}/nan.wav", "--out", "{tmp}"], "not finite"),
        (["run", "{tmp}/none.wav", "--out", "{tmp}"], "none.wav cannot be read"),
        (["run", "{tmp}/cut.wav", "--out", "{tmp}"], "cut.wav is truncated"),
        (["run", "{place}/two.wav"], "needs --out"),
        (["run", "{place}/two.wav", "--out", "{place}/two.wav"], "this is a file"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--sources", "3"], "--sources 3: "),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--online", "--sources", "1"], "--sources 1: --online finds"),
        (
            ["run", "{tmp}/none.wav", "--out", "{tmp}", "--online", "--method", "ica"],
            "--online is without --method ica",
        ),
        (["run", "{tmp}/none.wav", "--out", "{tmp}", "--online", "--attend", "m"], "--online is without --attend"),
        (["run", "{tmp}/none.wav", "--out", "{place}/two.wav/in"], "two.wav cannot be written: Not a directory"),
        (["run", "{place}/two.wav", "--out", "{tmp}/more"], "source-3.wav is of more sources than 2; remove it"),
        (["run", "{place}/two.wav", "--out", "{tmp}/odd"], "source-2.wav is no file; name another folder"),
        (
            ["run", "{place}/two.wav", "--out", "{tmp}", "--plot", "{tmp}/x.png", "--json", "{tmp}/x.png"],
            "--plot and --json both name",
        ),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--json", "{tmp}/source-1.wav"], "--json and --out both name"),
        (["train", "{place}/words", "--out", "{tmp}/m", "--json", "{tmp}/m/model.json"], "there is no folder"),
        (["train", "{place}/words", "--out", "{tmp}", "--json", "{tmp}/model.json"], "--json and --out both name"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--attend", "{place}/words"], "holds no model"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--gamma", "3"], "--attend"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--epochs", "3"], "not for separate run"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--plot", "{tmp}/x.txt"], "suffix"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--references", "{place}/part-1.wav"], "names 1 files"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--references", "{place}/words/up/0.wav"], "must be alike"),
        (["run", "{place}/two.wav", "--out", "{tmp}", "--json", "{place}/two.wav"], "this is what is read"),
        (
            [
                "run",
                "{place}/two.wav",
                "--out",
                "{tmp}",
                "--attend",
                "{place}/model",
                "--json",
                "{place}/model/model.json",
            ],
            "this is what is read",
        ),
        (["train", "{place}/words", "--out", "{tmp}/m", "--json", "{place}/words/up/0.wav"], "this is what is read"),
        (
            ["run", "{place}/two.wav", "--out", "{tmp}", "--sources", "1", "--references", "{place}/part-1.wav"],
            "SIR of one source",
        ),
        (["train", "{place}/words"], "needs --out"),
        (["train", "{place}/words", "--out", "{tmp}/m", "--seed", "9" * 30], "--seed 999"),
        (["train", "{place}/words", "--out", "{tmp}/m", "--seed", "-1"], "--seed -1"),
        (["train", "{place}/words/up", "--out", "{tmp}/m"], "0 folders of words"),
        (["train", "{place}/none", "--out", "{tmp}/m"], "is no folder"),
        (["train", "{place}/words", "--out", "{tmp}/m", "--plot", "x.png"], "not for separate train"),
        (["train", "{place}/words", "--out", "{tmp}/m", "--epochs", "0"], "1 or more"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments, complaint, place, tmp_path, capsys):
    wave, rate = read_channels(place / "two.wav")
    write(tmp_path / "copies.wav", torch.stack([wave[0], 0.5 * wave[0]]), rate)
    write(tmp_path / "silent.wav", 0 * wave, rate)
    write(tmp_path / "nan.wav", wave * torch.nan, rate)
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "source-3.wav", wave[0], rate)
    (tmp_path / "odd" / "source-2.wav").mkdir(parents=True)
    (tmp_path / "cut.wav").write_bytes((place / "two.wav").read_bytes()[:9000])
    filled = [each.format(place=place, tmp=tmp_path) for each in arguments]
    assert main(["separate", *filled]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_what_is_read_is_never_overwritten(place, tmp_path, capsys):
    wave, rate = read_channels(place / "two.wav")
    mine = tmp_path / "source-2.wav"
    write(mine, wave, rate)
    before = mine.read_bytes()
    assert main(["separate", "run", str(mine), "--out", str(tmp_path)]) == 2
    assert "source-2.wav is what is read; name another folder" in capsys.readouterr().err
    assert mine.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["source-2.wav"]


def test_where_one_source_cannot_be_written_the_old_ones_stay(place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for number in (1, 2):
        (out / f"source-{number}.wav").write_text("old")

    def full(path, wave, rate):
        if "source-2" in path.name:
            raise OSError(28, "No space left on device")
        write(path, wave, rate)

    monkeypatch.setattr("counterflow.audio.write", full)
    assert main(["separate", "run", str(place / "two.wav"), "--out", str(out)]) == 2
    assert f"--out {out}: it cannot be written: No space left on device" in capsys.readouterr().err
    assert {each.name: each.read_text() for each in out.iterdir()} == {
        "source-1.wav": "old",
        "source-2.wav": "old",
    }


def test_a_method_that_diverges_is_told_of_by_its_option(place, tmp_path, monkeypatch, capsys):
    def diverging(*_):
        raise DivergenceError("method='ica' diverges")

    monkeypatch.setattr("counterflow.separation.separating._descend", diverging)
    assert main(["separate", "run", str(place / "two.wav"), "--out", str(tmp_path / "out"), "--method", "ica"]) == 2
    assert "two.wav: --method ica diverges on it; take --method iva" in capsys.readouterr().err


def test_delays_of_one_signal_are_told_of_with_the_option_that_helps(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(41, generator=generator) ** 4).repeat_interleave(400)
    signal = 0.2 * loud * torch.randn(16400, generator=generator)
    write(tmp_path / "six.wav", torch.stack([signal[k : 16000 + k] for k in range(6)]), 8000)
    call = ["separate", "run", str(tmp_path / "six.wav"), "--out", str(tmp_path / "out")]
    assert main(call) == 2
    assert "six.wav: it holds fewer than 6 sources; ask for fewer, --sources 2 say" in capsys.readouterr().err
    assert main([*call, "--sources", "2"]) == 0


@pytest.mark.parametrize(("missing", "option"), [("fast_bss_eval", "--references"), ("matplotlib.figure", "--plot")])
def test_a_missing_extra_is_told_of_before_anything_is_written(missing, option, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    values = [str(place / f"part-{n}.wav") for n in (1, 2)] if option == "--references" else [str(tmp_path / "p.png")]
    assert main(["separate", "run", str(place / "two.wav"), "--out", str(tmp_path / "out"), option, *values]) == 2
    assert "needs an optional dependency" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["separate", "--help"])
    assert "separate run two.wav --out sources --attend words-model" in capsys.readouterr().out
