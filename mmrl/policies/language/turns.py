"""What an environment shows becomes tokens that follow a response, and a response with pictures in it becomes a row.

Earlier turns are never rendered again: a template may write them otherwise once another turn follows (it may leave
thoughts out), and then the policy would be scored on what it did not write. So the delta is rendered on a
conversation of dummies, and holds only where the longer rendering begins with the shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.language.encoding import Encoded, check_media, collate, extended, processed
from mmrl.policies.language.families.base import Family
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Observation

SAID = "what was said"
POSITIONS = "positions"
"""Among a row's media: (3, extent) positions of its response, from one call over the whole row."""


@dataclass
class Shown:
    """An observation as the model reads it.

    ids    (n,) that follow the response, placeholders expanded, the next turn opened
    media  tensors of its images and clips, {} without any
    """

    ids: Tensor
    media: dict[str, Tensor]


class Turns:
    """The later turns of one processor's conversations.

    template   extra variables of the chat template
    frames_of  the sampled frames of a prompt's clips

    Raises PolicyError, naming the processor, for a chat template that renders earlier turns anew.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        frames_of: Callable[[Prompt], Sequence[Frames]],
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self.processor, self.family, self.frames_of = processor, family, frames_of
        self.template = dict(template or {})
        tail, _ = self._delta([{"role": "user", "content": "what is shown"}])
        end = processor.tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
        self.end: int | None = end[0] if end else None

    def turn(self, observation: Observation, last: int, where: str) -> Shown:
        """The tokens between a run that ended with token `last` and the next run. The end-of-turn token is among them
        only if the model did not sample it.

        where  names the row in errors
        """
        prompt = Prompt(
            where, list(map(dict, observation.messages)), list(observation.images), list(observation.videos)
        )
        check_media(prompt)
        tail, text = self._delta(prompt.messages)
        ids, _, media = processed(prompt, tail + text, self.processor, self.family, self.frames_of(prompt))
        if self.end is not None and last == self.end == int(ids[0]):
            ids = ids[1:]
        return Shown(ids, media)

    def _delta(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """What the template writes behind the words of a turn, and then for `messages` up to the next turn."""
        said = [{"role": "user", "content": "what was asked"}, {"role": "assistant", "content": SAID}]
        before, after = self._rendered(said, False), self._rendered([*said, *messages], True)
        if not after.startswith(before) or SAID not in before:
            name = getattr(self.processor.tokenizer, "name_or_path", "") or "no name"
            raise PolicyError(
                f"the chat template of {type(self.processor).__name__} ({name}) renders earlier turns anew when "
                "another follows: responses of several turns would be scored under other words than they were written "
                "under. Give the model a template that only appends, or train without an environment"
            )
        return before[before.rindex(SAID) + len(SAID) :], after[len(before) :]

    def _rendered(self, messages: Sequence[Mapping[str, Any]], open_: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=open_, **self.template
            )
        except TemplateError as error:
            raise PolicyError(f"the chat template of {type(self.processor).__name__} refuses a turn: {error}") from None


def with_media(held: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of earlier and later media, in row order."""
    return {k: torch.cat([m[k] for m in (held, more) if k in m]) for k in sorted(held.keys() | more.keys())}


def written_out(
    entry: Encoded, response: Tensor, media: Mapping[str, Tensor], family: Family, positions_of: Any
) -> Encoded:
    """Prompt and response as one row.

    response      (n,) ids, of actions and observations
    media         tensors of the media within the response; its `POSITIONS`, where known, are taken over
    positions_of  the model's `get_rope_index`, called once for the whole row
    """
    if not media:
        return extended(replace(entry, features=None), response)
    known = media.get(POSITIONS)
    ids = torch.cat([entry.ids, response])
    kinds = (response == family.image_token).long() + 2 * (response == family.video_token).long()
    types = torch.cat([entry.token_types, kinds.to(entry.token_types)])
    merged = with_media(entry.media, {k: v for k, v in media.items() if k != POSITIONS})
    if known is not None:
        positions = torch.cat([entry.positions, known.to(entry.positions)], dim=1)
    else:
        positions = positions_of(
            input_ids=ids[None],
            mm_token_type_ids=types[None],
            attention_mask=torch.ones_like(ids)[None],
            **{k: v for k, v in merged.items() if not k.startswith("pixel_values")},
        )[0][:, 0]
        if not torch.equal(positions[:, : len(entry)], entry.positions):
            raise PolicyError(f"{family.model_type}: positions of a prompt change when a picture follows it")
    return Encoded(ids, types, positions, int(positions.max()) + 1, merged)


def plain_rows(rows: Sequence[Encoded], prompts: Sequence[int], steps: int, device: Any) -> tuple[dict, Tensor]:
    """Rows that were written out: inputs of the model, and (B, `steps`) flat places of the states that predict.

    prompts  how many of each row's tokens are its prompt
    """
    width = max(map(len, rows))
    first = torch.tensor([width - len(row) + prompt - 1 for row, prompt in zip(rows, prompts, strict=True)])
    column = (first[:, None] + torch.arange(steps)).clamp(max=width - 1)
    where = torch.arange(len(rows))[:, None] * width + column
    return collate(rows, None, None, device), where.to(device)
