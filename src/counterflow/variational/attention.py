"""Attention whose projections have a posterior."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.variational.divergence import Approximation
from counterflow.variational.layers import variational_layer
from counterflow.variational.posterior import Noise, Rates, Stochastic
from counterflow.variational.priors import Prior

__all__ = ["VariationalMultiheadAttention", "attention_around", "plain_attention", "unlike"]


class VariationalMultiheadAttention(Stochastic, nn.MultiheadAttention):
    """Multi-head attention with a dropout posterior on the packed projections of queries, keys and values, and on the
    projection of its outputs. In eval mode it is the plain module.

    Args:
        plain: The arguments of `torch.nn.MultiheadAttention`, by place or by name; queries, keys and values have one
            size, and there are no ``add_bias_kv`` and ``add_zero_attn``.
        noise: ``"A"`` or ``"B"`` (default); this and what follows are those of `VariationalLinear`.
        rates: One rate for a ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate that all begin with; .5 by default.
        learn: Whether rates are learned.
        max_alpha: The bound, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default), or one with a Gaussian posterior.
        approximation: Of the divergence; see `dropout_kl`.
        more: Arguments of `torch.nn.MultiheadAttention` by name.

    Raises:
        InputError: If an argument is out of range, or two do not go together.

    Example:
        >>> import torch
        >>> from counterflow.variational import VariationalMultiheadAttention
        >>> attention, x = VariationalMultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
        >>> attention(x, x, x, need_weights=False)[0].shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        *plain: Any,
        noise: Noise = "B",
        rates: Rates = "layer",
        p: float = 0.5,
        learn: bool = True,
        max_alpha: float | None = 1.0,
        prior: Prior = "log-uniform",
        approximation: Approximation = "exact",
        **more: Any,
    ) -> None:
        super().__init__(*plain, **more)  # the plain attention is next in line
        reason = unlike(self)
        if reason:
            raise InputError(f"this attention cannot have a posterior: {reason}")
        self.set_up(noise, rates, p, learn, max_alpha, prior, approximation)
        options = {"noise": noise, "rates": rates, "p": p, "learn": learn, "max_alpha": max_alpha, "prior": prior}
        self._modules["out_proj"] = variational_layer(self.out_proj, {**options, "approximation": approximation})

    @property
    def weight(self) -> Any:
        """The packed projections, (3 features, features)."""
        return self.in_proj_weight

    def share(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Take the plain module's packed projections, and put the rates beside them."""
        self.in_proj_weight = weight
        self.in_proj_bias: Any = bias
        self.settle()

    def scales(self) -> int:
        """Type A: each of the three projections draws scales of its own for its inputs."""
        return 3 * super().scales()

    def extra_repr(self) -> str:
        """Sizes and the noise."""
        return f"{self.embed_dim}, {self.num_heads}, noise={self.noise}, rates={self.rates}"

    def _project(self, x: Tensor, part: int) -> Tensor:
        size = self.embed_dim
        rows = slice(part * size, (part + 1) * size)
        y = self.product_with_noise(x, F.linear, -1, rows)
        return y if self.in_proj_bias is None else y + self.in_proj_bias[rows]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention`, with noise in training."""
        if not self.noisy:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        single = query.ndim == 2
        if single:
            query, key, value = (each.unsqueeze(0) for each in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        heads = self.num_heads
        q, k, v = (
            torch.unflatten(self._project(x, part), -1, (heads, -1)).transpose(1, 2)
            for part, x in enumerate((query, key, value))
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = torch.unflatten(attn_mask, 0, (-1, heads))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask[:, None, None, :]
        for mask in (attn_mask, key_padding_mask):
            if mask is not None:
                scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        y = self.out_proj((weights @ v).transpose(1, 2).flatten(-2))
        if single:
            y, weights = y.squeeze(0), weights.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        if not need_weights:
            return y, None
        return y, weights.mean(-3) if average_attn_weights else weights


def unlike(attention: nn.MultiheadAttention) -> str:
    """What an attention has that none with a posterior can have; empty if nothing."""
    if not attention._qkv_same_embed_dim:
        return "its keys or values have another size than its queries"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it adds keys and values of its own"
    return ""


def attention_around(plain: nn.MultiheadAttention, options: dict[str, Any]) -> VariationalMultiheadAttention:
    """The module with a posterior around a plain one's weights, which are not copied."""
    attention = VariationalMultiheadAttention(
        plain.embed_dim,
        plain.num_heads,
        plain.dropout,
        plain.in_proj_bias is not None,
        batch_first=plain.batch_first,
        device="meta",
        **options,
    )
    attention.share(plain.in_proj_weight, plain.in_proj_bias)
    attention._modules["out_proj"] = variational_layer(plain.out_proj, options)
    attention.train(plain.training)
    return attention


def plain_attention(attention: VariationalMultiheadAttention, out_proj: nn.Module) -> nn.MultiheadAttention:
    """The plain module with the posterior means."""
    plain = nn.MultiheadAttention(
        attention.embed_dim,
        attention.num_heads,
        attention.dropout,
        attention.in_proj_bias is not None,
        batch_first=attention.batch_first,
        device="meta",
    )
    plain.in_proj_weight, plain.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
    plain._modules["out_proj"] = out_proj
    plain.train(attention.training)
    return plain
