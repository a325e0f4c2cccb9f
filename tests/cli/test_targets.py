"""Files that a command was told to write."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from counterflow.cli import main
from counterflow.cli.targets import write_target
from counterflow.exceptions import InputError


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


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    held = tmp_path / "held" / "a.json"
    held.parent.mkdir()
    held.write_text("old")
    link = tmp_path / "a.json"
    link.symlink_to(held)
    write_target(link, b"new")
    assert link.is_symlink()
    assert held.read_text() == "new"
    assert [path.name for path in held.parent.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"^--json .*a\.json: it cannot be written: "):
        write_target(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
