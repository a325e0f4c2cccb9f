"""The experiments of noise control: a line of figure 5, what is judged on what, plan and claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from counterflow.analog import DeviceModel
from counterflow.exceptions import DataNotFoundError, DivergenceError
from counterflow.lab.papers.noise_control import experiment, plan, runs, sensitivity
from counterflow.lab.papers.noise_control.figures import exhibits, needed
from counterflow.lab.report import TableExhibit
from counterflow.lab.trials import Context, Record, Trial, claims_of, judge
from counterflow.noise_control import Tuned

from .finished import finished

PROFILES = ["smoke", "laptop", "paper"]


@pytest.fixture
def white(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of our own, so that no data set is needed."""
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 48000)
    monkeypatch.setattr(runs, "recording", lambda name, rate: samples)


def settings(**more: Any) -> dict[str, Any]:
    return {**plan.figure_trial("smoke", "lms", "H1", *plan.PAPERS).settings, **more}


def test_no_run_is_judged_on_what_chose_its_step() -> None:
    samples = np.arange(1000.0)
    tuning = runs.tuning_parts(samples, 100, 2.0)
    assert [(each[0], len(each)) for each in tuning] == [(0, 200), (150, 200), (300, 200)]
    parts = [runs.part(samples, 100, 2.0, seed) for seed in range(40)]
    assert all(len(each) == 200 and each[0] >= 500 for each in parts)
    assert len({each[0] for each in parts}) > 20
    assert all(seed != runs.TUNING_SEED for profile in plan.PLANS.values() for seed in profile.seeds)


@pytest.mark.parametrize(("profile", "overlap"), [("smoke", "some"), ("laptop", "any two"), ("paper", "any two")])
def test_claims_say_which_parts_overlap_and_in_which_reading_they_are_judged(profile: Any, overlap: str) -> None:
    plans, rate = plan.PLANS[profile], plan.PAPERS[0][1]
    samples = np.arange(float(plan.PAPERS_SAMPLES))
    parts = [set(runs.part(samples, rate, plans.seconds, seed)[::100].astype(int) // 100) for seed in plans.seeds]
    pairs = [not a.isdisjoint(b) for number, a in enumerate(parts) for b in parts[:number]]
    assert (any(pairs), all(pairs)) == (True, overlap == "any two")
    found = experiment.measure(profile, [_record(trial, profile) for trial in experiment.trials(profile, [])])
    told = [measured.differs for measured in found.values() if measured.groups]
    assert len(told) > 20
    for words in told:
        assert words.startswith(
            f"{len(parts)} parts of {plans.seconds:g} s of another car's noise, of which {overlap} "
        )
        assert words.endswith(": car noise at 16 kHz, saturating distortion on the target's path")
    if profile == "laptop":
        assert "between 12.84 and 17.41 s of one recording of 25.5 s" in told[0]


@pytest.mark.data
def test_the_recording_that_claims_are_judged_on_is_as_long_as_they_say() -> None:
    try:
        samples = runs.recording(*plan.PAPERS[0])
    except DataNotFoundError as error:
        pytest.skip(str(error))
    assert len(samples) == plan.PAPERS_SAMPLES


@pytest.mark.usefixtures("white")
def test_a_step_that_amplifies_one_part_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = iter([(6.0, 9.0), (6.0, -20.0), (6.0, 9.0), (-np.inf, -np.inf), (6.0, 9.0), (6.0, 9.0)])
    monkeypatch.setattr(runs, "choose_step", lambda *arguments: Tuned(0.0, (0.1, 0.2), next(parts)))
    tuned = runs.best_step("lms", settings(), 25.0)
    assert (tuned.best, tuned.reductions_db) == (0.1, (6.0, pytest.approx(-2 / 3)))
    with pytest.raises(DivergenceError, match=r"steps are from 0\.1 to 0\.2"):
        runs.best_step("lms", settings(), 25.0)


@pytest.mark.usefixtures("white")
def test_a_line_has_a_reduction_for_each_seed_and_ratio(tmp_path: Any) -> None:
    found = runs.line("lms", (0, 1), settings(budget=4), Context(tmp_path))
    severe, mild = found.metrics[plan.key(0.0)], found.metrics[plan.key(25.0)]
    assert len(severe) == len(mild) == 2
    assert all(0 < a < b < 21 for a, b in zip(severe, mild, strict=True))  # type: ignore[operator]
    assert severe[0] != severe[1]
    assert len(found.curves["step"]) == 2
    assert runs.line("lms", (0, 1), settings(budget=4), Context(tmp_path)) == found


@pytest.mark.usefixtures("white")
def test_a_converter_of_one_effective_bit_costs_reduction(tmp_path: Any) -> None:
    plain, coarse = (
        runs.line(arm, (0,), settings(ratios=[25.0], used=1 / 128, budget=3), Context(tmp_path)).metrics[plan.key(25.0)]
        for arm in ("perceptron", "8-bit both")
    )
    assert plain[0] is not None
    assert coarse[0] is not None
    assert coarse[0] < plain[0] - 3


@pytest.mark.usefixtures("white")
def test_divergence_is_a_result(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any, **options: Any) -> Any:
        raise DivergenceError("step is 1: it diverged")

    monkeypatch.setattr(runs, "choose_step", away)
    found = runs.line("nlms", (0, 1), settings(), Context(tmp_path))
    assert found.metrics[plan.key(0.0)] == [None, None]
    assert found.curves["step"] == [None, None]


def _record(trial: Trial, profile: str) -> Record:
    """As if the paper were right."""
    best = {"lms": 2.0, "nlms": 3.0, "volterra": 15.0, "perceptron": 8.0}.get(trial.treatment, 4.0)
    mild = {"chip": 8.0 if trial.settings["channel"] == "H1" else 5.0}.get(trial.treatment, 16.0)
    mild = mild if not trial.treatment.startswith("8-bit") else 10.0
    metrics = {}
    if trial.treatment in plan.STUDIES:
        names = DeviceModel.names()
        keys = ["ideal", "paper", *(f"all at {scale:g}" for scale in plan.SCALES)]
        keys += [f"{word} {name}" for word in ("only", "without", "first", "total") for name in names]
        metrics = {
            each: tuple(20.0 - (number if each.startswith("all") else 0) for _ in trial.seeds)
            for number, each in enumerate(keys)
        }
    for ratio in trial.settings.get("ratios", ()):  # type: ignore[union-attr]
        value = mild if trial.treatment == "chip" else best + (mild - best) * ratio / 25  # type: ignore[operator]
        value = 4.0 if trial.treatment == "chip" and ratio < 5 else value  # type: ignore[operator]
        metrics[plan.key(ratio)] = tuple(value + 0.01 * seed for seed in trial.seeds)  # type: ignore[arg-type]
    return finished(trial, profile, metrics)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured_or_says_why_not(profile: Any) -> None:
    trials = experiment.trials(profile, [])
    names = [(trial.treatment, str(trial.settings)) for trial in trials]
    assert len({*names}) == len(names)
    records = [_record(trial, profile) for trial in trials]
    results = judge(claims_of(plan.KEY), experiment.measure(profile, records), missing="no trial measures it")
    assert [r.id for r in results if r.reason == "no trial measures it"] == []
    verdicts = {r.id: r.verdict for r in results}
    for claim in (
        "lms.degrades",
        "perceptron.degrades_less",
        "perceptron.better",
        "8bit.target",
        "8bit.both.much",
        "chip.worse.25",
        "chip.better",
        "chip.only",
    ):
        assert verdicts[f"fig5a.{claim}"] == verdicts[f"fig5b.{claim}"] == "reproduced", claim
    for claim in ("fig5b.chip.saturates", "fig5.chip.channels", "fig6.residual"):
        assert verdicts[claim] == "reproduced", claim
    for name in ("rows", "columns", "neurons", "synapse_chips", "neuron_chips", "taps"):
        assert verdicts[f"geometry.{name}"] == "not run", name
    assert verdicts["converters.input"] == verdicts["converters.output"] == "not run"
    shown = exhibits(profile, records, results)
    readings = len(plan.PLANS[profile].conditions) * len(plan.PLANS[profile].placements)
    assert len(shown) == 2 * readings + 4
    [table] = [each for each in shown if isinstance(each, TableExhibit) and each.title == "Which controller to take"]
    assert all("Volterra" in str(row[3]) for row in table.rows)
    assert exhibits(profile, [], []) == []


def test_a_run_that_diverged_counts_as_no_reduction_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [_record(trial, "smoke") for trial in experiment.trials("smoke", [])]
    lms = next(record for record in records if record.treatment == "lms" and record.settings["channel"] == "H1")
    lms.metrics[plan.key(0.0)] = (None, 2.0, 2.0)  # type: ignore[index]
    found = experiment.measure("smoke", records)["fig5a.lms.degrades"]
    assert found.groups[0].samples == pytest.approx((-16.0, 2.0 - 16.01, 2.0 - 16.02))
    assert "1 runs of lms diverged" in found.reason


def test_severities_are_between_an_ideal_chip_and_worse_than_the_papers() -> None:
    names = DeviceModel.names()
    assert sensitivity.device_with(dict.fromkeys(names, 0.0), 16000).imperfections == ()
    assert sensitivity.device_with(dict.fromkeys(names, 1.0), 16000) == DeviceModel.paper()
    coarse = sensitivity.device_with({"output_bits": 2.0, "signal_range": 2.0, "min_select": 0.4}, 8000)
    assert (coarse.output_bits, coarse.signal_range, coarse.min_select, coarse.sample_rate) == (7, 0.5, False, 8000.0)


@pytest.mark.usefixtures("white")
def test_the_studies_measure_every_imperfection(tmp_path: Any) -> None:
    settings = {**plan.study_trial("smoke", "attribution", "H1").settings, "seconds": 0.1, "budget": 1}
    names = DeviceModel.names()
    alone = sensitivity.one_at_a_time((0,), settings, Context(tmp_path)).metrics
    assert len(alone) == 2 + 2 * len(names)
    assert alone["ideal"][0] != alone["paper"][0]
    scaled = sensitivity.precision((0,), {**settings, "scales": [0.0, 1.0]}, Context(tmp_path)).metrics
    assert scaled["all at 0"] == alone["ideal"]
    assert scaled["all at 1"] == alone["paper"]
    shares = sensitivity.attribution((0,), settings, Context(tmp_path)).metrics
    assert {f"{word} {name}" for word in ("first", "total") for name in names} < shares.keys()
    assert all(value is not None and np.isfinite(value) for values in shares.values() for value in values)


def test_the_precision_that_is_needed_is_interpolated() -> None:
    assert needed((0.0, 1.0, 2.0), (20.0, 16.0, 12.0)) == "1.2"
    assert needed((0.0, 1.0), (14.0, 10.0)) == "not reached without any"
    assert needed((0.0, 1.0), (19.0, 18.0)) == "more than 1"
