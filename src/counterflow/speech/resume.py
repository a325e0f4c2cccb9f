"""Where training is, on disk: what was killed goes on from its last pass, and ends with the same model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.files import replacing

__all__ = ["Checkpoint", "optimizer_state", "restore"]


class Checkpoint:
    """A file that holds the state of one training run after its last pass. It is written whole or not at all.

    Args:
        path: Where it is; it is written when the first pass is done, and stays until whoever named it removes it.
        settings: What the run depends on, as JSON. The file of another run is refused.
        data: Tensors that it depends on, too.

    Raises:
        InputError: If the file holds another run, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], data: Iterable[Tensor] = ()) -> None:
        self._path = Path(path)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for each in data:
            digest.update(str(tuple(each.shape)).encode())
            digest.update(each.detach().cpu().contiguous().numpy().tobytes())
        self._run = digest.hexdigest()
        self._tensors: dict[str, Tensor] = {}
        self._stage, self._curve = "", list[float]()
        self._over: dict[str, list[float]] = {}
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        from safetensors import safe_open

        with self.readable():
            with safe_open(self._path, "pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            run, self._stage = str(state["run"]), str(state["stage"])
            self._curve = [float(each) for each in state["curve"]]
            self._over = {str(name): [float(each) for each in curve] for name, curve in state["over"].items()}
        if run != self._run:
            raise InputError(
                f"{self._path} is the state of another training run, with other recordings, texts or settings; remove "
                "it, or name another file"
            )

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """Say of whatever does not fit together that the file is no state of a training run."""
        from safetensors import SafetensorError

        try:
            yield
        except (
            ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())
            raise InputError(f"{self._path} is no state of a training run: {reason}; remove it") from error

    def load(self, stage: str) -> tuple[list[float], dict[str, Tensor]]:
        """What each pass of a stage has reported, and its tensors; none if it is not at work."""
        return (list(self._curve), self._of("")) if self._stage == stage else ([], {})

    def over(self, stage: str) -> tuple[list[float], dict[str, Tensor]] | None:
        """What a stage that is over has reported and left; None if it is not over."""
        return (list(self._over[stage]), self._of(f"{stage}/")) if stage in self._over else None

    def save(self, stage: str, curve: list[float], tensors: Mapping[str, Tensor]) -> None:
        """Write the state after a pass."""
        self._stage, self._curve = stage, list(curve)
        self._tensors = {**self._left(), **tensors}
        self._write()

    def end(self, stage: str, curve: list[float], tensors: Mapping[str, Tensor]) -> None:
        """Write that a stage is over, and what it leaves."""
        self._tensors = {**self._left(), **{f"{stage}/{name}": value for name, value in tensors.items()}}
        self._stage, self._curve = "", []
        self._over[stage] = list(curve)
        self._write()

    def _of(self, prefix: str) -> dict[str, Tensor]:
        wanted = {name: value for name, value in self._tensors.items() if name.startswith(prefix) or not prefix}
        return {name.removeprefix(prefix): value for name, value in wanted.items() if prefix or "/" not in name}

    def _left(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._tensors.items() if "/" in name}

    def _write(self) -> None:
        from safetensors.torch import save

        state = {"run": self._run, "stage": self._stage, "curve": self._curve, "over": self._over}
        content = save(
            {name: value.detach().cpu().clone().contiguous() for name, value in self._tensors.items()},
            metadata={"state": json.dumps(state)},
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as new:
                new.write_bytes(content)
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror or error}; name another file") from error


def optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """A model, Adam's moments of its parameters, its rate, and where the draws are."""
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, parameter in enumerate(model.parameters()):
        for name, value in optimizer.state[parameter].items():
            found[f"adam.{number}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    if generator is not None:
        found["generator"] = generator.get_state()
    found["steps"] = torch.tensor(schedule.last_epoch)
    found["lr"] = torch.tensor([float(group["lr"]) for group in optimizer.param_groups], dtype=torch.float64)
    return found


def restore(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR,
    generator: torch.Generator | None,
) -> None:
    """Put back what `optimizer_state` took; raises one of several errors if it is of another model."""
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict(state)
    for number, parameter in enumerate(model.parameters()):
        prefix = f"adam.{number}."
        held = {name.removeprefix(prefix): value.clone() for name, value in tensors.items() if name.startswith(prefix)}
        kinds = {name: (value.dtype, tuple(value.shape)) for name, value in held.items()}
        own = parameter.dtype, tuple(parameter.shape)
        counts = [{"step": (dtype, ())} for dtype in (torch.float32, torch.float64)]  # by PyTorch's default type
        if kinds not in [{**count, "exp_avg": own, "exp_avg_sq": own} for count in counts]:
            raise ValueError(f"Adam's moments of parameter {number} have other shapes or types than it has")
        optimizer.state[parameter] = held
    schedule.last_epoch = int(tensors["steps"])
    for group, lr in zip(optimizer.param_groups, tensors["lr"].tolist(), strict=True):
        group["lr"] = float(lr)
    if generator is not None and "generator" in tensors:
        generator.set_state(tensors["generator"])
