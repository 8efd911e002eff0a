"""Perceval's process reward model: it names the parts of an answer that the picture contradicts.

    rewards: [{name: accuracy}, {name: perceval, weight: 0, columns: [flagged_tokens], options: {url: ..., model: ...}}]

The model replies with `<answer>["a red car", ...]</answer>`, exact parts of the response; one that is not found is
counted and left out, "the response is correct" flags nothing. The spans are characters of the response, which the
policy maps to the tokens that wrote them; credit `perceval` takes a share of the advantage from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.http import Server
from mmrl.rewards.models.judge import Chat, chat_url
from mmrl.rewards.pictures import data_uri, frames_of
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

ASKED = (
    "Question:\n{question}\n\nResponse:\n{response}\n\nCompare each claim of the response with what is seen. List the "
    "parts of the response that this contradicts, copied letter by letter, as a JSON list of texts in answer tags: "
    '<answer>["..."]</answer>. If nothing is wrong, write <answer>[]</answer>.'
)
CLEAN = "the response is correct"


def flagged(reply: str) -> list[str] | None:
    """The parts that a reply names; [] for a clean response, None for a reply that cannot be read."""
    said = answers.tagged(answers.outside_thought(reply))
    if said is None:
        return [] if CLEAN in reply.lower() else None
    value = answers.json_value(said)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [each for each in value if each.strip()]
    return [] if CLEAN in said.lower() else None


def spans_of(response: str, parts: list[str]) -> tuple[list[list[int]], int]:
    """Where each part first stands, as [start, end] in characters, and how many are nowhere."""
    places = [(response.find(part), len(part)) for part in parts]
    found = sorted({(start, start + length) for start, length in places if start >= 0})
    return [list(each) for each in found], sum(start < 0 for start, _ in places)


def check_perceval(row: Mapping[str, Any], *, url: str = "", model: str = "", **_: Any) -> None:
    """RewardError for a model without address."""
    if not url or not model:
        raise RewardError("reward 'perceval' needs options url and model: an OpenAI-compatible server of the PRM")


@reward(
    "perceval",
    isolated=False,
    check=check_perceval,
    paper="Perceval, 2026; code RUCAIBox/Perceval",
    formula="spans of the response that the PRM says the picture contradicts; A[t] -= alpha |A| on their tokens",
    confidence="partly",
)
def perceval(
    prompts, completions, images=None, videos=None, *,
    url: str = "", model: str = "", frames: int = 8, max_tokens: int = 2048, timeout: float = 120.0, retries: int = 3,
    concurrency: int = 8, key_env: str | None = None, cache: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """1 for a response that nothing contradicts; `columns: [flagged_tokens]` are those parts for credit `perceval`."""
    empty = [None] * len(completions)
    settings = {"model": model, "temperature": 0.0, "max_tokens": max_tokens}
    chat = Chat(Server(chat_url(url), timeout, retries, key_env), settings, concurrency, cache)
    conversations = []
    for prompt, response, shown, clips in zip(prompts, completions, images or empty, videos or empty, strict=True):
        looked = [*(shown or []), *(frame for clip in clips or [] for frame in frames_of(clip, frames))]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_uri(each)}} for each in looked]
        content.append({"type": "text", "text": ASKED.format(question=asked_text(prompt), response=response)})
        conversations.append([{"role": "user", "content": content}])
    return [_rated(c, r) for c, r in zip(completions, chat.replies(conversations), strict=True)]


def _rated(response: str, reply: str | Exception) -> dict[str, Any]:
    if isinstance(reply, Exception):  # unscored and counted: an answer nobody looked at is not one without faults
        return {"score": reply, "flagged_tokens": reply, "parsed": None, "not_found": None}
    parts = flagged(reply)
    if parts is None:  # as the authors: no penalty
        return {"score": 0.0, "flagged_tokens": [], "parsed": 0.0, "not_found": 0.0}
    spans, lost = spans_of(response, parts)
    clean = float(not spans and bool(response.strip()))
    return {"score": clean, "flagged_tokens": spans, "parsed": 1.0, "not_found": float(lost)}
