"""How often an iteration of a generator can be made faster at the sizes that people train: operations, counted.

    python -m benchmarks.flow_counts      # the table of docs/speed.md; no weights, a minute

The published transformers, text encoders and decoders stand on torch's meta device, where a call is shapes alone, and
its counter adds up matrix products, convolutions and attention, forward and backward. Of one iteration of `members`
outputs to a prompt then follows

    plain      text and the unconditional text encoded for every output; all steps but the last trained, both branches
               with gradient; a reference pass of each; every output decoded
    exact      the same method as the recipe `flow_grpo` has it: text once, no gradient through the unconditional branch
    kept       as exact, and the update takes the unconditional velocities of the rollout (`policy.
               reuse_unconditional`), where a batch has one optimizer step; with the recipe's two, half of them
    graph      as kept, if the trained steps' passes of the rollout were kept with their graphs until rewards are there
    fast       the recipe `flow_grpo_fast`: a window of 3 of the first 5 steps trained, no guidance, no reference, the
               steps before the window walked once for a group

Adapters are left out of the count (rank 32 adds some 2 %), and so is everything that is no product of matrices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Report

WINDOW, WITHIN = 3, 5
"""Of `flow_grpo_fast`: its window begins at one of the first WITHIN - WINDOW + 1 steps."""
TEXT = 512
"""Tokens that FLUX.1 and Wan pad a prompt to."""


@dataclass(frozen=True)
class Costs:
    """TFLOP of one output's text, of one call without and with gradient, and of decoding it; GB of activations in
    bfloat16 that a call leaves for its backward pass, without the matrices of attention."""

    text: float
    call: float
    trained: float
    decode: float
    activations: float


@dataclass(frozen=True)
class Training:
    """One shape that is trained: `steps` of a rollout, `guided` by a second call."""

    model: str
    size: str
    steps: int
    guided: bool
    members: int
    build: Callable[[], Costs]

    @property
    def branches(self) -> int:
        return 2 if self.guided else 1

    def plain(self, costs: Costs) -> float:
        """TFLOP of one output."""
        rollout = self.branches * self.steps * costs.call
        update = (self.steps - 1) * self.branches * (costs.trained + costs.call)
        return self.branches * costs.text + rollout + update + costs.decode

    def exact(self, costs: Costs, kept: bool = False, graph: bool = False) -> float:
        trained, without = costs.trained - (costs.call if graph else 0), costs.call if self.guided and not kept else 0
        update = (self.steps - 1) * (trained + without + self.branches * costs.call)
        return self._text(costs) + self.branches * self.steps * costs.call + update + costs.decode

    def fast(self, costs: Costs) -> float:
        shared = (WITHIN - WINDOW) / 2 * (1 - 1 / self.members)
        return costs.text / self.members + (self.steps - shared) * costs.call + WINDOW * costs.trained + costs.decode

    def _text(self, costs: Costs) -> float:
        """The unconditional text is encoded once a run."""
        return costs.text / self.members

    def row(self) -> dict[str, Any]:
        costs = self.build()
        plain = self.plain(costs)
        given = self.branches * (1 - 1 / self.members) * costs.text
        found = {
            "text once": plain / (plain - given),
            "exact": plain / self.exact(costs),
            "and unconditional kept": plain / self.exact(costs, kept=True),
            "and graphs kept": plain / self.exact(costs, kept=True, graph=True),
            "flow_grpo_fast": plain / self.fast(costs),
        }
        return {
            "model": self.model, "size": self.size, "steps": self.steps, "guided": "yes" if self.guided else "no",
            "text, TFLOP": round(costs.text, 2), "a call": round(costs.call, 2),
            "with gradient": round(costs.trained, 2), "decode": round(costs.decode, 2),
            "graphs of an output, GB": round((self.steps - 1) * costs.activations, 1),
            "text of plain, %": round(100 * self.branches * costs.text / plain, 2),
        } | {name: round(times, 2) for name, times in found.items()}  # fmt: skip


# -- published sizes, on the meta device ------------------------------------------------------------------------


def tflop(work: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def _forward(work: Callable[[], Any]) -> float:
    import torch

    with torch.no_grad():
        return tflop(work)


@cache
def _t5(tokens: int, kind: str = "T5") -> float:
    """The encoder of T5 v1.1 XXL, or of UMT5-XXL."""
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}EncoderModel")(config)
        return _forward(lambda: model(input_ids=torch.zeros(1, tokens, dtype=torch.long)))


@cache
def _clip(width: int, layers: int) -> float:
    """Text towers: 768 and 12 for ViT-L, 1280 and 32 for ViT-bigG."""
    import torch
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64
    )
    with torch.device("meta"):
        model = transformers.CLIPTextModel(config)
        return _forward(lambda: model(input_ids=torch.zeros(1, 77, dtype=torch.long)))


def _calls(model: Any, state: Any, **given: Any) -> tuple[float, float, float]:
    """TFLOP without gradient, and with: forward and backward to the state, as frozen weights with adapters have it.
    Then GB that the second kind leaves behind."""
    import torch

    model.requires_grad_(False)
    weights, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}
    once = _forward(lambda: model(hidden_states=state, **given, return_dict=False))
    state = state.clone().requires_grad_()

    def keep(x: Any) -> Any:
        square = x.dim() > 2 and x.shape[-1] == x.shape[-2]  # what a kernel of attention makes again
        if not square and x.untyped_storage()._cdata not in weights:
            kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes() / 2, x  # held: its place is not taken again
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        trained = tflop(lambda: model(hidden_states=state, **given, return_dict=False)[0].sum().backward())
    return once, trained, sum(size for size, _ in kept.values()) / 1e9


@cache
def _picture_decoder(side: int) -> float:
    import diffusers
    import torch

    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(**config, **blocks)
        return _forward(lambda: vae.decode(torch.zeros(1, 16, side // 8, side // 8)))


def sd3(side: int, tokens: int) -> Costs:
    """Stable Diffusion 3.5 Medium; `tokens` of its T5, beside the 77 of both CLIPs."""
    import diffusers
    import torch

    with torch.device("meta"):
        model = diffusers.SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
            pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip
        given = {"encoder_hidden_states": torch.zeros(1, 77 + tokens, 4096), "timestep": torch.zeros(1)}
        state = torch.zeros(1, 16, side // 8, side // 8)
        call, trained, left = _calls(model, state, **given, pooled_projections=torch.zeros(1, 2048))
    return Costs(_t5(tokens) + _clip(768, 12) + _clip(1280, 32), call, trained, _picture_decoder(side), left)


@cache
def flux(side: int) -> Costs:
    """FLUX.1-dev."""
    import diffusers
    import torch

    places = (side // 16) ** 2
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True)
        given = {"encoder_hidden_states": torch.zeros(1, TEXT, 4096), "pooled_projections": torch.zeros(1, 768)}
        given |= {"timestep": torch.zeros(1), "guidance": torch.zeros(1)}
        given |= {"img_ids": torch.zeros(places, 3), "txt_ids": torch.zeros(TEXT, 3)}
        call, trained, left = _calls(model, torch.zeros(1, places, 64), **given)
    return Costs(_t5(TEXT) + _clip(768, 12), call, trained, _picture_decoder(side), left)


def wan(frames: int, height: int, width: int) -> Costs:
    """Wan 2.1 of 1.3B. Its decoder goes from frame to frame of the state: from the third on all cost alike."""
    import diffusers
    import torch

    latents = (frames - 1) // 4 + 1
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
        given = {"encoder_hidden_states": torch.zeros(1, TEXT, 4096), "timestep": torch.zeros(1)}
        call, trained, left = _calls(model, torch.zeros(1, 16, latents, height // 8, width // 8), **given)
        vae = diffusers.AutoencoderKLWan()
        three, four = (
            _forward(lambda n=n: vae.decode(torch.zeros(1, 16, n, height // 8, width // 8)))  # type: ignore[misc]
            for n in (3, 4)
        )
    decode = three + (latents - 3) * (four - three)
    return Costs(_t5(TEXT, "UMT5"), call, trained, decode, left)


SHAPES = (
    Training("SD3.5 Medium", "512 x 512", 10, True, 24, lambda: sd3(512, 128)),
    Training("SD3.5 Medium", "256 x 256", 10, True, 24, lambda: sd3(256, 128)),
    Training("FLUX.1-dev", "512 x 512", 6, False, 24, lambda: flux(512)),
    Training("FLUX.1-dev", "512 x 512", 28, False, 24, lambda: flux(512)),
    Training("Wan 2.1, 1.3B", "33 frames of 416 x 240", 20, True, 8, lambda: wan(33, 240, 416)),
    Training("Wan 2.1, 1.3B", "81 frames of 832 x 480", 20, True, 8, lambda: wan(81, 480, 832)),
)


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("flow_counts", __doc__)
    options: argparse.Namespace = parser.parse_args(arguments)
    report = Report("bench_flow_counts", options)
    rows = []
    for shape in SHAPES:
        rows.append(shape.row())
        report.table("times faster than a plain loop, counted", rows)
        report.write()


if __name__ == "__main__":
    main()
