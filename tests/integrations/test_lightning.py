"""The Lightning callback: every verb in one line, and on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError, UnsupportedError

from .nets import (
    CHANGES,
    CLIP,
    PARTS,
    STEPS,
    VERBS,
    apply,
    assert_equal,
    assert_told_the_same,
    in_fresh_process,
    in_parts,
    loss_of,
    needed,
    net,
    told,
)

lightning = needed("lightning.pytorch")
integration = needed("counterflow.integrations.lightning")

# What Lightning warns of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


class Lit(lightning.LightningModule):
    def __init__(self, scheduled: bool = True) -> None:
        super().__init__()
        self.net, self.scheduled = net(), scheduled

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        if not self.scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer_of(epochs: int, *callbacks: Any, **options: Any) -> Any:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=PARTS,
        callbacks=list(callbacks),
        **{"logger": False, "gradient_clip_val": CLIP, **quiet, **options},
    )


def attach_of(name: str) -> Any:
    verb, arguments, options = VERBS[name]
    return integration.Attach(verb, *arguments, on="net", **copy.deepcopy(options))


class SaveAt(lightning.Callback):
    """Saves at the end of the first epoch, as ModelCheckpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def go_on(name: str, saved: Path) -> tuple[Any, Any, list[Any]]:
    """From a checkpoint to the end: what counts steps, the model, and what the handles tell."""
    torch.manual_seed(4)  # the noise of a restart has to come from the checkpoint
    model, callbacks = Lit(), [attach_of(name), attach_of("probe")]
    trainer = trainer_of(2, *callbacks)
    trainer.fit(model, in_parts(), ckpt_path=str(saved), weights_only=True)
    handles = [callback.handle for callback in callbacks]
    steps = trainer.global_step, callbacks[0]._attachment.step, handles[1].steps
    return steps, model.state_dict(), told(handles)


@pytest.mark.parametrize("name", CHANGES)
def test_every_verb_goes_on_from_a_checkpoint_to_the_bit(name: str, tmp_path: Path) -> None:
    path = tmp_path / "first.ckpt"
    torch.manual_seed(3)
    whole, first = Lit(), [attach_of(name), attach_of("probe")]
    trainer_of(2, *first, SaveAt(path)).fit(whole, in_parts())
    steps, state, again = (in_fresh_process if name == "whiten" else apply)(go_on, name, path)
    assert steps == (2 * STEPS, 2 * STEPS, 2 * STEPS * PARTS)
    assert_equal(state, dict(whole.state_dict()))
    assert_told_the_same(again, told([callback.handle for callback in first]))


def test_it_is_the_trajectory_of_a_plain_loop() -> None:
    """Rates and divergence reach the optimizer as they would by hand."""

    def by_hand(name: str) -> nn.Module:
        verb, arguments, options = VERBS[name]
        model = net()
        h = verb(model, *arguments, **{key: value for key, value in options.items() if key != "data_size"})
        if name == "temper":
            optimizer = torch.optim.AdamW(h.param_groups(lr=0.01))
        else:
            rates = {id(p) for p in h.rates()}
            means = [p for p in model.parameters() if id(p) not in rates]
            optimizer = torch.optim.AdamW([{"params": means}, {"params": h.rates(), "weight_decay": 0.0}], lr=0.01)
        torch.manual_seed(3)
        for index, batch in enumerate(in_parts()):
            (loss_of(model, batch) / PARTS).backward()
            if index % PARTS == PARTS - 1:
                if name == "make_variational":
                    (cf.variational.kl(model) / options["data_size"]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
        return model

    for name in ("temper", "make_variational"):
        lit = Lit(scheduled=False)
        torch.manual_seed(3)
        trainer_of(1, attach_of(name)).fit(lit, in_parts())
        for got, wanted in zip(lit.net.parameters(), by_hand(name).parameters(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_the_loss_scale_leaves_the_divergence_alone() -> None:
    """With an optimizer that unscales within its step, and with one that does not."""

    class Silent(Lit):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return 0.0 * loss_of(self.net, batch)  # the divergence alone moves the rates

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=self.fused)

    def fit(fused: bool, scaled: bool) -> list[Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        mixed = [lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scaled else []
        lit, attach = Silent(fused), attach_of("make_variational")
        trainer_of(1, attach, plugins=mixed, gradient_clip_val=None).fit(lit, in_parts())
        return list(attach.handle.rates())

    wanted = fit(False, False)
    for fused, scaled in ((True, False), (False, True), (True, True)):
        torch.testing.assert_close(fit(fused, scaled), wanted)


def test_a_second_fit_goes_on() -> None:
    lit, attaches = Lit(), [attach_of("make_variational"), attach_of("probe")]
    for _ in range(2):
        trainer_of(1, *attaches).fit(lit, in_parts(0, 2))
    assert attaches[1].handle.steps == 4 * PARTS
    lit, attach = Lit(), attach_of("whiten")
    for _ in range(2):
        trainer_of(1, attach).fit(lit, in_parts(0, 2))
    assert attach.handle.attached


def test_a_fit_after_one_that_failed_begins_anew(tmp_path: Path) -> None:
    """Without a checkpoint to go on from, the first one ends before there is an optimizer."""

    def rates(lit: Any) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in lit.trainer.optimizers[0].param_groups}

    wanted, lit, attaches = Lit(scheduled=False), Lit(scheduled=False), [attach_of("temper"), attach_of("probe")]
    trainer_of(1, attach_of("temper")).fit(wanted, in_parts(0, 2))
    own = lit.configure_optimizers
    lit.configure_optimizers = lambda: own()  # set on the instance, as Lightning's command line does
    mine = lit.configure_optimizers
    with pytest.raises(FileNotFoundError):
        trainer_of(1, *attaches).fit(lit, in_parts(0, 2), ckpt_path=str(tmp_path / "none.ckpt"))
    assert lit.configure_optimizers is mine
    trainer_of(1, *attaches).fit(lit, in_parts(0, 2))
    assert rates(lit) == pytest.approx(rates(wanted))
    assert lit.configure_optimizers is mine


def test_training_goes_on_when_the_verb_is_undone() -> None:
    attach = attach_of("make_variational")

    class Undo(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                attach.handle.undo()

    lit = Lit()
    trainer = trainer_of(1, attach, Undo())
    trainer.fit(lit, in_parts())
    assert trainer.global_step == STEPS
    assert type(lit.net[0]) is nn.Linear


def test_the_probes_table_is_logged(tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(str(tmp_path), flush_logs_every_n_steps=1)
    attach = integration.Attach(cf.probe, on="net", every=1, log_every=3)
    trainer_of(1, attach, logger=logger).fit(Lit(), in_parts())
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert {"error/rms/0", "error/rms/2", "error/signal_to_noise/0", "error/drift/2"} <= set(names)
    steps = [line.split(",")[names.index("step")] for line in lines[1:]]
    assert steps == ["3", "6"]


def test_what_cannot_be_attached_is_one_line() -> None:
    class Later(Lit):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def setup(self, stage: str) -> None:
            self.net = net()

    with pytest.raises(UnsupportedError, match="build the model in its __init__"):
        trainer_of(1, attach_of("probe")).fit(Later(), in_parts())
    with pytest.raises(InputError, match="on='nets' names no module of this Lit"):
        trainer_of(1, integration.Attach(cf.probe, on="nets")).fit(Lit(), in_parts())
    with pytest.raises(InputError, match="needs data_size="):
        trainer_of(1, integration.Attach(cf.make_variational, on="net")).fit(Lit(), in_parts())
    with pytest.raises(InputError, match=r"optimizer=1: configure_optimizers returns 1"):
        trainer_of(1, integration.Attach(cf.probe, optimizer=1)).fit(Lit(), in_parts())
    with pytest.raises(InputError, match="has not been attached yet"):
        _ = attach_of("probe").handle
    for options, complaint in (({"data_size": 8}, "data_size is for"), ({"kl_weight": 0.5}, "kl_weight is for")):
        with pytest.raises(InputError, match=complaint):
            trainer_of(1, integration.Attach(cf.probe, on="net", **options)).fit(Lit(), in_parts())
    with pytest.raises(InputError, match="log_every is for"):
        trainer_of(1, integration.Attach(cf.compete, on="net", block=2, log_every=5)).fit(Lit(), in_parts())
    with pytest.raises(InputError, match="data_size must be a whole number"):
        integration.Attach(cf.make_variational, data_size=0)
    with pytest.raises(InputError, match="the verb must be a function"):
        integration.Attach("whiten")
