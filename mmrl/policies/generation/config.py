"""The configuration of flow policies: every default with how to choose it."""

from __future__ import annotations

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.policies.adapters import LoraConfig
from mmrl.policies.generation.sde import DEFAULT_LEVEL, KLKind, Reduction, SamplerKind
from mmrl.policies.generation.steps import TrainSteps
from mmrl.policies.weight_average import AverageConfig
from mmrl.precision import Autocast, Precision
from mmrl.settings import Section

ATTENTION_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
"""Attention projections of an MM-DiT: the LoRA targets of the published recipes."""


class FlowLoraConfig(LoraConfig):
    """Adapters on the attention layers, with the rank and alpha of Flow-GRPO."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    targets: str | list[str] = ATTENTION_LAYERS


class Sampler(Section):
    """How rollouts draw noise (`mmrl.policies.generation.sde`).

    kind   "flow_sde" (Flow-GRPO), "dance_sde" (constant noise), "cps" (clean-looking, less diverse), "sage_sde"
    level  more explores more and looks noisier; null takes the published value of the kind
    """

    kind: SamplerKind = "flow_sde"
    level: float | None = Field(None, ge=0)

    @property
    def noise_level(self) -> float:
        return DEFAULT_LEVEL[self.kind] if self.level is None else self.level

    @model_validator(mode="after")
    def _in_range(self) -> Sampler:
        if self.kind == "cps" and self.noise_level > 1:
            raise ConfigError(f"sampler.level={self.level}: cps takes 0 to 1")
        return self


class FlowPolicyConfig(Section):
    """Which generator acts, how it is trained, and how it samples.

    model                   directory or hub name of a `StableDiffusion3Pipeline`
    transformer             directory of transformer weights in place of the pipeline's, as saved by full fine-tuning
    adapter                 PEFT adapter to start from; it is also the reference then
    lora                    adapters, or null for full fine-tuning
    dtype                   of the weights; adapters are float32 whatever it says. For full fine-tuning of large
                            models: float32 with `autocast`
    autocast                dtype of matrix products over the weights; sampling and scoring use it alike, so leave
                            accelerate's own mixed precision off
    attention               diffusers attention backend such as "native" or "flash"; null is diffusers' default
    gradient_checkpointing  less memory, about a third more time
    height, width           of the images; null is the model's own size
    max_sequence_length     text tokens of the third (T5) encoder
    steps, eval_steps       of rollouts, and of the ODE sampler that evaluation uses. 10 and 40 are published
    shift                   of the schedule; null takes the pipeline's. Larger spends more steps at high noise
    sampler, train_steps    how noise is drawn, and at which steps
    share_prefix            compute the ODE steps before the first noise once for rollouts of one start noise: exact
    same_initial_noise      all rollouts of a prompt start from one noise
    guidance_scale          of rollout and training alike; 1 skips the unconditional pass
    negative_prompt         text of the unconditional pass
    reduction, normalised   of the log-prob (`transition_log_prob` in `sde.py`); clip ranges depend on both
    kl                      how the KL to the reference is measured: "legacy_no_dt" reproduces Flow-GRPO's runs
    latent_dtype            of the stored latents. bfloat16 moves log-probs by up to 6e-4: more than the clip range
    keep_means              store the mean of each trained step, which GRPO-Guard and Flow-DPPO compare with
    transformer_batch       latents in one call of the transformer
    decode_batch            images decoded at once
    text_cache              prompts whose embeddings are kept
    ema                     moving average of the trained weights: what evaluation and export use; null for none
    """

    model: str
    transformer: str | None = None
    adapter: str | None = None
    lora: FlowLoraConfig | None = FlowLoraConfig()
    dtype: Precision = "float32"
    autocast: Autocast | None = None
    attention: str | None = None
    gradient_checkpointing: bool = False
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    max_sequence_length: int = Field(256, ge=1)
    steps: int = Field(10, ge=2)
    eval_steps: int = Field(40, ge=1)
    shift: float | None = Field(None, gt=0)
    sampler: Sampler = Sampler()
    train_steps: TrainSteps = TrainSteps()
    share_prefix: bool = True
    same_initial_noise: bool = False
    guidance_scale: float = Field(1.0, ge=0)
    negative_prompt: str = ""
    reduction: Reduction = "mean"
    normalised: bool = True
    kl: KLKind = "exact"
    latent_dtype: Precision = "float32"
    keep_means: bool = False
    transformer_batch: int = Field(16, ge=1)
    decode_batch: int = Field(8, ge=1)
    text_cache: int = Field(1024, ge=0)
    ema: AverageConfig | None = None
