"""The experiments of ICA with attention: words and rooms, one trial, and what is measured from many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from counterflow.audio import active_power
from counterflow.exceptions import DataNotFoundError
from counterflow.lab.papers.separation import experiment, listening, plan
from counterflow.lab.papers.separation import words as task
from counterflow.lab.papers.separation.figures import exhibits
from counterflow.lab.trials import Context, Group, Measurement, Record, Trial, claims_of, judge

from .finished import finished

PROFILES = ["smoke", "laptop", "paper"]
RATES = {"mlp": 0.30, "ica": 0.20, "att": 0.10, "gamma0": 0.2, "inverse": 0.12, "oracle": 0.05, "half": 0.15}


@pytest.fixture(scope="module")
def _digits() -> None:
    try:
        task._digits()
        task._noises()
    except DataNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.data
@pytest.mark.usefixtures("_digits")
def test_held_out_words_are_never_learned() -> None:
    clips = task._digits().clips
    for fold in (0, 3):
        words = task.draw_words("recordings", fold, 600, 2700)
        assert len(words.test) == 300
        assert len(words.training) == 600
        assert set(words.training) <= set(words.learned)
        assert not set(words.test) & set(words.learned)
        assert {int(clips[i].id.rsplit("_")[-1]) // 5 for i in words.test} == {fold}
        tuning = task.draw_words("recordings", fold, 600, 2700, "tuning")
        assert not set(words.test) & {*tuning.test, *tuning.learned}
    away = task.draw_words("speakers", 1, 600, 2700)
    assert not {clips[i].speaker for i in away.test} & {clips[i].speaker for i in away.learned}
    assert len({clips[i].speaker for i in away.test}) == 2


@pytest.mark.data
@pytest.mark.usefixtures("_digits")
def test_levels_are_those_at_the_first_microphone() -> None:
    where = task.scene("babble", 3, 0.1)
    clean = task.waves(where, [7], task.CLEAN)[0][0]
    noisy = task.waves(where, [7], 10)[0][0]
    ratio = active_power(clean, task.RATE) / (noisy - clean).square().mean()
    assert float(10 * ratio.log10()) == pytest.approx(10, abs=0.3)
    assert torch.equal(task.waves(where, [7], 10)[0][0], noisy)
    halves = [task.waves(where, [7], 10, each)[0] for each in listening.STRETCHES.values()]
    assert not torch.equal(*halves)
    bent = task.waves(task.scene("babble", 3, 0.1, drive=3.0), [7], 10)[0][0]
    assert float(bent.abs().max()) < float(noisy.abs().max())


@pytest.mark.data
@pytest.mark.usefixtures("_digits")
def test_one_trial_scores_every_method_word_by_word(tmp_path: Any) -> None:
    [trial, *_] = plan.trials_of("smoke", "engine")
    small = {"words": 12, "learned": 80, "epochs": 8, "iterations": 2, "passes": 2, "snrs": [10]}
    settings = {**trial.settings, **small, "rates": [1.0, 0.5]}
    found = listening.listen(settings, 0, Context(tmp_path))
    assert {name.split()[2] for name in found.metrics} == set(plan.METHODS)
    for name, [value] in found.metrics.items():
        assert value == pytest.approx(100 * np.mean(found.curves[name]), abs=1e-4)  # type: ignore[arg-type]
    names = ["rate 10 1", "rate 10 0.5", *(f"gamma 10 {gamma:g}" for gamma in plan.GAMMAS)]
    assert all(len(found.curves[name]) == 3 for name in names)
    assert listening.listen(settings, 0, Context(tmp_path)).curves == found.curves


def _missed(size: int, share: float, shift: int) -> tuple[float, ...]:
    """The first words are missed by all methods that miss so many."""
    return tuple(float((i * 7 + shift) % size < share * size) for i in range(size))


def _record(trial: Trial, profile: str) -> Record:
    """As if the paper were right."""
    curves: dict[str, Any] = {}
    size, room = 300 if profile != "smoke" else 30, trial.seeds[0]
    hard = {99: 0.1, 15: 0.3, 10: 0.6, 5: 1.0}
    names = {99: "clean", 15: "15", 10: "10", 5: "5"}
    for split in trial.settings["splits"]:  # type: ignore[union-attr]
        for snr in trial.settings["snrs"]:  # type: ignore[union-attr]
            for method, share in RATES.items():
                if snr == 99:
                    share = {"mlp": 0.1, "ica": 1.5, "att": 0.1}.get(method, share)
                if method == "att" and snr in (10, 5):
                    share = 0.19
                if method == "att" and split == "test":
                    share *= 1.2
                curves[f"{split} {names[snr]} {method}"] = _missed(size, share * hard[snr], room)
    for name in plan.SNRS:
        for gamma in plan.GAMMAS:
            curves[f"gamma {name} {gamma:g}"] = (30.0, 12.0, 10.0)
            curves[f"gamma {name} {gamma:g} words"] = _missed(size, 0.1, room)
        for rate in plan.SIZES["paper"].rates:
            late = 10.0 + 2 * (1 - rate) + 0.6 * (room % 2)
            curves[f"rate {name} {rate:g}"] = (30.0, late, 10.0, 10.0)
            curves[f"rate {name} {rate:g} words"] = _missed(size, 0.1, room)
        curves[f"start {name} words"] = _missed(size, 0.3, room)
    return finished(trial, profile, {}, curves)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured_or_says_why_not(profile: Any) -> None:
    records = [_record(trial, profile) for trial in experiment.trials(profile, [])]
    results = judge(claims_of("separation"), experiment.measure(profile, records), missing="no trial measures it")
    assert [r.id for r in results if r.reason == "no trial measures it"] == []
    verdicts = {r.id: r.verdict for r in results}
    assert all(r.setting == "other data" for r in results if r.verdict != "not run")
    if profile != "smoke":
        for claim in (
            "t1.level.test.15",
            "t1.hurts.train",
            "t2.back.test",
            "t2.helps.test.10",
            "t2.light.train",
        ):
            assert verdicts[claim] == "reproduced", claim
        for level in plan.SNRS:
            assert verdicts[f"fig3.falls.{level}"] == verdicts[f"fig3.gamma.{level}"] == "reproduced"
    if profile != "smoke":
        assert [r.id for r in results if r.verdict == "not run"] == []
        assert verdicts["fig3.rate.15"] == "reproduced"
    titles = [exhibit.title for exhibit in exhibits(profile, records, results)]
    for title in ("Table 1", "Table 2", "Controls", "Words that attention mended", "Figure 3"):
        assert any(each.startswith(title) for each in titles), title
    held_out = any(each.startswith("Speakers held out") for each in titles)
    assert held_out == (profile != "smoke")
    assert ("Figure 3: false recognition rates by pass, by rate" in titles) == (profile != "smoke")
    assert exhibits(profile, [], []) == []


def test_a_reduction_by_30_to_80_percent_is_within_the_papers_words() -> None:
    [claim] = [claim for claim in claims_of("separation") if claim.id == "t1.reduces.test"]
    words = {0.15: "direction only", 0.201: "reproduced", 0.5: "reproduced", 0.699: "reproduced", 0.8: "direction only"}
    for stay, verdict in {**words, 1.2: "not reproduced"}.items():
        samples = [tuple(share * (1 + 1e-5 * i) for i in range(5)) for share in (stay, 1.0)]
        groups = tuple(Group(each, power) for each, power in zip(samples, (1.0, -1.0), strict=True))
        assert judge([claim], {claim.id: Measurement(groups)})[0].verdict == verdict


def test_without_records_of_the_learning_rates_the_rest_is_measured() -> None:
    records = [_record(trial, "laptop") for trial in experiment.trials("laptop", []) if "rates" not in trial.treatment]
    results = {r.id: r for r in judge(claims_of("separation"), experiment.measure("laptop", records), missing="none")}
    assert results["fig3.rate.15"].reason == "its trials have no records yet"
    assert results["fig3.gamma.15"].verdict == "reproduced"


@pytest.mark.data
@pytest.mark.usefixtures("_digits")
def test_a_trial_of_learning_rates_has_nothing_else(tmp_path: Any) -> None:
    [trial, *_] = plan.trials_of("laptop", "engine", "rates")
    small = {"words": 12, "learned": 80, "epochs": 8, "iterations": 2, "passes": 2, "snrs": [10]}
    found = listening.listen({**trial.settings, **small}, 0, Context(tmp_path))
    assert not found.metrics
    assert {f"rate 10 {rate:g}" for rate in plan.SIZES["laptop"].slow} <= set(found.curves)


def test_the_48_cells_are_those_of_the_tables() -> None:
    cells = [c for c in claims_of("separation") if c.kind == "value"]
    assert len(cells) == 48
    values = {c.id: c.value for c in cells}
    assert values["t1.att.test.15"] == 93.5
    assert values["t2.mlp.train.5"] == 32.6
    shares = {c.id: c.value for c in claims_of("separation") if c.kind == "ratio"}
    assert shares["t2.cut.test.clean"] == pytest.approx(2.8 / 8.3, abs=1e-3)


def test_rooms_are_the_samples_however_many_words_they_have() -> None:
    trials = plan.trials_of("laptop", "engine")
    records = [_record(trial, "laptop") for trial in trials]
    found = plan.wrong(records, "test 15 ica")
    assert len(found) == len(plan.SIZES["laptop"].rooms)
    wanted = [np.mean(np.array(r.curves["test 15 ica"], float)) for r in sorted(records, key=lambda r: r.seeds)]
    np.testing.assert_allclose(found, 100 * np.array(wanted))


def test_tuning_rooms_are_not_those_that_are_judged() -> None:
    rooms = {trial.seeds[0] for profile in PROFILES for trial in experiment.trials(profile, [])}  # type: ignore[arg-type]
    assert max(rooms) < 100
