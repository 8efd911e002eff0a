"""Structured answers: tool calls compared part by part, and a checklist for any JSON.

A tool call is `{"name": ..., "parameters": {...}}`: an agent's call, a labelled box, an event of a video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.rewards import answers
from mmrl.rewards.registry import checks, reward

Call = tuple[str, dict[str, Any]]


def overlap(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Multiset Jaccard: shared over all; 1 if both are equal, empty ones included."""
    a, b = Counter(map(str, first)), Counter(map(str, second))
    shared = sum((a & b).values())
    return 1.0 if a == b else shared / (sum(a.values()) + sum(b.values()) - shared)


def calls(value: Any) -> list[Call] | None:
    """The calls in a parsed answer: one, or a list of them; None where there are none to read."""
    listed = value if isinstance(value, list) else [value]
    found = []
    for each in listed:
        parameters = each.get("parameters", each.get("arguments", {})) if isinstance(each, dict) else None
        if not isinstance(parameters, dict) or not isinstance(each.get("name"), str):
            return None
        found.append((each["name"], parameters))
    return found


def true_calls(solution: Any) -> list[Call]:
    """The calls of a solution; RewardError where there are none."""
    found = calls(answers.json_value(solution) if isinstance(solution, str) else solution)
    if not found:
        answers.refuse(solution, "is no tool call", '{"name": ..., "parameters": {...}}, or a list of them')
    return found


def true_object(solution: Any) -> Mapping[str, Any]:
    """The JSON object of a solution; RewardError for anything else, and for an empty one."""
    value = answers.json_value(solution) if isinstance(solution, str) else solution
    if not isinstance(value, Mapping) or not value:
        answers.refuse(solution, "is no JSON object", 'one with the fields an answer should have, as {"kind": "cat"}')
    return value


def call_score(predicted: Sequence[Call], true: Sequence[Call]) -> float:
    """Names, and for each true call the best unused predicted one of its name: keys and equal values; a share of 1."""
    score, free = overlap([name for name, _ in predicted], [name for name, _ in true]), list(predicted)
    for name, wanted in true:
        rated = [(_match(given, wanted), i) for i, (other, given) in enumerate(free) if other == name]
        if rated:
            best, i = max(rated, key=lambda pair: (pair[0], -pair[1]))
            score += best
            free.pop(i)
    return score / (1 + sum(1 + len(wanted) for _, wanted in true))


def _match(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    return overlap(list(given), list(wanted)) + sum(given.get(k) == v for k, v in wanted.items() if k in given)


@reward(
    "toolrl",
    check=checks(true_calls),
    paper="ToolRL, 2025; code qiancheng0/ToolRL, rlla.py",
    formula="(hi - lo) score / most + lo; score = Jaccard(names) + sum over calls of Jaccard(keys) + equal values",
)
def toolrl(completions, solution, *, low: float = -3.0, high: float = 3.0) -> list[float]:
    """Tool calls against the true ones: names, parameter names and values; `low` for what cannot be read."""
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        true = true_calls(truth)
        predicted = calls(answers.json_value(answers.extract(completion)))
        scores.append(low if predicted is None else (high - low) * call_score(predicted, true) + low)
    return scores


def checklist(value: Any, truth: Mapping[str, Any]) -> dict[str, float]:
    """Shares of what a structured answer should have: whether it parses, the keys it has, the fields that are right."""
    valid = isinstance(value, dict)
    present = [key for key in truth if valid and key in value]
    return {
        "validity": float(valid),
        "structure": len(present) / max(len(truth), 1),
        "correctness": sum(value[key] == truth[key] for key in present) / max(len(truth), 1),
    }


@reward(
    "structured_output",
    check=checks(true_object),
    method="rl_struct",
    paper="after RL-Struct, arXiv 2512.00319 (withdrawn by its authors)",
    formula="sum_k w_k s_k / sum_k w_k over validity, structure, correctness; correctness 0 unless valid",
    confidence="reconstructed",
)
def structured_output(
    completions, solution, *, validity: float = 1.0, structure: float = 1.0, correctness: float = 1.0
) -> list[dict[str, float]]:
    """A JSON object: whether it parses, which keys it has, which fields are right; each is reported, too."""
    weights = {"validity": validity, "structure": structure, "correctness": correctness}
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        wanted = true_object(truth)
        parts = checklist(answers.json_value(answers.extract(completion)), wanted)
        total = sum(weights[name] * share for name, share in parts.items()) / sum(weights.values())
        scores.append({"structured_output": total, **parts})
    return scores
