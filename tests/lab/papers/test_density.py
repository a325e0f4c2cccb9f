"""The experiments of relative density nets: splits, nets at their sizes, the error at the models, plan and claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from counterflow.lab import stats
from counterflow.lab.papers.density import experiment, nets, peers, plan, speakers, timing
from counterflow.lab.papers.density.figures import exhibits
from counterflow.lab.trials import Context, Record, Trial, claims_of, judge
from counterflow.lab.trials.finding import identity

from .finished import finished

PROFILES = ["smoke", "laptop", "paper"]
BASE = {"corpus": "toy", "features": "", "speakers": 0, "clips": 0, "frames": 0, "text": ""}
NET = {**BASE, "models": 3, "average": True, "scale": 0.1, "first": "random", "iterations": 4}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> speakers.Corpus:
    """Three speakers, six recordings of each, of two sentences."""
    generator = torch.Generator().manual_seed(0)
    who = [s for s in range(3) for _ in range(6)]
    frames = [
        torch.randn(8 + i % 3, 4, generator=generator, dtype=torch.float64) + 1.5 * torch.eye(4)[s].double()
        for i, s in enumerate(who)
    ]
    made = speakers.Corpus(tuple(frames), tuple(who), tuple("ab"[i % 2] for i in range(len(who))))
    monkeypatch.setattr(nets, "corpus", lambda settings: made)
    return made


def test_a_split_keeps_a_third_of_each_speakers_recordings(toy: speakers.Corpus) -> None:
    halves = speakers.split(toy, 0)
    assert torch.bincount(halves.test.y).tolist() == [2, 2, 2]
    assert torch.bincount(halves.training.y).tolist() == [4, 4, 4]
    assert halves.ratio == 0.5
    inside = torch.arange(halves.training.x.shape[1]) < halves.training.lengths[:, None]
    learned = halves.training.x[inside]
    torch.testing.assert_close(learned.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(learned.std(0, correction=0), torch.ones(4, dtype=torch.float64))
    assert not torch.equal(speakers.split(toy, 1).test.x[:, :8], halves.test.x[:, :8])
    # Settings are chosen on recordings of the training side alone, in their own scale.
    mean, spread = (f(torch.cat(toy.frames), 0) for f in (torch.mean, torch.std))
    tuning = speakers.split(toy, 0, inner=True)
    assert len(tuning.training.y) + len(tuning.test.y) == len(halves.training.y)

    def ids(half: speakers.Half) -> set[float]:
        return {
            round(float(n), 0) + round(float(x[:n].diff(dim=0).sign().sum()), 3)
            for x, n in zip(half.x, half.lengths, strict=True)
        }

    assert mean.shape == spread.shape
    assert ids(tuning.test) | ids(tuning.training) <= ids(halves.training)


def test_one_sentence_or_as_many_of_any(toy: speakers.Corpus) -> None:
    same, mixed = (speakers.one_sentence(toy, 1, each) for each in (False, True))
    assert set(same.texts) == {"b"}
    assert set(mixed.texts) == {"a", "b"}
    assert same.speakers == mixed.speakers == (0,) * 3 + (1,) * 3 + (2,) * 3


@pytest.mark.parametrize("net", nets.NETS)
@pytest.mark.parametrize("average", [True, False])
def test_nets_learn_at_their_sizes(net: str, average: bool, tmp_path: Any) -> None:
    settings = {**NET, "net": net, "average": average}
    found = nets.learn(settings, 0, Context(tmp_path))
    assert found.metrics["loss"][0] < found.metrics["initial loss"][0]  # type: ignore[operator]
    assert len(found.curves["loss"]) == found.metrics["iterations"][0] + 1  # type: ignore[operator]
    assert found.metrics == nets.learn(settings, 0, Context(tmp_path)).metrics
    assert nets.build(settings, 4, 3, 0).time_average == average


def test_small_weights_attenuate_the_error_and_the_pattern_does_not(tmp_path: Any) -> None:
    settings = {key: value for key, value in NET.items() if key not in ("scale", "first")}
    found = {
        k: v[0] for k, v in nets.errors({**settings, "scales": [0.001, 0.01]}, 0, Context(tmp_path)).metrics.items()
    }
    assert found["cdn 0.01"] == pytest.approx(10 * found["cdn 0.001"], rel=0.3)  # type: ignore[operator]
    assert found["cdn 0.01"] < 0.1 * found["rdn"]  # type: ignore[operator]
    assert found["pairs"] == pytest.approx(found["rdn"], rel=1.0)
    # What the probe sees is the derivative at the bank's log-likelihoods.
    side = nets.recordings_of(settings, 0).training
    net = nets.fresh({**NET, "net": "rdn"}, side, 3, 0)
    scores = net.bank(side.x, side.lengths).detach().requires_grad_()
    out = net.readout(scores / side.lengths[:, None])
    torch.nn.functional.cross_entropy(out, side.y, reduction="sum").backward()
    assert scores.grad is not None
    assert nets.rms_at_the_models(net, side) == pytest.approx(scores.grad.square().mean().sqrt().item(), rel=1e-6)


def test_tempering_makes_the_models_error_independent_of_the_weights_scale() -> None:
    side = nets.recordings_of(NET, 0).training
    plain, tempered = [], []
    for scale in (0.001, 0.03):
        net = nets.fresh({**NET, "net": "cdn", "scale": scale}, side, 3, 0)
        plain.append(nets.rms_at_the_models(net, side))
        nets.tempered_groups(net, side, 1.0)
        torch.nn.functional.cross_entropy(net(side.x, side.lengths), side.y).backward()
        gradient = net.bank.means.grad
        assert gradient is not None
        tempered.append(gradient.square().mean().sqrt().item())
    assert plain[1] > 10 * plain[0]
    assert tempered[1] == pytest.approx(tempered[0], rel=0.5)


@pytest.mark.parametrize("tempered", [False, True])
def test_gradient_descent_chooses_its_rate_on_training_recordings(tempered: bool, tmp_path: Any) -> None:
    found = nets.descend({**NET, "net": "cdn", "tempered": tempered}, 0, Context(tmp_path))
    assert found.metrics["rate"][0] in nets.RATES
    assert 0 <= found.metrics["test"][0] <= 1  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # by hmmlearn, since NumPy 2.5
@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_tell_what_is_easily_told(peer: str, tmp_path: Any) -> None:
    found = peers.compare(peer, {**BASE, "models": 8, "epochs": 15, "fitting": 5}, 0, Context(tmp_path))
    assert found.metrics["training"][0] > 0.7  # type: ignore[operator]
    assert found.metrics["test"][0] >= 0.5  # type: ignore[operator]


def test_the_corrected_test_is_nadeau_and_bengios() -> None:
    a, b = np.array([0.8, 0.9, 0.85, 0.7, 0.95]), np.array([0.75, 0.88, 0.86, 0.6, 0.9])
    d = a - b
    t = d.mean() / (d.std(ddof=1) * np.sqrt(1 / 5 + 0.5))
    less, greater = stats.contrast_p([stats.paired_term(a.tolist(), b.tolist(), "linear", overlap=0.5)])
    assert greater == pytest.approx(scipy_stats.t.sf(t, 4))
    assert less == pytest.approx(scipy_stats.t.cdf(t, 4))


LEVELS = {"rdn": 0.9, "alphanet": 0.8, "mixture": 0.8, "cdn": 0.4, "cdn1": 0.4}


def _record(trial: Trial, profile: str) -> Record:
    """As if the paper were right."""
    seed = trial.seeds[0]
    jitter = 0.002 * ((seed * 7) % 5)
    kind, settings = trial.treatment.partition(" ")[0], trial.settings
    metrics: dict[str, Any] = {"ratio": (0.5,), "training": (0.99,)}
    curves: dict[str, Any] = {}
    if kind == "speed":
        n = len(trial.seeds)
        metrics = {"rdn": (1.0,) * n, "alphanet": (2.0,) * n, "power": (2.0,) * n}
    elif kind == "errors":
        metrics = {"rdn": (1.0 + jitter,), "alphanet": (2.0,), "pairs": (1.0,)}
        metrics |= {f"{net} {s:g}": (0.3 * s * (1 + jitter),) for net in ("cdn", "cdn1") for s in plan.SCALES}
    elif kind == "descent":
        metrics |= {"test": (0.8 + jitter if settings["tempered"] else 0.5,)}
    elif kind == "peer":
        metrics |= {"test": (0.6 + jitter,)}
    else:
        level = LEVELS[str(settings["net"])]
        if settings["scale"] == 1.0 or settings["first"] == "pairs" or int(str(settings["iterations"])) > 90:
            level = 0.9
        level -= 0.05 * (settings["features"] == "cosine")
        level += 0.05 * (settings["text"] == "same" and settings["net"] == "alphanet")
        metrics |= {
            "test": (level + jitter * (1 + 0.1 * len(str(settings["net"]))),),
            "loss": (1 - level + jitter,), "initial loss": (2.0,), "evaluations": (180.0,), "iterations": (90.0,),
            "parameters": (1920.0,), "bands": (0.2 if settings["features"] == "cosine" else 0.5 + jitter,),
        }  # fmt: skip
        curves = {"loss": (2.0, 1 - level)}
    return finished(trial, profile, metrics, curves)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured_or_says_why_not(profile: Any) -> None:
    records = [_record(trial, profile) for trial in experiment.trials(profile, [])]
    results = judge(claims_of("density"), experiment.measure(profile, records), missing="no trial measures it")
    assert [r.id for r in results if r.reason == "no trial measures it"] == []
    verdicts = {r.id: r.verdict for r in results}
    claims = ["fig3a.alphanet.averaged", "fig3a.p.crossed", "reason.attenuated.cdn", "discriminative", "speed.small"]
    if profile != "smoke":
        claims += ["fig3d.mixture.whole", "fig3d.cdn1.whole", "an4.12.alphanet.whole", "reason.scale1", "reason.longer"]
        claims += ["reason.pairs.reaches", "reason.tempering", "features.bands", "footnote3.same", "footnote3.more"]
    for claim in claims:
        assert verdicts[claim] == "reproduced", claim
    if profile == "paper":
        assert set(verdicts.values()) == {"reproduced"}
    titles = [exhibit.title for exhibit in exhibits(profile, records, results)]
    for title in ("Figure 3a", "RDN against Alphanet", "Figure 3 in numbers", "The error's RMS", "Why the"):
        assert any(each.startswith(title) for each in titles), title
    assert exhibits(profile, [], []) == []


def test_a_claim_waits_for_splits_that_all_of_its_nets_have_finished() -> None:
    records = [_record(t, "laptop") for t in experiment.trials("laptop", []) if t.seeds[0] < 4]
    kept = [r for r in records if not (r.treatment == "alphanet averaged emodb" and r.seeds[0] == 1)]
    found = {r.id: r for r in judge(claims_of("density"), experiment.measure("laptop", kept))}
    assert found["fig3a.alphanet.averaged"].n == 3
    assert found["fig3a.alphanet.literal"].n == 4
    few = [r for r in records if r.seeds[0] < 2]
    found = {r.id: r for r in judge(claims_of("density"), experiment.measure("laptop", few))}
    assert found["fig3a.alphanet.averaged"].verdict == "not run"
    assert "splits" in found["fig3a.alphanet.averaged"].reason


def test_a_net_that_is_behind_is_never_significant() -> None:
    ours, theirs = ([_record(t, "smoke") for t in plan.net_trials("smoke", net, 4)] for net in ("cdn", "rdn"))
    assert min(plan.p_values(ours, theirs)) == 1.0
    assert max(plan.p_values(theirs, ours)) < 0.01


def test_each_size_and_net_is_timed_once_a_repeat_and_the_power_is_that_of_its_times(tmp_path: Any) -> None:
    trial = plan.speed_trials("smoke")[0]
    states = [4, 8, 16]
    settings = {**trial.settings, "states": states, "batch": 2, "frames": 20}
    found = timing.times(settings, range(3), Context(tmp_path)).metrics
    assert set(found) == {"rdn", "alphanet", *(f"states {number}" for number in states), "power"}
    for repeat in range(3):
        took = [found[f"states {number}"][repeat] for number in states]
        assert all(seconds is not None and seconds > 0 for seconds in took)
        slope = scipy_stats.linregress(np.log(states), np.log(np.array(took, float))).slope
        assert found["power"][repeat] == pytest.approx(slope)


@pytest.mark.parametrize("profile", PROFILES)
def test_trials_are_named_once_and_only_the_timed_one_runs_alone(profile: Any) -> None:
    named = [identity(t) for t in experiment.trials(profile, [])]
    assert len(named) == len(set(named))
    for trial in experiment.trials(profile, []):
        assert trial.exclusive == (trial.treatment == "speed")
