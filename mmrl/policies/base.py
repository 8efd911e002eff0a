"""What every policy can do. A policy adapter says how its model acts; the trainer knows nothing else of it.

A policy owns one `module`, the wrapped model that is trained. `module.forward` takes plain inputs and returns
`(B, T)` tensors only: log-probs, entropies and other probes are reduced inside it, so nothing of vocabulary or
latent size leaves the forward pass, and DDP or FSDP see ONE call of the module they wrapped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mmrl.errors import ConfigError, PolicyError, unknown
from mmrl.media import ReadClip
from mmrl.policies.likelihood import Likelihood
from mmrl.policies.registry import policy_classes
from mmrl.policies.sharding import plain_name, whole_weights
from mmrl.randomness import Key
from mmrl.record import Answer, Evaluation, Prompt, Request, Rollouts, Stored
from mmrl.rollout.environments.base import Surroundings
from mmrl.settings import Section
from mmrl.stages import Need, View

WEIGHTS = ("current", "old", "reference", "ema", "anchor", "behaviour", "teacher")
ANY_POLICY = frozenset({"greedy_success"})
"""What the trainer finds out of any policy, by letting it act."""


class Policy(ABC):
    """The contract between a model and the optimizer.

    modality   "vlm", "video" or "flow"
    config_type  the typed `policy:` section of a configuration
    config       the section this policy was made from
    likelihood   what `evaluate` scores of its rollouts
    probes     what `evaluate` can return per action or per rollout
    group_probes  those of them that compare the members of a group: `evaluate` must then be given whole groups
    batch_probes  those that compare all rollouts of a step, of all ranks (`language.probes.batch_probes`)
    views      the changed prompts it can score actions under
    varied_when_greedy  members of a group differ even in the deterministic mode, by their initial noise
    splits_actions  scoring fewer actions of a row costs less, so that an update may be made in pieces of a row
    takes_teacher  another policy may be loaded beside it, whose log-probs `weights="teacher"` reads
    columns    what stage functions may read of its rollouts besides probes (`mmrl.columns`)
    reads      kinds of media it can be shown, "image" and "video"
    earned     columns that rewards make of what they read of one part of its outputs (`rewards: [{of: ...}]`)
    least      the least that its section says, where no model is named yet
    found      what the policy found out about its model by trying it, written into the run as `model.json`
    module     the trainable module; the trainer replaces it by the one accelerate prepared. Methods of it that
               run parts of the model besides `forward` are named in its `partial_forwards`
    """

    modality: ClassVar[str]
    config_type: ClassVar[type[Section]]
    config: Any
    likelihood: Likelihood
    probes: ClassVar[frozenset[str]]
    group_probes: ClassVar[frozenset[str]] = frozenset()
    batch_probes: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[frozenset[str]] = frozenset()
    varied_when_greedy: ClassVar[bool] = False
    splits_actions: ClassVar[bool] = False
    takes_teacher: ClassVar[bool] = False
    columns: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    earned: ClassVar[frozenset[str]] = frozenset()
    least: ClassVar[dict[str, Any]] = {"model": ""}
    module: nn.Module
    card: Callable[[], str] | None = None
    """Writes the model card of an export, where somebody knows the run."""

    @property
    def found(self) -> dict[str, Any]:
        return {}

    def counted(self) -> dict[str, Any]:
        """Further numbers for the metrics of a step, counted since they were asked for last."""
        return {}

    def told(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The metrics that the counts of all ranks come to."""
        return counts

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, *, seed: int = 0, read_clip: ReadClip | None = None) -> Policy:
        """Load the model a `config_type` section names. `read_clip` decodes videos; only video policies use it."""

    @classmethod
    def sections(cls) -> list[tuple[str, type[Section]]]:
        """The typed sections of a configuration that are this policy's, each with where it stands, its own first."""
        return [("policy.", cls.config_type)]

    @classmethod
    def columns_of(cls, config: Any) -> dict[str, str]:
        """{column: who makes it}, of a `config_type` section. Raises ConfigError for one that cannot act."""
        return dict.fromkeys(cls.columns, f"the {cls.modality} policy")

    @classmethod
    def modalities_of(cls, config: Any) -> dict[str, str]:
        """{kind of action: the modality whose stage functions judge it}, of a policy of several models; {} of one."""
        return {}

    @classmethod
    def stretches_of(cls, config: Any) -> list[str]:
        """ "text" or "picture" of each stretch of a row that holds several; [] where a row is one output."""
        return []

    @classmethod
    def asks_for(cls, config: Any) -> list[str]:
        """Columns that every row must have, which the policy puts into what it is asked."""
        return []

    @property
    def painter(self) -> Any:
        """The flow policy that draws what is watched, where one does."""
        return None

    @property
    def parts(self) -> tuple[str, ...]:
        """Beginnings of parameter names, of those whose gradients are told apart."""
        return ()

    @property
    def learning_rates(self) -> dict[str, float]:
        """{beginning of parameter names: learning rate}, of those that do not take training.learning_rate."""
        return {}

    @property
    def acts_apart(self) -> bool:
        """Whether an engine with weights of its own acts for it, which may fall behind those that train."""
        return False

    @property
    def engine_gap(self) -> float:
        """The largest mean gap between its engine's log-probs and those it is trained on, where rows hold both."""
        return float("inf")

    @property
    def inner(self) -> nn.Module:
        """The module without DDP, FSDP or compile wrappers."""
        module = self.module
        while True:
            wrapped = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
            if not isinstance(wrapped, nn.Module):
                return module
            module = wrapped

    @property
    def precision(self) -> torch.dtype:
        """Of matrix products: autocast's, or that of the weights."""
        return getattr(self.inner, "autocast", None) or next(self.inner.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def max_actions(self) -> int:
        """The limit on T: new tokens, denoising steps, or draws."""
        return self.likelihood.actions

    @property
    def samples_with(self) -> str:
        """The weights that rollouts of a training step are sampled with: "current" for most."""
        return "current"

    @abstractmethod
    def rollout(
        self, requests: Sequence[Request], key: Key, *, greedy: bool = False, weights: str = "current"
    ) -> Rollouts:
        """Act. Row order follows the requests; every draw is keyed by prompt id and member.

        `greedy` is the deterministic mode evaluation uses: argmax decoding, or the ODE sampler.
        Results carry no gradient. Where the caller's grad mode is on, a policy may keep what an update on these
        rollouts can go on from; rollouts that are not trained on belong under `torch.no_grad`.
        """

    def converse(
        self, requests: Sequence[Request], key: Key, surroundings: Surroundings, *, greedy: bool = False
    ) -> Rollouts:
        """As `rollout`, in an environment: acted runs, and between them what it showed. `extent`, `media`, and the
        columns `turn (B, T)`, `calls`, `bad_calls` and `observed` (B,) say which is which."""
        raise PolicyError(f"the {self.modality} policy acts once and hears nothing: it takes no environment")

    @classmethod
    def no_turns(cls, config: Any) -> str | None:
        """Why a policy of this section takes no environment, in one line; None where it does."""
        return f"the {cls.modality} policy acts once and hears nothing: it takes no environment"

    def check_turns(self) -> None:
        """Raise PolicyError where this model cannot take a second turn; called before anything is spent."""
        if reason := self.no_turns(self.config):
            raise PolicyError(reason)

    def written(self, prompts: Sequence[Prompt], answers: Sequence[str | Answer]) -> Rollouts:
        """Rows nobody acted for: `answers[i]` as an answer to `prompts[i]`, texts with the end token added.

        `old_log_probs` are this policy's, from a pass. Group, member and source are the caller's to set.
        """
        raise PolicyError(f"the {self.modality} policy takes no written answers")

    def stored(self, prompts: Sequence[Prompt], outputs: Sequence[Stored], key: Key) -> Rollouts:
        """Rows of outputs that were made before: `outputs[i]` of `prompts[i]`, with the rewards they bring.

        What training draws of them is keyed by `key`. Group, member and source are the caller's to set.
        """
        raise PolicyError(f"the {self.modality} policy takes no stored outputs")

    @abstractmethod
    def evaluate(
        self,
        rollouts: Rollouts,
        needs: Sequence[Need] = (),
        *,
        under: View | None = None,
        weights: str = "current",
    ) -> Evaluation:
        """Score the same actions: log-probs `(B, T)`, and the probes of `needs` as columns by `Need.key`.

        All `needs` share this pass (same `under`, same `weights`). Gradient follows the caller's grad mode
        for "current" weights; other weights never carry gradient.
        """

    @abstractmethod
    def micro_batches(self, rollouts: Rollouts, rows: torch.Tensor, size: int) -> list[torch.Tensor]:
        """Split `rows` into micro-batches of at most `size` rows that are cheap to score together."""

    def update_passes(self, rollouts: Rollouts, rows: torch.Tensor, size: int) -> list[torch.Tensor]:
        """The passes with gradient of an optimizer step: its micro-batches, or smaller where that costs nothing. All
        of them follow, in this order, each with its backward pass."""
        return self.micro_batches(rollouts, rows, size)

    @abstractmethod
    def save_pretrained(self, directory: str | Path, *, merged: bool = False) -> None:
        """The Hugging Face layout: a PEFT adapter, or full weights (`merged` folds an adapter in)."""

    @abstractmethod
    def trainable_state(self) -> dict[str, torch.Tensor]:
        """What training changes, by parameter name: the whole checkpoint for a resume."""

    @abstractmethod
    def load_trainable_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put `trainable_state` back: whole tensors, or shards as `trained_tensors` gave them."""

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """What `trainable_state` holds, as it lies on this rank: live tensors, shards left as they are."""
        return {plain_name(n): p.detach() for n, p in self.inner.named_parameters() if p.requires_grad}

    def character_spans(self, rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
        """Which characters of its output each action of a row wrote, [start, end); of policies that write text."""
        raise PolicyError("spans of characters need a policy that writes text: give one number for each action")

    def after_update(self) -> None:  # noqa: B027 (most policies keep no average)
        """Called after every optimizer step: a policy that keeps a moving average of its weights moves it here."""

    def after_batch(self) -> None:  # noqa: B027 (most policies keep no anchor)
        """Called after the last optimizer step of a rollout batch."""

    @property
    def version(self) -> int:
        """Optimizer steps that its weights have behind them, where it counts them."""
        return 0

    def write_ahead(
        self, requests: Sequence[Request], key: Key, surroundings: Surroundings | None = None
    ) -> None:  # fmt: skip
        """Let its engine begin what `rollout(requests, key)`, or `converse` in these surroundings, will ask for, with
        the weights as they are now."""
        raise PolicyError(f"the {self.modality} policy has no engine that could write ahead")

    def leave_ahead(self) -> None:  # noqa: B027 (most policies begin nothing)
        """Forget what was begun and not taken up."""

    def replayed(self, rollouts: Rollouts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For the first-update self-check: what sampling found, what training finds there, and where to compare.

        (B, K) each; log-probs of the actions, where the policy has them.
        """
        return rollouts.old_log_probs, self.evaluate(rollouts).log_probs, rollouts.mask

    def by_teacher(self, requests: Sequence[Request], key: Key) -> Rollouts:
        """What the model of `policy.teacher` writes for each member of the requests, in their order. Nothing of it is
        trained: hints, for example."""
        raise PolicyError(f"the {self.modality} policy has no teacher that could write")

    @classmethod
    def check_writer(cls, settings: Any, asked_by: str) -> None:
        """Refuse a run whose strategies ask a teacher that it does not have."""
        raise ConfigError(f"{asked_by} asks a teacher for words, and policies of this modality have none")

    def _only_current(self, weights: str) -> None:
        if weights != "current":
            raise PolicyError(f"the {self.modality} policy samples with its current weights, not {weights!r}")

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text in the vocabulary, without what surrounds a prompt; refused where actions are no tokens."""
        raise PolicyError(f"the {self.modality} policy has no vocabulary in which {text!r} could be found")

    def action_labels(self, rollouts: Rollouts) -> list[list[str]]:
        """B lists of T short texts for people: the token, or the denoising step."""
        return [[str(t) for t in range(rollouts.mask.shape[1])] for _ in range(len(rollouts))]

    def turn_texts(self, rollouts: Rollouts) -> list[list[str]]:
        """B: the text of each run of acting of a row; of policies that write text."""
        raise PolicyError("texts of turns need a policy that writes text")

    def step_outputs(self, rollouts: Rollouts, projection: str = "ode") -> tuple[list[Any], torch.Tensor]:
        """Outputs with an address (row, step): what each state before an action would lead to.

        Returns `(outputs, addresses (N, 2))`. Flow policies finish the ODE from each latent, or take one step.
        """
        raise PolicyError(f"{type(self).__name__} has no step outputs")

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state besides the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise PolicyError(f"{type(self).__name__} has no state, but the checkpoint holds {sorted(state)}")

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Evaluation mode without gradient, with FSDP2 shards gathered; restored afterwards."""
        training = self.module.training
        self.module.eval()
        try:
            with whole_weights(self.inner, getattr(self.inner, "partial_forwards", ())), torch.no_grad():
                yield
        finally:
            self.module.train(training)

    @classmethod  # noqa: B027 (most train any)
    def check_objective(cls, objective: Any, settings: Any = None) -> None:
        """Refuse, before anything is loaded, an objective that this policy cannot train; `settings`: its section."""

    @classmethod
    def offered(cls, settings: Any = None) -> frozenset[str]:
        """Every probe that `evaluate` can return; `settings`: its section, where what it offers depends on it."""
        return cls.probes

    @classmethod
    def check_need(cls, need: Need, asked_by: str, settings: Any = None) -> None:
        """Refuse, before anything is loaded, what this policy cannot give; `settings`: its section, where known."""
        offers, own = policy_classes(), cls.offered(settings)
        if need.probe not in own | ANY_POLICY:
            others = [m for m, p in offers.items() if need.probe in p.probes]
            raise ConfigError(
                f"{asked_by} needs {need.probe!r}, which the {cls.modality} policy does not offer"
                f" ({'offered by: ' + ', '.join(others) if others else unknown('probe', need.probe, own)})"
            )
        if need.under and need.under.kind not in cls.views:
            others = [m for m, p in offers.items() if need.under.kind in p.views]
            raise ConfigError(
                f"{asked_by} needs {need.probe!r} under the view {need.under.kind!r}, which the {cls.modality} "
                f"policy does not offer (offered by: {', '.join(others) or 'no policy'})"
            )
        cls.check_weights(need, asked_by)

    @classmethod
    def check_weights(cls, need: Need, asked_by: str) -> None:
        if need.weights not in WEIGHTS:
            raise ConfigError(f"{asked_by}: {unknown('weights', need.weights, WEIGHTS)}")
        if need.weights == "teacher" and not cls.takes_teacher:
            raise ConfigError(f"{asked_by} reads a teacher, and the {cls.modality} policy takes none")
