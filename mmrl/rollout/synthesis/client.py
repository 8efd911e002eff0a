"""The data server as a run sees it: samples are put, drawn there while the run goes on, and taken when they are ready.

    POST /samples  {"samples": [{"id", "description", "question", "solution", "task", "image_b64"}]}
                   -> {"taken": 2, "waiting": 5}                an id that is known is left alone
    POST /take     {"name": "0-12-9f3a", "ids": [...], "wait": 5.0}
                   -> {"ready": [{"id", "image_b64", "solution"?}], "failed": [{"id", "error"}], "unknown": [ids]}
    GET /health    -> {"waiting": 5, "ready": 2}

The first to take under a name fixes the answer, and whoever asks under it again gets the same: so all ranks of a run,
and a run that was resumed, go on with the same samples. Bodies are JSON; pictures are base64 of PNG, JPEG or WebP.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmrl.errors import ConfigError, MMRLError
from mmrl.over_http import MOST_BYTES, from_base64


@dataclass(frozen=True)
class Taken:
    """What one `take` came to: {id: (picture, its truth where the server says another)}, {id: why not}, unknown ids."""

    ready: Mapping[str, tuple[Image.Image, Any]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataServer:
    """Where `mmrl serve-samples` listens, or a server of yours that speaks the same.

    timeout  seconds for one answer, besides the `wait` that was asked for
    retries  how often a request that failed is tried again, after pauses that double from half a second
    key_env  the environment variable that holds the key, sent as a bearer token
    """

    url: str
    timeout: float = 60.0
    retries: int = 4
    key_env: str | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(
                f"url is {self.url!r}; expected where `mmrl serve-samples` listens, such as http://127.0.0.1:8091"
            )
        if self.key_env and self.key_env not in os.environ:
            raise ConfigError(f"the environment variable {self.key_env} is not set; it should hold the server's key")

    def put(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Ask for these to be drawn."""
        if samples:
            self._ask("/samples", {"samples": list(samples)})

    def take(self, name: str, ids: Sequence[str], wait: float = 0.0) -> Taken:
        """What is ready of `ids`, after waiting at most `wait` seconds for all of them."""
        if not ids:
            return Taken()
        found = self._ask("/take", {"name": name, "ids": list(ids), "wait": wait}, wait)
        try:
            ready = {
                str(s["id"]): (from_base64(s["image_b64"]).convert("RGB"), s.get("solution")) for s in found["ready"]
            }
            failed = {str(s["id"]): str(s["error"])[:200] for s in found["failed"]}
            return Taken(ready, failed, tuple(map(str, found["unknown"])))
        except (KeyError, TypeError, ValueError) as error:
            raise MMRLError(f"data server {self.url}: /take answered what is not of the protocol: {error}") from None

    def _ask(self, path: str, body: Mapping[str, Any], wait: float = 0.0) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        request = urllib.request.Request(self.url.rstrip("/") + path, json.dumps(body).encode(), headers)
        for tried in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout + wait) as answer:
                    return json.loads(answer.read(MOST_BYTES))
            except urllib.error.HTTPError as error:
                said = error.read(500).decode("utf-8", "replace")
                problem, again = f"answered {error.code}: {said}", error.code >= 500 or error.code == 429
            except (OSError, ValueError) as error:
                problem, again = f"cannot be reached: {getattr(error, 'reason', error)}", True
            if not again or tried == self.retries:
                raise MMRLError(f"data server {self.url}{path} {problem}")
            time.sleep(0.5 * 2**tried)
        raise AssertionError("unreachable")
