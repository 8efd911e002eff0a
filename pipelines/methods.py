"""`mmrl methods`: what the registry and the recipes know, by method."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.table import Table

from mmrl.errors import ConfigError, unknown
from mmrl.objective import Objective
from mmrl.recipes import Recipe, load_recipe, recipe_names
from mmrl.stages import STAGES, StageFunction, registered

DEFAULTS = {"grpo", "token", "clip", "token_mean"}
"""What a recipe takes unless it says otherwise: it says nothing of the method."""


def _needs(function: StageFunction) -> list[str]:
    required = {k: v for k, v in function.defaults.items()}
    return [*sorted(function.needs(**required)), *function.required]


def methods_json() -> list[dict[str, Any]]:
    """One entry a method: its stage functions and its recipe together, by name."""
    entries: dict[str, dict[str, Any]] = {}
    functions: dict[str, list[StageFunction]] = defaultdict(list)
    for function in registered():
        functions[function.method].append(function)
    recipes = {name: load_recipe(name) for name in recipe_names()}
    for name in sorted({*functions, *recipes}):
        entries[name] = _entry(name, functions.get(name, []), recipes.get(name))
    return list(entries.values())


def _entry(name: str, functions: list[StageFunction], recipe: Recipe | None) -> dict[str, Any]:
    stages = {f.stage for f in functions}
    needs = {n for f in functions for n in _needs(f)}
    modalities = [m for m in ("vlm", "video", "flow") if all(m in f.modalities for f in functions)]
    formulas = [f.formula for f in functions]
    if recipe:
        bound = Objective.of(recipe.objective).stages
        own = [b for b in bound if b.spec.method == name] or [b for b in bound if b.name not in DEFAULTS] or bound
        formulas = [b.spec.formula for b in own]
        stages |= {b.spec.stage for b in bound if b.spec.method == name or not functions}
        needs |= {n for b in bound for n in (*b.needs, *b.spec.required)}
        modalities = list(recipe.modalities)
    return {
        "name": name,
        "formula": "; ".join(dict.fromkeys(formulas)),
        "stages": [s for s in STAGES if s in stages],
        "needs": sorted(needs),
        "modalities": modalities,
        "paper": recipe.paper if recipe else functions[0].paper,
        "confidence": recipe.confidence if recipe else functions[0].confidence,
        "functions": [f"{f.stage}: {f.name}" for f in functions],
        "recipe": recipe is not None,
        "summary": (recipe.summary if recipe else functions[0].summary),
    }


def method_table() -> Table:
    table = Table("method", "stages", "needs", "modalities", "confidence", "paper")
    for m in methods_json():
        table.add_row(
            m["name"],
            ", ".join(m["stages"]),
            ", ".join(m["needs"]),
            ", ".join(m["modalities"]),
            m["confidence"],
            m["paper"],
        )
    return table


def describe(name: str) -> str:
    """Formula, defaults, needs and source of one method or stage function."""
    known = {m["name"]: m for m in methods_json()}
    functions = [f for f in registered() if name in (f.name, f.method)]
    if name not in known and not functions:
        raise ConfigError(unknown("method", name, {*known, *(f.name for f in registered())}))
    lines = []
    if method := known.get(name):
        lines += [f"{name}: {method['summary']}", f"  paper: {method['paper']} ({method['confidence']})"]
        lines += [
            f"  modalities: {', '.join(method['modalities'])}",
            f"  needs: {', '.join(method['needs']) or 'nothing extra'}",
        ]
    for f in functions:
        defaults = ", ".join(f"{k}={v}" for k, v in f.defaults.items())
        lines += [f"{f.stage} {f.name}({defaults})", f"  {f.summary}", f"  formula: {f.formula}"]
        lines += [
            f"  needs: {', '.join(_needs(f)) or 'nothing extra'}; scope: {f.scope}; source: {f.paper} ({f.confidence})"
        ]
    if name in recipe_names():
        lines.append(f"recipe {name}:")
        recipe = load_recipe(name)
        chosen = {"prompts": recipe.prompts, **recipe.objective}
        lines += [f"  {stage}: {choice}" for stage, choice in chosen.items() if choice != "shuffled"]
        lines.append("formulas of its stages:")
        for bound in Objective.of(recipe.objective).stages:
            lines.append(f"  {bound.spec.stage} {bound.name}: {bound.spec.formula} (source: {bound.spec.paper})")
    return "\n".join(lines)
