"""An environment in worker processes with a time limit: what raises, hangs or dies there loses one row.

Conversations about one prompt go to one worker, which is sent the prompt once. If a worker has to be killed, its other
conversations are played again in a new one: an environment decides from the prompt and the outputs alone.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl import plugins
from mmrl.errors import DataError, RewardError
from mmrl.media import Clip, FrameList
from mmrl.record import Prompt
from mmrl.rewards.pool import LOAD_SECONDS, CallFailed, Worker
from mmrl.rollout.environments.base import Done, Environment, Lost, Observation, count, turns_of
from mmrl.rollout.environments.opening import environment_of

MODULE = "mmrl.pipelines.environment_worker"


@dataclass(eq=False)
class Talk:
    """A conversation: its prompt, what was said, and the worker that knows it, counted by how often it was replaced."""

    number: int
    prompt: Prompt
    lane: int
    said: list[str] = field(default_factory=list)
    known: int = -1


class Lane:
    """A worker and what it knows. Used by one thread at a time."""

    def __init__(self, choice: dict[str, Any], timeout: float) -> None:
        self.choice, self.timeout, self.generation = choice, timeout, 0
        self.worker: Worker | None = None
        self.prompts: set[str] = set()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.worker is None or not self.worker.alive:
            self.close()
            self.worker = Worker(MODULE)
            self.worker.ask({"op": "load", "choice": self.choice}, LOAD_SECONDS)
            self.generation += 1
        try:
            return self.worker.ask(request, self.timeout)
        except CallFailed:
            if not self.worker.alive:
                self.close()
            raise

    def begin(self, talk: Talk) -> Talk:
        """`talk`, which the worker now knows up to what was said last."""
        if talk.known == self.generation and self.worker is not None:
            return talk
        if talk.prompt.id not in self.prompts:
            self._bring(talk.prompt)
        self.ask({"op": "reset", "talk": talk.number, "prompt": talk.prompt.id})
        for output in talk.said:
            self.ask({"op": "step", "talk": talk.number, "output": output})
        talk.known = self.generation
        return talk

    def reply(self, talk: Talk, output: str) -> Observation | Done:
        self.begin(talk)
        return unpacked_reply(self.ask({"op": "step", "talk": talk.number, "output": output}))

    def _bring(self, prompt: Prompt) -> None:
        try:
            self.ask({"op": "prompt", "prompt": packed_prompt(prompt)})
        except RewardError as error:
            self.close()
            raise DataError(
                f"prompt {prompt.id!r} cannot go to the environment's worker: {error}; environment_run.isolated=false "
                "keeps the environment in this process"
            ) from None
        self.prompts.add(prompt.id)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        self.worker, self.prompts = None, set()

    def forget(self) -> None:
        """Nothing that was talked about before is asked again."""
        if self.worker is not None and self.worker.alive:
            self.ask({"op": "forget"})
        self.prompts = set()


class Apart:
    """`mmrl.rollout.environments.base.Surroundings` in worker processes.

    choice   the environment as a configuration names it
    workers  processes that answer at once
    timeout  seconds a call may take
    """

    def __init__(
        self, choice: str | Mapping[str, Any], *, workers: int = 2, timeout: float = 30.0, ceiling: float = 0.5
    ) -> None:
        environment: Environment = environment_of(choice).state
        self.columns, self.max_turns, self.ceiling = environment.columns, turns_of(environment), ceiling
        self.turn_columns = environment.turn_columns
        self.counts: Counter = Counter()
        named = {"name": choice} if isinstance(choice, str) else dict(choice)
        self._lanes = [Lane(plugins.absolute(named, [Path.cwd()]), timeout) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="environment")
        self._talks = 0

    def reset(self, prompts: Sequence[Prompt]) -> list[Any]:
        talks = []
        for prompt in prompts:
            talks.append(Talk(self._talks, prompt, zlib.crc32(prompt.id.encode()) % len(self._lanes)))
            self._talks += 1
        for lane in self._lanes:
            lane.forget()
        return self._each(talks, lambda lane, i: _tried(lambda: lane.begin(talks[i])))

    def step(self, conversations: Sequence[Talk], outputs: Sequence[str]) -> list[Observation | Done | Lost]:
        def one(lane: Lane, i: int) -> Any:
            talk = conversations[i]
            reply = _tried(lambda: lane.reply(talk, outputs[i]))
            talk.said.append(outputs[i])
            return reply

        replies = self._each(conversations, one)
        count(self.counts, replies)
        return replies

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._threads.shutdown()

    def _each(self, talks: Sequence[Talk], call: Any) -> list[Any]:
        """`call(lane, i)` for each conversation: lanes side by side, those of a lane one after another."""
        results: list[Any] = [None] * len(talks)

        def work(number: int) -> None:
            for i, talk in enumerate(talks):
                if talk.lane == number:
                    results[i] = call(self._lanes[number], i)

        for done in [self._threads.submit(work, number) for number in range(len(self._lanes))]:
            done.result()
        return results


def _tried(call: Any) -> Any:
    try:
        return call()
    except CallFailed as error:
        return Lost(error.cause)


def packed_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt as it travels."""
    return {
        "id": prompt.id, "messages": prompt.messages, "images": list(prompt.images), "columns": prompt.columns,
        "videos": [packed_video(v) for v in prompt.videos],
    }  # fmt: skip


def unpacked_prompt(values: dict[str, Any]) -> Prompt:
    return Prompt(**values | {"videos": [unpacked_video(v) for v in values["videos"]]})


def packed_video(video: Any) -> Any:
    if isinstance(video, Clip):
        return {"clip": [video.path, video.start, video.end]}
    if isinstance(video, FrameList):
        return {"frames": list(video.paths), "fps": video.fps}
    return {"other": video}


def unpacked_video(values: dict[str, Any]) -> Any:
    if "clip" in values:
        return Clip(*values["clip"])
    return FrameList(tuple(values["frames"]), values["fps"]) if "frames" in values else values["other"]


def packed_reply(reply: Observation | Done) -> dict[str, Any]:
    if isinstance(reply, Done):
        return {"done": dict(reply.columns), "of_turn": dict(reply.of_turn)}
    return {
        "messages": [dict(m) for m in reply.messages], "images": list(reply.images), "bad": reply.bad,
        "videos": [packed_video(v) for v in reply.videos], "of_turn": dict(reply.of_turn),
    }  # fmt: skip


def unpacked_reply(values: dict[str, Any]) -> Observation | Done:
    if "done" in values:
        return Done(values["done"], values["of_turn"])
    videos = tuple(unpacked_video(v) for v in values["videos"])
    return Observation(values["messages"], tuple(values["images"]), videos, values["bad"], values["of_turn"])
