"""`mmrl serve-rewards CONFIG`: the rewards of one machine for runs of others, by the protocol of `models.served`.

    rewards:
      - {name: hpsv2, python: /opt/hpsv2/bin/python}
      - {name: clip_score, options: {model: ViT-L-14, pretrained: openai}}
    host: 127.0.0.1
    port: 8090

It binds to loopback unless told otherwise, reads JSON of a limited size, opens PNG, JPEG and WebP of a limited number
of pixels and no path of the sender's, and answers each request's rewards or why they are missing. GET /health lists
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from mmrl.errors import ConfigError
from mmrl.over_http import JsonServer, from_base64
from mmrl.record import Prompt
from mmrl.rewards.calls import WHOLE
from mmrl.rewards.panel import MAIN_KEYS, Member, RewardPanel, RewardSpec
from mmrl.rewards.rows import gather_inputs, problem_of, score_rows
from mmrl.settings import Section

MOST_REQUESTS = 1024


class ServeConfig(Section):
    """What `mmrl serve-rewards` reads.

    rewards   the rewards that it serves, as in a run; weights mean nothing here
    host      127.0.0.1: this machine alone. Anyone who reaches the address may ask
    port      0: any free one, which is printed
    workers   processes for rewards that are isolated
    timeout   seconds one call may take
    key_env   the environment variable with a key that requests must bring as a bearer token
    """

    rewards: list[RewardSpec] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(8090, ge=0, le=65535)
    workers: int = Field(2, ge=1)
    timeout: float = Field(120.0, gt=0)
    key_env: str | None = None

    @field_validator("rewards", mode="before")
    @classmethod
    def _names_will_do(cls, value: Any) -> Any:
        """`accuracy` and `[accuracy, format]`, as in a run."""
        several = [value] if isinstance(value, str | Mapping) else value
        return [{"name": v} if isinstance(v, str) else v for v in several] if isinstance(several, list) else several


class RewardServer:
    """A panel behind an address: `serve_forever()`, or `answer(body)` without any network."""

    def __init__(self, config: ServeConfig):
        self.panel = RewardPanel(
            [{**spec.model_dump(exclude_unset=True), "weight": 1.0} for spec in config.rewards],
            workers=config.workers, default_timeout=config.timeout, unscored_ceiling=1.0,
        )  # fmt: skip
        self.members = {member.label: member for member in self.panel.members}
        posts, health = {"/score": self.answer}, lambda: {"rewards": list(self.members)}
        try:
            self.http = JsonServer(posts, health, host=config.host, port=config.port, key_env=config.key_env)
        except ConfigError:
            self.panel.close()
            raise

    @property
    def url(self) -> str:
        return f"{self.http.url}/score"

    def serve_forever(self) -> None:
        self.http.serve_forever()

    def close(self) -> None:
        self.http.close()
        self.panel.close()

    def answer(self, body: Any) -> dict[str, Any]:
        """{"results", "errors"} of a request's body. ValueError for what is no request of the protocol."""
        requests = body.get("requests") if isinstance(body, Mapping) else None
        if not isinstance(requests, list) or not requests or len(requests) > MOST_REQUESTS:
            raise ValueError(f"expected {{'requests': [...]}} with 1 to {MOST_REQUESTS} of them")
        rows = [_row(each, i) for i, each in enumerate(requests)]
        results: list[dict[str, dict]] = [{} for _ in rows]
        errors: list[dict[str, str]] = [{} for _ in rows]
        for label in dict.fromkeys(label for row in rows for label in row["wanted"]):
            places = [i for i, row in enumerate(rows) if label in row["wanted"]]
            if label not in self.members:
                told = f"no such reward; this server has {', '.join(self.members)}"
                for i in places:
                    errors[i][label] = told
                continue
            for i, found in zip(places, _scored(self.members[label], [rows[i] for i in places]), strict=True):
                if isinstance(found, str):
                    errors[i][label] = found
                else:
                    results[i][label] = found
        return {"results": results, "errors": errors}


def _scored(member: Member, rows: list[dict]) -> list[dict[str, float] | str]:
    """Each row's components, or why there are none."""
    try:
        inputs = gather_inputs(
            member.label, member.columns, [row["completion"] for row in rows], [row["prompt"] for row in rows]
        )
        outcomes = score_rows(member.call, inputs, len(rows) + 1).outcomes
    except Exception as error:
        if len(rows) == 1:
            return [f"{type(error).__name__}: {error}"[:300]]
        return [found for row in rows for found in _scored(member, [row])]
    found: list[dict[str, float] | str] = []
    for outcome in outcomes:
        values = {key: v for key, v in outcome.values.items() if v == v}
        main = next((key for key in (WHOLE, *MAIN_KEYS) if key in values), None)
        named = {(member.label if key == main else key): value for key, value in values.items()}
        found.append(named or problem_of(outcome, next(iter(outcome.problems), WHOLE)) or "no number")
    return found


def _row(request: Any, place: int) -> dict[str, Any]:
    """The prompt, the completion and the rewards wanted of one request."""
    what = f"request {place}"
    history = request.get("history") if isinstance(request, Mapping) else None
    wanted = request.get("required_rewards") if isinstance(request, Mapping) else None
    if not isinstance(history, list) or not history or not all(isinstance(turn, Mapping) for turn in history):
        raise ValueError(f"{what}: history is no list of turns")
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise ValueError(f"{what}: required_rewards is no list of names")
    if any("video_path" in turn for turn in history):
        raise ValueError(f"{what}: video_path is a place on the sender's disk; send video_b64, a list of frames")
    *before, last = history
    asked = [turn for turn in before if turn.get("text") or turn.get("image_b64")] or [last]
    images = [from_base64(each, what) for turn in before for each in _listed(turn.get("image_b64"))]
    text = "\n".join(str(turn.get("text") or "") for turn in asked)
    columns = request.get("metadata") or {}
    if not isinstance(columns, Mapping):
        raise ValueError(f"{what}: metadata is no mapping")
    prompt = Prompt(str(place), [{"role": "user", "content": text}], images, columns=dict(columns))
    return {"prompt": prompt, "completion": _made(last, what), "wanted": wanted}


def _made(turn: Mapping[str, Any], what: str) -> Any:
    """What is judged: a picture, a list of frames, or a text."""
    if turn.get("image_b64"):
        given = _listed(turn["image_b64"])
        if len(given) != 1:
            raise ValueError(f"{what}: the last turn has {len(given)} pictures; one is judged")
        return from_base64(given[0], what)
    if turn.get("video_b64"):
        if not isinstance(turn["video_b64"], list):
            raise ValueError(f"{what}: video_b64 is a list of frames")
        return [from_base64(each, what) for each in turn["video_b64"]]
    if not isinstance(turn.get("text"), str):
        raise ValueError(f"{what}: the last turn has neither text, image_b64 nor video_b64")
    return turn["text"]


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]
