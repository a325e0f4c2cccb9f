"""What is written from the committed records is what they say."""

import sys
from pathlib import Path

import pytest

from counterflow.exceptions import InputError
from counterflow.lab.report import read_sections, reproduction_markdown
from counterflow.lab.trials import claims_of, load_paper, paper_keys, unpack

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "evidence"


@pytest.fixture(scope="module")
def evidence():
    """What `read_sections` finds in it: some seconds."""
    return read_sections(EVIDENCE)


def test_reproduction_is_written_from_the_records(evidence):
    sections, _, complaints = evidence
    assert complaints == []
    assert (ROOT / "REPRODUCTION.md").read_text("utf-8") == reproduction_markdown(sections)


@pytest.mark.parametrize("key", paper_keys())
def test_every_claim_has_committed_evidence(key, evidence):
    sections = {section.key: section for section in evidence[0]}
    assert [claim.id for claim in sections[key].claims] == [claim.id for claim in claims_of(key)]
    silent = [claim.id for claim in sections[key].claims if claim.verdict == "not run" and not claim.reason]
    assert silent == []


@pytest.mark.parametrize("key", paper_keys())
def test_records_are_of_the_present_revision(key):
    for packed in (EVIDENCE / key).glob("*.jsonl.gz"):
        records, environments = unpack(packed)
        assert {record.revision for record in records} <= {load_paper(key).revision}
        assert {record.environment for record in records} <= set(environments)
        assert packed.stat().st_size < 2_000_000


def test_no_evidence_is_made_by_no_process(script, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["evidence.py", "tempering", "--jobs", "0", "--runs", str(runs)])
    with pytest.raises(SystemExit) as stop:
        script(ROOT / "scripts" / "evidence.py").main()
    assert stop.value.code == 2
    assert "--jobs 0: it has to be 1 or more" in capsys.readouterr().err
    assert not runs.exists()


def test_a_part_of_the_evidence_is_of_one_paper(script, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--only", "table 1 *", "--runs", str(runs)])
    with pytest.raises(SystemExit) as stop:
        script(ROOT / "scripts" / "evidence.py").main()
    assert stop.value.code == 2
    assert "--only table 1 *: treatments are those of one paper; name its KEY" in capsys.readouterr().err
    assert not runs.exists()

    monkeypatch.setattr(sys, "argv", ["evidence.py", "--only", "tabel 1", "--runs", str(runs), "variational"])
    with pytest.raises(InputError, match="no treatment of variational is like 'tabel 1'"):
        script(ROOT / "scripts" / "evidence.py").main()
    assert not runs.exists()


def test_evidence_that_cannot_leave_the_cpu_is_asked_for_no_device(script, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for words in (["separation"], ["variational", "--only", "speed"]):
        monkeypatch.setattr(sys, "argv", ["evidence.py", *words, "--device", "cuda", "--runs", str(runs)])
        with pytest.raises(InputError, match=r"--device cuda: no trial of \w+ can leave the CPU"):
            script(ROOT / "scripts" / "evidence.py").main()
    assert not runs.exists()
