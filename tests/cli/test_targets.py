"""Files that a command was told to write."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from counterflow import persist
from counterflow.audio import Writer, write
from counterflow.cli import main
from counterflow.cli.targets import require_apart, require_target, write_target
from counterflow.exceptions import InputError
from counterflow.pictures import write_picture


def wav_in_blocks(path: Path) -> None:
    with Writer(path, 8000) as file:
        for _ in range(2):
            file.write(np.full(10, 0.5))


def picture(path: Path) -> None:
    write_picture(pytest.importorskip("matplotlib.figure").Figure(), path, 50)


WRITERS = [
    pytest.param("a.json", lambda path: write_target(path, b"new"), b"new", id="content"),
    pytest.param("a.wav", lambda path: write(path, torch.full((20,), 0.5), 8000), b"RIFF", id="sound"),
    pytest.param("a.wav", wav_in_blocks, b"RIFF", id="sound in blocks"),
    pytest.param("a.png", picture, b"\x89PNG", id="picture"),
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
@pytest.mark.parametrize(("name", "writing", "start"), WRITERS)
def test_whatever_is_written_leaves_a_pipe_a_pipe(
    name: str, writing: Callable[[Path], None], start: bytes, tmp_path: Path
) -> None:
    writing(tmp_path / name)
    wanted = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / name).read_bytes()), daemon=True)
    reader.start()
    writing(tmp_path / name)
    reader.join(10)
    assert (tmp_path / name).is_fifo()
    assert read == [wanted]
    assert wanted.startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_needs_the_suffix_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"--plot .*pipe: the suffix has to be \.png"):
        require_target("plot", tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_or_a_device_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert main(["data", "list", "digits", "--json", str(pipe)]) == 0
    reader.join(10)
    assert json.loads(read[0])[0]["name"] == "digits"
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(("name", "writing", "start"), WRITERS)
def test_what_a_link_leads_to_is_replaced_and_the_link_stays(
    name: str, writing: Callable[[Path], None], start: bytes, tmp_path: Path
) -> None:
    held = tmp_path / "held" / name
    held.parent.mkdir()
    held.write_text("old")
    link = tmp_path / name
    link.symlink_to(held)
    writing(link)
    assert link.is_symlink()
    assert held.read_bytes().startswith(start)
    assert [path.name for path in held.parent.iterdir()] == [name]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"^--json .*a\.json: it cannot be written: "):
        write_target(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


KINDS = {"identify": "speaker identification", "separate": "word classifier", "speech": "speech recognizer"}


@pytest.mark.parametrize("verb", KINDS)
@pytest.mark.parametrize("there", KINDS.values())
def test_training_does_not_destroy_a_model_of_another_kind(
    verb: str, there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    persist.save(folder, there, {}, {"a": torch.ones(1)})
    assert main([verb, "train", str(tmp_path / "recordings"), "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    if there == KINDS[verb]:
        assert "recordings" in said  # on to what is missing: a model of this kind may be trained again
    else:
        wanted = f"--out {folder} holds a {there!r}, and a {KINDS[verb]!r} would take its place; name another folder"
        assert said == f"counterflow: {wanted}\n"
    assert persist.load(folder, there) == ({}, {"a": torch.ones(1)})


def test_no_option_names_a_folder_that_another_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for json_name in ("new", "new/model"):
        with pytest.raises(InputError) as caught:
            require_apart([("json", Path(json_name)), ("out", Path("new/model/model.json"))])
        assert str(caught.value).startswith("--json ")
        assert str(caught.value).endswith(f"{json_name}: --out makes a folder of that name; name a file")
    require_apart([("json", Path("new/model/answers.json")), ("out", Path("new/model/model.json"))])
    require_apart([("out", Path("a")), ("out", Path("a/b"))])
