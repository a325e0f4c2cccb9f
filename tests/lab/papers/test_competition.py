"""The experiments of local winner-take-all: nets, schedule, a run that stops, folds, forgetting, plan and claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterflow.competition import LocalWinnerTakeAll
from counterflow.lab import loop
from counterflow.lab.data import Review, Texts
from counterflow.lab.papers.competition import digits, experiment, memory, nets, plan, reviews
from counterflow.lab.papers.competition.figures import exhibits
from counterflow.lab.trials import Context, Record, Trial, claims_of, judge

from .finished import finished

PROFILES = ["smoke", "laptop", "paper"]


def test_nets_of_one_seed_begin_with_the_same_parameters_whatever_the_activation() -> None:
    first, *others = [[*nets.body(a, 3, 20, (8, 8)).parameters()] for a in plan.ACTIVATIONS]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], next(nets.body("lwta", 4, 20, (8, 8)).parameters()))
    x = torch.randn(4000, 20)
    with torch.no_grad():
        wide = nets.body("lwta", 0, 20, (2000,))(x), nets.body("relu", 0, 20, (2000,))(x)
    for y in wide:  # as much comes out as went in
        assert float(y.square().mean()) == pytest.approx(1.0, rel=0.1)


def test_dropout_is_where_its_source_has_it_and_off_in_eval_mode() -> None:
    net = nets.perceptron("dropout input", 0, (6, 6))
    assert [type(m).__name__ for m in net] == ["Dropout", *["Linear", "ReLU", "Dropout"] * 2, "Linear"]
    assert [m.p for m in net if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]
    assert not any(isinstance(m, nn.Dropout) for m in nets.perceptron("lwta", 0, (6, 6)))
    x, labels = torch.rand(20, 784), torch.zeros(20, dtype=torch.long)
    assert digits.wrong(net, x, labels) == digits.wrong(net, x, labels)
    assert net.training


def test_the_convolutional_net_is_the_papers() -> None:
    net = nets.convolutional(0)
    shapes = [tuple(m.weight.shape) for m in net if isinstance(m, nn.Conv2d | nn.Linear)]
    assert shapes == [(16, 1, 7, 7), (32, 16, 6, 6), (128, 288), (128, 128), (10, 128)]
    assert sum(isinstance(m, LocalWinnerTakeAll) for m in net) == 2
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_over_a_run_momentum_rises_and_the_rate_falls_to_its_floor() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.5)
    schedules = digits.schedules_of(optimizer, {"epochs": 5, "floor": 0.05, "momentum": [0.5, 0.9]})
    seen = []
    for _ in range(5):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert [m for _, m in seen] == pytest.approx([0.5, 0.7, 0.9, 0.9, 0.9])
    assert [rate for rate, _ in seen] == pytest.approx([0.2 * 0.05 ** (t / 4) for t in range(5)])


class _KilledError(Exception):
    pass


class _Deadly(Context):
    def progress(self, fraction: float, note: str = "") -> None:
        if note == "update 9":
            raise _KilledError


@pytest.mark.parametrize("method", ["lwta", "dropout input"])
def test_a_run_that_was_killed_goes_on_to_the_bit(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    [trial, *_] = plan.perceptron_trials("smoke", method, 0.1)
    batch = int(trial.settings["batch"])  # type: ignore[arg-type]
    settings = {**trial.settings, "examples": 4 * batch, "tested": 100, "epochs": 4}
    for name in "abc":
        (tmp_path / name).mkdir()
    whole = digits.learn(method, 0, settings, Context(tmp_path / "a"))
    with pytest.raises(_KilledError):
        digits.learn(method, 0, settings, _Deadly(tmp_path / "b"))
    assert digits.learn(method, 0, settings, Context(tmp_path / "b")) == whole
    enough = {**settings, "enough": whole.curves["train"][2] + 1e-9}  # type: ignore[operator]
    assert digits.learn(method, 0, enough, Context(tmp_path / "c")).metrics["epochs"] == [2.0]
    assert len(whole.curves.get("trained 2", ())) == (55 if method == "lwta" else 0)


def test_the_pictures_held_out_are_the_last_and_are_not_learned_from() -> None:
    parts = digits.pictures(300, 100, 50)
    assert [len(parts[name][0]) for name in ("train", "held", "test")] == [200, 100, 50]
    whole = digits.pictures(300, 0, 50)["train"][0]
    assert torch.equal(torch.cat([parts["train"][0], parts["held"][0]]), whole)
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1


def test_folds_are_balanced_and_words_are_those_of_the_reviews_learned_from() -> None:
    positive = np.arange(40) % 2 == 0
    fold = reviews.folds_of(positive, 10)
    assert all((positive[fold == f].sum(), (fold == f).sum()) == (2, 4) for f in range(10))

    written = [Review("", "train", "books", True, 5.0, *parts, "") for parts in TEXTS]
    training = np.array([0, 1])
    plain = reviews._most_frequent(reviews._words(written, titles=False), training, 100)
    assert plain.sum(1).tolist() == [3, 3, 1]  # fine, book, fine book; of the third but book is known
    titled = reviews._most_frequent(reviews._words(written, titles=True), training, 100)
    assert titled.sum(1).tolist() == [5, 5, 1]
    one = reviews._most_frequent(reviews._words(written, titles=False), training, 1)
    assert one.tolist() == [[1], [1], [1]]  # book


TEXTS = (("good", "fine book"), ("bad", "poor book"), ("odd", "odd odd book"))


def test_reviews_are_told_apart_and_repeated_ones_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {True: "great lovely", False: "awful broken"}
    made = [
        Review(str(i), "train", "books", i % 2 == 0, 5.0, "", f"{words[i % 2 == 0]} number{i}", "") for i in range(40)
    ]
    made += [made[0]] * 20  # the same text 21 times
    monkeypatch.setattr(reviews, "sentiment", lambda: Texts("sentiment", tuple(made)))
    trial = plan.text_rate_trials("laptop", False)[0.1, "books"]
    settings = {**trial.settings, "words": 30, "batch": 10, "units": (8, 8), "epochs": 20}
    alone = reviews.classify((0, 1), settings, Context(tmp_path), beside=False).metrics
    found = reviews.classify((0, 1), settings, Context(tmp_path)).metrics
    assert {name: values for name, values in found.items() if "logistic" not in name} == alone
    assert found["lwta all"] == found["logistic all"] == found["lwta unique"] == [100.0, 100.0]
    assert all(0 < (v or 0) < 8 for v in found["repeated"])


def test_a_domain_has_no_say_in_the_rate_of_its_net() -> None:
    """Books alone do best at 1, so much that they would outvote all others; these do best at 0.03, but for DVDs."""

    def accuracy(trial: Trial) -> float:
        best = {"books": 1.0, "dvd": 0.3}.get(str(trial.settings["domain"]), 0.03)
        return (60.0 if trial.settings["domain"] == "books" else 20.0) * (trial.settings["rate"] == best)

    records = [
        finished(trial, "laptop", {"lwta all": (accuracy(trial),) * len(trial.seeds)})
        for trial in experiment.trials("laptop", [])
        if trial.treatment == "sentiment rate" and not trial.settings["titles"]
    ]
    assert len(records) == 4 * 5
    trials = {domain: plan.text_trials("laptop", domain, False, records)[0] for domain in plan.DOMAINS}
    best = {domain: trial.settings["rate"] for domain, trial in trials.items()}
    assert best == {"books": 0.03, "dvd": 1.0, "electronics": 1.0, "kitchen": 1.0}
    assert plan.text_rates("laptop", "books", False, records)[0.03] == pytest.approx(40 / 3)
    trial = trials["books"]
    assert (trial.settings["domain"], len(trial.seeds)) == ("books", 10)
    assert plan.text_trials("laptop", "books", True, records) == []
    others = [record for record in records if record.settings["domain"] != "books"]
    assert plan.text_trials("laptop", "books", False, others) == [trial]
    assert plan.text_trials("laptop", "dvd", False, others) == []


def test_forgetting_has_the_two_halves_of_the_digits_and_one_start_for_all(tmp_path: Path) -> None:
    first, second = memory.tasks(300, 100)
    for task in (first, second):
        assert task.train_y.unique().tolist() == list(range(5))
        assert len(task.train_x) == 300
    ones = first.train_x[first.train_y == 1].mean(0), second.train_x[second.train_y == 1].mean(0)
    assert float((ones[0] - ones[1]).norm()) > 1  # a 1 is no 6
    [trial, *_] = plan.forgetting_trials("smoke", "lwta", plan.MAIN)
    settings = {**trial.settings, "examples": 300, "tested": 100, "units": 20, "goal": 0.3, "epochs": 20}
    found = memory.forget("lwta", 0, settings, Context(tmp_path))
    assert memory.forget("lwta", 0, settings, Context(tmp_path)) == found
    assert found.metrics["reached"] == [1.0]
    assert found.metrics["before"][0] < found.metrics["after"][0]  # type: ignore[operator]
    assert memory.forget("lwta", 0, {**settings, "epochs": 1}, Context(tmp_path)).metrics["reached"] == [0.0]


def test_the_truth_table_is_counted_and_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.truth_table(0, 500).metrics["lwta wrong"] == [0.0]
    monkeypatch.setattr(memory, "lwta", torch.relu)
    broken = memory.truth_table(0, 500).metrics
    assert broken["lwta wrong"][0] > 100  # type: ignore[operator]
    assert broken["both"][0] > 100  # type: ignore[operator]


PUBLISHED = {
    "lwta": 1.28,
    "sigmoid": 1.60,
    "relu": 1.43,
    "dropout": 1.30,
    "dropout input": 1.1,
    "conv": 0.57,
    "before": {"lwta": 1.55, "sigmoid": 1.38, "relu": 1.30},
    "after": {"lwta": 6.12, "sigmoid": 57.84, "relu": 16.63},
    "books": 80.0,
    "dvd": 81.05,
    "electronics": 84.45,
    "kitchen": 85.8,
}


def _record(trial: Trial, profile: str) -> Record:
    """As if the paper were right."""
    published: dict[str, Any] = PUBLISHED
    jitter = 1 + 0.01 * (trial.seeds[-1] % 5)
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    if trial.treatment == "table 1":
        metrics = {"lwta wrong": (0.0,), "relu wrong": (0.0,), "both": (0.0,)}
        metrics |= {"lwta passed": (0.5,), "relu passed": (0.5,)}
    elif trial.treatment.startswith("sentiment"):
        at = published[str(trial.settings["domain"])]
        values = tuple(at + 0.5 * (-1) ** fold for fold in trial.seeds)
        metrics = {f"{net} {of}": values for net in ("lwta", "logistic") for of in ("all", "unique")}
        metrics["repeated"] = (1.0,) * len(trial.seeds)
    elif trial.treatment.startswith("forgetting"):
        activation = trial.treatment.split()[-1]
        metrics = {when: (published[when][activation] * jitter,) for when in ("before", "after")}
        metrics |= {"second": (2.0,), "epochs first": (2.0,), "epochs second": (3.0,), "reached": (1.0,)}
    else:
        worse = 1.3 if trial.settings.get("decay") == 0 else 1.0
        end = published[trial.treatment] * jitter * worse
        metrics = {"test": (end,), "held": (end + float(trial.settings["rate"]),), "train": (0.001,), "epochs": (9.0,)}  # type: ignore[arg-type]
        curves = {"test": (90.0, end), "train": (2.3, 0.001), "update": (0.0, 100.0)}
        if trial.treatment == "lwta":
            for layer in range(3):
                curves[f"untrained {layer}"] = tuple(0.6 * jitter for _ in digits.PAIRS)
                curves[f"trained {layer}"] = tuple((0.5 if pair == (3, 8) else 0.3) * jitter for pair in digits.PAIRS)
    return finished(trial, profile, metrics, curves)


def _records(profile: Any) -> list[Record]:
    records: list[Record] = []
    for _ in range(3):  # until no stage is new
        records = [_record(trial, profile) for trial in experiment.trials(profile, records)]
    return records


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured_or_says_why_not(profile: Any) -> None:
    records = _records(profile)
    results = judge(claims_of("competition"), experiment.measure(profile, records), missing="no trial measures it")
    assert [r.id for r in results if r.reason == "no trial measures it"] == []
    verdicts = {r.id: r.verdict for r in results}
    wanted = ["t1.lwta", "t1.one", "t4.order.lwta.relu.r0.02m0.5", "fig3b.last"]
    if profile != "smoke":
        cited = {"t2.maxout", *(f"t3.{n}" for n in ("pretrained_34", "relu", "pretrained_36", "stochastic", "maxout"))}
        assert {r.id for r in results if r.verdict == "not run"} == cited
        wanted += ["t2.lwta", "t2.order.relu", "t3.lwta", "t3.decay", "s.dvd.title.unique", "s.mean.text.all"]
        wanted += ["s.glorot.title.all", "t4.after2.sigmoid", "fig3a.12.last"]
        # Ten runs with the published spread, 3.39 of 6.12, do not settle a factor of 1.5.
        assert verdicts["t4.after2.lwta"] == "inconclusive"
    for claim in wanted:
        assert verdicts[claim] == "reproduced", claim
    titles = [exhibit.title for exhibit in exhibits(profile, records, results)]
    for title in ("Table 2", "What chose", "Table 3", "Sentiment", "Table 4", "Figure 3a", "Figure 3b", "Test error"):
        assert any(each.startswith(title) for each in titles), title
    assert exhibits(profile, [], []) == []


def test_what_is_judged_was_chosen_on_pictures_held_out() -> None:
    for method in plan.TRIED:
        trials = plan.rate_trials("laptop", method)
        assert plan.best_rate("laptop", method, []) is None
        records = [_record(trial, "laptop") for trial in trials.values()]
        assert plan.best_rate("laptop", method, records) == min(trials)
        assert all(trial.settings["held"] == 10_000 for trial in trials.values())
        for trial in plan.perceptron_trials("laptop", method, min(trials)):
            assert trial.settings["held"] == 0
            assert trial.seeds[0] != plan.SELECTION
    short = plan.setting_trials("laptop")
    assert plan.best_setting("laptop", []) is None
    assert plan.best_setting("laptop", [_record(trial, "laptop") for trial in short.values()]) == ("mean", 0.01)
    assert all(trial.settings["held"] == 10_000 for trial in short.values())


def test_seeds_that_are_not_there_yet_are_said_to_be_missing() -> None:
    records = [r for r in _records("laptop") if not (r.treatment == "forgetting relu" and r.seeds[0] > 6)]
    measured = experiment.measure("laptop", records)["t4.after2.relu"]
    assert len(measured.groups[0].samples) == 7
    assert "7 of 10 initializations so far" in measured.reason


def test_runs_to_the_last_epoch_are_shown_and_judge_nothing() -> None:
    records = _records("laptop")
    whole = plan.whole_trials("laptop", records)
    judged = plan.judged("laptop", "lwta", records)
    assert [t.seeds for t in whole] == [r.seeds for r in judged]
    for trial, record in zip(whole, judged, strict=True):
        differ = {name for name in trial.settings if trial.settings[name] != record.settings[name]}
        assert differ == {"enough"}
    without = [r for r in records if r.treatment != "lwta" or r.settings["enough"] != 0.0]
    assert len(without) == len(records) - 3
    assert experiment.measure("laptop", without) == experiment.measure("laptop", records)
    table, shorter = (
        next(e for e in exhibits("laptop", of, []) if e.title.startswith("Table 2")) for of in (records, without)
    )
    assert [row[0] for row in table.rows[len(shorter.rows) :]] == ["LWTA-2, to the last epoch"]  # type: ignore[union-attr]
