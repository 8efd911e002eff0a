"""The card of exported weights: what they were trained from, on what, how, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from mmrl.pipelines.config import RunConfig
from mmrl.pipelines.rates import SIDES, trains_adapters
from mmrl.recipes import load_recipe
from mmrl.shown import shown

LIBRARY = {
    "vlm": "transformers", "video": "transformers", "masked": "transformers", "flow": "diffusers", "joint": "diffusers",
}  # fmt: skip
TASK = {
    "vlm": "image-text-to-text", "video": "video-text-to-text", "masked": "fill-mask", "flow": "text-to-image",
    "joint": "any-to-any",
}  # fmt: skip
CARD = """# {title}

`{model}`, trained with mmrl {version} by {method}.

| | |
| --- | --- |
{facts}

## Held-out scores

{scores}

## The same again

```bash
{command}
```

with this configuration:

```yaml
{config}```

No claim is made beyond the scores above. What the rewards do not measure was not looked at by them.
"""


def model_card(config: RunConfig, before: Mapping[str, float], after: Mapping[str, float], step: int) -> str:
    """Markdown with the hub's front matter. before, after: held-out scores, empty where there were none."""
    from mmrl import __version__

    recipe, adapted = load_recipe(config.recipe), trains_adapters(config.modality, config.policy)
    model = model_of(config)
    front = {
        "library_name": "peft" if adapted else LIBRARY[config.modality],
        "pipeline_tag": TASK[config.modality],
        "tags": ["mmrl", "reinforcement-learning", recipe.method],
    }
    front |= {} if _is_local(model) else {"base_model": model}
    facts = {
        "trained": "adapters" if adapted else "all weights, or those that `policy` leaves unfrozen",
        "recipe": f"{recipe.title} ({recipe.paper})",
        "data": _cell(config.data.train or "rows of the caller's own"),
        "rewards": ", ".join(f"{r.name} x {r.weight}" for r in config.rewards) or "functions of the caller's own",
        "steps": f"{step} of {config.training.steps}, {config.training.prompts_per_step} prompts x "
        f"{config.training.group_size} answers each",
        "learning rate": f"{config.training.learning_rate:g}, {config.training.schedule}",
        "seed": str(config.training.seed),
    }
    body = CARD.format(
        title=config.directory.name, model=model, version=__version__, method=recipe.title,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        scores=_scores(before, after), command=f"mmrl train {config.modality} config.yaml", config=config.to_yaml(),
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}"


def model_of(config: RunConfig) -> str:
    """What was trained from; of two policies both, writer first."""
    sides = [config.policy.get(side) for side in SIDES] if config.modality == "joint" else [config.policy]
    return " and ".join(str(side.get("model", "")) for side in sides if isinstance(side, Mapping))


def _is_local(model: str) -> bool:
    """Whether the hub would not know it."""
    return Path(model).exists() or model.startswith("asset:") or model.count("/") != 1


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|").replace("\n", " ")


def _scores(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if not after:
        return "None: the run had no held-out prompts."
    rows = [(name, before.get(name), value) for name, value in after.items() if name not in ("prompts", "unscored")]
    lines = [f"| {name} | {'' if old is None else f'{old:.3f}'} | {new:.3f} |" for name, old, new in rows]
    count = f"\n\nOn {after['prompts']:.0f} prompts that were not trained on." if "prompts" in after else ""
    return "\n".join(["| | before | after |", "| --- | --- | --- |", *lines]) + count
