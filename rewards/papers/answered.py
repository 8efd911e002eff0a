"""Composites around an answer: Vision-R1, TON, LaV-CoT, TimeMaster, few-shot satellite, Table2LaTeX-RL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.accuracy import check_row, judge
from mmrl.rewards.boxes import boxes, true_boxes
from mmrl.rewards.format import think_answer
from mmrl.rewards.grounding import iou
from mmrl.rewards.kinds.documents import teds, true_table
from mmrl.rewards.registry import checks, resolve, reward
from mmrl.rewards.tables import table

RIGHT = 0.5


def final(completion: str) -> str:
    """What stands in the last answer tag outside the thought."""
    return answers.tagged(answers.outside_thought(completion)) or ""


@reward(
    "vision_r1",
    success=True,
    check=check_row,
    paper="Vision-R1, arXiv 2503.06749",
    formula="[thought, then answer] x [answer right]",
    confidence="partly",
)
def vision_r1(completions, solution, task, options=None) -> list[float]:
    """Hard format and result: 1 only where the format is right and the answer is, too; `task` as of `accuracy`."""
    texts = options or [None] * len(completions)
    rows = zip(completions, solution, task, texts, strict=True)
    return [float(judge(c, s, t, options=o) >= RIGHT and think_answer(answers.normalise(c))) for c, s, t, o in rows]


@reward(
    "thought_skipped",
    paper="TON: think or not, 2025; code kokolerk/TON",
    formula="[<think></think> is empty]; a metric, of weight 0",
    method="ton",
)
def thought_skipped(completions) -> list[float]:
    """1 for an empty thought: the share of answers that a policy gave without thinking. A metric, of weight 0."""
    return [float(bool(re.match(r"\s*<think>\s*</think>", completion))) for completion in completions]


def check_lav(row: Mapping[str, Any], **_: Any) -> None:
    """RewardError for a row without language or count."""
    answers.truth(row.get("solution"))
    if answers.is_missing(row.get("lang")):
        raise RewardError(f"lang is {row.get('lang')!r}; expected the name of the language to answer in", "lang")


SCRIPTS = {
    "arabic": "\u0600-\u06ff", "chinese": "\u4e00-\u9fff", "japanese": "\u3040-\u30ff", "korean": "\uac00-\ud7af",
    "thai": "\u0e00-\u0e7f", "russian": "\u0400-\u04ff", "hindi": "\u0900-\u097f", "greek": "\u0370-\u03ff",
    "hebrew": "\u0590-\u05ff",
}  # fmt: skip


def written_in(text: str, language: str) -> float:
    """Whether most letters are of the script of a language that has its own; else whether its name is there."""
    letters = re.findall(r"[^\W\d_]", re.sub(r"<[^>]*>", " ", text))
    script = SCRIPTS.get(language.casefold())
    if script is None:
        return float(language.casefold() in text.casefold())
    own = sum(bool(re.match(f"[{script}]", each)) for each in letters)
    return float(bool(letters) and 2 * own >= len(letters))


@reward(
    "lav_cot",
    success=True,
    check=check_lav,
    paper="LaV-CoT, 2025; code HJNVR/LaV-CoT, lavcot/training/rewards.py",
    formula=".25 (language + format + count + answer); count = max(0, 1 - |n - gt| / max(gt, 1)) of \\\\obj{n}",
)
def lav_cot(completions, solution, lang, gt_counts=None) -> list[dict[str, float]]:
    """Four quarters: the language asked for, the format, the count of objects `\\\\obj{n}`, and the answer.

    Their language reward asks for the language's name, which says nothing of the text: where a language has a script of
    its own, the letters are looked at instead.
    """
    counts = gt_counts or [None] * len(completions)
    scores = []
    for completion, truth, language, wanted in zip(completions, solution, lang, counts, strict=True):
        said, right = final(completion), answers.truth(truth)
        form = re.fullmatch(r"\s*<think>.+?</think>\s*<answer>.+?</answer>\s*", completion, re.DOTALL | re.IGNORECASE)
        stated = re.search(r"\\obj\{(\d{1,9})\}", completion)
        found, true = int(stated[1]) if stated else 0, int(wanted or 0)
        parts = {
            "language": written_in(completion, str(language)) if said.strip() else 0.0,
            "format": float(bool(form)),
            "count": max(0.0, 1 - abs(found - true) / max(true, 1)) if stated and wanted is not None else 0.0,
            "answer": float(" ".join(said.casefold().split()) == " ".join(right.casefold().split())),
        }
        scores.append({"score": sum(parts.values()) / 4, "success": parts["answer"], **parts})
    return scores


@reward(
    "timemaster",
    success=True,
    check=checks(answers.truth),
    paper="TimeMaster, 2025",
    formula=".9 [class right] + .1 [<class>...</class> present]",
    confidence="partly",
)
def timemaster(completions, solution) -> list[dict[str, float]]:
    """A time series as a picture: .9 for the right class in `<class>`, .1 for the tag; its judged part is left out."""
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        found = re.findall(r"<class>(.*?)</class>", completion, re.DOTALL | re.IGNORECASE)
        said, wanted = answers.plain(found[-1]) if found else "", answers.plain(answers.truth(truth))
        right = float(bool(said) and said == wanted)
        form = float(bool(said))
        scores.append({"score": 0.9 * right + 0.1 * form, "success": right, "class": right, "format": form})
    return scores


_REASONED = re.compile(r"\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*", re.DOTALL)


def true_place(solution: Any) -> Any:
    """A box where the solution is one, else a text."""
    if isinstance(solution, list | tuple | dict) or (isinstance(solution, str) and boxes(solution)):
        return true_boxes(solution)[0]
    return answers.truth(solution)


@reward(
    "few_shot_satellite_rlvr",
    success=True,
    check=checks(true_place),
    paper="Few-shot satellite RLVR, arXiv 2507.21745; code aybora/FewShotReasoning",
    formula="[answer = truth without case and dots], or IoU of the answered box; + [<reasoning>, <answer>]",
    confidence="partly",
)
def few_shot_satellite_rlvr(completions, solution) -> list[dict[str, float]]:
    """Satellite pictures: 1 for the right text, or the IoU of the right box; + 1 for the format.

    The released scorer builds the true box from the answer's own numbers, so that any box is worth 1: not copied.
    """
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        right, said = true_place(truth), final(completion)
        if isinstance(right, tuple):
            found = boxes(said)
            value = iou(found[0], right) if len(set(found)) == 1 else 0.0
        else:
            value = float(
                bool(said) and said.lower().replace(".", "").strip() == right.lower().replace(".", "").strip()
            )
        form = float(bool(said) and bool(_REASONED.fullmatch(completion)))
        scores.append({"score": value + form, "success": float(value >= RIGHT), "accuracy": value, "format": form})
    return scores


STRUCTURE, LEAST_TEDS, LOOKS = 0.9, 0.3, 0.6


@lru_cache(maxsize=4)
def _renderer(name: str) -> Any:
    return resolve(name).function


@reward(
    "table2latex_rl",
    success=True,
    check=checks(true_table),
    paper="Table2LaTeX-RL, 2025; code newLLing/Table2LaTeX-RL",
    formula="[TEDS-S > .9] + [TEDS >= .3][similarity of the rendered tables > .6]",
    confidence="partly",
)
def table2latex_rl(completions, solution, *, renderer: str | None = None) -> list[dict[str, float]]:
    """A table in LaTeX: 1 for its structure, and 1 for its looks by your `renderer`; without one, structure alone.

    renderer  `render(texts) -> PIL images`, None for a table that does not compile; run it in a sandbox of your own
    """
    scores = []
    for completion, truth in zip(completions, solution, strict=True):
        right, said = true_table(truth), answers.extract(completion)
        found = table(said) if said else None
        small = found is not None and found.size() <= max(4 * right.size(), 40)
        near, structure = (teds(found, right), teds(found, right, structure=True)) if small else (0.0, 0.0)
        parts = {"structure": float(structure > STRUCTURE), "teds": max(0.0, near), "looks": 0.0}
        if renderer is not None and near >= LEAST_TEDS:
            parts["looks"] = _looks(renderer, said, truth)
        scores.append({"score": parts["structure"] + parts["looks"], "success": parts["structure"], **parts})
    return scores


def _looks(renderer: str, said: str, truth: str) -> float:
    from mmrl.rewards.looks import wavelet_similarity

    pictures = _renderer(renderer)([said, truth])
    if len(pictures) != 2 or pictures[1] is None:
        raise RewardError(f"renderer {renderer!r} gave no picture of the solution", "solution")
    return float(pictures[0] is not None and wavelet_similarity(*pictures) > LOOKS)
