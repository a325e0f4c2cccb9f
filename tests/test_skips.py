"""Where CI=true, a test of the browser, of several processes or of a data set must not be skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

@pytest.mark.browser
def test_no_browser():
    pytest.skip("no Chromium")

@pytest.mark.data
@pytest.mark.skipif(True, reason="no data")
def test_no_data():
    pass

@pytest.mark.distributed
@pytest.mark.xfail
def test_known():
    raise ValueError

@pytest.mark.skip(reason="another platform")
def test_other():
    pass
"""


def test_a_skip_fails_where_it_must_not_be(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser\n  data\n  distributed\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(
        command, env={**os.environ, "CI": "true"}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    # What a mark skips fails before the test itself begins, which pytest calls an error.
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in run.stdout
    assert run.stdout.count("skipped where CI=true lets no such test be skipped") >= 2
