"""Help for prompts that are harder than usual, noise for those that are easier: DeepVideo-R1's augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from mmrl.errors import ConfigError
from mmrl.media import Noised
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.hints import filled, first_text, with_text, worth
from mmrl.rollout.origins import OWN, SHOWN
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.rollout.t_grpo import seed_of
from mmrl.stages import LANGUAGE, stage

BEGINNING = "The beginning of a right line of thought: {hint} ..."


@stage(
    "rollout",
    "deepvideo_r1_augmentation",
    method="deepvideo_r1",
    paper="DeepVideo-R1, arXiv 2506.07464",
    formula="d = mean of the last W steps - mean at this prompt's last visit; d > 0: a share d of a worked answer is "
    "shown; d < 0: noise of std `noise` |d| on the frames",
    confidence="reconstructed",
    modalities=LANGUAGE,
)
class ByDifficulty(Strategy):
    """A prompt is made easier or harder by how far its last visit was from what is usual.

    window    W: steps whose mean is what is usual
    help      share of the worked answer that a prompt sees at d = 1; shorter than one word is no help
    noise     grey levels of noise at d = -1
    column    of the data set: worked answers
    template  what is put behind the user's words, {hint} in it

    A group trains under what it saw. A prompt at its first visit, one that is as hard as usual, a hard one without a
    worked answer and an easy one without a clip are asked as they are. Outcomes of changed prompts count for the next
    visit too, as the prompt was then. Source: arXiv 2506.07464, the prose; W and both scales are ours, and the authors
    have the policy write the worked answer.
    """

    origins = (OWN, SHOWN)
    columns = {"augmented": 0.0}

    def __init__(
        self, *, window: int = 16, help: float = 0.5, noise: float = 50.0, column: str = "demonstrations",
        template: str = BEGINNING,
    ) -> None:  # fmt: skip
        if window < 1 or not 0 <= help <= 1 or noise < 0:
            raise ConfigError(
                f"rollout 'deepvideo_r1_augmentation': window={window}, help={help}, noise={noise}; expected 1 or "
                "more, a share, and 0 or more"
            )
        filled(template, "rollout 'deepvideo_r1_augmentation'", hint="")
        self.window, self.help, self.noise, self.column, self.template = window, help, noise, column, template
        self.usual: list[float] = []
        self.last: dict[int, float] = {}
        self._prompts: Sequence[Prompt] = ()

    def meet(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts

    def gap(self, index: int) -> float:
        """How much harder than usual a row was at its last visit; 0 for one that was never asked."""
        return fmean(self.usual) - self.last[index] if self.usual and index in self.last else 0.0

    def ask(self, step: Step) -> Plan | None:
        asks = []
        for index in step.draw(step.prompts_per_step):
            gap = self.gap(index)
            note = (gap, step.number)
            if gap and self._changed(self._prompts[index], note) is not None:
                asks.append(
                    Ask(step.group_size, index=index, note=note, trains="shown", columns={"augmented": gap})
                )  # fmt: skip
            else:
                asks.append(Ask(step.group_size, index=index))
        return Plan(asks)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        return self._changed(prompt, ask.note)

    def _changed(self, prompt: Prompt, note: tuple[float, int]) -> Prompt | None:
        """The prompt as it is shown at a gap; None where there is nothing to change."""
        gap, number = note
        if gap > 0:
            words = (first_text(prompt, self.column) or "").split()
            hint = " ".join(words[: round(self.help * gap * len(words))])
            return with_text(prompt, filled(self.template, "deepvideo", hint=hint), "help") if hint else None
        if not prompt.videos or not self.noise:
            return None
        std = self.noise * -gap
        clips = [Noised(video, std, seed_of(prompt.id, number, i)) for i, video in enumerate(prompt.videos)]
        return replace(prompt, id=f"{prompt.id}+noise:{number}", videos=clips, beside={"bare": prompt})

    def observe(self, batch: Batch, step: Step) -> None:
        value = worth(batch)
        scored = batch.counted & ~value.isnan()
        means = []
        for group in sorted(set(batch.group[scored].tolist())):
            mean = float(value[scored & (batch.group == group)].double().mean())
            means.append(mean)
            if (row := step.groups[group]) is not None:
                self.last[row] = mean
        if means:
            self.usual = [*self.usual, fmean(means)][-self.window :]

    def state_dict(self) -> dict[str, Any]:
        return {"usual": self.usual, "last": [[row, mean] for row, mean in self.last.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.usual = list(state["usual"])
        self.last = {int(row): mean for row, mean in state["last"]}
