"""What the tiny generators of clips and of edits are built of and trained with: `mmrl.pipelines.bases.flow`'s means.

    tiny_wan(seed)      -> WanPipeline          clips of 5 frames of 16 x 16 pixels
    tiny_kontext(seed)  -> FluxKontextPipeline  pictures of 16 x 16 pixels, from a picture and an instruction

Every matrix is drawn with standard deviation 1 / sqrt(fan in), as in `mmrl.pipelines.bases.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.pipelines.bases.models import TEXT_HIDDEN, fan_in_init
from mmrl.pipelines.bases.supervised import Report, schedule
from mmrl.pipelines.bases.tokenizers import clip_tokenizer, t5_tokenizer
from mmrl.randomness import Key

LENGTH, CAPTION, INSTRUCTION = 16, 8, 10
"""Text tokens a tokenizer keeps at most, and those of a caption and of an instruction that the bases learn."""
HIDDEN, HEAD = 96, 24
WORDS = ("stays", "make", "remove", "move")
CLIP_CHANNELS, CHANNELS = 3, 8
LATENT_NOISE = 0.1


def fit(
    parameters: Sequence[nn.Parameter], loss_at: Callable[[int], Tensor], *, steps: int, rate: float, report: Report
) -> None:
    """AdamW with warm-up and a half cosine; `loss_at(step)` has the gradient."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, steps)
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        report(step, loss.item())


def between(clean: Tensor, key: Key, lean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Flow matching (Lipman et al. 2023; SD3): `(state, times (N,), noise - clean)` at logit-normal times.

    lean  mean of the normal. At 0 a seventieth of all times lies above .9, where texts decide; at 1 a ninth does
    """
    noise = key.at(purpose="noise").normal(*clean.shape)
    times = torch.sigmoid(lean + key.at(purpose="times").normal(len(clean)))
    return torch.lerp(clean, noise, times.view(-1, *(1,) * (clean.dim() - 1))), times, noise - clean


def chosen(count: int, size: int, key: Key) -> Tensor:
    """`size` of `count` indices, with replacement."""
    return torch.randint(count, (size,), generator=key.generator())


def fit_vae(vae: Any, shown: Tensor, *, seed: int, steps: int, batch: int, report: Report) -> None:
    """Squared error of pictures or clips (N, 3, ...) decoded from slightly noisy latents, which are kept near unit
    size."""

    def loss_at(step: int) -> Tensor:
        key = Key(seed, step, purpose="vae")
        pixels = shown[chosen(len(shown), batch, key)]
        latents = vae.encode(pixels).latent_dist.mode()
        decoded = _decoded(vae, latents + LATENT_NOISE * key.at(purpose="noise").normal(*latents.shape))
        return (decoded - pixels).square().mean() + 1e-3 * latents.square().mean()

    vae.train()
    fit(list(vae.parameters()), loss_at, steps=steps, rate=2e-3, report=report)
    vae.eval().requires_grad_(False)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """What the decoder itself says of each latent frame. `vae.decode` of Wan cuts it to [-1, 1], beyond which there is
    no gradient: objects that are once drawn blacker than a black background would never appear again."""
    said: list[Tensor] = []
    hook = vae.decoder.register_forward_hook(lambda module, given, out: said.append(out))
    try:
        vae.decode(latents)
    finally:
        hook.remove()
    return torch.cat(said, 2) if len(said) > 1 else said[0]


@torch.no_grad()
def encoded(vae: Any, shown: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mode() for part in shown.split(64)])


def fit_flow(
    parts: Sequence[nn.Module], clean: Tensor, velocity: Callable[[Tensor, Tensor, list[int]], Tensor], *, seed: int,
    steps: int, batch: int, report: Report, lean: float = 0.0, rate: float = 3e-3,
) -> None:  # fmt: skip
    """Predict noise - latent on the straight line between the two; text encoders among the `parts` learn along.

    clean     (N, ...) latents
    velocity  of states (B, ...) at times (B,), given which of the N they come from
    """

    def loss_at(step: int) -> Tensor:
        key = Key(seed, step, purpose="flow")
        which = chosen(len(clean), batch, key)
        state, times, target = between(clean[which], key, lean)
        return (velocity(state, times, which.tolist()) - target).square().mean()

    for part in parts:
        part.train()
    fit([p for part in parts for p in part.parameters()], loss_at, steps=steps, rate=rate, report=report)
    for part in parts:
        part.eval()


def _drawn(parts: dict[str, nn.Module], seed: int) -> None:
    for name, part in parts.items():
        fan_in_init(part.eval(), Key(seed, purpose=name).number)
        for key, parameter in part.named_parameters():
            if key.endswith("gamma"):  # norms of Wan's autoencoder have as many dimensions as what they norm
                nn.init.ones_(parameter)


def _text(kind: str, tokenizer: Any) -> Any:
    """A one-layer encoder; `_read_words` once its weights are drawn."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=2 * TEXT_HIDDEN, d_kv=TEXT_HIDDEN // 2, d_ff=2 * TEXT_HIDDEN, num_layers=1,
        num_heads=2, is_encoder_decoder=False, dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return getattr(transformers, f"{kind}EncoderModel")(config)


def _read_words(encoder: Any) -> None:
    """T5's own sizes where they differ from 1 / sqrt(fan in).

    Words have size 1: smaller ones drown in what attention adds to them. Queries are smaller by the root of a head's
    width, since T5 does not divide its scores by it: attention that begins sharp mixes a text's words up for good.
    """
    with torch.no_grad():
        words = encoder.get_input_embeddings().weight
        words /= words.std()
        for name, parameter in encoder.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                parameter *= encoder.config.d_kv**-0.5


def _frame_by_frame(vae: Any) -> None:
    """Kernels over time begin on the present frame alone, those that join two frames on both: an autoencoder of clips
    that begins as one of pictures learns as fast as one."""
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, nn.Conv3d) and (length := layer.kernel_size[0]) > 1:
                present = layer.stride[0]
                layer.weight[:, :, :-present] = 0
                layer.weight *= (length / present) ** 0.5


def tiny_wan(seed: int = 0, *, hidden: int = 288, layers: int = 3) -> Any:
    """A `WanPipeline` whose autoencoder halves height and width, and every two frames after the first.

    A token is a whole latent frame. Wan's positions are relative and its texts have none, so that smaller tokens would
    have to find out from noise where in the picture they are, which so small a model does not learn. Its 192 numbers
    must pass through the transformer beside what they become, so that it is wider.
    """
    import diffusers

    tokenizer = t5_tokenizer(LENGTH, WORDS)
    vae = diffusers.AutoencoderKLWan(
        base_dim=16, z_dim=CLIP_CHANNELS, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.0] * CLIP_CHANNELS, latents_std=[1.0] * CLIP_CHANNELS, scale_factor_temporal=2,
        scale_factor_spatial=2,
    )  # fmt: skip
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 8, 8), num_attention_heads=hidden // HEAD, attention_head_dim=HEAD, in_channels=CLIP_CHANNELS,
        out_channels=CLIP_CHANNELS, text_dim=2 * TEXT_HIDDEN, freq_dim=64, ffn_dim=2 * hidden, num_layers=layers,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "text_encoder": _text("UMT5", tokenizer)}
    _drawn(parts, seed)
    _read_words(parts["text_encoder"])
    _frame_by_frame(vae)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    return diffusers.WanPipeline(**parts, tokenizer=tokenizer, scheduler=euler)


AXES = (4, 10, 10)
"""Channels of a head that tell picture, row and column."""


def _look_across(transformer: Any, heads: int = 2, amount: float = 3.0, weight: float = 2.0) -> None:
    """The first heads of every block begin by looking at their own place in the other picture.

    The two channels of each axis that turn by one radian a step begin with what every token shares; in queries the
    first axis is turned by the step from picture to picture, one way for one head and back for the other.
    """
    fast = [0, AXES[0], AXES[0] + AXES[1]]
    for name, part in transformer.named_modules():
        if not name.endswith(".attn"):
            continue
        with torch.no_grad():
            queries, keys = (layer.bias.view(-1, HEAD) for layer in (part.to_q, part.to_k))
            queries[:heads, fast] = keys[:heads, fast] = amount
            for head in range(heads):
                turn = torch.tensor(1.0 if head % 2 == 0 else -1.0)
                queries[head, :2] = amount * torch.stack([turn.cos(), turn.sin()])
            for norm in (part.norm_q, part.norm_k):
                norm.weight[[at + side for at in fast for side in (0, 1)]] = weight


def tiny_kontext(seed: int = 0, *, double: int = 1, single: int = 2) -> Any:
    """A `FluxKontextPipeline` without embedded guidance, whose autoencoder makes one latent of 4 x 4 pixels.

    Two by two latents are a token: a cell of the `edits` world. Ask for `_auto_resize=False` and 16 x 16 pixels.
    """
    import diffusers
    import transformers

    clip, t5 = clip_tokenizer(INSTRUCTION, WORDS), t5_tokenizer(INSTRUCTION, WORDS)
    pooled = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(clip), hidden_size=TEXT_HIDDEN, intermediate_size=2 * TEXT_HIDDEN,
            projection_dim=TEXT_HIDDEN, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=INSTRUCTION,
            bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id,
        )
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4 * CHANNELS, num_layers=double, num_single_layers=single, attention_head_dim=HEAD,
        num_attention_heads=HIDDEN // HEAD, joint_attention_dim=2 * TEXT_HIDDEN, pooled_projection_dim=TEXT_HIDDEN,
        axes_dims_rope=AXES, guidance_embeds=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, latent_channels=CHANNELS,
        sample_size=16, scaling_factor=1.0, shift_factor=0.0, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    parts = {"transformer": transformer, "vae": vae, "text_encoder": pooled, "text_encoder_2": _text("T5", t5)}
    _drawn(parts, seed)
    _look_across(transformer)
    _read_words(parts["text_encoder_2"])
    return diffusers.FluxKontextPipeline(
        **parts, tokenizer=clip, tokenizer_2=t5,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
    )  # fmt: skip
