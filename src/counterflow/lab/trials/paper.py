"""What a paper gives the lab, and where the papers are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from counterflow.exceptions import InputError
from counterflow.lab.trials.claim import Claim, Digest, read_claims, read_digest
from counterflow.lab.trials.record import Record
from counterflow.lab.trials.trial import Context, Outcome, Trial
from counterflow.lab.trials.verdict import ClaimResult, Measurement

__all__ = ["Paper", "Profile", "claims_of", "digest_of", "load_paper", "paper_keys", "part_of"]

Profile = Literal["smoke", "laptop", "paper"]


@dataclass(frozen=True)
class Paper:
    """A paper: its trials, how one is run, and what its claims are measured from.

    Its folder ``counterflow/lab/papers/<key>/`` holds ``published.toml`` (its title and claims) and ``experiment.py``,
    which names it ``PAPER``. Every function sees the records of finished trials only; of those that failed
    or could not run the lab itself tells the reader.

    Args:
        key: The name of its folder, such as ``"tempering"``.
        revision: Bumped by hand when an experiment's meaning changes: records of an earlier one are then
            not used any more.
        trials: From the profile and the records so far to *all* trials known now. Pure. A run calls it again
            when all the trials it named have a record, so a second stage (fresh seeds at the best rate) may
            follow from the first; plans and reports call it with a part of them too, and a later stage is
            to be named only where all that it follows from is there.
        run: One trial. A pure function of the trial; it sits at module level, so that it can be pickled by
            reference.
        measure: From the profile and the records to one measurement a claim.
        exhibits: Figures and tables for the report (`counterflow.lab.report`).
    """

    key: str
    revision: int
    trials: Callable[[Profile, Sequence[Record]], Sequence[Trial]]
    run: Callable[[Trial, Context], Outcome]
    measure: Callable[[Profile, Sequence[Record]], Mapping[str, Measurement]]
    exhibits: Callable[[Profile, Sequence[Record], Sequence[ClaimResult]], Sequence[object]]


def paper_keys() -> tuple[str, ...]:
    """The keys of all papers in the lab, in alphabetical order.

    Returns:
        The folders of ``counterflow.lab.papers`` that hold a ``published.toml``.
    """
    return tuple(sorted(_folders()))


def _folders() -> dict[str, Path]:
    package = importlib.import_module("counterflow.lab.papers")
    folders = {}
    for module in pkgutil.iter_modules(package.__path__):
        for root in package.__path__:
            folder = Path(root) / module.name
            if (folder / "published.toml").is_file():
                folders[module.name] = folder
    return folders


def _require_known(key: str) -> None:
    known = paper_keys()
    if key not in known:
        raise InputError(f"there is no paper {key!r} here; known are {', '.join(known) or 'none'}")


def load_paper(key: str) -> Paper:
    """Import a paper by its key.

    Args:
        key: As `paper_keys` has it.

    Raises:
        InputError: There is no such paper.
    """
    _require_known(key)
    paper: Paper = importlib.import_module(f"counterflow.lab.papers.{key}.experiment").PAPER
    return paper


def part_of(paper: Paper, profile: Profile, only: str) -> Paper:
    """A paper of which only some trials are run.

    Args:
        paper: The paper.
        profile: In what size it is run.
        only: Which treatments, as a pattern: ``*`` stands for any letters.

    Returns:
        The paper, with the trials of these treatments alone. One that follows from a trial of another treatment is not
        among them, since that one is not run.

    Raises:
        InputError: No treatment that is known before any trial has run is like that.

    Example:
        >>> paper = part_of(load_paper("variational"), "laptop", "table 1 *")
        >>> sorted({trial.treatment for trial in paper.trials("laptop", [])})
        ['table 1 a', 'table 1 b']
    """

    def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
        return [trial for trial in paper.trials(profile, records) if fnmatchcase(trial.treatment, only)]

    if not trials(profile, []):
        known = ", ".join(sorted({trial.treatment for trial in paper.trials(profile, [])}))
        raise InputError(f"no treatment of {paper.key} is like {only!r}; there are {known}")
    return replace(paper, trials=trials)


def claims_of(key: str) -> tuple[Claim, ...]:
    """The claims in a paper's ``published.toml``.

    Args:
        key: As `paper_keys` has it.

    Raises:
        InputError: There is no such paper, or a claim in the file is malformed.
    """
    _require_known(key)
    return read_claims(_folders()[key] / "published.toml")


def digest_of(key: str) -> Digest:
    """What a paper says in a few words, and which claims carry it.

    Args:
        key: As `paper_keys` has it.

    Raises:
        InputError: There is no such paper, or its file is malformed.
    """
    _require_known(key)
    return read_digest(_folders()[key] / "published.toml")
