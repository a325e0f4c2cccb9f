"""The toy paper, beside the real ones, for as long as a test takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import counterflow.lab.papers

TOY = Path(__file__).parents[2] / "toy"


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the toy paper; the file in which its trials leave their trace."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("PYTHONPATH", str(TOY), prepend=os.pathsep)
    monkeypatch.setattr(counterflow.lab.papers, "__path__", [*counterflow.lab.papers.__path__, str(TOY / "papers")])
    path = tmp_path / "trace.txt"
    path.touch()
    monkeypatch.setenv("TOY_TRACE", str(path))
    return path
