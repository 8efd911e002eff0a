"""AdamW for weights of any precision: what accumulates is float32, and it says how much moved.

A bfloat16 weight of 0.02 has its neighbours 1e-4 away: updates of 1e-6 are rounded off, and plain AdamW on such weights
moves 2 % of them in 50 steps. So each has a float32 master copy, which the moments and the learning rate act on; the
model holds it rounded. The copy is optimizer state: a checkpoint has it, and a resumed run goes on from it.

What is kept can wait on the CPU (`offload`), where the step is then made, the moments can be kept in eight bits
(`mmrl.training.eight_bits`), and matrices can take Muon's steps (`mmrl.training.muon`). A checkpoint holds float32
whatever the run's optimizer is, so a run may change it, but for second moments, which Muon does not keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mmrl.errors import ConfigError
from mmrl.settings import Section
from mmrl.training import eight_bits, muon
from mmrl.training.eight_bits import Packed, packed, unpacked

MOMENTS = ("exp_avg", "exp_avg_sq")
CHUNK = 1 << 26
"""Weights that are copied at once to see which of them a step moves."""


class OptimizerConfig(Section):
    """Which optimizer, and where it keeps its state.

    name     adamw; fused, one kernel a step, the same to rounding; 8bit, moments in eight bits a weight where that
             saves something (weights of 4,096 elements or more), the extra `8bit`; muon, for the matrices inside the
             model, with AdamW's learning rates, and AdamW for the others
    offload  moments and master copies wait on the CPU, and the step is made there: 12 bytes a weight less on the
             device, for two copies of every weight a step
    """

    name: Literal["adamw", "fused", "8bit", "muon"] = "adamw"
    offload: bool = False

    def refuse_missing(self) -> None:
        """ConfigError where what it needs is not installed."""
        if self.name in ("8bit", "muon"):
            {"8bit": eight_bits, "muon": muon}[self.name].refuse_missing()


@dataclass
class Moved:
    """What a step did to this process's weights: how many changed, how many there are, all of them finite or not."""

    changed: Tensor
    total: int
    finite: Tensor


class MasterAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, bit for bit, on float32 weights; with float32 master copies of those below.

    module  whose hidden matrices take Muon's steps, where `kept` says so
    """

    moved: Moved | None = None

    def __init__(
        self, parameters: Any, kept: OptimizerConfig | None = None, *, module: nn.Module | None = None, **options: Any
    ):
        super().__init__(parameters, **options)
        self.kept = kept or OptimizerConfig()
        self.kept.refuse_missing()
        matrices = muon.hidden_matrices(module) if self.kept.name == "muon" and module is not None else []
        self.matrices = {id(p) for p in matrices}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        changed, total, finite = [], 0, []
        for group in self.param_groups:
            for chunk in chunks([p for p in group["params"] if p.grad is not None]):
                weights = [self._master(p) for p in chunk]
                before = _joined(weights)
                self._step(chunk, weights, group)
                after = _joined(weights)
                for parameter, weight in zip(chunk, weights, strict=True):
                    if weight is not parameter:
                        parameter.copy_(weight)
                changed.append(torch.count_nonzero(after != before))
                total += before.numel()
                finite.append(all_finite(chunk).all())
        if finite:
            device = finite[0].device
            counts, sound = (torch.stack([t.to(device) for t in values]) for values in (changed, finite))
            self.moved = Moved(counts.sum(), total, sound.all())

    def _home(self, parameter: nn.Parameter) -> torch.device:
        """Where its state is kept and its step made."""
        return torch.device("cpu") if self.kept.offload else parameter.device

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """What the step acts on: the parameter itself, its float32 copy, or a passing copy where its state is."""
        state, home = self.state[parameter], self._home(parameter)
        low = parameter.dtype in (torch.bfloat16, torch.float16)
        moments = MOMENTS[:1] if id(parameter) in self.matrices else MOMENTS
        if "exp_avg" not in state:
            like = parameter.detach().to(home, torch.float32 if low else parameter.dtype)
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update({name: torch.zeros_like(like) for name in moments})
        if missing := [name for name in moments if name not in state]:
            raise ConfigError(
                f"training.optimizer.name={self.kept.name}: the checkpoint has no {missing[0]}, which muon does not "
                "keep; go on with training.optimizer.name=muon"
            )
        if moments != MOMENTS:
            state.pop("exp_avg_sq", None)  # of a checkpoint that AdamW left
        if low and "master" not in state:
            state["master"] = parameter.detach().to(home, torch.float32)
        for name in (n for n in (*MOMENTS, "master") if n in state):  # as a checkpoint left them
            state[name] = state[name].to(home)
        state["step"] = state["step"].to(home if self.kept.name == "fused" else "cpu")
        if low:
            return state["master"]
        return parameter if parameter.device == home else parameter.detach().to(home)

    def _step(self, parameters: list[nn.Parameter], weights: list[Tensor], group: dict[str, Any]) -> None:
        both = [
            (self.state[p], w, p.grad.to(w.device, w.dtype), id(p) in self.matrices)
            for p, w in zip(parameters, weights, strict=True)
            if p.grad is not None
        ]
        hidden, others = ([row for row in both if row[3] is inside] for inside in (True, False))
        if hidden:
            muon.muon_step(
                [w for _, w, *_ in hidden], [g for *_, g, _ in hidden], [s["exp_avg"] for s, *_ in hidden], group
            )
            for state, *_ in hidden:
                state["step"] += 1
        if others:
            self._adamw([s for s, *_ in others], [w for _, w, *_ in others], [g for *_, g, _ in others], group)

    def _adamw(
        self, states: list[dict[str, Any]], weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        first, second = ([unpacked(s[n], w) for s, w in zip(states, weights, strict=True)] for n in MOMENTS)
        beta1, beta2 = group["betas"]
        adamw(
            weights, gradients, first, second, [], [s["step"] for s in states],
            fused=True if self.kept.name == "fused" else None, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        if self.kept.name == "8bit":
            for state, *moments in zip(states, first, second, strict=True):
                state.update({n: packed(m, signed=n == "exp_avg") for n, m in zip(MOMENTS, moments, strict=True)})


def whole_state(state: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's optimizer state as a checkpoint holds it: float32 tensors, in shards where the parameter is."""
    return {
        name: unpacked(value, parameter) if isinstance(value, Packed) else torch.as_tensor(value)
        for name, value in sorted(state.items())
    }


def chunks(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one device and together at most `CHUNK` weights, or one larger one."""
    chunk: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if chunk and (size + parameter.numel() > CHUNK or parameter.device != chunk[0].device):
            yield chunk
            chunk, size = [], 0
        chunk.append(parameter)
        size += parameter.numel()
    if chunk:
        yield chunk


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """(n,) bool for n tensors: every element on this process is finite. On the first one's device."""
    here = [_here(tensor.detach()) for tensor in tensors]
    device = here[0].device
    full = [i for i, tensor in enumerate(here) if tensor.numel()]
    found = torch.ones(len(here), dtype=torch.bool, device=device)
    if full:
        # a Euclidean norm is fast; one that overflows says nothing of its elements
        norms = torch._foreach_norm([here[i] for i in full])
        found[full] = torch.isfinite(torch.stack([norm.float().to(device) for norm in norms]))
        for i in (~found).nonzero().squeeze(1).tolist():
            found[i] = torch.isfinite(here[i]).all()
    return found


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """(n,) a copy of all elements on this process."""
    return torch.cat([_here(tensor.detach()).reshape(-1) for tensor in tensors])


def _here(tensor: Tensor) -> Tensor:
    """This process's shard, where the tensor is sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
