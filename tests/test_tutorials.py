"""Every command and every piece of code of the tutorials runs, in the order of the page, and says what the page says.

``$`` begins a command and ``>`` goes on with it; the lines below are what it prints, in part: ``...`` stands for
anything. A command that shows counterflow's one line of error has to end with exit status 2, any other with 0. Where a
paper is rerun, only its first trial is; with COUNTERFLOW_LITERAL=1, as in the check of a release, all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow import cli
from counterflow.cli import reproduce
from counterflow.lab.trials import Paper, load_paper

PAGES = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.rst"))
TOOLS = {"identify", "speech", "separate", "cancel", "plan", "reproduce"}


def blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"^\.\. code-block:: (console|python)\n\n((?:(?:   .*)?\n)+)", page.read_text("utf-8"), re.M)
    return [(language, textwrap.dedent(block)) for language, block in found]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command with what is shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        first, *rest = part.rstrip().splitlines()
        more = 0
        while more < len(rest) and rest[more].startswith("> "):
            first += "\n" + rest[more][2:]
            more += 1
        yield first, "\n".join(rest[more:])


def run(command: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    if command.startswith("counterflow "):
        status = cli.main(shlex.split(command)[1:])
    else:
        status = subprocess.run(["bash", "-c", command], check=False).returncode
    printed = capfd.readouterr()
    return status, printed.out + printed.err


def shows(printed: str, wanted: str) -> bool:
    pattern = r"\s+".join(re.escape(word).replace(re.escape("..."), r".*?") for word in wanted.split())
    return re.search(pattern, printed, re.S) is not None


def first_trial_only(key: str) -> Paper:
    paper = load_paper(key)
    return replace(paper, trials=lambda profile, records: paper.trials(profile, records)[:1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tutorial_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "espeak-ng" in page.read_text("utf-8") and shutil.which("espeak-ng") is None:
        pytest.skip("the page's recordings are spoken by espeak-ng, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    if os.environ.get("COUNTERFLOW_LITERAL") != "1":
        monkeypatch.setattr(reproduce, "load_paper", first_trial_only)
    names: dict[str, object] = {}
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
            continue
        for command, wanted in commands(block):
            status, printed = run(command, capfd)
            assert status == (2 if wanted.startswith("counterflow: ") else 0), f"{command}\n{printed}"
            assert shows(printed, wanted), f"{command}\n{printed}"


def test_every_tool_has_a_tutorial_that_shows_what_goes_wrong() -> None:
    assert {page.stem for page in PAGES} == TOOLS
    for page in PAGES:
        told = [wanted for language, block in blocks(page) if language == "console" for _, wanted in commands(block)]
        assert any(wanted.startswith("counterflow: ") for wanted in told), page.name


def test_what_is_not_printed_is_noticed() -> None:
    assert shows("Training: 10 files\n  accuracy  97.3%\n", "accuracy ...%")
    assert not shows("Training: 10 files\n", "accuracy ...%")
