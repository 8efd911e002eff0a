"""The configuration of a joint policy: who writes, who paints, in which turns, and which of the two is trained."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError, unknown
from mmrl.policies.generation.likelihoods import likelihood_class
from mmrl.policies.registry import policy_class
from mmrl.settings import Section, read_section
from mmrl.told import NAME, names_of, place_of

WRITERS = ("vlm", "video", "masked")
PAINTER = "flow"
KIND = {"writer": "tokens", "painter": "transition"}
"""Of each side's actions: a recipe is for any writer, so a masked one's are tokens here, too."""
SIDES = ("writer", "painter")
MODALITY = "modality"
Side = Literal["writer", "painter"]
KIND_OF = {"writer": "text", "painter": "picture"}


class Turn(Section):
    """One stretch of a row.

    by   writer or painter
    ask  of the painter, what it is asked to draw; of the writer, what it is told behind all that was written and drawn
         so far. `{prompt}` is the text of the prompt, `{text}` the last text that was written, `{text_1}` the first,
         and any other name a column of the row. Empty in a writer's first turn, which answers the prompt itself
    """

    by: Side
    ask: str = ""


class JointConfig(Section):
    """Two policies under one reward: their rows hold words and pictures.

    writer   the `policy:` section of a policy of words, with its `modality`: vlm (the default), video or masked
    painter  the `policy:` section of a flow policy, whose likelihood has log-probs
    turns    the stretches of a row in their order. A writer that reads images sees what was drawn before its turn
    train    which of the two; the other acts and stays as it is
    learning_rates  of a side that trains, in place of training.learning_rate. Where that is left out as well, each side
                    takes the usual rate of its modality
    """

    writer: dict[str, Any]
    painter: dict[str, Any]
    turns: list[Turn] = [Turn(by="writer"), Turn(by="painter", ask="{prompt} {text}")]
    train: list[Side] = Field(["writer", "painter"], min_length=1)
    learning_rates: dict[Side, float] = {}

    @model_validator(mode="after")
    def _fits(self) -> JointConfig:
        writes = self.writer.get(MODALITY, "vlm")
        if writes not in WRITERS:
            raise ConfigError(f"policy.writer.modality: {unknown('modality of a writer', str(writes), WRITERS)}")
        if self.painter.get(MODALITY, PAINTER) != PAINTER:
            raise ConfigError(f"policy.painter.modality={self.painter[MODALITY]!r}: a painter is a {PAINTER} policy")
        for side, rate in self.learning_rates.items():
            if not 0 <= rate <= 1:
                raise ConfigError(f"policy.learning_rates.{side}={rate}: expected 0 to 1")
        self._turns_make_sense()
        painter = [self.settings_of(side) for side in SIDES][1]
        if likelihood_class(painter.likelihood).trains != "ratio":
            raise ConfigError(
                f"policy.painter.likelihood={painter.likelihood}: it has no log-probs, and a row of two likelihoods "
                "is trained by them; use likelihood=transition"
            )
        return self

    def _turns_make_sense(self) -> None:
        if not self.turns:
            raise ConfigError("policy.turns is empty; for example [{by: writer}, {by: painter, ask: '{text}'}]")
        for side in SIDES:
            if side not in [turn.by for turn in self.turns]:
                raise ConfigError(f"policy.turns: the {side} has no turn; leave out what does not act")
        for place, turn in enumerate(self.turns):
            where, before = f"policy.turns.{place}.ask", self.kinds[:place]
            if turn.by == "painter" and not turn.ask:
                raise ConfigError(f"{where}: the painter is asked for nothing; for example '{{prompt}} {{text}}'")
            if turn.by == "writer" and bool(turn.ask) != bool(place):
                raise ConfigError(
                    f"{where}: a writer that answers the prompt is asked nothing more"
                    if not place
                    else f"{where}: what is the writer told here? Its first turn alone answers the prompt itself"
                )
            for name in fields_of(turn.ask, where):
                if NAME.fullmatch(name):
                    _known(name, before, where)
        if any(turn.by == "writer" for turn in self.turns[1:]):
            self._writer_sees()

    def _writer_sees(self) -> None:
        """A writer behind a picture must be able to look at it."""
        kind = policy_class(self.modality_of("writer"))
        drawn = [place for place, turn in enumerate(self.turns) if turn.by == "painter"]
        if "image" not in kind.reads and any(t.by == "writer" and p > drawn[0] for p, t in enumerate(self.turns)):
            raise ConfigError(
                f"policy.turns: a {self.modality_of('writer')} writer cannot see what was drawn before its turn; let "
                "a vlm write"
            )

    @property
    def kinds(self) -> list[str]:
        """ "text" or "picture", of each stretch."""
        return [KIND_OF[turn.by] for turn in self.turns]

    @property
    def columns_asked(self) -> list[str]:
        """Of a row, that the turns' templates name."""
        names = [name for turn in self.turns for name in fields_of(turn.ask, "ask")]
        return [name for name in dict.fromkeys(names) if name != "prompt" and not NAME.fullmatch(name)]

    def modality_of(self, side: str) -> str:
        return PAINTER if side == "painter" else str(self.writer.get(MODALITY, "vlm"))

    def class_of(self, side: str) -> Any:
        return policy_class(self.modality_of(side))

    def settings_of(self, side: str) -> Any:
        """The typed section of a side."""
        values = {k: v for k, v in getattr(self, side).items() if k != MODALITY}
        settings = read_section(self.class_of(side).config_type, values, f"policy.{side}", sections_of_sides)
        refuse_side(side, settings)
        return settings

    @property
    def modalities(self) -> dict[str, str]:
        """{kind of action: the modality whose stage functions judge it}."""
        return {kind: self.modality_of(side) for side, kind in KIND.items()}


def sections_of_sides() -> list[tuple[str, type[Section]]]:
    """Where a key may belong that was put elsewhere."""
    writers = [("policy.writer.", policy_class(modality).config_type) for modality in WRITERS]
    return [*writers, ("policy.painter.", policy_class(PAINTER).config_type)]


def refuse_side(side: str, settings: Any) -> None:
    """ConfigError for settings of one side that its turns here would quietly ignore."""
    refused: dict[str, str] = {}
    if side == "writer" and getattr(settings, "engine_name", "local") != "local":
        refused["engine"] = "the writer of a joint policy writes by itself"
    if side == "writer" and getattr(settings, "schedule", None) is not None:
        refused["schedule"] = "a schedule that acts too is a third policy"
    if side == "writer" and getattr(settings, "teacher", None) is not None:
        refused["teacher"] = "a joint policy reads no teacher"
    if side == "painter" and getattr(settings, "same_initial_noise", False):
        refused["same_initial_noise"] = "rows of a prompt are asked for different pictures, each from its own noise"
    if side == "painter" and settings.train_steps.select == "one":
        refused["train_steps.select"] = (
            "branches leave one seed's trajectory, and here each text has a picture of its own"
        )
    for name, why in refused.items():
        raise ConfigError(f"policy.{side}.{name}: {why}; leave it out")


def fields_of(template: str, where: str) -> list[str]:
    """The names in a template's braces."""
    try:
        names = [name for _, name, spec, _ in string.Formatter().parse(template) if name is not None and not spec]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, got {template!r}; a brace itself is written twice") from None
    if bad := [name for name in names if not name.isidentifier()]:
        raise ConfigError(f"{where}: {{{bad[0]}}}: expected a name, such as {{prompt}}, {{text}} or a column's")
    return names


def _known(name: str, before: Sequence[str], where: str) -> None:
    """ConfigError where what `name` stands for was not written before this turn."""
    kinds = list(before)
    try:
        place = place_of(name, kinds)
    except KeyError:
        written = ", ".join(f"{{{each}}}" for each in names_of(kinds) if each.startswith("text")) or "none"
        raise ConfigError(f"{where}: {{{name}}} is not written yet; texts before this turn: {written}") from None
    if kinds[place] != "text":
        raise ConfigError(f"{where}: {{{name}}} is a picture; a writer that reads images is shown it anyway")
