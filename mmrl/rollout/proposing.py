"""Prompts that the policy writes itself: who proposes, who checks, who solves, and what a proposal earned.

A proposer's rows are a group of their own. What each says is read, checked, and solved by a group opened for it, which
trains as any other; in the end shaping `proposals` pays the proposer by what the solvers came to. Every proposal is
made anew in its step, so there is nothing to save.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmrl.errors import ConfigError
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy

PROPOSES, SOLVES, MEMBER, CHECKS = "proposes", "proposal_group", "proposal_member", "checks_proposal"


@dataclass(frozen=True)
class Proposal:
    """A question, the answer that it should have, and what the answer rests on; None: nobody said."""

    question: str
    answer: str | None = None
    evidence: str | None = None


def tagged(text: str, tag: str) -> str | None:
    """What stands between the last pair of <tag> and </tag>; None for none, or for nothing but spaces in it."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return found[-1].strip() or None if found else None


def asking(prompt: Prompt, question: str, kind: str, answer: str | None = None) -> Prompt:
    """`prompt` with other words of the user and the same media; its id says so, and `bare` beside it is the prompt.

    answer  in place of its `solution`, to be met exactly
    """
    at = max((i for i, m in enumerate(prompt.messages) if m["role"] == "user"), default=None)
    if at is None:
        raise ConfigError(f"prompt {prompt.id!r}: nothing of it is said by the user, so no question can take its place")
    content: Any = prompt.messages[at]["content"]
    if not isinstance(content, str):
        content = [part for part in content if part.get("type") != "text"] + [{"type": "text", "text": question}]
    else:
        content = question
    messages = [dict(m, content=content) if i == at else m for i, m in enumerate(prompt.messages)]
    digest = hashlib.blake2b(f"{question}\x1f{answer}".encode(), digest_size=6).hexdigest()
    columns: Mapping[str, Any] = prompt.columns if answer is None else {
        **prompt.columns, "solution": answer, "task": "exact",
    }  # fmt: skip
    return replace(
        prompt, id=f"{prompt.id}+{kind}:{digest}", messages=messages, columns=dict(columns), beside={"bare": prompt}
    )


def without_media(prompt: Prompt) -> Prompt:
    """The prompt with its words alone."""
    messages = [dict(m, content=_words(m["content"])) for m in prompt.messages]
    return replace(prompt, messages=messages, images=[], videos=[])


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


class Proposing(Strategy):
    """What all of them share. One of your own says what a proposer is shown, and how its words are read:

        @stage("rollout", "mine", paper="-", confidence="ours")
        class Mine(Proposing):
            def invite(self, prompt): return asking(prompt, "Write a question ...", "propose")
            def read(self, text, seed): return Proposal(question, answer) or None

    proposers  prompts of a step from which proposals are made, besides the prompts of the step
    proposals  proposals of each
    solvers    answers to each proposal; None: `training.group_size`
    """

    origins = (OWN, SHOWN)
    columns = {PROPOSES: 0.0, SOLVES: -1.0, MEMBER: -1.0, CHECKS: 0.0}
    reads_texts = True

    def __init__(self, *, proposers: int = 2, proposals: int = 4, solvers: int | None = None) -> None:
        if proposers < 1 or proposals < 2 or (solvers is not None and solvers < 2):
            raise ConfigError(
                f"a proposing strategy: proposers={proposers}, proposals={proposals}, solvers={solvers}; expected at "
                "least 1, 2 and 2"
            )
        self.proposers, self.proposals, self.solvers = proposers, proposals, solvers
        self._read: set[tuple[int, int]] = set()
        self._said: set[tuple[int, str]] = set()

    # ---- what a method says

    def invite(self, prompt: Prompt) -> Prompt:
        """What a proposer sees, made of a prompt of the data set."""
        raise NotImplementedError

    def read(self, text: str, seed: str) -> Proposal | None:
        """The proposal in a proposer's words; None where there is none. `seed`: the words of the prompt it came of."""
        raise NotImplementedError

    def pose(self, prompt: Prompt, proposal: Proposal) -> Prompt:
        """What solvers see."""
        return asking(prompt, proposal.question, "proposed", proposal.answer)

    # ---- rounds

    def ask(self, step: Step) -> Plan | None:
        self._read, self._said = set(), set()
        asks = [Ask(step.group_size, index=i) for i in step.draw(step.prompts_per_step)]
        shown: dict[str, float] = {PROPOSES: 1.0}
        seeds = step.draw(self.proposers)
        return Plan(
            [*asks, *(Ask(self.proposals, index=i, note="invite", trains="shown", columns=shown) for i in seeds)]
        )

    def join(self, batch: Batch, step: Step) -> Plan | None:
        asks = [
            Ask(self.solvers or step.group_size, index=step.groups[g], note=(found,), trains="shown",
                columns={SOLVES: float(g), MEMBER: float(m)})
            for g, m, found in self.unread(batch, step)
        ]  # fmt: skip
        return Plan(asks) if asks else None

    def unread(self, batch: Batch, step: Step) -> list[tuple[int, int, Proposal]]:
        """(group, member, proposal) of proposers that were not read yet; of equal questions of a group the first."""
        found = []
        for row in (batch[PROPOSES] > 0).nonzero().squeeze(1).tolist():
            group, member = int(batch.group[row]), int(batch.member[row])
            if (group, member) in self._read:
                continue
            self._read.add((group, member))
            proposal = self.read(step.texts.get((group, member), ""), step.asked.get(group, ""))
            if proposal is not None and (group, proposal.question) not in self._said:
                self._said.add((group, proposal.question))
                found.append((group, member, proposal))
        return sorted(found, key=lambda each: each[:2])

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        return self.invite(prompt) if ask.note == "invite" else self.pose(prompt, ask.note[0])
