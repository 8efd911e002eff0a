"""`mmrl serve-samples DRAW`: new pictures for a run's questions, drawn in its own process by the protocol of `client`.

    def draw(sample):          # {"image": PIL, "description", "question", "solution", "task", "id"}
        return picture         # or (picture, solution) where the new picture has another truth

An error that `draw` raises is the sample's: it is told to the run, which counts it, and the others go on.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mmrl.errors import ConfigError
from mmrl.over_http import JsonServer, from_base64, to_base64
from mmrl.plugins import load_file

Draw = Callable[[Mapping[str, Any]], Any]
MOST_SAMPLES = 100_000  # held at once; beyond, the oldest that were drawn are forgotten
MOST_NAMES = 64  # answers of /take that are remembered
LONGEST_WAIT = 600.0


class Samples:
    """The samples themselves, without any network: put, drawn by threads, taken."""

    def __init__(self, draw: Draw, workers: int = 1) -> None:
        self.draw, self.queue = draw, SimpleQueue[str]()
        self.asked: dict[str, Mapping[str, Any]] = {}
        self.done: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.changed = threading.Condition()
        for _ in range(workers):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, samples: Any) -> dict[str, int]:
        """ValueError for what is no list of samples."""
        if not isinstance(samples, list) or not all(isinstance(s, Mapping) and _is_text(s.get("id")) for s in samples):
            raise ValueError("expected {'samples': [{'id', 'description', 'image_b64', ...}]}")
        made = {s["id"]: {**s, "image": from_base64(s.get("image_b64")).convert("RGB")} for s in samples}
        with self.changed:
            new = [id_ for id_ in made if id_ not in self.asked and id_ not in self.done]
            for id_ in new:
                self.asked[id_] = made[id_]
                self.queue.put(id_)
            return {"taken": len(new), "waiting": len(self.asked)}

    def take(self, name: Any, ids: Any, wait: Any = 0.0) -> dict[str, Any]:
        """The first call under a name fixes its answer."""
        if not _is_text(name) or not isinstance(ids, list) or not all(map(_is_text, ids)):
            raise ValueError("expected {'name': text, 'ids': [texts], 'wait': seconds}")
        if not isinstance(wait, int | float) or not wait >= 0:
            raise ValueError(f"wait is {wait!r}; expected seconds, at least 0")
        until = time.monotonic() + min(wait, LONGEST_WAIT)
        with self.changed:
            while name not in self.answers and any(id_ in self.asked for id_ in ids):
                left = until - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    break
            if name not in self.answers:
                self.answers[name] = self._answer(ids)
                self.changed.notify_all()
            if len(self.answers) > MOST_NAMES:
                self.answers.popitem(last=False)
            return self.answers[name]

    def counts(self) -> dict[str, int]:
        return {"waiting": len(self.asked), "ready": len(self.done)}

    def _answer(self, ids: list[str]) -> dict[str, Any]:
        drawn = [{"id": id_, **self.done[id_]} for id_ in ids if id_ in self.done]
        return {
            "ready": [each for each in drawn if "error" not in each],
            "failed": [each for each in drawn if "error" in each],
            "unknown": [id_ for id_ in ids if id_ not in self.done and id_ not in self.asked],
        }

    def _work(self) -> None:
        while True:
            id_ = self.queue.get()
            found = self._drawn(self.asked[id_])
            with self.changed:
                del self.asked[id_]
                self.done[id_] = found
                if len(self.done) > MOST_SAMPLES:
                    self.done.popitem(last=False)
                self.changed.notify_all()

    def _drawn(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        try:
            made = self.draw({key: value for key, value in sample.items() if key != "image_b64"})
            picture, *truth = made if isinstance(made, tuple) else (made,)
            return {"image_b64": to_base64(picture), **({"solution": truth[0]} if truth else {})}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}


def drawer(name: str) -> Draw:
    """`surround`, or the function of a file: `path/to/file.py:function`. ConfigError for neither."""
    if name == "surround":
        from mmrl.rollout.synthesis.surround import surround

        return surround
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        raise ConfigError(f"draw is {name!r}; expected `surround`, or path/to/file.py:function")
    function = getattr(load_file(Path(place), f"draw {name!r}"), attribute, None)
    if not callable(function):
        raise ConfigError(f"{place} has no function {attribute!r}")
    return function


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


class SampleServer(JsonServer):
    """`samples` behind an address; loopback unless told otherwise."""

    def __init__(
        self, draw: Draw, *, host: str = "127.0.0.1", port: int = 8091, workers: int = 1, key_env: str | None = None
    ) -> None:
        self.samples = held = Samples(draw, workers)
        posts = {
            "/samples": lambda body: held.put(_object(body).get("samples")),
            "/take": lambda body: held.take(_object(body).get("name"), body.get("ids"), body.get("wait", 0.0)),
        }
        super().__init__(posts, held.counts, host=host, port=port, key_env=key_env)


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise ValueError("expected a JSON object")
    return body
