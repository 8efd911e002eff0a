"""`mmrl sar PLAN`: a next-scale model, as many steps more of teacher forcing, and as many of SAR, in one folder.

OUT/plan.json                what was asked; the same command goes on, another is refused
OUT/{base,teacher,sar}/      of each: `state.safetensors` (weights, moments, step), `metrics.jsonl`, `model/`
OUT/refined.json             what each came to on held-out rows
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.pipelines.config import DataConfig, override, set_dotted
from mmrl.pipelines.refining_rows import Rows, held_out, opened
from mmrl.pipelines.refining_steps import Stage, train
from mmrl.pipelines.shipped import read_plan
from mmrl.plugins import is_reference, load
from mmrl.randomness import Key
from mmrl.settings import Section, read_section
from mmrl.shown import rounded, tell
from mmrl.training.storage import write_atomically

ARMS = ("base", "teacher", "sar")


class Tiny(Section):
    """The model of our own that is made where none is named: see `mmrl.policies.scales.model.NextScaleConfig`.

    fitted  pictures that its codebooks are made from
    """

    sides: list[int] = [1, 2, 4, 8]
    patch: int = Field(3, ge=1)
    codes: int = Field(640, ge=2)
    residual: bool = False
    width: int = Field(64, ge=1)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    fitted: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _fit_together(self) -> Tiny:
        if len(self.sides) < 2 or self.sides[0] < 1 or self.sides != sorted(set(self.sides)):
            raise ConfigError(f"tiny: sides={self.sides}; expected two or more, rising, as [1, 2, 4, 8]")
        if self.width % self.heads:
            raise ConfigError(f"tiny: width={self.width} is no multiple of heads={self.heads}")
        return self


class Refinement(Section):
    """What is refined.

    model          tiny, a folder that one of those was saved to, or path.py:Model, a class of yours without arguments
    data           train and eval: rows with a caption and one picture, or world:compositions, which draws its own
    rewards        what free-running samples of held-out captions are worth
    pretrain       steps of teacher forcing before; 0 for a model that is trained already
    steps          of teacher forcing, and of SAR, each from what came before
    weight         of the student's part
    student        scales of the student's part: all from the second on, or the last
    drawn          own tokens are drawn, and not the likeliest
    temperature    of free-running samples
    samples        of each held-out caption
    save_every     steps after which a stage that is interrupted can go on
    """

    model: str = "tiny"
    tiny: Tiny = Tiny()
    data: DataConfig
    rewards: list[Any]
    pretrain: int = Field(600, ge=0)
    steps: int = Field(200, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    warm_up: int = Field(20, ge=0)
    weight: float = Field(0.01, gt=0)
    student: Literal["all", "last"] = "all"
    drawn: bool = False
    temperature: float = Field(1.0, gt=0)
    samples: int = Field(1, ge=1)
    save_every: int = Field(100, ge=1)
    seed: int = 0
    out: str = "runs/sar"

    def stage(self, arm: str) -> Stage:
        return Stage(
            arm, self.pretrain if arm == "base" else self.steps, self.weight if arm == "sar" else 0.0, self.student,
            self.drawn, self.batch_size, self.learning_rate, self.warm_up, self.save_every, Key(self.seed),
            before=0 if arm == "base" else self.pretrain,
        )  # fmt: skip


def read_refinement(source: str | Path, overrides: Sequence[str] = ()) -> Refinement:
    """A file, or the name of a shipped plan ("shapes")."""
    values, path = read_plan(source, "sar", "shipped plan of sar")
    for text in overrides:
        set_dotted(values, *override(text))
    return read_section(Refinement, values, str(path))


def refine(plan: Refinement, report: Callable[[str], None] = tell) -> str:
    """Run what is missing. Returns the table, which is also in `OUT/refined.json`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("mmrl sar runs in one process; start it without a launcher")
    out = Path(plan.out)
    told = _same_plan(plan, out)
    with opened(plan.data, plan.rewards) as (rows, held, panel):
        model = build(plan, rows)
        write_atomically(out / "plan.json", told)
        found: dict[str, dict[str, Any]] = {}
        for arm in ARMS:
            stage = plan.stage(arm)
            if stage.steps:
                train(model, stage, rows, out / arm, None if arm == "base" else out / "base", report)
            found[arm] = {"steps": stage.steps, "passes": stage.steps * (2 if stage.weight else 1)} | held_out(
                model, held, panel, Key(plan.seed, purpose="held out"), plan.samples, plan.temperature, plan.batch_size
            )
            report(f"{arm}: {_said(found[arm])}")
    write_atomically(out / "refined.json", json.dumps(rounded(found), indent=1))
    return "\n".join([f"{arm:8} {_said(values)}" for arm, values in found.items()] + [f"weights and curves in {out}"])


def build(plan: Refinement, rows: Rows) -> Any:
    """The model before any step; `plan.seed` says which, where it is made here."""
    import torch

    from mmrl.policies.scales.model import NextScaleConfig, NextScaleModel, split
    from mmrl.policies.scales.protocol import checked

    torch.manual_seed(Key(plan.seed, purpose="weights").number)
    if is_reference(plan.model):
        model = checked(_made(load(plan.model, "model"), plan.model), plan.model)
    elif plan.model != "tiny":
        config = Path(plan.model) / "config.json"
        kind = json.loads(config.read_text()).get("model_type") if config.is_file() else "absent"
        if kind != NextScaleConfig.model_type:
            raise ConfigError(
                f"model {plan.model!r}: expected tiny, path.py:Model, or a folder whose config.json is of model_type "
                f"{NextScaleConfig.model_type}; it is {kind}"
            )
        model = NextScaleModel.from_pretrained(plan.model)
    else:
        words = sorted({word for text in rows.texts() for word in split(text)})
        shape = plan.tiny.model_dump(exclude={"fitted"})
        model = NextScaleModel(NextScaleConfig(**shape, words=words))
        model.fit(rows.first(plan.tiny.fitted), Key(plan.seed))
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _made(kind: Any, name: str) -> Any:
    try:
        return kind() if isinstance(kind, type) else kind
    except TypeError as error:
        raise ConfigError(f"model {name}: {error}; expected a class that is made without arguments") from error


def _same_plan(plan: Refinement, out: Path) -> str:
    """What is asked, as it is kept. A folder of another plan is refused; where it is and how often it is saved may
    change."""
    told = json.loads(json.dumps(plan.model_dump(exclude={"out", "save_every"}), default=str))
    file = out / "plan.json"
    if file.is_file():
        known = json.loads(file.read_text())
        if changed := [key for key in told if known.get(key) != told[key]]:
            raise ConfigError(
                f"{out} holds a run with another {', '.join(changed)}; name another folder, as in out={out}-2"
            )
    return json.dumps(told, indent=1)


def _said(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
