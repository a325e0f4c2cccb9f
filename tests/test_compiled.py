"""Where numba keeps what it has compiled."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import counterflow

CODE = """
import os, numba, counterflow
from counterflow.noise_control import filters
print(os.environ.get("NUMBA_CACHE_DIR"))
print(filters._rls._cache.cache_path)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package into which nothing can be written, not even by root."""
    root = tmp_path / "site"
    source = Path(str(counterflow.__file__)).parent
    shutil.copytree(source, root / "counterflow", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in (root / "counterflow").rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("no folder")
    return root


def places(package: Path, **changes: str) -> list[str]:
    """The folder that numba was given, and the one that it took."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    (package / "tmp").mkdir(exist_ok=True)
    settings = {"PYTHONPATH": str(package), "TMPDIR": str(package / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **changes}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | settings, check=True, capture_output=True, text=True
    )
    return run.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_where_nothing_can_be_written_there_is_a_folder_of_the_users_own(package: Path) -> None:
    (package / "file").write_text("no home")
    given, taken = places(package, HOME=str(package / "file"))
    assert given == str(package / "tmp" / f"counterflow-{os.getuid()}")
    assert Path(taken).parent == Path(given)
    assert stat.S_IMODE(os.stat(given).st_mode) == 0o700
    assert places(package, HOME=str(package / "file"))[0] == given  # so that nothing is compiled twice
    # What others may write is not trusted: what is there would be executed.
    os.chmod(given, 0o777)
    other, _ = places(package, HOME=str(package / "file"))
    assert Path(other).parent == package / "tmp"
    assert other != given


def test_numba_is_left_alone_where_it_finds_a_place(package: Path) -> None:
    assert places(package, HOME=str(package))[0] == "None"
    given = str(package / "mine")
    assert places(package, HOME=str(package / "file"), NUMBA_CACHE_DIR=given)[0] == given
