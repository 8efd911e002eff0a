"""What is wrong with a run, chosen from its numbers: each rule reads the last steps' metrics and names a knob.

A rule is a pure function of a window, the rows of the last steps as `metrics.jsonl` has them, newest last. It answers
with a sentence that holds the numbers, or "". A finding is told every step that it lasts, in the metrics as
`diagnosis`, and stays out where another finding explains it: answers that are all cut off all score 0, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Window = Sequence[Row]

WINDOW = 20
"""Steps a rule may look back."""
SPEAKS = ("vlm", "video", "masked")
EVERYONE = (*SPEAKS, "flow", "joint")

SOME = 5
"""Steps over which noisy numbers are judged together: one poor step is no finding."""
TRUNCATED = 0.5
LOW_SIGNAL = 0.25
NEVER = 0.02
"""Mean of a component that nobody meets."""
UNSCORED = 0.05
CLIPPED = 0.2
"""Of the actions of optimizer steps past the first, whose ratios are 1. What goes with its advantage is clipped, about
half: where every ratio is outside of the range, it is a quarter to a half."""
KL, KL_GROWTH, KL_FAR = 0.5, 2.0, 1.0
"""Nats an action: run off where it grows past the first, and wherever it stays past the last. A generator's steps are
densities, whose level says nothing."""
POLICY_KL = 0.2
ENTROPY, ENTROPY_LEFT = 0.02, 0.1
TINY_GRADIENT, MOVED = 1e-7, 1e-2
PERFECT = 0.999


def recent(rows: Window, name: str, count: int) -> list[float]:
    """The metric in the last `count` rows; empty where one of them does not have it."""
    found = [row.get(name) for row in rows[-count:]]
    numbers = [float(v) for v in found if isinstance(v, int | float)]
    return numbers if len(numbers) == count else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _unscored(rows: Window) -> str:
    (share,) = recent(rows, "reward/unscored_fraction", 1) or [0.0]
    causes = rows[-1].get("unscored") or {}
    most = max(causes, key=causes.get) if causes else "the reward had no answer"
    return f"{share:.0%} of the rollouts are unscored, most often because of: {most}" if share > UNSCORED else ""


def _truncated(rows: Window) -> str:
    (share,) = recent(rows, "length/truncated_fraction", 1) or [0.0]
    return f"{share:.0%} of the answers are cut at the length limit before they end" if share >= TRUNCATED else ""


def _constant(rows: Window) -> str:
    spread, mean = recent(rows, "reward/std", 2), recent(rows, "reward/mean", 2)
    if not spread or not mean or max(spread) > 1e-6 or max(mean) - min(mean) > 1e-6:
        return ""
    right = "success" in rows[-1] and rows[-1]["success"] >= PERFECT
    why = "all are right, so nothing is left to learn" if right else "nothing can be learned from it"
    return f"every rollout of the last steps got the same reward, {mean[-1]:.3f}: {why}"


def _equal(rows: Window) -> str:
    active = _mean(recent(rows, "signal/active_fraction", SOME) or [1.0])
    flat = _mean(recent(rows, "signal/zero_variance_fraction", SOME) or [0.0])
    if active >= LOW_SIGNAL:
        return ""
    seen = recent(rows, "success", SOME)
    success = _mean(seen) if seen else None
    side = "" if success is None else f"; most are {'right' if success > 0.5 else 'wrong'}, success is {success:.2f}"
    return (
        f"only {active:.0%} of the rollouts carry a learning signal ({flat:.0%} are in groups whose members all scored "
        f"the same{side})"
    )


def _components(row: Row) -> list[str]:
    """`accuracy`, `format`, `accuracy/parsed` of `reward/NAME/mean`."""
    names = (k.removeprefix("reward/").removesuffix("/mean") for k in row if k.startswith("reward/"))
    return [n for n in names if f"reward/{n}/mean" in row]


def _unmet(rows: Window) -> str:
    for name in _components(rows[-1]):
        values = recent(rows, f"reward/{name}/mean", 2)
        if ("format" in name or name.endswith("parsed")) and values and max(values) <= NEVER:
            met = "could be read" if name.endswith("parsed") else "meets the format"
            return f"hardly an answer {met}: reward component {name!r} is {values[-1]:.3f}"
    return ""


def _dead(rows: Window) -> str:
    """Of rewards, not of their parts, which nobody can take out; one that all have met in full has done its work."""
    for name in (n for n in _components(rows[-1]) if "/" not in n):
        mean, spread = (recent(rows, f"reward/{name}/{part}", SOME) for part in ("mean", "std"))
        if mean and spread and max(spread) <= 1e-6 and max(mean) - min(mean) <= 1e-6 and mean[-1] < PERFECT:
            return f"reward {name!r} has been {mean[-1]:.3f} for every rollout of {SOME} steps: it teaches nothing"
    return ""


def _saturated(rows: Window) -> str:
    shares, updates = recent(rows, "ratio/clip_fraction", SOME), recent(rows, "updates/of_step", SOME)
    if not shares or not updates or min(updates) < 2:
        return ""
    past_the_first = _mean(shares) * _mean(updates) / (_mean(updates) - 1)
    return f"{past_the_first:.0%} of the actions are clipped once the policy moved" if past_the_first > CLIPPED else ""


def _never_acts(rows: Window) -> str:
    acted, updates = recent(rows, "trust_region/acted", 10), recent(rows, "updates/of_step", 10)
    if not acted or not updates or max(acted) > 0 or min(updates) < 2:
        return ""
    return f"in 10 steps of {updates[-1]:.0f} optimizer steps no ratio has reached the trust region"


def _kl(rows: Window) -> str:
    moved = recent(rows, "ratio/approx_kl", 2)
    if moved and min(moved) >= POLICY_KL:
        return f"one step takes the policy a KL of {moved[-1]:.2f} an action away from the one that sampled"
    for name in (k for k in rows[-1] if k.startswith("regularizer/") and "kl" in k):
        now, all_of_it = recent(rows, name, 3), recent(rows, name, len(rows))
        first = _mean(all_of_it[:3]) if len(all_of_it) >= 6 else None
        if now and first is not None and min(now) >= KL and _mean(now) >= KL_GROWTH * first:
            return f"KL to the reference runs off: {name} went from {first:.2f} to {_mean(now):.2f}"
        if now and min(now) >= KL_FAR and "gaussian" not in name:
            return f"the policy is far from the reference: {name} is {_mean(now):.2f} nats an action"
    return ""


def _entropy(rows: Window) -> str:
    now, all_of_it = recent(rows, "entropy/sampled", 3), recent(rows, "entropy/sampled", len(rows))
    if not now or len(rows) < 6 or not all_of_it:
        return ""
    first = _mean(all_of_it[:3])
    gone = max(now) <= ENTROPY or (first > 0 and max(now) <= ENTROPY_LEFT * first)
    return f"entropy is gone: {now[-1]:.3f} nats a token, {first:.3f} when these steps began" if gone else ""


def _tiny(rows: Window) -> str:
    norms, moved = recent(rows, "gradient_norm", 3), recent(rows, "update/moved_fraction", 3)
    if norms and max(norms) <= TINY_GRADIENT:
        return f"the gradient is next to nothing: its norm is {norms[-1]:.1e}"
    if moved and max(moved) <= MOVED:
        return f"only {moved[-1]:.2%} of the trained weights change in an optimizer step"
    return ""


@dataclass(frozen=True)
class Rule:
    """says: the window -> what is wrong, or "". knob: what to do. explains: findings that follow from this one."""

    name: str
    says: Callable[[Window], str]
    knob: str
    explains: tuple[str, ...] = ()
    modalities: tuple[str, ...] = EVERYONE


RULES = (
    Rule(
        "unscored", _unscored,
        "mend the reward, give it more time by reward_run.timeout, or see the rows by `mmrl check`",
    ),
    Rule(
        "truncated", _truncated,
        "raise policy.max_new_tokens, ask for short answers in data.system, or shape with objective.shaping: "
        "[soft_overlong]",
        explains=("constant", "equal", "format", "dead", "tiny"), modalities=SPEAKS,
    ),
    Rule(
        "format", _unmet,
        "ask for the format in data.system or data.template, or take that reward out of `rewards`",
        explains=("constant", "equal", "dead", "tiny"), modalities=SPEAKS,
    ),
    Rule(
        "constant", _constant,
        "look at the answers in `mmrl report`; choose other prompts (data.train), or another reward (rewards)",
        explains=("equal", "dead", "tiny", "clip_idle"),
    ),
    Rule(
        "equal", _equal,
        "choose prompts that it solves sometimes (data.train), raise training.group_size, or ask again with rollout: "
        "dynamic_sampling",
        explains=("tiny", "clip_idle"),
    ),
    Rule("dead", _dead, "take it out of `rewards`, or look at what it reads in `mmrl report`"),
    Rule(
        "clip_saturated", _saturated,
        "lower training.learning_rate or training.updates.count, or widen objective.trust_region.high; where the "
        "reward rises, leave it",
    ),
    Rule(
        "clip_idle", _never_acts,
        "raise training.learning_rate, or narrow objective.trust_region.low and objective.trust_region.high; where the "
        "reward rises, leave it",
    ),
    Rule(
        "kl", _kl,
        "lower training.learning_rate, or raise the coefficient of kl in objective.regularizers",
    ),
    Rule(
        "entropy", _entropy,
        "raise objective.trust_region.high (.28 is DAPO's), lower training.learning_rate, or add entropy to "
        "objective.regularizers",
        modalities=SPEAKS,
    ),
    Rule(
        "tiny", _tiny,
        "raise training.learning_rate; below float32 see policy.dtype, and whether the advantages are 0 (signal/*)",
    ),
)  # fmt: skip


def diagnose(rows: Window, modality: str) -> dict[str, str]:
    """{rule: what is wrong, and the knob} of the newest row, most telling first; empty for a healthy run."""
    if not rows:
        return {}
    found = {r.name: (r, said) for r in _rules(modality) if (said := r.says(rows))}
    explained = {name for rule, _ in found.values() for name in rule.explains}
    return {
        n: f"{said}. {rule.knob[0].upper()}{rule.knob[1:]}" for n, (rule, said) in found.items() if n not in explained
    }


def _rules(kind: str) -> list[Rule]:
    """The rules that are about runs of one modality."""
    return [rule for rule in RULES if kind in rule.modalities]


def is_read(name: str) -> bool:
    """Whether a rule may look at the metric: the window keeps no other."""
    heads = ("reward/", "signal/", "ratio/", "regularizer/")
    names = ("success", "length/truncated_fraction", "trust_region/acted", "updates/of_step", "entropy/sampled")
    return name.startswith(heads) or name in (*names, "gradient_norm", "update/moved_fraction", "unscored")


@dataclass
class Doctor:
    """Keeps the window of a run, through a resume too."""

    modality: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, metrics: Row) -> dict[str, str]:
        self.rows = [*self.rows, {k: v for k, v in metrics.items() if is_read(k)}][-WINDOW:]
        return diagnose(self.rows, self.modality)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state.get("rows", ())]


def spells(rows: Iterable[Row]) -> list[tuple[str, int, int, str]]:
    """(rule, first step, last step, what was said last) of findings that stood in consecutive rows of a run."""
    open_: dict[str, list[Any]] = {}
    ended: list[list[Any]] = []
    for row in rows:
        told = row.get("diagnosis")
        told = told if isinstance(told, dict) else {}
        ended += [open_.pop(name) for name in list(open_) if name not in told]
        for name, said in told.items():
            open_.setdefault(name, [name, row["step"], row["step"], said])[2:] = [row["step"], str(said)]
    return [tuple(spell) for spell in sorted([*ended, *open_.values()], key=lambda s: (s[1], s[0]))]
