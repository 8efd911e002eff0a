"""The half of a language policy that has to do with its engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrl.policies.base import Policy
from mmrl.policies.language import teacher
from mmrl.policies.language.config import LOCAL, LanguagePolicyConfig
from mmrl.policies.language.conversing import Conversation
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.engines.base import Setting
from mmrl.policies.language.engines.bridge import Bridge, Write, written
from mmrl.policies.language.engines.local import Local
from mmrl.policies.language.engines.names import engine_class
from mmrl.policies.language.engines.rows import SAMPLER, corrected
from mmrl.policies.language.likelihoods import Tokens, likelihood_class
from mmrl.policies.language.writing import WritingPlan
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts
from mmrl.rollout.environments.base import Surroundings


class ActsThroughEngine(Policy):
    """bridge  to the engine that writes this policy's responses"""

    bridge: Bridge
    config: Any
    likelihood: Tokens

    @classmethod
    def columns_of(cls, config: LanguagePolicyConfig) -> dict[str, str]:
        engine_class(config)
        made = {SAMPLER: f"engine {config.engine_name!r}"} if config.old_log_probs == "trainer" else {}
        return super().columns_of(config) | made

    @staticmethod
    def check_engine(config: LanguagePolicyConfig) -> None:
        """Raise ConfigError where the engine cannot be made here, before a model is loaded."""
        engine_class(config, here=True)

    def bridged(self: Any) -> Bridge:
        """To the engine of the configuration, made as this policy is."""
        return Bridge(
            Setting(
                self.config, self.processor, self.family, self.stopping, lambda: self.inner, self._template,
                self._frames, weights=self._weights,
            )
        )  # fmt: skip

    @property
    def rescored(self) -> bool:
        """Whether responses are scored once more when they are written: what the sampler says is not what trains."""
        return self.config.old_log_probs == "trainer" or not self.likelihood.sampled

    def rescore(
        self: Any, rows: Rollouts, plan: WritingPlan, shown: Sequence[Encoded], media: Sequence[Any] | None = None
    ) -> None:
        """Give rows that were just written the trainer's log-probs; see `rows.corrected`. In `acting`."""
        parts = self.micro_batches(rows, torch.arange(len(rows)), self.config.decode_rows)
        corrected(rows, plan, shown, parts, partial(self._score, self.inner), media)

    @property
    def acts_apart(self) -> bool:
        return self.bridge.capabilities.own_weights

    @property
    def engine_gap(self) -> float:
        """None is too large where the sampler's log-probs are of something else than the likelihood's."""
        return self.config.engine_gap if self.likelihood.sampled else float("inf")

    @property
    def version(self) -> int:
        return self.bridge.version

    def write_ahead(
        self: Any, requests: Sequence[Request], key: Key, surroundings: Surroundings | None = None
    ) -> None:  # fmt: skip
        if surroundings is not None:
            talk = Conversation.of(self, requests, key)
            asked = talk.asked
            work: Callable[[Write], Any] = partial(talk.speak, surroundings)
        else:
            plan = WritingPlan.of(requests, self.config.max_new_tokens)
            contexts = plan.contexts([self.encode(request.shown or request.prompt) for request in requests], {})
            asked = [context.prompt.id for context in contexts]
            work = partial(written, contexts, plan.budget, plan.draws(key))
        with self.acting():
            self.bridge.begin(key, asked, self.inner.model, work)

    @torch.no_grad()
    def by_teacher(self: Any, requests: Sequence[Request], key: Key) -> Rollouts:
        """Written here, whatever engine writes the policy's rows; the teacher looks at pictures with its own tower."""
        prompts = {request.prompt.id: request.prompt for request in requests}
        encoded = {name: self.encode(prompt) for name, prompt in prompts.items()}
        plan = WritingPlan.of(requests, self.config.max_new_tokens)
        with self._weights(teacher.WEIGHTS) as model:
            setting = Setting(
                self.config, self.processor, self.family, self.stopping, lambda: model, self._template, self._frames
            )
            contexts = plan.contexts([encoded[request.prompt.id] for request in requests], {})
            made = Local(setting).write(contexts, plan.budget, plan.draws(key))
        return plan.record(made, prompts, encoded, self.processor.tokenizer)

    @classmethod
    def check_writer(cls, settings: Any, asked_by: str) -> None:
        teacher.required(settings, asked_by)

    def leave_ahead(self) -> None:
        self.bridge.ahead.close()

    def turn_texts(self: Any, rollouts: Rollouts) -> list[list[str]]:
        turn = rollouts.columns.get("turn", torch.zeros_like(rollouts.actions))
        said = []
        for ids, acted, runs in zip(rollouts.actions, rollouts.mask, turn, strict=True):
            parts = [ids[acted & (runs == run)].tolist() for run in range(int(runs.max()) + 1)]
            said.append(self.processor.tokenizer.batch_decode(parts, skip_special_tokens=True))
        return said

    def after_update(self) -> None:
        self.bridge.version += 1

    def after_batch(self) -> None:
        self.bridge.remembered("after_batch", None)

    def trained_tensors(self) -> dict[str, Tensor]:
        return super().trained_tensors() | self.bridge.tensors()

    @classmethod
    def no_turns(cls, config: LanguagePolicyConfig) -> str | None:
        turns, sampled = engine_class(config).capabilities.turns, likelihood_class(config.likelihood).sampled
        refusal = {
            "engine": (not turns, config.engine_name, f"{LOCAL}, vllm or another that says turns"),
            "likelihood": (not sampled, config.likelihood, "tokens"),
        }
        for key, (refused, given, usual) in refusal.items():
            if refused:
                return (
                    f"policy.{key}={given!r}: responses of several turns, in an environment, are not "
                    f"written so yet; expected {usual}"
                )
        return None
