"""Models on disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

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


def test_tensors_that_share_memory_are_saved_each_by_itself(tmp_path):
    whole = torch.arange(4.0)
    tensors = {"part": whole[1:3], "whole": whole, "tied": whole, "turned": whole.reshape(2, 2).T}
    persist.save(tmp_path, "kind", {}, tensors)
    _, found = persist.load(tmp_path, "kind")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_model_stays_whole_where_another_one_cannot_be_written_over_it(tmp_path, monkeypatch):
    persist.save(tmp_path, "kind", {"size": 1}, {"a": torch.ones(1)})
    write = Path.write_bytes

    def full(self, data):
        if "json" in self.name:
            write(self, data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        persist.save(tmp_path, "kind", {"size": 2}, {"a": torch.ones(2)})
    assert sorted(os.listdir(tmp_path)) == ["model.json", "model.safetensors"]
    config, found = persist.load(tmp_path, "kind")
    assert config == {"size": 1}
    assert torch.equal(found["a"], torch.ones(1))


def test_files_of_two_models_are_told_apart(tmp_path):
    persist.save(tmp_path / "one", "kind", {"size": 2}, {"a": torch.ones(2)})
    persist.save(tmp_path / "two", "kind", {"size": 2}, {"a": torch.zeros(2)})
    os.replace(tmp_path / "one" / "model.safetensors", tmp_path / "two" / "model.safetensors")
    with pytest.raises(InputError, match="is damaged or of another model"):
        persist.load(tmp_path / "two", "kind")


def test_a_model_that_was_saved_without_a_digest_is_read(tmp_path):
    persist.save(tmp_path, "kind", {}, {"a": torch.ones(2)})
    about = json.loads((tmp_path / "model.json").read_text())
    del about["tensors"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    assert torch.equal(persist.load(tmp_path, "kind")[1]["a"], torch.ones(2))


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


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"kind": "mine"}'])
def test_only_a_model_of_another_kind_is_in_the_way(content, tmp_path):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    persist.require_kind(tmp_path, "mine")
    (tmp_path / "model.json").write_text('{"kind": "yours"}')
    with pytest.raises(InputError, match="holds a 'yours', and a 'mine' would take its place; name another folder"):
        persist.require_kind(tmp_path, "mine")
