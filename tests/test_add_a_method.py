"""The page that says how to add a method is followed to the letter, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from counterflow.registry import Contract

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "add-a-method.rst"


def blocks() -> list[tuple[str, str, str]]:
    """Language, caption and content of the page's blocks, in their order."""
    found = re.findall(
        r"^\.\. code-block:: (\w+)\n(?:   :caption: (\S+)\n)?\n((?:(?:   .*)?\n)+)", PAGE.read_text("utf-8"), re.M
    )
    return [(language, caption, textwrap.dedent(block).strip("\n") + "\n") for language, caption, block in found]


def patched(text: str, change: str) -> str:
    """Put lines with a plus after those above them, which are found in their order, and take out those with a minus."""
    lines, at = text.splitlines(), -1
    for line in change.splitlines():
        if line.startswith("+"):
            at += 1
            lines.insert(at, line[1:])
        else:
            at = lines.index(line[1:], max(at, 0))  # the first column is the mark's
        if line.startswith("-"):
            del lines[at]
            at -= 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the page's files lie where it says. What is not written to is linked."""
    root = tmp_path_factory.mktemp("checkout")
    package = root / "src" / "counterflow"
    package.mkdir(parents=True)
    for path in (ROOT / "src" / "counterflow").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in ("tests/contracts", "docs/api"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile", "tests/conftest.py", "tests/test_docs.py"):
        shutil.copy(ROOT / name, root / name)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/combinations.json"):
        shutil.copy(ROOT / name, root / name)
    written: dict[str, str] = {}
    for language, caption, block in blocks():
        if language == "diff":
            written[caption] = patched((ROOT / caption).read_text("utf-8"), block)
        elif caption:
            written[caption] = f"{written[caption]}\n\n{block}" if caption in written else block
    for name, text in written.items():
        (root / name).unlink(missing_ok=True)  # the link, not what it leads to
        (root / name).write_text(text, "utf-8")
    return root


def run(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def pytest_in(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(checkout, sys.executable, "-m", "pytest", *words, "-q", "-p", "no:cacheprovider")


def commands() -> list[str]:
    shown = "".join(block for language, _, block in blocks() if language == "console")
    return re.findall(r"^\$ (.*)$", shown, re.M)


def test_the_page_has_its_commands() -> None:
    assert [command.split()[:2] for command in commands()] == [
        ["lint-imports"],
        ["pytest", "tests/contracts/test_contracts.py"],
        ["make", "combinations"],
        ["pytest", "tests/contracts/test_pairs.py"],
        ["pytest", "tests/test_compressing.py"],
        ["pytest", "tests/test_docs.py"],
    ]


def test_the_commands_of_the_page_pass(checkout: Path) -> None:
    linted = run(checkout, str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert linted.returncode == 0, linted.stdout
    # What the Makefile's target does, without an environment of its own.
    recipe = "$(BIN)/python -m tests.contracts.pairs docs/combinations.json $(METHOD)"
    assert f"\t{recipe}\n" in (checkout / "Makefile").read_text("utf-8")
    assert "make combinations METHOD=compress" in commands()
    words = shlex.split(recipe.replace("$(METHOD)", "compress"))
    tried = run(checkout, sys.executable, *words[1:])
    assert tried.returncode == 0, tried.stderr
    # In one process, since each would load the whole library anew: the files of all, and what any of them chooses.
    words = [shlex.split(command)[1:] for command in commands() if command.startswith("pytest ")]
    chosen = [f"({rest[1]})" if rest else Path(path).stem for path, *rest in words]
    ran = pytest_in(checkout, *(path for path, *_ in words), "-k", " or ".join(chosen), "-rA")
    assert ran.returncode == 0, ran.stdout
    passed = re.findall(r"^PASSED (\S+?)::", ran.stdout, re.M)
    assert set(passed) == {path for path, *_ in words}
    assert ran.stdout.count("compress-cnn") >= len(get_args(Contract)) - 1  # all but that of two processes


def test_the_method_that_the_page_breaks_is_found_out(checkout: Path) -> None:
    module = checkout / "src" / "counterflow" / "compressing.py"
    sound = module.read_text("utf-8")
    assert "error.abs().mean()" in PAGE.read_text("utf-8")
    broken = sound.replace("error.abs().mean(others, keepdim=True)", "error.abs().mean()")
    assert broken != sound
    module.write_text(broken, "utf-8")
    try:
        ran = pytest_in(checkout, "tests/contracts/test_contracts.py", "-k", "compress-mlp and (vmap or accumulation)")
    finally:
        module.write_text(sound, "utf-8")
    assert ran.returncode == 1, ran.stdout
    assert "failed" in ran.stdout
