"""From records to sections: those that a run has at its end, and those that lie in a folder."""

from __future__ import annotations

import fnmatch
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from counterflow.exceptions import RecordError
from counterflow.lab.data.catalog import CATALOG
from counterflow.lab.report.exhibit import Exhibit, Section
from counterflow.lab.trials import Paper, Profile, Record, Trial, claims_of, digest_of, judge, load_paper, paper_keys
from counterflow.lab.trials.finding import identity
from counterflow.lab.trials.record import read_environments, read_record, unpack

__all__ = ["assemble", "read_sections", "select"]

PROFILES: tuple[Profile, ...] = get_args(Profile)


def assemble(
    paper: Paper,
    profile: Profile,
    records: Sequence[Record],
    environments: Mapping[str, Mapping[str, object]] | None = None,
) -> Section:
    """Judge a paper's claims and put its section together.

    Args:
        paper: The paper.
        profile: The profile that was run.
        records: The records of its trials, those that failed or could not run too.
        environments: Hash to environment, as `read_environments` has them.

    Returns:
        The section, with every claim of the paper's ``published.toml``.
    """
    done = [record for record in records if record.status == "done"]
    with_card = _with_card(environments or {})
    # Of the whole paper, where it is a part of it that was run.
    whole = load_paper(paper.key)
    planned = whole.trials(profile, done)
    command = f"counterflow reproduce {paper.key} --profile {profile}"
    command = _command(command, [t.treatment for t in whole.trials(profile, [])], planned, done, with_card)
    results = judge(
        claims_of(paper.key),
        paper.measure(profile, done),
        missing=f"no finished trial of the {profile} profile measures it",
    )
    results = [
        result if result.verdict == "not run" else replace(result, command=result.command or command)
        for result in results
    ]
    seconds, card_seconds = _seconds(done, with_card)
    used = dict.fromkeys(record.environment for record in done)
    digest = digest_of(paper.key)
    return Section(
        key=paper.key,
        title=digest.title,
        citation=digest.citation,
        command=command,
        claims=results,
        # Trials know nothing of the report above them, so a paper's exhibits are typed as objects there.
        exhibits=cast("Sequence[Exhibit]", paper.exhibits(profile, done, results)),
        environments=[dict((environments or {})[name]) for name in used if name in (environments or {})],
        seconds=seconds,
        card_seconds=card_seconds,
        notes=[*_part(len(records), len(planned), profile), *_unfinished(records), *_uncommitted(done)],
        says=digest.says,
        headline=digest.headline,
    )


def _command(
    whole: str, first: Collection[str], planned: Sequence[Trial], done: Sequence[Record], with_card: Collection[str]
) -> str:
    """What runs the treatments again that have records, where most of these were: in one line, for a shell.

    A treatment that follows from another cannot be run alone: then it is the command of the whole paper.
    """
    cards: dict[str, list[bool]] = {}
    for record in done:
        cards.setdefault(record.treatment, []).append(record.environment in with_card)
    every = dict.fromkeys(trial.treatment for trial in planned)
    if not cards or cards.keys() >= every.keys() or not cards.keys() <= set(first):
        return whole + _device([each for of in cards.values() for each in of])
    devices = {treatment: _device(cards[treatment]) for treatment in every if treatment in cards}
    commands: dict[str, None] = {}
    for treatment, device in devices.items():
        pattern = f"{treatment.split()[0]} *"
        alike = fnmatch.filter(every, pattern)
        if len(alike) < 2 or any(devices.get(other) != device for other in alike):
            pattern = treatment
        commands[f"{whole} --only {shlex.quote(pattern)}{device}"] = None
    return " && ".join(commands)


def _device(cards: Sequence[bool]) -> str:
    return " --device cuda" if cards and 2 * sum(cards) >= len(cards) else ""


def _with_card(environments: Mapping[str, Mapping[str, object]]) -> set[str]:
    """The environments in which tensors were on a graphics card."""
    return {name for name, described in environments.items() if described.get("graphics card")}


def _seconds(records: Iterable[Record], with_card: Collection[str]) -> tuple[float, float]:
    """What finished trials took, in all and on a graphics card."""
    done = [record for record in records if record.status == "done"]
    on_card = [record.seconds for record in done if record.environment in with_card]
    return sum(record.seconds for record in done), sum(on_card)


def _part(there: int, planned: int, profile: Profile) -> list[str]:
    return [f"{there} of {planned} trials of the profile {profile} have records."] if there < planned else []


def _uncommitted(done: Sequence[Record]) -> list[str]:
    """A line for trials that ran from sources which no commit has."""
    count = sum((record.commit or "").endswith("-dirty") for record in done)
    return (
        [f"{count} of {len(done)} trials ran from a checkout that had changes which were not committed."]
        if count
        else []
    )


def _unfinished(records: Iterable[Record]) -> list[str]:
    """A line for every way in which trials did not finish."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status != "done":
            groups.setdefault((record.status, record.reason), []).append(record.treatment)
    lines = []
    for (status, reason), treatments in groups.items():
        trials = "1 trial" if len(treatments) == 1 else f"{len(treatments)} trials"
        what = "failed" if status == "failed" else "did not run"
        lines.append(f"{trials} {what} ({', '.join(dict.fromkeys(treatments))}): {reason}")
    return lines


def select(paper: Paper, profile: Profile, records: Iterable[Record]) -> list[Record]:
    """The records that a run of one profile would use, out of a folder that may hold those of several.

    A record remembers only the profile that it was first run for, so the paper is asked which trials belong
    to the profile: again and again, as the runner does, since a second stage may follow from the first.
    The data need not be on this machine: the record says which data it has seen.

    Args:
        paper: The paper.
        profile: The profile.
        records: All records of the paper.

    Returns:
        Those of the profile's trials, finished or not, at the paper's current revision, in the trials' order. All that
        finished have seen one version of each data set: one that the catalog has, and else the one of most records.
    """
    current = [record for record in records if record.revision == paper.revision]
    versions = {name: of[0] for name, of in _versions(current).items()}
    # Of records that differ only in their data the last one counts, and so one that is done.
    ordered = sorted(current, key=lambda record: (record.status == "done", record.key))
    known = {identity(record): record for record in ordered if _is_of(record, versions)}
    selected: list[Record] = []
    while True:
        done = [record for record in selected if record.status == "done"]
        trials = dict.fromkeys(identity(trial) for trial in paper.trials(profile, done))
        following = [known[trial] for trial in trials if trial in known]
        # A later stage may have records while another branch of the earlier one is not complete.
        if len(following) <= len(selected):
            return following
        selected = following


def _versions(records: Iterable[Record]) -> dict[str, list[str]]:
    """The checksums of each data set that finished trials have seen, the one to be used first."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        if record.status == "done":
            for name, checksum in record.data.items():
                counts.setdefault(name, Counter())[checksum] += 1
    ranked = {}
    for name, of in counts.items():
        known = {form.identity for form in CATALOG[name].forms} if name in CATALOG else set()
        ranked[name] = sorted(of, key=lambda checksum: (checksum in known, of[checksum], checksum), reverse=True)
    return ranked


def _is_of(record: Record, versions: Mapping[str, str]) -> bool:
    """Whether a record is of these versions of its data; one that is not done need not have any."""
    return record.status != "done" or all(versions[name] == checksum for name, checksum in record.data.items())


def _left_out(paper: Paper, profile: Profile, records: Sequence[Record], selected: Sequence[Record]) -> list[str]:
    """A line for all that is in a folder, but not in the section of its paper."""
    return [*_other_versions(paper, records), *_other_revisions(paper, profile, records, selected)]


def _other_versions(paper: Paper, records: Iterable[Record]) -> list[str]:
    """A line for every data set of which records were left out, since they have seen another version of it."""
    current = [record for record in records if record.revision == paper.revision]
    lines = []
    for name, (used, *others) in _versions(current).items():
        left = sum(record.status == "done" and record.data.get(name) in others for record in current)
        if left:
            are = "1 record is" if left == 1 else f"{left} records are"
            lines.append(f"{are} of another version of the data set {name} than {used[:12]}, and left out.")
    return lines


def _other_revisions(
    paper: Paper, profile: Profile, records: Sequence[Record], selected: Sequence[Record]
) -> list[str]:
    """A line for every other revision of which records were left out, where no others have taken their place.

    Args:
        paper: The paper.
        profile: The profile that is shown.
        records: All records of the paper.
        selected: Those that are shown.
    """
    there = {identity(record) for record in selected}
    planned = {identity(trial) for trial in paper.trials(profile, [r for r in selected if r.status == "done"])}
    if planned <= there:
        return []  # it has been run again, and nothing of the old ones is lacking
    # A change of revision may change the trials too, so that the plan need not name those of the old records.
    left = Counter(
        record.revision
        for record in records
        if record.revision != paper.revision
        and (record.profile == profile or identity(record) in planned)
        and identity(record) not in there
    )
    command = f"counterflow reproduce {paper.key} --profile {profile}"
    lines = []
    for revision, count in sorted(left.items()):
        are = "1 record is" if count == 1 else f"{count} records are"
        mend = f"run it again: {command}" if revision < paper.revision else "bring counterflow up to date"
        lines.append(f"{are} of revision {revision}, and left out, for the paper is at {paper.revision}; {mend}")
    return lines


def read_sections(folder: Path, profile: Profile | None = None) -> tuple[list[Section], str, list[str]]:
    """Read a folder of runs, or one of packed evidence, and judge what is in it.

    Args:
        folder: Holds ``<paper>/<hash>.json`` as a run leaves them, or ``<paper>/<profile>.jsonl.gz``.
        profile: Which profile is shown; by default the largest that any paper here was run with. A paper
            without records of it shows the largest that it has. By default, too, what the profile paper was not run
            for is taken from laptop.

    Returns:
        One section a paper, the profiles that they show in words, such as ``"laptop and paper"``, and a line for every
        file that could not be used.

    Raises:
        RecordError: The folder does not exist, or holds no records that can be used.
    """
    if not folder.is_dir():
        if folder.exists():
            raise RecordError(f"{folder}: this is a file; name the folder that a run wrote")
        raise RecordError(f"{folder}: there is no such folder; `counterflow reproduce KEY --out {folder}` fills one")
    complaints: list[str] = []
    environments: dict[str, dict[str, object]] = dict(read_environments(folder))
    found: dict[str, dict[Profile, list[Record]]] = {}
    for key in paper_keys():
        runs = _read_runs(folder / key, complaints)
        packed = _read_packed(folder / key, environments, complaints)
        by_profile = {
            name: [*packed.get(name, ()), *runs]
            for name in PROFILES
            if name in packed or any(record.profile == name for record in runs)
        }
        if by_profile:
            found[key] = by_profile
    if not found:
        why = f": {complaints[0]}" if complaints else ""
        raise RecordError(f"{folder}: no records of a paper here{why}; `counterflow reproduce KEY` writes some")
    present = [name for name in PROFILES if any(name in by_profile for by_profile in found.values())]
    if profile is not None and profile not in present:
        raise RecordError(f"{folder}: no records of the profile {profile} here, only of {', '.join(present)}")
    wanted = profile or present[-1]
    sections = []
    shown: set[Profile] = set()
    for key, by_profile in found.items():
        paper = load_paper(key)
        own = wanted if wanted in by_profile else list(by_profile)[-1]
        records = {own: select(paper, own, by_profile[own])}
        section = assemble(paper, own, records[own], environments)
        left_out = _left_out(paper, own, by_profile[own], records[own])
        if profile is None and own == "paper" and "laptop" in by_profile:
            records["laptop"] = select(paper, "laptop", by_profile["laptop"])
            smaller = assemble(paper, "laptop", records["laptop"], environments)
            if filled := _filled(section, smaller):
                once = {record.key: record for each in records.values() for record in each}
                seconds, card_seconds = _seconds(once.values(), _with_card(environments))
                section = replace(filled, seconds=seconds, card_seconds=card_seconds)
                left_out += _left_out(paper, "laptop", by_profile["laptop"], records["laptop"])
                shown.add("laptop")
        section = replace(section, notes=list(dict.fromkeys([*section.notes, *left_out])))
        shown.add(own)
        sections.append(section)
    return sections, " and ".join(name for name in PROFILES if name in shown), complaints


def _filled(section: Section, smaller: Section) -> Section | None:
    """A section with what it lacks from that of a smaller profile; None where that has none of it.

    The figures are of both, since the claims are: each under its profile's name where both have one.
    """
    claims = [
        less if claim.verdict == "not run" and less.verdict != "not run" else claim
        for claim, less in zip(section.claims, smaller.claims, strict=True)
    ]
    if claims == list(section.claims):
        return None
    own = {exhibit.title: exhibit for exhibit in section.exhibits}
    exhibits: list[Exhibit] = []
    for exhibit in smaller.exhibits:
        if exhibit.title in own:
            exhibits += [_titled(exhibit, "laptop"), _titled(own.pop(exhibit.title), "paper")]
        else:
            exhibits.append(exhibit)
    return replace(
        section,
        command=f"{smaller.command} && {section.command}",
        claims=claims,
        exhibits=[*exhibits, *own.values()],
        environments=[*smaller.environments, *(e for e in section.environments if e not in smaller.environments)],
        notes=list(dict.fromkeys([*smaller.notes, *section.notes])),
    )


def _titled(exhibit: Exhibit, profile: Profile) -> Exhibit:
    return replace(exhibit, title=f"{exhibit.title} ({profile})")


def _read_runs(folder: Path, complaints: list[str]) -> list[Record]:
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            complaints.append(str(error))
    return records


def _read_packed(
    folder: Path, environments: dict[str, dict[str, object]], complaints: list[str]
) -> dict[Profile, list[Record]]:
    packed: dict[Profile, list[Record]] = {}
    for name in PROFILES:
        path = folder / f"{name}.jsonl.gz"
        if path.is_file():
            try:
                packed[name], described = unpack(path)
            except RecordError as error:
                complaints.append(str(error))
            else:
                environments.update(described)
    return packed
