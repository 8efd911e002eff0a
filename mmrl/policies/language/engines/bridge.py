"""Between a language policy and its engine: told of new weights, and what it wrote looked over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting
from mmrl.policies.language.engines.begun import Ahead
from mmrl.policies.language.engines.names import engine_class, engine_options
from mmrl.policies.language.engines.weights import named_weights
from mmrl.policies.language.sampling import Decoded
from mmrl.randomness import Key

T = TypeVar("T")
OWN = "engine|"
"""Begins the name of a checkpoint's tensor that belongs to the engine."""
Write = Callable[[Sequence[Context], Tensor, Sequence[Draw] | None], tuple[Decoded, int]]
"""(contexts, budgets, draws) -> rows, and the version of the weights that wrote them; see `Engine.write`."""


def written(
    contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None, write: Write
) -> tuple[Decoded, int]:
    """The work of rows of one run."""
    return write(contexts, budgets, draws)


class Bridge:
    """version  optimizer steps the trainer's weights have behind them
    held     of the weights that the engine was last given; None: it must be given them before it acts
    ahead    what it was asked to write before it is due
    """

    def __init__(self, setting: Setting):
        self.name = setting.config.engine_name
        kind = engine_class(setting.config, here=True)
        self.setting = replace(setting, options=engine_options(setting.config, kind))
        self.engine = kind(self.setting)  # type: ignore[call-arg]
        self.version = 0
        self.held: int | None = None
        self.ahead = Ahead()

    @property
    def capabilities(self) -> EngineCapabilities:
        return self.engine.capabilities

    def write(
        self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None, model: Any, key: Key
    ) -> tuple[Decoded, int]:
        """What `model`, the adapted or plain model of transformers with whole weights, writes through the engine, and
        the version of the weights that wrote it: what was begun under `key`, or rows of the present weights."""
        prompts = [context.prompt.id for context in contexts]
        found = self.act(None if draws is None else key, prompts, model, partial(written, contexts, budgets, draws))
        done, version = found
        device = next(model.parameters()).device
        made = Decoded(
            done.tokens.to(device), done.log_probs.to(device), done.length.to(device), done.stopped.to(device),
            {name: values.to(device) for name, values in done.kept.items()},
        )  # fmt: skip
        return made, version

    def act(self, key: Key | None, prompts: Sequence[str], model: Any, work: Callable[[Write], T]) -> T:
        """`work(write)` with the present weights, or what it came to where it was begun under `key`.

        prompts  ids of the rows, to compare with those that were begun
        """
        if not self.capabilities.own_weights:
            return work(lambda *asked: (self.engine.write(*asked), self.version))
        if key is not None and (begun := self.ahead.take(key, prompts)) is not None:
            return cast(T, begun.written.result())
        weights = named_weights(model, merged=not self.capabilities.lora)
        return cast(T, self.ahead.run(lambda: work(self._writer(weights, self.version))))

    def begin(self, key: Key, prompts: Sequence[str], model: Any, work: Callable[[Write], Any]) -> None:
        """Let the engine do, with the weights of now, what `act` under this key will ask for."""
        self.ahead.begin(
            key, prompts, self.version,
            lambda: named_weights(model, merged=not self.capabilities.lora),
            lambda weights, version: work(self._writer(iter(weights), version)),
        )  # fmt: skip

    def _writer(self, weights: Iterator[tuple[str, Tensor]], version: int) -> Write:
        """Rows of these weights, looked over. The engine is given them before it first acts."""

        @torch.no_grad()
        def write(contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> tuple[Decoded, int]:
            self.refuse_media(contexts)
            if self.held != version:
                self.engine.sync(weights)
                self.held = version
            done = self.engine.write(contexts, budgets, draws)
            self._refuse(done, contexts, budgets)
            return replace(done, log_probs=done.log_probs.float()), version

        return write

    # -- what an engine remembers -----------------------------------------------------------------------------------

    def remembered(self, method: str, otherwise: Any) -> Any:
        """What an engine that has this method says; `otherwise` of one that does not remember."""
        asked = getattr(self.engine, method, None)
        return otherwise if asked is None else asked()

    def tensors(self) -> dict[str, Tensor]:
        """{`engine|name`: live tensor}, for a checkpoint."""
        return {OWN + name: value for name, value in self.remembered("tensors", {}).items()}

    def loaded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the engine its own of a checkpoint's tensors, and return the others. An engine that keeps none leaves
        what another kept: the run was asked to act without it."""
        own = {name.removeprefix(OWN): value for name, value in state.items() if name.startswith(OWN)}
        if hasattr(self.engine, "load"):
            self.engine.load(own)
        return {name: value for name, value in state.items() if not name.startswith(OWN)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version, self.held = state.get("version", 0), None
        if hasattr(self.engine, "load_state_dict") and "engine" in state:
            self.engine.load_state_dict(state["engine"])

    def state_dict(self) -> dict[str, Any]:
        own = self.remembered("state_dict", {})
        return {"version": self.version} | ({"engine": own} if own else {})

    def refuse_media(self, contexts: Sequence[Context]) -> None:
        """Raise PolicyError for media that the engine does not take."""
        for context, kind in product(dict.fromkeys(contexts), ("image", "video")):
            found = [prompt.id for prompt in context.prompts if getattr(prompt, f"{kind}s")]
            if found and kind not in self.capabilities.media:
                raise PolicyError(
                    f"prompt {found[0]!r} shows {kind}s, and engine {self.name!r} takes "
                    f"{', '.join(sorted(self.capabilities.media)) or 'none'}"
                )

    def _refuse(self, written: Decoded, contexts: Sequence[Context], budgets: Tensor) -> None:
        """Raise PolicyError for what no row can be: wrong shapes, lengths, or ids that the policy never samples."""
        count, shape = len(contexts), tuple(written.tokens.shape)
        if len(shape) != 2 or shape[0] != count or tuple(written.log_probs.shape) != shape:
            raise PolicyError(
                f"engine {self.name!r} gave tokens {shape} and log_probs {tuple(written.log_probs.shape)} for {count} "
                f"rows; expected both ({count}, N)"
            )
        length = written.length.cpu()
        if tuple(length.shape) != (count,) or tuple(written.stopped.shape) != (count,):
            raise PolicyError(f"engine {self.name!r}: expected length and stopped of ({count},)")
        wrong = (length < 1) | (length > budgets.cpu().clamp(max=shape[1]))
        if row := wrong.nonzero().squeeze(1).tolist():
            raise PolicyError(
                f"engine {self.name!r} wrote {int(length[row[0]])} tokens for prompt {contexts[row[0]].prompt.id!r}; "
                f"expected 1 to {int(budgets[row[0]])}"
            )
        inside = torch.arange(shape[1]) < length[:, None]
        never = torch.isin(written.tokens.cpu(), torch.tensor(self.setting.family.suppressed)) & inside
        if place := never.nonzero().tolist():
            row, step = place[0]
            raise PolicyError(
                f"engine {self.name!r} wrote id {int(written.tokens[row, step])} for prompt "
                f"{contexts[row].prompt.id!r}, which the policy never samples; it must leave out family.suppressed"
            )
