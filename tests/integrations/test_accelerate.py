"""Loops with accelerate: every verb in one line, and on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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

accelerate = needed("accelerate")
integration = needed("counterflow.integrations.accelerate")

# What the package warns of is not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


def parts_of(*names: str) -> tuple[list[Any], list[cf.handle.Handle]]:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    handles = []
    for name in names:
        verb, arguments, options = VERBS[name]
        more = {"schedulers": [schedule], **copy.deepcopy(options)}
        handles.append(integration.attach_to(accelerator, model, optimizer, verb, *arguments, **more))
    return [accelerator, *accelerator.prepare(model, optimizer, schedule)], handles


def train(
    accelerator: Any, model: nn.Module, optimizer: Any, schedule: Any, batches: Iterable[Any], save: Path | None = None
) -> None:
    for index, batch in enumerate(batches, 1):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if save is not None and index == PARTS * STEPS // 2:
            accelerator.save_state(str(save))


def go_on(name: str, saved: Path) -> tuple[int, Any, list[Any]]:
    """From a checkpoint to the end: the steps that the probe counts, the model, and what the handles tell."""
    parts, handles = parts_of(name, "probe")
    torch.manual_seed(4)  # the noise of a restart has to come from the checkpoint
    parts[0].load_state(str(saved))
    train(*parts, parts[0].prepare(in_parts(STEPS // 2)))
    return handles[1].steps, parts[1].state_dict(), told(handles)


@pytest.mark.parametrize("name", CHANGES)
def test_every_verb_goes_on_from_a_checkpoint_to_the_bit(name: str, tmp_path: Path) -> None:
    parts, whole = parts_of(name, "probe")
    train(*parts, parts[0].prepare(in_parts()), save=tmp_path / "saved")
    steps, state, again = (in_fresh_process if name == "whiten" else apply)(go_on, name, tmp_path / "saved")
    assert steps == STEPS * PARTS
    assert_equal(state, dict(parts[1].state_dict()))
    assert_told_the_same(again, told(whole))


def test_the_weight_of_the_divergence_may_follow_the_steps() -> None:
    """With a weight of 0 it is the model's own loss alone; the number of steps is what it is asked with."""

    def fit(weight: Any) -> dict[str, torch.Tensor]:
        accelerator, model = accelerate.Accelerator(cpu=True), net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        more = {"rates": "weight", "p": 0.2, "data_size": 10, "kl_weight": weight}
        integration.attach_to(accelerator, model, optimizer, cf.make_variational, **more)
        model, optimizer = accelerator.prepare(model, optimizer)
        torch.manual_seed(5)
        for batch in in_parts(0, 2):
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    asked = []
    assert_equal(fit(lambda step: asked.append(step) or 0.5), fit(0.5))
    assert asked == [0, 1, 2, 3]
    assert not torch.equal(fit(0.0)["0.rate.rho"], fit(0.5)["0.rate.rho"])


def test_the_probes_table_goes_to_the_trackers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    integration.attach_to(accelerator, model, optimizer, cf.probe, every=1, log_every=3)
    model, optimizer = accelerator.prepare(model, optimizer)
    for batch in in_parts(0, 3):
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("error/rms/0")] == [3, 6]


def test_training_goes_on_when_the_verb_is_undone() -> None:
    accelerator, model = accelerate.Accelerator(cpu=True), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handles = [
        integration.attach_to(accelerator, model, optimizer, cf.make_variational, data_size=10),
        integration.attach_to(accelerator, model, optimizer, cf.probe, every=1, log_every=1),
    ]
    logged: list[int] = []
    accelerator.log = lambda values, step: logged.append(step)
    model, optimizer = accelerator.prepare(model, optimizer)
    for index, batch in enumerate(in_parts(0, 2)):
        if index == 1:
            for handle in reversed(handles):
                handle.undo()
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
        optimizer.zero_grad()
    assert logged == [1]


def test_what_is_prepared_is_refused() -> None:
    (accelerator, model, optimizer, _), _ = parts_of("probe")
    for first, second in ((model, optimizer), (net(), optimizer)):
        with pytest.raises(UnsupportedError, match=r"attach before accelerator\.prepare"):
            integration.attach_to(accelerator, first, second, cf.probe)
    with pytest.raises(InputError, match="accelerator must be"):
        integration.attach_to(None, model, optimizer, cf.probe)
