"""Later turns of a conversation: what an environment answers, put behind what the model wrote.

Earlier turns are never rendered again. The new one is rendered on a dummy conversation, and what the chat template
adds to the shorter rendering is tokenised and processed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.encoding import extended
from mmrl.policies.language.families.default import Family, collated

REPLY = "yes"


def rendered(family: Family, messages: Sequence[dict[str, Any]], *, ended: bool = False, **template: Any) -> str:
    """What the chat template writes after a reply of the model: its end of turn, `messages`, the next reply's start.

    ended  the model sampled its end of turn itself; it is then not written again
    """

    def render(given: Sequence[dict[str, Any]]) -> str:
        return family.processor.apply_chat_template(given, tokenize=False, add_generation_prompt=True, **template)

    ask = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": REPLY}]}
    before, whole = render([ask]) + REPLY, render([ask, reply, *messages])
    if not whole.startswith(before):
        raise PolicyError(
            f"{family.model_type}: the chat template writes a conversation otherwise once it goes on: it should start "
            f"with {before!r}, it starts with {whole[: len(before)]!r}; turns cannot be put behind each other"
        )
    text, end = whole[len(before) :], family.processor.tokenizer.eos_token
    if ended and end and text.startswith(end):
        text = text[len(end) :]
    return text


def turn(family: Family, core: Any, text: str, images: Sequence[Any] = (), frames: Sequence[Frames] = ()) -> Encoded:
    """Tokens and media of one later turn, `rendered` before; its positions are those of a prompt of its own."""
    return family.encode(core, text, images, frames, special=False)


def joined(family: Family, core: Any, entry: Encoded, parts: Sequence[Tensor | Encoded]) -> Encoded:
    """A whole row: a prompt, tokens that the model wrote, later turns. Media in row order; positions of the row."""
    row = entry
    media = [entry.media] if entry.media else []
    for part in parts:
        if isinstance(part, Tensor):
            row = extended(row, part)
            continue
        aligned = {name: torch.cat([old, part.aligned[name].to(old)]) for name, old in row.aligned.items()}
        row = replace(row, ids=torch.cat([row.ids, part.ids]), aligned=aligned)
        media += [part.media] if part.media else []
    both = media[0] if len(media) == 1 else collated(media)
    return family.placed(core, row.ids[None], {name: t[None] for name, t in row.aligned.items()}, both)
