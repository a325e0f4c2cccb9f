"""Models on disk: a folder with ``model.safetensors`` and ``model.json``. Nothing is ever unpickled.

``model.json`` holds ``{"format_version": 1, "kind": ..., "tensors": ..., "config": {...}}``, where ``tensors`` is the
SHA-256 of the other file. By it files of two models are told apart, should a machine stop between their renaming.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from counterflow.exceptions import InputError
from counterflow.files import replacing

__all__ = ["fill", "load", "model_files", "require_kind", "save"]

FORMAT_VERSION = 1

Module = TypeVar("Module", bound=nn.Module)


def save(folder: str | os.PathLike[str], kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model: both files under other names first, so that one that stands there stays until both are whole.

    Args:
        folder: Where to; it is made if it does not exist.
        kind: What it is, which `load` asks for.
        config: All but the tensors: what JSON can hold.
        tensors: By name; those that share memory are written each by itself.

    Raises:
        InputError: If the folder cannot be written, or the configuration is not JSON.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, "example", {"size": 2}, {"weight": torch.ones(2)})
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['model.json', 'model.safetensors']
    """
    from safetensors.torch import save as serialized

    place = Path(folder)
    content = serialized(_apart(tensors))
    of = {"format_version": FORMAT_VERSION, "kind": kind, "tensors": _digest(content), "config": config}
    try:
        text = json.dumps(of, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"this {kind} cannot be saved: {error}") from None
    try:
        place.mkdir(parents=True, exist_ok=True)
        about_file, tensors_file = model_files(place)
        with replacing(about_file) as about, replacing(tensors_file) as new:
            new.write_bytes(content)
            about.write_bytes(f"{text}\n".encode())
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror or error}; choose another folder") from error


def model_files(folder: Path) -> tuple[Path, Path]:
    """The two files of a model: what it is, and its tensors.

    Example:
        >>> [path.name for path in model_files(Path("model"))]
        ['model.json', 'model.safetensors']
    """
    return folder / "model.json", folder / "model.safetensors"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, none of which shares memory with another, as tied weights do: the format refuses that."""
    apart: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in memory else plain
        memory.add(place)
    return apart


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def load(folder: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save` wrote.

    Args:
        folder: Where it is.
        kind: What it has to be.

    Returns:
        The configuration, and the tensors.

    Raises:
        InputError: If it is not there, is damaged, is another kind, or was written by a later version.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, "example", {"size": 2}, {"weight": torch.ones(2)})
        ...     config, tensors = load(folder, "example")
        >>> config, tensors["weight"]
        ({'size': 2}, tensor([1., 1.]))
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialized

    place = Path(folder)
    try:
        about, stored = model_files(place)
        found = json.loads(about.read_text("utf-8"))
        content = stored.read_bytes()
        tensors: dict[str, Tensor] = deserialized(content)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{place} holds no model that can be read: {error.filename}: {reason}") from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"the model in {place} is damaged: {error}; save it again") from error
    version = found.get("format_version") if isinstance(found, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"the model in {place} has format {version!r}; this version reads {FORMAT_VERSION}")
    if found.get("kind") != kind or not isinstance(found.get("config"), dict):
        raise InputError(_other(place, found.get("kind"), f"a {kind!r} is needed"))
    digest = _digest(content)
    if found.get("tensors", digest) != digest:  # models saved before there were digests have none
        raise InputError(f"in {place}, model.safetensors is damaged or of another model than model.json; save it again")
    return found["config"], tensors


def require_kind(folder: str | os.PathLike[str], kind: str) -> None:
    """Find out before the work that `save` would put a model in the place of one of another kind.

    Args:
        folder: Where to; where no model is, or one that is damaged, nothing is lost.
        kind: What will be saved.

    Raises:
        InputError: If another kind is there.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, "example", {}, {"weight": torch.ones(2)})
        ...     require_kind(folder, "example")
    """
    try:
        found = json.loads(model_files(Path(folder))[0].read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    other = found.get("kind", kind) if isinstance(found, dict) else kind
    if other != kind:
        raise InputError(_other(folder, other, f"a {kind!r} would take its place; name another folder"))


def _other(folder: str | os.PathLike[str], kind: object, but: str) -> str:
    """What is said of a folder that has another kind of model than is meant."""
    return f"{folder} holds a {kind!r}, and {but}"


def fill(make: Callable[[], Module], tensors: Mapping[str, Tensor]) -> Module:
    """Make a module and give it the tensors that were read for it.

    What a configuration says of sizes is compared with the tensors before memory is taken for it: a damaged or hostile
    file cannot ask for more than it holds.

    Args:
        make: Makes the module; called twice, first without memory (on PyTorch's ``meta`` device).
        tensors: Its ``state_dict``.

    Raises:
        ValueError: If the names or shapes differ from the module's.

    Example:
        >>> fill(lambda: nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}).weight.tolist()
        [[1.0, 1.0]]
    """
    with torch.device("meta"), _Shapes():
        wanted = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    held = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted({*wanted} | {*held}):
        if wanted.get(name) != held.get(name):
            raise ValueError(f"{name} has shape {held.get(name)}, and its configuration says {wanted.get(name)}")
    module = make()
    module.load_state_dict(dict(tensors))
    return module


class _Shapes(TorchFunctionMode):
    """Leaves out what changes no shape: for that PyTorch would load its compiler on the meta device, for seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.randn:
            options.pop("generator", None)
            return torch.empty(*args, **options)
        if getattr(func, "__module__", None) == "torch.nn.init":
            return options.get("tensor", *args[:1])
        if func in (Tensor.triu, Tensor.tril):
            return args[0]
        return func(*args, **options)
