"""Pipelines that no family is named for: replayed where a step of them can be, refused in one line where it cannot."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import pytest
import torch

from mmrl.errors import PolicyError
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from tests.policies.generation.families import recipes
from tests.policies.generation.families.cases import SHORT, picture
from tests.policies.generation.families.parts import clip, euler, image_vae, qwen_processor, qwen_vl, seeded, t5


def aura_flow() -> Any:
    tokenizer, encoder = t5(kind="UMT5")
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    return seeded(diffusers.AuraFlowPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=image_vae(), transformer=transformer,
        scheduler=euler(shift=1.73),
    ))  # fmt: skip


def mochi(invert: bool = False) -> Any:
    """Its schedule cannot be computed for a single step. Published ones count sigmas from 0 up."""
    tokenizer, encoder = t5()
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=1, pooled_projection_dim=16,
        in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, max_sequence_length=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    return seeded(diffusers.MochiPipeline(
        scheduler=euler(invert_sigmas=invert), vae=vae, text_encoder=encoder, tokenizer=tokenizer,
        transformer=transformer,
    ))  # fmt: skip


def sana_video() -> Any:
    """Its call names the number of frames otherwise."""
    texts, clips = recipes.sana(), recipes.wan()
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        sample_size=8, patch_size=(1, 2, 2),
    )  # fmt: skip
    return seeded(diffusers.SanaVideoPipeline(
        tokenizer=texts.tokenizer, text_encoder=texts.text_encoder, vae=clips.vae, transformer=transformer,
        scheduler=euler(shift=8.0),
    ))  # fmt: skip


def kandinsky() -> Any:
    """What it returns has an `image`, where others have `images`."""
    tokenizer, encoder = qwen_vl()
    tokenizer_2, encoder_2 = clip(77)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=32, in_text_dim2=32, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 4, 8),
    )  # fmt: skip
    return seeded(diffusers.Kandinsky5T2IPipeline(
        transformer=transformer, vae=image_vae(), text_encoder=encoder, tokenizer=qwen_processor(tokenizer),
        text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, scheduler=euler(shift=3.0),
    ))  # fmt: skip


def sana_sprint() -> Any:
    """Its model is no flow."""
    parts = recipes.sana().components | {"scheduler": diffusers.SCMScheduler()}
    parts["transformer"] = diffusers.SanaTransformer2DModel.from_config(
        parts["transformer"].config, guidance_embeds=True
    )
    return seeded(diffusers.SanaSprintPipeline(**parts))


def lame() -> Any:
    pipeline = aura_flow()
    with torch.no_grad():
        next(pipeline.transformer.parameters()).fill_(float("nan"))
    return pipeline


def flux_like(name: str, channels: int) -> Any:
    """FLUX.1 whose transformer reads further channels beside the state's."""
    parts = {n: part for n, part in recipes.flux().components.items() if part is not None}
    parts["transformer"] = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return seeded(getattr(diffusers, name)(**parts))


def asked(pipeline: Any, image: Any = None, **settings: Any) -> tuple[FlowPolicy, Request]:
    defaults = {"height": 32, "width": 32, "steps": 4, "eval_steps": 4, "pipeline_options": SHORT}
    lora = {"rank": 4, "alpha": 4}
    policy = FlowPolicy(pipeline, FlowPolicyConfig(model="tiny", lora=lora, **(defaults | settings)))
    parts = [] if image is None else [{"type": "image", "role": "condition"}]
    content = [*parts, {"type": "text", "text": "a red circle"}]
    prompt = Prompt("p", [{"role": "user", "content": content}], images=[] if image is None else [image])
    return policy, Request(prompt, 2, group=0)


TRAINED = {
    "AuraFlow": (aura_flow, None, {"guidance_scale": 3.5, "pipeline_options": {}}),
    "Mochi": (mochi, None, {"guidance_scale": 2.0, "frames": 7, "height": 16, "width": 16}),
    "SANA-Video": (sana_video, None, {
        "guidance_scale": 3.0, "frames": 5,
        "pipeline_options": {**SHORT, "use_resolution_binning": False, "complex_human_instruction": None},
    }),
    "Kandinsky 5": (kandinsky, None, {"guidance_scale": 3.0}),
    "FLUX.1 with a control image, whose latents are drawn": (
        partial(flux_like, "FluxControlPipeline", 32), picture(), {}
    ),
}  # fmt: skip
REFUSED = {
    "Mochi as published": (partial(mochi, True), None, {"frames": 7, "height": 16, "width": 16}, "falling from 1"),
    "FLUX.1 Fill": (partial(flux_like, "FluxFillPipeline", 48), picture(), {}, "takes mask_image, which it was not"),
    "SANA-Sprint": (
        sana_sprint,
        None,
        {
            "pipeline_options": {
                **SHORT,
                "use_resolution_binning": False,
                "complex_human_instruction": None,
                "intermediate_timesteps": None,
            }
        },
        "SCMScheduler has no sigmas: it is no flow-matching scheduler",
    ),
    "weights that are not numbers": (lame, None, {"pipeline_options": {}}, "own velocity has values that are nan"),
    "image to image": (partial(flux_like, "FluxImg2ImgPipeline", 16), picture(), {}, r"its times are .* of the call"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_replayed_and_its_update_scores_what_was_sampled(name):
    make, image, settings = TRAINED[name]
    policy, request = asked(make(), image, **settings)
    with pytest.warns(UserWarning, match="no family is named"):
        rollouts = policy.rollout([request], Key(0))
    assert isinstance(policy.generator, Swapped) and policy.verdict is not None and policy.verdict.gap < 1e-5
    found = policy.evaluate(rollouts).log_probs
    assert rollouts.mask.sum() >= 2 and (found - rollouts.old_log_probs).abs().max() < 1e-5
    (found * torch.tensor([[1.0], [-1.0]])).sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.module.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_that_says_why(name):
    make, image, settings, why = REFUSED[name]
    policy, request = asked(make(), image, **settings)
    with pytest.raises(PolicyError, match=why) as raised:
        policy.rollout([request], Key(0))
    assert "\n" not in str(raised.value)
