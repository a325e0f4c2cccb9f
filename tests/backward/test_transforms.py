"""Each elementary transform against a few lines of NumPy, in float64, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from counterflow.backward import Chain, Transform, attach, center, clip, mask, noise, scale
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

Array = NDArray[np.float64]
ERROR = np.random.default_rng(0).standard_normal((5, 3, 4)) * 2 + 0.5
KEEP = np.random.default_rng(1).random((3, 4)) < 0.5


def bent(transform: Transform, error: Array, module: nn.Module | None = None) -> Array:
    """What a transform makes of an error that reaches an identity's output."""
    module = nn.Identity() if module is None else module
    if not module._forward_hooks:
        attach(module, {"": transform})
    x = torch.zeros(error.shape, dtype=torch.float64, requires_grad=True)
    module(x).backward(torch.from_numpy(error))
    assert x.grad is not None
    result: Array = x.grad.numpy()
    return result


def rms(error: Array) -> float:
    return float(np.sqrt(np.mean(error**2)))


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (scale(0.3), 0.3 * ERROR),
        (scale(-2), -2 * ERROR),
        (scale(torch.tensor(0.25)), 0.25 * ERROR),
        (center(), ERROR - ERROR.mean(0)),
        (center(dim=(0, 1)), ERROR - ERROR.mean((0, 1))),
        (center(dim=(-3, -1)), ERROR - ERROR.mean((0, 2), keepdims=True)),
        (mask(torch.from_numpy(KEEP)), np.where(KEEP, ERROR, 0)),
        (mask(torch.tensor([True, False, True, False])), ERROR * [1, 0, 1, 0]),
        (mask(torch.from_numpy(ERROR > 0)), np.maximum(ERROR, 0)),  # of all dimensions, the batch's too
        (clip(0.7, units="absolute"), np.clip(ERROR, -0.7, 0.7)),
        (clip(1.2), np.clip(ERROR, -1.2 * rms(ERROR), 1.2 * rms(ERROR))),
        (
            Chain(center(), clip(1.0), scale(0.5)),
            0.5 * np.clip(ERROR - ERROR.mean(0), -rms(ERROR - ERROR.mean(0)), rms(ERROR - ERROR.mean(0))),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Transform) else "",
)
def test_closed_form(transform: Transform, wanted: Array) -> None:
    np.testing.assert_allclose(bent(transform, ERROR), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("momentum", [None, 0.0])
def test_clip_knows_the_size_of_an_error_whose_squares_float32_cannot_hold(size: float, momentum: float | None) -> None:
    layer = nn.Identity()
    attach(layer, {"": clip(1.2, momentum=momentum)})
    x = torch.zeros(ERROR.shape, requires_grad=True)
    error = torch.from_numpy(ERROR).float() * size
    layer(x).backward(error)
    assert x.grad is not None
    if momentum is None:
        bound = 1.2 * rms(ERROR) * size
        np.testing.assert_allclose(x.grad.numpy(), np.clip(error.numpy(), -bound, bound), rtol=1e-5)
    else:  # the running mean square does not hold it either, so that there is nothing to clip by
        assert torch.equal(x.grad, error)


def test_clip_with_momentum_follows_the_running_mean_square() -> None:
    module = nn.Identity()
    attach(module, {"": clip(1.5, momentum=0.8)})
    module.double()
    running = None
    for step in range(4):
        error = ERROR * (1 + step)
        square = np.mean(error**2)
        running = square if running is None else 0.8 * running + 0.2 * square
        bound = 1.5 * np.sqrt(running)
        np.testing.assert_allclose(bent(clip(1.5), error, module), np.clip(error, -bound, bound), rtol=1e-12)
        assert module.get_buffer("tap0_mean_square").item() == pytest.approx(running, rel=1e-12)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_infinite_error_does_not_spoil_the_running_mean_square(bad: float) -> None:
    module = nn.Identity()
    attach(module, {"": clip(1.0, momentum=0.5)})
    broken = ERROR.copy()
    broken[0, 0, 0] = bad
    bent(clip(1.0), broken, module)
    assert module.get_buffer("tap0_mean_square").item() == -1, "nothing good seen yet"
    bent(clip(1.0), ERROR, module)
    before = module.get_buffer("tap0_mean_square").item()
    clipped = bent(clip(1.0), broken, module)
    assert module.get_buffer("tap0_mean_square").item() == before == pytest.approx(np.mean(ERROR**2), rel=1e-6)
    if bad == math.inf:
        assert clipped[0, 0, 0] == pytest.approx(math.sqrt(before), rel=1e-6)


@pytest.mark.parametrize(("units", "size"), [("rms", rms(ERROR)), ("absolute", 1.0)])
def test_noise_has_the_stated_size(units: Any, size: float) -> None:
    error = np.broadcast_to(ERROR, (400, *ERROR.shape)).reshape(-1, 3, 4)
    added = bent(noise(0.5, units=units), error) - error
    assert added.std() == pytest.approx(0.5 * size, rel=0.02)
    assert abs(added.mean()) < 0.02 * size
    np.testing.assert_array_equal(bent(noise(0.0, units=units), ERROR), ERROR)


def test_noise_comes_from_torchs_generator() -> None:
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(bent(noise(0.5), ERROR))
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("examples", [3, 5])
def test_mask_is_of_one_example_wherever_the_batch_stands(axis: int, examples: int) -> None:
    keep = torch.from_numpy(KEEP)
    error = torch.from_numpy(np.moveaxis(ERROR[:examples], 0, axis))
    got = mask(keep)(error, (axis,), {"keep": keep}).numpy()
    np.testing.assert_array_equal(got, np.moveaxis(np.where(KEEP, ERROR[:examples], 0), 0, axis))


def test_mask_of_times_in_a_recurrent_layer() -> None:
    rnn = nn.RNN(2, 2)
    attach(rnn, {"": mask(torch.tensor([[True], [False], [False]]))})
    x = torch.randn(3, 3, 2, requires_grad=True)
    rnn(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad[0].all()
    assert not x.grad[1:].any()


def test_mask_stops_infinity_and_nan() -> None:
    error = np.array([[math.inf, 1.0], [math.nan, 2.0]])
    np.testing.assert_array_equal(bent(mask(torch.tensor([False, True])), error), [[0, 1], [0, 2]])


def test_a_constant_error_is_centered_away_and_a_zero_error_stays_zero() -> None:
    np.testing.assert_allclose(bent(center(), np.full((3, 2), 0.1)), np.zeros((3, 2)), atol=1e-16)
    for transform in (center(), clip(1.0), noise(1.0), clip(1.0, momentum=0.5)):
        np.testing.assert_array_equal(bent(transform, np.zeros((3, 2))), np.zeros((3, 2)))


@pytest.mark.parametrize("transform", [center(), clip(1.0), noise(0.1), clip(1.0, momentum=0.5)], ids=repr)
@pytest.mark.parametrize("shape", [(1, 4), (4,), ()])
def test_a_batch_of_one_is_refused(transform: Transform, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"mixes the examples of a batch") as error:
        bent(transform, np.ones(shape))
    assert "\n" not in str(error.value)
    assert repr(transform) in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (2, 1, 1, 1), (5, 3, 4, 1)])
def test_a_mask_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="does not fit one example"):
        bent(mask(torch.ones(shape, dtype=torch.bool)), ERROR)


def test_center_over_a_missing_dimension_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"center\(dim=\(3,\)\) does not fit an error of shape \(5, 3, 4\)"):
        bent(center(dim=3), ERROR)


@pytest.mark.parametrize("transform", [center(), clip(1.0), noise(1.0)], ids=repr)
def test_statistics_of_complex_errors_are_refused(transform: Transform) -> None:
    module = nn.Identity()
    attach(module, {"": transform})
    x = torch.zeros(3, 2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(UnsupportedError, match="real errors only"):
        module(x).abs().sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale(math.inf), "factor must be a finite number, got inf"),
        (lambda: scale("half"), "factor must be a finite number, got 'half'"),  # type: ignore[arg-type]
        (lambda: scale(torch.ones(2)), r"0-d tensor, got a tensor of shape \(2,\)"),
        (lambda: scale(torch.tensor(1.0, requires_grad=True)), "must not require a gradient"),
        (lambda: center(dim=()), "dim must be a dimension"),
        (lambda: center(dim="batch"), "dim must be a dimension"),  # type: ignore[arg-type]
        (lambda: mask(torch.ones(2)), "keep must be a boolean tensor, got torch.float32"),
        (lambda: mask([True]), r"keep must be a boolean tensor, got \[True\]"),  # type: ignore[arg-type]
        (lambda: clip(0.0), "limit must be > 0, got 0.0"),
        (lambda: clip(math.nan), "limit must be a finite number, got nan"),
        (lambda: clip(1.0, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: clip(1.0, units="absolute", momentum=0.5), "leave it out"),
        (lambda: clip(1.0, units="sigma"), "units must be 'rms' or 'absolute', got 'sigma'"),  # type: ignore[arg-type]
        (lambda: noise(-0.1), "std must be >= 0, got -0.1"),
        (lambda: Chain(), "one transform or more"),
        (lambda: Chain(scale(1.0), 0.5), "Chain takes transforms"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_used(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_is_declared() -> None:
    declared = {
        repr(t): (t.batch_coupled, t.homogeneous, t.stateful)
        for t in (
            scale(2.0),
            center(),
            clip(1.0),
            clip(1.0, units="absolute"),
            clip(1.0, momentum=0.9),
            noise(0.1),
            noise(0.1, units="absolute"),
            Chain(scale(2.0), clip(1.0, momentum=0.9)),
        )
    }
    assert declared == {
        "scale(2.0)": (False, True, False),
        "center()": (True, True, False),
        "clip(1.0)": (True, True, False),
        "clip(1.0, units='absolute')": (False, False, False),
        "clip(1.0, momentum=0.9)": (True, False, True),
        "noise(0.1)": (True, True, False),
        "noise(0.1, units='absolute')": (False, False, False),
        "Chain(scale(2.0), clip(1.0, momentum=0.9))": (True, False, True),
    }


def test_a_schedule_changes_in_place_and_is_kept() -> None:
    factor = torch.tensor(1.0)
    module = nn.Identity()
    attach(module, {"": scale(factor)})
    for value in (1.0, 0.5, 0.0):
        factor.fill_(value)
        np.testing.assert_array_equal(bent(scale(factor), ERROR, module), value * ERROR)
    other = nn.Identity()
    attach(other, {"": scale(torch.tensor(7.0))})
    other.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(bent(scale(1.0), ERROR, other), 0 * ERROR)


def test_gradcheck_fails_for_what_is_not_the_identity() -> None:
    layer = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with attach(layer, {"": scale(1.0)}):
        assert torch.autograd.gradcheck(layer, x)
    for transform in (scale(0.5), center(), clip(0.5)):
        with attach(layer, {"": transform}), pytest.raises(RuntimeError, match="Jacobian mismatch"):
            torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(
    ("transform", "bend"),
    [(scale(0.5), lambda e: 0.5 * e), (center(), lambda e: e - e.mean(0))],
    ids=["scale", "center"],
)
def test_double_backward_bends_each_pass_over_the_output(transform: Transform, bend: Any) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    module = nn.Tanh()
    attach(module, {"": transform})
    (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)

    y = torch.tanh(x)
    # The output's value, with a derivative that is bent: both transforms are linear and their own transposes.
    output = bend(y) + (y - bend(y)).detach()
    wanted_first = bend(2 * output) * (1 - y**2)
    (wanted_second,) = torch.autograd.grad(wanted_first.square().sum(), x)
    torch.testing.assert_close(first, wanted_first)
    torch.testing.assert_close(second, wanted_second)
