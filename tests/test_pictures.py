"""Pictures are there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from counterflow.cli.targets import require_target
from counterflow.exceptions import InputError
from counterflow.pictures import PICTURES, require_picture, write_picture

figures = pytest.importorskip("matplotlib.figure")


@pytest.mark.parametrize(
    ("name", "why"),
    [("none/a.png", "no folder"), ("a.txt", "suffix must be"), ("a", "suffix must be"), (".", "folder")],
)
def test_what_no_picture_can_be_is_named_before_the_work(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        require_picture(tmp_path / name, "a test")


@pytest.mark.parametrize("suffix", [*PICTURES, ".PNG"])
def test_every_suffix_is_drawn_and_taken_by_the_commands_too(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a{suffix}"
    require_target("plot", target)
    write_picture(figures.Figure(), require_picture(target, "a test"), 50)
    assert target.stat().st_size > 100


def test_a_picture_takes_the_place_of_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    write_picture(figures.Figure(), require_picture(target, "a test"), 50)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_picture_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    class Full:
        def savefig(self, file: IO[bytes], dpi: int, format: str) -> None:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_picture(Full(), target, 50)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
