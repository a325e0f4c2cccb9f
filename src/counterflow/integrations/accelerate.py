"""One line for loops with Hugging Face accelerate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from counterflow.exceptions import InputError, MissingExtraError, UnsupportedError
from counterflow.handle import Handle
from counterflow.integrations.attachment import UNSAID, Attachment, Weight

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ImportError as error:
    raise MissingExtraError("accelerate", "counterflow.integrations.accelerate") from error

__all__ = ["attach_to"]


def attach_to(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    verb: Callable[..., Handle],
    *arguments: Any,
    on: str = "",
    schedulers: Sequence[LRScheduler] = (),
    data_size: int | str | None = UNSAID,
    kl_weight: Weight = 1.0,
    log_every: int | None = None,
    **options: Any,
) -> Handle:
    """Attach a verb before ``accelerator.prepare``; ``save_state`` and ``load_state`` then hold all that is needed.

    Args:
        accelerator: Whose trackers a probe's table goes to.
        model: Before it is prepared.
        optimizer: Before it is prepared.
        verb: Such as `counterflow.whiten`, `counterflow.temper`, `counterflow.make_variational` or `counterflow.probe`.
        arguments: Of the verb, after the model and the optimizer.
        on: The dotted name of the module that is meant; the model itself by default.
        schedulers: Those that are on the optimizer already, whose groups tempering and variational rates divide.
        data_size: For `counterflow.make_variational`: examples of the training set; the gradient of the divergence over
            this number is added before every step (after clipping). None where the loss has it already.
        kl_weight: What the divergence is multiplied by: a number, or a function of the steps taken.
        log_every: For `counterflow.probe`: ``accelerator.log`` its table every so many steps, which hands it on to the
            trackers that ``init_trackers`` began.
        options: Of the verb, by name.

    Returns:
        What the verb returns.

    Raises:
        InputError: If an argument cannot be used.
        UnsupportedError: If model or optimizer are prepared already.
    """
    if not isinstance(accelerator, Accelerator):
        raise InputError(f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}")
    if isinstance(optimizer, AcceleratedOptimizer) or any(each is model for each in accelerator._models):
        raise UnsupportedError("model and optimizer are prepared already; attach before accelerator.prepare(...)")
    attachment = Attachment(
        verb, arguments, options, on=on, data_size=data_size, kl_weight=kl_weight, log_every=log_every
    )
    attachment.on_model(model, optimizer)
    attachment.on_optimizer(optimizer, schedulers)
    attachment.log = lambda values, step: accelerator.log(values, step=step)
    return attachment.handle
