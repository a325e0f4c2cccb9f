"""Methods together on one model: each keeps the meaning that its docstring states."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow import backward


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).double()


X = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))


def _backward(net):
    net.zero_grad()
    nn.functional.cross_entropy(net(X), Y, reduction="sum").backward()


def _rms(net):
    with cf.probe(net, "*", every=1) as seen:
        _backward(net)
    return {row.layer: row.values["rms"] for row in seen.table()}


def _temper(net, **options):
    return cf.temper(net, X, loss="cross_entropy_sum", input_power={"0": 6.0}, local_output=False, **options)


def test_a_probe_sees_the_error_that_tempering_passes_on():
    """Below a tempered layer the error is the plain one times the attenuations on its way."""
    plain = _rms(_net())
    net = _net()
    handle = _temper(net, shunt=False)
    tempered = _rms(net)
    attenuation = {row.layer: row.values["attenuation"] for row in handle.table()}
    assert attenuation["2"] == pytest.approx(1 / math.sqrt(3))
    assert attenuation["0"] == pytest.approx(1 / math.sqrt(7))
    assert tempered["4"] == pytest.approx(plain["4"])
    # What arrives at an activation has passed the tap of every weighted layer above it.
    assert tempered["3"] == pytest.approx(plain["3"])
    assert tempered["1"] == pytest.approx(plain["1"] * attenuation["2"])


def test_shunting_leaves_the_error_below_as_it_was():
    """Shunting splits the error for a layer's own parameters; what it hands down stays whole."""
    net = _net()
    _temper(net, shunt=False)
    unshunted = _rms(net)
    net = _net()
    _temper(net, shunt=True)
    assert _rms(net) == pytest.approx(unshunted)


def test_a_transform_on_a_tempered_model_scales_rates_and_errors_together():
    """`scale(c)` at the output of a tempered model makes every gradient c times as large."""
    net = _net()
    _temper(net, shunt=True)
    _backward(net)
    before = [p.grad.clone() for p in net.parameters()]
    with cf.attach(net, {"4": backward.scale(0.25)}):
        _backward(net)
        for p, g in zip(net.parameters(), before, strict=True):
            torch.testing.assert_close(p.grad, 0.25 * g)
    _backward(net)
    for p, g in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


def test_clipping_in_units_of_the_rms_commutes_with_tempering():
    """Attenuation is a factor, and rms units follow it: clipping before or after it gives the same error."""

    def gradients(first):
        net = _net()
        for step in (first, not first):
            if step:
                cf.attach(net, {"2": backward.clip(1.0)})
            else:
                _temper(net, shunt=False)
        _backward(net)
        return [p.grad for p in net.parameters()]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b)


def test_tempered_delta_bar_delta_learns_with_everything_on():
    """Rates, attenuation, shunting, a clipped error and the per-weight gains work on one model at once."""
    net = _net()
    handle = _temper(net, shunt=True)
    cf.attach(net, {"0": backward.Chain(backward.clip(4.0), backward.scale(torch.tensor(1.0)))})
    optimizer = cf.DeltaBarDelta(handle.param_groups(lr=5e-3))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), Y, reduction="sum")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class _Reader(nn.Module):
    """A recurrent member of competing units, unrolled within a budget, or by a plain loop without one."""

    def __init__(self, budget):
        super().__init__()
        self.budget = budget
        self.core = _Competing()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        state = x.new_zeros(len(x), 8)
        if self.budget is None:
            for t in range(x.shape[1]):
                _, state = self.core(x[:, t], state)
        else:
            _, state = cf.bptt.unroll(self.core, x, state, budget=self.budget)
        return self.head(state)


class _Competing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inputs, self.recurrent, self.act = nn.Linear(5, 8), nn.Linear(8, 8), cf.LocalWinnerTakeAll(2)

    def forward(self, x, state):
        state = self.act(self.inputs(x) + self.recurrent(state))
        return state, state


@pytest.mark.parametrize("cut", [None, False])
def test_winner_take_all_inside_members_under_a_memory_budget(cut):
    """Units compete within members, members for examples, and each keeps little of its sequence: gradients stay."""
    x = torch.randn(12, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(4))

    def loss_fn(out, y):
        return nn.functional.cross_entropy(out, y, reduction="none")

    gradients, winners = [], []
    for budget in (None, "16KiB"):
        torch.manual_seed(0)
        ensemble = cf.MultipleChoice([_Reader(budget) for _ in range(3)], cut=cut).double()
        if budget is None:
            loss, chosen = cf.oracle_loss(ensemble.losses(x, y, loss_fn))
            loss.backward()
        else:
            step = ensemble.step(x, y, loss_fn)
            chosen = step.winners
            assert step.cut == (cut is None,) * 3
        winners.append(chosen)
        gradients.append([p.grad for p in ensemble.parameters()])
    assert torch.equal(*winners)
    assert int(winners[0].any(1).sum()) > 1
    # A plain loop would keep 30 steps of 12 rows, of inputs, winners and states: the budget is less than a state each.
    assert 30 * 12 * 8 * 8 > 16 * 1024
    for plain, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cut", [None, False])
def test_members_are_whitened_by_the_rows_that_they_learn_from(cut):
    """With cut rows those that a member wins, and all on the naive path."""
    torch.manual_seed(0)
    ensemble = cf.MultipleChoice([nn.Linear(5, 3) for _ in range(3)], cut=cut).double()
    cf.whiten(ensemble, torch.optim.SGD(ensemble.parameters(), lr=0.1), every=100, samples=1000)
    step = ensemble.step(X, Y, lambda out, y: nn.functional.cross_entropy(out, y, reduction="none"))
    assert step.cut == (cut is None,) * 3
    for member, won in zip(ensemble.members, step.winners, strict=True):
        rows = X[won] if cut is None else X
        assert 0 < int(won.sum()) < len(X)
        assert member.whiten_count.tolist() == [len(rows), len(rows)]
        centered = rows - rows.mean(0)
        torch.testing.assert_close(member.whiten_scatter.squeeze(), centered.T @ centered)


class _Distances(nn.Module):
    """Three linear predictors of each frame from the one before; returns their distances."""

    def __init__(self):
        super().__init__()
        self.predictors = nn.Linear(2, 6)
        self.distances = nn.Identity()

    def forward(self, x):
        predicted = self.predictors(x[:, :-1]).unflatten(-1, (3, 2))
        return self.distances((x[:, 1:].unsqueeze(2) - predicted).square().sum(-1))


def test_a_tap_below_an_alignment_scales_what_the_path_sends():
    """The path decides which predictors learn from a frame, and the tap below it by how much."""
    torch.manual_seed(3)
    model, x = _Distances().double(), torch.randn(4, 9, 2, dtype=torch.float64)

    def gradient():
        model.zero_grad()
        model(x).sum().backward()
        return model.predictors.weight.grad.clone()

    everywhere = gradient()
    followed = cf.speech.follow(model, "distances")
    along = gradient()
    assert not torch.allclose(along, everywhere)
    with cf.attach(model, {"predictors": backward.scale(0.5)}), cf.probe(model, "predictors", every=1) as seen:
        halved = gradient()
    torch.testing.assert_close(halved, along / 2)
    # Of a frame's three predictors two hear nothing.
    [row] = seen.table()
    assert row.values["sparsity"] == pytest.approx(2 / 3)
    followed.undo()
    torch.testing.assert_close(gradient(), everywhere)


class _Predicting(nn.Module):
    """A bank's predictors as layers, and the distances of frames from what they predict."""

    def __init__(self, bank):
        super().__init__()
        self.window, self.shape = bank.window, (bank.n_networks, bank.n_features)
        self.layers = bank.as_layers()
        self.distances = nn.Identity()

    def forward(self, x):
        seen = torch.cat([x[:, :1].expand(-1, self.window, -1), x[:, :-1]], 1)
        predicted = self.layers(seen.mT).unflatten(1, self.shape).permute(0, 3, 1, 2)
        return self.distances((x.unsqueeze(2) - predicted).square().sum(-1))


def test_an_analog_array_trains_predictors_of_speech_along_an_alignment():
    """The path's error goes back through the chip's circuits, its steps write; what they write is the bank's."""
    # With its offsets, each written once a frame, it learns next to nothing; see examples/train_on_a_chip.py.
    device = cf.analog.DeviceModel.paper().without("output_bits", "input_bits", "multiplier_offset", "update_offset")
    time = torch.arange(30, dtype=torch.float64)
    # Frames that rotate, faster and faster from one third of an utterance to the next.
    angle = torch.cat([0.3 * time[:10], 3 + 0.9 * time[:10], 12 + 1.8 * time[:10]]) + torch.rand(4, 1).double()
    x = 0.5 * torch.stack([angle.cos(), angle.sin()], -1)
    left = {}
    for kind in ("float", "chip"):
        generator = torch.Generator().manual_seed(5)
        bank = cf.speech.PredictorBank(3, 2, hidden=4, generator=generator).double()
        model = _Predicting(bank)
        torch.testing.assert_close(model(x)[1], bank.costs(x[1]))
        cf.speech.follow(model, "distances")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if kind == "chip":
            handle = cf.analog.deploy(model, device, optimizer=optimizer, inputs=x, generator=generator)
            found = [(row.layer, row.done) for row in handle.table()]
            assert found == [("layers.0", "synapses"), ("layers.1", "neurons"), ("layers.2", "synapses")]
        before = bank.costs(x[0])
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            distances = model(x)
            losses.append(distances.detach().amin(-1).mean().item())
            distances.sum().backward()
            optimizer.step()
        assert all(map(math.isfinite, losses))
        assert not torch.equal(bank.costs(x[0]), before)
        left[kind] = sum(losses[-10:]) / losses[0] / 10
    assert left["float"] < 0.5
    assert left["float"] < left["chip"] < 0.9


@pytest.fixture
def examples(monkeypatch):
    """The modules of ``examples/`` by their names."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "examples"))
    return importlib.import_module


def test_tempering_takes_the_weights_behind_a_density_nets_models_out_of_their_error(examples):
    """A hundredth of the weights is a hundredth of the error; tempered, the models hear about as much as before."""
    example = examples("temper_density_nets")
    x, y = example.task(0)[0]
    heard = {False: [], True: []}
    for factor in (0.1, 0.001):  # small enough for logistic units to be about linear
        for temper, sizes in heard.items():
            net = example.net_of("comparative net", x, y, 0)
            with torch.no_grad():
                net.first.weight.mul_(factor)
            if temper:
                example.tempered(net, x, 1.0)
            nn.functional.cross_entropy(net(x), y).backward()
            sizes.append(net.bank.means.grad.square().mean().sqrt().item())
    assert heard[False][1] < 0.05 * heard[False][0]
    assert heard[True][1] == pytest.approx(heard[True][0], rel=0.2)


def test_what_a_doubting_classifier_expects_is_the_mean_over_its_draws(examples):
    """It says the same whenever it is asked, and its error is the mean of the draws' own; without noise it is plain."""
    example = examples("attend_with_doubt")
    source = torch.Generator().manual_seed(0)
    doubting = example.taught(True, source, 0, epochs=1)
    spectra, lengths = example.pad_spectra(example.words(6, source)[0])
    said = doubting(spectra, lengths)
    assert torch.equal(doubting(spectra, lengths), said)
    assert said.requires_grad
    classifier = doubting.classifier
    with torch.no_grad():
        plain = classifier.eval()(spectra, lengths)
        assert not torch.allclose(plain, said, atol=1e-3)
        for module in classifier.train().modules():
            if isinstance(module, cf.variational.VariationalLinear):
                module.rate.rho.fill_(50.0)  # a rate of next to nothing
    torch.testing.assert_close(doubting(spectra, lengths), plain, atol=1e-4, rtol=0)
