"""What writes responses for a language policy: the contract between the policy and an engine.

`local` decodes with the very module that is trained. Any other engine holds weights of its own, in this process or in
another, and is told of the trainer's before it acts. It is a class, named in `policy.engine` by `file.py:Class` or
`package.module:Class`, and is made once as `Class(setting)`.

    class Mine:
        capabilities = EngineCapabilities(exact_log_probs=False, media=frozenset({"image"}))

        def __init__(self, setting: Setting): ...
        def write(self, contexts, budgets, draws) -> Decoded: ...
        def sync(self, weights) -> None: ...

One that remembers across steps may have `after_batch()`, called behind the last optimizer step of a rollout batch;
`tensors()` and `load(tensors)`, what a checkpoint keeps for it; `state_dict()` and `load_state_dict(state)`; and
`counted()`, further numbers for the metrics of a step, which ranks add up: a mean is a `mmrl.policies.counts.Mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.families.default import Family
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.sampling import Decoded
from mmrl.policies.language.scoring import ScoredLanguageModel
from mmrl.policies.language.stopping import Stopping
from mmrl.randomness import Key
from mmrl.record import Prompt


@dataclass(frozen=True)
class EngineCapabilities:
    """What an engine promises. It belongs to the class, so that a configuration is refused before anything is loaded.

    exact_log_probs  those it reports are the trainer's up to rounding, under the policy's temperature and suppressed
                     ids; held to by the self-check. Without it only `old_log_probs: trainer` trains
    media            kinds it can be shown, "image" and "video"
    turns            it can go on behind an observation in the middle of a response, media of `Context.shown` included
    lora             it takes LoRA as adapters, with the base weights left alone: `sync` is then given the unmerged
                     weights under the names that PEFT gives them. Otherwise each tensor comes merged
    own_weights      it holds weights apart from the trainer's, which can be out of date; only `local` does not
    keeps_copy       it keeps earlier weights of the model: a copy after full fine-tuning, else an adapter
    """

    exact_log_probs: bool
    media: frozenset[str] = frozenset()
    turns: bool = False
    lora: bool = False
    own_weights: bool = True
    keeps_copy: bool = False


@dataclass(frozen=True)
class Draw:
    """What chooses the tokens of a row. An engine that cannot follow it draws in its own way, seeded by `seed`: the
    rows are others then, and their log-probs as good.

    key     of the row's prompt, member and step
    length  draws of a whole response
    begun   how many tokens of the response stand already
    """

    key: Key
    length: int
    begun: int = 0

    def uniforms(self) -> Tensor:
        """(length,) float64 in [0, 1), the first for the next token. A draw belongs to its place in the response, so
        a row that replays the first tokens of another goes on as that one did."""
        return self.key.uniform(self.length).roll(-self.begun)

    @property
    def seed(self) -> int:
        """63 bits, another one for each beginning."""
        return self.key.at(purpose=f"{self.key.purpose}/{self.begun}").number


@dataclass(eq=False)
class Context:
    """What rows continue; rows of one request share the very same object. Everything comes again in every call: an
    engine need remember nothing.

    prompt   as it is shown, with its images and videos as they were given
    encoded  all the trainer's model reads, on the CPU: expanded ids, positions, media tensors, the prefix included.
             An engine that expands placeholders itself compares its ids with these (`check_ids`)
    prefix   (t,) ids of the response that stand already, with one placeholder for each medium among them
    prefill  of `local`: the prompt's pass, if it is kept for the update
    shown    what an environment showed between the turns of the prefix, with media as they were given
    """

    prompt: Prompt
    encoded: Encoded
    prefix: Tensor
    prefill: Prefill | None = None
    shown: Sequence[Prompt] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Whatever has media, in the order of their placeholders."""
        return self.prompt, *self.shown

    def check_ids(self, ids: Sequence[int] | Tensor) -> None:
        """Raise PolicyError unless an engine's expanded prompt is the trainer's, id by id."""
        theirs, own = torch.as_tensor(ids).tolist(), self.encoded.ids.tolist()
        if theirs == own:
            return
        at = next((i for i, (a, b) in enumerate(zip(theirs, own, strict=False)) if a != b), min(len(theirs), len(own)))
        raise PolicyError(
            f"prompt {self.prompt.id!r}: the engine reads {len(theirs)} ids and the trainer {len(own)}, and they part "
            f"at {at} ({theirs[at : at + 3]}, expected {own[at : at + 3]}); its processor expands media in another way"
        )


@dataclass(frozen=True)
class Setting:
    """What an engine is made with.

    config     the policy's section: `model` and `adapter` to load, temperature, max_new_tokens, dtype, ...
    processor, family, stopping  of the policy; `family.suppressed` are ids that are never sampled (a logit bias)
    template   extra variables of the chat template
    frames     `frames(prompt)`: its clips, read as the trainer reads them
    options    the engine's own settings, as its class `Options` reads them
    model      `model()` is the module that trains, for engines in its process
    weights    `with weights(name) as module`: the module with other weights, such as "reference", for those too
    """

    config: LanguagePolicyConfig
    processor: Any
    family: Family
    stopping: Stopping
    model: Callable[[], ScoredLanguageModel]
    template: dict[str, Any] = field(default_factory=dict)
    frames: Callable[[Prompt], list[Frames]] = lambda prompt: []
    options: Any = None
    weights: Callable[[str], AbstractContextManager[Any]] | None = None

    def unexpanded(self, context: Context) -> list[int]:
        """Ids with one placeholder for each medium, those of the prefix included: what engines take that expand them
        themselves."""
        text = self.processor.apply_chat_template(
            context.prompt.messages, tokenize=False, add_generation_prompt=True, **self.template
        )
        tokenizer = self.processor.tokenizer
        start = getattr(tokenizer, "bos_token", None)
        begun = bool(start) and text.startswith(start)  # the template has written it
        ids = tokenizer(text, add_special_tokens=not begun)["input_ids"]
        return [*ids, *context.prefix.tolist()]


class Engine(Protocol):
    """Writes responses. One call of `write` at a time, and `sync` never during one."""

    capabilities: ClassVar[EngineCapabilities]

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """Continue each row until it stops or its budget is spent.

        contexts  B, one per row
        budgets   (B,) int64, tokens a row may write, at least 1
        draws     B, or None: greedy, the likeliest token each time

        Returns `Decoded`: tokens (B, N) int64 and log_probs (B, N) float32 on any device, 0 past `length (B,)`, the
        stop included; `stopped (B,)` False where the budget ended a row. Log-probs are of the distribution that was
        sampled from: the temperature applied, suppressed ids left out. What cannot be done is a PolicyError that
        names the prompt; rows are never left out.
        """
        ...

    def sync(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take the trainer's weights: every one, under transformers' name for it, one at a time.

        Called before the first `write`, and before each for which the weights moved. A tensor is the trainer's own or
        a passing copy: copy what is kept, before the next one is asked for. Caches made with older weights go.
        On several ranks all of them call it.
        """
        ...


def refuse_prefixes(engine: str, contexts: Sequence[Context]) -> None:
    """For an engine whose rows begin at their prompt."""
    for context in contexts:
        if len(context.prefix):
            raise PolicyError(
                f"prompt {context.prompt.id!r}: engine {engine} begins rows at their prompt, and a strategy asks for "
                f"one behind {len(context.prefix)} tokens"
            )
