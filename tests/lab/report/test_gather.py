"""From records to sections. The paper here has two stages: the better of two rates runs on fresh seeds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from counterflow.exceptions import RecordError
from counterflow.lab.data.catalog import CATALOG
from counterflow.lab.report import Section, TableExhibit, assemble, gather, read_sections, reproduction_markdown, select
from counterflow.lab.trials import Claim, Digest, Group, Measurement, Outcome, Paper, Record, Trial
from counterflow.lab.trials.record import FORMAT_VERSION, pack, trial_key, write_record

SIZES = {"smoke": 2, "laptop": 20, "paper": 200}
ENVIRONMENT = {"python": "3.11.2", "threads": 1}


def _hash(description: dict[str, object]) -> str:
    content = json.dumps(description, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest()[:20]


def _trials(profile, records):
    size = SIZES[profile]
    first = [Trial("toy", f"rate.{rate}", (0, 1), {"rate": rate, "size": size}) for rate in (0.1, 0.2)]
    if len(records) < len(first):
        return first
    best = min((r for r in records if r.seeds == (0, 1)), key=lambda record: sum(record.metrics["epochs"]))
    rate = best.settings["rate"]
    return [*first, Trial("toy", f"fresh.{rate}", (7, 8, 9), {"rate": rate, "size": size})]


def _measure(profile, records):
    fresh = [record for record in records if record.treatment.startswith("fresh")]
    if not fresh:
        return {}
    return {"epochs": Measurement((Group(fresh[0].metrics["epochs"]),), setting="smaller", differs="three seeds")}


def _exhibits(profile, records, results):
    return [TableExhibit("Rates", "All.", ["rate", "n"], [[r.treatment, len(r.seeds)] for r in records])]


PAPER = Paper("toy", 3, _trials, lambda t, c: Outcome({}), _measure, _exhibits)
CLAIMS = (
    Claim(id="epochs", claim="It takes 100 epochs.", kind="value", value=100.0, margin=1.5),
    Claim(id="never", claim="Nobody measures this.", kind="value", value=1.0, margin=1.5),
)


def _record(trial: Trial, profile: str = "laptop", status: str = "done", revision: int = 3, **more) -> Record:
    epochs = tuple(trial.settings["rate"] * 1000 + seed for seed in trial.seeds)
    return Record(
        format_version=FORMAT_VERSION,
        key=trial_key(trial, revision, {}),
        paper="toy",
        treatment=trial.treatment,
        seeds=trial.seeds,
        settings=dict(trial.settings),
        data={},
        revision=revision,
        profile=profile,
        commit=None,
        environment=_hash(ENVIRONMENT),
        status=status,  # type: ignore[arg-type]
        reason=more.get("reason", ""),
        seconds=2.0,
        metrics={"epochs": epochs} if status == "done" else {},
        curves={},
    )


def _run(profile: str) -> list[Record]:
    records: list[Record] = []
    for _ in range(2):
        records = [_record(trial, profile) for trial in _trials(profile, records)]
    return records


@pytest.fixture(autouse=True)
def one_paper(monkeypatch):
    monkeypatch.setattr(gather, "paper_keys", lambda: ("toy",))
    monkeypatch.setattr(gather, "load_paper", lambda key: PAPER)
    monkeypatch.setattr(gather, "claims_of", lambda key: CLAIMS)
    monkeypatch.setattr(gather, "digest_of", lambda key: Digest("A toy", "Nobody, 1995.", "It learns.", ("epochs",)))


@pytest.fixture
def runs(tmp_path) -> Path:
    for record in [*_run("smoke"), *_run("laptop")]:
        write_record(tmp_path, record, ENVIRONMENT)
    return tmp_path


def test_a_section_holds_every_claim_with_its_command_and_cost():
    section = assemble(PAPER, "laptop", _run("laptop"), {_hash(ENVIRONMENT): ENVIRONMENT, "0" * 20: {}})
    measured, missing = section.claims
    assert (measured.id, measured.verdict, measured.n, measured.setting) == (
        "epochs",
        "reproduced",
        3,
        "smaller",
    )
    assert measured.command == section.command == "counterflow reproduce toy --profile laptop"
    assert (missing.id, missing.verdict) == ("never", "not run")
    assert missing.reason == "no finished trial of the laptop profile measures it"
    assert missing.command == ""
    assert section.seconds == 6.0
    assert (section.says, section.headline) == ("It learns.", ("epochs",))
    assert section.environments == [ENVIRONMENT]
    assert [len(exhibit.rows) for exhibit in section.exhibits] == [3]
    assert section.notes == []


def test_trials_of_sources_that_no_commit_has_are_told():
    first, *others = _run("laptop")
    section = assemble(PAPER, "laptop", [msgspec.structs.replace(first, commit="0123-dirty"), *others])
    assert section.notes == ["1 of 3 trials ran from a checkout that had changes which were not committed."]


def test_trials_that_did_not_finish_are_told_and_not_measured():
    first, second = _trials("laptop", [])
    failed = [
        _record(first, status="failed", reason="boom"),
        _record(second, status="not run", reason="no data"),
    ]
    section = assemble(PAPER, "laptop", failed)
    assert section.notes == ["1 trial failed (rate.0.1): boom", "1 trial did not run (rate.0.2): no data"]
    assert {claim.verdict for claim in section.claims} == {"not run"}
    assert (section.seconds, section.environments) == (0, [])
    assert section.command == "counterflow reproduce toy --profile laptop"


def test_trials_that_did_not_finish_for_one_reason_share_a_line():
    first, second = _trials("laptop", [])
    again = Trial("toy", first.treatment, (5,), first.settings)
    failed = [_record(trial, status="failed", reason="boom") for trial in (first, again, second)]
    section = assemble(PAPER, "laptop", failed, {_hash(ENVIRONMENT): ENVIRONMENT})
    assert section.notes == ["3 trials failed (rate.0.1, rate.0.2): boom"]
    assert section.environments == []  # no number comes from one


def test_a_later_stage_that_has_no_records_is_counted():
    section = assemble(PAPER, "laptop", _run("laptop")[:2])
    assert section.notes == ["2 of 3 trials of the profile laptop have records."]


CARD = {**ENVIRONMENT, "graphics card": "a card"}


def _parts(names: str) -> tuple[Paper, dict[str, Trial]]:
    """A paper of these treatments, two trials each."""
    every = {
        f"{name} {seed}": Trial("toy", name, (seed,), {"rate": 0.1}) for name in names.split(", ") for seed in (0, 1)
    }
    return Paper("toy", 3, lambda p, r: list(every.values()), lambda t, c: Outcome({}), _measure, _exhibits), every


def _assembled(monkeypatch, names: str, done: str, on_card: str = "") -> Section:
    paper, every = _parts(names)
    monkeypatch.setattr(gather, "load_paper", lambda key: paper)
    records = []
    for name in filter(None, [*done.split(", "), *on_card.split(", ")]):
        where = CARD if name in on_card.split(", ") else ENVIRONMENT
        records.append(msgspec.structs.replace(_record(every[name]), environment=_hash(where)))
    return assemble(paper, "laptop", records, {_hash(each): each for each in (ENVIRONMENT, CARD)})


@pytest.mark.parametrize(
    ("done", "on_card", "commands"),
    [
        ("a x 0, a y 0, b x 0, b y 0, c 0", "", [""]),
        ("a x 0", "a y 0, b x 0, b y 0, c 0", [" --device cuda"]),
        ("a x 0, a y 0", "", [" --only 'a *'"]),
        ("a x 0", "b x 0, b y 0", [" --only 'a x'", " --only 'b *' --device cuda"]),
        ("a x 0, c 0", "a x 1, a y 0", [" --only 'a *' --device cuda", " --only c"]),
        ("a x 0, a x 1", "a y 0", [" --only 'a x'", " --only 'a y' --device cuda"]),
    ],
)
def test_the_command_runs_what_has_records_and_no_more(monkeypatch, done, on_card, commands):
    section = _assembled(monkeypatch, "a x, a y, b x, b y, c", done, on_card)
    assert section.command.split(" && ") == [f"counterflow reproduce toy --profile laptop{each}" for each in commands]
    there = len([name for name in [*done.split(", "), *on_card.split(", ")] if name])
    assert section.notes == [f"{there} of 10 trials of the profile laptop have records."]


def test_a_treatment_that_follows_from_another_is_not_run_alone():
    first, _, fresh = _run("laptop")
    assert assemble(PAPER, "laptop", [first]).command == "counterflow reproduce toy --profile laptop --only rate.0.1"
    assert assemble(PAPER, "laptop", [fresh]).command == "counterflow reproduce toy --profile laptop"


def test_computing_time_is_told_by_what_computed(monkeypatch):
    section = _assembled(monkeypatch, "a x, a y", "a x 0, a x 1, a y 0", "a y 1")
    assert (section.seconds, section.card_seconds, section.notes) == (8.0, 2.0, [])
    assert "Computing time: 6 s of a processor and 2 s of a graphics card." in reproduction_markdown([section])


def test_select_follows_the_stages_of_one_profile():
    everything = [*_run("smoke"), *_run("laptop")]
    stray = _record(Trial("toy", "fresh.0.2", (7, 8, 9), {"rate": 0.2, "size": 20}))
    old = _record(Trial("toy", "rate.0.1", (0, 1), {"rate": 0.1, "size": 20}), revision=2)
    selected = select(PAPER, "laptop", [stray, old, *everything])
    assert [record.key for record in selected] == [record.key for record in _run("laptop")]


def test_select_asks_for_a_later_stage_only_after_a_complete_earlier_one():
    first, _, fresh = _run("laptop")
    assert select(PAPER, "laptop", [first, fresh]) == [first]
    assert select(PAPER, "laptop", []) == []


def test_select_has_a_later_stage_though_another_branch_is_not_complete():
    chosen, slow, judged = (Trial("toy", name, (0,), {"rate": 0.1}) for name in ("chosen", "slow", "judged"))

    def trials(profile, records):
        ready = any(record.treatment == "chosen" for record in records)
        return [chosen, slow, judged] if ready else [chosen, slow]

    paper = Paper("toy", 3, trials, lambda t, c: Outcome({}), _measure, _exhibits)
    first, last = _record(chosen), _record(judged)
    assert select(paper, "laptop", [last, first]) == [first, last]
    assert select(paper, "laptop", [last]) == []


def test_a_record_that_a_smaller_profile_made_first_is_used():
    laptop = _run("laptop")
    made_by_smoke = [_record(_trials("laptop", [])[0], "smoke"), *laptop[1:]]
    assert [record.key for record in select(PAPER, "laptop", made_by_smoke)] == [r.key for r in laptop]


def test_select_prefers_a_trial_that_is_done():
    first, second, fresh = _run("laptop")
    for key in ("0" * 20, "f" * 20):  # whichever of the two comes first by name
        missing = msgspec.structs.replace(first, status="not run", data={"digits": "missing"}, key=key)
        assert select(PAPER, "laptop", [missing, first, second, fresh]) == [first, second, fresh]


def _trial_of(record: Record) -> Trial:
    return Trial(record.paper, record.treatment, record.seeds, record.settings)


def _of_data(records: list[Record], checksum: str, shift: float = 0.0) -> list[Record]:
    """The same records, as if they had read a data set with this checksum."""
    return [
        msgspec.structs.replace(
            record,
            data={"digits": checksum},
            key=trial_key(_trial_of(record), record.revision, {"digits": checksum}),
            metrics={name: tuple(v + shift for v in values) for name, values in record.metrics.items()},
        )
        for record in records
    ]


@pytest.mark.parametrize("other", ["0" * 64, "f" * 64])
def test_select_takes_the_version_of_the_data_that_the_catalog_has(other):
    today = _of_data(_run("laptop"), CATALOG["digits"].forms[0].identity)
    before = _of_data(_run("laptop"), other, shift=1.0)
    assert select(PAPER, "laptop", [*before, *before, *today]) == today


@pytest.mark.parametrize("other", ["0" * 64, "f" * 64])
def test_select_takes_one_version_of_unknown_data_for_the_whole_paper_and_says_so(other, tmp_path):
    more = _of_data(_run("laptop"), "8" * 64)
    fewer, failed, *_ = _of_data(_run("laptop"), other, shift=1.0)
    failed = msgspec.structs.replace(failed, status="failed", reason="it broke")  # it has no number to be left out
    assert select(PAPER, "laptop", [fewer, failed, *more]) == more
    for record in [fewer, failed, *more]:
        write_record(tmp_path, record, ENVIRONMENT)
    [section], _, _ = read_sections(tmp_path)
    assert section.notes == ["1 record is of another version of the data set digits than 888888888888, and left out."]


def test_trials_that_did_not_finish_choose_no_version_of_the_data():
    [done] = _of_data(_run("laptop")[:1], "8" * 64)
    failed = [
        msgspec.structs.replace(record, status="failed", reason="it broke")
        for record in _of_data(_run("laptop")[1:], "f" * 64)
    ]
    assert len(failed) == 2
    assert select(PAPER, "laptop", [*failed, done])[0] == done


def _note(are: str, revision: int, mend: str = "run it again: counterflow reproduce toy --profile laptop") -> str:
    return f"{are} of revision {revision}, and left out, for the paper is at 3; {mend}"


def _of_revision(revision: int, profile: str = "laptop") -> list[Record]:
    """The same records, as if the paper had been at this revision."""
    return [_record(_trial_of(record), profile, revision=revision) for record in _run(profile)]


def test_records_of_another_revision_are_told_until_others_take_their_place(tmp_path):
    first, second, fresh = _run("laptop")
    older, old, later = _of_revision(1)[:1], _of_revision(2), _of_revision(4)[2:]
    for record in [*older, *old, *_of_revision(2, "smoke"), *later]:
        write_record(tmp_path, record, ENVIRONMENT)
    [section], _, complaints = read_sections(tmp_path)
    notes = [
        "0 of 2 trials of the profile laptop have records.",
        _note("1 record is", 1),
        _note("3 records are", 2),
        _note("1 record is", 4, "bring counterflow up to date"),
    ]
    assert (section.notes, complaints) == (notes, [])
    markdown = reproduction_markdown([section])
    assert all(note in markdown for note in notes)
    assert {claim.verdict for claim in section.claims} == {"not run"}

    write_record(tmp_path, first, ENVIRONMENT)  # one of two trials has been run again
    [section], _, _ = read_sections(tmp_path)
    assert section.notes[:2] == ["1 of 2 trials of the profile laptop have records.", _note("2 records are", 2)]
    for record in (second, fresh):
        write_record(tmp_path, record, ENVIRONMENT)
    [section], _, _ = read_sections(tmp_path)
    assert section.notes == []


def test_records_of_another_revision_that_a_smaller_profile_made_are_told(tmp_path):
    first, second, _ = _run("laptop")
    for record in (first, _record(_trial_of(second), "smoke", revision=2)):
        write_record(tmp_path, record, ENVIRONMENT)
    [section], _, _ = read_sections(tmp_path)
    assert section.notes == ["1 of 2 trials of the profile laptop have records.", _note("1 record is", 2)]


def test_trials_that_failed_at_this_revision_take_the_place_of_those_before(tmp_path):
    failed = [_record(trial, status="failed", reason="boom") for trial in _trials("laptop", [])]
    for record in [*failed, *_of_revision(2)]:
        write_record(tmp_path, record, ENVIRONMENT)
    [section], _, _ = read_sections(tmp_path)
    assert section.notes == ["2 trials failed (rate.0.1, rate.0.2): boom"]


def test_records_of_trials_that_a_new_revision_no_longer_has_are_told(tmp_path):
    gone = _record(Trial("toy", "rate.0.9", (0, 1), {"rate": 0.9, "size": 20}), revision=2)
    write_record(tmp_path, gone, ENVIRONMENT)
    [section], _, _ = read_sections(tmp_path)
    assert section.notes[1:] == [_note("1 record is", 2)]


def test_a_folder_of_runs_shows_its_largest_profile_or_the_one_asked_for(runs):
    [section], shown, complaints = read_sections(runs)
    assert (shown, complaints) == ("laptop", [])
    assert section.command.endswith("--profile laptop")
    assert section.claims[0].measured == pytest.approx(108.0, abs=0.1)
    assert section.environments == [ENVIRONMENT]
    [section], shown, _ = read_sections(runs, "smoke")
    assert (shown, section.command) == ("smoke", "counterflow reproduce toy --profile smoke")
    with pytest.raises(RecordError, match="no records of the profile paper here, only of smoke, laptop"):
        read_sections(runs, "paper")


def test_what_paper_was_not_run_for_is_taken_from_laptop(runs, monkeypatch):
    first, second, fresh = _run("laptop")
    part, *_ = _run("paper")  # a first stage that is not complete: the claim is not run in the profile paper
    pack([first, second, fresh], {_hash(ENVIRONMENT): ENVIRONMENT}, runs / "toy" / "laptop.jsonl.gz")
    pack([part], {_hash(ENVIRONMENT): ENVIRONMENT}, runs / "toy" / "paper.jsonl.gz")
    [section], shown, _ = read_sections(runs)
    measured, never = section.claims
    assert (measured.verdict, measured.command) == ("reproduced", "counterflow reproduce toy --profile laptop")
    assert (never.verdict, never.reason) == ("not run", "no finished trial of the paper profile measures it")
    assert shown == "laptop and paper"
    part = "counterflow reproduce toy --profile paper --only rate.0.1"
    assert section.command == f"counterflow reproduce toy --profile laptop && {part}"
    assert section.notes == ["1 of 2 trials of the profile paper have records."]
    assert section.seconds == 8.0  # of four trials, each counted once
    assert section.environments == [ENVIRONMENT]
    # The claim is laptop's, and so is the first table; what there is of the larger profile stands beside it.
    tables = [(table.title, len(table.rows)) for table in section.exhibits]
    assert tables == [("Rates (laptop)", 3), ("Rates (paper)", 1)]

    [alone], shown, _ = read_sections(runs, "paper")
    assert [claim.verdict for claim in alone.claims] == ["not run", "not run"]
    assert shown == "paper"

    # Where paper has measured all that laptop has, nothing is taken.
    pack(_run("paper"), {_hash(ENVIRONMENT): ENVIRONMENT}, runs / "toy" / "paper.jsonl.gz")
    [section], shown, _ = read_sections(runs)
    assert section.claims[0].command == section.command == "counterflow reproduce toy --profile paper"
    assert shown == "paper"


def test_what_is_taken_from_laptop_brings_its_notes_and_its_time_on_a_card(tmp_path):
    first, second, fresh = _of_data(_run("laptop"), "8" * 64)
    [other, *_] = _of_data(_run("laptop"), "f" * 64)
    laptop = [
        msgspec.structs.replace(first, commit="0123-dirty"),
        second,
        msgspec.structs.replace(fresh, environment=_hash(CARD)),
        other,
    ]
    part, stopped = _trials("paper", [])
    paper = [_record(part, "paper"), _record(stopped, "paper", status="failed", reason="boom")]
    for profile, records in (("laptop", laptop), ("paper", paper)):
        pack(records, {_hash(each): each for each in (ENVIRONMENT, CARD)}, tmp_path / "toy" / f"{profile}.jsonl.gz")
    [section], shown, _ = read_sections(tmp_path)
    assert shown == "laptop and paper"
    assert section.notes == [
        "1 of 3 trials ran from a checkout that had changes which were not committed.",
        "1 trial failed (rate.0.2): boom",
        "1 record is of another version of the data set digits than 888888888888, and left out.",
    ]
    assert (section.seconds, section.card_seconds) == (8.0, 2.0)  # of the four trials that finished and are shown


def test_packed_evidence_gives_the_same_section(runs, tmp_path_factory):
    evidence = tmp_path_factory.mktemp("evidence")
    pack(_run("laptop"), {_hash(ENVIRONMENT): ENVIRONMENT}, evidence / "toy" / "laptop.jsonl.gz")
    assert read_sections(evidence)[0] == read_sections(runs)[0]


def test_the_page_names_all_profiles_that_its_papers_show(runs, monkeypatch):
    monkeypatch.setattr(gather, "paper_keys", lambda: ("other", "toy"))
    pack(_run("smoke"), {_hash(ENVIRONMENT): ENVIRONMENT}, runs / "other" / "smoke.jsonl.gz")
    sections, shown, _ = read_sections(runs)  # the other paper has not been run with laptop
    assert [section.command.split()[-1] for section in sections] == ["smoke", "laptop"]
    assert shown == "smoke and laptop"
    assert read_sections(runs, "smoke")[1] == "smoke"


def test_a_paper_without_the_profile_shows_the_largest_that_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "paper_keys", lambda: ("other", "toy"))
    for key, profile in (("other", "smoke"), ("other", "laptop"), ("toy", "paper")):
        pack(_run(profile), {_hash(ENVIRONMENT): ENVIRONMENT}, tmp_path / key / f"{profile}.jsonl.gz")
    sections, shown, _ = read_sections(tmp_path)
    assert [section.command.split()[-1] for section in sections] == ["laptop", "paper"]
    assert shown == "laptop and paper"


def test_a_damaged_record_is_told_and_left_out(runs):
    fresh = runs / "toy" / f"{_run('laptop')[-1].key}.json"
    fresh.write_text("{", "utf-8")
    [section], _, complaints = read_sections(runs)
    assert [claim.verdict for claim in section.claims] == ["not run", "not run"]
    [complaint] = complaints
    assert fresh.name in complaint
    assert "\n" not in complaint


def test_damaged_evidence_is_told(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "laptop.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(RecordError, match=r"no records of a paper here: .*laptop\.jsonl\.gz.* damaged"):
        read_sections(tmp_path)


def test_a_missing_or_empty_folder_is_one_line(tmp_path):
    for folder, says in (
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path, "no records of a paper"),
    ):
        with pytest.raises(RecordError, match=says) as caught:
            read_sections(folder)
        assert "counterflow reproduce" in str(caught.value)
        assert "\n" not in str(caught.value)
