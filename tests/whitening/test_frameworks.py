"""Under Lightning, Accelerate and the Hugging Face Trainer: no further line, and the trajectory of a plain loop."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import counterflow as cf

# What these packages warn of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, BATCH, PARTS, CLIP = 14, 16, 2, 0.5
WHITENING = {"every": 4, "samples": 32, "epsilon": 0.1}
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(STEPS * BATCH, 5, generator=GENERATOR, dtype=torch.float64) + 0.5
T = torch.randint(3, (STEPS * BATCH,), generator=GENERATOR)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def whitened(kind: str) -> tuple[nn.Module, torch.optim.Optimizer, cf.whitening.WhitenHandle]:
    model = net()
    if kind == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, cf.whiten(model, optimizer, **WHITENING)


def in_parts(first: int = 0, last: int = STEPS) -> DataLoader[Any]:
    """The batches in order, each in the parts that are accumulated."""
    rows = slice(first * BATCH, last * BATCH)
    return DataLoader(TensorDataset(X[rows], T[rows]), batch_size=BATCH // PARTS)


def plain(kind: str) -> dict[str, Tensor]:
    """The state after a plain loop that accumulates and clips."""
    model, optimizer, h = whitened(kind)
    for index, (x, t) in enumerate(in_parts()):
        (F.cross_entropy(model(x), t) / PARTS).backward()
        if index % PARTS == PARTS - 1:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    assert h.table()["0"].values["projected"] == STEPS
    return model.state_dict()


def assert_same(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    got = model.state_dict()
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written but below a temporary folder, and nothing is fetched."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}.items():
        monkeypatch.setenv(name, value)


def needed(name: str) -> Any:
    if os.environ.get("CI") == "true":  # where it must not be skipped
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_lightning_trains_accumulates_clips_and_goes_on_from_a_checkpoint(kind, tmp_path):
    lightning = needed("lightning.pytorch")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            # Here, not in configure_optimizers: Lightning loads a checkpoint's weights before it calls that.
            self.net, self.optimizer, self.handle = whitened(kind)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    def fit(epochs: int, loader: DataLoader[Any], start: Path | None = None) -> tuple[Any, Any]:
        lit = Lit()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=PARTS,
            gradient_clip_val=CLIP,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(lit, loader, ckpt_path=None if start is None else str(start), weights_only=True)
        return lit, trainer

    wanted = plain(kind)
    assert_same(fit(1, in_parts())[0].net, wanted)
    _, trainer = fit(1, in_parts(0, 6))
    trainer.save_checkpoint(tmp_path / "epoch.ckpt")
    assert_same(fit(2, in_parts(6), tmp_path / "epoch.ckpt")[0].net, wanted)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_accelerate_trains_accumulates_clips_and_goes_on_from_a_checkpoint(kind, tmp_path):
    accelerate = needed("accelerate")

    def fit(loader: DataLoader[Any], start: Path | None = None) -> tuple[Any, nn.Module]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
        bare, plain_optimizer, _ = whitened(kind)
        model, optimizer, loader = accelerator.prepare(bare, plain_optimizer, loader)
        if start is not None:
            accelerator.load_state(start)
        for x, t in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), t))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
        return accelerator, accelerator.unwrap_model(model)

    wanted = plain(kind)
    assert_same(fit(in_parts())[1], wanted)
    fit(in_parts(0, 6))[0].save_state(tmp_path / "saved")
    assert_same(fit(in_parts(6), tmp_path / "saved")[1], wanted)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_the_hugging_face_trainer_trains_accumulates_clips_and_goes_on_from_a_checkpoint(kind, tmp_path):
    transformers = needed("transformers")

    class Model(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            y = self.body(x)
            return {"loss": F.cross_entropy(y, labels), "logits": y}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    rows = [{"x": x, "labels": t} for x, t in zip(X, T, strict=True)]

    def fit(start: Path | None = None) -> nn.Module:
        body, optimizer, _ = whitened(kind)
        settings = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=BATCH // PARTS,
            gradient_accumulation_steps=PARTS,
            max_grad_norm=CLIP,
            num_train_epochs=1,
            report_to=[],
            save_strategy="steps",
            save_steps=6,
            disable_tqdm=True,
            logging_strategy="no",
        )
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        trainer = InOrder(Model(body), settings, train_dataset=rows, optimizers=(optimizer, scheduler))
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        return body

    wanted = plain(kind)
    assert_same(fit(), wanted)
    assert_same(fit(tmp_path / "checkpoint-6"), wanted)


def test_none_of_them_is_needed() -> None:
    """The package itself loads none of them."""
    code = "import sys, counterflow; print(*{'lightning', 'accelerate', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
