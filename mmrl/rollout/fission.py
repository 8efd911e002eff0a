"""A failed answer becomes part of the prompt, with word that it is wrong; what recovers from it trains."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import failed_groups, filled, latest, with_text
from mmrl.rollout.origins import SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

FEEDBACK = "An earlier answer:\n{attempt}\n\nThis is wrong. Find the mistake and answer again."


@stage(
    "rollout",
    "fission_grpo",
    paper="Fission-GRPO, arXiv 2601.15625",
    formula="for at most `most` groups nobody solved: a group ~ pi(. | q, failed answer, feedback) in the place of the "
    "failed one",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class Fission(Strategy):
    """Failures are asked to recover: the group sees one of its own failed answers and what is said of it.

    count     members of a recovery group; the group's size if not given
    most      groups of a step that are asked so, the latest first
    feedback  what is put behind the user's words, {attempt} in it

    Column `recovery (B,)` is 1 on them; they train under the prompt that they saw, and the failed group leaves, whose
    advantages are 0. Source: abstract and README of zxzadm/Fission-GRPO, which has no code yet: sizes are ours, and
    recoveries are asked in the same step, so nothing is stale.
    """

    origins = (SHOWN,)
    columns = {"recovery": 0.0}

    def __init__(self, *, count: int | None = None, most: int = 8, feedback: str = FEEDBACK) -> None:
        if most < 1 or (count is not None and count < 2):
            raise ConfigError(
                f"rollout 'fission_grpo': count={count}, most={most}; expected at least 2, and at least 1"
            )
        filled(feedback, "rollout 'fission_grpo'", attempt="")
        self.count, self.most, self.feedback = count, most, feedback
        self._tried: set[int] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._tried = set()
        keep = latest(batch, "recovery")
        new = [g for g in failed_groups(batch) if g not in self._tried][::-1]
        new = new[: self.most - len(self._tried)] if len(self._tried) < self.most else []
        self._tried |= set(new)
        size = self.count or step.group_size
        asks = [Ask(size, group=g, note="recover", trains="shown", columns={"recovery": 1.0}) for g in sorted(new)]
        return Plan(asks, counted=keep, trained=keep)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        assert rows is not None
        failed = [str(o).strip() for o, r in zip(rows.outputs, rows.reward.tolist(), strict=True) if not r > 0]  # type: ignore[union-attr]
        attempt = next((text for text in failed if text), None)
        if attempt is None:
            return None
        return with_text(prompt, filled(self.feedback, "fission_grpo", attempt=attempt), "feedback")
