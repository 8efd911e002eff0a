"""Tasks by name: how answers of one kind are judged. A new kind is one file in `mmrl/rewards/kinds`.

    @kind("ocr", read=true_texts, valid=bool, answer="...", truth="...", aliases=("text_recognition",))
    def ocr(answer, right, *, metric="wer") -> Verdict:
        return Verdict(score, parsed, {"wer": ...})

`read` makes the truth of a `solution`, or raises RewardError; `answer` is what `answers.extract` finds in a completion.
The task is also a reward of its own under the same name, which takes the same settings as options and gives the parts
of the verdict as components. A completion that only repeats its prompt, and one without an answer, is worth 0.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import RewardError, unknown
from mmrl.rewards import answers
from mmrl.rewards.registry import checks, reward

Score = Callable[..., Any]
SHORTEST_PROMPT = 12  # characters of a prompt that can be recognised when it comes again
_MARKS = re.compile(r"</?\w{1,20}>|\\boxed|[{}]")
KEPT = 0.02  # share of a completion's words that may stand beside its repeated prompt


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth: a score in [0, 1], whether it could be read at all, and named parts in [0, 1]."""

    score: float
    parsed: bool = True
    parts: dict[str, float] = field(default_factory=dict)

    def components(self) -> dict[str, float]:
        return {"score": self.score, "parsed": float(self.parsed), **self.parts}


UNREAD = Verdict(0.0, False)


@dataclass(frozen=True)
class Task:
    """How answers of one kind are judged.

    score    (completion, solution, **context) -> Verdict or number in [0, 1]; RewardError for a truth it cannot read
    check    the check of the reward that this task is, so that both refuse the same rows
    valid    whether the text of an answer has the right type, right or wrong; read by graded format
    aliases  other names of the same task
    reads    which settings of the row or of the reward `score` takes
    answer   what is read as an answer, for the documentation
    truth    what a `solution` may look like, for the documentation
    """

    score: Score
    check: Callable[..., Any]
    valid: Callable[[str], bool]
    answer: str
    truth: str
    aliases: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def judge(self, completion: str, solution: Any, **context: Any) -> Verdict:
        found = self.score(completion, solution, **context)
        if isinstance(found, Verdict):
            return found
        return Verdict(found, found > 0 or self.valid(answers.extract(completion)))


TASKS: dict[str, Task] = {}
_loaded = False


def add(name: str, task: Task) -> None:
    """Raises RewardError for a name or alias that another task has."""
    for each in (name, *task.aliases):
        held = next((n for n, t in TASKS.items() if each in (n, *t.aliases) and n != name), None)
        if held:
            raise RewardError(f"task {name!r}: {each!r} is the task {held!r} already")
    TASKS[name] = task


def kind(
    name: str,
    *,
    read: Callable[..., Any],
    valid: Callable[[str], bool],
    answer: str,
    truth: str,
    aliases: tuple[str, ...] = (),
    context: tuple[str, ...] = (),
    check: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Verdict]], Callable[..., Verdict]]:
    """Register `f(answer, right, **settings) -> Verdict` as a task and as the reward of the same name.

    context  which of its settings are columns of the row
    check    refuses rows; None: those whose solution `read` refuses
    """

    def truth_of(solution: Any) -> Any:
        if (
            solution is None
            or solution == {}
            or solution != solution
            or (isinstance(solution, str) and not solution.strip())
        ):
            answers.refuse(solution, "is blank", truth)
        try:
            return read(solution)
        except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
            answers.refuse(solution, f"is no truth of the task {name!r}", truth)

    def register(function: Callable[..., Verdict]) -> Callable[..., Verdict]:
        def score(completion: str, solution: Any, **settings: Any) -> Verdict:
            right = truth_of(solution)
            found = answers.extract(completion)
            return function(found, right, **settings) if found.strip() else UNREAD

        settings = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        refuse = check or checks(truth_of)
        names = tuple(p.name for p in settings)
        add(name, Task(score, refuse, valid, answer, truth, aliases, names))
        reward(name, success=True, check=refuse)(_as_reward(function, score, settings, context))
        return function

    return register


def _as_reward(function: Callable, score: Score, settings: list[inspect.Parameter], context: tuple[str, ...]):
    """The reward of a kind: its settings are options, and those named in `context` columns that rows may have."""

    def rewarded(completions, solution, prompts=None, **given: Any) -> list[dict[str, float]]:
        columns = {key: given.pop(key) for key in context if given.get(key) is not None}
        asked = prompts if prompts is not None else [""] * len(completions)
        rows = zip(asked, completions, solution, strict=True)
        return [
            guarded(score, p, c, s, {**given, **{k: v[i] for k, v in columns.items()}}).components()
            for i, (p, c, s) in enumerate(rows)
        ]

    named = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in ("completions", "solution")]
    named.append(inspect.Parameter("prompts", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None))
    rows = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in settings if p.name in context]
    options = [p for p in settings if p.name not in context]
    rewarded.__signature__ = inspect.Signature([*named, *rows, *options])  # type: ignore[attr-defined]
    rewarded.__doc__, rewarded.__module__ = function.__doc__, function.__module__
    rewarded.__qualname__ = rewarded.__name__ = function.__name__
    return rewarded


def guarded(score: Score, prompt: Any, completion: str, solution: Any, settings: Mapping[str, Any]) -> Verdict:
    """The verdict of a completion, 0 for one that repeats its prompt. The truth is read either way."""
    found = score(completion, solution, **settings)
    verdict = found if isinstance(found, Verdict) else Verdict(found)
    if verdict.score > 0 and repeats(completion, prompt):
        return Verdict(0.0, False, dict.fromkeys(verdict.parts, 0.0))
    return verdict


def repeats(completion: str, prompt: Any) -> bool:
    """Whether a completion, or its answer, is the prompt over again, once or many times, and next to nothing else."""
    asked = _words_of(asked_text(prompt))
    if len(asked) < SHORTEST_PROMPT:
        return False
    for said in map(_words_of, (completion, answers.extract(completion))):
        rest = said.replace(asked, " ")
        if rest != said and len(rest.split()) <= KEPT * len(said.split()):
            return True
    return False


def _words_of(text: str) -> str:
    """Without tags and the marks of a box, white space collapsed, case folded."""
    return " ".join(_MARKS.sub(" ", text).split()).casefold()


def asked_text(prompt: Any) -> str:
    """The text of a prompt: of its last user turn where it is a chat."""
    if isinstance(prompt, str):
        return prompt
    turns = [m for m in prompt or () if isinstance(m, Mapping) and m.get("role") == "user"]
    content = turns[-1].get("content") if turns else ""
    if isinstance(content, str):
        return content
    return "\n".join(str(p.get("text") or "") for p in content or () if isinstance(p, Mapping))


def load() -> dict[str, Task]:
    """Every task: each file of `mmrl.rewards.kinds` adds its own."""
    global _loaded
    if not _loaded:
        _loaded = True
        folder = importlib.import_module("mmrl.rewards.kinds")
        for each in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{folder.__name__}.{each.name}")
    return TASKS


def find_task(name: Any) -> Task:
    """The task of a name or alias, whatever its case and separators. Raises RewardError."""
    key = " ".join(str(name).strip().lower().replace("-", " ").replace("_", " ").split()).replace(" ", "_")
    tasks = load()
    known = {alias: task for task, entry in tasks.items() for alias in (task, *entry.aliases)}
    if key not in known:
        raise RewardError(unknown("task", str(name), tasks, known), column="task")
    return tasks[known[key]]


MODALITIES = frozenset(("image", "images", "video", "videos", "text", "multi_image", "multi-image", "audio", "mixed"))


def task_name(row: Mapping[str, Any]) -> Any:
    """What a row calls its task: `task`, else `problem_type`, else a `data_type` that is no modality."""
    named = row.get("task") if row.get("task") is not None else row.get("problem_type")
    kind_of_data = row.get("data_type")
    return kind_of_data if named is None and kind_of_data not in MODALITIES else named


def one_of(option: str, value: Any, valid: Mapping[str, Any] | tuple[str, ...]) -> None:
    """RewardError for a setting that does not exist, with the nearest one that does."""
    if value not in valid:
        raise RewardError(unknown(option, str(value), list(valid)))
