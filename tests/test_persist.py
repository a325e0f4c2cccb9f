"""Models on disk."""

from __future__ import annotations

import os

import pytest
import torch

from counterflow import persist
from counterflow.exceptions import InputError


def test_a_model_comes_back_to_the_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([1, 2])}
    persist.save(tmp_path / "new" / "model", "kind", {"x": [1, "two", None]}, tensors)
    config, found = persist.load(tmp_path / "new" / "model", "kind")
    assert config == {"x": [1, "two", None]}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert sorted(os.listdir(tmp_path / "new" / "model")) == ["model.json", "model.safetensors"]


def test_what_cannot_be_saved_or_loaded_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot be saved"):
        persist.save(tmp_path, "kind", {"x": object()}, {})
    with pytest.raises(InputError, match="cannot be saved"):
        persist.save(tmp_path, "kind", {"x": float("nan")}, {})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        persist.save(tmp_path / "file", "kind", {}, {})
    with pytest.raises(InputError, match="no model"):
        persist.load(tmp_path, "kind")
    persist.save(tmp_path, "kind", {}, {})
    with pytest.raises(InputError, match="'other' is needed"):
        persist.load(tmp_path, "other")
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(InputError, match="format None"):
        persist.load(tmp_path, "kind")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        persist.load(tmp_path, "kind")
