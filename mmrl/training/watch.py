"""Reward hacking, watched for: what else moves while the reward rises.

Every few steps the policy acts deterministically on the same prompts with the same noise, and three things are
measured that the reward does not see:

    held_out   what rewards that do not train think of the outputs
    diversity  how different the outputs of one prompt are (`mmrl.training.variety`), its last pictures if it has more
    drift      how far the model moved from where it began, where the policy can say; of words and pictures in turns,
               the painter, asked the text of the prompt

Each is compared with its own value before the first step. Where one moved past its limit `patience` times in a row the
watch says so, names it with both numbers, and ends the run if it was told to (`watch.stop`). A reward that is hacked
rises to the end; these fall while it does (Gao et al. 2023, arXiv 2210.10760, for the shape of it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.rollout.actor import Actor
from mmrl.settings import Section
from mmrl.shown import tell
from mmrl.told import Told
from mmrl.training.evaluation import EVALUATION_SEED, Score
from mmrl.training.variety import Embed, diversity

TRAINED, HELD_OUT = "reward", "held_out"
FILE = "watch.json"


class WatchConfig(Section):
    """What is watched beside the reward, and when it ends a run.

    every       steps between two measurements; 0: none
    prompts     held-out prompts acted on, the first ones; members: outputs of each, at least 2
    rewards     that do not train, as under `rewards`: another verifier, another model; of several each is watched by
                itself too. None: held_out is not measured
    corrected   the middle of the held-out rewards' scale, of 1 to 5 (UnifiedReward) 3: the reward is then measured as
                GDRO's tables have it, too (`corrected_score`). null: it is not
    embedding   file.py:function, outputs to (N, D), in place of colours and edges in cells
    fall        of the held-out reward below its best so far, in standard deviations of its scores before training
    diversity   least share of the diversity before training, of pixels and of embeddings
    drift       largest relative error of the model against where it began; null: reported only, since what is much
                depends on the model
    patience    measurements in a row that must be past a limit
    stop        end the run; false: say it once, and go on
    """

    every: int = Field(10, ge=0)
    prompts: int = Field(16, ge=1)
    members: int = Field(2, ge=2)
    rewards: list[Any] = []
    corrected: float | None = None
    embedding: str | None = None
    fall: float = Field(0.5, gt=0)
    diversity: float = Field(0.5, ge=0, le=1)
    drift: float | None = Field(None, gt=0)
    patience: int = Field(2, ge=1)
    stop: bool = False


def corrected_score(reward: Tensor, judged: Tensor, middle: float = 3.0) -> Tensor:
    """(N,) r (u - 3) + .2 of rewards r and what another judge, on a scale of 1 to 5, says of the same outputs: what is
    bought with worse pictures is worth less, and past the middle of the scale nothing. NaN where either is.

    Source: notes that quote equation 12 of GDRO (arXiv 2601.02036), u the mean of UnifiedReward; whether the paper
    averages u before it multiplies could not be read.
    """
    return reward * (judged - middle) + 0.2


class Watch:
    """Measures, compares and says which moved. A `Monitor`.

    actor   who acts; prompts: on what
    scores  {"reward": what trains, "held_out": what does not}; the second may be missing
    drift   how far the model moved; None where its policy cannot say
    folder  where measurements are kept, so that a resumed run compares with the same start
    speaks  whether this rank writes and says something; all of them measure
    """

    def __init__(
        self, actor: Actor, prompts: Sequence[Prompt], scores: Mapping[str, Score], config: WatchConfig, *,
        drift: Callable[[], float] | None = None, embed: Embed | None = None, folder: Path | None = None,
        speaks: bool = True,
    ):  # fmt: skip
        if not len(prompts):
            raise ConfigError("watch: nothing to act on; name held-out prompts in data.eval, or set watch.every=0")
        if config.corrected is not None and HELD_OUT not in scores:
            raise ConfigError("watch.corrected compares with another judge; name it in watch.rewards")
        self.actor, self.config, self.scores, self.folder = actor, config, dict(scores), folder
        self.prompts = [prompts[i] for i in range(min(config.prompts, len(prompts)))]
        self.drift, self.embed, self.speaks = drift, embed, speaks
        self.rows: list[dict[str, float]] = []
        self.spread, self.ended, self.said = 0.0, "", ""
        self.spreads: dict[str, float] = {}

    def begin(self, step: int) -> None:
        kept = self._kept()
        self.rows = [row for row in kept if row["step"] <= step]
        if self.rows:
            self.spread = self.rows[0].get("spread", 0.0)
            return
        if step and self.speaks:
            tell(f"watch: nothing was measured before step {step}; limits and drift compare with it, not the start")
        asked = self.config.prompts
        if len(self.prompts) < asked and "prompts" in self.config.model_fields_set and self.speaks:
            tell(f"watch: {len(self.prompts)} held-out prompts, all there are, where watch.prompts={asked}")
        first = self.measure() | {"step": float(step)}
        self.rows = [first | {"spread": self.spread} | self.spreads]
        self._keep()

    def watch(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        if not self.config.every or step % self.config.every:
            return {}
        row = self.measure()
        self.rows.append(row | {"step": float(step)})
        self._keep()
        moved = self.moved()
        if moved and not self.said and self.speaks:
            tell(f"watch: {moved}")
        self.said = moved
        self.ended = moved if self.config.stop else ""
        return {f"watch/{name}": value for name, value in row.items()}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """{"reward", "held_out", "corrected", "pixels", "embedding", "drift"} of the policy as it stands."""
        requests = [Request(p, self.config.members, group=g) for g, p in enumerate(self.prompts)]
        rows = self.actor.act(requests, Key(EVALUATION_SEED, purpose="watch"), greedy=True)
        prompts = [rows.prompts[i] for i in rows.prompt.tolist()]
        found: dict[str, float] = {}
        each: dict[str, Tensor] = {}
        for name, score in self.scores.items():
            scored = score(rows.outputs, prompts)
            reward = each[name] = scored.reward.double()
            if bool(reward.isnan().all()):
                raise ConfigError(f"watch: no output could be scored by the {name} rewards")
            found[name] = float(reward.nanmean())
            if name == HELD_OUT and not self.rows:
                self.spread = float(reward[~reward.isnan()].std(correction=0))
            if name == HELD_OUT:
                found |= self._judges({n: part for n, part in scored.components.items() if "/" not in n})
        if self.config.corrected is not None and HELD_OUT in each:
            both = corrected_score(each[TRAINED], each[HELD_OUT], self.config.corrected)
            found["corrected"] = float(both.nanmean())
        size = self.config.members
        drawn = [each.picture if isinstance(each, Told) else each for each in rows.outputs]
        groups = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        found |= diversity(groups, self.embed, called=f"watch.embedding={self.config.embedding}")
        return found | ({"drift": self.drift()} if self.drift else {})

    def _judges(self, components: Mapping[str, Tensor]) -> dict[str, float]:
        """{"held_out/NAME"} of each of several held-out rewards: one that falls must not hide behind one that rises."""
        several = components if len(components) > 1 else {}
        known = {f"{HELD_OUT}/{name}": part[~part.isnan()].double() for name, part in several.items()}
        known = {name: part for name, part in known.items() if len(part)}
        if not self.rows:
            self.spreads = {f"spread/{name}": float(part.std(correction=0)) for name, part in known.items()}
        return {name: float(part.mean()) for name, part in known.items()}

    def moved(self) -> str:
        """What moved past its limit in each of the last `patience` measurements; "" if nothing did."""
        recent = self.rows[1:][-self.config.patience :]
        if len(recent) < self.config.patience:
            return ""
        judges = [name for name in self.rows[0] if name.startswith(f"{HELD_OUT}/")]
        fell = [self._fell(name) for name in (HELD_OUT, *judges)]
        rules = (*fell, self._alike("pixels"), self._alike("embedding"), self._drifted)
        said = [rule(recent) for rule in rules]
        if not any(said):
            return ""
        rose = f"while the reward went from {self.rows[0][TRAINED]:.3f} to {recent[-1][TRAINED]:.3f}"
        return f"{'; '.join(filter(None, said))}, {rose} (step {recent[-1]['step']:.0f})"

    def _fell(self, name: str) -> Callable[[list[dict[str, float]]], str]:
        def rule(recent: list[dict[str, float]]) -> str:
            values = [row[name] for row in self.rows if name in row]
            if not values or not all(name in row for row in recent):
                return ""
            spread = self.spread if name == HELD_OUT else self.rows[0][f"spread/{name}"]
            best = max(values)
            if not all(row[name] < best - self.config.fall * spread for row in recent):
                return ""
            which = f" {name.partition('/')[2]!r}" if "/" in name else ""
            return f"the held-out reward{which} fell to {recent[-1][name]:.3f} from {best:.3f}"

        return rule

    def _alike(self, name: str) -> Callable[[list[dict[str, float]]], str]:
        def rule(recent: list[dict[str, float]]) -> str:
            start = self.rows[0][name]
            if not all(row[name] < self.config.diversity * start for row in recent):
                return ""
            return f"diversity ({name}) fell to {recent[-1][name]:.3f} from {start:.3f}"

        return rule

    def _drifted(self, recent: list[dict[str, float]]) -> str:
        limit = self.config.drift
        if limit is None or not all(row.get("drift", 0.0) > limit for row in recent):
            return ""
        return f"drift from the start grew to {recent[-1]['drift']:.3f}, past {limit:g}"

    def _kept(self) -> list[dict[str, float]]:
        path = None if self.folder is None else self.folder / FILE
        return json.loads(path.read_text()) if path is not None and path.is_file() else []

    def _keep(self) -> None:
        if self.folder is not None and self.speaks:
            from mmrl.training.storage import write_atomically

            write_atomically(self.folder / FILE, json.dumps(self.rows, indent=1))
