"""Bring the committed evidence up to date: run what it lacks, pack it, and redraw what is made from it.

    python scripts/evidence.py [--profile laptop] [--only TREATMENT] [--device cpu] [--jobs 2] [--runs DIR] [KEY ...]

Records in evidence/ whose hash still holds are reused. A run that was stopped goes on where it was. REPRODUCTION.md and
the README's picture follow from the records.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import get_args

from counterflow.cli.reproduce import reproduce_command
from counterflow.exceptions import CounterflowError
from counterflow.lab.report import read_sections, reproduction_markdown, select
from counterflow.lab.report.numbers import format_seconds
from counterflow.lab.trials import (
    Device,
    Paper,
    Profile,
    load_paper,
    outstanding,
    pack,
    paper_keys,
    part_of,
    read_environments,
    read_record,
    require_device,
    unpack,
)
from counterflow.lab.trials.pool import cores
from counterflow.lab.trials.record import write_record, write_whole

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "evidence"


def restore(key: str, runs: Path) -> None:
    """Put the committed records of a paper where a run finds them."""
    for packed in sorted((EVIDENCE / key).glob("*.jsonl.gz")):
        records, environments = unpack(packed)
        for record in records:
            if not (runs / key / f"{record.key}.json").exists():
                write_record(runs, record, environments[record.environment])


def say_what_is_left(papers: list[Paper], profile: Profile, runs: Path, jobs: int) -> None:
    """How long each paper takes, before it starts."""
    whole = 0.0
    for paper in papers:
        trials = outstanding(paper, profile, runs)
        seconds = sum(trial.expected_seconds for trial in trials) / jobs
        whole += seconds
        told = f"{len(trials)} trials to run, about {format_seconds(round(seconds))} by {jobs} processes"
        print(f"evidence: {paper.key}: {told}")
    print(f"evidence: in all about {format_seconds(round(whole))}", flush=True)


def main() -> int:
    """Run, pack, summarize."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", default=list(paper_keys()), metavar="KEY")
    parser.add_argument("--profile", choices=get_args(Profile), default="laptop")
    parser.add_argument("--only", metavar="TREATMENT", help="as `counterflow reproduce` has it; name one KEY with it")
    parser.add_argument("--device", choices=get_args(Device), default="cpu", help="as `counterflow reproduce` has it")
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--runs", type=Path, default=ROOT / "counterflow-runs")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: it has to be 1 or more")
    if options.only is not None and len(options.keys) != 1:
        parser.error(f"--only {options.only}: treatments are those of one paper; name its KEY")
    papers = [load_paper(key) for key in options.keys]
    if options.only is not None:
        papers = [part_of(paper, options.profile, options.only) for paper in papers]
    require_device(options.device, papers, options.profile)
    for key in options.keys:
        restore(key, options.runs)
    say_what_is_left(papers, options.profile, options.runs, options.jobs)
    for key, paper in zip(options.keys, papers, strict=True):
        movable = any(trial.movable for trial in paper.trials(options.profile, []))
        status = reproduce_command(
            key,
            profile=options.profile,
            only=options.only,
            jobs=options.jobs,
            device=options.device if movable else "cpu",
            out=options.runs,
        )
        if status:
            return status
        records = [read_record(path) for path in sorted((options.runs / key).glob("*.json"))]
        records = select(load_paper(key), options.profile, records)
        pack(records, read_environments(options.runs), EVIDENCE / key / f"{options.profile}.jsonl.gz")
    sections, _, complaints = read_sections(EVIDENCE)
    for complaint in complaints:
        print(f"evidence: left out: {complaint}", file=sys.stderr)
    write_whole(ROOT / "REPRODUCTION.md", reproduction_markdown(sections).encode())
    subprocess.run([sys.executable, ROOT / "scripts" / "readme_picture.py"], check=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CounterflowError as error:
        print(f"evidence: {error}", file=sys.stderr)
        sys.exit(2)
