"""`mmrl methods`: what the registry and the recipes know, by method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from inspect import signature
from typing import Any

from rich.table import Column, Table

from mmrl.columns import COLUMNS, missing
from mmrl.errors import ConfigError, unknown
from mmrl.objective import Objective
from mmrl.pipelines.config import merge
from mmrl.policies.registry import OF_ONE_MODEL, policy_class
from mmrl.recipes import Recipe, load_recipe, recipe_names
from mmrl.rewards.presets import PRESETS, PUBLISHED
from mmrl.rewards.registry import Reward, columns_of
from mmrl.rewards.registry import registered as registered_rewards
from mmrl.rollout.environments.base import made_by
from mmrl.rollout.environments.opening import environment_of
from mmrl.rollout.nesting import Nested, on_offer
from mmrl.settings import read_section
from mmrl.stages import LANGUAGE, RENAMED, STAGES, StageFunction, registered
from mmrl.tools import Tool, tools
from mmrl.training.learners import learner_of
from mmrl.training.passes import plan_passes

SEVERAL = ("shaping", "group", "credit", "regularizers")
"""Keys of `objective` that hold a list."""
DEFAULTS = {"grpo", "token", "clip", "token_mean"}
"""What a recipe takes unless it says otherwise: it says nothing of the method."""


def _needs(function: StageFunction) -> list[str]:
    return [*sorted(function.needs()), *function.columns()]


TRAINS: dict[str, Any] = {"trainable": True, "makers": {}, "missing": [], "asks": []}
A_TEACHER = {"teacher": {"model": "a teacher"}}
TEACHER = "policy.teacher.model=NAME, or policy.teacher.adapter=FOLDER for the policy's own model with another adapter"

WIDE = 140  # columns of a terminal that holds every field of the table


def methods_json(of: Iterable[StageFunction] | None = None) -> list[dict[str, Any]]:
    """One entry a method: its stage functions (`of` those given, else of all), its rewards and its recipe, by name."""
    functions: dict[str, list[StageFunction]] = defaultdict(list)
    for function in registered() if of is None else of:
        functions[function.method].append(function)
    rewards: dict[str, list[Reward]] = defaultdict(list)
    for reward in published():
        rewards[reward.method].append(reward)
    recipes = {name: load_recipe(name) for name in recipe_names()}
    kit = tools()
    names = sorted({*functions, *rewards, *recipes, *PUBLISHED, *kit})
    return [
        _of_tool(kit[name], recipes.get(name))
        if name in kit and name not in functions
        else _preset(name)
        if name in PUBLISHED and name not in recipes
        else _entry(name, functions[name], rewards[name], recipes.get(name))
        for name in names
    ]


def _of_tool(tool: Tool, recipe: Recipe | None) -> dict[str, Any]:
    """The entry of a method that is no stage of a step; a learner has a recipe all the same."""
    return {
        "name": tool.name,
        "formula": tool.formula,
        "stages": ["learner" if recipe and recipe.learner != "gradient" else "tool"],
        "needs": [],
        "modalities": list(recipe.modalities if recipe else tool.modalities),
        "paper": tool.paper,
        "confidence": tool.confidence,
        "deviates": recipe.deviates if recipe else [],
        "functions": [f"tool: {tool.command}"],
        "recipe": recipe is not None,
        **(
            training_of(recipe)
            if recipe
            else TRAINS
            if tool.trains
            else _untrained(f"no stage of a step; it is used by {tool.command}")
        ),
        "summary": recipe.summary if recipe else tool.summary,
    }


def _preset(name: str) -> dict[str, Any]:
    """The entry of a method that is a preset of rewards."""
    preset = PUBLISHED[name]
    return {
        "name": name,
        "formula": preset.formula(name),
        "stages": ["reward"],
        "needs": [],
        "modalities": list(preset.modalities),
        "paper": preset.paper,
        "confidence": preset.confidence,
        "deviates": [],
        "functions": [f"reward preset: {name}"],
        "recipe": False,
        **_of_rewards([registered_rewards()[part["name"]] for part in PRESETS[name]]),
        "summary": preset.summary,
    }


def published() -> list[Reward]:
    """The rewards that are methods of a paper."""
    return [reward for _, reward in sorted(registered_rewards().items()) if reward.method]


def _entry(
    name: str, functions: list[StageFunction], rewards: list[Reward], recipe: Recipe | None
) -> dict[str, Any]:  # fmt: skip
    stages = {f.stage for f in functions} | ({"reward"} if rewards else set())
    needs = {n for f in functions for n in _needs(f)}
    needs |= {c for r in rewards for c in columns_of(r.function, {}, r.name).required}
    modalities = [m for m in OF_ONE_MODEL if all(m in f.modalities for f in functions)]
    formulas = [f.formula for f in functions] + [r.formula for r in rewards]
    if recipe:
        bound = Objective.of(recipe.objective).stages
        own = [b for b in bound if b.spec.method == name] or [b for b in bound if b.name not in DEFAULTS] or bound
        formulas = [b.spec.formula for b in own] + [r.formula for r in rewards]
        stages |= {b.spec.stage for b in bound if b.spec.method == name or not functions}
        needs |= {n for b in bound for n in (*b.needs, *b.columns)}
        modalities = list(recipe.modalities)
    source = recipe or (functions[0] if functions else rewards[0])
    return {
        "name": name,
        "formula": "; ".join(dict.fromkeys(formulas)),
        "stages": [s for s in (*STAGES[:2], "reward", *STAGES[2:]) if s in stages],
        "needs": sorted(needs),
        "modalities": modalities,
        "paper": source.paper,
        "confidence": source.confidence,
        "deviates": recipe.deviates if recipe else [],
        "functions": [*(f"{f.stage}: {f.name}" for f in functions), *(f"reward: {r.name}" for r in rewards)],
        "recipe": recipe is not None,
        **(training_of(recipe) if recipe else _added(functions, modalities) if functions else _of_rewards(rewards)),
        "summary": source.summary,
    }


def _untrained(*why: str) -> dict[str, Any]:
    return {"trainable": False, "makers": {}, "missing": list(why), "asks": []}


def _of_rewards(rewards: list[Reward]) -> dict[str, Any]:
    """A reward trains any recipe, on data that has its columns."""
    columns = {name for r in rewards for name in columns_of(r.function, {}, r.name).required}
    return {**TRAINS, "makers": {name: ["data"] for name in sorted(columns)}}


def _servers(recipe: Recipe) -> list[str]:
    """Where the servers are that the recipe's own rewards ask."""
    known = {r.name: signature(r.function).parameters for r in published()}
    asking = [
        r["name"] for r in recipe.rewards if "url" in known.get(r["name"], ()) and "url" not in r.get("options", {})
    ]
    return [f"url and model in the options of reward {name!r}: an OpenAI-compatible server" for name in asking]


MAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "answer": ("rewards=[{name: answer_number, weight: 0, columns: [answer]}]",
               {"rewards": [{"name": "answer_number", "weight": 0.0, "columns": ["answer"]}]}),
    "segment": ("rewards=[{name: sentences, weight: 0, columns: [segment]}]",
                {"rewards": [{"name": "sentences", "weight": 0.0, "columns": ["segment"]}]}),
    "action_reward": ("rollout=[turn_rewards]", {"rollout": ["turn_rewards"]}),
    "sampler_log_probs": ("policy.old_log_probs=trainer",
                          {"policy": {"old_log_probs": "trainer"}, "modalities": list(LANGUAGE)}),
}  # fmt: skip
"""{column: how a configuration has it made by what ships, and the recipe's sections that say so}."""


def _added(functions: list[StageFunction], modalities: list[str]) -> dict[str, Any]:
    """Whether GRPO with these stage functions, and with makers that ship for what they read, trains."""
    try:
        recipe = _composed(functions, modalities)
        found = training_of(recipe)
        wanted = [name for name in MAKERS if found["missing"] and name in found["makers"]]
        if wanted:
            found = training_of(_made(recipe, wanted))
            found["asks"] = [*(MAKERS[name][0] for name in wanted), *found["asks"]]
    except ConfigError as error:
        return _untrained(str(error))
    return {name: found[name] for name in ("trainable", "makers", "missing", "asks")}


def _made(recipe: Recipe, columns: list[str]) -> Recipe:
    """With a maker of each column."""
    rewards, rollout, policy = list(recipe.rewards), list(recipe.rollout), dict(recipe.policy)
    modalities = recipe.modalities
    for _, sections in (MAKERS[name] for name in columns):
        rewards += sections.get("rewards", [])
        rollout += sections.get("rollout", [])
        policy |= sections.get("policy", {})
        modalities = [m for m in modalities if m in sections.get("modalities", modalities)]
    changes = {"rewards": rewards, "rollout": rollout, "policy": policy, "modalities": modalities}
    return recipe.model_copy(update=changes)


def _composed(functions: list[StageFunction], modalities: list[str]) -> Recipe:
    """GRPO with the stage functions of a method that has no recipe of its name."""
    recipe = load_recipe("grpo")
    objective: dict[str, Any] = dict(recipe.objective)
    changes: dict[str, Any] = {"modalities": modalities, "method": functions[0].method}
    for function in functions:
        if function.stage == "prompts":
            changes["prompts"] = function.name
        elif function.stage == "rollout":
            changes["rollout"] = [*changes.get("rollout", []), function.name]
        elif function.stage == "environment":
            changes["environment"] = function.name
        elif (key := {"regularizer": "regularizers"}.get(function.stage, function.stage)) in SEVERAL:
            least = {"name": function.name, "coefficient": 0.01} if key == "regularizers" else function.name
            objective[key] = [*objective.get(key, []), least]
        else:
            objective[key] = function.name
    return recipe.model_copy(update={**changes, "objective": objective})


def training_of(recipe: Recipe) -> dict[str, Any]:
    """Whether a recipe trains with what is shipped.

    trainable  in every modality it names, nobody having to write a maker first
    makers     {column: the kinds of makers that can}, for what is neither a reward nor a pass of the policy
    missing    why it does not train: a line for each column that nobody makes, and for a pass no policy gives
    asks       keys of the configuration that only the user can fill, as `policy.model` is: a teacher, a trained
               adapter, ids of the model's vocabulary. A run without them is refused when it is read
    """
    objective, strategies, problems = Objective.of(recipe.objective), Nested.of(recipe.rollout), []
    asks = [line for bound in (*objective.stages, *strategies.bounds) for line in bound.waits]
    asks += [wants] if (wants := learner_of(recipe.learner).func.wants) else []
    asks += _servers(recipe)
    kept = []  # by the policy of each modality, with its rollouts
    for modality in recipe.modalities:
        kind = policy_class(modality)
        try:
            settings = read_section(kind.config_type, merge(kind.least, recipe.policy), "policy")
            kept.append(kind.columns_of(settings) | dict.fromkeys(kind.earned, "rewards of parts"))
            try:
                plan_passes(objective, kind, strategies, settings)
            except ConfigError:
                taught = read_section(kind.config_type, merge(kind.least, {**recipe.policy, **A_TEACHER}), "policy")
                plan_passes(objective, kind, strategies, taught)
                asks.append(TEACHER)
        except ConfigError as error:
            problems.append(f"{modality}: {error}")
    kept = kept or [{}]
    made = {*strategies.makes, *(name for name in kept[0] if all(name in k for k in kept))}
    made |= {name for reward in recipe.rewards for name in reward.get("columns", ())}
    made |= set(made_by(environment_of(recipe.environment).state)) if recipe.environment else set()
    read = strategies.reads(objective.columns)
    problems += missing(read, dict.fromkeys(made, "strategies and policies"), on_offer())
    makers = {name: list(COLUMNS[name].makers) for name in read if COLUMNS[name].makers}
    return {
        "trainable": not problems,
        "makers": makers,
        "missing": problems,
        "asks": list(dict.fromkeys(asks)),
        "updates": {"count": recipe.updates.count, "epochs": recipe.updates.epochs, "source": recipe.updates.source},
    }


def method_table(width: int = WIDE) -> Table:
    """All methods; what they need and where they come from only where there is room."""
    entries = methods_json()
    widest = max(len(m["name"]) for m in entries)
    fields = ["stages", "needs", "modalities", "confidence", "paper"]
    fields = fields if width >= WIDE else ["stages", "modalities", "confidence"]
    table = Table(Column("method", no_wrap=True, min_width=widest), *fields)  # a name is there to be copied
    for m in entries:
        table.add_row(m["name"], *(v if isinstance(v := m[f], str) else ", ".join(v) for f in fields))
    return table


def method_json(name: str) -> dict[str, Any]:
    """The entry of one method, by its name, a former one, or that of one of its functions."""
    known = {m["name"]: m for m in methods_json()}
    name = RENAMED.get(name, name)
    of_function = {f.name: f.method for f in registered()} | {r.name: r.method for r in published()}
    if name not in known and name not in of_function:
        raise ConfigError(unknown("method", name, {*known, *of_function}))
    return known[name if name in known else of_function[name]]


def describe(name: str) -> str:
    """Formula, defaults, needs and source of one method or stage function."""
    known = {m["name"]: m for m in methods_json()}
    if name in RENAMED:
        return f"{name} is named {RENAMED[name]} now\n{describe(RENAMED[name])}"
    functions = [f for f in registered() if name in (f.name, f.method)]
    rewards = [r for r in published() if name in (r.name, r.method)]
    if name not in known and not functions and not rewards:
        raise ConfigError(
            unknown("method", name, {*known, *(f.name for f in registered()), *(r.name for r in published())})
        )
    lines = []
    if method := known.get(name):
        lines += [f"{name}: {method['summary']}", f"  paper: {method['paper']} ({method['confidence']})"]
        lines += [
            f"  modalities: {', '.join(method['modalities'])}",
            f"  needs: {', '.join(method['needs']) or 'nothing extra'}",
        ]
        lines += [f"  deviates from its source: {line}" for line in method["deviates"]]
    if kit := tools().get(name):
        lines += [f"  formula: {kit.formula}", f"  use: {kit.command}"]
    for f in functions:
        defaults = ", ".join(f"{k}={v}" for k, v in f.defaults.items())
        lines += [f"{f.stage} {f.name}({defaults})", f"  {f.summary}", f"  formula: {f.formula}"]
        lines += [
            f"  needs: {', '.join(_needs(f)) or 'nothing extra'}; scope: {f.scope}; source: {f.paper} ({f.confidence})"
        ]
    for r in rewards:
        columns = ", ".join(columns_of(r.function, {}, r.name).required)
        lines += [f"reward {r.name}", f"  {r.summary}", f"  formula: {r.formula}"]
        lines += [f"  columns: {columns or 'none'}; source: {r.paper} ({r.confidence})"]
    if name in recipe_names():
        lines.append(f"recipe {name}:")
        recipe = load_recipe(name)
        chosen = {"prompts": recipe.prompts, **recipe.objective}
        lines += [f"  {stage}: {choice}" for stage, choice in chosen.items() if choice != "shuffled"]
        lines.append(f"  updates: {recipe.updates}")
        trains = training_of(recipe)
        lines += [f"  cannot train yet: {line}" for line in trains["missing"]]
        lines += [f"  asks you for {line}" for line in trains["asks"]]
        lines.append("formulas of its stages:")
        for bound in Objective.of(recipe.objective).stages:
            lines.append(f"  {bound.spec.stage} {bound.name}: {bound.spec.formula} (source: {bound.spec.paper})")
    return "\n".join(lines)
