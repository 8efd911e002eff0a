"""Long sequences over several processes: what exists outside, and why a run that asks for it is refused."""

from __future__ import annotations

from collections.abc import Mapping

from mmrl.errors import ConfigError
from mmrl.tools import tool

ASKED = {
    "PARALLELISM_CONFIG_CP_SIZE": "parallelism_config_cp_size",
    "PARALLELISM_CONFIG_SP_SIZE": "parallelism_config_sp_size",
    "PARALLELISM_CONFIG_TP_SIZE": "parallelism_config_tp_size",
}
"""What accelerate's launcher sets, and the key of its configuration."""


@tool(
    "tokenring",
    command="not in a run: docs/distributed.md#long-sequences says what to do, and which engines split a sequence",
    paper="TokenRing: communication for sequence parallelism, arXiv 2412.20501",
    formula="out = sum_i exp(lse_i - lse) out_i, lse = logsumexp_i lse_i, over the blocks of keys that processes hold",
    confidence="partly",
    modalities=("vlm", "video"),
)
def refuse_split_sequences(environment: Mapping[str, str]) -> None:
    """ConfigError where the launcher is told to split sequences or matrices over processes.

    Its ranks would share the rows of one batch, and here every rank has rows of its own: gradients would be added of
    batches that are not one. accelerate's own split wants FSDP2, attention by SDPA that is causal and without a mask,
    and GPUs: torch's ring attention has flash, memory-efficient and cuDNN kernels and none for a CPU. Prompts with
    pictures, packed groups and padded rows all have masks. Source: accelerate's guide to context parallelism, and
    torch/distributed/tensor/experimental/_context_parallel/_attention.py.
    """
    for name, key in ASKED.items():
        size = environment.get(name, "1")
        if size not in ("", "1"):
            raise ConfigError(
                f"accelerate is set to {key}={size}: ranks would share a sequence, and here each has rows of its own; "
                f"set it to 1, and see docs/distributed.md#long-sequences for rows that do not fit"
            )
