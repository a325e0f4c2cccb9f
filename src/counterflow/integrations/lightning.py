"""A callback for PyTorch Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from counterflow.exceptions import InputError, MissingExtraError, UnsupportedError
from counterflow.handle import Handle
from counterflow.integrations.attachment import UNSAID, Attachment, Weight
from counterflow.variational import VariationalHandle

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtraError("lightning", "counterflow.integrations.lightning") from error

__all__ = ["Attach"]

_BEFORE = "counterflow_before"  # on a function in place of configure_optimizers: what the instance had there before


class Attach(Callback):
    """Attaches a verb when training begins, and survives checkpoints.

    Give several in the order in which the verbs are to be called. The model has to be built in the module's
    ``__init__``; everything happens before Lightning loads a checkpoint, so that ``fit(ckpt_path=...)`` goes on where
    it was. For a verb that takes an optimizer, ``configure_optimizers`` is called a little earlier than usual, once.

    Lightning keeps no state of random generators. With `counterflow.make_variational` this callback does, so that the
    noise goes on, too, after a checkpoint at the end of an epoch.

    Args:
        verb: Such as `counterflow.whiten`, `counterflow.temper`, `counterflow.make_variational`, `counterflow.compete`
            or `counterflow.probe`.
        arguments: Of the verb, after the model and the optimizer.
        on: The dotted name of the module that is meant, such as ``"net"``; the LightningModule itself by default, which
            tempering cannot trace.
        optimizer: Which one, by its place, where there are several.
        data_size: For `counterflow.make_variational`: examples of the training set; the gradient of the divergence over
            this number is added before every step (and before clipping). None where the loss has it already.
        kl_weight: What the divergence is multiplied by: a number, or a function of the steps taken such as
            ``lambda step: cf.variational.warm_up(step, over=1000)``.
        log_every: For `counterflow.probe`: log its table to the trainer's loggers every so many steps.
        options: Of the verb, by name.

    Raises:
        InputError: If an option is not for this verb, or out of range; what the verb itself raises comes when training
            begins.

    Example:
        A lightning.Trainer(callbacks=[Attach(cf.whiten, every=1000), Attach(cf.probe, log_every=50)]) trains whitened,
        and shows the error's path in its log.
    """

    def __init__(
        self,
        verb: Callable[..., Handle],
        *arguments: Any,
        on: str = "",
        optimizer: int = 0,
        data_size: int | str | None = UNSAID,
        kl_weight: Weight = 1.0,
        log_every: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._which = optimizer
        self._attachment = Attachment(
            verb, arguments, options, on=on, data_size=data_size, kl_weight=kl_weight, log_every=log_every
        )
        self._generators: dict[str, Any] = {}

    @property
    def handle(self) -> Handle:
        """What the verb returned, with ``table()``, ``undo()`` and the rest.

        Raises:
            InputError: Before training begins.
        """
        return self._attachment.handle

    @property
    def state_key(self) -> str:
        """What the callback's state is called in a checkpoint."""
        return f"Attach[{self._attachment.name},{self._attachment.on}]"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach, or see to it that this happens as soon as there is an optimizer."""
        if stage != "fit":
            return
        attachment = self._attachment
        if not any(True for _ in pl_module.parameters()):
            raise UnsupportedError(
                f"{type(pl_module).__name__} has no parameters yet, so {attachment.name} has nothing to attach to; "
                "build the model in its __init__"
            )
        configure = pl_module.configure_optimizers
        if attachment.takes_optimizer:
            found = configure()
            if attachment.made is not None:  # of an earlier fit, with another optimizer
                attachment.made.undo()
            attachment.on_model(pl_module, self._optimizer(found))
        else:
            found = None
            if attachment.made is None or not attachment.made.attached:
                attachment.on_model(pl_module)

        def configured() -> Any:
            _put_back(pl_module)  # the next fit wants another one
            result = configure() if found is None else found
            attachment.let_go()
            attachment.on_optimizer(self._optimizer(result), _schedulers(result), closure=True)
            return result

        vars(configured)[_BEFORE] = vars(pl_module).get("configure_optimizers")
        pl_module.configure_optimizers = configured

        def log(values: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

        attachment.log = log

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing of a fit that failed before it had an optimizer; the next one would attach twice."""
        _put_back(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the noise of before a restart."""
        # Now, since the loader that is set up next draws a seed, as it does when an epoch begins.
        if self._generators:
            torch.set_rng_state(self._generators["cpu"].cpu())
            for device, state in enumerate(self._generators["cuda"]):
                torch.cuda.set_rng_state(state.cpu(), device)
            self._generators = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the divergence's gradient."""
        if optimizer is self._optimizer(trainer.optimizers):
            # A fused optimizer divides by the loss scale within its step, and is told of it after this hook.
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            scaler = getattr(trainer.precision_plugin, "scaler", None) if fused else None
            self._attachment.add_divergence(optimizer, 1.0 if scaler is None else scaler.get_scale())

    def state_dict(self) -> dict[str, Any]:
        """The state of the generators that the noise comes from; all else is in the model and the optimizer."""
        if not isinstance(self._attachment.made, VariationalHandle):
            return {}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep that state until training begins."""
        self._generators = dict(state_dict)

    def _optimizer(self, found: Any) -> Optimizer:
        optimizers = [each for each in _flat(found) if isinstance(each, Optimizer)]
        if not 0 <= self._which < len(optimizers):
            raise InputError(
                f"optimizer={self._which}: configure_optimizers returns {len(optimizers)} torch optimizers, from 0 on"
            )
        return optimizers[self._which]


def _put_back(pl_module: LightningModule) -> None:
    """Take off what stands before a module's ``configure_optimizers``, whichever of the callbacks put it there."""
    found = vars(pl_module).pop("configure_optimizers", None)
    while _BEFORE in getattr(found, "__dict__", {}):
        found = vars(found)[_BEFORE]
    if found is not None:  # the module's own, set on the instance
        pl_module.configure_optimizers = found


def _flat(found: Any) -> list[Any]:
    """All that a value of configure_optimizers holds."""
    if isinstance(found, list | tuple):
        return [inner for each in found for inner in _flat(each)]
    if isinstance(found, Mapping):
        return [inner for each in found.values() for inner in _flat(each)]
    return [found]


def _schedulers(found: Any) -> list[LRScheduler]:
    return [each for each in _flat(found) if isinstance(each, LRScheduler)]
