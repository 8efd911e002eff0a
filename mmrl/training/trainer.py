"""The training loop: the same verbs for every modality. The policy knows the model, the objective the maths.

What is left out on purpose: losses, media and prompts live in their own rooms; a new method never comes here.
"""

from __future__ import annotations

import faulthandler
import random
import signal as signals
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.errors import ConfigError, MMRLError
from mmrl.objective import Objective, signal
from mmrl.objective.groups import group_extreme, representatives
from mmrl.policies.base import Policy
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.actor import Actor
from mmrl.rollout.environments.base import Surroundings
from mmrl.rollout.nesting import Nested
from mmrl.selection.prompts import Sampler, Shuffled
from mmrl.training import checkpoint, run_log
from mmrl.training.collect import Collected, Collector
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import even_micro_batches, gather_objects, make_accelerator, sum_over_ranks
from mmrl.training.evaluation import Score, evaluate
from mmrl.training.filling import Columns
from mmrl.training.passes import plan_passes
from mmrl.training.self_check import SelfCheck, Tolerance, compare
from mmrl.training.timing import Clock, peak_memory_bytes
from mmrl.training.tracking import Tracker

Report = Callable[[int, dict[str, Any]], None]


@dataclass
class Result:
    """What a run came to.

    steps        done, those before a resume included
    before       held-out metrics of step 0
    after        of the last evaluation since; empty where there was none
    interrupted  whether Ctrl-C stopped it before its last step
    start        the step it went on from
    """

    steps: int
    before: dict[str, float]
    after: dict[str, float]
    interrupted: bool = False
    start: int = 0


class Trainer:
    """Trains any policy with any recipe.

        Trainer(policy, objective, prompts, score, TrainingConfig(steps=100), run_dir).train()

    prompts  any sequence; one with `prefetch(indices)`, such as `mmrl.data.ahead.Ahead`, is told what comes next
    score    `(outputs, prompts) -> Scores`, such as `RewardPanel.score`
    sampler  which prompts come next; every prompt once an epoch if not given
    rollout  how a group comes to be: a strategy by name or as {name: ..., parameter: ...}, or several, outermost
             first; independent draws if not given
    environment  that answers between the turns of a response, in training and evaluation; none if not given
    report   called with (step, metrics) on the main process
    counters  further numbers of this process for each step's metrics
    """

    def __init__(
        self, policy: Policy, objective: Objective, prompts: Sequence[Prompt], score: Score, config: TrainingConfig,
        run_dir: str | Path, *, eval_prompts: Sequence[Prompt] = (), accelerator: Accelerator | None = None,
        sampler: Sampler | None = None, rollout: Any = (), environment: Surroundings | None = None,
        trackers: Sequence[Tracker] = (),
        report: Report = lambda step, metrics: None,
        counters: Callable[[], dict[str, float]] = dict,
    ):  # fmt: skip
        if not len(prompts):
            raise ConfigError("the training data set is empty")
        self.accelerator = accelerator or make_accelerator()
        if config.prompts_per_step < self.accelerator.num_processes:
            raise ConfigError(
                f"training.prompts_per_step={config.prompts_per_step} leaves some of the "
                f"{self.accelerator.num_processes} processes without a group; choose at least as many"
            )
        if config.group_size < 2 and objective.advantage.spec.relative:
            raise ConfigError(
                f"training.group_size=1 leaves nothing to compare within a group, and advantage "
                f"{objective.advantage.name!r} is relative to the group; choose at least 2"
            )
        self.policy, self.objective, self.config, self.score = policy, objective, config, score
        self.run_dir, self.eval_prompts, self.trackers, self.report = Path(run_dir), eval_prompts, trackers, report
        self.clock, self.step, self.updates, self.interrupted = Clock(), 0, 0, False
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.saved = 0
        self.counters = counters
        trained = [p for p in policy.module.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("the policy has no trainable parameter; give it a LoRA section or unfreeze something")
        adamw = torch.optim.AdamW(
            trained, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
        )
        policy.module, self.optimizer = self.accelerator.prepare(policy.module, adamw)
        self.sampler: Sampler = sampler or Shuffled()
        self.strategies = Nested.of(rollout)
        self.plan = plan_passes(objective, type(policy), self.strategies)
        self.actor = Actor(policy, environment)
        self.columns = Columns(self.actor, self.plan, score, config, self.accelerator, self.clock)
        self.collector = Collector(
            self.actor, objective, self.columns, self.strategies, prompts, score, self.sampler, config,
            self.accelerator, self.clock,
        )  # fmt: skip
        self.checked: SelfCheck | None = None

    # ---- the loop

    def train(self, resume: Path | None = None) -> Result:
        """Run to `config.steps`. Ctrl-C finishes the step, saves and stops; a second one stops at once."""
        if resume:
            self._resume(resume)
        start = self.step
        previous = signals.getsignal(signals.SIGINT)
        if _in_main_thread():
            signals.signal(signals.SIGINT, self._interrupt)
        try:
            self.before = self.evaluate() if self.step == 0 else self.before
            while self.step < self.config.steps and not self.interrupted:
                # notebooks replace sys.stderr by something without a file descriptor
                faulthandler.dump_traceback_later(self.config.watchdog_seconds, file=sys.__stderr__)
                metrics = self._step_or_save()
                self.step += 1
                if self._due(self.config.eval_every):
                    self.after = self.evaluate()
                    metrics |= {f"eval/{k}": v for k, v in self.after.items()}
                self._log(metrics)
                if self._due(self.config.save_every) or self.interrupted:
                    self.save()
        finally:
            faulthandler.cancel_dump_traceback_later()
            if _in_main_thread():
                signals.signal(signals.SIGINT, previous)
        return Result(self.step, self.before, self.after, self.interrupted, start)

    def _step_or_save(self) -> dict[str, Any]:
        """A step. If it fails before it moved the weights, what was trained so far is saved first."""
        state, updates = self._state(), self.updates
        try:
            return self.train_step()
        except Exception as error:
            # an error of ours is raised by all ranks together; after another, the others do not come to save
            together = isinstance(error, MMRLError) or self.accelerator.num_processes == 1
            if together and self.step > self.saved and self.updates == updates:
                self.save(state)
            if self.saved:
                error.add_note(f"step {self.saved} is saved: continue with --resume {self.run_dir}")
            raise

    def train_step(self) -> dict[str, Any]:
        """One rollout batch: collect, prepare, update."""
        _seed_everything(Key(self.config.seed, self.step, purpose="global").number)
        collected = self.collector.collect(self.step)
        with self.clock("prepare"):
            batch = self.objective.assess(collected.batch)
            batch = self.columns.compare(collected.rollouts, collected.mine, batch)
            batch, weights = self.objective.credit_and_weigh(batch)
            self.sampler.observe(collected.indices, batch)
            self.collector.announce([], self.step + 1)
        if self.checked is None:
            self.checked = self.self_check(collected.rollouts)
        with self.clock("update"):
            sums, norms = self.update(collected.rollouts, batch, weights, collected.mine)
        if self.step % self.config.save_rollouts_every == 0 or self.step == self.config.steps - 1:
            self._save_rollouts(collected, batch, weights)
        return self._metrics(collected, batch, weights, sums, norms)

    def update(
        self, rollouts: Rollouts, batch: Batch, weights: Tensor, mine: Tensor
    ) -> tuple[dict[str, float], list[float]]:
        """The optimizer steps of one rollout batch. The loss is a sum: nothing is divided here."""
        sums: dict[str, tuple[float, float]] = {}
        norms: list[float] = []
        local, local_weights = _local(batch, weights, mine, rollouts.mask.shape[1])
        signal_rows = self.objective.has_signal(local).cpu()
        # selection may have added optimizer steps of its own (RoRecomp)
        for update in range(max(self.config.updates_per_step, int(batch.update.max()) + 1)):
            rows = (signal_rows & (local.update == update).cpu()).nonzero().squeeze(1)
            parts = even_micro_batches(self.policy, rollouts, self.config.micro_batch_size, self.accelerator, rows)
            own = len(self.policy.micro_batches(rollouts, rows, self.config.micro_batch_size)) if len(rows) else 0
            coefficients = self._score_coefficients(rollouts, batch, local, mine, update)
            for i, part in enumerate(parts):
                last = i == len(parts) - 1
                with nullcontext() if last else self.accelerator.no_sync(self.policy.module):
                    evaluation = self.policy.evaluate(rollouts.index(part), self.plan.update)
                    at = part.to(local_weights.device)
                    share = self.objective.loss(
                        evaluation,
                        local.index(at),
                        local_weights[at],
                        None if coefficients is None else coefficients[at],
                    )
                    alive = 1.0 if i < own else 0.0
                    self.accelerator.backward(share.loss * (alive * self.accelerator.num_processes))
                for name, (value, count) in share.sums.items():
                    total = sums.get(name, (0.0, 0.0))
                    sums[name] = (total[0] + alive * float(value), total[1] + alive * float(count))
            if parts:
                norms.append(self._optimizer_step(self.objective.learning_rate_factor(batch, update)))
        return sum_over_ranks(sums, self.accelerator), norms

    def _optimizer_step(self, share: float = 1.0) -> float:
        norm = self.accelerator.clip_grad_norm_(self.policy.module.parameters(), self.config.max_grad_norm)
        rate = share * self.config.learning_rate_at(self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.after_update()
        self.updates += 1
        return float(norm)

    def _score_coefficients(
        self, rollouts: Rollouts, batch: Batch, local: Batch, mine: Tensor, update: int
    ) -> Tensor | None:
        """dJ/ds of a whole-sequence objective: scores of all ranks first, without gradient."""
        if not self.objective.score_objective:
            return None
        scores = torch.zeros(0)
        with torch.no_grad():
            size = self.config.micro_batch_size
            for part in even_micro_batches(self.policy, rollouts, size, self.accelerator):
                evaluation = self.policy.evaluate(rollouts.index(part), self.plan.update)
                at = part.to(mine.device)
                own = self.objective.scores(evaluation, local.index(at)).to(batch.mask.device)
                scores = scores if len(scores) else own.new_zeros(len(batch), *own.shape[1:])
                scores[mine[at]] = own
        if self.accelerator.num_processes > 1:
            scores = self.accelerator.reduce(scores, "sum")
        rows = (batch.trained & (batch.update == update)).nonzero().squeeze(1)
        coefficients = torch.zeros_like(scores)
        if len(rows):
            coefficients[rows] = self.objective.score_coefficients(scores[rows], batch.index(rows))
        return coefficients[mine]

    # ---- trust

    def self_check(self, rollouts: Rollouts) -> SelfCheck:
        """Rollout and training log-probs of the first batch must agree; raises SelfCheckError if not."""
        new = torch.zeros_like(rollouts.old_log_probs)
        size = self.config.micro_batch_size
        with torch.no_grad():
            for part in even_micro_batches(self.policy, rollouts, size, self.accelerator):
                new[part.to(new.device)] = self.policy.evaluate(rollouts.index(part), ()).log_probs
        allowed = Tolerance.of(self.policy.precision, self.config.self_check)
        apart = rollouts.replay["shown"].to(rollouts.source.device) | (rollouts.source > 0)
        check = compare(rollouts.old_log_probs, new, rollouts.mask, allowed, shown=apart)
        failed = [c for c in gather_objects(None if check.passed else str(check), self.accelerator) if c]
        check.raise_if_failed()
        if failed:
            raise ConfigError(f"another rank failed: {failed[0]}")
        return check

    def evaluate(self) -> dict[str, float]:
        """Held-out scores of the policy as it stands; empty without evaluation prompts."""
        if not len(self.eval_prompts):
            return {}
        with self.clock("evaluate"):
            scores, kept = evaluate(
                self.actor, self.eval_prompts, self.score, batch_size=self.config.eval_batch_size,
                accelerator=self.accelerator, samples=self.config.eval_samples, keep=self.config.save_rollouts,
            )  # fmt: skip
        if kept is not None and self.accelerator.is_main_process:
            folder = self.run_dir / "rollouts" / f"eval-{self.step:06d}"
            run_log.save_rollouts(folder, kept, self.policy.action_labels(kept), None, None)
        return scores

    def save(self, state: dict[str, Any] | None = None) -> Path:
        """state  what `_state` gave at the end of the step; default: as of now"""
        with self.clock("save"):
            self.saved = self.step
            return checkpoint.save(
                self.run_dir, self.step, self.policy, self.optimizer, state or self._state(), self.accelerator,
                self.config.keep_checkpoints,
            )  # fmt: skip

    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides the policy and its optimizer."""
        return {
            "updates": self.updates,
            "before": self.before,
            "after": self.after,
            "sampler": self.sampler.state_dict(),
            "objective": self.objective.state_dict(),
            "strategies": self.strategies.state_dict(),
        }

    def _resume(self, path: Path) -> None:
        state = checkpoint.load(path, self.policy, self.optimizer)
        self.step, self.updates, self.saved = state["step"], state["updates"], state["step"]
        self.before, self.after = state["before"], state.get("after", {})
        self.sampler.load_state_dict(state["sampler"])
        self.objective.load_state_dict(state["objective"])
        self.strategies.load_state_dict(state["strategies"])

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    # ---- what is reported

    def _metrics(
        self, collected: Collected, batch: Batch, weights: Tensor, sums: dict[str, float], norms: list[float]
    ) -> dict[str, Any]:
        length = batch.length.double()
        active = weights != 0
        advantage = batch.advantage[active].double() if active.any() else torch.zeros(1)
        seconds = self.clock.take()
        metrics: dict[str, Any] = {
            **_reward_metrics(batch),
            **self.actor.metrics(batch),
            **signal(batch),
            **self.objective.diagnostics,
            "advantage/mean": advantage.mean().item(),
            "advantage/abs_mean": advantage.abs().mean().item(),
            "length/mean": length.mean().item(),
            "length/truncated_fraction": batch.truncated.double().mean().item(),
            "entropy/sampled": -(batch.old_log_probs * batch.mask).sum().item() / max(int(batch.mask.sum()), 1),
            **sums,
            "gradient_norm": float(np.mean(norms)) if norms else 0.0,
            "learning_rate": self.config.learning_rate_at(max(self.updates - 1, 0)),
            "updates": self.updates,
            "rollouts": len(batch),
            "unscored": dict(collected.causes),
            **{f"seconds/{k}": round(v, 4) for k, v in seconds.items()},
            "memory/peak_bytes": peak_memory_bytes(),
            **self.counters(),
        }
        if acting := seconds.get("rollout"):
            metrics["rate/actions_per_second"] = round(batch.mask.sum().item() / acting, 2)
            metrics["rate/rollouts_per_second"] = round(len(batch) / acting, 2)
        if self.checked and self.step == 0:
            metrics["self_check/worst_gap"] = self.checked.worst
            metrics["self_check/not_compared"] = self.checked.excluded
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            for tracker in self.trackers:
                tracker.log(self.step, metrics)
            self.report(self.step, metrics)

    def _save_rollouts(self, collected: Collected, batch: Batch, weights: Tensor) -> None:
        count = min(self.config.save_rollouts * 2, len(collected.rollouts))
        if not count or not self.accelerator.is_main_process:
            return
        rows = torch.arange(count)
        few = collected.rollouts.index(rows)
        local, local_weights = _local(batch, weights, collected.mine, few.mask.shape[1])
        folder = self.run_dir / "rollouts" / f"step-{self.step + 1:06d}"
        run_log.save_rollouts(folder, few, self.policy.action_labels(few), local.index(rows), local_weights[rows])


def _local(batch: Batch, weights: Tensor, mine: Tensor, width: int) -> tuple[Batch, Tensor]:
    """This rank's rows in their local order, `T` cut to the local width (the rest is padding)."""
    local = batch.index(mine)
    cut: dict[str, Any] = {
        n: getattr(local, n)[:, :width] for n in ("mask", "old_log_probs", "advantage", "loss_mask", "owner")
    }
    cut["columns"] = {k: v[:, :width] if v.dim() == 2 else v for k, v in local.columns.items()}
    if local.actions is not None:
        cut["actions"] = local.actions[:, :width]
    return replace(local, **cut), weights[mine][:, :width]


def _reward_metrics(batch: Batch) -> dict[str, float]:
    metrics = {}
    columns = {"reward": batch.reward, **{f"reward/{k}": v for k, v in batch.components.items()}}
    for name, values in columns.items():
        scored = values[~values.isnan()].double()
        if len(scored):
            metrics[f"{name}/mean"] = scored.mean().item()
            metrics[f"{name}/std"] = scored.std().item() if len(scored) > 1 else 0.0
    metrics["reward/unscored_fraction"] = batch.reward.isnan().double().mean().item()
    if batch.success is not None and not batch.success.isnan().all():
        success = batch.success.nan_to_num(0)
        metrics["success"] = success.double().mean().item()
        solved = group_extreme(success, batch.group)[representatives(batch.group)]
        metrics["success/pass@group"] = solved.double().mean().item()
    return metrics


def _seed_everything(number: int) -> None:
    """User code that draws from a global generator sees the same numbers after a resume."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
