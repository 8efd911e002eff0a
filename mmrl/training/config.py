"""How a run is trained: sizes, optimizer, schedule, what is saved when."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.settings import Section
from mmrl.training.optimizer import OptimizerConfig
from mmrl.training.updates import Updates, updates_a_batch

LARGEST_EPSILON = 1e-3
"""Of AdamW; nobody means more, and who writes more means the clip range, which TRL calls so."""


LONGEST_WATCH = 1e6
"""Seconds; a timer takes no more."""

WATCHES = 4
"""Steps as long as the watchdog's that ranks wait for each other: one that is that slow still goes on."""

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(Section):
    """One optimizer for every modality.

    max_grad_norm       gradients are scaled down to it; a large number, such as 1e9, leaves them as they are
    steps               rollout batches; each makes `updates` optimizer steps
    data_epochs         in place of `steps`: times that every row of the data is asked; the run writes down the steps
                        it came to. A strategy that asks further prompts takes them from the same rows
    prompts_per_step    groups a step, over all ranks
    group_size          rollouts of one prompt; larger means a better baseline at proportional cost
    updates             auto: as many optimizer steps a rollout batch, and passes over it, as the recipe's paper
                        makes and the batch has groups for (at least 2 each); or {count: 4, epochs: 1}. With 1
                        every ratio is 1: no clip or gate can act
    micro_batch_size    rollouts scored at once on a rank; lower it when memory runs out, the numbers stay
    micro_batch_actions  of a generator, denoising steps whose gradient is held at once, however many a row has: less
                        memory, for one more pass without gradient; null: whole rows
    learning_rate       of a configuration that names none: 1e-6 for full fine-tuning, 1e-5 for LoRA; of generators 1e-5
                        and 3e-4. LoRA of small models takes up to 3e-4
    schedule            after `warmup_steps` optimizer steps: constant, or decay (safest for short runs)
    schedule_floor      the share of the learning rate that a decay ends at
    skip_nonfinite      leave out an optimizer step whose loss or gradient is not finite, and count it, instead of
                        stopping the run
    self_check          largest allowed gap between rollout and training log-probs before the first update;
                        null takes 1e-4 in float32; below it 1, and 0.03 for the mean
    check_every         steps after which that check is made again: 0 is never; null is every 10 where an engine with
                        weights of its own writes the responses
    epsilon             AdamW's; the clip range is objective.trust_region.low and high
    ahead               steps whose rollouts an engine with weights of its own writes while one trains: 0 is none, every
                        rollout is of the present weights; with 1 or 2 neither waits long for the other, and recipes
                        that correct for older weights keep the ratios honest (docs/engines.md)
    eval_every, save_every  in steps; 0 means only at the end
    save_every_minutes  of wall time since the last checkpoint; null: steps alone decide
    export_every        steps between checkpoints that hold `policy/`, the Hugging Face layout; 0: only the last one
    keep_best           a metric, such as eval/success or reward/mean, whose best checkpoint stays: `checkpoints/best`
    eval_samples        1 is one greedy answer of each held-out prompt; more are sampled, and give pass@k
    keep_checkpoints    older ones are deleted
    save_rollouts       prompts whose answers are kept, of a step and of an evaluation: whole groups, the first as it
                        comes, then those whose rewards differ most. They are the report's and the trackers' to show,
                        and one answer is printed
    save_rollouts_every  steps between those that are kept
    watchdog_seconds    a step that takes longer has its stack printed, and goes on
    optimizer           AdamW of some kind or Muon, and where its state lives
    compile             torch.compile for the feed-forward parts of every block; the first steps take longer, and a C++
                        compiler must be there
    sharding            of a run on several processes: launcher, as the launcher's configuration says; or, for
                        launchers that say nothing (torchrun, Ray), ddp or fsdp2
    rank_timeout        seconds a rank waits for the others before the run ends; null: four times watchdog_seconds
                        and what rewards may take beside it, so that a slow judge on one rank ends nothing. A rank
                        that has died ends the others within a minute whatever it says
    balance             give each rank groups of about as many tokens, from what their prompts came to when they were
                        asked last; false: in turn. Numbers stay, to rounding
    threads             of a step on the CPU: set, as OMP_NUM_THREADS says; by_load, at most so many, and only as many
                        as other processes left whole cores in the step before. Not repeated bit for bit then
    """

    steps: int = Field(100, ge=1)
    data_epochs: float | None = Field(None, gt=0)
    prompts_per_step: int = Field(8, ge=1)
    group_size: int = Field(8, ge=1)
    updates: Updates = Updates()
    micro_batch_size: int = Field(16, ge=1)
    micro_batch_actions: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-6, ge=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_floor: float = Field(0.0, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0, le=1)
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = 0
    skip_nonfinite: bool = False
    self_check: float | None = None
    check_every: int | None = Field(None, ge=0)
    ahead: int = Field(0, ge=0, le=16)
    eval_every: int = Field(0, ge=0)
    eval_batch_size: int = Field(64, ge=1)
    eval_samples: int = Field(1, ge=1)
    save_every: int = Field(50, ge=0)
    save_every_minutes: float | None = Field(None, gt=0)
    export_every: int = Field(0, ge=0)
    keep_best: str | None = None
    keep_checkpoints: int = Field(2, ge=1)
    save_rollouts: int = Field(4, ge=0)
    save_rollouts_every: int = Field(10, ge=1)
    watchdog_seconds: float = Field(1800, gt=0, le=LONGEST_WATCH)
    optimizer: OptimizerConfig = OptimizerConfig()
    compile: bool = False
    sharding: Literal["launcher", "ddp", "fsdp2"] = "launcher"
    rank_timeout: float | None = Field(None, gt=0, le=LONGEST_WATCH)
    balance: bool = True
    threads: Literal["set", "by_load"] = "set"

    @model_validator(mode="before")
    @classmethod
    def _updates_have_moved(cls, values: Any) -> Any:
        if isinstance(values, dict) and "updates_per_step" in values:
            count = values["updates_per_step"]
            raise ConfigError(
                f"training.updates_per_step is now training.updates: write training.updates={{count: {count}}} for as "
                "many optimizer steps a rollout batch, or leave it out for those of the recipe's paper"
            )
        return values

    @model_validator(mode="after")
    def _updates_fit(self) -> TrainingConfig:
        if self.updates_per_epoch > self.prompts_per_step:
            raise ConfigError(
                f"training.updates.count={self.updates_per_epoch} splits {self.prompts_per_step} groups into more "
                f"optimizer steps than there are groups; choose at most {self.prompts_per_step}, or auto"
            )
        return self

    @model_validator(mode="after")
    def _epsilon_is_no_clip_range(self) -> TrainingConfig:
        if self.epsilon > LARGEST_EPSILON:
            raise ConfigError(
                f"training.epsilon={self.epsilon:g} is AdamW's, and would stop it from adapting; the clip range is "
                "objective.trust_region.low and objective.trust_region.high"
            )
        return self

    def following(self, count: int, epochs: int) -> TrainingConfig:
        """With what `updates` leaves out filled in, from a recipe's paper."""
        count = self.updates.count or updates_a_batch(count, self.prompts_per_step)
        return self.model_copy(update={"updates": Updates(count=count, epochs=self.updates.epochs or epochs)})

    def for_rows(self, rows: int) -> TrainingConfig:
        """With the steps that `data_epochs` of so many rows come to, at least one; unchanged without it."""
        if self.data_epochs is None:
            return self
        steps = max(1, round(self.data_epochs * rows / self.prompts_per_step))
        return self.model_copy(update={"steps": steps, "data_epochs": None})

    def patience(self, rewards: float = 0.0) -> float:
        """Seconds ranks wait for each other, `rewards` of them for what rewards may take."""
        return self.rank_timeout or WATCHES * self.watchdog_seconds + rewards

    @property
    def updates_per_epoch(self) -> int:
        return self.updates.count or 1

    @property
    def epochs(self) -> int:
        return self.updates.epochs or 1

    @property
    def total_updates(self) -> int:
        return self.steps * self.epochs * self.updates_per_epoch

    def learning_rate_at(self, update: int) -> float:
        """The rate of optimizer step `update` (from 0), a pure function so that a resume needs no scheduler."""
        import math

        if update < self.warmup_steps:
            return self.learning_rate * (update + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = min((update - self.warmup_steps) / max(self.total_updates - self.warmup_steps, 1), 1.0)
        left = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.schedule_floor + (1 - self.schedule_floor) * left)
