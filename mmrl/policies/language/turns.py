"""What an environment shows becomes tokens that follow a response, and a response with pictures in it becomes a row.

Rendering and joining are the families' (`families.turns`): earlier turns are never rendered again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.images import open_image
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.encoding import check_media, check_text, collate, extended
from mmrl.policies.language.families import turns
from mmrl.policies.language.families.default import Family, collated
from mmrl.policies.language.families.qwen import Qwen
from mmrl.policies.language.pixels import corrupted
from mmrl.policies.language.scoring import Parts, Rows
from mmrl.policies.language.spans import scored_extents
from mmrl.policies.views import REMOVE_MEDIA, PixelScale
from mmrl.randomness import Key
from mmrl.record import Prompt, Rollouts
from mmrl.rollout.environments.base import Observation
from mmrl.stages import View

POSITIONS, ALIGNED = "positions", "aligned "
"""Among a row's media: (K, extent) positions of its response from one call over the whole row, and what else the model
reads of each of its tokens."""


@dataclass(frozen=True)
class Shown:
    """A later turn.

    encoded  as the model reads it, by itself
    bare     (n,) its ids with one placeholder for each medium
    prompt   its messages and media as they were given
    """

    encoded: Encoded
    bare: Tensor
    prompt: Prompt


class Turns:
    """The later turns of one model's conversations.

    frames_of  the sampled frames of a prompt's clips
    template   extra variables of the chat template

    Raises PolicyError, naming the kind of model, for a chat template that renders earlier turns anew.
    """

    def __init__(
        self,
        family: Family,
        core: Any,
        frames_of: Callable[[Prompt], Sequence[Frames]],
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self.family, self.core, self.frames_of, self.template = family, core, frames_of, dict(template or {})
        self.end = family.processor.tokenizer.eos_token_id
        self._rendered([{"role": "user", "content": [{"type": "text", "text": "what is shown"}]}], False)

    def turn(self, observation: Observation, last: int, where: str) -> Shown:
        """The tokens between a run that ended with token `last` and the next run. The end-of-turn token is among them
        only if the model did not sample it.

        where  names the row in errors
        """
        messages = list(map(dict, observation.messages))
        prompt = Prompt(where, messages, list(observation.images), list(observation.videos))
        check_media(prompt)
        if (prompt.images or prompt.videos) and not self.family.capabilities.turns:
            raise PolicyError(
                f"{where}: the environment shows pictures, and {self.family.model_type!r} cannot read any in a later "
                "turn: the row would not be what its conversation is (`mmrl doctor` has the gap)"
            )
        text = self._rendered(messages, last == self.end)
        check_text(prompt, text, self.family)
        images = [open_image(image, prompt) for image in prompt.images]
        bare = self.family.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        encoded = turns.turn(self.family, self.core, text, images, self.frames_of(prompt))
        return Shown(encoded, torch.tensor(bare, dtype=torch.long), prompt)

    def _rendered(self, messages: list[dict[str, Any]], ended: bool) -> str:
        from jinja2 import TemplateError

        try:
            return turns.rendered(self.family, messages, ended=ended, **self.template)
        except TemplateError as error:
            raise PolicyError(f"{self.family.model_type}: the chat template refuses a turn: {error}") from None


def response_media(entry: Encoded, whole: Encoded, shown: Sequence[Encoded]) -> dict[str, Any] | None:
    """What a row of a conversation keeps beside its ids, to be written out again: None where nothing but text was
    shown. `whole` is the row, `entry` its prompt."""
    media = [part.media for part in shown if part.media]
    if not media:
        return None
    if not torch.equal(whole.positions[:, : len(entry)], entry.positions):
        raise PolicyError("positions of a prompt change when a picture follows it; such rows cannot be kept")
    aligned = {ALIGNED + name: values[len(entry) :] for name, values in whole.aligned.items()}
    return collated(media) | aligned | {POSITIONS: whole.positions[:, len(entry) :]}


def written_out(entry: Encoded, response: Tensor, media: Mapping[str, Any] | None) -> Encoded:
    """Prompt and response (n,) as one row; `media` as `response_media` gave them."""
    entry = replace(entry, features=None)
    if media is None:
        return extended(entry, response)
    positions = torch.cat([entry.positions, media[POSITIONS].to(entry.positions)], dim=1)
    aligned = {name: torch.cat([values, media[ALIGNED + name].to(values)]) for name, values in entry.aligned.items()}
    own = {name: value for name, value in media.items() if name != POSITIONS and not name.startswith(ALIGNED)}
    both = collated([entry.media, own]) if entry.media else own
    ids = torch.cat([entry.ids, response])
    return replace(entry, ids=ids, aligned=aligned, positions=positions, media=both)


@dataclass(frozen=True)
class Changed:
    """How rows are shown otherwise: a view, and what it needs to change pixels."""

    view: View
    draws: Sequence[Key]
    family: Family
    scales: dict[str, PixelScale]

    def __call__(self, place: int, prompt: Prompt, row: Encoded) -> Encoded:
        """`row` of the prompt at `place`, with the media of its response changed as those of its prompt are."""
        if self.view.kind == REMOVE_MEDIA or not isinstance(self.family, Qwen):
            raise PolicyError(
                f"prompt {prompt.id!r}: a response in which an environment showed pictures has no form under the view "
                f"{self.view.kind!r} of {self.family.model_type!r}; it is for responses without media"
            )
        return corrupted(row, self.view, self.draws[place], self.family, self.scales)


def written_rows(rollouts: Rollouts, shown: Sequence[Encoded], changed: Changed | None) -> list[Encoded]:
    """Each row whole. shown: of `rollouts.prompts`, as this pass shows them; changed: how, if otherwise."""
    assert rollouts.media is not None
    rows = []
    parts = (rollouts.prompt.tolist(), rollouts.actions.cpu(), scored_extents(rollouts).tolist(), rollouts.media)
    for p, ids, extent, media in zip(*parts, strict=True):
        if media is None or changed is None:
            rows.append(written_out(shown[p], ids[:extent], media))
        else:
            rows.append(changed(p, rollouts.prompts[p], written_out(rollouts.encoded[p], ids[:extent], media)))
    return rows


@dataclass
class Whole:
    """Rows that were written out, left-padded.

    first  (B,) column of the state that predicts each row's first action
    """

    inputs: dict[str, Any]
    first: Tensor
    has_media: bool

    def states(self, module: Any, mask: Tensor) -> Tensor:
        states = module.states(self.inputs, idle=not self.has_media)
        row, step = mask.nonzero(as_tuple=True)
        return states[row, self.first.to(row.device)[row] + step]


def whole_rows(
    rows: Sequence[Encoded], prompts: Sequence[int], device: torch.device, family: Family, alone: bool = False
) -> Rows:
    """Rows that were written out, laid out for scoring.

    prompts  how many of each row's tokens are its prompt
    alone    each row by itself, for models that take no batches of unlike ones
    """
    if alone:
        pairs = zip(rows, prompts, strict=True)
        return Parts([(torch.tensor([i]), whole_rows([r], [p], device, family)) for i, (r, p) in enumerate(pairs)])
    width = max(map(len, rows))
    first = torch.tensor([width - len(row) + prompt - 1 for row, prompt in zip(rows, prompts, strict=True)])
    return Whole(collate(rows, None, None, device, family), first, any(row.media for row in rows))
