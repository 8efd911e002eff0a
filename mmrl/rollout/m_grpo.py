"""A main agent that calls sub-agents: each call is a rollout, and all learn from what the main one reached."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.episodes import COLUMNS, episodes, last_parts
from mmrl.randomness import Key
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.rollout.proposing import asking
from mmrl.stages import LANGUAGE, stage

TASK = "{task}"
RESULTS = "So far you wrote:\n{work}\n\nYour assistants found:\n{results}\n\nGo on from there."


def kept_calls(call: Tensor, episode: Tensor, most: int, key: Key) -> Tensor:
    """(B,) bool: of the rows `call (B,)` of each episode at most `most`, drawn evenly."""
    keep = torch.zeros_like(call)
    for number in torch.unique(episode[call]).tolist():
        rows = (call & (episode == number)).nonzero().squeeze(1)
        draw = key.at(member=int(number), purpose="m_grpo calls").generator()
        keep[rows[torch.randperm(len(rows), generator=draw)[:most].to(rows.device)]] = True
    return keep


@stage(
    "rollout",
    "m_grpo",
    paper="M-GRPO: hierarchical multi-agent GRPO, arXiv 2511.13288; code AQ-MedAI/MrlX",
    formula="calls in a main row: a row for each ~ pi(. | its task), then a main row ~ pi(. | q, row, results), at "
    "most `turns` times; of an episode's calls `calls` train",
    confidence="partly",
    modalities=LANGUAGE,
)
class MGrpo(Strategy):
    """The policy hands out tasks in its answer, answers them as its own assistants, and goes on with what they found.

    begin, end  what a call stands between in a main row; one without words is none
    calls       at most so many are answered for a main row, and of an episode's calls at most so many train, drawn
                evenly: the paper's alignment to a fixed number. Where it fills up with copies that weigh less, the
                gradient is that of the calls alone, so none are made
    turns       how often an episode may call
    task        what a sub-agent is asked in place of the user's words, {task} in it; it sees the pictures
    results     what is put behind the user's words to go on, {work} and {results} in it

    Columns: `episode` and `part` (B,) as in `mmrl.objective.episodes`; `sub (B,)` is 1 on calls, 2 on malformed ones,
    which say nothing or were cut. Pair it with advantage `m_grpo`. One policy is all agents; the paper trains one of
    each kind. Evaluation calls nobody. Source: abstract for the groups and the alignment, the released code for what a
    call is worth.
    """

    origins = (SHOWN,)
    columns = COLUMNS | {"called": 0.0}
    made = ("sub",)
    reads_texts = True

    def __init__(
        self,
        *,
        begin: str = "<call>",
        end: str = "</call>",
        calls: int = 4,
        turns: int = 1,
        task: str = TASK,
        results: str = RESULTS,
    ) -> None:
        if calls < 1 or turns < 1 or not begin or not end:
            raise ConfigError(
                f"rollout 'm_grpo': calls={calls}, turns={turns}, begin={begin!r}, end={end!r}; expected at least 1, "
                "and two marks"
            )
        filled(task, "rollout 'm_grpo': task", task="")
        filled(results, "rollout 'm_grpo': results", work="", results="")
        self.begin, self.end, self.most, self.turns = begin, end, calls, turns
        self.task, self.results = task, results
        self._called: dict[tuple[int, int], list[str]] = {}
        self._answered: set[tuple[int, int]] = set()

    def tasks(self, text: str) -> list[str]:
        """What a main row asks of its assistants."""
        found = re.findall(re.escape(self.begin) + "(.*?)" + re.escape(self.end), text, re.DOTALL)
        return [task.strip() for task in found if task.strip()][: self.most]

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._called, self._answered = {}, set()
        ends = last_parts(batch, batch["called"] == 0)
        asks: list[Ask] = []
        for row in (ends & (batch.source == 0)).nonzero().squeeze(1).tolist():
            asks += self._next(batch, row, step)
        return Plan(asks, counted=ends, trained=self._trained(batch, step.key))

    def _next(self, batch: Batch, row: int, step: Step) -> list[Ask]:
        """Calls of a main row that was not read yet, or its next part once they were answered."""
        group, member = address = (int(batch.group[row]), int(batch.member[row]))
        begun, part = float(batch["episode"][row]), float(batch["part"][row])
        episode = float(member) if begun < 0 else begun
        if address not in self._called:
            room = part < 2 * self.turns
            self._called[address] = self.tasks(step.texts.get(address, "")) if room else []
            columns = {"episode": episode, "part": part + 1, "called": 1.0}
            return [
                Ask(1, group=group, note=("task", task), trains="shown", columns=columns)
                for task in self._called[address]
            ]
        if not self._called[address] or address in self._answered:
            return []
        self._answered.add(address)
        calls = (batch.group == group) & (batch["episode"] == episode) & (batch["part"] == part + 1)
        answers = tuple(step.texts.get((group, m), "") for m in sorted(batch.member[calls].tolist()))
        columns = {"episode": episode, "part": part + 2}
        note = ("results", step.texts.get(address, ""), answers)
        return [Ask(1, group=group, note=note, trains="shown", columns=columns)]

    def _trained(self, batch: Batch, key: Key) -> Tensor:
        call = batch["called"] > 0
        return ~call | kept_calls(call, episodes(batch), self.most, key)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        if ask.note[0] == "task":
            return asking(prompt, filled(self.task, "m_grpo", task=ask.note[1]), "call")
        _, work, answers = ask.note
        listed = "\n".join(f"{i}. {answer.strip()}" for i, answer in enumerate(answers, 1))
        return with_text(prompt, filled(self.results, "m_grpo", work=work, results=listed), "results")

    def make(self, batch: Batch) -> dict[str, Tensor]:
        malformed = batch.truncated | (batch.length <= 1)
        return {"sub": torch.where(batch["called"] > 0, 1.0 + malformed.to(batch.reward), 0.0)}
