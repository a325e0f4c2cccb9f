"""Trials, records and verdicts: what the lab runs, what it keeps, and what it concludes."""

from __future__ import annotations

from counterflow.exceptions import MissingExtraError

try:
    import msgspec as _msgspec  # noqa: F401  the whole lab rests on it, and it comes with an extra
except ImportError as error:
    raise MissingExtraError("lab", "the lab") from error

from counterflow.lab.trials.claim import Change, Claim, Digest, Kind, read_claims
from counterflow.lab.trials.finding import available, common, find, so_far
from counterflow.lab.trials.paper import Paper, Profile, claims_of, digest_of, load_paper, paper_keys, part_of
from counterflow.lab.trials.record import Record, Status, pack, read_environments, read_record, unpack
from counterflow.lab.trials.runner import outstanding, require_device, require_writable, run
from counterflow.lab.trials.trial import Context, Device, Json, Outcome, Trial
from counterflow.lab.trials.verdict import ClaimResult, Group, Measurement, Setting, Verdict, judge

__all__ = [
    "Change",
    "Claim",
    "ClaimResult",
    "Context",
    "Device",
    "Digest",
    "Group",
    "Json",
    "Kind",
    "Measurement",
    "Outcome",
    "Paper",
    "Profile",
    "Record",
    "Setting",
    "Status",
    "Trial",
    "Verdict",
    "available",
    "claims_of",
    "common",
    "digest_of",
    "find",
    "judge",
    "load_paper",
    "outstanding",
    "pack",
    "paper_keys",
    "part_of",
    "read_claims",
    "read_environments",
    "read_record",
    "require_device",
    "require_writable",
    "run",
    "so_far",
    "unpack",
]
