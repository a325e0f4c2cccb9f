"""Where people already train: Lightning, the Hugging Face ``Trainer``, ``accelerate``; TensorBoard, Weights & Biases.

One line attaches any verb of the library (`counterflow.whiten`, `counterflow.temper`, `counterflow.make_variational`,
`counterflow.probe`, ...) to what the framework trains, and what it needs to go on is in the framework's checkpoints:

======================================== ====================================================================
`counterflow.integrations.lightning`     a callback: ``Trainer(callbacks=[Attach(cf.whiten, every=1000)])``
`counterflow.integrations.transformers`  ``attach_to(trainer, cf.whiten, every=1000)``
`counterflow.integrations.accelerate`    ``attach_to(accelerator, model, optimizer, cf.whiten, every=1000)``
======================================== ====================================================================

Beside calling the verb they do what a loop of one's own would do with its handle: tempering's rates become groups of
the optimizer, with its schedulers; variational rates get a group without weight decay, and the divergence's gradient is
added before each step; a probe's table is logged every k steps. What the verb keeps in buffers is in the model's
``state_dict()``; what a probe has seen and how many steps were taken is in the optimizer's, under ``"counterflow"``.

The frameworks are extras, and each module needs its own alone. `log_probe` needs none.
"""

from counterflow.integrations.probe_log import log_probe

__all__ = ["log_probe"]
