"""Cascade attention: responses over one copy of their prompt's keys and values.

What a response token attends to falls into two parts: the prompt, the same for the whole group, and its own response.
All tokens of the group meet the prompt in one kernel call, without mask and without copying the prompt for each
member; each response meets itself in another. The parts are joined by their log-sum-exps. Both backward calls get the
joined output and log-sum-exp, which makes their gradients those of the whole (as in ring attention, arXiv 2310.01889).

The kernels that return log-sum-exps are not part of PyTorch's documented interface; those for the CPU are used, and
tested against `scaled_dot_product_attention`. Elsewhere `shared_prompt` copies keys for each member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.tools import tool

DEVICES = frozenset({"cpu"})


def offered(*tensors: Tensor) -> bool:
    """Whether there are kernels for them: on a known device, and of one type."""
    return tensors[0].device.type in DEVICES and len({t.dtype for t in tensors}) == 1


@tool(
    "dualkv",
    command="mmrl train vlm CONFIG policy.shared_prompt=on",
    paper="DualKV, arXiv 2605.15422",
    formula="o = w o_prompt + (1 - w) o_own, w = sigmoid(lse_prompt - lse_own): one copy of the prompt's keys for the "
    "group; the backward call of each part gets the joined o and lse",
    confidence="partly",
    modalities=("vlm", "video"),
    trains=True,
)
def attention(
    q: Tensor, k: Tensor, v: Tensor, k_prompt: Tensor, v_prompt: Tensor, index: Tensor, real: Tensor, scaling: float
) -> Tensor:
    """A group's responses attend to one copy of their prompt's keys and values, and each to itself.

    q (H, S, d); k, v (H_kv, S, d): the S tokens of a group's responses; k_prompt, v_prompt (1, H_kv, P, d).
    index, real  (G, R) place of each response token among the S, and which places hold one
    Returns (H, S, d).
    """
    return _Cascade.apply(q, k, v, k_prompt, v_prompt, index, real, scaling)


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        q, k, v, k_prompt, v_prompt, index, real, scaling = arguments
        rows = _Rectangle(index, real)
        on_prompt, lse_prompt = kernel(q[None], k_prompt, v_prompt, False, scaling)
        on_own, lse_own = kernel(rows.of(q), rows.of(k), rows.of(v), True, scaling)
        lse_prompt, lse_own = lse_prompt[0], rows.back(lse_own)
        own = torch.sigmoid(lse_own - lse_prompt)[..., None].to(q.dtype)  # share of the attention
        out = torch.lerp(on_prompt[0], rows.back(on_own), own)
        ctx.save_for_backward(q, k, v, k_prompt, v_prompt, out, torch.logaddexp(lse_prompt, lse_own))
        ctx.rows, ctx.scaling = rows, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, k_prompt, v_prompt, out, lse = ctx.saved_tensors
        grad, rows = gradients[0], ctx.rows
        given = (grad[None], q[None], k_prompt, v_prompt, out[None], lse[None])
        q_prompt, grad_k_prompt, grad_v_prompt = _kernel_backward(*given, False, ctx.scaling)
        q_own, k_own, v_own = _kernel_backward(
            rows.of(grad, padding=0.0), rows.of(q), rows.of(k), rows.of(v), rows.of(out),
            rows.of(lse, padding=torch.inf), True, ctx.scaling,
        )  # fmt: skip
        grad_q = q_prompt[0] + rows.back(q_own)
        return grad_q, rows.back(k_own), rows.back(v_own), grad_k_prompt, grad_v_prompt, None, None, None


@dataclass
class _Rectangle:
    """Responses one below the other, (G, R) places; see `attention`."""

    index: Tensor
    real: Tensor

    def __post_init__(self) -> None:
        self.even = bool(self.real.all())

    def of(self, tokens: Tensor, padding: float | None = None) -> Tensor:
        """(h, S, ...) -> (G, h, R, ...). What stands in padding is any token's, or `padding`."""
        if self.even:
            return tokens.unflatten(1, self.index.shape).transpose(0, 1)
        rows = tokens[:, self.index].transpose(0, 1)
        if padding is not None:
            rows.transpose(1, 2)[~self.real] = padding
        return rows

    def back(self, rows: Tensor) -> Tensor:
        """(G, h, R, ...) -> (h, S, ...)"""
        if self.even:
            return rows.transpose(0, 1).flatten(1, 2)
        return rows.transpose(1, 2)[self.real].transpose(0, 1)


def kernel(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scaling: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """mask: added to scores (b or 1, h or 1, n or 1, m). Returns (out (b, h, n, d), log-sum-exp (b, h, n) float32)"""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scaling)


def _kernel_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return backward(grad, q, k, v, out, lse, 0.0, causal, scale=scaling)
