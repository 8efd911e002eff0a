"""What both ways of asking vLLM share: its settings, what a row is asked with, and what came back of it.

An exact log-prob is one of the distribution that was sampled from. So vLLM reports `processed_logprobs`, behind the
temperature and the bias that keeps placeholders out, and nothing may stand between the two: no top-p, top-k, min-p,
penalty or default of a checkpoint's generation configuration, all of which are named in every request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting
from mmrl.policies.language.sampling import Decoded
from mmrl.policies.language.stopping import Stopping
from mmrl.settings import Section

LOGPROBS_MODE = "processed_logprobs"
NEVER = -1e9
"""Bias of an id that is never sampled: in float32 exactly nothing is left of it, and JSON has no -inf."""
OURS = frozenset(
    "model tokenizer dtype logprobs_mode max_logprobs generation_config override_generation_config logits_processors "
    "seed trust_remote_code max_model_len max_num_seqs enforce_eager tensor_parallel_size limit_mm_per_prompt "
    "gpu_memory_utilization enable_sleep_mode load_format enable_lora max_lora_rank runner task".split()
)
"""Arguments of vLLM that follow from the policy, or have a name of ours."""
INEXACT = frozenset("quantization kv_cache_dtype speculative_config hf_overrides calculate_kv_scales".split())
"""Arguments behind which log-probs are no longer the trainer's."""
CAPABILITIES = EngineCapabilities(exact_log_probs=True, media=frozenset({"image", "video"}))


class VLLMOptions(Section):
    """What stands beside `name: vllm` and `mode`.

    max_model_len    tokens of a prompt and its response; null: as many as the model has positions. The cache holds at
                     least one such row, so a large one costs memory
    max_num_seqs     rows written at once
    images, videos   most of each in a prompt; vLLM sets memory aside for so many
    gpu_memory       share of a GPU that vLLM may take, weights included. Beside a trainer on the same GPU: what that
                     leaves; on a GPU of its own 0.9
    cache_gb         memory of the cache on CPUs
    tensor_parallel  GPUs that share the model
    eager            no compiled graphs: slower on GPUs, ready at once; null: on CPUs only
    lora             merged: an adapter is folded into whole weights, for every layer that PEFT can adapt. adapter: the
                     base weights stay and the adapter is swapped, which moves little; for layers that vLLM adapts
    arguments        any further argument of vLLM's, as its engine names it
    """

    max_model_len: int | None = Field(None, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    images: int = Field(8, ge=0)
    videos: int = Field(1, ge=0)
    gpu_memory: float = Field(0.4, gt=0, le=1)
    cache_gb: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    eager: bool | None = None
    lora: Literal["merged", "adapter"] = "merged"
    arguments: dict[str, Any] = {}


def refuse(config: LanguagePolicyConfig, options: VLLMOptions) -> None:
    """Raise ConfigError for what vLLM could be told and the policy not trained with."""
    given = options.arguments.keys()
    if ours := sorted(given & OURS):
        raise ConfigError(
            f"policy.engine.arguments.{ours[0]}: follows from the policy and its engine section; leave it out here"
        )
    if config.old_log_probs == "sampler" and (lossy := sorted(given & INEXACT)):
        raise ConfigError(
            f"policy.engine.arguments.{lossy[0]}: log-probs are then not the trainer's, and "
            "policy.old_log_probs=sampler would train on them; write policy.old_log_probs=trainer, or leave it out"
        )
    if config.attention not in ("sdpa", "eager") and config.dtype == "float32":
        raise ConfigError(f"policy.attention={config.attention} takes no float32, and vLLM would follow policy.dtype")


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def arguments_of(setting: Setting, *, videos: bool) -> dict[str, Any]:
    """Arguments of vLLM's engine, by the names of its Python class.

    videos  the policy may be shown some
    """
    config, options = setting.config, setting.options
    parts = {"image": options.images} | ({"video": options.videos} if videos else {})
    seen = {kind: parts.get(kind, 0) for kind in ("image", "video") if kind in setting.family.written}
    adapted = config.lora is not None and options.lora == "adapter"
    given = {
        "model": config.model,
        "dtype": config.autocast or config.dtype,
        "trust_remote_code": config.trust_remote_code,
        "logprobs_mode": LOGPROBS_MODE,
        "generation_config": "vllm",
        "seed": 0,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "enforce_eager": on_cpu() if options.eager is None else options.eager,
        "tensor_parallel_size": options.tensor_parallel,
        "limit_mm_per_prompt": seen,
    }
    if adapted:
        given |= {"enable_lora": True, "max_lora_rank": _rank_for(config.lora.rank)}
    if not on_cpu():
        given["gpu_memory_utilization"] = options.gpu_memory
    if sizes := _sizes(setting):
        given["mm_processor_kwargs"] = sizes
    return {name: value for name, value in given.items() if value is not None} | options.arguments


def environment_of(options: VLLMOptions) -> dict[str, str]:
    """Variables vLLM is started with, where the user has set none."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not on_cpu():
        return quiet
    return quiet | {"VLLM_CPU_KVCACHE_SPACE": str(options.cache_gb), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _rank_for(rank: int) -> int:
    """The least rank that vLLM has room for."""
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _sizes(setting: Setting) -> dict[str, Any]:
    """The area images are resized into, where the policy set one of its own."""
    config = setting.config
    if config.min_pixels is None and config.max_pixels is None:
        return {}
    size = setting.processor.image_processor.size
    size = dict(size) if isinstance(size, dict) else {n: getattr(size, n) for n in ("shortest_edge", "longest_edge")}
    return {"size": {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"]}}


def parameters(setting: Setting, draw: Draw | None, budget: int) -> dict[str, Any]:
    """Of vLLM's `SamplingParams`, for one row. Greedy log-probs are those at temperature 1: nothing trains on them."""
    strings = setting.stopping.strings
    return {
        "max_tokens": budget,
        "temperature": 0.0 if draw is None else setting.config.temperature,
        "seed": None if draw is None else draw.seed,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "min_tokens": 0, "ignore_eos": False,
        "stop_token_ids": list(setting.stopping.ids),
        "stop": list(strings), "include_stop_str_in_output": True,
        "detokenize": bool(strings), "skip_special_tokens": False,
        "logprobs": 0,
        "logit_bias": dict.fromkeys(setting.family.suppressed, NEVER),
    }  # fmt: skip


def content_key(image: Any) -> str:
    """Names a picture by its pixels, so that vLLM processes and encodes it once for a group."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclass
class Written:
    """One row as vLLM gives it: prompt (P,) ids once expanded, tokens and log_probs (t,), and why it ended."""

    prompt: Sequence[int]
    tokens: list[int]
    log_probs: list[float]
    finish: str | None


def decoded(setting: Setting, contexts: Sequence[Context], rows: Sequence[Written]) -> Decoded:
    """(B, N) of what was written. Raises PolicyError for a prompt that vLLM read otherwise than the trainer, and for a
    row that ended for a reason of its own."""
    for context, row in zip(contexts, rows, strict=True):
        context.check_ids(row.prompt)
        if row.finish not in ("stop", "length") or not row.tokens or len(row.tokens) != len(row.log_probs):
            raise PolicyError(
                f"prompt {context.prompt.id!r}: vLLM ended a row with {row.finish!r} after {len(row.tokens)} tokens "
                f"and {len(row.log_probs)} log-probs; expected 'stop' or 'length', and as many of both"
            )
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    log_probs = torch.zeros(len(rows), width)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = torch.tensor(row.tokens)
        log_probs[place, : len(row.tokens)] = torch.tensor(row.log_probs)
    length = torch.tensor([len(row.tokens) for row in rows])
    made = Decoded(tokens, log_probs, length, torch.tensor([row.finish == "stop" for row in rows]))
    return _stopped_as_asked(setting, contexts, made)


def _stopped_as_asked(setting: Setting, contexts: Sequence[Context], made: Decoded) -> Decoded:
    """Rows end where the policy's own rule ends them: what stands behind is cut, and one that ended before is an
    error. vLLM looks for stop strings in its own text, which is not always the tokenizer's."""
    width = made.tokens.shape[1]
    first = _first_stop(setting.stopping, made)
    if early := (made.stopped & (first > width)).nonzero().squeeze(1).tolist():
        context, row = contexts[early[0]], made.tokens[early[0], : made.length[early[0]]].tolist()
        raise PolicyError(
            f"prompt {context.prompt.id!r}: vLLM ended a row behind {row[-3:]}, where the policy does not; it ends "
            f"with one of the ids {list(setting.stopping.ids)} or of {list(setting.stopping.strings)}"
        )
    length = torch.minimum(made.length, first)
    inside = torch.arange(width) < length[:, None]
    return Decoded(made.tokens * inside, made.log_probs * inside, length, first <= length)


def _first_stop(stopping: Stopping, made: Decoded) -> Tensor:
    """(B,) how many tokens a row has with the first that the policy stops behind; N + 1 where there is none."""
    width, rows = made.tokens.shape[1], torch.arange(len(made.length))
    if not stopping.strings:
        ends = torch.isin(made.tokens, torch.tensor(stopping.ids))
    else:
        ends = torch.stack([stopping(made.tokens[:, : step + 1], rows) for step in range(width)], dim=1)
    ends &= torch.arange(width) < made.length[:, None]
    return torch.where(ends.any(1), ends.int().argmax(1) + 1, width + 1)
