"""The registry: name -> function, its stage, what it needs, its paper.

A method is one or more small functions, each registered for the stage it plays:

    @stage("trust_region", paper="SAPO, arXiv 2511.20347", formula="4/tau * sigmoid(tau (r - 1)) * A")
    def sapo(log_ratio, evaluation, batch, *, tau_positive=1.0, tau_negative=1.05):
        ...

Signatures by stage (`batch` is a `mmrl.record.Batch`, `evaluation` a `mmrl.record.Evaluation`):

    shaping            (batch) -> reward (B,)                      reward shaping that sees the whole group
    group              (batch) -> Selection                        who counts and who trains
    advantage          (batch) -> (B,) or (B, T)
    credit             (advantage (B, T), batch) -> (advantage (B, T), loss_mask (B, T))
    ratio              (evaluation, batch) -> log_ratio (B, T)
    trust_region       (log_ratio (B, T), evaluation, batch) -> objective (B, T), to be maximised
    aggregation        (batch) -> weights (B, T)
    regularizer        (evaluation, batch) -> penalty (B, T) or scalar, to be minimised
    score              (evaluation, batch) -> scores (B,)          sequence statistic of a whole-sequence objective
    score_objective    (scores (B,), batch) -> scalar, to be maximised
    matching_objective (evaluation, batch) -> objective (B, T), to be maximised
    learning_rate      (batch) -> share of the learning rate this optimizer step deserves, in (0, 1]
    prompts            class: select(count, size, key) -> indices, then observe(indices, batch) (mmrl.selection.prompts)
    rollout            class: ask(step), join(batch, step) -> Plan    how a group comes to be (mmrl.rollout.plan)
    environment        class: reset(prompt), step(state, output)   who answers between turns (mmrl.rollout.environments)

Hyper-parameters are keyword-only. A function that must remember is a class with `state_dict`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mmrl import plugins
from mmrl.columns import COLUMNS, Column
from mmrl.errors import ConfigError, got, unknown
from mmrl.policies.registry import OF_ONE_MODEL

STAGES = (
    "prompts",
    "rollout",
    "environment",
    "shaping",
    "group",
    "advantage",
    "credit",
    "ratio",
    "trust_region",
    "aggregation",
    "regularizer",
    "score",
    "score_objective",
    "matching_objective",
    "learning_rate",
)
LANGUAGE, FLOW, MASKED = ("vlm", "video"), ("flow",), ("masked",)
CONFIDENCES = ("verified", "partly", "reconstructed", "ours")


@dataclass(frozen=True)
class View:
    """The same actions under a changed prompt: media masked, noised, removed, frames shuffled.

    step  of the run, by which a view that is drawn anew differs; it is the same view at every step
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    step: int = field(default=0, compare=False)

    @classmethod
    def of(cls, kind: str, **options) -> View:
        for name, value in {"kind": kind, **options}.items():
            if isinstance(value, dict | list | set):
                raise ConfigError(f"view: {name}: expected text or a number, got {got(value)}")
        return cls(kind, tuple(sorted(options.items())))

    def at(self, step: int) -> View:
        return replace(self, step=step)

    def __str__(self) -> str:
        return f"{self.kind}({','.join(f'{k}={v}' for k, v in self.options)})"


@dataclass(frozen=True)
class Need:
    """One `(B, T)` or `(B,)` column a function reads beyond the basics.

    probe    what the forward pass returns: "log_probs", "entropy", "visual_entropy", ...
    under    the prompt as the pass shows it; None: as it was sampled
    weights  "old" (the policy that sampled, no gradient), "reference", "ema", "anchor", or "current" (the update's
             own forward pass, with gradient)
    options  of the probe, such as the `top_p` of a truncated entropy
    """

    probe: str
    under: View | None = None
    weights: str = "old"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in self.options)
        return f"{self.probe}({options})|under={self.under or 'as sampled'}|weights={self.weights}"


NEEDS: dict[str, Need] = {
    "entropy": Need("entropy"),
    "current_entropy": Need("entropy", weights="current"),
    "ref_log_probs": Need("log_probs", weights="reference"),
    "perturbed_log_probs": Need("log_probs", under=View.of("patch_black", share=0.5, size=14)),
    "media_free_log_probs": Need("log_probs", under=View.of("remove_media")),
    "visual_entropy": Need("visual_entropy"),
    "score_gradient_norm": Need("score_gradient_norm"),
    "reference_kl": Need("reference_kl", weights="current"),
    "step_rewards": Need("step_rewards"),
    "step_std": Need("step_std"),
    "step_sizes": Need("step_sizes"),
    "step_equalizer": Need("step_equalizer"),
    "mean_shift": Need("mean_shift", weights="current"),
    "draw_times": Need("draw_times"),
    "matching_loss": Need("matching_loss", weights="current"),
    "old_matching_loss": Need("matching_loss"),
    "anchor_matching_loss": Need("matching_loss", weights="anchor"),
    "ref_matching_loss": Need("matching_loss", weights="reference"),
    "branch": Need("branch"),
    "greedy_success": Need("greedy_success"),
}
"""Needs that carry no parameters, by the name a function reads them under: `batch["entropy"]`."""


@dataclass(frozen=True)
class StageFunction:
    """A registered function and everything `mmrl methods` says about it."""

    stage: str
    name: str
    function: Callable
    method: str
    paper: str
    formula: str
    confidence: str
    reads: Callable[..., Mapping[str, Need | Column]]
    scope: str
    phase: str
    modalities: tuple[str, ...]
    silent_at_zero: bool = True
    prepared: Callable[..., Mapping[str, Any]] | None = None
    relative: bool = False
    grain: str = "action"
    idle: str = ""
    waits: tuple[str, ...] = ()
    vocabulary: Mapping[str, str] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def needs(self, **parameters) -> dict[str, Need]:
        """What it reads that a forward pass gives, by the name it reads it under."""
        return {n: v for n, v in self._reads(parameters).items() if isinstance(v, Need)}

    def columns(self, **parameters) -> dict[str, Column]:
        """What it reads of the rollouts and their rewards."""
        return {n: v for n, v in self._reads(parameters).items() if isinstance(v, Column)}

    def _reads(self, parameters: Mapping[str, Any]) -> Mapping[str, Need | Column]:
        return self.reads(**{**self.defaults, **parameters})

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").strip().split("\n")[0]


GRAINS = {"advantage": "row", "credit": "action", "ratio": "action", "trust_region": "ratio"}
"""What a function of the stage tells apart unless it says otherwise."""

RENAMED = {"dense_grpo": "densegrpo", "sage": "sage_self_hint", "npo": "npo_autonpo"}
"""Former names of methods, of their recipes and of their functions: both work, and the new one is written down."""

_REGISTRY: dict[tuple[str, str], StageFunction] = {}
_ROOMS = ("mmrl.objective", "mmrl.selection", "mmrl.rollout")
_loaded = False


def stage(
    stage: str,
    name: str | None = None,
    *,
    paper: str,
    confidence: str,
    formula: str = "",
    method: str | None = None,
    needs: tuple[str, ...] | Callable[..., Mapping[str, Need | Column]] = (),
    scope: str = "group",
    phase: str = "prepare",
    modalities: tuple[str, ...] = OF_ONE_MODEL,
    silent_at_zero: bool = True,
    prepared: Callable[..., Mapping[str, Any]] | None = None,
    relative: bool | None = None,
    grain: str | None = None,
    idle: str = "",
    waits: tuple[str, ...] = (),
    vocabulary: Mapping[str, str] | None = None,
) -> Callable[[Callable], Callable]:
    """Register a function (or a class, if it must remember) for one stage.

    name      as a recipe spells it; the function's own name by default
    confidence  how far it was checked: "verified" against paper or authors' code, "partly" (some of it, or by
              secondary sources), "reconstructed" after the abstract, "ours" for no published method
    method    the published method it belongs to, as in `mmrl methods`; `name` by default
    needs     all it reads beyond the basics: names from `NEEDS` (a forward pass gives it) and from `COLUMNS` (somebody
              makes it), or a function of the hyper-parameters returning `{name: Need or Column}`
    scope     what the function must see at once: "group", "update" (one optimizer step over all ranks) or
              "batch" (the whole rollout batch)
    phase     "prepare" (no gradient) or, for a credit function that reads current log-probs, "update"
    silent_at_zero  of a trust region: a zero advantage gives a zero gradient, so such rows may skip the update
    prepared  `(batch, **parameters) -> {column: tensor}`, computed once on whole groups of all ranks, for a
              function of the update phase that reads what a micro-batch cannot see
    relative  of an advantage: it compares the rollouts of one prompt, so a group of one teaches nothing; what is of
              scope "group" is, unless it says otherwise
    grain     what it tells apart: an advantage or credit, "row" or "action"; a ratio, "row" if all actions of a row
              share one gradient; a trust region, "ratio" (as the ratio), "row", or "action" (through each
              action's own log-prob, whatever the ratio)
    idle      what it comes to in the first update of a batch, of a function other than ratio and trust region that
              acts in later ones alone
    waits     hyper-parameters that only the user knows, such as ids of the model's vocabulary: a run in which one is
              empty is refused when its configuration is read
    vocabulary  {hyper-parameter: "single" or "sequence"} of those that are token ids, and may be given as the texts of
              tokens: each text one token, or as many as it has
    """
    if stage not in STAGES:
        raise ConfigError(unknown("stage", stage, STAGES))
    if confidence not in CONFIDENCES:
        raise ConfigError(unknown("confidence", confidence, CONFIDENCES))

    def register(function: Callable) -> Callable:
        key = (stage, name or function.__name__)
        if key in _REGISTRY and _REGISTRY[key].function.__qualname__ != function.__qualname__:
            raise ConfigError(f"{stage} {key[1]!r} is registered twice: by {_REGISTRY[key].function} and {function}")
        known: dict[str, Need | Column] = {**COLUMNS, **NEEDS}
        for need in () if callable(needs) else needs:
            if need not in known:
                raise ConfigError(unknown("need", need, known))
        resolve = needs if callable(needs) else lambda **_: {n: known[n] for n in needs}
        compares = scope == "group" if relative is None else relative
        _REGISTRY[key] = StageFunction(
            stage, key[1], function, method or key[1], paper, formula, confidence, resolve, scope, phase,
            modalities, silent_at_zero, prepared, compares, grain or GRAINS.get(stage, "action"), idle, waits,
            dict(vocabulary or {}),
        )  # fmt: skip
        return function

    return register


def load_all() -> None:
    """Import every module of the rooms whose functions register themselves, and what installed plugins bring."""
    global _loaded
    if _loaded:
        return
    for room in _ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            importlib.import_module(module.name)
    _loaded = True
    plugins.enter()


def find(stage: str, name: str) -> StageFunction:
    """The function that plays `stage` under `name`, or that `path/to/file.py:name` or `package.module:name` names."""
    load_all()
    if not isinstance(name, str):
        raise ConfigError(f"{stage}: name: expected text, got {got(name)}")
    if plugins.is_reference(name):
        return _outside(stage, name)
    name = RENAMED.get(name, name)
    if (stage, name) in _REGISTRY:
        return _REGISTRY[stage, name]
    elsewhere = [s for s, n in _REGISTRY if n == name]
    hint = f" ({name!r} is a {' and a '.join(elsewhere)})" if elsewhere else ""
    raise ConfigError(unknown(stage.replace("_", " "), name, (n for s, n in _REGISTRY if s == stage)) + hint)


def _outside(stage: str, reference: str) -> StageFunction:
    function = plugins.load(reference, stage.replace("_", " "))
    specs = [spec for spec in _REGISTRY.values() if spec.function is function]
    for spec in specs:
        if spec.stage == stage:
            return spec
    found = f"it plays {specs[0].stage}" if specs else f'put @stage("{stage}", ...) of mmrl.stages above it'
    raise ConfigError(f"{stage.replace('_', ' ')} {reference!r} is not registered for this stage: {found}")


def registered(stage: str | None = None) -> list[StageFunction]:
    load_all()
    return [f for (s, _), f in sorted(_REGISTRY.items()) if stage in (None, s)]


def _typed(spec: StageFunction, parameter: str, value: Any) -> Any:
    """`value` as the function's annotation of `parameter` wants it; raises ConfigError where it cannot be."""
    hints = get_type_hints(spec.function.__init__ if inspect.isclass(spec.function) else spec.function)
    if parameter not in hints:
        return value
    try:
        typed = TypeAdapter(hints[parameter]).validate_python(value)
        if _not_finite(typed) and not _not_finite(spec.defaults.get(parameter)):
            raise ConfigError(f"{spec.stage} {spec.name!r}: {parameter}: expected a finite number, got {got(value)}")
        return typed
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError(f"{spec.stage} {spec.name!r}: {parameter}: {problem}, got {got(value)}") from None


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


@dataclass
class Bound:
    """A stage function with its hyper-parameters, as a recipe names it: `{name: clip, low: 0.2}`."""

    spec: StageFunction
    parameters: dict[str, Any] = field(default_factory=dict)
    state: Any = None

    @classmethod
    def of(cls, stage: str, description: str | Mapping[str, Any]) -> Bound:
        if not isinstance(description, str | Mapping):
            raise ConfigError(f"{stage}: expected a name or {{name: ..., parameter: ...}}, got {got(description)}")
        description = {"name": description} if isinstance(description, str) else dict(description)
        if "name" not in description:
            raise ConfigError(f"{stage}: expected a name or {{name: ..., parameter: ...}}, got {got(description)}")
        spec = find(stage, description.pop("name"))
        description.pop("coefficient", None) if stage == "regularizer" else None
        for parameter, value in description.items():
            if parameter not in spec.defaults:
                raise ConfigError(f"{stage} {spec.name!r}: {unknown('parameter', parameter, spec.defaults)}")
            description[parameter] = _typed(spec, parameter, value)
        bound = cls(spec, description)
        if inspect.isclass(spec.function):
            bound.state = spec.function(**description)
        return bound

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def needs(self) -> dict[str, Need]:
        return self.spec.needs(**self.parameters)

    @property
    def columns(self) -> dict[str, Column]:
        return self.spec.columns(**self.parameters)

    @property
    def waits(self) -> list[str]:
        """One sentence for each hyper-parameter that the user has to give and has not."""
        given = {**self.spec.defaults, **self.parameters}
        place = ("" if self.spec.stage == "rollout" else "objective.") + f"{self.spec.stage}.{self.name}"
        return [
            f"{self.spec.stage} {self.name!r} waits for its {name}: {place}.{name}=YOURS"
            for name in self.spec.waits if not given[name]
        ]  # fmt: skip

    def prepare(self, batch) -> dict[str, Any]:
        """Columns this function reads of whole groups; nothing for most. A class that remembers may have `prepare`."""
        remembering = getattr(self.state, "prepare", None)
        if self.spec.prepared is None and remembering is None:
            return {}
        seen = batch.seen_by({name: need.key for name, need in self.needs.items()})
        if remembering is not None:
            return dict(remembering(seen))
        accepted = inspect.signature(self.spec.prepared).parameters
        parameters = {**self.spec.defaults, **self.parameters}
        return dict(self.spec.prepared(seen, **{k: v for k, v in parameters.items() if k in accepted}))

    def __call__(self, *arguments):
        """Call with the columns this function declared visible under the names it reads."""
        aliases = {name: need.key for name, need in self.needs.items()}
        arguments = tuple(a.seen_by(aliases) if hasattr(a, "seen_by") else a for a in arguments)
        if self.state is not None:
            return self.state(*arguments)
        return self.spec.function(*arguments, **self.parameters)
