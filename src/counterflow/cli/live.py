"""What is seen while trials run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from counterflow.lab.report.numbers import format_seconds
from counterflow.lab.trials import Paper, Record, Trial
from counterflow.lab.trials.events import Damaged, Elsewhere, Event, Finished, Lost, Planned, Progressed, Started

__all__ = ["Display"]

RUNNING_SHOWN = 8


@dataclass
class _Running:
    trial: Trial
    started: float
    fraction: float = 0.0
    note: str = ""


@dataclass
class _Count:
    planned: tuple[Trial, ...] = ()
    done: int = 0
    reused: int = 0
    failed: int = 0
    not_run: int = 0
    expected: float = 0.0  # seconds that were expected of the settled ones
    running: dict[str, _Running] = field(default_factory=dict)

    @property
    def settled(self) -> int:
        return self.done + self.failed + self.not_run


class Display:
    """Shows the events of a run; a context manager, so that the terminal is left as it was.

    The time left is what the remaining trials are expected to take, scaled by how the finished ones compared
    with what was expected of them, and shared among ``jobs``.

    Args:
        papers: The papers that run.
        console: Where to.
        jobs: How many trials run at once.
    """

    def __init__(self, papers: Sequence[Paper], console: Console, jobs: int) -> None:
        self.counts = {paper.key: _Count() for paper in papers}
        self.console, self.jobs = console, jobs
        self.expected = self.measured = 0.0
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        """Take note of an event, and print a line where there is no table."""
        if isinstance(event, Planned):
            self.counts[event.paper].planned = event.trials
        elif isinstance(event, Started):
            self.counts[event.trial.paper].running[event.key] = _Running(event.trial, time.monotonic())
        elif isinstance(event, Progressed):
            running = self.counts[event.trial.paper].running[event.key]
            running.fraction, running.note = event.fraction, event.note
        elif isinstance(event, Finished):
            self._finished(event.trial, event.record, event.reused)
        elif isinstance(event, Lost):
            for count in self.counts.values():
                lost = [key for key, running in count.running.items() if running.trial in event.trials]
                for key in lost:
                    del count.running[key]
            names = ", ".join(trial.treatment for trial in event.trials)
            self._print(f"a worker died; starting again: {names}")
        elif isinstance(event, Elsewhere):
            self._print(
                f"another run in this folder is at work on {len(event.trials)} trials; waiting for their records"
            )
        elif isinstance(event, Damaged):
            self._print(event.message)

    def _finished(self, trial: Trial, record: Record, reused: bool) -> None:
        count = self.counts[trial.paper]
        count.running.pop(record.key, None)
        count.done += record.status == "done"
        count.failed += record.status == "failed"
        count.not_run += record.status == "not run"
        count.reused += reused
        count.expected += trial.expected_seconds
        if reused:
            return
        if record.status == "done":
            self.expected += trial.expected_seconds
            self.measured += record.seconds
        else:
            self._print(f"{trial.paper}: {trial.treatment} {record.status}: {record.reason}")
        if not self.console.is_terminal and record.status == "done":
            self._print(
                f"{trial.paper}: {count.settled} of {len(count.planned)} trials, {trial.treatment} took "
                f"{format_seconds(record.seconds)}, about {format_seconds(self.seconds_left())} left"
            )

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def seconds_left(self) -> float:
        """The time that the trials known by now will take."""
        pace = self.measured / self.expected if self.expected else 1.0
        work = 0.0
        trials = 0
        for count in self.counts.values():
            work += sum(trial.expected_seconds for trial in count.planned) - count.expected
            work -= sum(r.fraction * r.trial.expected_seconds for r in list(count.running.values()))
            trials += len(count.planned) - count.settled
        return max(0.0, work) * pace / max(1, min(self.jobs, trials))

    def table(self) -> RenderableType:
        """The table as it is now."""
        table = Table(box=None, pad_edge=False)
        for name in ("paper", "trials", "", "reused", "failed", "not run"):
            table.add_column(name, justify="left" if name in ("paper", "") else "right")
        rows = []
        for key, count in self.counts.items():
            total = max(len(count.planned), 1)
            bar = ProgressBar(total, count.settled + sum(r.fraction for r in list(count.running.values())), 30)
            numbers = [count.reused, count.failed, count.not_run]
            table.add_row(key, f"{count.settled}/{len(count.planned)}", bar, *(str(n) if n else "" for n in numbers))
            rows += [(key, running) for running in list(count.running.values())]
        lines: list[RenderableType] = [table]
        for key, running in rows[:RUNNING_SHOWN]:
            took = format_seconds(round(time.monotonic() - running.started))
            part = f"{running.fraction:4.0%}" if running.fraction else "    "
            lines.append(Text(f"  {part} {key} {running.trial.treatment} {took} {running.note}", style="dim"))
        if len(rows) > RUNNING_SHOWN:
            lines.append(Text(f"  and {len(rows) - RUNNING_SHOWN} more", style="dim"))
        lines.append(Text(f"about {format_seconds(round(self.seconds_left()))} left"))
        return Group(*lines)
