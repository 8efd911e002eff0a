"""Engines that Ray placed, and what a trainer asks them with: `mmrl launch --ray`, `placement.engines`.

Each engine is an actor with a model of its own: that of `policy.engine`, or transformers' decoding where it says
`local`, which follows the trainer's draws, so that the run is the one without Ray. Weights go into Ray's object store
once per update, where every engine of a machine maps the same memory; an engine fetches those that a request names,
so one that Ray made again after its death is asked again and catches up by itself. A prompt with its media travels
once per group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.placed import Placed, placed
from mmrl.policies.language.encoded import with_features
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting
from mmrl.policies.language.sampling import Decoded
from mmrl.policies.registry import policy_class
from mmrl.shown import one_line, tell

BOARD = "weights"
LOOK_SECONDS, PATIENCE_SECONDS = 0.05, 600.0
Version = tuple[int, int]
"""(attempt of the trainers, how often they have given weights)."""


class Board:
    """Where the newest weights lie in the object store, and as many before them as rows may still be asked of. An
    actor: references to them, not they, are kept here."""

    def __init__(self) -> None:
        self.kept: dict[Version, list[Any]] = {}

    def publish(self, version: Version, kept: list[Any], last: int = 1) -> None:
        """last  how many versions stay, this one included"""
        self.kept = dict(sorted((self.kept | {version: kept}).items())[-last:])

    def fetch(self, version: Version) -> list[Any] | None:
        """None where they are not here yet, or no longer."""
        return self.kept.get(version)


class EngineActor:
    """A policy whose engine writes for trainers elsewhere. It has no adapters: weights come merged."""

    def __init__(self, modality: str, settings: dict[str, Any], namespace: str, read_clip: Callable | None = None):
        kind = policy_class(modality)
        config = kind.config_type(**settings | {"lora": None, "adapter": None, "engine": with_whole_weights(settings)})
        self.policy = kind.from_config(config, read_clip=read_clip)
        if torch.cuda.is_available() and not self.policy.bridge.capabilities.own_weights:
            self.policy.module.to("cuda")
        self.namespace = namespace
        self.version: Version | None = None

    def pid(self) -> int:
        return os.getpid()

    def write(
        self, version: Version, contexts: list[Context], place: list[int], budgets: Tensor, draws: list[Draw] | None
    ) -> tuple[Decoded, int]:
        """Rows that continue `contexts[place[i]]` with these weights; and which process wrote them."""
        self._hold(version)
        engine = self.policy.bridge.engine
        self.policy.bridge.refuse_media(contexts)
        with self.policy.acting():
            written = engine.write([contexts[p] for p in place], budgets, draws)
        parts = (written.tokens, written.log_probs, written.length, written.stopped)
        return Decoded(*(part.cpu() for part in parts)), os.getpid()

    def _hold(self, version: Version) -> None:
        import ray

        if version == self.version:
            return
        board, until = ray.get_actor(BOARD, namespace=self.namespace), time.monotonic() + PATIENCE_SECONDS
        while (kept := ray.get(board.fetch.remote(version))) is None:
            if time.monotonic() > until:
                raise PolicyError(f"no trainer gave weights {version} in {PATIENCE_SECONDS:.0f} seconds")
            time.sleep(LOOK_SECONDS)
        self._take(ray.get(kept[0]))
        self.version = version

    @torch.no_grad()
    def _take(self, weights: dict[str, Tensor]) -> None:
        engine = self.policy.bridge.engine
        if engine.capabilities.own_weights:
            engine.sync(iter(weights.items()))
            return
        own = dict(self.policy.inner.model.named_parameters())
        if own.keys() != weights.keys():
            unlike = sorted(own.keys() ^ weights.keys())
            raise PolicyError(f"weights of another model: {', '.join(unlike[:3])} stand in one of the two alone")
        for name, weight in weights.items():
            own[name].copy_(weight)


def with_whole_weights(settings: dict[str, Any]) -> Any:
    """`policy.engine` of a policy without adapters."""
    engine = settings["engine"]
    return {n: v for n, v in engine.items() if n != "lora"} if isinstance(engine, dict) else engine


class RayEngine:
    """The trainer's side. Ray asks again what an engine that died was asked; who it was is told."""

    capabilities: ClassVar[EngineCapabilities] = EngineCapabilities(
        exact_log_probs=True, media=frozenset({"image", "video"}), turns=True
    )

    def __init__(self, setting: Setting):
        found = placed()
        if found is None or not found.engines:
            raise ConfigError("this engine lives where Ray placed it: start the run with mmrl launch --ray CONFIG")
        self.placed, self.given = found, 0
        self.actors = {name: found.actor(name) for name in mine(found)}
        self.processes: dict[str, int] = {}

    def sync(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """The first trainer puts them into the object store; the others only take part in making them whole."""
        import ray

        self.given += 1
        first, held = self.placed.rank == 0, {}
        for name, weight in weights:
            if first:
                held[name] = weight.detach().to("cpu", copy=True)
        if first:
            board = self.placed.actor(BOARD)
            ray.get(board.publish.remote(self._version, [ray.put(held)], self.placed.ahead + 1))

    @property
    def _version(self) -> Version:
        return self.placed.attempt, self.given

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`; whole groups go to one engine each, in turn."""
        import ray

        distinct = list(dict.fromkeys(contexts))
        names = list(self.actors)
        where = {context: names[i % len(names)] for i, context in enumerate(distinct)}
        asked, order = {}, []
        for name in names:
            rows = [row for row, context in enumerate(contexts) if where[context] == name]
            if rows:
                order += rows
                asked[name] = self._ask(name, [c for c in distinct if where[c] == name], contexts, rows, budgets, draws)
        parts = []
        for name, reference in asked.items():
            try:
                written, process = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise PolicyError(f"{name}: {error.cause}") from None
            except ray.exceptions.ActorDiedError as error:  # for good: where it was made once it is made again
                raise PolicyError(f"{name} could not be made: {last_line(error)}") from None
            if self.processes.setdefault(name, process) != process:
                tell(f"{name} (process {self.processes[name]}) died and was replaced by process {process}")
                self.processes[name] = process
            parts.append(written)
        return _in_order(Decoded.join(parts), order)

    def _ask(
        self, name: str, some: list[Context], contexts: Sequence[Context], rows: list[int], budgets: Tensor,
        draws: Sequence[Draw] | None,
    ) -> Any:  # fmt: skip
        place = {context: i for i, context in enumerate(some)}
        sent = [replace(c, encoded=with_features(c.encoded, None), prefill=None) for c in some]
        drawn = None if draws is None else [draws[row] for row in rows]
        return self.actors[name].write.remote(
            self._version, sent, [place[contexts[row]] for row in rows], budgets[rows], drawn
        )


def last_line(error: Exception) -> str:
    """What an actor died of: the end of the traceback that Ray shows."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)


def mine(found: Placed) -> list[str]:
    """The engines that a trainer asks: those that are its own, or one it shares."""
    own = [e for e in range(found.engines) if e % found.world == found.rank % found.engines]
    return [f"engine-{e}" for e in own if found.engines >= found.world] or [f"engine-{found.rank % found.engines}"]


def _in_order(written: Decoded, order: list[int]) -> Decoded:
    """Rows as they were asked for: row i of `written` answers `order[i]`."""
    back = torch.tensor(order).argsort()
    return Decoded(written.tokens[back], written.log_probs[back], written.length[back], written.stopped[back])
