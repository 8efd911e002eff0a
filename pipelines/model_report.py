"""`mmrl doctor MODEL`: what was found about a vision-language model by running it."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

PATHS = {
    "features": "media encoded once per prompt",
    "batches": "unlike prompts in one batch",
    "prefix_cache": "two calls, and decoding from one prefill",
    "shared_cache": "one copy of the prompt's cache for a group",
    "packed": "a group in one packed row",
    "turns": "pictures in later turns",
}


def model_report(model: str, *, video: bool = False) -> Group:
    """Load a checkpoint as a policy would, and tell its facts, its paths, the gaps they were judged by; where vLLM is
    installed, whether it writes what is trained."""
    from mmrl.pipelines.engine_report import TOKENS, engine_of, engine_report, made_clip
    from mmrl.policies.language.config import LanguagePolicyConfig
    from mmrl.policies.language.vision import VisionPolicy

    policy: Any
    asked: dict[str, Any] = {"model": model, "engine": engine_of(), "max_new_tokens": TOKENS}
    if video:
        from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig

        policy = VideoPolicy.from_config(VideoPolicyConfig(**asked), read_clip=made_clip)
    else:
        policy = VisionPolicy.from_config(LanguagePolicyConfig(**asked))
    told = _facts(policy), _paths(policy), _gaps(policy), engine_report(policy)
    return Group(*(part for section in told for part in (section, Text(""))))


def _facts(policy: Any) -> Table:
    family, tokenizer, core = policy.family, policy.processor.tokenizer, policy.inner.core

    def named(ids: Any) -> str:
        return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids)

    layers = {kind: family.layer_types.count(kind) for kind in dict.fromkeys(family.layer_types)}
    limit = getattr(family.text, "max_position_embeddings", None)
    facts = {
        "model type": f"{family.model_type}, by {type(family).__module__.rsplit('.', 1)[-1]}.{type(family).__name__}",
        "text layers": ", ".join(f"{count} {kind}" for kind, count in layers.items()),
        "positions": f"up to {limit}" if limit else "no limit given",
        "end tokens": named(policy.stopping.ids),
        "placeholders": ", ".join(f"{kind} {named([i])}" for kind, i in family.placeholders.items()) or "none named",
        "never sampled": named(family.suppressed),
        "reads media": ", ".join(family.readers(core)),
        "video": "yes" if family.reads_video else "no",
        "LoRA targets": ", ".join(family.linear_targets(core)),
    }
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(fact))
    return table


def _paths(policy: Any) -> Table:
    found = policy.capabilities
    table = Table.grid(padding=(0, 2))
    for name, meaning in PATHS.items():
        value = getattr(found, name)
        mark = Text("✓", style="green") if value else Text("–", style="yellow")
        table.add_row(mark, Text(meaning), Text("" if isinstance(value, bool) or value is None else str(value)))
    table.add_row(Text(""), Text("scoring takes"), Text(", then ".join(way.value for way in policy.ways)))
    table.add_row(Text(""), Text("decoding goes on from"), Text(policy.inner.decodes_by))
    for way, reason in policy.taken.closed.items():
        table.add_row(Text("!", style="yellow"), Text(f"no {way}: {reason}"), Text(""))
    for line in found.fallbacks:
        table.add_row(Text("!", style="yellow"), Text(line), Text(""))
    return table


def _gaps(policy: Any) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, gap in policy.capabilities.gaps.items():
        table.add_row(Text(name, style="bold"), Text(f"{gap:.1e}" if isinstance(gap, float) else str(gap)))
    return table
