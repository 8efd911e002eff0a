"""Rollouts of FLUX.1 and Wan 2.1 in small, through their families and by a plain loop over the pipeline's transformer.

Widths are small; in proportion are the weights that work on text and those of the transformer (FLUX.1-dev 4.7 : 12,
Wan 2.1 of 1.3B 4.6 : 1.4, tables of embeddings aside), 512 tokens of text, and the tokens of the state.

    loop   both are given what the prompts condition on
    text   prompts are new: the family captures each once, the plain loop encodes the text of every sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LENGTH = 512
"""Text tokens, as both pipelines pad them by default."""
CAPTION = "a red circle left of a blue square"


@dataclass(frozen=True)
class Shape:
    """What is drawn: `members` outputs of one prompt in `steps` steps.

    about                  the size that is stood for: as many tokens
    height, width, frames  for the tiny autoencoder, which halves each
    text, call             TFLOP of the published model at that size: one text encoded, one call of the transformer
    """

    family: str
    about: str
    height: int
    width: int
    frames: int | None
    steps: int
    members: int
    text: float
    call: float

    @property
    def bound(self) -> float:
        """How many times faster a rollout of the published model is, counted, where its prompt's text is encoded once
        instead of for every output; Python and decoding take nothing."""
        loop = self.members * self.steps * self.call
        return (self.members * self.text + loop) / (self.text + loop)


UMT5, T5 = 4.7, 4.8
"""TFLOP of 512 tokens: 4.6 and 4.7 B weights beside the tables, two operations each."""
SHAPES = {  # Wan 1.3B: 1.25 B weights a token of the state, .14 B a token of text; FLUX.1: 6.45 B a token of either
    "Wan 2.1, picture": Shape("wan", "1 frame of 256 x 256", 64, 64, 1, 4, 8, text=UMT5, call=0.8),
    "Wan 2.1, clip": Shape("wan", "5 frames of 256 x 384", 64, 96, 3, 4, 8, text=UMT5, call=2.2),
    "FLUX.1": Shape("flux", "256 x 256", 64, 64, None, 4, 4, text=T5, call=10.3),
}
TINY = {
    "FLUX.1, tiny": Shape("flux", "32 x 32", 16, 16, None, 3, 2, text=T5, call=6.7),
    "Wan 2.1, tiny": Shape("wan", "5 frames of 64 x 64", 16, 16, 5, 3, 2, text=UMT5, call=0.2),
}
ALL = SHAPES | TINY


# -- pipelines --------------------------------------------------------------------------------------------------


def _text_encoder(kind: str, tokenizer: Any, layers: int) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=192, d_kv=24, d_ff=480, num_layers=layers, num_heads=8, dropout_rate=0.0,
        is_encoder_decoder=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _flux() -> Any:
    """2.4 M parameters in the blocks, 0.85 M in those of the T5."""
    import diffusers
    import transformers

    from mmrl.pipelines.bases.tokenizers import clip_tokenizer, t5_tokenizer

    clip, t5 = clip_tokenizer(77), t5_tokenizer(LENGTH)
    config = transformers.CLIPTextConfig(
        vocab_size=len(clip), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=24, num_attention_heads=8,
        joint_attention_dim=192, pooled_projection_dim=32, axes_dims_rope=(4, 10, 10), guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, tokenizer=clip, tokenizer_2=t5,
        text_encoder=transformers.CLIPTextModel(config), text_encoder_2=_text_encoder("T5", t5, 2),
        transformer=transformer,
    )  # fmt: skip


def _wan() -> Any:
    """0.7 M parameters in the block, 2.5 M in those of the text encoder."""
    import diffusers

    from mmrl.pipelines.bases.tokenizers import t5_tokenizer

    tokenizer = t5_tokenizer(LENGTH)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4, scale_factor_temporal=2, scale_factor_spatial=2,
    )  # fmt: skip
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=8, attention_head_dim=24, in_channels=4, out_channels=4,
        text_dim=192, freq_dim=64, ffn_dim=1120, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )  # fmt: skip
    return diffusers.WanPipeline(
        tokenizer=tokenizer, text_encoder=_text_encoder("UMT5", tokenizer, 6), vae=vae, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def pipeline(shape: Shape) -> Any:
    import torch

    import mmrl  # noqa: F401  (before diffusers)
    from mmrl.pipelines.bases.models import fan_in_init

    made = {"flux": _flux, "wan": _wan}[shape.family]()
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            fan_in_init(part.eval().requires_grad_(False), 0)
    made.set_progress_bar_config(disable=True)
    return made


# -- the plain loop ---------------------------------------------------------------------------------------------


class PlainRollout:
    """Stochastic denoising as one writes it down for one pipeline: its transformer, its decoder, and nothing kept but
    states and log-probs."""

    def __init__(self, shape: Shape, pipeline: Any):
        import torch

        self.shape, self.pipeline, self.model = shape, pipeline, pipeline.transformer
        self.times = torch.linspace(1, 0, shape.steps + 1)

    def encode(self, texts: list[str]) -> dict[str, Any]:
        pipe = self.pipeline
        if self.shape.family == "wan":
            embeds, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
            return {"encoder_hidden_states": embeds}
        embeds, pooled, text_ids = pipe.encode_prompt(texts, texts, max_sequence_length=LENGTH)
        across, down = self.shape.width // 4, self.shape.height // 4
        places = pipe._prepare_latent_image_ids(1, down, across, embeds.device, embeds.dtype)
        shared = {"txt_ids": text_ids, "img_ids": places}
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled, **shared}

    def state_shape(self) -> tuple[int, ...]:
        down, across = self.shape.height // 2, self.shape.width // 2
        if self.shape.family == "wan":
            return 4, (self.shape.frames - 1) // 2 + 1, down, across
        return (down // 2) * (across // 2), 16

    def velocity(self, x: Any, t: Any, conditions: dict[str, Any]) -> Any:
        clock = (t * 1000 if self.shape.family == "wan" else t).expand(len(x))
        return self.model(hidden_states=x, timestep=clock, **conditions, return_dict=False)[0]

    def roll_out(self, conditions: dict[str, Any]) -> list[Any]:
        import torch

        from benchmarks.plain_flow import log_prob, transition

        with torch.no_grad():
            x = torch.randn(self.shape.members, *self.state_shape())
            states, log_probs = [x], []
            for i in range(self.shape.steps - 1):
                mean, std = transition(self.times, i, x, self.velocity(x, self.times[i], conditions))
                x = mean + std * torch.randn_like(x)
                states.append(x)
                log_probs.append(log_prob(x, mean, std))
            return self.decode(x - self.times[-2] * self.velocity(x, self.times[-2], conditions))

    def decode(self, x: Any) -> list[Any]:
        pipe, config = self.pipeline, self.pipeline.vae.config
        if self.shape.family == "wan":
            return pipe.video_processor.postprocess_video(pipe.vae.decode(x, return_dict=False)[0], output_type="pil")
        latents = pipe._unpack_latents(x, self.shape.height, self.shape.width, pipe.vae_scale_factor)
        pixels = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        return pipe.image_processor.postprocess(pixels, output_type="pil")


# -- workers ----------------------------------------------------------------------------------------------------


def family(shape: Shape) -> Any:
    from mmrl.policies.generation.config import FlowPolicyConfig
    from mmrl.policies.generation.policy import FlowPolicy

    config = FlowPolicyConfig(
        model="small", lora=None, ema=None, height=shape.height, width=shape.width, frames=shape.frames,
        max_sequence_length=LENGTH, steps=shape.steps, eval_steps=shape.steps, schedule="linear", shift=1.0,
        transformer_batch=shape.members, decode_batch=shape.members, decode_tiles=False,
    )  # fmt: skip
    return FlowPolicy(pipeline(shape), config)


def answers(spec: dict[str, Any]) -> dict[str, Any]:
    """`loop`, `text`, and for the family `equal`, as functions without arguments."""
    shape, count = ALL[spec["shape"]], iter(range(10**9))
    if spec["kind"] == "family":
        policy = family(shape)
        return {
            "loop": lambda: roll_out(policy, CAPTION, shape.members, next(count)) and {},
            "text": lambda: roll_out(policy, f"{CAPTION} {next(count)}", shape.members, 0) and {},
            "equal": lambda: equality(policy, shape),
        }
    plain = PlainRollout(shape, pipeline(shape))
    given = plain.encode([CAPTION] * shape.members)
    return {
        "loop": lambda: plain.roll_out(given) and {},
        "text": lambda: plain.roll_out(plain.encode([f"{CAPTION} {next(count)}"] * shape.members)) and {},
    }


def roll_out(policy: Any, caption: str, members: int, number: int) -> Any:
    from mmrl.randomness import Key
    from mmrl.record import Prompt, Request

    prompt = Prompt(caption, [{"role": "user", "content": caption}])
    return policy.rollout([Request(prompt, members, group=0)], Key(number))


def equality(policy: Any, shape: Shape) -> dict[str, float]:
    """The family's rollout scored by the plain loop: how far log-probs are apart at most."""
    import torch

    from benchmarks.plain_flow import log_prob, transition

    rollouts = roll_out(policy, CAPTION, shape.members, 0)
    plain, states = PlainRollout(shape, policy.pipeline), rollouts.replay["latents"]
    conditions, worst = plain.encode([CAPTION] * shape.members), 0.0
    with torch.no_grad():
        for i in rollouts.mask[0].nonzero().squeeze(1).tolist():
            mean, std = transition(
                plain.times, i, states[:, i], plain.velocity(states[:, i], plain.times[i], conditions)
            )
            found = log_prob(states[:, i + 1], mean, std) - rollouts.old_log_probs[:, i]
            worst = max(worst, float(found.abs().max()))
    return {"log-probs differ by": worst}
