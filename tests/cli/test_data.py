from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import tyro

from counterflow.cli.data import data_command
from counterflow.exceptions import InputError
from counterflow.lab import data
from counterflow.lab.data import locate


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only data folder is the one that COUNTERFLOW_DATA names, with a small MNIST in it."""
    folder = tmp_path / "named"
    (folder / "mnist").mkdir(parents=True)
    path = folder / "mnist" / "mnist.npz"
    images, labels = np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    wide = labels.astype(np.int64)
    content = data.arrays_sha256(
        {"train_images": images, "train_labels": wide, "test_images": images, "test_labels": wide}
    )
    real = data.dataset("mnist")
    npz = data.Form("npz", content, (data.File("mnist/mnist.npz", data.file_sha256(path), 3_400_000),))
    monkeypatch.setitem(data.CATALOG, "mnist", replace(real, forms=(npz, replace(real.forms[1], sha256=content))))
    monkeypatch.setattr(locate, "__file__", str(tmp_path / "lib/counterflow/lab/data/locate.py"))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.setenv("COUNTERFLOW_DATA", str(folder))
    return folder


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = tyro.cli(data_command, args=arguments)
    return status, capsys.readouterr().out.splitlines()


def _row(lines: list[str], *words: str) -> str:
    """The one line with these words."""
    (line,) = (line for line in lines if all(word in line for word in words))
    return line


def test_list_is_the_default(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _run(capsys)
    assert status == 0
    assert "generated" in _row(lines, " family_relations ")
    assert "CC BY 4.0" in _row(lines, " digits ", "scikit-learn")
    assert "only the publisher's test part" in _row(lines, "digits:")
    row = _row(lines, " mnist ")
    assert "COUNTERFLOW_DATA" in row
    assert "CC BY-SA 3.0" in row
    assert "3.4 MB" in row
    # Only `where` shows folders.
    assert not any(str(named) in line for line in lines)
    assert _run(capsys, "list") == (status, lines)


def test_list_fits_a_terminal(named: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    text = "\n".join(_run(capsys)[1])
    for word in (*data.names(), "COUNTERFLOW_DATA", "scikit-learn", "3.4 MB", "10,000 test", "size"):
        assert word in text


@pytest.mark.parametrize("action", ["list", "check", "where"])
def test_a_pipe_gets_plain_lines_of_which_nothing_is_cut(
    named: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    status, lines = _run(capsys, action)
    assert status == 0
    assert "\n".join(lines).isascii()  # no frame, no ellipsis
    assert all(re.search(rf"^.*\b{name}\b", "\n".join(lines), re.MULTILINE) for name in data.names())
    row = {
        "list": r"  mnist +\S.*, 10,000 test +COUNTERFLOW_DATA +CC BY-SA 3\.0 .* 3\.4 MB",
        "check": r"  fsdd +not here: put \S+ into a data folder, from https\S+",
        "where": rf"  1  COUNTERFLOW_DATA +{re.escape(str(named))} +mnist",
    }[action]
    assert any(re.fullmatch(row, line) for line in lines)


def test_list_without_mnist(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (named / "mnist" / "mnist.npz").unlink()
    status, lines = _run(capsys, "list", "mnist")
    assert status == 0
    assert "not here" in _row(lines, " mnist ", "11.6 MB")
    assert "mnist: not here: downloaded when it is used" in lines
    assert not any("digits" in line for line in lines)
    assert not (tmp_path / "cache").exists()


def test_check(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _run(capsys, "check")
    assert status == 0
    for name in ("family_relations", "digits", "mnist"):
        assert "intact" in _row(lines, f"  {name} ")
    assert "not here: downloaded when it is used" in _row(lines, "  cifar10 ")
    assert "not here: put fsdd/free-spoken-digit-dataset-1.0.10.tar.gz into a data folder, from https" in _row(
        lines, "  fsdd "
    )


def test_check_of_files_without_a_known_checksum(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(named / "Flickr8k_text.zip", "w") as archive:
        archive.writestr("Flickr8k.token.txt", "a.jpg#0\tA dog .\n")
        for split in ("train", "dev", "test"):
            archive.writestr(f"Flickr_8k.{split}Images.txt", "a.jpg\n" if split == "dev" else "")
    (named / "captions").mkdir()
    (named / "Flickr8k_text.zip").rename(named / "captions" / "Flickr8k_text.zip")
    status, lines = _run(capsys, "check", "captions")
    assert status == 0
    assert "readable, no checksum known" in _row(lines, "  captions ")


def test_check_finds_damage(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = named / "mnist" / "mnist.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    status, lines = _run(capsys, "check")
    assert status == 1
    assert "damaged" in _row(lines, "  mnist ")
    assert "intact" in _row(lines, "  digits ")
    assert f"mnist: {path} is damaged" in _row(lines, str(path))
    assert _run(capsys, "check", "digits", "family_relations")[0] == 0


def test_check_of_what_is_missing_is_no_damage(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (named / "mnist" / "mnist.npz").unlink()
    status, lines = _run(capsys, "check")
    assert status == 0
    assert "not here" in _row(lines, " mnist ")
    assert not (tmp_path / "cache").exists()


def test_check_without_scikit_learn(
    named: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, lines = _run(capsys, "check", "digits")
    assert status == 0
    assert "pip install 'counterflow[lab]'" in _row(lines, " digits ")


def test_where(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _run(capsys, "where")
    assert status == 0
    rows = [
        _row(lines, "  1 ", "COUNTERFLOW_DATA", str(named), " mnist"),
        _row(lines, "  2 ", "beside the checkout", "does not run from a checkout"),
        _row(lines, "  3 ", "cache", str(tmp_path / "cache"), "(does not exist)"),
        _row(lines, "  4 ", "download", "ossci-datasets.s3.amazonaws.com", " mnist"),
        _row(lines, "by hand", "an4_raw.bigendian.tar.gz as an4/an4_raw.bigendian.tar.gz", " an4"),
    ]
    assert [lines.index(row) for row in rows] == sorted(lines.index(row) for row in rows)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("action", ["list", "check", "where"])
def test_malformed_input(named: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    with pytest.raises(InputError, match="no data set is called 'minst'"):
        tyro.cli(data_command, args=[action, "minst"])
    monkeypatch.setenv("COUNTERFLOW_DATA", str(named / "nowhere"))
    with pytest.raises(InputError, match=r"COUNTERFLOW_DATA is .* not a folder"):
        tyro.cli(data_command, args=[action])


def test_unknown_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tyro.cli(data_command, args=["chekc"])
    assert caught.value.code == 2
