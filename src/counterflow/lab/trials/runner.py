"""Running the trials of papers: longest first, resumable, on any executor.

Only this process writes records. Whatever stops it (Ctrl-C, kill -9, a lost machine), the finished records
are on disk, and the same call goes on from there: it repeats the trials that were in flight and no others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from counterflow.exceptions import CounterflowError, DataNotFoundError, InputError, RecordError
from counterflow.lab.trials.events import Damaged, Elsewhere, Event, Finished, Lost, Planned, Progressed, Started
from counterflow.lab.trials.lock import discard, let_go, take
from counterflow.lab.trials.paper import Paper, Profile
from counterflow.lab.trials.pool import LocalPool, cores
from counterflow.lab.trials.record import (
    ENVIRONMENTS,
    FORMAT_VERSION,
    Record,
    canonical,
    commit,
    environment,
    environment_key,
    probe_folder,
    read_record,
    remove_leftovers,
    trial_key,
    write_record,
    write_whole,
)
from counterflow.lab.trials.trial import PROGRESS_FILE, Device, Trial
from counterflow.lab.trials.worker import Answer, execute, last_line

__all__ = ["require_writable", "run"]

RESTARTS = 3
POLL_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class _Job:
    """A trial on its way, with all that its record needs."""

    paper: Paper
    trial: Trial
    checksums: dict[str, str]
    key: str
    missing: str = ""  # why its data's checksum is unknown

    def path(self, out: Path) -> Path:
        return out / self.paper.key / f"{self.key}.json"

    def folder(self, out: Path) -> Path:
        return self.path(out).with_suffix(".part")


def _job(paper: Paper, trial: Trial) -> _Job:
    if trial.paper != paper.key:
        raise InputError(f"{trial} was named by the paper {paper.key!r}")
    from counterflow.lab.data import checksum  # slow to import; many a run has all its records

    missing = ""
    checksums = {}
    for name in trial.data:
        try:
            checksums[name] = checksum(name)
        except DataNotFoundError as error:
            checksums[name], missing = "missing", str(error)
    return _Job(paper, trial, checksums, trial_key(trial, paper.revision, checksums), missing)


def require_writable(out: Path) -> None:
    """Make the folder of runs and try to write there, before anything is computed.

    Raises:
        RecordError: It cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe_folder(out)
    except OSError as error:
        raise RecordError(f"{out} cannot be written: {error.strerror or error}") from error


def require_device(device: Device, papers: Sequence[Paper], profile: Profile, here: bool = True) -> None:
    """See to it that a device is there, and that a trial can use it, before anything is computed.

    Args:
        device: Where movable trials are to run.
        papers: Of which one at least has such a trial.
        profile: In what size.
        here: Whether it is this machine's device; a cluster's is looked for by each trial.

    Raises:
        InputError: It is not so.
    """
    if device == "cpu":
        return
    if not any(trial.movable for paper in papers for trial in paper.trials(profile, [])):
        keys = ", ".join(paper.key for paper in papers)
        raise InputError(f"--device {device}: no trial of {keys} can leave the CPU; leave --device out")
    import torch  # slow to import, and needed here only

    if here and not torch.cuda.is_available():
        raise InputError(f"--device {device}: PyTorch finds no such device here; leave --device out")


def outstanding(paper: Paper, profile: Profile, out: Path) -> list[Trial]:
    """What a run would have to compute, as far as it is known before any of it is: later trials may follow from it.

    Args:
        paper: Whose trials.
        profile: In what size.
        out: The folder of runs, with the records that are there.
    """
    records: dict[str, Record] = {}
    while True:
        jobs = {job.key: job for job in (_job(paper, trial) for trial in paper.trials(profile, _done(records)))}
        done: dict[str, Record] = {}
        for key, job in jobs.items():
            with contextlib.suppress(RecordError):  # missing, or damaged: it will have to run
                record = read_record(job.path(out))
                if record.status == "done":
                    done[key] = record
        if set(done) <= set(records):
            return [job.trial for key, job in jobs.items() if key not in done and not job.missing]
        records |= done


def _files() -> int:
    """How many files this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _take(folder: Path) -> int | None:
    """This run's lock on a trial, as `take` has it."""
    try:
        folder.parent.mkdir(exist_ok=True)
        return take(folder, ".run")
    except OSError as error:
        raise RecordError(f"{folder} cannot be written: {error.strerror or error}") from error


def _free(path: Path) -> Path:
    """A path that is not taken: this one, or one with a number behind it."""
    names = itertools.chain([path], (path.with_name(f"{path.name}{number}") for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _done(records: Mapping[str, Record]) -> list[Record]:
    return [record for record in records.values() if record.status == "done"]


def run(
    papers: Sequence[Paper],
    profile: Profile,
    out: Path,
    *,
    executor: Executor | None = None,
    jobs: int | Callable[[], int] | None = None,
    device: Device = "cpu",
    on_event: Callable[[Event], None] = lambda event: None,
) -> dict[str, list[Record]]:
    """Run all trials of some papers that have no record yet.

    Trials that are expected to be longest go first; exclusive ones run alone, after the others. A trial that
    fails or lacks its data gets a record that says so, and stops no other. Where a worker of the local pool
    dies, the pool and the trials that were running start again, each at most three times. Two runs in the same
    folder share the work: a trial that the other is at work on is left to it, and its record is waited for.

    Args:
        papers: The papers.
        profile: Which size of them.
        out: The folder of runs; records that are there are reused.
        executor: Where trials run; a pool of processes, one thread each, by default.
        jobs: How many run at once; by default all cores of this machine, or all that the executor takes. A
            function is asked again and again, for a cluster that grows; it needs an executor.
        device: Where movable trials run; all others run on the CPU.
        on_event: Called in this thread with what happens.

    Returns:
        Key of the paper to its records, of every status, in the order of its trials.

    Raises:
        RecordError: The folder cannot be written.
        InputError: ``jobs`` is not positive.
        CounterflowError: The executor that was given broke down.
        KeyboardInterrupt: Ctrl-C. What is finished is recorded; the same call goes on from there.
    """
    if isinstance(jobs, int) and jobs < 1:
        raise InputError(f"jobs is {jobs}, and has to be 1 or more")
    out = out.absolute()  # a worker may have another working directory
    require_writable(out)
    if callable(jobs) and executor is None:
        raise InputError("jobs is a function, and only an executor that was given can grow; give a number")
    pool = LocalPool(jobs if isinstance(jobs, int) else cores()) if executor is None else None
    work = _Work(papers, profile, out, executor, pool, on_event, jobs, device)
    try:
        work.go()
    except BaseException:
        if pool is not None:
            pool.kill()
        raise
    finally:
        for lock in work.locks.values():
            let_go(lock)
    if pool is not None:
        pool.close()
    for paper in papers:
        remove_leftovers(out / paper.key)
    remove_leftovers(out / ENVIRONMENTS)
    remove_leftovers(out)
    return {paper.key: list(work.records[paper.key].values()) for paper in papers}


class _Work:
    """The state of one call of `run`."""

    def __init__(
        self,
        papers: Sequence[Paper],
        profile: Profile,
        out: Path,
        executor: Executor | None,
        pool: LocalPool | None,
        on_event: Callable[[Event], None],
        jobs: int | Callable[[], int] | None,
        device: Device,
    ) -> None:
        self.papers, self.profile, self.out = papers, profile, out
        self.executor, self.pool, self.on_event = executor, pool, on_event
        self.jobs, self.device = jobs, device
        self.records: dict[str, dict[str, Record]] = {paper.key: {} for paper in papers}
        self.waiting: list[_Job] = []
        self.flying: dict[Future[Answer], _Job] = {}
        self.deaths: Counter[str] = Counter()
        self.locks: dict[str, int] = {}  # of the trials that are this run's, by key
        self.broken = False  # a worker of the pool died between two trials
        self.told = False  # that another run is waited for
        self.news: set[str] = set()  # the papers that have new records since they were last asked

    def go(self) -> None:
        for paper in self.papers:
            self.plan(paper)
        while self.waiting or self.flying:
            self.submit()
            if self.flying or self.broken:
                self.gather()
            elif self.waiting:
                self.wait_for_others()
            busy = {job.paper.key for job in (*self.waiting, *self.flying.values())}
            for paper in self.papers:
                if paper.key in self.news and paper.key not in busy:
                    self.plan(paper)

    def plan(self, paper: Paper) -> None:
        """Ask the paper for its trials until one has to run, or none is new."""
        records = self.records[paper.key]
        while True:
            trials = paper.trials(self.profile, _done(records))
            jobs = {job.key: job for job in (_job(paper, trial) for trial in trials)}
            new = [job for key, job in jobs.items() if key not in records]
            if not new:
                self.news.discard(paper.key)
                # in the order of the trials, without those that a later stage no longer names
                self.records[paper.key] = {key: records[key] for key in jobs}
                return
            self.on_event(Planned(paper.key, tuple(job.trial for job in jobs.values())))
            for job in new:
                record = self.find(job)
                if record is not None:
                    self.reuse(job, record)
                elif job.missing:
                    self.finish(job, Answer("not run", job.missing, "", 0.0, environment()))
                else:
                    self.waiting.append(job)
            self.waiting.sort(key=lambda job: -job.trial.expected_seconds)
            if any(job.paper is paper for job in self.waiting):
                return

    def find(self, job: _Job) -> Record | None:
        """The trial's finished record, if there is one; a damaged one is set aside once the trial is this run's."""
        path = job.path(self.out)
        if not path.exists():
            return None
        try:
            record = read_record(path)
        except RecordError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None  # another run has just set it aside
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, IsADirectoryError):
                raise  # the file may be whole, and only out of reach
            if job.key in self.locks:
                aside = _free(path.with_suffix(".damaged"))
                try:
                    os.replace(path, aside)
                except OSError as fault:
                    raise RecordError(f"{path} cannot be set aside: {fault.strerror or fault}") from fault
                self.on_event(Damaged(f"{error}; kept as {aside.name}, and its trial runs again"))
            return None
        return record if record.status == "done" else None

    def reuse(self, job: _Job, record: Record) -> None:
        """Take a record that is there, and clear away what a run that was killed left beside it."""
        folder = job.folder(self.out)
        lock = self.locks.pop(job.key, None)
        if lock is None and folder.is_dir():
            lock = _take(folder)
        if lock is not None:
            discard(folder)
            let_go(lock)
        job.path(self.out).with_suffix(".log").unlink(missing_ok=True)
        self.records[job.paper.key][job.key] = record
        self.news.add(job.paper.key)
        self.on_event(Finished(record, job.trial, reused=True))

    def claim(self, job: _Job) -> bool:
        """Make the trial this run's, unless it is another's."""
        if job.key not in self.locks:
            lock = _take(job.folder(self.out))
            if lock is None:
                return False
            self.locks[job.key] = lock
        return True

    def wait_for_others(self) -> None:
        """Wait a moment for another run in the same folder, which is at work on all that is left."""
        if not self.told:
            self.told = True
            self.on_event(Elsewhere(tuple(job.trial for job in self.waiting)))
        time.sleep(POLL_SECONDS)

    def alone(self, job: _Job) -> bool:
        # Two deaths, and nobody knows whose fault it was: it goes on without neighbors.
        return job.trial.exclusive or self.deaths[job.key] >= 2

    def window(self) -> int:
        """How many trials may be in flight."""
        if self.pool is not None:
            return self.pool.size  # no more than run at once: so it is known who was running when a worker died
        jobs = max(1, self.jobs()) if callable(self.jobs) else self.jobs
        return min(jobs or sys.maxsize, _files() // 2)  # every trial in flight holds a lock, and so an open file

    def submit(self) -> None:
        if any(self.alone(job) for job in self.flying.values()):
            return
        ready, window = [job for job in self.waiting if not self.alone(job)], self.window()
        if not ready and not self.flying:
            ready, window = list(self.waiting), 1
        for job in ready:
            if len(self.flying) >= window:
                return
            if not self.claim(job):
                continue
            record = self.find(job)  # another run may have finished it since
            if record is not None:
                self.waiting.remove(job)
                self.reuse(job, record)
                continue
            folder = job.folder(self.out)
            (folder / PROGRESS_FILE).unlink(missing_ok=True)
            try:
                if self.pool is not None:
                    future = self.pool.submit(job.paper.run, job.trial, job.checksums, folder, self.device)
                else:
                    assert self.executor is not None
                    what = (job.paper.run, job.trial, job.checksums, folder, os.getpid(), self.device)
                    future = self.executor.submit(execute, *what)
            except BrokenProcessPool:
                self.broken = True
                return
            except (OSError, RuntimeError) as error:
                raise CounterflowError(f"the executor takes no more trials: {error}") from error
            self.waiting.remove(job)
            self.flying[future] = job
            self.on_event(Started(job.key, job.trial))

    def gather(self) -> None:
        """Wait a moment, and record what has come back."""
        back, _ = wait(self.flying, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        lost = []
        for future in back:
            job = self.flying.pop(future)
            try:
                answer = future.result()
            except (BrokenExecutor, CancelledError) as error:
                if self.pool is None:  # a cluster cancels what it has lost sight of; nobody else does
                    gone = isinstance(error, CancelledError)
                    reason = "it let go of its trials; is the scheduler gone?" if gone else last_line(error)
                    raise CounterflowError(
                        f"the executor broke down ({reason}); finished trials are recorded, and the same command "
                        "goes on from there"
                    ) from error
                lost.append(job)
            except Exception as error:
                log = "".join(traceback.format_exception(error))
                self.finish(job, Answer("failed", last_line(error), log, 0.0, environment()))
            else:
                self.finish(job, answer)
        if lost or self.broken:
            self.restart(lost)
        for job in self.flying.values():
            self.report_progress(job)

    def restart(self, lost: list[_Job]) -> None:
        """Start the pool again, and the trials that a dead worker took with it."""
        assert self.pool is not None
        for future in wait(self.flying, timeout=60).done:  # a broken pool breaks all its futures
            job = self.flying.pop(future)
            if future.exception() is None:
                self.finish(job, future.result())
            else:
                lost.append(job)
        self.pool.kill()
        self.broken = False
        again = []
        for job in lost:
            self.deaths[job.key] += 1
            if self.deaths[job.key] > RESTARTS:
                reason = f"its worker died {self.deaths[job.key]} times (killed, or out of memory)"
                self.finish(job, Answer("failed", reason, "", 0.0, environment()))
            else:
                again.append(job)
        self.waiting = sorted(self.waiting + again, key=lambda job: -job.trial.expected_seconds)
        if again:
            self.on_event(Lost(tuple(job.trial for job in again)))

    def finish(self, job: _Job, answer: Answer) -> None:
        """Write the record of a trial, and clear away what it needed on its way."""
        record = Record(
            format_version=FORMAT_VERSION,
            key=job.key,
            paper=job.paper.key,
            treatment=job.trial.treatment,
            seeds=job.trial.seeds,
            settings=json.loads(canonical(job.trial.settings)),  # as it is when it is read again
            data=job.checksums,
            revision=job.paper.revision,
            profile=self.profile,
            commit=commit(),
            environment=environment_key(answer.environment),
            status=answer.status,
            reason=answer.reason,
            seconds=round(answer.seconds, 3),
            metrics=answer.metrics,
            curves=answer.curves,
        )
        log = job.path(self.out).with_suffix(".log")
        # Where the file system knows no locks, another run may have been quicker, and have cleared away the folder.
        other = self.find(job) if answer.status == "failed" else None
        if other is not None:
            record = other
        elif not job.missing:  # without the data's checksum the record has no lasting name
            if answer.log:
                write_whole(log, answer.log.encode())
            write_record(self.out, record, answer.environment)
        if record.status == "done":
            log.unlink(missing_ok=True)
        lock = self.locks.pop(job.key, None)
        if lock is not None:
            discard(job.folder(self.out))
            let_go(lock)
        self.records[job.paper.key][job.key] = record
        self.news.add(job.paper.key)
        self.on_event(Finished(record, job.trial, reused=other is not None))

    def report_progress(self, job: _Job) -> None:
        try:
            told = json.loads((job.folder(self.out) / PROGRESS_FILE).read_bytes())
            progressed = Progressed(job.key, job.trial, float(told["fraction"]), str(told["note"]))
        except (OSError, ValueError, TypeError, KeyError):
            return  # there is none yet, or it is damaged; it is only a display
        self.on_event(progressed)
