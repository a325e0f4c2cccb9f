"""What happens in the process that runs a trial: one thread, and every fault brought home as text."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from counterflow.exceptions import DataNotFoundError, MissingExtraError
from counterflow.lab.trials.lock import let_go, take
from counterflow.lab.trials.record import Numbers, Status, environment, settle
from counterflow.lab.trials.trial import Context, Device, Outcome, Trial

__all__ = ["Answer", "execute", "last_line", "prepare_worker"]

ORPHAN_SECONDS = 5.0  # a worker of this machine whose run was killed is gone well before


@dataclass(frozen=True)
class Answer:
    """What a worker sends back: plain values, so that no exception has to survive pickling."""

    status: Status
    reason: str
    log: str
    seconds: float
    environment: dict[str, str | int | None]
    metrics: dict[str, Numbers] = field(default_factory=dict)
    curves: dict[str, Numbers] = field(default_factory=dict)


def prepare_worker() -> None:
    """Make a process of the local pool leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A pool's worker holds both ends of its queue, so it would wait forever for a parent that was killed.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _use_one_thread()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _use_one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # read by libraries that are loaded from here on
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextlib.contextmanager
def _exact(device: Device) -> Iterator[None]:
    """Have a graphics card add in one order and in all of float32's digits, as the CPU does, for one trial.

    The worker's next trial may be one that is timed on the CPU, which must not pay for it.
    """
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is asked for
    import torch

    cudnn, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, products


def last_line(error: BaseException) -> str:
    """The kind and message of an exception, on one line."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


@contextlib.contextmanager
def _at_work(folder: Path) -> Iterator[Path]:
    """The trial's folder, for this worker alone; a passing one where it is not to be had.

    It is not on another machine that shares no disk, nor while a worker that outlived its run still has it.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    lock = None
    while folder.is_dir() and (lock := take(folder, ".worker")) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if lock is None:
        with tempfile.TemporaryDirectory(prefix="counterflow-", ignore_cleanup_errors=True) as passing:
            yield Path(passing)
        return
    try:
        yield folder
    finally:
        let_go(lock)


def _require_data(checksums: Mapping[str, str]) -> None:
    """See to it that a trial will load here what its record names: another machine may hold another form of a set."""
    if not checksums:
        return
    from counterflow.lab.data import checksum  # slow to import; many a trial reads no data

    for name, named in checksums.items():
        found = checksum(name)
        if found != named:
            raise DataNotFoundError(
                f"the data set {name} of this worker has the checksum {found}, and the run's has {named}; give all "
                "machines the same form of it (`counterflow data where` shows which one is used)"
            )


def execute(
    run: Callable[[Trial, Context], Outcome],
    trial: Trial,
    checksums: Mapping[str, str],
    folder: Path,
    parent: int,
    device: Device = "cpu",
) -> Answer:
    """Run one trial and say what became of it; it raises nothing.

    Args:
        run: The paper's function.
        trial: The trial.
        checksums: Name to checksum of the trial's data, as the record will have them.
        folder: The folder for the trial's checkpoint, which the parent has made, on a disk that it may not share.
        parent: The parent's process id: a trial in that very process leaves its threads alone.
        device: Where the trial is to run, if it is movable.
    """
    if os.getpid() != parent:
        _use_one_thread()
        above = multiprocessing.parent_process()
        if above is not None and not above.is_alive():
            os._exit(1)  # the run was killed while this worker started; the next run may have done the trial by now
    device = device if trial.movable else "cpu"
    context: Context | None = None
    status: Status = "failed"
    log = ""
    metrics: dict[str, Numbers] = {}
    curves: dict[str, Numbers] = {}
    try:
        _require_data(checksums)
        with _at_work(folder) as place, _exact(device):
            context = Context(place, device)
            metrics, curves = settle(trial, run(trial, context))
        status, reason = "done", ""
    except (DataNotFoundError, MissingExtraError) as error:
        status, reason = "not run", str(error)
    except Exception as error:
        reason = last_line(error)
        log = traceback.format_exc()
    seconds = 0.0 if context is None else context.seconds
    return Answer(status, reason, log, seconds, environment(device), metrics, curves)
