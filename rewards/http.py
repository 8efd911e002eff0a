"""Asking a server for JSON: retries with growing pauses, a time limit, a body limit; what comes back is data.

Only JSON is read: an answer of another kind is refused whatever it holds, since unpickling one would run its code. What
cannot work however often it is tried (401, 404, 422, a bad address) is a RewardError and stops the run; what may pass
(busy, broken, slow) is tried again and then a ServerError: its rows are unscored, and counted.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from mmrl.errors import RewardError

MOST_BYTES = 64 * 2**20
SHOWN = 200
AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
LONGEST_ASKED = 120.0  # seconds of a pause that a server may ask for


class ServerError(Exception):
    """A server that did not answer, or not with what was asked for."""


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently.

    url      http or https, with the path
    timeout  seconds for one answer
    retries  how often a request that failed is tried again
    key_env  the environment variable that holds the key, sent as a bearer token; keys do not belong in configurations
    """

    url: str
    timeout: float = 60.0
    retries: int = 3
    key_env: str | None = None

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RewardError(f"url is {self.url!r}; expected an address such as http://127.0.0.1:8000/score")
        if parts.username or parts.password:
            raise RewardError("url holds a password; name the environment variable of a key: key_env=MY_KEY")
        if self.key_env and self.key_env not in os.environ:
            raise RewardError(f"the environment variable {self.key_env} is not set; it should hold the server's key")

    def ask(self, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers with. Raises ServerError, or RewardError for what no retry can mend."""
        data = json.dumps(body).encode()
        for left in range(self.retries, -1, -1):
            try:
                return self._once(data)
            except _Again as error:
                if not left:
                    raise ServerError(str(error)) from None
                time.sleep(error.pause or _pause(self.retries - left))
        raise AssertionError("unreachable")

    def _once(self, data: bytes) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        request = urllib.request.Request(self.url, data=data, headers=headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                return _read(answer, self._name)
        except urllib.error.HTTPError as error:
            with error:
                said = " ".join(error.read(10_000).decode("utf-8", "replace").split())[:SHOWN]
            message = f"{self._name} answered {error.code}: {said or error.reason}"
            if error.code in AGAIN:
                raise _Again(message, _asked_pause(error.headers.get("Retry-After"))) from None
            raise RewardError(message) from None
        except TimeoutError:
            raise _Again(f"{self._name} did not answer in {self.timeout:g} s") from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            why = getattr(error, "reason", error)
            late = isinstance(why, TimeoutError)
            message = (
                f"did not answer in {self.timeout:g} s" if late else f"cannot be reached: {why or type(why).__name__}"
            )
            raise _Again(f"{self._name} {message}") from None

    @property
    def _name(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc


class _Again(Exception):
    """Worth another try, after `pause` seconds where the server asked for some."""

    def __init__(self, message: str, pause: float | None = None):
        super().__init__(message)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not follow to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(answer: Any, name: str) -> Any:
    kind = answer.headers.get_content_type()
    if kind == "text/html":  # what stands before a server may answer while that is away
        title = re.search(rb"<title[^>]*>(.{0,200}?)</title>", answer.read(100_000), re.IGNORECASE | re.DOTALL)
        about = " ".join(title[1].decode("utf-8", "replace").split())[:60] if title else ""
        raise _Again(f"{name} answered a page of HTML{about and f', {about!r}'}; rewards read application/json")
    if kind != "application/json":
        raise RewardError(f"{name} answered {kind}; rewards read application/json alone, and unpickle nothing")
    data = answer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ServerError(f"{name} answered more than {MOST_BYTES >> 20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _Again(f"{name} answered what is no JSON: {data[:60]!r}") from None


def _pause(tried: int) -> float:
    """Growing, and spread, so that many workers do not come back at once."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried) * (0.5 + random.random() / 2)


def _asked_pause(header: str | None) -> float | None:
    """Seconds of a `Retry-After`, which may also be a date; None for none."""
    try:
        seconds = float(header or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(LONGEST_ASKED, max(0.0, seconds)) if math.isfinite(seconds) else None
