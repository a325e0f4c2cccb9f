"""``counterflow identify``, on voices that are made here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from counterflow.cli import identify, main

FAST = ["--models", "3", "--states", "2", "--iterations", "8"]
PITCHES = {"ada": 300, "bob": 900, "eve": 2400}


def speak(path: Path, pitch: float, seed: int, rate: int = 8000, seconds: float = 0.4) -> None:
    random = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    wave = 0.2 * np.sin(2 * np.pi * pitch * time * (1 + 0.02 * random.normal())) + 0.05 * random.normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    for name, pitch in PITCHES.items():
        for number in range(6):
            kind = "flac" if number % 2 else "wav"
            speak(folder / "train" / name / f"{number}.{kind}", pitch, number)
        for number in range(2):
            speak(folder / "test" / name / f"{number}.wav", pitch, 100 + number)
    speak(folder / "test" / "zoe" / "0.wav", 3500, 0)
    (folder / "train" / "ada" / "._0.wav").write_text("what macOS keeps beside a file on a disk of another system")
    assert main(["identify", "train", str(folder / "train"), "--out", str(folder / "model"), *FAST]) == 0
    return folder


def test_speakers_are_enrolled_and_found(voices, capsys):
    files = [str(voices / "test" / name / "0.wav") for name in PITCHES]
    assert main(["identify", "run", str(voices / "model"), *files, "--json", "-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    for name, file, answer, line in zip(PITCHES, files, found["answers"], captured.err.splitlines(), strict=True):
        assert max(answer["probabilities"], key=answer["probabilities"].get) == name
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["speaker"] == (name if answer["probability"] >= found["threshold"] else "unknown")
        assert line.startswith(file)
        assert answer["speaker"] in line


def test_evaluation_counts_the_answers_and_draws_them(voices, tmp_path, capsys):
    target = tmp_path / "result.json"
    arguments = ["--plot", str(tmp_path / "confusion.png"), "--json", str(target)]
    assert main(["identify", "evaluate", str(voices / "model"), str(voices / "test"), *arguments]) == 0
    found = json.loads(target.read_text())
    assert found["rows"] == ["ada", "bob", "eve", "zoe"]
    assert found["columns"] == ["ada", "bob", "eve", "unknown"]
    matrix = np.array(found["matrix"])
    assert matrix.sum(1).tolist() == [2, 2, 2, 1]
    assert found["accuracy"] == np.trace(matrix[:3, :3]) / 6
    assert found["accuracy_without_unknown"] == 1.0
    assert found["strangers_unknown"] == matrix[3, 3]
    assert (tmp_path / "confusion.png").stat().st_size > 5_000
    out = capsys.readouterr().out
    assert "of 6 recordings of enrolled speakers" in out
    assert "of 1 recording of others" in out


def test_training_says_how_well_it_does_and_warns_of_the_mean_spectrum(voices, tmp_path, capsys):
    arguments = ["identify", "train", str(voices / "train"), "--out", str(tmp_path / "m"), *FAST, "--json", "-"]
    assert main([*arguments, "--reject", "0.5", "--seed", "1", "--mels", "12"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["speakers"] == dict.fromkeys(PITCHES, 6)
    assert found["mean_spectrum_accuracy"] == 1.0  # such voices are told by their mean spectrum
    assert found["mean_spectrum_does_as_well"]
    assert "warning: the mean spectrum" in captured.err
    assert json.loads((tmp_path / "m" / "model.json").read_text())["config"]["n_mels"] == 12
    assert main([*arguments, "--reject", "0.0", "--seed", "1", "--mels", "12"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] < found["threshold"]


def copy_of(voices: Path, tmp_path: Path) -> Path:
    for name, pitch in PITCHES.items():
        for number in range(2):
            speak(tmp_path / "v" / name / f"{number}.wav", pitch, number)
    return tmp_path / "v"


def damage(kind: str, folder: Path) -> None:
    target = folder / "bob" / "1.wav"
    if kind == "text":
        target.write_text("no sound")
    elif kind == "rate":
        speak(target, 900, 1, rate=16000)
    elif kind == "silence":
        soundfile.write(target, np.zeros(4000), 8000)
    elif kind == "short":
        speak(target, 900, 1, seconds=0.05)
    elif kind == "single":
        target.unlink()
    elif kind == "empty":
        for file in (folder / "bob").iterdir():
            file.unlink()
    elif kind == "alone":
        for name in ("ada", "eve"):
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()
    elif kind == "reserved":
        (folder / "bob").rename(folder / "unknown")


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("text", "bob/1.wav cannot be read as audio"),
        ("rate", "bob/1.wav has 16000 samples a second"),
        ("silence", "bob/1.wav is silent"),
        ("short", "bob/1.wav lasts 0.050 s"),
        ("single", "bob holds one recording"),
        ("empty", "bob holds no .wav or .flac"),
        ("alone", "holds 1 folder of speakers"),
        ("reserved", "rename the folder"),
    ],
)
def test_recordings_that_cannot_be_used_are_named(kind, complaint, voices, tmp_path, capsys):
    folder = copy_of(voices, tmp_path)
    damage(kind, folder)
    assert main(["identify", "train", str(folder), "--out", str(tmp_path / "m"), *FAST]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "{voices}/train"], "needs --out"),
        (["train", "a", "b", "--out", "{tmp}/m"], "takes one folder"),
        (["train", "{voices}/nowhere", "--out", "{tmp}/m"], "is no folder"),
        (["train", "{voices}/nowhere", "--out", "{voices}/test/zoe/0.wav/in"], "cannot be written: Not a directory"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--models", "2"], "--models 2"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--states", "0"], "--states 0"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--reject", "1.0"], "--reject 1.0"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--plot", "x.png"], "--plot is not for identify train"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--seed", "-1"], "--seed -1"),
        (["train", "{voices}/train", "--out", "{tmp}/m", "--seed", str(2**63)], "--seed 9223372036854775808"),
        (["run", "{voices}/model"], "takes MODEL FILE"),
        (["run", "{voices}/model", "x.wav", "--out", "m"], "--out is not for identify run"),
        (["run", "{voices}/train", "x.wav"], "holds no model"),
        (["run", "{voices}/model", "{voices}/none.wav"], "none.wav cannot be read: No such file"),
        (["evaluate", "{voices}/model", "{voices}/test", "--plot", "{tmp}/x.txt"], "suffix"),
        (["evaluate", "{voices}/model", "{voices}/test", "--plot", "{tmp}/none/x.png"], "no folder"),
        (["evaluate", "{voices}/model", "{voices}/test", "--json", "{tmp}/none/x"], "no folder"),
        (
            ["evaluate", "{voices}/model", "{voices}/test", "--plot", "{tmp}/x.png", "--json", "{tmp}/x.png"],
            "--plot and --json both name",
        ),
        (["train", "{voices}/train", "--out", "{tmp}", "--json", "{tmp}/model.json"], "--json and --out both name"),
        (["sing", "{voices}/model"], "sing"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments, complaint, voices, tmp_path, capsys):
    filled = [each.format(voices=voices, tmp=tmp_path) for each in arguments]
    assert main(["identify", *filled]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["run", "{voices}/model", "{voices}/test/ada/0.wav"], "test/ada/0.wav"),
        (["run", "{voices}/model", "{voices}/test/ada/0.wav"], "model/model.safetensors"),
        (["evaluate", "{voices}/model", "{voices}/test"], "test/zoe/0.wav"),
        (["evaluate", "{voices}/model", "{voices}/test"], "model/model.json"),
        (["train", "{voices}/train", "--out", "{tmp}/m"], "train/bob/3.flac"),
    ],
)
def test_what_is_read_is_never_overwritten(arguments, read, voices, tmp_path, capsys):
    before = (voices / read).read_bytes()
    filled = [each.format(voices=voices, tmp=tmp_path) for each in arguments]
    assert main(["identify", *filled, "--json", str(voices / read)]) == 2
    assert f"--json {voices / read}: this is what is read" in capsys.readouterr().err
    assert (voices / read).read_bytes() == before


def test_a_missing_extra_is_told_of_before_the_work(voices, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot = ["--plot", str(tmp_path / "confusion.png")]
    assert main(["identify", "evaluate", str(voices / "model"), str(voices / "test"), *plot]) == 2
    captured = capsys.readouterr()
    assert "drawing the confusion matrix needs an optional dependency" in captured.err
    assert not captured.out


def test_a_speaker_of_any_name_is_drawn(tmp_path):
    names = ["a$b_{c$", os.fsdecode(b"\xff\xfe")]
    identify._draw(tmp_path / "confusion.png", np.eye(2, dtype=int), names, names)
    assert (tmp_path / "confusion.png").stat().st_size > 2_000


def test_long_recordings_are_learned_from_in_pieces():
    sequences = [np.arange(2 * length, dtype=float).reshape(length, 2) for length in (999, 1000, 2501)]
    pieces, labels = identify._pieces(sequences, np.array(["ada", "bob", "eve"]))
    assert [len(piece) for piece in pieces] == [999, 1000, 834, 834, 833]
    assert labels.tolist() == ["ada", "bob", "eve", "eve", "eve"]
    assert np.array_equal(np.concatenate(pieces), np.concatenate(sequences))


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["identify", "--help"])
    assert "identify train voices --out voices-model" in capsys.readouterr().out
