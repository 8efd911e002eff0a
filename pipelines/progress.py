"""What a run shows while it trains: reward, success, seconds a step, what is left, an answer, what is wrong."""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmrl.pipelines.config import RunConfig
from mmrl.shown import shown
from mmrl.training.trackers import Completion, kind_of, read_completions

SHOWN_CAUSES = 5
SECONDS_BETWEEN_LINES = 10.0
"""Of a run whose output is a file."""
REPEATED, OVER = 10, 5
"""Steps between two lines on something that stays wrong, and without it until it is over."""
PACE = 15
"""Steps whose middle is the speed that is told."""
LONGEST_SAMPLE = 300
"""Characters of a text in a line."""


def quiet_libraries() -> None:
    """transformers and diffusers draw no bars for loading and saving, and what they warn developers of stays out of
    users' sight; downloads keep their bars."""
    from diffusers.utils import logging as diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers

    for library in ("transformers", "diffusers", "peft", "huggingface_hub"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    downloads_shown = not are_progress_bars_disabled()
    transformers.disable_progress_bar()
    diffusers.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()


@contextmanager
def progress(config: RunConfig, console: Console) -> Iterator[Live]:
    """Yields the live view: called with (step, metrics) and, by `.kept`, with rollouts that were written; silent on all
    ranks but the first."""
    if os.environ.get("RANK", "0") != "0":
        yield Live(config.training.steps, Console(quiet=True))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, disable=console.is_jupyter) as bar:
        task = bar.add_task(f"{config.modality} {Path(config.recipe).stem}", total=config.training.steps, note="")

        live = Live(config.training.steps, console)
        live.moved = lambda step, note: bar.update(task, completed=step, total=live.steps, note=note)
        try:
            yield live
        except BaseException:
            bar.update(task, visible=bar.tasks[task].completed > 0)  # of a run that never began, the error says all
            raise


class Live:
    """What a run tells while it trains: the bar's note, held-out scores, an answer now and then, what is wrong for as
    long as it is, and, where nobody watches a bar, how it goes."""

    def __init__(self, steps: int, console: Console, moved: Callable[[int, str], None] = lambda step, note: None):
        self.steps, self.console, self.moved, self.told = steps, console, moved, -SECONDS_BETWEEN_LINES
        self.slower: set[str] = set()
        self.ill: dict[str, tuple[int, int, int]] = {}  # name: the steps since which, when last seen, when last told
        self.causes, self.causes_told = set[str](), 0
        self.pace: deque[float] = deque(maxlen=PACE)
        self.no_bar = console.is_jupyter or not console.is_terminal

    def __call__(self, step: int, metrics: dict[str, Any]) -> None:
        self.pace.append(step_seconds(metrics))
        note = f"{scores(metrics, '')}  {speed(self.pace, self.steps - step)}"
        self.moved(step, note)
        held_out = scores(metrics, "eval/")
        if held_out and step < self.steps:
            self._say(f"step {step}: held-out {held_out}")
        elif self.no_bar and time.monotonic() - self.told > SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            self._say(f"step {step} of {self.steps}: {note}")
        self._diagnosis(step, metrics.get("diagnosis", {}))
        fell_back = metrics.get("rows/fell_back", {})
        for reason in sorted(fell_back.keys() - self.slower):
            self.slower.add(reason)
            self._say(f"step {step}: {fell_back[reason]} rows took a slower way: {reason}")
        for reason in metrics.get("skipped", ()):
            self._say(f"left out, as training.skip_nonfinite says: {reason}")
        self._unscored(step, metrics["unscored"])

    def began(self, config: RunConfig) -> None:
        """The steps are those of the data, where `training.data_epochs` says so."""
        self.steps = config.training.steps

    def kept(self, step: int, folder: Path) -> None:
        """One answer of the rollouts of a step: of the group whose rewards differ most the best, or the first."""
        if kind_of(folder) == "rollouts":
            self._say(sample_line(step, read_completions(folder), folder))

    def _unscored(self, step: int, causes: dict[str, int]) -> None:
        """Every cause when it is met first, and all of them again every `REPEATED` steps that bring some."""
        if not causes or (causes.keys() <= self.causes and step < self.causes_told + REPEATED):
            return
        self.causes |= causes.keys()
        self.causes_told = step
        most = sorted(causes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{cause} ({n})" for cause, n in most[:SHOWN_CAUSES])
        more = f", and {len(most) - SHOWN_CAUSES} more causes" if len(most) > SHOWN_CAUSES else ""
        self._say(f"step {step}: unscored rollouts: {shown}{more}")

    def _diagnosis(self, step: int, found: dict[str, str]) -> None:
        """A finding is said when it begins and every `REPEATED` steps that it lasts; and when it is over, which one
        that comes and goes is not."""
        for name, said in found.items():
            since, _, told = self.ill.get(name, (step, step, step - REPEATED))
            if step >= told + REPEATED:
                self._say(f"step {step}: {said}{'' if step == since else f' (since step {since})'}")
                told = step
            self.ill[name] = since, step, told
        for name, (_, seen, _) in list(self.ill.items()):
            if step >= seen + OVER:
                del self.ill[name]
                self._say(f"step {step}: no longer so since step {seen + 1}: {name}")

    def _say(self, line: str) -> None:
        self.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def step_seconds(metrics: dict[str, Any]) -> float:
    """Of all stages of a step, evaluation and saving before it included."""
    return sum(v for k, v in metrics.items() if k.startswith("seconds/") and isinstance(v, int | float))


def speed(pace: Sequence[float], steps_left: int) -> str:
    """`1.2 s a step, 4 min left`: the middle of the last steps, so that a save or an evaluation does not mislead."""
    middle = statistics.median(pace)
    return f"{middle:.3g} s a step, {lasting(middle * steps_left)} left"


def lasting(seconds: float) -> str:
    """42 s, 7 min, 3.1 h, 2.5 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def sample_line(step: int, completions: Sequence[Completion], folder: Path) -> str:
    """`step 10, sample (reward 1.000): How many? -> 3 [solution: 3]`, each text in one line and cut."""

    def spread(group: int) -> float:
        known = [c.reward for c in completions if c.group == group and c.reward is not None]
        return max(known) - min(known) if known else -1.0

    group = max(dict.fromkeys(c.group for c in completions), key=spread)
    members = [c for c in completions if c.group == group]
    best = max(members, key=lambda c: -math.inf if c.reward is None else c.reward)
    files = [str(folder / p.name) for p in (best.films or best.sounds or best.images)]
    solution = f" [solution: {_cut(best.solution)}]" if best.solution else ""
    at_limit = ", cut at the limit" if best.finish == "length" else ""
    answer = " and ".join([*([_cut(best.output)] if best.output or not files else []), *files[:1]])
    return f"step {step}, sample (reward {best.score}{at_limit}): {_cut(best.prompt)} -> {answer}{solution}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_SAMPLE else f"{line[: LONGEST_SAMPLE // 2]} ... {line[-LONGEST_SAMPLE // 2 :]}"


def scores(metrics: dict[str, Any], prefix: str) -> str:
    """`reward 0.413  success 0.250`, as far as the metrics know them."""
    names = {"reward": f"{prefix}reward" if prefix else "reward/mean", "success": f"{prefix}success"}
    return "  ".join(f"{name} {metrics[key]:.3f}" for name, key in names.items() if key in metrics)
