"""What is called supported is what the check of a release ran, and the check can fail."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import counterflow
from counterflow.lab.trials import unpack

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def check(script: Any) -> Any:
    return script(ROOT / "scripts" / "release_check.py")


def versions_that_ran() -> set[tuple[str, str]]:
    """Pairs of Python and torch: those of the committed evidence, and those that the check of a release ran."""
    found = set()
    for packed in (ROOT / "evidence" / "tempering").glob("*.jsonl.gz"):
        for environment in unpack(packed)[1].values():
            found.add((str(environment["python"]), str(environment["torch"])))
    record = ROOT / "evidence" / "release.json"
    if record.exists():
        found |= {(each["python"], each["torch"]) for each in json.loads(record.read_text("utf-8"))["ran"]}
    return {(".".join(python.split(".")[:2]), torch.partition("+")[0]) for python, torch in found}


def test_the_versions_that_are_called_supported_have_run() -> None:
    ran = versions_that_ran()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    said = {match[1] for line in project["classifiers"] if (match := re.fullmatch(r".* :: Python :: (3\.\d+)", line))}
    assert said <= {python for python, _ in ran}
    bound = next(match[1] for line in project["dependencies"] if (match := re.fullmatch(r"torch>=(\S+)", line)))
    assert bound in {torch.rpartition(".")[0] for _, torch in ran}
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"torch ({bound} or later)" in readme
    assert f"Python {min(said, key=lambda version: int(version[2:]))} or later" in readme


def test_every_extra_is_tried_alone(check: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    of_developers = {"dev", "peers"}
    assert set(check.USES) == set(project["optional-dependencies"]) - of_developers
    assert set(check.NEEDS) <= set(check.USES)


def test_the_package_is_typed() -> None:
    assert Path(counterflow.__file__).with_name("py.typed").exists()


def test_the_check_stays_outside_the_checkout(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["release_check.py", "--work", str(ROOT / "build")])
    with pytest.raises(SystemExit):
        check.main()
    assert not (ROOT / "build").exists()


def test_a_step_that_fails_is_said_and_one_that_passed_is_not_repeated(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def good(at: Any) -> str:
        """It passes."""
        ran.append(at)
        return "fine"

    def bad(at: Any) -> str:
        """It fails."""
        check.call([sys.executable, "-c", "print('a reason'); raise SystemExit(3)"], cwd=at.work)
        return "never"

    monkeypatch.setattr(check, "STEPS", {"good": good, "bad": bad})
    monkeypatch.setattr(sys, "argv", ["release_check.py", "--work", str(tmp_path)])
    assert check.main() == 1
    assert check.main() == 1
    assert len(ran) == 1
    told = capsys.readouterr().out
    assert "passed before: fine" in told
    assert "exit status 3, not 0\na reason" in told
    assert told.endswith("failed: bad\n")
