"""``counterflow report``: the page again, from the records of a run or from the committed evidence."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import tyro

from counterflow.cli.targets import (
    json_file,
    require_apart,
    require_json,
    require_target,
    require_unread,
    write_json,
    write_target,
)
from counterflow.exceptions import InputError
from counterflow.lab.report import claims_document, read_sections, reproduction_markdown, write_report
from counterflow.lab.trials import Profile

__all__ = ["report_command"]


def report_command(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]")] = Path("counterflow-runs"),
    /,
    *,
    profile: Profile | None = None,
    markdown: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
    open_browser: Annotated[bool, tyro.conf.arg(name="open")] = True,
) -> int:
    """Judge the records in a folder again, write its report.html and open it in the browser.

    For example:

        counterflow report
        counterflow report evidence --markdown REPRODUCTION.md
        counterflow report runs --profile smoke --no-open
        counterflow report runs --json - --no-open

    Args:
        folder: The folder that a run wrote (--out), or packed evidence such as evidence/.
        profile: Which profile is shown; the largest that is there, if none is named.
        markdown: Write the claims as Markdown to this file instead of the page.
        json: Write all claims and verdicts to this file as JSON, as counterflow reproduce does; - is standard output.
        open_browser: Open the page, where there is a screen to show it on.

    Returns:
        The exit status, 0; 2 for a folder without records.

    Raises:
        InputError: The Markdown or JSON file cannot be written.
        RecordError: The folder is missing or holds no records, or the report cannot be written.
    """
    require_target("markdown", markdown)
    require_json(json)
    require_apart([("markdown", markdown), ("json", json_file(json))])
    require_unread([("markdown", markdown), ("json", json_file(json))], folder.glob("*/*"))
    if markdown is None and json not in (None, "-") and Path(json).resolve() == (folder / "report.html").resolve():
        raise InputError(f"--json {json}: the page is written there; name another file")
    sections, shown, complaints = read_sections(folder, profile)
    for complaint in complaints:
        print(f"counterflow report: left out: {complaint}", file=sys.stderr)
    stream = sys.stderr if json == "-" else sys.stdout
    if json is not None:
        write_json(json, claims_document(sections, shown))
    if markdown is not None:
        write_target(markdown, reproduction_markdown(sections).encode(), "markdown")
        print(f"Summary: {markdown}", file=stream)
        return 0
    path = write_report(sections, folder / "report.html", profile=shown)
    print(f"Report: {path}", file=stream)
    if open_browser and _has_screen():
        webbrowser.open(path.resolve().as_uri())
    return 0


def _has_screen() -> bool:
    if os.environ.get("CI"):
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
