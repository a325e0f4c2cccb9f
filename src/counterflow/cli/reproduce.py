"""``counterflow reproduce``: rerun a paper's trials, and set what was measured beside what was published."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from counterflow.cli.console import Console
from counterflow.cli.live import Display
from counterflow.cli.targets import json_file, require_apart, require_json, require_unread, write_json
from counterflow.exceptions import InputError, MissingExtraError
from counterflow.lab.report import Section, assemble, claims_document, write_report
from counterflow.lab.report.numbers import format_computing, format_interval, format_number
from counterflow.lab.trials import (
    Device,
    Paper,
    Profile,
    Record,
    digest_of,
    load_paper,
    paper_keys,
    part_of,
    read_environments,
    require_device,
    require_writable,
    run,
)
from counterflow.lab.trials.pool import cores

__all__ = ["reproduce_command"]

STYLES = {
    "reproduced": "green",
    "direction only": "yellow",
    "not reproduced": "red",
    "inconclusive": "cyan",
    "not run": "dim",
}


def reproduce_command(
    key: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY|all")],
    /,
    *,
    profile: Profile = "smoke",
    only: Annotated[str | None, tyro.conf.arg(metavar="TREATMENT")] = None,
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    device: Device = "cpu",
    cluster: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("counterflow-runs"),
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
    report: bool = True,
) -> int:
    """Rerun a paper's trials, print its claims with verdicts, and write report.html.

    What the profiles cost, on two cores:

      smoke    under a minute a paper; few seeds, so that much stays inconclusive
      laptop   some minutes to some hours a paper, as the display says once it runs
      paper    the published size; it may take days

    A run that was stopped, even with kill -9, goes on where it was when the same command is given again:
    finished trials are kept in DIR and reused, by every profile.

    For example:

      counterflow reproduce tempering
      counterflow reproduce tempering --profile laptop --out runs
      counterflow reproduce variational --profile paper --only "table 1 *"
      counterflow reproduce choice --profile paper --only "full *" --device cuda
      counterflow reproduce all --json - --no-report
      counterflow reproduce all --profile paper --cluster tcp://10.0.0.1:8786

    Exit status: 0, whatever the verdicts are; 1 if a trial failed; 2 for input that cannot be used; 130 after
    Ctrl-C.

    Args:
        key: A paper's key, as `counterflow list` shows it, or all.
        profile: How much is run.
        only: Run no trials but those of this treatment; * stands for any letters. Claims that need others are then
            not run.
        jobs: Trials at once, one thread each; by default as many as there are cores, or threads in the cluster.
        device: Where trials run that can leave the CPU, those of competition, variational and the pictures of choice;
            each record names the graphics card. All others stay on the CPU.
        cluster: Run the trials on the dask scheduler at this address instead of here.
        out: The folder for records and report.html.
        json: Write all claims and verdicts to this file as JSON; - is standard output.
        report: Write report.html.

    Returns:
        The exit status.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: it has to be 1 or more")
    keys = paper_keys() if key == "all" else (key,)
    papers = [load_paper(name) for name in keys]
    if only is not None:
        if key == "all":
            raise InputError(f"--only {only}: treatments are those of one paper; name it instead of all")
        papers = [part_of(paper, profile, only) for paper in papers]
    for paper in papers:
        digest_of(paper.key)  # a malformed file of claims is found before the work, not after it
    require_json(json)
    require_apart([("json", json_file(json)), ("out", out / "report.html")])
    require_unread([("json", json_file(json))], out.glob("*/*"))
    require_device(device, papers, profile, here=cluster is None)
    require_writable(out)
    console = Console(stderr=json == "-")
    try:
        with _executor(cluster) as (executor, threads), Display(papers, console, jobs or threads()) as display:
            at_once = jobs or (None if executor is None else threads)
            records = run(papers, profile, out, executor=executor, jobs=at_once, device=device, on_event=display.show)
    except KeyboardInterrupt:
        print(
            f"counterflow: stopped; finished trials are recorded in {out}, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    environments = read_environments(out)
    sections = [assemble(paper, profile, records[paper.key], environments) for paper in papers]
    for section in sections:
        _print_section(console, section)
    if report:
        path = write_report(sections, out / "report.html", profile=profile)
        console.print(Text(f"Report: {path}"), soft_wrap=True)
    if json is not None:
        write_json(json, claims_document(sections, profile))
    return _print_faults(papers, records, out)


@contextlib.contextmanager
def _executor(address: str | None) -> Iterator[tuple[Executor | None, Callable[[], int]]]:
    """The cluster at an address, or ``None``, the local pool, without one; and how many threads it has now."""
    if address is None:
        yield None, cores
        return
    if not re.fullmatch(r"(tcp|tls|ws|wss|ucx|inproc)://\S+", address):
        raise InputError(f"--cluster {address}: an address is like tcp://10.0.0.1:8786")
    try:
        distributed: Any = importlib.import_module("distributed")  # it has no types
    except ImportError as error:
        raise MissingExtraError("cluster", "--cluster") from error
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({reason})") from error
    known = 1

    def threads() -> int:
        # No more trials are handed over than run at once: dask would share them out at once among the workers that
        # are there, and the longest would no longer go first.
        nonlocal known
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # where the scheduler is gone, its trials say so
            known = sum(client.nthreads().values())
        return known

    logging.disable(logging.ERROR)  # dask tells of every lost connection, at length; one line from us is enough
    try:
        with client:
            yield client.get_executor(), threads
    finally:
        logging.disable(logging.NOTSET)


def _print_section(console: Console, section: Section) -> None:
    table = Table(title=section.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "published", "measured", "95%", "n", "setting", "verdict"):
        justify: Literal["left", "right"] = "right" if name in ("published", "measured", "n") else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in ("n", "verdict"))
    for claim in section.claims:
        published = format_number(claim.published)
        if claim.published_spread is not None:
            published += f" ± {format_number(claim.published_spread)}"
        table.add_row(
            claim.id,
            f"{published} {claim.unit}".strip() if claim.published is not None else "",
            format_number(claim.measured),
            format_interval(claim.low, claim.high),
            "" if claim.n is None else str(claim.n),
            claim.setting if claim.verdict != "not run" else "",
            Text(claim.verdict, style=STYLES[claim.verdict]),
        )
    console.show(table)
    console.print(Text(section.citation, style="dim"), soft_wrap=not console.is_terminal)
    for note in section.notes:
        console.print(Text(note), soft_wrap=True)
    counts = {verdict: sum(c.verdict == verdict for c in section.claims) for verdict in STYLES}
    spent = format_computing(section.seconds, section.card_seconds)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    console.say(f"{section.key}: {summary}; computing time {spent}\n")


def _print_faults(papers: Sequence[Paper], records: dict[str, list[Record]], out: Path) -> int:
    failed = [record for paper in papers for record in records[paper.key] if record.status == "failed"]
    for record in failed:
        log = out / record.paper / f"{record.key}.log"
        where = f" ({log})" if log.exists() else ""
        print(
            f"counterflow: trial {record.paper}/{record.treatment} failed: {record.reason}{where}",
            file=sys.stderr,
        )
    return 1 if failed else 0
