"""Chat models as judges, asked by the OpenAI protocol: vLLM, SGLang, llama.cpp and hosted models speak it.

    {name: judge, options: {url: "http://127.0.0.1:8000/v1", model: Qwen3-VL-8B, template: grade}}

The judge sees the pictures and frames of the prompt (or the picture that is judged) and a text made from `template`, a
name below or your own with {question}, {answer}, {completion} and {reference} in it. Its score is read by `parse` and
scaled from `low` to `high` onto [0, 1]; what cannot be read is unscored and counted, never 0. An answer is remembered
by the content of what was asked, in this process, and in the folder `cache` where one is named.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.http import Server, ServerError
from mmrl.rewards.pictures import data_uri, frames_of, is_image
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text, repeats

FIELDS = ("question", "answer", "completion", "reference")
TEMPLATES = {
    "grade": (
        "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\nDoes the answer "
        'say the same as the reference? Reply with JSON only: {{"score": s}}, s from 0 (wrong) to 1 (right).'
    ),
    "quality": (
        "Request:\n{question}\n\nAnswer:\n{answer}\n\nHow well does the answer do what was asked, given the pictures "
        'above? Reply with JSON only: {{"score": s}}, where s is a number from 0 (useless) to 1 (perfect).'
    ),
    "image": (
        "A picture was asked for:\n{question}\n\nHow well does the picture above show it? "
        'Reply with JSON only: {{"score": s}}, where s is a number from 0 (not at all) to 1 (all of it).'
    ),
    "final_score": (
        "The picture above was made for this text:\n{question}\n\nSay what fits and what does not, then rate it from 1 "
        "to 5 on a last line, as `Final Score: x`."
    ),
}
_RATED = r"(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+(?:\.\d+)?)|\s*(%))?"
_FINAL = re.compile(
    rf"(?:final |overall )?(?:score|rating|judge?ment)(?:\W{{0,12}}| (?:is|of) \W{{0,4}}){_RATED}", re.IGNORECASE
)
_NUMBER = re.compile(rf"\W*?{_RATED}\W*", re.IGNORECASE)
_YES = re.compile(r"\W*(yes|no|correct|incorrect|true|false|right|wrong)\b", re.IGNORECASE)
KEYS = ("score", "rating", "overall", "final_score", "judgement", "judgment")
MOST_REMEMBERED = 20_000


@dataclass(frozen=True)
class Share:
    """A score on a scale of its own: `8/10`, `80%`."""

    value: float


Said = float | Share


def _said(number: str, most: str, percent: str) -> Said | None:
    over = 100.0 if percent else float(most) if most else None
    if over is None:
        return float(number)
    return Share(float(number) / over) if over > 0 else None


def by_json(text: str) -> Said | None:
    """`{"score": .7}` or `{"score": "7/10"}`, also in a code fence or after a thought."""
    value = answers.json_value(answers.outside_thought(text))
    named = next((value[k] for k in KEYS if k in value), None) if isinstance(value, dict) else None
    if isinstance(named, str):
        return by_number(named)
    return float(named) if isinstance(named, int | float) else None


def by_score(text: str) -> Said | None:
    """The last `Final Score: 4`, or `Score: 4/5`, `a score of 4`, or `Rating: [[4]]`."""
    found = _FINAL.findall(answers.outside_thought(text))
    return _said(*found[-1]) if found else None


def by_number(text: str) -> Said | None:
    """A reply that is one number and nothing more: `4`, `8/10`, `80%`."""
    match = _NUMBER.fullmatch(answers.outside_thought(text).strip())
    return _said(match[1], match[2] or "", match[3] or "") if match else None


def by_yes(text: str) -> Said | None:
    """A reply that begins with yes or no."""
    match = _YES.match(answers.outside_thought(text).strip())
    return float(match[1].lower() in ("yes", "correct", "true", "right")) if match else None


PARSERS: dict[str, Callable[[str], Said | None]] = {
    "json": by_json,
    "score": by_score,
    "number": by_number,
    "yes": by_yes,
}


def read_score(text: str, parse: str, low: float, high: float) -> float:
    """The score of a reply on [0, 1]. ValueError for none, or one off the scale; `8/10` names a scale of its own."""
    said = answers.outside_thought(text)
    if parse in ("auto", "json") and said.count("{") > said.count("}") and answers.json_value(said) is None:
        raise ValueError("the judge's reply was cut")
    tried = list(PARSERS.values()) if parse == "auto" else [PARSERS[parse]]
    found = next((value for each in tried if (value := each(text)) is not None), None)
    if isinstance(found, Share):
        found = high * found.value
    if found is None or not math.isfinite(found):
        raise ValueError("the judge's reply holds no score")
    if not low <= found <= high:
        raise ValueError(f"the judge's score lies off the scale from {low:g} to {high:g}")
    return (found - low) / (high - low)


class Memory:
    """Replies by the content of what was asked: the most recent in this process, all of them in a folder."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder else None
        self._held: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        if self.folder is None:
            return None
        try:
            reply = json.loads((self.folder / key[:2] / f"{key}.json").read_text())["reply"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return reply if isinstance(reply, str) else None

    def put(self, key: str, reply: str) -> None:
        with self._lock:
            self._held[key] = reply
            while len(self._held) > MOST_REMEMBERED:
                self._held.popitem(last=False)
        if self.folder is None:
            return
        place = self.folder / key[:2] / f"{key}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            json.dump({"reply": reply}, file)
        os.replace(file.name, place)


_MEMORIES: dict[str | None, Memory] = {}


def memory(folder: str | None) -> Memory:
    return _MEMORIES.setdefault(folder, Memory(folder))


class Chat:
    """A chat model behind an address, asked for many replies at once and for each only once."""

    def __init__(self, server: Server, settings: Mapping[str, Any], concurrency: int, cache: str | None) -> None:
        self.server, self.settings, self.concurrency, self.memory = server, dict(settings), concurrency, memory(cache)

    def replies(self, conversations: Sequence[list[dict[str, Any]]]) -> list[str | Exception]:
        """One reply, or why there is none, for each; equal conversations are asked once. RewardError stops all."""
        bodies = [{**self.settings, "messages": each} for each in conversations]
        keys = [hashlib.blake2b(json.dumps(b, sort_keys=True).encode(), digest_size=20).hexdigest() for b in bodies]
        wanted = {key: body for key, body in zip(keys, bodies, strict=True)}
        with ThreadPoolExecutor(max(1, min(self.concurrency, len(wanted)))) as threads:
            found = dict(zip(wanted, threads.map(self._reply, wanted, wanted.values()), strict=True))
        return [found[key] for key in keys]

    def _reply(self, key: str, body: Mapping[str, Any]) -> str | Exception:
        held = self.memory.get(key)
        if held is not None:
            return held
        try:
            answer = self.server.ask(body)
            text = answer["choices"][0]["message"]["content"]
            if isinstance(text, list):  # some servers answer in parts
                text = "".join(part["text"] for part in text if part.get("type") == "text")
            if not isinstance(text, str):
                raise ServerError("the judge replied without text")
        except ServerError as error:
            return error
        except (KeyError, IndexError, TypeError, AttributeError):
            return ServerError("the judge's answer is no chat completion")
        self.memory.put(key, text)
        return text


def chat_url(url: str) -> str:
    """`http://host/v1` with the path of chat completions behind it; RewardError for none."""
    if not url:
        raise RewardError("options url and model are missing: an OpenAI-compatible server, and its model's name")
    return url if url.rstrip("/").endswith("/chat/completions") else url.rstrip("/") + "/chat/completions"


def filled(template: str, **values: str) -> str:
    """A template with its fields filled in; RewardError for one it should not have."""
    text = TEMPLATES.get(template, template)
    try:
        named = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise RewardError(f"judge: template {template!r}: {error}; braces of its own are doubled") from None
    if wrong := sorted(named - set(FIELDS)):
        hint = unknown("field", wrong[0], FIELDS)
        raise RewardError(f"judge: template {template!r}: {hint}; braces of its own are doubled")
    if not named:
        raise RewardError(
            f"judge: {unknown('template', template, TEMPLATES)}; or a text with {{question}} and {{answer}}"
        )
    return text.format(**values)


def pictures(completion: Any, images: Any, videos: Any, shown: bool, frames: int) -> list[Any]:
    """What the judge looks at: the pictures of the question, and what was made."""
    found = [*(images or [])] if shown else []
    for video in (videos or []) if shown else ():
        found += frames_of(video, frames)
    if is_image(completion):
        return [*found, completion]
    return found if isinstance(completion, str) else [*found, *frames_of(completion, frames)]


def check_judge(row: Mapping[str, Any], *, url: str = "", model: str = "", template: str = "grade", **_: Any) -> None:
    """RewardError for a judge that could judge no row."""
    if not url or not model:
        raise RewardError("reward 'judge' needs options url and model: the address of an OpenAI-compatible server")
    needs = "{reference}" in TEMPLATES.get(template, template)
    if needs and answers.is_missing(row.get("solution")):
        answers.refuse(row.get("solution"), "is blank, and the judge compares with it", "the reference answer")


@reward("judge", isolated=False, check=check_judge)
def judge(
    prompts, completions, solution=None, images=None, videos=None, *,
    url: str = "", model: str = "", template: str = "grade", parse: str = "auto", low: float = 0.0, high: float = 1.0,
    system: str | None = None, shown: bool = True, frames: int = 8, max_tokens: int = 1024, temperature: float = 0.0,
    retries: int = 3, timeout: float = 60.0, concurrency: int = 8, key_env: str | None = None, cache: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A score in [0, 1] from a chat model behind an OpenAI-compatible address, which sees pictures and frames.

    template           grade, quality, image, final_score (with low=1, high=5, as UnifiedReward), or your own text
    parse              json, score (`Final Score: x`), number, yes, or auto: the first of them that finds one
    low, high          the scale of its scores
    shown, frames      whether it sees the question's pictures, and how many frames of each clip
    concurrency        requests at once
    key_env            the environment variable with its key
    cache              a folder in which replies are kept from run to run
    An empty answer, and one that repeats its question, is 0 and not asked about.
    """
    if parse not in (*PARSERS, "auto"):
        raise RewardError(f"judge: {unknown('parse', parse, [*PARSERS, 'auto'])}")
    settings = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    chat = Chat(Server(chat_url(url), timeout, retries, key_env), settings, concurrency, cache)
    empty: list[Any] = [None] * len(completions)
    rows = list(zip(prompts, completions, solution or empty, images or empty, videos or empty, strict=True))
    asked = [i for i, (prompt, completion, *_) in enumerate(rows) if not worthless(completion, prompt)]
    replies = chat.replies([conversation(*rows[i], template, system, shown, frames) for i in asked])
    scores: list[dict[str, Any]] = [{"score": 0.0, "parsed": 0.0} for _ in rows]
    for i, reply in zip(asked, replies, strict=True):
        scores[i] = scored(reply, parse, low, high)
    return scores


def scored(reply: str | Exception, parse: str, low: float, high: float) -> dict[str, Any]:
    """What a reply says; the reason where it says nothing, by which the row is counted as unscored."""
    if isinstance(reply, Exception):
        return {"score": reply, "parsed": None}
    try:
        return {"score": read_score(reply, parse, low, high), "parsed": 1.0}
    except ValueError as error:
        return {"score": error, "parsed": 0.0}


def worthless(completion: Any, prompt: Any) -> bool:
    """A text without an answer, or with nothing but its question."""
    return isinstance(completion, str) and (not answers.extract(completion).strip() or repeats(completion, prompt))


def conversation(
    prompt: Any, completion: Any, solution: Any, images: Any, videos: Any, template: str, system: str | None,
    shown: bool, frames: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The messages of one row: pictures first, then the filled template."""
    said = completion if isinstance(completion, str) else ""
    texts = {
        "question": asked_text(prompt), "completion": said, "answer": answers.extract(said) if said else "",
        "reference": "" if solution is None else str(solution),
    }  # fmt: skip
    looked = pictures(completion, images, videos, shown, frames)
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_uri(each)}} for each in looked]
    content.append({"type": "text", "text": filled(template, **texts)})
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": content}]
