"""What attention and recurrent layers compute inside and hand nobody: once more, where statistics are gathered.

In a forward hook, with the weights that the call had: the mixture of values that attention's output projection gets,
and what the levels of a stacked recurrent layer hand on. Without gradients and without dropout, so that no random
number is drawn that training would have drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["levels", "mixture"]

_CALLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


def mixture(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a call's output projection gets, shaped as its output: the call again, with an output projection of one."""
    parameters: dict[str, Any] = module.out_proj._parameters
    weight, bias, dropout = parameters["weight"], parameters["bias"], module.dropout
    try:
        with torch.no_grad():
            module.dropout = 0.0
            parameters["weight"] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
            parameters["bias"] = None if bias is None else torch.zeros_like(bias)
            mixed: Tensor = module.forward(*args, **kwargs)[0]
    finally:
        module.dropout = dropout
        parameters["weight"], parameters["bias"] = weight, bias
    return mixed


def levels(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What each level but the last hands on, shaped as the output: (..., directions * hidden size), rows if packed."""
    x = args[0] if args else kwargs["input"]
    start = args[1] if len(args) > 1 else kwargs.get("hx")
    across = int(not module.batch_first)  # the dimension that counts examples
    packed, alone = isinstance(x, PackedSequence), not isinstance(x, PackedSequence) and x.ndim == 2
    data = x.data if packed else x.unsqueeze(across) if alone else x
    turns = 1 + module.bidirectional
    if start is None:
        examples = int(x.batch_sizes[0]) if packed else data.shape[across]
        zeros = data.new_zeros(turns * module.num_layers, examples, module.hidden_size)
        states = (zeros, zeros) if module.mode == "LSTM" else (zeros,)
    else:
        states = start if isinstance(start, tuple) else (start,)
        if alone:
            states = tuple(state.unsqueeze(1) for state in states)
        elif packed and x.sorted_indices is not None:
            states = tuple(state.index_select(1, x.sorted_indices) for state in states)
    call = getattr(torch._VF, _CALLS[module.mode])
    many = len(module._flat_weights) // module.num_layers
    found: list[Tensor] = []
    with torch.no_grad():
        for level in range(module.num_layers - 1):
            weights = module._flat_weights[level * many : (level + 1) * many]
            own = tuple(state[level * turns : (level + 1) * turns].to(data.dtype) for state in states)
            first = own if module.mode == "LSTM" else own[0]
            rest = (weights, module.bias, 1, 0.0, False, module.bidirectional)
            if packed:
                data = call(data, x.batch_sizes, first, *rest)[0]
            else:
                data = call(data, first, *rest, module.batch_first)[0]
            found.append(data.squeeze(across) if alone else data)
    return found
