"""Answers that outgrow their context are summed up by the policy itself and go on from the summary."""

from __future__ import annotations

import torch

from mmrl.errors import ConfigError
from mmrl.objective.episodes import COLUMNS, last_parts, with_any
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.origins import SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

SUMMARISE = (
    "So far you wrote:\n{work}\n\nThere is no room for more. Sum up what matters of it for whoever goes on: what is "
    "known, what was tried, and what comes next. Do not answer yet."
)
CONTINUE = "You have begun to work on this. Where you stand:\n{summary}\n\nGo on from there."


@stage(
    "rollout",
    "supo",
    paper="SUPO: summarization augmented policy optimization, arXiv 2510.06727",
    formula="a row cut at its limit: m ~ pi(. | q, row), then a row ~ pi(. | q, m), at most `summaries` times; all "
    "rows of an episode train under what they saw, with the advantage of its last one",
    confidence="partly",
    modalities=LANGUAGE,
)
class Supo(Strategy):
    """A rollout may be longer than the context: each piece is a row, and so is each summary between two of them.

    summaries  how often an answer may be summed up; one that is still cut afterwards stays in the baseline, as the
               wrong answer that it is, and does not train
    summarise  what is put behind the user's words to have the summary, {work} in it
    go_on      the same for the next piece, {summary} in it

    `policy.max_new_tokens` is the room of a piece. Columns: `episode (B,)`, the member that began, -1 on that itself,
    and `part (B,)`, 0 for the first piece, 1 for its summary, 2 for the next piece and so on. Pair it with advantage
    `supo`. Pictures stay in every prompt. Pieces and summaries are scored like answers, which nothing reads; samplers
    judge a prompt by its first pieces. Evaluation never sums up: its answers have to fit. Source: algorithms 1 and 2
    and equation 3 as two independent re-implementations have them (the authors released none). There the last turn
    before the limit is dropped and the summary is asked as a further turn; here the piece stays whole and is quoted.
    """

    origins = (SHOWN,)
    columns = COLUMNS

    def __init__(self, *, summaries: int = 7, summarise: str = SUMMARISE, go_on: str = CONTINUE) -> None:
        if summaries < 1:
            raise ConfigError(f"rollout 'supo': summaries={summaries}; expected at least 1")
        filled(summarise, "rollout 'supo': summarise", work="")
        filled(go_on, "rollout 'supo': go_on", summary="")
        self.summaries, self.summarise, self.go_on = summaries, summarise, go_on
        self._followed: set[tuple[int, int]] = set()

    def join(self, batch: Batch, step: Step) -> Plan | None:
        if step.round == 1:
            self._followed = set()
        last, summary = last_parts(batch, torch.ones_like(batch.counted)), batch["part"] % 2 == 1
        room = batch["part"] < 2 * self.summaries
        open_ = last & (batch.source == 0) & (summary | (batch.truncated & room))
        asks = [self._next(batch, row) for row in open_.nonzero().squeeze(1).tolist()]
        trained = with_any(last & ~summary & ~batch.truncated, batch)
        return Plan([ask for ask in asks if ask is not None], counted=last, trained=trained)

    def _next(self, batch: Batch, row: int) -> Ask | None:
        """What follows a row, once."""
        address = (int(batch.group[row]), int(batch.member[row]))
        if address in self._followed:
            return None
        self._followed.add(address)
        begun, part = float(batch["episode"][row]), float(batch["part"][row])
        columns = {"episode": float(address[1]) if begun < 0 else begun, "part": part + 1}
        return Ask(1, group=address[0], note=(part % 2 == 1, address[1]), trains="shown", columns=columns)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        """The prompt with the piece to sum up, or with the summary to go on from; None where nothing was written."""
        assert rows is not None
        summed, member = ask.note
        text = str(rows.outputs[rows.member.tolist().index(member)]).strip()
        if not text:
            return None
        if summed:
            return with_text(prompt, filled(self.go_on, "supo", summary=text), "summary")
        return with_text(prompt, filled(self.summarise, "supo", work=text), "work")
