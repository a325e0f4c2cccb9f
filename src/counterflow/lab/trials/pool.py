"""The processes of this machine that run trials."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from counterflow.lab.trials.trial import Context, Device, Outcome, Trial
from counterflow.lab.trials.worker import Answer, execute, prepare_worker

__all__ = ["LocalPool", "cores"]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalPool:
    """Processes of this machine, which can be started again when one of them was killed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._executor: ProcessPoolExecutor | None = None

    def submit(
        self,
        run: Callable[[Trial, Context], Outcome],
        trial: Trial,
        checksums: Mapping[str, str],
        folder: Path,
        device: Device,
    ) -> Future[Answer]:
        """Run a trial in one of the processes, which are started when the first trial comes."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.size, mp_context=multiprocessing.get_context("spawn"), initializer=prepare_worker
            )
        # A new process inherits the mask, and so leaves Ctrl-C to this one from its first instant.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._executor.submit(execute, run, trial, checksums, folder, os.getpid(), device)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def kill(self) -> None:
        """End the processes at once, whatever they are doing; the next trial starts new ones."""
        if self._executor is not None:
            for process in list((self._executor._processes or {}).values()):
                process.kill()
            self.close()

    def close(self) -> None:
        """End the processes when their trials are done."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._executor = None
