"""Wan 2.1 in small, for an iteration: its parts cost what they cost at 33 frames of 416 x 240 in the published model.

Of the 1.3B model at that size one text takes .42 of a call of the transformer, and decoding one clip 2.44
(`benchmarks.flow_counts`). Widths here are small and chosen so that the operations stand in these proportions, which
`proportions` counts; the feed-forward part is 5.8 times as wide as the rest, as in the published model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_flow import PlainLoop

FRAMES, HEIGHT, WIDTH = 5, 32, 48
TEXT = 64
"""Tokens of text; those of the state are 3 x 8 x 12."""


def pipeline() -> Any:
    """0.8 M parameters in the transformer, 1.7 M in the text encoder."""
    import diffusers
    import transformers

    import mmrl  # noqa: F401  (before diffusers)
    from mmrl.pipelines.bases.models import fan_in_init
    from mmrl.pipelines.bases.tokenizers import t5_tokenizer

    tokenizer = t5_tokenizer(TEXT)
    text = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=128, d_kv=16, d_ff=320, num_layers=9, num_heads=8, dropout_rate=0.0,
        is_encoder_decoder=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=18, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    )  # fmt: skip
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=24, in_channels=4, out_channels=4,
        text_dim=128, freq_dim=64, ffn_dim=560, num_layers=4, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    made = diffusers.WanPipeline(
        tokenizer=tokenizer, text_encoder=transformers.UMT5EncoderModel(text), vae=vae, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            fan_in_init(part.eval().requires_grad_(False), 0)
    made.set_progress_bar_config(disable=True)
    return made


class PlainWan(PlainLoop):
    """The plain loop for clips: its conditions are the embeddings of the text alone."""

    @torch.no_grad()
    def encode(self, texts: list[str]) -> tuple[Tensor, ...]:
        embeds, negative = self.pipeline.encode_prompt(
            texts, [""] * len(texts), do_classifier_free_guidance=True, max_sequence_length=self.text_tokens
        )
        return (torch.cat([negative, embeds]),)

    def call(self, model: Any, x: Tensor, t: Tensor, conditions: tuple[Tensor, ...]) -> Tensor:
        return model(x, (1000 * t).expand(len(x)), *conditions, return_dict=False)[0]

    def state_shape(self) -> tuple[int, ...]:
        return 4, (FRAMES - 1) // 2 + 1, HEIGHT // 2, WIDTH // 2

    @torch.no_grad()
    def images(self, latents: Tensor) -> Sequence[Any]:
        pixels = self.pipeline.vae.decode(latents, return_dict=False)[0]
        return self.pipeline.video_processor.postprocess_video(pixels, output_type="pil")


def proportions(loop: PlainLoop) -> dict[str, float]:
    """GFLOP of a call, and text and decoding in calls, of one output."""
    from benchmarks.flops import counted

    x, conditions = torch.randn(1, *loop.state_shape()), loop.encode(["a red circle"])
    one = tuple(c[:1] for c in conditions)
    with torch.no_grad():
        call = counted(lambda: loop.call(loop.model, x, loop.times[0], one))
        text = counted(lambda: loop.encode(["a red circle"])) / 2
        decode = counted(lambda: loop.images(x))
    return {"call, GFLOP": call / 1e9, "text": text / call, "decode": decode / call}
