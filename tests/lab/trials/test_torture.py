"""Kill -9 at random moments; ``make torture`` kills more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "toy" / "torture.py"
KILLS = int(os.environ.get("COUNTERFLOW_KILLS", "40"))


def test_many_kills_lose_nothing_and_repeat_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(TORTURE), str(tmp_path), str(KILLS), "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    with capsys.disabled():
        print(
            f"\n{told['kills']} kills: {told['records']} of {told['expected']} records, {told['repeated']} finished "
            f"trials repeated, {told['interrupted']} unfinished ones started again, {told['seconds']} s"
        )
    assert told["kills"] == KILLS
    assert told["records"] == told["expected"]
    assert told["repeated"] == 0
    assert told["interrupted"] >= KILLS // 4  # else the moments prove nothing
