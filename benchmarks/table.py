"""All ratios of the benchmarks in one table, with their targets, from the committed records; nothing is measured.

    python benchmarks/table.py [--readme FILE]

A target that is missed is shown as missed. With --readme, the part of that file between its two marks is written from
the same records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common.command import status_of
from common.ratios import BENCHMARKS, Ratio, kept, measured
from counterflow.exceptions import InputError
from counterflow.files import replacing

BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"


def plain_text(found: Mapping[str, list[Ratio]]) -> str:
    """The table for a terminal."""
    rows = [(row.what, row.measured, row.target, row.verdict) for each in found.values() for row in each]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for name, each in found.items():
        met, of = kept(each)
        said = f": {met} of {of} targets met" if of else ""
        lines += ["", f"{BENCHMARKS[name].title} (benchmarks/{name}.py){said}"]
        for row in each:
            cells = (row.what, row.measured, row.target)
            padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {padded}  {row.verdict}".rstrip())
    met, of = kept([row for each in found.values() for row in each])
    missing = [f"no record: benchmarks/{name}.py" for name in BENCHMARKS if name not in found]
    return "\n".join([*lines[1:], "", *missing, f"{met} of {of} targets met, {of - met} missed"])


def readme_block(found: Mapping[str, list[Ratio]]) -> str:
    """What the README says of speed: the first target of each benchmark, and how many of all it meets."""
    lines = ["| benchmark | its first target | measured | result | targets met |", "| --- | --- | --- | --- | --- |"]
    for name, each in found.items():
        met, of = kept(each)
        if of:
            first = next(row for row in each if row.met is not None)
            what = f"{first.what}: {first.target}"
            lines.append(f"| {BENCHMARKS[name].title} | {what} | {first.measured} | {first.verdict} | {met} of {of} |")
    return "\n".join(lines)


def with_block(text: str, block: str) -> str:
    """The text with the block between its two marks.

    Raises:
        InputError: The marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"there is no place for the table: put the lines {BEGIN!r} and {END!r} into the file")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", metavar="FILE", type=Path, help="write this file's part on speed, too")
    arguments = parser.parse_args()
    if arguments.readme and not arguments.readme.is_file():
        parser.error(f"--readme {arguments.readme}: there is no such file")
    found = measured()
    print(plain_text(found))
    if arguments.readme:
        text = with_block(arguments.readme.read_text("utf-8"), readme_block(found))
        with replacing(arguments.readme) as new:
            new.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(status_of(main))
