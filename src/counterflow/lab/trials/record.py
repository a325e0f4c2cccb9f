"""Records: one JSON file a trial, named by the hash of what determines its result.

``<out>/<paper>/<key>.json`` holds the record, ``<out>/environments/<hash>.json`` what it ran in. The key is
the hash of (format, paper, treatment, seeds, settings, the data's checksums, the paper's revision); where and
when it ran is stored, not hashed. Every file appears whole or not at all: it is written to a temporary name
in the same folder, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gzip
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import msgspec

import counterflow
from counterflow.exceptions import InputError, RecordError
from counterflow.lab.trials.trial import Device, Outcome, Trial

__all__ = [
    "FORMAT_VERSION",
    "Record",
    "Status",
    "environment",
    "pack",
    "read_environments",
    "read_record",
    "trial_key",
    "unpack",
    "write_record",
]

FORMAT_VERSION = 1
ENVIRONMENTS = "environments"
TEMPORARY = ".counterflow.tmp"
LONGEST = 16 * 2**20  # bytes of a line of packed records, some twenty times the longest in evidence/

Status = Literal["done", "failed", "not run"]
Numbers: TypeAlias = tuple[float | None, ...]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one trial after it ran, or why it did not.

    Attributes:
        format_version: Version of this layout.
        key: Hash of everything that determines the result; also the file's name.
        paper: Key of the paper.
        treatment: What was tried.
        seeds: The seeds, in the order of the metrics.
        settings: Everything else that changes the result.
        data: Name to checksum of the data sets that it reads.
        revision: The paper's revision.
        profile: The profile that it was first run for. Not part of the hash.
        commit: Commit of the checkout, ``-dirty`` where it had changes; null outside one. Not hashed.
        environment: Hash of the environment that it ran in. Not part of the hash.
        status: ``"done"``; ``"failed"`` and ``"not run"`` are tried again by the next run.
        reason: Why it failed or did not run.
        seconds: Wall-clock seconds of the trial; those of attempts that were killed count to their last progress.
        metrics: One value a seed; null where there is none.
        curves: Whatever is drawn.
    """

    format_version: int
    key: str
    paper: str
    treatment: str
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    data: dict[str, str]
    revision: int
    profile: str
    commit: str | None
    environment: str
    status: Status
    reason: str
    seconds: float
    metrics: dict[str, Numbers]
    curves: dict[str, Numbers]


def canonical(value: object) -> bytes:
    """JSON in one form only: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()[:20]


def trial_key(trial: Trial, revision: int, checksums: Mapping[str, str]) -> str:
    """The name of a trial's record.

    Args:
        trial: The trial; its ``expected_seconds``, ``exclusive`` and ``movable`` do not enter.
        revision: The paper's revision.
        checksums: Name to checksum of the trial's data.

    Returns:
        20 hexadecimal digits of a SHA-256.

    Example:
        >>> trial = Trial("toy", "a", seeds=(0,), settings={"rate": 0.1, "size": 3})
        >>> same = Trial("toy", "a", seeds=(0,), settings={"size": 3, "rate": 0.1}, expected_seconds=60.0)
        >>> trial_key(trial, 1, {}) == trial_key(same, 1, {})
        True
        >>> trial_key(trial, 1, {}) == trial_key(trial, 2, {})
        False
    """
    return _key(trial.paper, trial.treatment, trial.seeds, trial.settings, dict(checksums), revision)


def _key(
    paper: str,
    treatment: str,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    data: Mapping[str, str],
    revision: int,
) -> str:
    return _digest([FORMAT_VERSION, paper, treatment, list(seeds), settings, data, revision])


def environment(device: Device = "cpu") -> dict[str, str | int | None]:
    """What a trial runs in: versions, processor, threads. No host, user or path names.

    Args:
        device: Where its tensors are; of a graphics card the name is added.

    Returns:
        Name to value; a package that is not installed is ``None``.
    """
    versions = {name: _version(name) for name in ("counterflow", "numba", "numpy", "torch")}
    card = {} if device == "cpu" else {"graphics card": _graphics_card()}
    return {
        "python": platform.python_version(),
        **versions,
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": _threads(),
        **card,
    }


def environment_key(description: Mapping[str, object]) -> str:
    """The name of an environment's file."""
    return _digest(description)


def _threads() -> int | None:
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else os.cpu_count()


def _graphics_card() -> str | None:
    import torch  # loaded already: the trial has run on it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _processor() -> str:
    """The processor's model name, which `platform` does not know on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that the package runs from, or ``None`` if it was installed."""
    package = Path(counterflow.__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "counterflow" != package:
            return None  # installed below somebody else's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def settle(trial: Trial, outcome: object) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """The metrics and curves of an outcome as plain numbers, or an error that says what is wrong with it.

    Raises:
        InputError: It is no outcome, a metric does not have one value a seed, or one is not finite.
    """
    if not isinstance(outcome, Outcome):
        raise InputError(f"the trial's function returned a {type(outcome).__name__}, not an Outcome")
    for name, values in outcome.metrics.items():
        if len(values) != len(trial.seeds):
            raise InputError(f"metric {name!r} has {len(values)} values for {len(trial.seeds)} seeds")
        for value in values:
            if value is not None and not math.isfinite(value):
                raise InputError(f"metric {name!r} holds {value}; a seed without a value is None")
    metrics = {name: _numbers(values) for name, values in outcome.metrics.items()}
    return metrics, {name: _numbers(values) for name, values in outcome.curves.items()}


def _numbers(values: Iterable[float | None]) -> Numbers:
    # float() takes NumPy's and torch's scalars too, which JSON would not
    return tuple(float(v) if v is not None and math.isfinite(v) else None for v in values)


def temporary_name(path: Path) -> Path:
    """A name beside a file or folder that nobody else uses; `remove_leftovers` knows it."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"


def _locked(partial: Path) -> BinaryIO:
    """A new file that `remove_leftovers` leaves alone as long as it is open."""
    while True:
        stream = partial.open("xb")
        with contextlib.suppress(OSError):  # where there are no locks, leftovers stay
            fcntl.flock(stream, fcntl.LOCK_EX)
        if partial.exists():
            return stream
        stream.close()  # it was taken for a leftover before it was locked


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops.

    Raises:
        RecordError: The folder cannot be written.
    """
    partial = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(partial) as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror or error}") from error


def probe_folder(folder: Path) -> None:
    """Try to write in a folder, and leave nothing there whatever happens.

    Raises:
        OSError: It cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(bytes(4096))
        stream.flush()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that are gone: those that nobody has locked."""
    for partial in folder.glob(f".*.{'[0-9a-f]' * 8}{TEMPORARY}"):
        if partial.is_dir():  # nobody works in a folder of such a name
            shutil.rmtree(partial, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), partial.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def write_record(out: Path, record: Record, description: Mapping[str, object]) -> Path:
    """Write a record and the environment it ran in.

    Args:
        out: The folder of runs.
        record: The record.
        description: The environment, as `environment` has it.

    Raises:
        RecordError: The folder cannot be written.
    """
    described = out / ENVIRONMENTS / f"{record.environment}.json"
    content = json.dumps(description, indent=1, sort_keys=True).encode() + b"\n"
    there = None
    with contextlib.suppress(OSError):
        there = described.read_bytes()
    if there != content:  # a damaged one is mended
        write_whole(described, content)
    path = out / record.paper / f"{record.key}.json"
    write_whole(path, msgspec.json.encode(record) + b"\n")
    return path


def _checked(content: bytes | str, name: str) -> Record:
    record = msgspec.json.decode(content, type=Record)
    if record.format_version != FORMAT_VERSION:
        raise ValueError(f"its format is {record.format_version}, and this is {FORMAT_VERSION}")
    key = _key(record.paper, record.treatment, record.seeds, record.settings, record.data, record.revision)
    if not key == record.key == name:
        raise ValueError("its content does not match its name")
    if any(len(values) != len(record.seeds) for values in record.metrics.values()):
        raise ValueError("a metric does not have one value a seed")
    return record


def read_record(path: Path) -> Record:
    """Read one record and check it against its name.

    Args:
        path: The file.

    Raises:
        RecordError: It cannot be read, is no record, or its content does not match its name.
    """
    try:
        return _checked(path.read_bytes(), path.stem)
    except IsADirectoryError as error:
        raise RecordError(f"{path} is damaged: it is a folder") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error


def read_environments(out: Path) -> dict[str, dict[str, Any]]:
    """The environments of a folder of runs, by hash; damaged ones are left out.

    Args:
        out: The folder of runs.
    """
    found = {}
    for path in sorted((out / ENVIRONMENTS).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            description = json.loads(path.read_bytes())
            if isinstance(description, dict) and environment_key(description) == path.stem:
                found[path.stem] = description
    return found


def pack(records: Iterable[Record], environments: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write records into one compressed file, such as ``evidence/tempering/laptop.jsonl.gz``.

    The same records give the same bytes: sorted by key, without a time stamp. The environments that they
    name come first, one a line.

    Args:
        records: The records.
        environments: Their environments, as `read_environments` has them.
        path: The file.

    Raises:
        RecordError: An environment is missing, a record is too long, or the file cannot be written.
    """
    ordered = sorted(records, key=lambda record: record.key)
    lines = []
    for name in sorted({record.environment for record in ordered}):
        if name not in environments:
            raise RecordError(f"{path}: the environment {name} of a record is missing")
        lines.append(canonical({"environment": name, "description": environments[name]}))
    for record in ordered:
        lines.append(msgspec.json.encode(record))
        if len(lines[-1]) >= LONGEST:
            raise RecordError(f"{path}: record {record.key} has {len(lines[-1]):,} bytes; {LONGEST:,} are the most")
    write_whole(path, gzip.compress(b"".join(line + b"\n" for line in lines), mtime=0))
    return path


def unpack(path: Path) -> tuple[list[Record], dict[str, dict[str, Any]]]:
    """Read what `pack` wrote.

    Args:
        path: The file.

    Returns:
        The records, sorted by key, and the environments by hash.

    Raises:
        RecordError: The file cannot be read or is damaged; the line is named.
    """
    records: list[Record] = []
    environments: dict[str, dict[str, Any]] = {}
    number = 0
    try:
        for number, line in enumerate(_lines(path), start=1):  # noqa: B007  the error names it
            if len(line) > LONGEST:
                raise ValueError(f"it has more than {LONGEST:,} bytes, and no record has as many")
            entry = json.loads(line.decode())
            if "description" in entry:
                if environment_key(entry["description"]) != entry["environment"]:
                    raise ValueError("an environment does not match its hash")
                environments[entry["environment"]] = entry["description"]
            else:
                records.append(_checked(line, entry["key"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise RecordError(f"{path}, line {number}, is damaged: {error}") from error
    return records, environments


def _lines(path: Path) -> Iterator[bytes]:
    """The lines, of which one that is too long is cut: a megabyte can unpack to a gigabyte."""
    with gzip.open(path, "rb") as stream:
        while line := stream.readline(LONGEST + 1):
            yield line
