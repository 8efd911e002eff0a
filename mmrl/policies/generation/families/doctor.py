"""`mmrl doctor MODEL` for generators: how a pipeline would be trained, found by running a few of its steps."""

from __future__ import annotations

from typing import Any

from mmrl.errors import ConfigError


def is_pipeline(model: str) -> bool:
    """Whether a folder or hub name is a pipeline of diffusers."""
    from diffusers import DiffusionPipeline

    try:
        return "_class_name" in DiffusionPipeline.load_config(model)
    except (OSError, ValueError):
        return False


def examine(model: str, **settings: Any) -> list[tuple[str, str]]:
    """`[(name, finding)]`: family, equality with the pipeline's own call, schedule, state, guidance, LoRA layers.

    settings  of the policy, such as a small `height` and `width` for a quick look
    """
    import torch
    from torch import nn

    from mmrl.policies.generation.config import FlowPolicyConfig
    from mmrl.policies.generation.families import FAMILIES, generator_of
    from mmrl.policies.generation.families.base import PLAIN_PROMPT
    from mmrl.policies.generation.families.check import checked
    from mmrl.policies.generation.pipeline import load_pipeline, trained_modules
    from mmrl.policies.generation.sde import stochastic_steps

    config = FlowPolicyConfig(model=model, **settings)
    pipeline = load_pipeline(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline.to(device)
    generator = generator_of(pipeline, config.asked())
    modules = trained_modules(generator)
    generator, verdict = checked(generator, PLAIN_PROMPT, generator.stand_in_media(), modules)
    times = generator.schedule(config.steps, generator.stand_in_media())
    trained = stochastic_steps(config.sampler.kind, times, config.scoring().everywhere)
    adapted = generator.targets(modules["transformer"])
    count = sum(p.numel() for part in modules.values() for p in part.parameters())
    named = "named family" if verdict.pipeline in FAMILIES else "no family is named for it"
    return [
        ("pipeline", f"{verdict.line()} ({named})"),
        ("schedule", f"{config.steps} steps: {', '.join(f'{t:.4g}' for t in times.tolist())}"),
        ("trained steps", f"{int(trained.sum())} of {config.steps}; the others are deterministic"),
        ("state", f"{generator.state_shape()} at {generator.size}"),
        ("guidance", _guidance(generator)),
        ("weights", f"{count / 1e9:.3g} billion parameters in {', '.join(modules)}"),
        ("lora", f"{_matches(modules['transformer'], adapted, nn.Linear)} linear layers by {adapted!r:.120}"),
    ]


def _guidance(generator: Any) -> str:
    forms = [f"policy.guidance_scale is the pipeline's {generator.scale}"] if generator.scale else []
    embedded = generator.embeds_guidance and generator.pipeline.transformer.config.get("guidance_embeds", False)
    forms += ["policy.embedded_guidance is an input of the model"] if embedded else []
    return "; ".join(forms) or "none as an argument"


def _matches(module: Any, targets: str | list[str], kind: type) -> int:
    """How many layers PEFT would adapt."""
    import re

    if targets == []:
        raise ConfigError("lora: this transformer has no linear layer")
    names = [name for name, part in module.named_modules() if isinstance(part, kind)]
    if isinstance(targets, str):
        return sum(re.fullmatch(targets, name) is not None for name in names)
    return sum(any(name == t or name.endswith(f".{t}") for t in targets) for name in names)
