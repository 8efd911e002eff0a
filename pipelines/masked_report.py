"""`mmrl doctor MODEL`: what was found about a masked diffusion language model by running it."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

TOLERANCE = 1e-4


def is_masked_model(model: str) -> bool:
    """Whether a folder or hub name is a language model that fills masks, and no vision-language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as seeing
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    try:
        kind = AutoConfig.from_pretrained(model).model_type
    except (OSError, ValueError):
        return False
    return kind in masked and kind not in seeing


def masked_report(model: str) -> Group:
    """Load a checkpoint as `train masked` would, and tell its facts and what two passes showed."""
    from mmrl.policies.masked.policy import MaskedDiffusionConfig, MaskedDiffusionPolicy

    policy = MaskedDiffusionPolicy.from_config(MaskedDiffusionConfig(model=model, max_new_tokens=8))
    table = Table.grid(padding=(0, 2))
    for name, fact in (_facts(policy) | _tried(policy)).items():
        table.add_row(Text(name, style="bold"), Text(fact))
    return Group(table)


def _facts(policy: Any) -> dict[str, str]:
    from torch import nn

    core, tokenizer = policy.inner.model, policy.tokenizer
    limit = getattr(core.config, "max_position_embeddings", None)
    head = core.get_output_embeddings()
    linear = {n.rsplit(".", 1)[-1] for n, m in core.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return {
        "model type": f"{core.config.model_type}, fills masks: mmrl train masked",
        "positions": f"up to {limit}, prompt and canvas together" if limit else "no limit given",
        "mask token": f"{tokenizer.mask_token} ({policy.inner.mask_token}), never written",
        "end token": f"{tokenizer.convert_ids_to_tokens(policy.end)} ({policy.end})",
        "chat template": "yes" if tokenizer.chat_template else "no: the prompt's text as it is",
        "LoRA targets": ", ".join(sorted(linear)),
        "reads media": "no",
    }


def _tried(policy: Any) -> dict[str, str]:
    """Whether padding shows, and whether a canvas sees what stands after a token."""
    import torch

    from mmrl.record import Prompt

    ids = policy.encode(Prompt("p", [{"role": "user", "content": "1 + 1 ="}])).to(policy.device)[None]
    canvas = torch.full((1, 8), policy.inner.mask_token, device=policy.device)
    filled = canvas.clone()
    filled[0, -1] = ids[0, -1]
    here = torch.ones_like(ids)
    with policy.acting():
        alone = policy.inner.logits(ids, here, canvas)[0]
        padded = policy.inner.logits(torch.cat([ids, ids], 1), torch.cat([0 * here, here], 1), canvas)[0]
        later = policy.inner.logits(ids, here, filled)[0]
    known = alone.isfinite()
    pads, sees = (float((other[0] - alone[0])[known[0]].abs().max()) for other in (padded, later))
    return {
        "padding": f"{'changes nothing' if pads < TOLERANCE else 'CHANGES log-probs'}, largest difference {pads:.0e}",
        "later tokens": f"{'reach earlier ones' if sees > TOLERANCE else 'DO NOT reach earlier ones'}, by {sees:.0e}",
    }
