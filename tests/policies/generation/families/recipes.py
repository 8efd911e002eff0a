"""A tiny pipeline of every family, random weights, no hub: the real classes of diffusers and transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers.guiders import ClassifierFreeGuidance

from mmrl.pipelines.bases.models import fan_in_init, tiny_flow
from tests.policies.generation.families.parts import (
    FLUX_SHIFT,
    QWEN_SHIFT,
    STATISTICS,
    TEMPLATE,
    chat_text,
    chat_tokenizer,
    clip,
    euler,
    image_vae,
    qwen_processor,
    qwen_vl,
    seeded,
    t5,
)


def sd3(**shift: Any) -> Any:
    pipeline = tiny_flow(0)
    pipeline.scheduler = euler(**({"shift": 3.0} | shift))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(name: str = "FluxPipeline", *, guidance: bool = True) -> Any:
    tokenizer, text_encoder = clip()
    tokenizer_2, text_encoder_2 = t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    return seeded(getattr(diffusers, name)(
        scheduler=euler(**FLUX_SHIFT) if guidance else euler(shift=1.0), tokenizer=tokenizer,
        text_encoder=text_encoder, tokenizer_2=tokenizer_2, text_encoder_2=text_encoder_2, transformer=transformer,
        vae=image_vae(),
    ))  # fmt: skip


def chroma() -> Any:
    tokenizer, text_encoder = t5()
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return seeded(diffusers.ChromaPipeline(
        scheduler=euler(**FLUX_SHIFT), vae=image_vae(), text_encoder=text_encoder, tokenizer=tokenizer,
        transformer=transformer,
    ))  # fmt: skip


def _flux2_parts(guidance: bool) -> dict[str, Any]:
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=32,
        mid_block_add_attention=False,
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    return {"scheduler": euler(**FLUX_SHIFT), "vae": vae, "transformer": transformer}


def flux2() -> Any:
    """Published with Mistral3; the pipeline reads hidden states, which any decoder has."""
    tokenizer, text = chat_text(layers=3)
    encoder = transformers.MistralForCausalLM(transformers.MistralConfig(**text))
    return seeded(diffusers.Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2_parts(True)))


def flux2_klein(*, distilled: bool = False) -> Any:
    tokenizer, text = chat_text(layers=3)
    encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**text))
    return seeded(diffusers.Flux2KleinPipeline(
        text_encoder=encoder, tokenizer=tokenizer, is_distilled=distilled, **_flux2_parts(False)
    ))  # fmt: skip


def _qwen_transformer() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def qwen_image() -> Any:
    tokenizer, encoder = qwen_vl()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], **STATISTICS
    )
    return seeded(diffusers.QwenImagePipeline(
        scheduler=euler(**QWEN_SHIFT), vae=vae, text_encoder=encoder, tokenizer=tokenizer,
        transformer=_qwen_transformer(),
    ))  # fmt: skip


def qwen_edit(name: str = "QwenImageEditPipeline") -> Any:
    tokenizer, encoder = qwen_vl()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **STATISTICS,
    )
    return seeded(getattr(diffusers, name)(
        scheduler=euler(**QWEN_SHIFT), vae=vae, text_encoder=encoder, tokenizer=tokenizer,
        processor=qwen_processor(tokenizer), transformer=_qwen_transformer(),
    ))  # fmt: skip


def z_image() -> Any:
    tokenizer, text = chat_text()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return seeded(diffusers.ZImagePipeline(
        scheduler=euler(shift=3.0), vae=image_vae(), tokenizer=tokenizer, transformer=transformer,
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**text)),
    ))  # fmt: skip


def sana(scheduler: Any = None) -> Any:
    tokenizer, text = chat_text()
    blocks, scales = ("ResBlock", "EfficientViTBlock"), ((), (5,))
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales, encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1],
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=32,
    )  # fmt: skip
    return seeded(diffusers.SanaPipeline(
        scheduler=scheduler or euler(shift=3.0), vae=vae, tokenizer=tokenizer, transformer=transformer,
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(**text)),
    ))  # fmt: skip


def lumina2() -> Any:
    tokenizer, text = chat_text()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(128, 64, 64),
        cap_feat_dim=32,
    )  # fmt: skip
    return seeded(diffusers.Lumina2Pipeline(
        scheduler=euler(shift=6.0), vae=image_vae(), tokenizer=tokenizer, transformer=transformer,
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(**text)),
    ))  # fmt: skip


def cogview4() -> Any:
    tokenizer, text = chat_text()
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )
    shift = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "use_dynamic_shifting": True}
    return seeded(diffusers.CogView4Pipeline(
        scheduler=euler(time_shift_type="linear", **shift), vae=image_vae(), tokenizer=tokenizer,
        transformer=transformer, text_encoder=transformers.GlmModel(transformers.GlmConfig(**text)),
    ))  # fmt: skip


def wan(*, experts: int = 1, image: bool = False, expand: bool = False, scheduler: Any = None) -> Any:
    """Text or `image` to video; two `experts` as in 2.2 A14B; `expand`: a time for each token, as in TI2V-5B."""
    tokenizer, encoder = t5(kind="UMT5")
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        **STATISTICS,
    )
    embeds = image and experts == 1 and not expand
    channels = 12 if image and not expand else 4
    parts: dict[str, Any] = {"transformer": _wan_transformer(channels, embeds), "expand_timesteps": expand}
    if experts == 2:
        parts |= {"transformer_2": _wan_transformer(channels, False), "boundary_ratio": 0.9 if image else 0.875}
    if embeds:
        vision = transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=37, image_size=32, num_attention_heads=2, num_hidden_layers=2,
            patch_size=16,
        )  # fmt: skip
        parts["image_processor"] = transformers.CLIPImageProcessor(crop_size=32, size=32)
        parts["image_encoder"] = transformers.CLIPVisionModel(vision)
    kind = diffusers.WanImageToVideoPipeline if image else diffusers.WanPipeline
    pipeline = seeded(
        kind(tokenizer=tokenizer, text_encoder=encoder, vae=vae, scheduler=scheduler or euler(shift=3.0), **parts)
    )
    if experts == 2:
        fan_in_init(pipeline.transformer_2, 7)
    return pipeline


def _wan_transformer(channels: int, image: bool) -> Any:
    options = {"image_dim": 32, "added_kv_proj_dim": 24} if image else {}
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=4,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, **options,
    )  # fmt: skip


def ltx(name: str = "LTXPipeline") -> Any:
    tokenizer, encoder = t5()
    scaling = (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaling,
        decoder_spatio_temporal_scaling=scaling, decoder_inject_noise=(False,) * 5, patch_size=1, patch_size_t=1,
        encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    scheduler = euler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return seeded(getattr(diffusers, name)(
        scheduler=scheduler, vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer
    ))  # fmt: skip


HUNYUAN_TEMPLATE = {
    "template": "<|im_start|>system describe the video<|im_end|><|im_start|>user {}<|im_end|>", "crop_start": 6,
}  # fmt: skip


def hunyuan() -> Any:
    tokenizer, text = chat_text(layers=4)
    tokenizer_2, encoder_2 = clip(77)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=32, pooled_projection_dim=32, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, scaling_factor=0.476986, mid_block_add_attention=False,
    )  # fmt: skip
    return seeded(diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(transformers.LlamaConfig(**text)), tokenizer=tokenizer,
        transformer=transformer, vae=vae, scheduler=euler(shift=7.0), text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2,
    ))  # fmt: skip


def hunyuan15(scale: float = 6.0) -> Any:
    tokenizer, text = chat_text(layers=4)
    text.pop("head_dim")
    tokenizer_2, encoder_2 = t5(16)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=32, text_embed_2_dim=16,
        image_embed_dim=12, rope_axes_dim=(2, 4, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        scaling_factor=1.03682,
    )
    pipeline = seeded(diffusers.HunyuanVideo15Pipeline(
        text_encoder=transformers.Qwen2Model(transformers.Qwen2Config(**text)), tokenizer=tokenizer,
        transformer=transformer, vae=vae, scheduler=euler(shift=7.0), text_encoder_2=encoder_2,
        tokenizer_2=tokenizer_2, guider=ClassifierFreeGuidance(guidance_scale=scale),
    ))  # fmt: skip
    pipeline.vision_num_semantic_tokens, pipeline.tokenizer_max_length = 4, 48
    pipeline.prompt_template_encode_start_idx, pipeline.system_message = 20, "describe the video"
    return pipeline


def stable_audio_3(*, stochastic: bool = False) -> Any:
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoderModel

    tokenizer = chat_tokenizer(TEMPLATE)
    tokenizer.padding_side, tokenizer.model_max_length = "right", 64
    module = T5GemmaModuleConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, sliding_window=64,
        layer_types=["full_attention"] * 2,
    ).to_dict()  # fmt: skip
    encoder = T5GemmaEncoderModel(T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False))
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=8, patch_size=1, embed_dim=32, depth=2, num_heads=4, cond_token_dim=16, global_cond_dim=16,
        local_add_cond_dim=5, timestep_features_dim=16, ff_mult=2, num_memory_tokens=3,
        use_differential_attention=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderSAME(
        audio_channels=2, patch_size=2, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,),
        encoder_transformer_depths=(1,), latent_dim=8, use_differential_attention=False, dim_heads=4, ff_mult=2,
        sampling_rate=16,
    )  # fmt: skip
    return seeded(diffusers.StableAudio3Pipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer,
        duration_embedder=diffusers.StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        scheduler=euler(num_train_timesteps=1, shift=1.0, stochastic_sampling=stochastic),
    ))  # fmt: skip
