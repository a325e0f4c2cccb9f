"""The experiments of variational dropout: the nets, a run that stops, table 1's samples, plan and claims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from torch import nn

from counterflow.lab import loop
from counterflow.lab.papers.variational import errors, experiment, nets, plan, variance
from counterflow.lab.papers.variational.figures import exhibits
from counterflow.lab.report import Figure
from counterflow.lab.trials import Context, Group, Measurement, Record, Trial, claims_of, judge
from counterflow.variational import VariationalLinear, kl

from .finished import finished

PROFILES = ["smoke", "laptop", "paper"]


@pytest.mark.parametrize("method", plan.METHODS)
@pytest.mark.parametrize("image", [False, True])
def test_each_kind_of_dropout_begins_at_the_papers_rates(method: str, image: bool) -> None:
    plain = nets.convolutional(0, 1) if image else nets.perceptron(0, 20)
    weights = [p.detach().clone() for p in plain.parameters()]
    net = nets.noisy(plain, method, image)
    parameters = dict(net.named_parameters())
    assert all(any(torch.equal(w, p) for p in parameters.values()) for w in weights)  # the same initial weights for all
    layers = [m for m in net.modules() if isinstance(m, VariationalLinear)]
    if method in ("none", "binary"):
        drops = [m.p for m in net.modules() if isinstance(m, nn.Dropout)]
        assert drops == ([] if method == "none" else [0.5] * 3 if image else [0.2, 0.5, 0.5, 0.5])
    else:
        rates = [float(torch.sigmoid(layer.log_alpha().detach()).mean()) for layer in layers]
        assert rates == pytest.approx([0.5] * 3 if image else [0.2, 0.5, 0.5, 0.5])
        assert {layer.noise for layer in layers} == {method.split()[1][0].upper()}
        learned = any(layer.rate.learned for layer in layers)
        assert learned == (nets.kl_scale(method) is not None)
    assert nets.dropout_rate(net) == pytest.approx(0.0 if not layers else 0.5)
    x = torch.rand(3, 3, 32, 32) if image else torch.rand(3, 784)
    assert net(x).shape == (3, 10)
    assert torch.equal(net(x), net(x)) == (method == "none")
    assert nets.kl_scale("variational a2") == pytest.approx(1 / 3)


def test_the_average_lags_behind_and_is_what_is_measured() -> None:
    net = nets.perceptron(0, 5)
    averaged = nets.Averaged(net)
    averaged.update()
    before = averaged.average.module[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight += 1.0
    averaged.update()
    torch.testing.assert_close(averaged.average.module[0].weight, before + 0.001, rtol=1e-3, atol=1e-5)
    x = torch.rand(2, 784)
    assert torch.equal(averaged(x), averaged.average.module(x))


class _KilledError(Exception):
    pass


class _Deadly(Context):
    def progress(self, fraction: float, note: str = "") -> None:
        if note == "update 9":
            raise _KilledError


@pytest.mark.parametrize("method", ["binary", "variational b"])
def test_a_run_that_was_killed_goes_on_to_the_bit(method: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    [trial, *_] = plan.error_trials("smoke", "mnist", method, 50)
    settings = {**trial.settings, "examples": 500, "epochs": 3}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = errors.learn("mnist", method, 0, settings, Context(tmp_path / "a"))
    with pytest.raises(_KilledError):
        errors.learn("mnist", method, 0, settings, _Deadly(tmp_path / "b"))
    assert errors.learn("mnist", method, 0, settings, Context(tmp_path / "b")) == whole
    other = errors.learn("mnist", method, 1, settings, Context(tmp_path))
    assert other != whole


def test_table_1_has_a_sample_for_each_gradient_and_orders_the_estimators(tmp_path: Any) -> None:
    settings = {"width": 24, "examples": 3000, "epochs": 4, "batch": 100, "batches": 6}
    found = variance.measure("b", 0, settings, Context(tmp_path))
    means = {}
    for estimator in plan.ESTIMATORS:
        values = [v or 0.0 for v in found.curves[f"{estimator} top"]]
        assert len(values) == 6
        means[estimator] = sum(values) / 6
    assert means["none"] < means["local"] < means["per_datum"] < means["per_minibatch"]
    assert variance.measure("b", 0, settings, Context(tmp_path)).metrics == found.metrics


def _record(trial: Trial, profile: str) -> Record:
    """As if the paper were right."""
    jitter = 1 + 0.01 * (trial.seeds[-1] % 5)
    metrics: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    if trial.treatment == "speed":
        times = {"per_datum": 220.0, "local": 1.0, "variational a": 1.0, "gaussian a": 1.0}
        metrics = {name: tuple(t * (1 + 0.001 * i) for i in range(3)) for name, t in times.items()}
    elif trial.treatment.startswith("table"):
        late = trial.settings["epochs"] == plan.TABLE[profile].epochs[-1] and len(plan.TABLE[profile].epochs) > 1  # type: ignore[index]
        metrics = {"test": (1.3 if late else 3.0,)}
        published = {c.id: c.value for c in claims_of("variational")}
        for estimator in plan.ESTIMATORS:
            for layer in ("top", "bottom"):
                value = published[f"t1.{estimator}.{layer}{100 if late else 10}"] or 0.0
                curves[f"{estimator} {layer}"] = tuple(value * (1 + 0.01 * i) for i in range(10))
    else:
        method, size = trial.treatment.partition(" ")[2], float(trial.settings["size"])  # type: ignore[arg-type]
        better = {"variational a2": 0.7, "variational a": 0.8, "variational b": 0.85, "gaussian a": 0.95}.get(
            method, 1.0
        )
        better **= 1 + 2 / math.log(10 * size)
        end = 2.0 * better * jitter
        metrics = {"validation": (end,), "test": (end,)}
        rate = 0.3 * math.log(10 * size) / 8 * jitter
        curves = {"validation": (90.0, end), "test": (90.0, end), "rate": (0.5, rate), "update": (0.0, 100.0)}
    return finished(trial, profile, metrics, curves)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured_or_says_why_not(profile: Any) -> None:
    records = [_record(trial, profile) for trial in experiment.trials(profile, [])]
    results = judge(claims_of("variational"), experiment.measure(profile, records), missing="no trial measures it")
    assert [r.id for r in results if r.reason == "no trial measures it"] == []
    verdicts = {r.id: r.verdict for r in results}
    for claim in ("t1.local.top10", "t1.order.per_datum.per_minibatch.bottom10", "t1.factor.top10", "speed", "cost"):
        assert verdicts[claim] == "reproduced", claim
    if profile == "paper":
        assert [r.id for r in results if r.verdict == "not run"] == []
        assert verdicts["t1.none.bottom100"] == verdicts["t1.stable.top"] == "reproduced"
        assert verdicts["t1.early.top"] == verdicts["t1.early.bottom"] == "reproduced"
    if profile != "smoke":
        for claim in ("fig1a.adaptive.a.50", "fig1a.a2.none.300", "fig1a.rates.b", "fig1b.a2.binary.1"):
            assert verdicts[claim] == "reproduced", claim
    titles = [exhibit.title for exhibit in exhibits(profile, records, results)]
    for title in ("Table 1", "Figure 1a", "Figure 1b", "Learned dropout rates", "Figure 1 in numbers"):
        assert any(each.startswith(title) for each in titles), title
    assert exhibits(profile, [], []) == []
    figures = {each.title: each.plot for each in exhibits(profile, records, results) if isinstance(each, Figure)}
    for lines in (each["data"] for each in figures.values()):  # no two look alike
        looks = [(line["line"]["color"], line["line"].get("dash")) for line in lines]
        assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_rests_on_gradients_of_one_net_says_so(profile: Any) -> None:
    records = [_record(trial, profile) for trial in experiment.trials(profile, [])]
    found = experiment.measure(profile, records)
    words = "20 gradients of 2 nets" if profile == "smoke" else "10 gradients of 1 net"  # a record here has ten a net
    table = [claim for claim in found if claim.startswith("t1.") and not claim.startswith("t1.error")]
    told = [claim for claim in (*table, "appE.order") if found[claim].groups]
    assert len(told) == (17 if profile == "laptop" else 37)
    assert [claim for claim in told if words not in found[claim].reason] == []
    if profile == "paper":
        reason = "10 gradients of 1 net after 10 epochs and 10 gradients of 1 net after 100 epochs"
        assert found["t1.stable.top"].reason == found["t1.early.bottom"].reason == reason
    assert found["appE.order"].reason == f"top layer, {words}"


def test_equal_errors_are_equal_or_better_and_larger_ones_are_not() -> None:
    published = [claim for claim in claims_of("variational") if "equal to or better" in claim.claim]
    assert len(published) == 20
    for error, verdict in ((2.0, "reproduced"), (1.5, "reproduced"), (2.5, "not reproduced")):
        samples = tuple(error * (1 + 0.001 * i) for i in range(5))
        others = tuple(2.0 * (1 + 0.001 * i) for i in range(5))
        for claim in published:
            measured = {claim.id: Measurement((Group(samples), Group(others, -1.0)))}
            assert judge([claim], measured)[0].verdict == verdict


def test_the_polynomials_deviation_is_that_of_dawsons_function() -> None:
    log_alpha = np.linspace(-8, 0, 4001)
    root = np.sqrt(0.5 * np.exp(-log_alpha))
    slope = root * scipy.special.dawsn(root)  # of -KL
    exact = scipy.integrate.cumulative_trapezoid(slope, log_alpha, initial=0)
    alpha = np.exp(log_alpha)
    off = 0.5 * log_alpha + 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3 - exact
    [group] = experiment.measure("smoke", [])["kl.polynomial"].groups
    assert group.samples[0] == pytest.approx(np.ptp(off) / 2 / np.ptp(exact), rel=1e-3)


def test_a_claim_is_judged_by_the_seeds_that_all_its_methods_have() -> None:
    trials = [
        trial
        for method, count in (("variational a", 3), ("gaussian a", 2), ("variational a2", 1))
        for trial in plan.error_trials("laptop", "mnist", method, 50)[:count]
    ]
    found = experiment.measure("laptop", [_record(trial, "laptop") for trial in trials])
    first = found["fig1a.adaptive.a.50"]
    assert [len(group.samples) for group in first.groups] == [2, 2]
    assert first.reason == "2 of 5 seeds so far"
    assert [len(group.samples) for group in found["fig1a.a2.gaussian_a.50"].groups] == [1, 1]
    assert "fig1a.adaptive.b.50" not in found


def test_the_epoch_is_chosen_on_validation_alone() -> None:
    [trial, *_] = plan.error_trials("smoke", "mnist", "none", 50)
    record = _record(trial, "smoke")
    record.curves.update(
        {"validation": (9.0, 3.0, 4.0, 3.0), "test": (9.0, 5.0, 1.0, 2.0), "rate": (0.5, 0.4, 0.1, 0.2)}
    )  # type: ignore[attr-defined]
    assert plan.best_epoch(record) == 1
    assert plan.test_errors([record]) == [5.0]
    assert plan.rate_of([record]) == [0.4]
    record.curves.update({"test": (9.0, 0.0, 1.0, 2.0)})  # type: ignore[attr-defined]
    assert plan.test_errors([record]) == [0.0]  # not what stands for a run that diverged
    record.curves.update({"validation": (None,) * 4, "test": (None,) * 4})  # type: ignore[attr-defined]
    assert plan.test_errors([record]) == [100.0]


def test_the_divergence_is_in_the_loss_of_adaptive_nets_alone() -> None:
    for method in plan.METHODS:
        net = nets.noisy(nets.perceptron(0, 5), method)
        if nets.kl_scale(method) is not None:
            assert kl(net).requires_grad


def test_the_timed_trial_runs_alone() -> None:
    for profile in PROFILES:
        for trial in experiment.trials(profile, []):  # type: ignore[arg-type]
            assert trial.exclusive == (trial.treatment == "speed")
