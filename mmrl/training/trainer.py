"""The training loop: the same verbs for every modality. The policy knows the model, the objective the maths.

What is left out on purpose: losses, media and prompts live in their own rooms; a new method never comes here.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.errors import ConfigError, MMRLError, NonFiniteError, SelfCheckError, StorageError
from mmrl.objective import Objective
from mmrl.objective.vocabulary import name_tokens
from mmrl.policies.base import Policy
from mmrl.policies.quantized import refuse_shards
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.actor import Actor
from mmrl.rollout.environments.base import Surroundings
from mmrl.rollout.nesting import Nested
from mmrl.selection.prompts import Sampler, Shuffled, introduce, take_up, unhelped
from mmrl.training import checkpoint, engine_check, run_log
from mmrl.training.ahead import Ahead
from mmrl.training.collect import Collected, Collector
from mmrl.training.combining import combined, mixture_of
from mmrl.training.compiled import compile_blocks
from mmrl.training.config import TrainingConfig
from mmrl.training.diagnosis import Doctor
from mmrl.training.digests import restoring
from mmrl.training.distributed import (
    counted_by_all,
    even_micro_batches,
    gather_objects,
    is_agreed,
    make_accelerator,
    together,
)
from mmrl.training.evaluation import Score, evaluate, tell_before
from mmrl.training.filling import Columns
from mmrl.training.finite import gradient_problem, named_rows, refuse_weights, weight_problem
from mmrl.training.heap import Heap, settle
from mmrl.training.monitors import Monitor, reason
from mmrl.training.optimizer import MasterAdamW
from mmrl.training.passes import plan_passes
from mmrl.training.pieces import refuse_pieces
from mmrl.training.rates import clip_gradients, grouped, rates_by_part, set_rates
from mmrl.training.resume import go_back
from mmrl.training.saving import Saving
from mmrl.training.self_check import SelfCheck, Tolerance, compare
from mmrl.training.step_metrics import UpdateLog, batch_metrics, not_acted, speed_metrics, update_metrics
from mmrl.training.stopping import Stopping
from mmrl.training.timing import Clock
from mmrl.training.trackers import Tracker
from mmrl.training.update import Gradients, local_rows, passes_over

Report = Callable[[int, dict[str, Any]], None]
Kept = Callable[[int, Path], None]
NO_STEP = "the optimizer did not move. training.skip_nonfinite=true leaves such steps out and counts them"


@dataclass
class Result:
    """What a run came to.

    steps        done, those before a resume included
    before       held-out metrics of step 0
    after        of the last evaluation since; empty where there was none
    interrupted  whether a signal stopped it before its last step
    start        the step it went on from
    signal       its number
    ended        why a monitor stopped it before its last step; "" if none did
    not_acted    one sentence on the ratio and trust region that changed nothing in any step; "" if they did
    folder       the run directory, once the run is over
    """

    steps: int
    before: dict[str, float]
    after: dict[str, float]
    interrupted: bool = False
    start: int = 0
    signal: int | None = None
    not_acted: str = ""
    ended: str = ""
    folder: Path | None = None


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
    kept     called with (step, folder) where rollouts of a step, or of an evaluation, were written
    counters  further numbers of this process for each step's metrics
    monitors  look at the run between its steps, and may end it

    `go_on`: what to do in place of a resume, of a learner without checkpoints; `wants`: what only the user can give
    """

    go_on: ClassVar[str] = ""
    wants: ClassVar[str] = ""

    def __init__(
        self, policy: Policy, objective: Objective, prompts: Sequence[Prompt], score: Score, config: TrainingConfig,
        run_dir: str | Path, *, eval_prompts: Sequence[Prompt] = (), accelerator: Accelerator | None = None,
        sampler: Sampler | None = None, rollout: Any = (), environment: Surroundings | None = None,
        trackers: Sequence[Tracker] = (),
        report: Report = lambda step, metrics: None, kept: Kept = lambda step, folder: None,
        counters: Callable[[], dict[str, float]] = dict,
        monitors: Sequence[Monitor] = (),
    ):  # fmt: skip
        if not len(prompts):
            raise ConfigError("the training data set is empty")
        self.accelerator = accelerator or make_accelerator(config.sharding, config.patience())
        if self.accelerator.device.type == "cpu":
            settle(Heap.SMALL if getattr(policy.config, "gradient_checkpointing", False) else Heap.FAST)
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
        self.clock, self.step, self.updates = Clock(), 0, 0
        self.stopping = Stopping(self.accelerator)
        self.saving = Saving(config)
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.kept, self.doctor = kept, Doctor(policy.modality)
        self.saved = 0
        self.acted: dict[str, float] = {}
        self.counters, self.monitors, self.ended = counters, list(monitors), ""
        trained = [p for p in policy.module.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("the policy has no trainable parameter; give it a LoRA section or unfreeze something")
        if any(p.dtype == torch.float16 for p in trained):
            raise ConfigError(
                "the trained weights are float16, whose gradients vanish or overflow without scaling: choose "
                "policy.dtype=bfloat16, or policy.dtype=float32 with policy.autocast=float16"
            )
        refuse_shards(policy.module, self.accelerator.is_fsdp2)
        if config.compile:
            compile_blocks(policy.inner)
        self.adamw = MasterAdamW(
            grouped(policy),
            config.optimizer,
            module=policy.inner,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
        policy.module, self.optimizer = self.accelerator.prepare(policy.module, self.adamw)
        self.sampler: Sampler = sampler or Shuffled()
        self.strategies = Nested.of(rollout)
        name_tokens(objective.stages, lambda text: policy.token_ids(text))
        together(lambda: introduce(prompts, self.sampler, *self.strategies.strategies), self.accelerator)
        plan = plan_passes(objective, type(policy), self.strategies, policy.config)
        self.actor = Actor(policy, environment)
        self.columns = Columns(self.actor, plan, score, config, self.accelerator, self.clock)
        self.collector = Collector(
            self.actor, objective, self.columns, self.strategies, prompts, score, self.sampler, config,
            self.accelerator, self.clock,
        )  # fmt: skip
        refuse_pieces(type(policy), objective, plan.update, config.micro_batch_actions)
        self.gradients = Gradients(policy, objective, plan.update, config, self.accelerator)
        self.mixture = mixture_of(objective)
        self.checked: SelfCheck | None = None
        self.ahead = Ahead(self.collector, policy, config)

    # ---- the loop

    def train(self, resume: Path | None = None) -> Result:
        """Run to `config.steps`. Ctrl-C finishes the step, saves and stops; so do the other signals of `Stopping`."""
        if resume:
            self._resume(resume)
        together(lambda: refuse_weights(self.policy.module.named_parameters(), "before training"), self.accelerator)
        start = self.step
        with self.stopping, self._guarded():
            if self.step == 0:
                self.before = self.evaluate(self.stopping.halted)
                if not self.stopping.agreed:
                    tell_before(self.before, self.accelerator)
                    self.saving.check_name({f"eval/{k}": v for k, v in self.before.items()}, evaluated=True)
            for monitor in self.monitors:
                monitor.begin(self.step)
            while self.step < self.config.steps and not self.stopping.agreed and not self.ended:
                # notebooks replace sys.stderr by something without a file descriptor
                faulthandler.dump_traceback_later(self.config.watchdog_seconds, file=sys.__stderr__)
                metrics = self._step_or_save()
                self.step += 1
                metrics |= self._watched(metrics)
                if self._due(self.config.eval_every):
                    self.after = self.evaluate()
                    metrics |= {f"eval/{k}": v for k, v in self.after.items()}
                best = self.saving.is_best(self.step, metrics)
                self._log(metrics)
                save_now = self.stopping.agree(best or self.saving.minutes_are_over())
                if save_now or self.stopping.agreed or self.ended or self.saving.due(self.step):
                    self.save(best=best)
        interrupted = bool(self.stopping.agreed) and self.step < self.config.steps
        asked = self.stopping.agreed
        told = not_acted([self.acted])
        return Result(self.step, self.before, self.after, interrupted, start, asked, told, self.ended)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except MMRLError as error:
            if self.saved and not getattr(error, "__notes__", ()):
                error.add_note(f"step {self.saved} is saved: continue with --resume {self.run_dir}")
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.ahead.close()

    def _step_or_save(self) -> dict[str, Any]:
        """A step. If it fails before it moved the weights, what was trained so far is saved first."""
        state, updates = self._state(), self.updates
        try:
            return self.train_step()
        except Exception as error:
            # to save is for all ranks: only after an error that all of them raise
            as_one = self.accelerator.num_processes == 1 or is_agreed(error) or isinstance(error, NonFiniteError)
            if as_one and self.step > self.saved and self.updates == updates:
                # those that raise for another rank do not know its reason
                spoilt = any(gather_objects(getattr(error, "acting", False), self.accelerator))
                if spoilt:
                    error.add_note(f"in step {self.step + 1}; the weights of step {self.step} are not saved")
                else:
                    with suppress(StorageError):  # a disk that is full; the first error says why the run ends
                        self.save(state)
            if self.saved:
                error.add_note(f"step {self.saved} is saved: continue with --resume {self.run_dir}")
            raise

    def train_step(self) -> dict[str, Any]:
        """One rollout batch: collect, prepare, update."""
        _seed_everything(Key(self.config.seed, self.step, purpose="global").number)
        self.ahead.ask(self.step)
        collected = self.collector.collect(self.step)
        stale = self.ahead.metrics(collected.rollouts)
        with self.clock("prepare"):
            batch = self.objective.assess(collected.batch)
            batch = self.columns.compare(collected.rollouts, collected.mine, batch)
            passes = passes_over(self.objective, batch, self.config)
            batch, weights = passes[0]
            self.sampler.observe(collected.indices, unhelped(batch))
            self.collector.announce([], self.step + 1)
        due = engine_check.is_due(self.step, self.config.check_every, self.policy)
        if due or self.checked is None:
            self.checked = self.self_check(collected.rollouts)
        log = UpdateLog()
        with self.clock("update"):
            for prepared in passes:
                self.update(collected.rollouts, *prepared, collected.mine, log)
            self.policy.after_batch()
        if self.step % self.config.save_rollouts_every == 0 or self.step == self.config.steps - 1:
            self._save_rollouts(collected, batch, weights)
        clip = engine_check.clip_range(self.objective.trust_region)
        apart = engine_check.gaps(batch, self.checked if due and self.policy.acts_apart else None, clip)
        return self._metrics(collected, batch, weights, log) | apart | stale

    def update(self, rollouts: Rollouts, batch: Batch, weights: Tensor, mine: Tensor, log: UpdateLog) -> None:
        """The optimizer steps of one pass over a rollout batch."""
        for update in range(int(batch.update.max()) + 1):
            if self.mixture is not None and self.mixture.due(self.updates):
                added = combined(self.gradients, self.mixture, rollouts, batch, weights, mine, update)
            else:
                added = self.gradients.add(rollouts, batch, weights, mine, update)
            if not added.passes:
                continue
            try:
                if added.problem:
                    raise NonFiniteError(f"the loss is not finite: {added.problem}")
                log.norms.append(self._optimizer_step(log.share(self.objective.learning_rate_factor(batch, update))))
            except NonFiniteError as error:
                where = f"step {self.step + 1}, optimizer step {update + 1}: {error}"
                if not self.config.skip_nonfinite:
                    rows = (batch.trained & (batch.update == update))[mine].nonzero().squeeze(1).tolist()
                    trained = "" if added.problem else f" (it trains {named_rows(rollouts, rows)})"
                    raise NonFiniteError(f"{where}{trained}; {NO_STEP}") from None
                log.skipped.append(where)
                self.optimizer.zero_grad(set_to_none=True)
            else:
                log.sums.append(added.sums)
                log.moved.append(self._moved())

    def _optimizer_step(self, share: float = 1.0) -> dict[str, float]:
        """Clip and step; returns the gradient's norms. Raises NonFiniteError before anything moves."""
        problem = gradient_problem(self.policy.module.named_parameters())
        if problem := next(filter(None, gather_objects(problem, self.accelerator)), None):
            raise NonFiniteError(f"{problem} is not finite")
        norms = clip_gradients(self.policy, self.accelerator, self.config.max_grad_norm)
        set_rates(self.optimizer, self.config, self.updates, share)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.after_update()
        self.updates += 1
        return norms

    def _moved(self) -> tuple[float, float]:
        """How many weights of this process the last optimizer step changed, of how many. Past the largest number that
        the model's precision has, the run is over: what it was before is in the last checkpoint."""
        moved = self.adamw.moved
        if moved is None:
            return 0.0, 0.0
        if not all(gather_objects(bool(moved.finite), self.accelerator)):
            raise NonFiniteError(
                f"{weight_problem(self.policy.module.named_parameters()) or 'weights of another rank'} are not finite "
                f"after step {self.step + 1}: the gradient was, so the step was too large; lower training.learning_rate"
            )
        return float(moved.changed), float(moved.total)

    # ---- trust

    def self_check(self, rollouts: Rollouts) -> SelfCheck:
        """What sampling and training find of a batch must agree; raises SelfCheckError if not."""
        pairs: list[Tensor] = []
        size = self.config.micro_batch_size
        with torch.no_grad():
            for part in even_micro_batches(self.policy, rollouts, size, self.accelerator):
                found = self.policy.replayed(rollouts.index(part))
                pairs = pairs or [each.new_zeros(len(rollouts), *each.shape[1:]) for each in found]
                for whole, each in zip(pairs, found, strict=True):
                    whole[part.to(whole.device)] = each
        allowed = Tolerance.of(self.policy.precision, self.config.self_check)
        shown = rollouts.replay.get("shown", torch.zeros_like(rollouts.source))
        apart = shown.to(rollouts.source.device).bool() | (rollouts.source > 0)
        old, new, mask = pairs
        check = compare(old, new, mask, allowed, shown=apart)
        check.step = self.step
        engine = engine_check.problem(check, rollouts, self.policy)
        problem = engine or (None if check.passed else str(check))
        failed = [c for c in gather_objects(problem, self.accelerator) if c]
        if engine:
            raise SelfCheckError(engine)
        check.raise_if_failed()
        if failed:
            raise ConfigError(f"another rank failed: {failed[0]}")
        return check

    def evaluate(self, halted: Callable[[], bool] | None = None) -> dict[str, float]:
        """Held-out scores of the policy as it stands; empty without evaluation prompts, and once it was halted."""
        if not len(self.eval_prompts):
            return {}
        with self.clock("evaluate"):
            scores, kept = evaluate(
                self.actor, self.eval_prompts, self.score, batch_size=self.config.eval_batch_size,
                accelerator=self.accelerator, samples=self.config.eval_samples, keep=self.config.save_rollouts,
                halted=halted,
            )  # fmt: skip
        if kept is not None and self.accelerator.is_main_process:
            folder = self.run_dir / "rollouts" / f"eval-{self.step:06d}"
            run_log.replace_rollouts(folder, kept, self.policy.action_labels(kept), None, None)
            self._show(self.step, folder)
        return scores

    def save(self, state: dict[str, Any] | None = None, *, best: bool = False) -> Path:
        """state  what `_state` gave at the end of the step; default: as of now"""
        with self.clock("save"):
            path = checkpoint.save(
                self.run_dir, self.step, self.policy, self.optimizer, state or self._state(), self.accelerator,
                self.config.keep_checkpoints, export=self.saving.exports(self.step), best=best,
            )  # fmt: skip
        self.saved = self.step
        self.saving.begin_interval()
        return path

    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides the policy and its optimizer."""
        return {
            "updates": self.updates,
            "acted": dict(self.acted),
            "before": self.before,
            "after": self.after,
            "sampler": self.sampler.state_dict(),
            "rows": len(self.collector.prompts),
            "objective": self.objective.state_dict(),
            **self.saving.state_dict(),
            "strategies": self.strategies.state_dict(),
            "ahead": self.ahead.state_dict(),
            "balance": self.collector.balance.state_dict(),
            "doctor": self.doctor.state_dict(),
        }

    def _resume(self, path: Path) -> None:
        state = checkpoint.load(path, self.policy, self.optimizer)
        if self.accelerator.is_main_process and path.resolve().parent.parent == self.run_dir.resolve():
            checkpoint.adopt(self.run_dir)
            go_back(self.run_dir, state["step"])
        with restoring(path):
            self.step, self.updates, self.saved = state["step"], int(state["updates"]), state["step"]
            self.before, self.after = dict(state["before"]), dict(state.get("after", {}))
            self.acted = dict(state.get("acted", {}))
            take_up(self.sampler, state, len(self.collector.prompts))
            self.objective.load_state_dict(state["objective"])
            self.strategies.load_state_dict(state.get("strategies", {}))
            self.saving.load_state_dict(state)
            self.ahead.load_state_dict(state.get("ahead", {}), self.step)
            self.collector.balance.load_state_dict(state.get("balance", {}))
            self.doctor.load_state_dict(state.get("doctor", {}))
            self._restored(state)

    def _restored(self, state: dict[str, Any]) -> None:
        """What `_state` of another learner adds."""

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or bool(self.ended) or bool(every and self.step % every == 0)

    def _watched(self, metrics: dict[str, Any]) -> dict[str, float]:
        """What the monitors say of the step that is over; the first rank's word ends the run on all."""
        if not self.monitors:
            return {}
        with self.clock("watch"):
            seen = [monitor.watch(self.step, metrics) for monitor in self.monitors]
        self.ended = gather_objects(reason(self.monitors), self.accelerator)[0]
        return {name: value for each in seen for name, value in each.items()}

    # ---- what is reported

    def _metrics(self, collected: Collected, batch: Batch, weights: Tensor, log: UpdateLog) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            **batch_metrics(batch, weights),
            **self.actor.metrics(batch),
            **self.objective.diagnostics,
            **update_metrics(gather_objects(log, self.accelerator), self.policy.precision),
            "learning_rate": log.shared * self.config.learning_rate_at(max(self.updates - 1, 0)),
            **rates_by_part(self.optimizer),
            "updates": self.updates,
            "rollouts": len(batch),
            "unscored": dict(collected.causes),
            **collected.told,
            "rows_by_source": self.collector.rows_by_source(collected, batch),
            **speed_metrics(batch, self.clock.take()),
            **self.counters(),
            **self.policy.told(counted_by_all(self.policy.counted(), self.accelerator)),
        }
        for name in (n for n in ("ratio/acted", "trust_region/acted", "updates/of_step") if n in metrics):
            self.acted[name] = max(metrics[name], self.acted.get(name, 0))
        if self.checked and self.step == 0:
            metrics["self_check/worst_gap"] = self.checked.worst
            metrics["self_check/not_compared"] = self.checked.excluded
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        if found := self.doctor(metrics):
            metrics["diagnosis"] = found
        if self.accelerator.is_main_process:
            for tracker in self.trackers:
                tracker.log(self.step, metrics)
            self.report(self.step, metrics)

    def _save_rollouts(self, collected: Collected, batch: Batch, weights: Tensor) -> None:
        rollouts = collected.rollouts
        rows = run_log.rows_to_keep(rollouts.group, rollouts.reward, self.config.save_rollouts)
        if not len(rows) or not self.accelerator.is_main_process:
            return
        few = rollouts.index(rows)
        local, local_weights = local_rows(batch, weights, collected.mine[rows], few.mask.shape[1])
        folder = self.run_dir / "rollouts" / f"step-{self.step + 1:06d}"
        run_log.replace_rollouts(folder, few, self.policy.action_labels(few), local, local_weights)
        self._show(self.step + 1, folder)

    def _show(self, step: int, folder: Path) -> None:
        """Rollouts that were written, to whoever watches."""
        for tracker in self.trackers:
            tracker.show(step, folder)
        self.kept(step, folder)


def _seed_everything(number: int) -> None:
    """User code that draws from a global generator sees the same numbers after a resume."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
