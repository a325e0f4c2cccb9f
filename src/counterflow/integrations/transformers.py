"""One line for the Hugging Face ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from counterflow.exceptions import InputError, MissingExtraError, UnsupportedError
from counterflow.handle import Handle
from counterflow.integrations.attachment import UNSAID, Attachment, Weight

try:
    from transformers import Trainer
except ImportError as error:
    raise MissingExtraError("transformers", "counterflow.integrations.transformers") from error

__all__ = ["attach_to"]


def attach_to(
    trainer: Trainer,
    verb: Callable[..., Handle],
    *arguments: Any,
    on: str = "",
    data_size: int | str | None = UNSAID,
    kl_weight: Weight = 1.0,
    log_every: int | None = None,
    **options: Any,
) -> Handle:
    """Attach a verb to what a ``Trainer`` trains: after making the trainer, before ``train()``.

    It makes the trainer's optimizer (``trainer.create_optimizer()``), which training then uses. Checkpoints hold all
    that is needed; to go on from one, attach the same to the new trainer, and ``train(resume_from_checkpoint=...)``.

    Args:
        trainer: With its model; not one with ``model_init``, which makes another model when training begins.
        verb: Such as `counterflow.whiten`, `counterflow.temper`, `counterflow.make_variational` or `counterflow.probe`.
        arguments: Of the verb, after the model and the optimizer.
        on: The dotted name of the module that is meant; the model itself by default.
        data_size: For `counterflow.make_variational`: examples of the training set; the gradient of the divergence over
            this number is added before every step (after clipping). None where the loss has it already.
        kl_weight: What the divergence is multiplied by: a number, or a function of the steps taken.
        log_every: For `counterflow.probe`: ``trainer.log`` its table every so many steps, which hands it on to
            TensorBoard, Weights & Biases or whatever ``report_to`` names.
        options: Of the verb, by name.

    Returns:
        What the verb returns.

    Raises:
        InputError: If an argument cannot be used.
        UnsupportedError: If the trainer makes its model later, or has wrapped it.
    """
    if not isinstance(trainer, Trainer):
        raise InputError(f"trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    if trainer.model_init is not None:
        raise UnsupportedError(
            "a trainer with model_init makes another model when training begins; call the verb within model_init"
        )
    if trainer.model is not trainer.model_wrapped:
        raise UnsupportedError("this trainer has wrapped its model already; attach before train()")
    attachment = Attachment(
        verb, arguments, options, on=on, data_size=data_size, kl_weight=kl_weight, log_every=log_every
    )
    if not attachment.takes_optimizer:
        attachment.on_model(trainer.model)
    optimizer = _bare(trainer.create_optimizer())
    if attachment.takes_optimizer:
        attachment.on_model(trainer.model, optimizer)
    attachment.on_optimizer(optimizer, [] if trainer.lr_scheduler is None else [trainer.lr_scheduler])
    attachment.log = lambda values, step: trainer.log(values)
    return attachment.handle


def _bare(optimizer: Any) -> Optimizer:
    """Torch's own, out of the wrapper that accelerate puts around it."""
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
