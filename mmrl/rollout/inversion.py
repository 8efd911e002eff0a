"""Questions asked the other way round: TW-GRPO names the options that are wrong."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrl.errors import ConfigError
from mmrl.record import Prompt, Rollouts
from mmrl.rollout.hints import with_text
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

INVERSION = "Answer the opposite question: name every option that is NOT right, by its letter, as in A, C."


def others(columns: Mapping[str, Any]) -> list[str] | None:
    """The letters of all options but the right one; None for a row that is no question with one right letter."""
    options, solution = columns.get("options"), columns.get("solution")
    if columns.get("task", "choice") != "choice" or not isinstance(solution, str):
        return None
    if isinstance(options, Mapping):
        letters = [str(letter) for letter in options]
    elif isinstance(options, Sequence) and not isinstance(options, str):
        letters = list(string.ascii_uppercase[: len(options)])
    else:
        return None
    right = solution.strip().strip("().").upper()
    return [each for each in letters if each != right] if right in letters and len(letters) > 2 else None


@stage(
    "rollout",
    "tw_grpo_inversion",
    method="tw_grpo",
    paper="TW-GRPO, arXiv 2505.24718",
    formula="with probability `share`: `which is` -> `which are not`, the truth -> all other options, in their order",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class Inversion(Strategy):
    """A share of the questions with one right option is asked for the wrong ones, which earns credit in parts.

    share     of those questions
    template  what is put behind the user's words

    A row needs its `options` as a list or by letter, three at least, and the letter of the right one as `solution`;
    other rows are asked as they are. The task becomes `multi_choice`, which pays the share of the letters that were
    named, and nothing beside a wrong one. Column `inverted (B,)` is 1. Source: README; the words are ours.
    """

    origins = (OWN, SHOWN)
    columns = {"inverted": 0.0}

    def __init__(self, *, share: float = 0.5, template: str = INVERSION) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"rollout 'tw_grpo_inversion': share={share}; expected 0 to 1")
        self.share, self.template = share, template
        self.able: set[int] = set()

    def meet(self, prompts: Sequence[Prompt]) -> None:
        """Learn which rows can be asked the other way round."""
        cheap = getattr(prompts, "columns", lambda _: None)
        columns = (cheap(i) if cheap(i) is not None else prompts[i].columns for i in range(len(prompts)))
        self.able = {i for i, each in enumerate(columns) if others(each)}

    def ask(self, step: Step) -> Plan | None:
        asks = []
        for place, index in enumerate(step.draw(step.prompts_per_step)):
            draw = float(step.key.at(member=place, purpose="inversion").uniform(1))
            turned = index in self.able and draw < self.share
            asks.append(
                Ask(step.group_size, index=index, note="inverted", trains="shown", columns={"inverted": 1.0})
                if turned
                else Ask(step.group_size, index=index)
            )
        return Plan(asks)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        letters = others(prompt.columns)
        if letters is None:
            return None
        new = with_text(prompt, self.template, "inverted")
        return replace(new, columns={**prompt.columns, "solution": ", ".join(letters), "task": "multi_choice"})
