"""The probe: its numbers against NumPy in float64, that it changes nothing, and what it does in odd places."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from counterflow.backward import _statistics, attach, scale
from counterflow.backward._statistics import STATISTICS, ErrorStatistics
from counterflow.backward.probe import Probe, probe
from counterflow.exceptions import InputError, MissingExtraError, PatternError, UnsupportedError
from counterflow.variational import make_variational

Array = npt.NDArray[np.float64]


def reference(errors: list[Array]) -> list[dict[str, float]]:
    """The statistics of successive steps by their definitions; each error is (samples, features)."""
    steps, before = [], None
    for error in errors:
        mean = error.mean(0)
        standard_error = error.var(0, ddof=1) / len(error)
        steps.append(
            {
                "rms": float(np.sqrt(np.mean(error**2))),
                "mean share": float(len(error) * np.sum(mean**2) / np.sum(error**2)),
                "sparsity": float(np.mean(error == 0)),
                "signal/noise": float(np.sqrt(np.sum(mean**2) / np.sum(standard_error))),
                "drift": np.nan
                if before is None
                else float(mean @ before / np.linalg.norm(mean) / np.linalg.norm(before)),
            }
        )
        before = mean
    return steps


def averages(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.nanmean([step[name] for step in steps])) for name in STATISTICS}


def make_errors(n: int = 4, shape: tuple[int, ...] = (13, 5), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    errors = [torch.randn(shape, dtype=torch.float64) + 0.3 for _ in range(n)]
    return [(error * (torch.rand(shape) > 0.2)).to(dtype) for error in errors]


def make_mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


def train(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """All gradients and the final parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    gradients = []
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return gradients + [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("shape", [(13, 5), (4, 1100), (1027, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_those_of_their_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    errors = make_errors(4, shape, dtype)
    statistics = ErrorStatistics()
    for step, error in enumerate(errors):
        statistics.add(error, 0, step, 1)
    expected = reference([error.double().numpy() for error in errors])
    assert statistics.averages() == pytest.approx(averages(expected), rel=1e-9)
    history = statistics.history()
    for name in STATISTICS:
        np.testing.assert_allclose(history[name], [step[name] for step in expected], rtol=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7, 128])
def test_the_kernel_and_the_torch_path_agree(samples: int) -> None:
    rows = make_errors(1, (samples, 1030))[0]
    before = torch.randn(1030, dtype=torch.float64)
    results = []
    for by_torch in (True, False):
        sums, record = torch.full((1030,), 9.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for first in (True, False):
            if by_torch:
                _statistics.look(rows, sums, before, record, first)
            else:
                _statistics.kernel()(rows.numpy(), sums.numpy(), before.numpy(), record.numpy(), first)
        results.append((sums, record))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((7, 5, 3), 1), ((6, 2, 4, 3), 0), ((5, 7), 1), ((9,), 0), ((4, 3), -1)],
)
def test_the_dimension_that_counts_examples(shape: tuple[int, ...], batch: int) -> None:
    error = torch.randn(shape)
    statistics = ErrorStatistics()
    statistics.add(error, batch, 0, 1)
    if error.ndim < 2 or batch < 0:
        assert statistics.averages()["mean share"] is None
        assert statistics.averages()["rms"] == pytest.approx(float(error.double().square().mean().sqrt()))
    else:
        rows = np.moveaxis(error.double().numpy(), batch, 0).reshape(shape[batch], -1)
        expected = reference([rows])[0]
        got = statistics.averages()
        assert [got[name] for name in STATISTICS[:4]] == pytest.approx([expected[name] for name in STATISTICS[:4]])


def test_layouts_do_not_matter() -> None:
    error = torch.randn(4, 6, 5, 3)
    lazily_negated = torch._neg_view(-error)  # NumPy cannot see the negative bit
    results = []
    for given in (error, error.contiguous(memory_format=torch.channels_last), lazily_negated):
        statistics = ErrorStatistics()
        statistics.add(given, 0, 0, 1)
        results.append(statistics.averages())
    assert results[1] == pytest.approx(results[0])
    assert results[2] == pytest.approx(results[0])
    parts = ErrorStatistics()
    parts.add(torch.view_as_complex(torch.randn(4, 6, 2)), 0, 0, 1)
    assert parts.averages()["sparsity"] == 0.0


def test_the_errors_of_one_step_are_pooled() -> None:
    errors = make_errors(4, (6, 5))
    statistics = ErrorStatistics()
    for index, error in enumerate(errors):
        statistics.add(error, 0, index // 2, 1)
    pooled = [torch.cat(errors[i : i + 2]).double().numpy() for i in (0, 2)]
    assert statistics.averages() == pytest.approx(averages(reference(pooled)))
    assert statistics.steps == 2


def test_pooled_errors_of_several_lengths_have_a_size_and_no_mean() -> None:
    statistics = ErrorStatistics()
    short, long = torch.randn(4, 3), torch.randn(4, 9)
    statistics.add(short, 0, 0, 1)
    statistics.add(long, 0, 0, 1)
    got = statistics.averages()
    assert got["rms"] == pytest.approx(float(torch.cat([short, long], 1).double().square().mean().sqrt()))
    assert got["mean share"] is None
    statistics.add(long, 0, 1, 1)
    assert statistics.averages()["drift"] is None


def test_the_table_says_that_errors_of_several_sizes_have_no_mean() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv1d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x).sum() + self.inner(x[..., 1:]).sum()
            return y

    with probe(Twice(), every=1) as seen:
        seen.model(torch.randn(4, 1, 5)).backward()
    assert seen.table()["inner"].values["mean share"] is None
    assert (
        seen.table()["inner"].why == "mean share and signal/noise need two examples or more in a step, all of one size"
    )


def test_an_error_that_has_vanished_still_has_a_size() -> None:
    error = torch.full((4, 8), 1e-30)
    for given in (error, error.bfloat16()):
        statistics = ErrorStatistics()
        statistics.add(given, 0, 0, 1)
        assert statistics.averages()["rms"] == pytest.approx(1e-30, rel=1e-2)


@pytest.mark.parametrize("samples", [4, 9, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_examples_that_agree_have_no_noise_however_their_energy_is_rounded(samples: int, dtype: torch.dtype) -> None:
    statistics = ErrorStatistics()
    for step, value in enumerate((0.1, 0.7, 1.1)):
        statistics.add(torch.full((samples, 3), value, dtype=dtype), 0, step, 1)
    assert statistics.history()["signal/noise"].tolist() == [np.inf] * 3


def test_drift_is_over_one_period_and_no_longer() -> None:
    statistics = ErrorStatistics()
    for step in (0, 2, 4, 7, 9):  # a step was missed, as where nothing reached the layer
        statistics.add(torch.ones(4, 3), 0, step, 2)
    np.testing.assert_allclose(statistics.history()["drift"], [np.nan, 1.0, 1.0, np.nan, 1.0])


def test_undefined_statistics_are_none_and_a_broken_error_shows() -> None:
    statistics = ErrorStatistics()
    statistics.add(torch.zeros(4, 3), 0, 0, 1)
    assert statistics.averages() == {
        "rms": 0.0, "mean share": None, "sparsity": 1.0, "signal/noise": None, "drift": None,
    }  # fmt: skip
    statistics.add(torch.ones(4, 3), 0, 1, 1)
    assert statistics.averages()["signal/noise"] == np.inf
    statistics.add(torch.full((4, 3), np.nan), 0, 2, 1)
    assert np.isnan(statistics.averages()["rms"] or 0.0)
    statistics.add(torch.zeros(0, 3), 0, 3, 1)
    assert statistics.steps == 3


def test_averages_outlive_the_thinned_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_statistics, "_PENDING", 8)
    monkeypatch.setattr(_statistics, "_HISTORY", 16)
    errors = make_errors(100, (5, 3))
    statistics = ErrorStatistics()
    for step, error in enumerate(errors):
        statistics.add(error, 0, step, 1)
        if step == 50:
            statistics.release()  # as undo does; drift starts again
    expected = reference([error.double().numpy() for error in errors])
    expected[51]["drift"] = np.nan
    assert statistics.averages() == pytest.approx(averages(expected))
    history = statistics.history()
    assert len(history["step"]) <= 16 + 8
    kept = history["step"][history["step"] < 88].astype(int)
    assert len(set(np.diff(kept))) == 1
    np.testing.assert_allclose(history["rms"][: len(kept)], [expected[i]["rms"] for i in kept])


def test_the_layers_of_a_net_against_autograd() -> None:
    model, batches = make_mlp(), [torch.randn(9, 6) for _ in range(3)]
    errors: dict[str, list[Array]] = {"0": [], "2": [], "4": []}
    with probe(model) as seen:
        for x in batches:
            model.zero_grad()
            model(x).square().mean().backward()
    for x in batches:  # the same by hand: the error of a linear layer
        a = model[0](x)
        b = model[2](torch.relu(a))
        c = model[4](torch.tanh(b))
        for name, error in zip(errors, torch.autograd.grad(c.square().mean(), (a, b, c)), strict=True):
            errors[name].append(error.double().numpy())
    table = seen.table()
    for name, values in errors.items():
        assert {key: table[name].values[key] for key in STATISTICS} == pytest.approx(
            averages(reference(values)), rel=1e-5
        )
    assert [row.layer for row in table] == ["0", "2", "4"]
    assert table.columns[2:9] == (*STATISTICS, "steps", "every")
    json.dumps(table.to_dict())


class Tagger(nn.Module):
    """An LSTM whose output and final state are both used, and a dictionary as output."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=batch_first)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, (h, _) = self.lstm(x)
        return {"tags": self.head(y), "aux": self.head(h[-1])}


class Views(nn.Module):
    """A linear layer on sequences gives a view, which is changed in place; a layer that hands its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.same, self.token = nn.Linear(6, 5), nn.Identity(), Token()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).relu_()
        return self.same(y) + 2 * y + self.token()


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self) -> Tensor:
        return self.weight


def make_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def make_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 5))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (make_mlp, (8, 6)),
    "cnn": (make_cnn, (8, 1, 8, 8)),
    "lstm": (Tagger, (4, 3, 6)),
    "transformer": (make_transformer, (4, 3, 8)),
    "views": (Views, (4, 3, 6)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("layers", [None, "**"])
def test_gradients_stay_as_they_are_to_the_bit(name: str, layers: str | None) -> None:
    make, shape = NETS[name]
    torch.manual_seed(3)
    bare = make()
    probed = copy.deepcopy(bare)
    batches = [torch.randn(shape) for _ in range(3)]

    def sum_up(model: nn.Module) -> nn.Module:
        class Sum(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y = model(x)
                return y if isinstance(y, Tensor) else torch.cat([value.flatten() for value in y.values()])

        wrapped = Sum()
        wrapped.model = model
        return wrapped

    expected = train(sum_up(bare), batches)
    keys, objects = list(probed.state_dict()), [id(p) for p in probed.parameters()]
    with probe(probed, layers) as seen:
        got = train(sum_up(probed), batches)
        assert (list(probed.state_dict()), [id(p) for p in probed.parameters()]) == (keys, objects)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in probed.modules())
    unseen = [row.layer for row in seen.table() if row.done == "nothing seen"]
    assert unseen == [], f"no error seen of {unseen}"


def test_a_recurrent_net_has_a_row_for_each_output_that_an_error_reached() -> None:
    for batch_first in (True, False):
        model = Tagger(batch_first)
        with probe(model) as seen:
            y = model(torch.randn(4, 7, 6))
            (y["tags"].square().sum() + y["aux"].square().sum()).backward()
        assert [row.layer for row in seen.table()] == ["lstm", "lstm[1][0]", "head"]
        assert seen.table()["lstm[1][0]"].why == "the error of output[1][0]"
        x = torch.randn(4, 7, 6)
        h = model.lstm(x)[0].detach().requires_grad_()
        error = torch.autograd.grad(model.head(h).square().sum(), h)[0].double()
        rows = error.movedim(0 if batch_first else 1, 0).flatten(1).numpy()
        with probe(model, "lstm") as seen:
            model(x)["tags"].square().sum().backward()
        assert seen.table()["lstm"].values["mean share"] == pytest.approx(reference([rows])[0]["mean share"], rel=1e-4)


def test_packed_sequences_are_seen() -> None:
    lstm = nn.LSTM(3, 4)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(2, 3)])
    with probe(lstm) as seen:
        lstm(packed)[0].data.square().sum().backward()
    assert seen.table()[""].values["steps"] == 1


def test_the_attention_projection_is_left_alone() -> None:
    model = make_transformer()
    with probe(model) as seen:
        model(torch.randn(4, 3, 8)).square().sum().backward()
    left = [row.layer for row in seen.table() if row.done == "left alone"]
    assert left == ["layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"]
    assert len(seen.table()) == 12


def test_the_projection_of_an_attention_that_calls_it_is_seen() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    make_variational(model)
    attach(model, {"self_attn.out_proj": scale(0.5)}).undo()
    with probe(model, "self_attn.out_proj") as seen:
        model(torch.randn(4, 3, 8)).square().sum().backward()
    assert seen.table()["self_attn.out_proj"].done == "seen"


def test_parametrized_and_tied_layers_are_seen_once() -> None:
    tied = nn.Linear(6, 6, bias=False)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(tied), nn.Tanh(), tied, nn.Linear(6, 2))
    with probe(model) as seen:
        model(torch.randn(4, 6)).sum().backward()
    assert [row.layer for row in seen.table()] == ["0", "3"]
    assert seen.history("0")["step"].tolist() == [0.0]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_kth_step_is_looked_at(every: int) -> None:
    model = make_mlp()
    with probe(model, every=every) as seen:
        for _ in range(7):
            assert len(model[0]._forward_hooks) == 1  # between steps, for whoever compiles then
            model(torch.randn(4, 6)).sum().backward()
            with torch.no_grad():
                model(torch.randn(4, 6))
    assert seen.history("2")["step"].tolist() == list(range(0, 7, every))
    assert (seen.steps, seen.every) == (7, every)
    row = seen.table()["0"]
    assert (row.values["steps"], row.values["every"]) == (len(range(0, 7, every)), every)
    if every > 1:
        assert f"every {every}{'nd' if every == 2 else 'rd'} of 7" in seen.table().note
    assert (row.values["drift"] is not None) == (every < 7)


def test_k_is_chosen_from_what_looking_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:  # each look at the time takes a millisecond
        nonlocal now
        now += 1e-3
        return now

    monkeypatch.setattr(sys.modules[probe.__module__], "thread_time", clock)
    chosen = []
    for rest in (0.05, 5.0):
        model = make_mlp()
        with probe(model) as seen:
            for _ in range(60):
                model(torch.randn(4, 6)).sum().backward()
                now += rest
        chosen.append(seen.every)
        steps = seen.history("0")["step"]
        assert steps[:8].tolist() == list(range(8))
        assert (np.diff(steps[9:]) == seen.every).all()
    small, large = chosen
    assert large == 1
    # Six millisecond readings a step (a hook and a look at each of three layers), doubled: 12 of about 50 ms.
    assert 3 <= small <= 8


def test_a_clock_that_stands_still_has_every_step_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[probe.__module__], "thread_time", lambda: 0.0)
    model = make_mlp()
    with probe(model) as seen:
        for _ in range(12):
            model(torch.randn(4, 6)).sum().backward()
    assert seen.every == 1
    assert len(seen.history("0")["step"]) == 12


def test_an_every_that_was_told_stands_when_a_state_is_loaded() -> None:
    model = make_mlp()
    with probe(model) as seen:
        saved = {**seen.state_dict(), "every": 7, "chosen": True}
    for every, wanted in ((None, 7), (2, 2)):
        with probe(model, every=every) as again:
            again.load_state_dict(saved)
        assert again.every == wanted


def test_hooks_come_back_after_a_forward_pass_that_failed() -> None:
    model = make_mlp()
    with probe(model, every=2) as seen:
        model(torch.randn(4, 6)).sum().backward()
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 5))
        model(torch.randn(4, 6)).sum().backward()
    assert seen.table()["0"].values["steps"] == 2
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_recomputation_does_not_count_twice(reentrant: bool, whole: bool) -> None:
    model = make_mlp()
    x = torch.randn(4, 6, requires_grad=True)
    tables = []
    for checkpointed in (False, True):
        run: Callable[[Tensor], Any] = model
        if checkpointed and whole:
            run = lambda x: checkpoint(model, x, use_reentrant=reentrant)  # noqa: E731
        with probe(model, every=2) as seen:
            for _ in range(5):
                if checkpointed and not whole:
                    inner = model[2].forward
                    model[2].forward = lambda x, f=inner: checkpoint(f, x, use_reentrant=reentrant)  # type: ignore[method-assign]
                    run(x).square().sum().backward()
                    del model[2].forward
                else:
                    run(x).square().sum().backward()
        tables.append([dict(row.values) for row in seen.table()])
        assert seen.steps == 5
    assert tables[0] == tables[1]


def test_a_copy_carries_no_probe() -> None:
    model = make_mlp()
    with probe(model) as seen:
        twin = copy.deepcopy(model)
        hooks = [hook for m in twin.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
        assert {type(hook).__name__ for hook in hooks} == {"_Nothing"}
        model(torch.randn(4, 6)).sum().backward()
        for _ in range(3):
            twin(torch.randn(4, 6)).sum().backward()
        assert seen.steps == 1
        buffer = io.BytesIO()
        torch.save(model, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)(torch.randn(4, 6)).sum().backward()
    assert seen.table()["0"].values["steps"] == 1


def test_accumulation_functional_calls_and_amp() -> None:
    model = make_mlp()
    with probe(model) as seen:
        torch.func.functional_call(model, dict(model.named_parameters()), (torch.randn(4, 6),)).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(4, 6)).float().square().sum()
        loss.backward()
        model.double()(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    assert seen.table()["0"].values["steps"] == 3


def test_a_model_that_is_not_called_counts_backward_passes() -> None:
    model = make_mlp()
    with probe(model, every=2) as seen:
        for _ in range(4):
            model[4](model[3](model[2](torch.randn(4, 16)))).sum().backward()
    assert seen.history("2")["step"].tolist() == [0.0, 2.0]
    assert seen.table()["0"].why.startswith("no error arrived: it was never called")


def test_frozen_layers_say_why() -> None:
    model = make_mlp()
    model[0].requires_grad_(False)
    with probe(model) as seen:
        model(torch.randn(4, 6)).sum().backward()
    assert seen.table()["0"].why == "no error arrived: nothing below its output learns"
    with probe(model) as seen:
        model(torch.randn(4, 6))
    assert "No error has been seen" in seen.table().note
    model(torch.randn(4, 6)).sum().backward()  # after the block: not seen, no crash
    assert seen.table()["4"].values["steps"] == 0


def test_compiled_code_shows_the_same_errors() -> None:
    x = torch.randn(8, 6)
    tables = []
    for compiled in (False, True):
        model = make_mlp()
        with probe(model, every=2) as seen:
            run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
            for _ in range(4):
                run(x).square().sum().backward()
        tables.append([dict(row.values) for row in seen.table()])
    for eager, traced in zip(*tables, strict=True):
        assert eager == pytest.approx(traced, rel=1e-5)
    assert tables[1][0]["steps"] == 2


def test_torch_func_is_refused_in_one_line() -> None:
    model = make_mlp()
    parameters = dict(model.named_parameters())
    with (
        probe(model),
        pytest.raises(UnsupportedError, match=r"torch\.func cannot carry") as caught,
    ):
        torch.func.grad(lambda p: torch.func.functional_call(model, p, (torch.randn(4, 6),)).sum())(parameters)
    assert "\n" not in str(caught.value)


def test_a_pattern_narrows_and_bad_input_is_refused() -> None:
    model = make_mlp()
    with probe(model, ["4", "3"]) as seen:
        model(torch.randn(4, 6)).sum().backward()
    assert [row.layer for row in seen.table()] == ["3", "4"]
    for wrong in (0, -1, 2.0, True, "2"):
        with pytest.raises(InputError, match="every must be a whole number"):
            probe(model, every=wrong)  # type: ignore[arg-type]
    with pytest.raises(PatternError):
        probe(model, "nothing.*")
    with pytest.raises(InputError, match="layers must name"):
        probe(model, [])
    with pytest.raises(InputError, match="no module with parameters"):
        probe(nn.Tanh())
    with pytest.raises(InputError, match=r"must be a torch.nn.Module"):
        probe(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="MultiheadAttention never calls it"):
        probe(make_transformer(), "**.out_proj")
    assert not any(module._forward_hooks for module in model.modules())


def run_some(steps: int = 12) -> Probe:
    model = make_mlp()
    with probe(model, every=1) as seen:
        for _ in range(steps):
            model(torch.randn(8, 6)).square().mean().backward()
    return seen


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plot_writes_a_picture_and_nothing_else(tmp_path: Path, suffix: str, start: bytes) -> None:
    target = tmp_path / f"error{suffix}"
    target.write_text("old")
    run_some().plot(target)
    assert target.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_plot_of_odd_histories(tmp_path: Path) -> None:
    run_some(1).plot(tmp_path / "one.png")
    model = make_mlp()
    with probe(model) as seen:
        for scale in (0.0, 1.0, float("nan")):
            (model(torch.randn(1, 6)) * scale).sum().backward()
    seen.plot(str(tmp_path / "odd.png"))
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(120)))
    with probe(deep) as seen:
        deep(torch.randn(3, 2)).sum().backward()
    seen.plot(tmp_path / "deep.png")
    assert {path.name: path.read_bytes()[:4] for path in tmp_path.iterdir()} == dict.fromkeys(
        ("one.png", "odd.png", "deep.png"), b"\x89PNG"
    )


def test_plot_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run_some(2)
    (tmp_path / "taken.png").mkdir()
    for name, match in (
        ("error.txt", r"suffix must be .png"),
        ("error", r"suffix must be .png"),
        ("gone/error.png", r"there is no folder"),
        ("taken.png", r"cannot write"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            seen.plot(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]
    with pytest.raises(InputError, match="nothing to draw"):
        probe(make_mlp()).plot(tmp_path / "error.png")
    with pytest.raises(InputError, match="no error of a layer 'x'"):
        seen.history("x")
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"counterflow\[plot\]"):
        seen.plot(tmp_path / "error.png")
