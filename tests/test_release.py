"""What is called supported is what the check of a release ran, and the check can fail."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

import counterflow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def check(script: Any) -> Any:
    return script(ROOT / "scripts" / "release_check.py")


def short(python: str, torch: str) -> tuple[str, str]:
    """The version of Python without its patch, that of torch without its build."""
    return ".".join(python.split(".")[:2]), torch.partition("+")[0]


def environments() -> Iterator[dict[str, Any]]:
    """Those of all committed evidence, which stand before its records."""
    for packed in (ROOT / "evidence").glob("*/*.jsonl.gz"):
        with gzip.open(packed, "rt", encoding="utf-8") as lines:
            entries = map(json.loads, lines)
            yield from (entry["description"] for entry in takewhile(lambda entry: "description" in entry, entries))


def versions_that_ran() -> set[tuple[str, str]]:
    """Pairs of Python and torch, on a processor: of the committed evidence, and of the check of a release."""
    found = {short(each["python"], each["torch"]) for each in environments() if "graphics card" not in each}
    record = json.loads((ROOT / "evidence" / "release.json").read_text("utf-8"))
    return found | {short(each["python"], each["torch"]) for each in record["ran"]}


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


def test_the_torch_of_all_evidence_is_told() -> None:
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert pinned is not None
    assert {torch for _, torch in versions_that_ran()} == {pinned[1]}
    devices = " ".join((ROOT / "docs" / "devices.rst").read_text("utf-8").split())
    for each in environments():
        if "graphics card" in each:
            python, torch = short(each["python"], each["torch"])
            card = " ".join(each["graphics card"].split()[:2])
            assert f"ran on an {card}, under PyTorch {torch} and Python {python}" in devices


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


def test_versions_are_kept_once_every_step_has_passed(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "release.json"

    def newest(at: Any) -> str:
        at.ran.append({"python": "3.14", "torch": "9.0.0"})
        return "fine"

    def last(at: Any) -> str:
        if not record.with_name("mended").exists():
            raise check.StepError("not yet")
        return "fine"

    monkeypatch.setattr(check, "RECORD", record)
    monkeypatch.setattr(check, "STEPS", {"newest": newest, "last": last})
    monkeypatch.setattr(sys, "argv", ["release_check.py", "--work", str(tmp_path / "work")])
    newest.__doc__ = last.__doc__ = "A step."
    assert check.main() == 1
    monkeypatch.setattr(sys, "argv", [*sys.argv, "newest"])
    assert check.main() == 0  # all that was asked for, and not all that there is
    assert not record.exists()
    record.with_name("mended").touch()
    monkeypatch.setattr(sys, "argv", sys.argv[:-1])
    assert check.main() == 0
    assert json.loads(record.read_text())["ran"] == [{"python": "3.14", "torch": "9.0.0"}]


def test_the_pages_are_built_and_their_addresses_asked_for(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def offline(address: str, timeout: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(check, "call", lambda command, **_: (called.append([*map(str, command)]), "12 passed")[1])
    at = check.Place(tmp_path)
    assert check.STEPS["docs"](at) == "0 pages; the gallery: 12 passed"
    assert {"-W", "html"} <= {*called[0]}
    assert "tests/test_gallery.py" in called[1]
    monkeypatch.setattr(check.urllib.request, "urlopen", lambda address, timeout: io.BytesIO())
    assert check.STEPS["links"](at) == "all are there"
    assert "linkcheck" in called[2]
    monkeypatch.setattr(check.urllib.request, "urlopen", offline)
    assert check.STEPS["links"](at) == "left out: github.com cannot be reached (no route to host)"
    assert len(called) == 3
