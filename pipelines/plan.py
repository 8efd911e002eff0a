"""`mmrl plan`: what a run will do and need, before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmrl.columns import COLUMNS
from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.idle import idle_at_one
from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.model_card import model_of
from mmrl.pipelines.run import check_config, makers_of
from mmrl.pipelines.sides import JOINT, side_of
from mmrl.policies import quantized
from mmrl.policies.language.config import packed_parts
from mmrl.recipes import load_recipe
from mmrl.rollout.nesting import Nested
from mmrl.rollout.origins import OWN, Origin
from mmrl.rollout.plan import Strategy
from mmrl.training.passes import plan_passes


def plan_run(config: RunConfig, card: float | None = None) -> str:
    """Batch arithmetic with what divides what, the passes of a step, and a memory estimate.

    card  GiB of a card for which settings are proposed; generators only
    """
    objective = check_config(config, {})
    kind = config.policy_class
    strategies = Nested.of(config.rollout)
    plan = plan_passes(objective, kind, strategies, config.policy_settings())
    sized = _with_members(config, strategies)
    lines = [f"{config.modality} · recipe {config.recipe} · {model_of(config) or 'no model named'}", ""]
    lines += [*_batch(sized), "", *_updates(config, objective)]
    lines += ["", "acting", *_acting(strategies, objective), "", *_rows(strategies, config), "", "passes of a step"]
    lines += [f"  {line}" for line in plan.describe()]
    lines += ["", *_columns(config, objective)]
    if config.modality == "flow":
        from mmrl.pipelines.generator_calls import calls_lines

        counted = calls_lines(config, objective)
        lines += ["", *counted] if counted else []
    reference = any(p.weights == "reference" for p in plan.prepare)
    lines += ["", "memory"]
    if config.modality == "flow" and config.policy.get("model"):
        from mmrl.pipelines.generator_plan import memory_lines

        lines += memory_lines(sized, reference, card)
    elif card is not None:
        raise ConfigError("--card: settings for a card are proposed for generators only (mmrl plan flow), with a model")
    elif config.modality == JOINT:
        lines += _sides(sized, reference)
    else:
        lines += _memory(sized, reference)
    return "\n".join(lines)


def _sides(config: RunConfig, reference: bool) -> list[str]:
    """The memory of each side by itself: while one acts or is scored, the other's weights lie beside it."""
    from mmrl.pipelines.generator_plan import memory_lines

    trained = config.policy_settings().train
    lines = []
    for side, count in (("writer", _memory), ("painter", lambda own, ref: memory_lines(own, ref, None))):
        lines += [f"  {side}{'' if side in trained else ', which is not trained and needs less'}:"]
        lines += [f"  {line}" for line in count(side_of(config, side), reference)]
    return lines


def _with_members(config: RunConfig, strategies: Nested) -> RunConfig:
    """`config` with as many rollouts a group as its strategies make of `training.group_size`."""
    size = strategies.group_members(config.training.group_size)
    return config.model_copy(update={"training": config.training.model_copy(update={"group_size": size})})


def _batch(config: RunConfig) -> list[str]:
    t = config.training
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rollouts = t.prompts_per_step * t.group_size
    per_update = rollouts / t.updates_per_epoch
    epochs = f" in each of {t.epochs} epochs" if t.epochs > 1 else ""
    return [
        "batch",
        f"  {t.prompts_per_step} prompts x {t.group_size} rollouts = {rollouts} rollouts a step on {world} process(es)",
        f"  / {t.updates_per_epoch} optimizer step(s){epochs} = {per_update:g} rollouts each, in micro-batches of "
        f"{t.micro_batch_size} = {-(-per_update // (t.micro_batch_size * world)):g} forward-backward a process",
        f"  {t.steps} steps = {t.steps * rollouts} rollouts, {t.total_updates} optimizer steps",
        "  micro-batch size and process count change speed and memory, never the loss",
    ]


def _updates(config: RunConfig, objective: Objective) -> list[str]:
    """The paper's optimizer steps beside the run's, and what they leave without effect."""
    t, recipe = config.training, load_recipe(config.recipe)
    made = t.updates_per_epoch * t.epochs
    steps = f"{t.updates_per_epoch} optimizer step{'s' * (t.updates_per_epoch > 1)} a rollout batch"
    lines = [
        "updates",
        f"  {'recipe' if recipe.updates.source == 'ours' else 'paper'}: {recipe.updates}",
        f"  run: {steps} of {t.prompts_per_step} prompts" + (f", {t.epochs} epochs" if t.epochs > 1 else ""),
        f"  learning rate x updates: {t.learning_rate:g} x {made} = {t.learning_rate * made:g} a rollout batch",
    ]
    if (rate := recipe.training.get("learning_rate")) is not None:
        theirs = recipe.updates.count * recipe.updates.epochs
        lines[-1] += f"; paper {rate:g} x {theirs} = {rate * theirs:g}"
    if made == 1:
        lines += [f"  cannot act with one update a batch: {name}" for name in idle_at_one(objective)]
    return lines


def _columns(config: RunConfig, objective: Objective) -> list[str]:
    """Each column that a stage function reads, beyond what every rollout has, and who makes it."""
    lines = ["columns"]
    for need, readers in objective.needs.items():
        shown = f" under {need.under}" if need.under else ""
        lines.append(f"  {need.probe}: a pass with {need.weights} weights{shown}, for {' and '.join(readers)}")
    makers = makers_of(config)
    for name, readers in objective.columns.items():
        maker = makers.get(name, "rollouts and rewards")
        lines.append(f"  {name} {COLUMNS[name].shape}: {maker}, for {' and '.join(readers)}")
    return lines if len(lines) > 1 else [*lines, "  none beyond log-probs and rewards"]


def _acting(strategies: Nested, objective: Objective) -> list[str]:
    """How groups come to be, and what a selection drops that nothing replaces."""
    named = [f"{b.name}: {b.spec.summary}" for b in strategies.bounds] or ["independent draws of each prompt"]
    lines = [f"  {line}" for line in named]
    drops = {b.name for b in objective.group} & {"dynamic_sampling"}
    if drops and not any(b.name == "dynamic_sampling" for b in strategies.bounds):
        lines.append("  groups that dynamic_sampling drops are not replaced: rollout=dynamic_sampling would")
    return lines


def _rows(strategies: Nested, config: RunConfig) -> list[str]:
    """Who may write the rows of a step, seeing what, with which weights, and what their ratio divides by."""
    planners: dict[Origin, list[str]] = {OWN: [] if _leaves_none(strategies) else ["every step"]}
    unsaid = []
    for bound in strategies.bounds:
        if bound.state.origins is None:
            unsaid.append(f"  rollout {bound.name!r} does not say which rows it plans: `origins` of its class")
        for origin in bound.state.origins or ():
            planners.setdefault(origin, []).append(bound.name)
    lines = [
        [origin.source, origin.saw, _weights(origin, config), origin.divisor, ", ".join(names)]
        for origin, names in planners.items() if names
    ]  # fmt: skip
    table = [["written by", "saw", "with weights", "ratio divides by", "planned by"], *lines]
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
    return ["rows by source", *(f"  {line}" for line in shown), *unsaid]


def _leaves_none(strategies: Nested) -> bool:
    """Whether some strategy plans the first round itself, and says what its rows are."""
    return any(type(s).ask is not Strategy.ask and s.origins is not None for s in strategies.strategies)


def _weights(origin: Origin, config: RunConfig) -> str:
    ahead = config.training.ahead
    if origin.source == "replay":
        return "of an earlier step"
    if origin.source != "policy":
        return "none of this run"
    return f"of the step, or up to {ahead} before" if ahead else "of the step"


def _memory(config: RunConfig, reference: bool) -> list[str]:
    settings = config.policy_settings()
    model = _without_values(config)
    if model is None:
        return ["  model not available here: parameters are counted once its configuration can be read"]
    total = sum(p.numel() for p in model.parameters())
    bytes_each = 4 if getattr(settings, "dtype", "float32") == "float32" else 2
    lora = getattr(settings, "lora", None) or getattr(settings, "adapter", None)
    trained = int(total * 0.02) if lora else total
    packed = getattr(settings, "quantize", None)
    saved = quantized.bytes_saved(packed, packed_parts(model), bytes_each) if packed else 0
    weights, moments, gradients = total * bytes_each - saved, trained * 8, trained * 4
    copy = weights if reference and not lora else 0
    lagged = weights if _engine_keeps_copy(settings) and not lora else 0
    masters = trained * 4 if bytes_each < 4 and not lora else 0  # adapters are float32 themselves
    parts = {"weights": weights, "gradients": gradients, "AdamW moments": moments, "float32 master copies": masters}
    parts |= {"reference copy": copy, "copy of the engine": lagged}
    lines = [f"  {total / 1e6:,.1f} M parameters" + (", LoRA trains about 2 % of that" if lora else ", all trained")]
    lines += [f"  {packed}: the text decoder's linear layers packed, {_size(saved)} less"] if packed else []
    lines += [f"  {name}: {_size(size)}" for name, size in parts.items() if size]
    return [*lines, *_peak(config, settings, sum(parts.values()))]


def _engine_keeps_copy(settings: Any) -> bool:
    from mmrl.policies.language.config import LanguagePolicyConfig
    from mmrl.policies.language.engines.names import engine_class

    return isinstance(settings, LanguagePolicyConfig) and engine_class(settings).capabilities.keeps_copy


def _peak(config: RunConfig, settings: Any, held: int) -> list[str]:
    """Activations of one micro-batch on top of what is held, where a language model's sizes are known."""
    from transformers import AutoConfig

    from mmrl.pipelines import language_plan as counting

    total = f"  sum {_size(held)}, plus activations of one micro-batch"
    if config.modality not in ("vlm", "video"):
        return [total]
    shape = AutoConfig.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    sizes, said = counting.sizes_of(settings, config.training, shape)
    if sizes is None:
        return [f"{total}: {said} to have them counted"]
    adapted = settings.lora is not None or settings.adapter is not None
    train_vision = not adapted if settings.train_vision is None else settings.train_vision
    peak = counting.peak(
        held, shape, sizes, bytes_each=4 if (settings.autocast or settings.dtype) == "float32" else 2,
        checkpointing=settings.gradient_checkpointing, train_vision=train_vision, logit_rows=settings.logit_rows,
        pass_tokens=_pass_tokens(config, settings),
    )  # fmt: skip
    passing = sizes.within(_pass_tokens(config, settings))
    more = passing.rows * passing.new > counting.LONG and not settings.gradient_checkpointing
    apart = f"; on a CPU so long answers took {counting.OF_LONG} times it" if more else ""
    told = f"  peak of the process: {_size(peak)}, with nothing in shards{apart}"
    return [f"  sum {_size(held)}", f"  a micro-batch: {said}", told]


def _pass_tokens(config: RunConfig, settings: Any) -> int | None:
    """Response tokens of one pass of an update here; None where a micro-batch goes through as it is."""
    import torch

    from mmrl.policies.language.batching import most_tokens

    training = config.training
    several = training.prompts_per_step * training.group_size > training.micro_batch_size * training.updates_per_epoch
    if several or settings.reuse_prefill == "off":
        return None
    return most_tokens(settings.pass_tokens, torch.device("cuda" if torch.accelerator.is_available() else "cpu"))


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _without_values(config: RunConfig) -> Any:
    """The trained model on the meta device, from its configuration alone; None where that is not here."""
    import torch

    settings = config.policy_settings()
    model = settings.model
    try:
        with torch.device("meta"):
            return ON_META[config.modality](model, getattr(settings, "trust_remote_code", False))
    except (OSError, ValueError) as error:
        if Path(model).is_dir():  # a run would be refused, too
            raise ConfigError(f"model: cannot load {model!r}: {str(error).splitlines()[0]}") from error
        return None


def _vision_language(model: str, trust_remote_code: bool) -> Any:
    from mmrl.policies.language.config import on_meta

    return on_meta(model, trust_remote_code)


def _masked(model: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig, AutoModelForMaskedLM

    trusted = {"trust_remote_code": trust_remote_code}
    return AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(model, **trusted), **trusted)


ON_META = {"vlm": _vision_language, "video": _vision_language, "masked": _masked}
