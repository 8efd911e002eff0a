"""The configuration of flow policies: every default with how to choose it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.policies.adapters import LoraConfig
from mmrl.policies.anchor import AnchorConfig
from mmrl.policies.generation.distilled import DistilledConfig
from mmrl.policies.generation.families.asking import Asked
from mmrl.policies.generation.likelihoods import likelihood_class
from mmrl.policies.generation.likelihoods.draws import Draws
from mmrl.policies.generation.pushing import PushConfig
from mmrl.policies.generation.reuse import ReuseConfig
from mmrl.policies.generation.sde import DEFAULT_LEVEL, KLKind, Reduction, SamplerKind, Scoring
from mmrl.policies.generation.steps import TrainSteps
from mmrl.policies.quantized import Quantize
from mmrl.policies.weight_average import AverageConfig
from mmrl.precision import Autocast, Precision
from mmrl.settings import Section


class FlowLoraConfig(LoraConfig):
    """Adapters with the rank and alpha of Flow-GRPO.

    targets  null takes the family's own: the attention projections, by the names its transformer gives them
    residual  a network `rank` wide beside the last layer (`targets`, null: proj_out), which adds to the frozen
             generator's velocity, in place of LoRA (ResiP). No merged export
    """

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    targets: str | list[str] | None = None  # type: ignore[assignment]
    residual: bool = False

    @model_validator(mode="after")
    def _residual_is_no_lora(self) -> FlowLoraConfig:
        if self.residual and (self.dora or self.dropout):
            raise ConfigError(
                "lora: dora and dropout are of a change of weights, and residual makes none; leave it out"
            )
        return self

    def aimed(self, own: str | list[str]) -> str | list[str]:
        """What is adapted: `own` of the family, or the last layer. As one text PEFT takes it as a whole name."""
        return "proj_out" if self.residual else own

    def layers(self) -> dict[Any, Any]:
        from torch import nn

        from mmrl.policies.generation.residual import head_class

        return {nn.Linear: head_class()} if self.residual else {}


Level = Annotated[float, Field(ge=0)]


class Sampler(Section):
    """How rollouts draw noise (`mmrl.policies.generation.sde`).

    kind   "flow_sde" (Flow-GRPO), "dance_sde" (constant noise), "cps" (clean-looking, less diverse), "sage_sde"
    level  more explores more and looks noisier; null takes the published value of the kind
    levels  one for each of `policy.steps`, in place of `level`: psi(t) of DenseGRPO, which `mmrl calibrate` finds
    siblings  s: a row that begins in another draws noise there that is alike the other's by 1 / (1 + s^2), the law of
            BranchGRPO's mixture (xi + s eta) / sqrt(1 + s^2). Every row's noise stays a unit normal. 4 is published, 1
            and 2 explore too little and 8 is unstable; null: independently. More than two rows of one split are alike
            each other by the square of that
    """

    kind: SamplerKind = "flow_sde"
    level: float | None = Field(None, ge=0)
    levels: tuple[Level, ...] | None = None
    siblings: float | None = Field(None, gt=0)

    @property
    def noise_level(self) -> float:
        return DEFAULT_LEVEL[self.kind] if self.level is None else self.level

    @model_validator(mode="after")
    def _in_range(self) -> Sampler:
        if self.kind == "cps" and self.noise_level > 1:
            raise ConfigError(f"sampler.level={self.level}: cps takes 0 to 1")
        if self.kind == "cps" and self.levels and max(self.levels) > 1:
            raise ConfigError(f"sampler.levels: {max(self.levels)}: cps takes 0 to 1")
        return self


class FlowPolicyConfig(Section):
    """Which generator acts, how it is trained, and how it samples.

    model                   directory or hub name of a flow-matching pipeline of diffusers, its class read from
                            model_index.json. docs/generators.md lists the families; any other pipeline is replayed,
                            exact and slower
    transformer             directory of transformer weights in place of the pipeline's, as saved by full fine-tuning
    adapter                 PEFT adapter to start from; it is also the reference then
    lora                    adapters, or null for full fine-tuning
    dtype                   of the weights; adapters are float32 whatever it says. For full fine-tuning of large
                            models: float32 with `autocast`
    autocast                dtype of matrix products over the weights; sampling and scoring use it alike, so leave
                            accelerate's own mixed precision off
    quantize                the blocks of the frozen transformer under adapters: nf4 (four bits, QLoRA), int8, or null;
                            what is outside of the blocks keeps `dtype`, and packed layers compute in `autocast`, or
                            else `dtype`. Needs the extra `qlora`. A merged export is unpacked first, in `dtype`
    attention               diffusers attention backend such as "native" or "flash"; null is diffusers' default
    gradient_checkpointing  less memory, about a third more time
    offload                 text encoders and VAE wait on the CPU between uses
    height, width, frames   of the outputs; null is the pipeline's own. Frames are for video only
    max_sequence_length     text tokens, where the pipeline takes a limit; null is the pipeline's own, or that of
                            its tokenizers where it is shorter
    pipeline_options        further arguments of the pipeline's call, by its own names
    steps, eval_steps       of rollouts, and of the ODE sampler that evaluation uses. 10 and 40 are published
    schedule                "pipeline": the times that the pipeline itself would use. "linear": s u / (1 + (s - 1) u)
                            of uniform u, as earlier runs did
    shift                   s of the linear schedule; null takes the pipeline's. Larger spends more steps at high noise
    likelihood              what is scored: "transition" (log-probs of stochastic steps), "matching" (the flow-matching
                            loss of the clean output, from any sampler), or one of your own, `my.py:Mine`
    draws                   where the matching loss is measured
    sampler, train_steps    how noise is drawn, and at which steps (transition)
    tail                    of rollouts: the share of the steps behind the last noise that are taken, by a second-order
                            solver (MixGRPO-Flash: .4); null: all of them, by Euler
    push                    of rollouts: what moves their stochastic steps besides the policy, whose log-probs do not
                            know of it (Euphonium; transition)
    reuse                   of rollouts: steps without noise that run the first block of the transformer alone and take
                            the rest from the step before (HGC, first-block cache); a step that is trained only where
                            `reuse.drawn` says so, and never evaluation
    distilled               of rollouts: an adapter beside the trained one, with which a few `steps` are enough; the
                            base trains, by a likelihood without log-probs, and is evaluated without it
    reuse_unconditional     keep what the unconditional pass of a rollout found at its trained steps, for the first
                            optimizer step on it, which then asks for the conditional one alone (guidance=detached):
                            exact, and as much memory again as the states take; false saves that
    share_prefix            compute the ODE steps before the first noise once for rollouts of one start noise: exact
    same_initial_noise      all rollouts of a prompt start from one noise
    guidance                what is trained under guidance_scale above 1. "detached": the guided velocity, without
                            gradient through the unconditional pass (Flow-GRPO); "through": with it; "none": the
                            conditional one alone, which likelihood=transition can do at scale 1 only, since rollouts
                            are guided, and likelihood=matching always does
    guidance_scale          classifier-free guidance of rollout and training alike, by the pipeline's own formula (its
                            `guidance_scale`, or `true_cfg_scale` where guidance is an input too); 1 skips the
                            unconditional pass
    guidance_scale_2        that of the second expert of Wan 2.2; null: the same
    reference_guidance      guidance of the reference that `velocity_kl` measures to; above 1 the policy, which trains
                            without guidance, learns it from there
    eval_guidance           of evaluation, and of what is watched; null is guidance_scale. For a policy that trains
                            without guidance and is used with it
    embedded_guidance       guidance that the model takes as an input (FLUX.1-dev, FLUX.2-dev, HunyuanVideo); null is
                            the pipeline's default
    negative_prompt         text of the unconditional pass
    reduction, normalised   of the log-prob (`mmrl.policies.generation.sde.transition_log_prob`); clip ranges depend
                            on both
    kl                      how the KL to the reference is measured: "legacy_no_dt" reproduces Flow-GRPO's runs
    latent_dtype            of the stored latents. bfloat16 moves log-probs by up to 6e-4: more than the clip range
    latents_on              "device", or "cpu": long rollouts of large latents leave room on the device, and come back a
                            micro-batch at a time. The numbers are the same
    keep_means              store the mean of each trained step, which GRPO-Guard and Flow-DPPO compare with
    transformer_batch       latents in one call of the transformer
    decode_batch            outputs decoded at once
    decode_tiles            decode in tiles, which bounds memory and blends their seams; null: videos only
    condition_cache         GiB of CPU memory for the conditions of the prompts used last
    anchor                  a frozen copy of the trained weights with a decay of its own: what matching objectives
                            compare with (the "old" policy of DiffusionNFT and CRD); null for none
    behaviour               a second one: what rollouts are sampled with (CRD)
    ema                     moving average of the trained weights: what evaluation and export use; null for none
    """

    model: str
    transformer: str | None = None
    adapter: str | None = None
    lora: FlowLoraConfig | None = FlowLoraConfig()
    dtype: Precision = "float32"
    autocast: Autocast | None = None
    quantize: Quantize | None = None
    attention: str | None = None
    gradient_checkpointing: bool = False
    offload: bool = True
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    frames: int | None = Field(None, ge=1)
    max_sequence_length: int | None = Field(None, ge=1)
    pipeline_options: dict[str, Any] = {}
    steps: int = Field(10, ge=2)
    eval_steps: int = Field(40, ge=1)
    schedule: Literal["pipeline", "linear"] = "pipeline"
    shift: float | None = Field(None, gt=0)
    likelihood: str = "transition"
    draws: Draws = Draws()
    sampler: Sampler = Sampler()
    train_steps: TrainSteps = TrainSteps()
    tail: float | None = Field(None, gt=0, le=1)
    push: PushConfig | None = None
    reuse: ReuseConfig | None = None
    distilled: DistilledConfig | None = None
    reuse_unconditional: bool = True
    share_prefix: bool = True
    same_initial_noise: bool = False
    guidance: Literal["none", "detached", "through"] = "detached"
    guidance_scale: float = Field(1.0, ge=0)
    guidance_scale_2: float | None = Field(None, ge=0)
    reference_guidance: float = Field(1.0, ge=1)
    eval_guidance: float | None = Field(None, ge=1)
    embedded_guidance: float | None = Field(None, ge=0)
    negative_prompt: str = ""
    reduction: Reduction = "mean"
    normalised: bool = True
    kl: KLKind = "exact"
    latent_dtype: Precision = "float32"
    latents_on: Literal["device", "cpu"] = "device"
    keep_means: bool = False
    transformer_batch: int = Field(16, ge=1)
    decode_batch: int = Field(8, ge=1)
    decode_tiles: bool | None = None
    condition_cache: float = Field(4.0, ge=0)
    anchor: AnchorConfig | None = None
    behaviour: AnchorConfig | None = None
    ema: AverageConfig | None = None

    @model_validator(mode="after")
    def _likelihood_is_known(self) -> FlowPolicyConfig:
        likelihood_class(self.likelihood)
        return self

    @model_validator(mode="after")
    def _guidance_is_what_was_sampled(self) -> FlowPolicyConfig:
        if self.guidance == "none" and self.guidance_scale > 1 and self.likelihood == "transition":
            raise ConfigError(
                f"guidance=none with guidance_scale={self.guidance_scale:g}: rollouts would be guided and training "
                "not, and their ratio compares two policies; set policy.guidance=detached, or policy.guidance_scale=1"
            )
        if self.guidance == "through" and self.likelihood == "matching":
            raise ConfigError("guidance=through: likelihood=matching trains predictions without guidance; use none")
        return self

    @model_validator(mode="after")
    def _push_moves_transitions(self) -> FlowPolicyConfig:
        if self.push is not None and self.likelihood != "transition":
            raise ConfigError("push moves the means of stochastic steps: it needs likelihood=transition")
        return self

    @model_validator(mode="after")
    def _distilled_is_beside_what_trains(self) -> FlowPolicyConfig:
        if self.distilled is not None and likelihood_class(self.likelihood).trains == "ratio":
            raise ConfigError(
                "distilled: rollouts would be another policy's than the one that is trained, and their ratio compares "
                "the two; set policy.likelihood=matching, as recipes awm, diffusion_nft and crd have it"
            )
        if self.distilled is not None and self.lora is None and self.adapter is None:
            raise ConfigError("distilled: an adapter lies beside another; train one too (policy.lora={rank: 32})")
        return self

    @model_validator(mode="after")
    def _tail_is_behind_a_window(self) -> FlowPolicyConfig:
        if self.tail is not None and (self.likelihood != "transition" or self.train_steps.select != "window"):
            raise ConfigError(
                f"tail={self.tail:g} shortens what follows a window of noise: it needs likelihood=transition and "
                "train_steps.select=window"
            )
        return self

    @model_validator(mode="after")
    def _shift_is_read(self) -> FlowPolicyConfig:
        if self.shift is not None and self.schedule != "linear":
            raise ConfigError(
                f"shift={self.shift:g}: only schedule=linear reads it; the pipeline's own schedule has its own shift"
            )
        return self

    @model_validator(mode="after")
    def _a_level_for_each_step(self) -> FlowPolicyConfig:
        levels = self.sampler.levels
        if levels is not None and len(levels) != self.steps:
            raise ConfigError(f"sampler.levels: got {len(levels)} for policy.steps={self.steps}; expected one for each")
        return self

    def scoring(self) -> Scoring:
        """How stochastic steps are drawn and scored."""
        sampler = self.sampler
        return Scoring(
            sampler.kind, sampler.noise_level, self.reduction, self.normalised, self.kl, sampler.levels
        )  # fmt: skip

    def asked(self) -> Asked:
        """What every output is asked for."""
        limit = {} if self.max_sequence_length is None else {"max_sequence_length": self.max_sequence_length}
        return Asked(
            height=self.height, width=self.width, frames=self.frames, guidance=self.guidance_scale,
            guidance_2=self.guidance_scale_2, embedded=self.embedded_guidance, negative=self.negative_prompt,
            through=self.guidance == "through", options=limit | self.pipeline_options,
        )  # fmt: skip
