"""Statistics over a batch in one process; those over ranks are held by the distributed contract."""

from __future__ import annotations

import pytest
import torch

from counterflow.backward.reduce import batch_mean, batch_rms, batch_sum, prepare_ranks, world_size
from counterflow.exceptions import ShapeError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_errors_are_summed_in_float32(dtype: torch.dtype) -> None:
    error = torch.full((4096, 2), 0.5, dtype=dtype)
    total, count = batch_sum(error, (0,), "test()")
    assert total.dtype == torch.float32
    assert total.tolist() == [[2048.0, 2048.0]]
    assert count == 4096
    assert batch_mean(error, (0,), "test()").tolist() == [[0.5, 0.5]]
    assert batch_rms(error, (0,), "test()").item() == 0.5


def test_float64_stays() -> None:
    error = torch.randn(6, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(batch_mean(error, (0, 2), "test()"), error.mean((0, 2), keepdim=True))
    torch.testing.assert_close(batch_rms(error, (0,), "test()"), error.square().mean().sqrt())


def test_a_large_float16_error_does_not_overflow() -> None:
    assert batch_rms(torch.full((3, 2), 3e4, dtype=torch.float16), (0,), "test()").item() == pytest.approx(3e4)


def test_samples_are_not_examples() -> None:
    pictures = torch.randn(1, 2, 4, 4)
    with pytest.raises(ShapeError, match="sees one example only"):
        batch_sum(pictures, (0, 2, 3), "test()", examples=(0,))
    with pytest.raises(ShapeError, match="sees no example"):
        batch_sum(pictures[:0], (0, 2, 3), "test()", examples=(0,))
    _, count = batch_sum(pictures, (0, 2, 3), "test()")
    assert count == 16


def test_no_batch_dimension() -> None:
    with pytest.raises(ShapeError, match=r"test\(\) mixes .* an error of shape \(3, 4\) has no batch dimension"):
        batch_mean(torch.ones(3, 4), (0,), "test()", examples=())


def test_one_process_needs_no_group() -> None:
    prepare_ranks()
    assert world_size() == 1
