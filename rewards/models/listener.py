"""Listener reward (arXiv 2506.22832): a frozen model reads the thought without its answer, and chooses.

    r = format + .5 [right] + .5 p(right option | pictures, question, thought)

The listener is a chat model behind an OpenAI-compatible address that gives log-probabilities: it answers with one
letter, and p is the share of the right letter among the letters it considered. The weights are from a second-hand
account of the paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.choice import single
from mmrl.rewards.format import think_answer
from mmrl.rewards.http import Server, ServerError
from mmrl.rewards.models.judge import chat_url
from mmrl.rewards.options import read_options, true_option
from mmrl.rewards.pictures import data_uri, frames_of
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

ASKED = "{question}\n\nSomeone thought about it:\n{thought}\n\nWhich option is right? Reply with its letter alone."
MOST_OPTIONS = 20
_CONCLUSION = re.compile(r"[^.\n]*\b(?:answer|option|choice)\b[^.\n]*[.\n]?\s*$", re.IGNORECASE)


def thought_of(completion: str) -> str:
    """The thought, without a last sentence that names the answer."""
    match = re.search(r"<think>(.*?)</think>", completion, re.DOTALL)
    return _CONCLUSION.sub("", match[1].strip()) if match else ""


def chance(considered: list[Mapping[str, Any]], label: str, labels: tuple[str, ...]) -> float:
    """The share of the right letter among the option letters of the first token's log-probabilities."""
    weights: dict[str, float] = {}
    for each in considered:
        letter = str(each.get("token", "")).strip().strip("().").upper()
        if letter in labels:
            weights[letter] = weights.get(letter, 0.0) + math.exp(float(each["logprob"]))
    total = sum(weights.values())
    return weights.get(label, 0.0) / total if total else 0.0


def check_listener(row: Mapping[str, Any], *, url: str = "", model: str = "", **_: Any) -> None:
    """RewardError for a listener without address, and for a truth that is no option."""
    if not url or not model:
        raise RewardError("reward 'listener_reward' needs options url and model: an OpenAI-compatible server")
    if true_option(row.get("solution"), row.get("options"))[0] is None:
        answers.refuse(row.get("solution"), "is no option's letter", "a letter, or the text of one of `options`")


@reward(
    "listener_reward",
    success=True,
    isolated=False,
    check=check_listener,
    paper="Listener-rewarded thinking, arXiv 2506.22832",
    formula="[thought, then answer] + .5 [right] + .5 p_listener(right option | pictures, question, thought)",
    confidence="reconstructed",
)
def listener_reward(
    prompts, completions, solution, options=None, images=None, videos=None, *,
    url: str = "", model: str = "", frames: int = 8, timeout: float = 60.0, retries: int = 3, concurrency: int = 8,
    key_env: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Format, half for the right option, half for how sure a frozen model is of it after reading the thought."""
    server, empty = Server(chat_url(url), timeout, retries, key_env), [None] * len(completions)

    def rated(row: tuple) -> dict[str, Any]:
        prompt, completion, truth, choices, shown, clips = row
        right = single(completion, truth, choices)
        form, thought = float(think_answer(answers.normalise(completion))), thought_of(completion)
        parts = {"accuracy": right, "format": form, "listener": 0.0, "success": right}
        if not thought:
            return {"score": form + 0.5 * right, **parts}
        looked = [*(shown or []), *(frame for clip in clips or [] for frame in frames_of(clip, frames))]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_uri(each)}} for each in looked]
        content.append({"type": "text", "text": ASKED.format(question=asked_text(prompt), thought=thought)})
        body = {"model": model, "temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": MOST_OPTIONS,
                "messages": [{"role": "user", "content": content}]}  # fmt: skip
        try:
            considered = server.ask(body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            label, _ = true_option(truth, choices)
            parts["listener"] = chance(considered, label or "", read_options(choices).labels)
        except (KeyError, IndexError, TypeError):
            return {**parts, "score": ServerError("the listener gave no log-probabilities")}
        except ServerError as error:
            return {**parts, "score": error}
        return {"score": form + 0.5 * right + 0.5 * parts["listener"], **parts}

    rows = list(zip(prompts, completions, solution, options or empty, images or empty, videos or empty, strict=True))
    with ThreadPoolExecutor(max(1, min(concurrency, len(rows)))) as threads:
        return list(threads.map(rated, rows))
