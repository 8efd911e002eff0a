"""Questions with the passage that answers them, by the policy, for the policy without the passage."""

from __future__ import annotations

import torch

from mmrl.objective.groups import representatives
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import holds, worth
from mmrl.rollout.plan import Ask, Plan, Step
from mmrl.rollout.proposing import CHECKS, MEMBER, SOLVES, Proposal, Proposing, asking, tagged
from mmrl.stages import LANGUAGE, stage

INVITATION = (
    "Write a question with one short answer, and the facts from which the answer follows: <evidence>...</evidence> "
    "<question>...</question> <answer>...</answer>. The question must not hold the answer."
)
WITH_EVIDENCE = "{evidence}\n\n{question}"


@stage(
    "rollout",
    "search_self_play",
    paper="Search Self-play (SSP), arXiv 2510.18821",
    formula="(D, q, a) ~ pi; valid iff pi(. | q, D) gives a; then o ~ pi(. | q) train, and q by shaping `proposals`",
    confidence="partly",
    modalities=LANGUAGE,
)
class SearchSelfPlay(Proposing):
    """The policy writes a question with evidence; only where its own answer with the evidence is right is it asked.

    proposers, proposals, solvers  groups that write, questions of each, answers to a valid question
    checks                         answers with the evidence, of which one must be right

    Answers that check neither count nor train. A question that holds its answer is refused. The authors' proposer
    searches the web for its evidence; here it writes the evidence, or finds it through an `environment` of yours.
    Source: Alibaba-Quark/SSP for the reward, abstract for validity.
    """

    def __init__(
        self, *, proposers: int = 2, proposals: int = 4, solvers: int | None = None, checks: int = 1
    ) -> None:  # fmt: skip
        super().__init__(proposers=proposers, proposals=proposals, solvers=solvers)
        self.checks = checks
        self._posed: dict[tuple[int, int], Proposal] = {}

    def invite(self, prompt: Prompt) -> Prompt:
        return asking(prompt, INVITATION, "propose")

    def read(self, text: str, seed: str) -> Proposal | None:
        question, answer, evidence = (tagged(text, tag) for tag in ("question", "answer", "evidence"))
        if not question or not answer or not evidence or holds(question, answer):
            return None
        return Proposal(question, answer, evidence)

    def ask(self, step: Step) -> Plan | None:
        self._posed = {}
        return super().ask(step)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        checking = batch[CHECKS] > 0
        new = self.unread(batch, step)
        self._posed |= {(g, m): proposal for g, m, proposal in new}
        asks = [
            Ask(self.checks, index=step.groups[g], note=(proposal, "checked"), trains="shown",
                columns={SOLVES: float(g), MEMBER: float(m), CHECKS: 1.0})
            for g, m, proposal in new
        ]  # fmt: skip
        asks += [
            Ask(self.solvers or step.group_size, index=step.groups[g], note=(self._posed.pop((g, m)),), trains="shown",
                columns={SOLVES: float(g), MEMBER: float(m)})
            for g, m in self._valid(batch, checking)
        ]  # fmt: skip
        return Plan(asks, counted=~checking, trained=~checking)

    def _valid(self, batch: Batch, checking: torch.Tensor) -> list[tuple[int, int]]:
        """Proposals that were answered with their evidence and not asked yet."""
        right = checking & (worth(batch) > 0.5)
        rows = [r for r in representatives(batch.group).tolist() if right[batch.group == batch.group[r]].any()]
        return [key for r in rows if (key := (int(batch[SOLVES][r]), int(batch[MEMBER][r]))) in self._posed]

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        if ask.note == "invite" or len(ask.note) == 1:
            return super().shown(ask, prompt, rows)
        proposal = ask.note[0]
        text = WITH_EVIDENCE.format(evidence=proposal.evidence, question=proposal.question)
        return asking(prompt, text, "checked", proposal.answer)
