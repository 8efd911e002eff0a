"""Rewards of another machine or environment, asked over HTTP. Answers are JSON; nothing is unpickled.

    {name: served, options: {url: "http://scorer:8090/score", rewards: [hpsv2, pickscore]}, weight: {hpsv2: 1}}

Two protocols:

    panel   POST {"requests": [{"history": [{"text"}, {"text" | "image_b64" | "video_b64"}], "required_rewards": [...],
            "metadata": {...}}]} -> {"results": [{"hpsv2": {"hpsv2": .27}}], "errors": [{}]}; `mmrl serve-rewards` does
    lists   POST {"prompt": [...], "image": [base64], "video": [[base64]], "condition_images": [[base64]],
            "condition_videos": [...], "extra": [...]} -> {"rewards": [...]}, as Flow-Factory's servers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.over_http import to_base64
from mmrl.rewards.http import Server, ServerError
from mmrl.rewards.pictures import frames_of, is_image
from mmrl.rewards.registry import reward
from mmrl.rewards.tasks import asked_text

PROTOCOLS = ("panel", "lists")
LEFT_OUT = frozenset(("images", "videos", "prompt_id"))


def check_served(
    row: Mapping[str, Any], *, url: str = "", protocol: str = "panel", rewards: Any = (), **_: Any
) -> None:
    """RewardError for an address or protocol that could score nothing."""
    Server(url)
    if protocol not in PROTOCOLS:
        raise RewardError(f"served: {unknown('protocol', protocol, PROTOCOLS)}")
    if protocol == "panel" and not rewards:
        raise RewardError("served: name the rewards that the server should give: rewards=[hpsv2]")


@reward("served", isolated=False, check=check_served)
def served(
    prompts, completions, images=None, videos=None, *,
    url: str = "", rewards: Sequence[str] = (), protocol: str = "panel", batch_size: int = 16, concurrency: int = 4,
    timeout: float = 120.0, retries: int = 3, key_env: str | None = None, frames: int = 8, image_format: str = "PNG",
    **columns,
) -> list[dict[str, Any]]:  # fmt: skip
    """What a server says: a component for each of `rewards`; a single weight goes to their sum, a mapping to each.

    protocol      panel (one round trip for all rewards; `mmrl serve-rewards`) or lists (base64 lists, as Flow-Factory)
    batch_size    rows in one request
    frames        frames sent of a clip under `lists`, and of generated clips
    """
    check_served({}, url=url, protocol=protocol, rewards=rewards)
    server, count = Server(url, timeout, retries, key_env), len(completions)
    rows = [
        {
            "prompt": asked_text(prompts[i]) if prompts is not None else "", "completion": completions[i],
            "images": images[i] if images else [], "videos": videos[i] if videos else [],
            "columns": {k: v[i] for k, v in columns.items() if k not in LEFT_OUT},
        }
        for i in range(count)
    ]  # fmt: skip
    parts = [rows[i : i + batch_size] for i in range(0, count, batch_size)]
    ask = _panel if protocol == "panel" else _lists
    with ThreadPoolExecutor(max(1, min(concurrency, len(parts)))) as threads:
        answers = threads.map(lambda part: ask(server, part, list(rewards), frames, image_format), parts)
        return [score for part in answers for score in part]


def _panel(server: Server, rows: list[dict], wanted: list[str], frames: int, image: str) -> list[dict[str, Any]]:
    body = {"requests": [_request(row, wanted, frames, image) for row in rows]}
    try:
        answer = server.ask(body)
        results, errors = answer["results"], answer.get("errors") or [{}] * len(rows)
        if len(results) != len(rows) or len(errors) != len(rows):
            raise ServerError(f"the server answered {len(results)} results for {len(rows)} requests")
        return [_components(result, error, wanted) for result, error in zip(results, errors, strict=True)]
    except (KeyError, TypeError, AttributeError):
        error: Exception = ServerError("the answer has no `results`: is this a panel server?")
        return [_summed(dict.fromkeys(wanted, error), wanted)] * len(rows)
    except ServerError as error:
        return [_summed(dict.fromkeys(wanted, error), wanted)] * len(rows)


def _request(row: dict, wanted: list[str], frames: int, image: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"text": row["prompt"]}
    if row["images"]:
        asked["image_b64"] = [to_base64(each, image) for each in row["images"]]
    said: dict[str, Any]
    if isinstance(row["completion"], str):
        said = {"text": row["completion"]}
    elif is_image(row["completion"]):
        said = {"image_b64": to_base64(row["completion"], image)}
    else:
        said = {"video_b64": [to_base64(each, image) for each in frames_of(row["completion"], frames)]}
    return {"history": [asked, said], "required_rewards": wanted, "metadata": _plain(row["columns"])}


def _components(result: Any, error: Any, wanted: list[str]) -> dict[str, Any]:
    """{"hpsv2": {"hpsv2": .27}} as {"hpsv2": .27}, {"videoalign": {"VQ": 1}} as {"videoalign/VQ": 1}."""
    found: dict[str, Any] = {}
    for name in wanted:
        value = result.get(name)
        if isinstance(value, Mapping) and set(value) == {name}:
            found[name] = _number(value[name])
        elif isinstance(value, Mapping) and value:
            found |= {f"{name}/{key}": _number(each) for key, each in value.items()}
            main = next((value[key] for key in (name, "score", "overall") if key in value), None)
            found[name] = _number(main) if main is not None else _mean(value.values())
        elif value is not None and not isinstance(value, Mapping):
            found[name] = _number(value)
        else:
            why = error.get(name) if isinstance(error, Mapping) else error
            found[name] = ServerError(str(why)[:120] if why else f"the server gave no {name}")
    return _summed(found, wanted)


def _summed(found: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """With `score`, the sum of the rewards asked for, which a single weight goes to; unscored where one of them is."""
    broken = next((found[name] for name in wanted if isinstance(found[name], Exception)), None)
    return {**found, "score": sum(float(found[name]) for name in wanted) if broken is None else broken}


def _mean(values: Any) -> float | Exception:
    numbers = [_number(each) for each in values]
    broken = next((each for each in numbers if isinstance(each, Exception)), None)
    return broken if broken is not None else sum(each for each in numbers if isinstance(each, float)) / len(numbers)


def _number(value: Any) -> float | Exception:
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return ServerError(f"the server answered {str(value)[:40]!r}, no number")


def _lists(server: Server, rows: list[dict], wanted: list[str], frames: int, image: str) -> list[dict[str, Any]]:
    body: dict[str, list] = {
        "prompt": [row["prompt"] for row in rows],
        "condition_images": [[to_base64(each, image) for each in row["images"]] for row in rows],
        "condition_videos": [[_clip(each, frames, image) for each in row["videos"]] for row in rows],
        "extra": [_plain(row["columns"]) for row in rows],
    }
    kinds = {_kind(row["completion"]) for row in rows}
    if len(kinds) > 1:
        raise RewardError("served: a batch of texts, pictures and clips together; the protocol 'lists' takes one kind")
    kind = kinds.pop()
    made: Callable[[Any], Any] = str if kind == "text" else partial(_clip, frames=frames, image=image)
    made = partial(to_base64, kind=image) if kind == "image" else made
    body["completion" if kind == "text" else kind] = [made(row["completion"]) for row in rows]
    try:
        answer = server.ask(body)
        given = answer["rewards"]
        if len(given) != len(rows):
            raise ServerError(f"the server answered {len(given)} rewards for {len(rows)} rows")
        return [{"score": _number(each)} for each in given]
    except (KeyError, TypeError):
        return [{"score": ServerError("the answer has no `rewards`: is this a server of lists?")}] * len(rows)
    except ServerError as error:
        return [{"score": error}] * len(rows)


def _kind(completion: Any) -> str:
    return "text" if isinstance(completion, str) else "image" if is_image(completion) else "video"


def _clip(video: Any, frames: int, image: str) -> list[str]:
    return [to_base64(each, image) for each in frames_of(video, frames)]


def _plain(value: Any) -> Any:
    """What JSON can hold; anything else is left out."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else None
