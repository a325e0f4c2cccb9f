"""Nothing is written but below a temporary folder, and nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}.items():
        monkeypatch.setenv(name, value)
