"""The Hugging Face Trainer: every verb in one line, and on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError, UnsupportedError

from .nets import (
    BATCH,
    CHANGES,
    CLIP,
    PARTS,
    STEPS,
    VERBS,
    T,
    X,
    apply,
    assert_equal,
    assert_told_the_same,
    in_fresh_process,
    needed,
    net,
    told,
)

transformers = needed("transformers")
integration = needed("counterflow.integrations.transformers")

# What the package warns of is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]

ROWS = [{"x": x, "labels": t} for x, t in zip(X, T, strict=True)]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"loss": F.cross_entropy(y, labels), "logits": y}


def trainer_of(folder: Path, model: nn.Module | None = None, rows: Any = ROWS, **options: Any) -> Any:
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=BATCH // PARTS,
        gradient_accumulation_steps=PARTS,
        max_grad_norm=CLIP,
        num_train_epochs=1,
        learning_rate=0.01,
        weight_decay=0.01,
        report_to=[],
        save_strategy="steps",
        save_steps=4,
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    return transformers.Trainer(model or Model(), settings, train_dataset=rows)


def attached(trainer: Any, name: str, on: str = "body") -> Any:
    verb, arguments, options = VERBS[name]
    return integration.attach_to(trainer, verb, *arguments, on=on, **copy.deepcopy(options))


def go_on(name: str, folder: Path) -> tuple[Any, Any, list[Any]]:
    """From a checkpoint to the end: what counts steps, the model, and what the handles tell."""
    trainer = trainer_of(folder)
    handles = [attached(trainer, name), attached(trainer, "probe")]
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return (trainer.state.global_step, handles[1].steps), trainer.model.state_dict(), told(handles)


@pytest.mark.parametrize("name", CHANGES)
def test_every_verb_goes_on_from_a_checkpoint_to_the_bit(name: str, tmp_path: Path) -> None:
    first = trainer_of(tmp_path)
    whole = [attached(first, name), attached(first, "probe")]
    first.train()
    steps, state, again = (in_fresh_process if name == "whiten" else apply)(go_on, name, tmp_path)
    assert steps == (STEPS, STEPS * PARTS)
    assert_equal(state, dict(first.model.state_dict()))
    assert_told_the_same(again, told(whole))


def test_rates_and_their_groups_are_the_optimizers(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    h = attached(trainer, "temper")
    found = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    wanted = {id(p): group["lr"] for group in h.param_groups(lr=0.01) for p in group["params"]}
    assert found == pytest.approx(wanted)
    trainer = trainer_of(tmp_path)
    h = attached(trainer, "make_variational")
    rates = {id(p) for p in h.rates()}
    for group in trainer.optimizer.param_groups:
        own = {id(p) for p in group["params"]}
        assert own <= rates or not own & rates
        assert group["weight_decay"] == 0.0 or not own & rates


def test_a_pretrained_model_keeps_what_it_needs(tmp_path: Path) -> None:
    """``save_pretrained`` writes the buffers, too."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
    )
    tokens = torch.randint(20, (STEPS * BATCH, 6))
    rows = [{"input_ids": each, "labels": t} for each, t in zip(tokens, T, strict=True)]

    def fit(start: str | None = None) -> Any:
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, transformers.BertForSequenceClassification(config), rows)
        integration.attach_to(trainer, cf.whiten, every=4, samples=32)
        integration.attach_to(trainer, cf.probe, "bert.encoder.layer.*", every=1)
        trainer.train(resume_from_checkpoint=start)
        return trainer.model

    wanted = fit().state_dict()
    assert any("whiten" in name for name in wanted)
    assert_equal(fit(str(tmp_path / "checkpoint-4")).state_dict(), wanted)


def test_a_whole_model_is_tempered_where_its_loss_is_computed_outside(tmp_path: Path) -> None:
    class Labelled(Model):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.body(x)} if labels is None else super().forward(x, labels)

    def loss(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs["logits"], labels, reduction="sum")

    def train(on: str = "", function: Any = None) -> dict[str, Tensor]:
        trainer = trainer_of(tmp_path, Labelled())
        trainer.compute_loss_func = function
        integration.attach_to(trainer, cf.temper, X, "cross_entropy_sum" if function else "cross_entropy", on=on)
        trainer.train()
        return dict(trainer.model.state_dict())

    with pytest.raises(UnsupportedError, match="the loss is computed inside the model"):
        train()
    torch.testing.assert_close(train(function=loss), train(on="body"))  # Adam cares for no factor


def test_the_probes_table_is_logged(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=4)
    integration.attach_to(trainer, cf.probe, on="body", every=1, log_every=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "error/rms/0" in entry]
    assert len(logged) == 2
    assert {"error/mean_share/2", "error/signal_to_noise/0", "error/drift/0"} <= set(logged[1])


def test_training_goes_on_when_the_verb_is_undone(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=4)
    options = VERBS["make_variational"][2]
    handles = [
        integration.attach_to(trainer, cf.make_variational, on="body", **options),
        integration.attach_to(trainer, cf.probe, on="body", every=1, log_every=1),
    ]

    class Undo(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 2:
                for handle in reversed(handles):
                    handle.undo()

    trainer.add_callback(Undo())
    trainer.train()
    assert trainer.state.global_step == 4
    assert sum("error/rms/0" in entry for entry in trainer.state.log_history) == 2
    assert type(trainer.model.body[0]) is nn.Linear


def test_what_cannot_be_attached_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trainer must be a transformers\.Trainer, got Model"):
        attached(Model(), "probe")
    settings = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    later = transformers.Trainer(model_init=Model, args=settings, train_dataset=ROWS)
    with pytest.raises(UnsupportedError, match="call the verb within model_init"):
        attached(later, "probe")
    linear = transformers.Trainer(nn.Linear(5, 3), settings, train_dataset=ROWS)
    with pytest.raises(UnsupportedError, match="exchanges this Linear itself"):
        attached(linear, "make_variational", on="")
