"""What both ways of asking vLLM share: its settings, what a row is asked with, and what came back of it.

An exact log-prob is one of the distribution that was sampled from. So vLLM reports `processed_logprobs`, behind the
temperature and the bias that keeps placeholders out, and nothing may stand between the two: no top-p, top-k, min-p,
penalty or default of a checkpoint's generation configuration, all of which are named in every request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Frames
from mmrl.policies.images import open_image
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines.base import Context, Draw, EngineCapabilities, Setting
from mmrl.policies.language.sampling import Decoded
from mmrl.policies.language.stopping import Stopping
from mmrl.settings import Section

LOGPROBS_MODE = "processed_logprobs"
NEVER = -1e9
"""Bias of an id that is never sampled: in float32 exactly nothing is left of it, and JSON has no -inf."""
OURS = frozenset(
    [
        "model",
        "tokenizer",
        "dtype",
        "logprobs_mode",
        "max_logprobs",
        "generation_config",
        "override_generation_config",
        "logits_processors",
        "seed",
        "trust_remote_code",
        "max_model_len",
        "max_num_seqs",
        "enforce_eager",
        "tensor_parallel_size",
        "limit_mm_per_prompt",
        "gpu_memory_utilization",
        "enable_sleep_mode",
        "load_format",
        "enable_lora",
        "max_lora_rank",
        "runner",
        "task",
    ]
)
"""Arguments of vLLM that follow from the policy, or have a name of ours."""
INEXACT = frozenset(["quantization", "kv_cache_dtype", "speculative_config", "hf_overrides", "calculate_kv_scales"])
"""Arguments behind which log-probs are no longer the trainer's."""
CAPABILITIES = EngineCapabilities(exact_log_probs=True, media=frozenset({"image", "video"}), turns=True)
CLIPS_ELSEWHERE = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Model types behind whose clips vLLM 0.32 and transformers 5 put the text at other positions: one past the clip's last
step in time, or one past its height and width. The ids are equal, and log-probs are off by tenths."""


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
    videos: int = Field(4, ge=0)
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
    if options.lora == "adapter" and (reason := _not_swapped(config)):
        raise ConfigError(f"policy.engine.lora=adapter: {reason}; take policy.engine.lora=merged")


NOT_SWAPPED = ("lm_head", "embed_tokens")


def _not_swapped(config: LanguagePolicyConfig) -> str:
    """Why vLLM could not take the adapter as one; "" where it can."""
    if config.lora is None:
        return "there is no policy.lora"
    if config.lora.dora:
        return "vLLM takes no DoRA"
    if config.train_vision:
        return "vLLM adapts the language model alone, and policy.train_vision adapts the tower too"
    if named := [layer for layer in NOT_SWAPPED if _targets(config.lora.targets, layer)]:
        return f"policy.lora.targets has {named[0]}, and vLLM swaps adapters of the layers between embeddings and head"
    return ""


def _targets(targets: str | list[str], layer: str) -> bool:
    """Whether PEFT would adapt `layer`: a list ends module names, a text other than all-linear is a pattern."""
    if isinstance(targets, list):
        return any(name.rpartition(".")[2] == layer for name in targets)
    try:
        return any(re.fullmatch(targets, name) for name in (layer, f"model.language_model.{layer}"))
    except re.error:  # said where the adapter is made
        return False


def swaps_adapters(setting: Setting) -> bool:
    """Whether the adapter goes to vLLM as one, and the base weights stay."""
    return setting.config.lora is not None and setting.options.lora == "adapter"


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def ranks() -> int:
    """Processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This one of them."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def capabilities_for(setting: Setting, media: frozenset[str]) -> EngineCapabilities:
    """What vLLM can do for this policy. media: kinds that can be sent to it at all"""
    seen = media - {"video"} if setting.family.model_type in CLIPS_ELSEWHERE else media
    return replace(CAPABILITIES, media=seen, lora=swaps_adapters(setting))


def arguments_of(setting: Setting) -> dict[str, Any]:
    """Arguments of vLLM's engine, by the names of its Python class."""
    config, options = setting.config, setting.options
    most = {"image": options.images, "video": options.videos}
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
        "limit_mm_per_prompt": {kind: most[kind] for kind in most if kind in setting.family.written},
    }
    if swaps_adapters(setting):
        given |= {"enable_lora": True, "max_lora_rank": _rank_for(config.lora.rank)}
    if on_cpu():
        given["enable_chunked_prefill"] = False  # vLLM winds a row's seed back after a chunk, which CPUs cannot
    else:
        given["gpu_memory_utilization"] = options.gpu_memory
    if _normalized_unlike(setting.processor):
        given["mm_device_do_normalize"] = False
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


def _normalized_unlike(processor: Any) -> bool:
    """Whether frames of clips have another mean and deviation than pictures: vLLM's model would normalize them as
    pictures, and the ids would not show it."""
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    known = [(tuple(p.image_mean), tuple(p.image_std)) for p in parts if getattr(p, "image_mean", None) is not None]
    return len(set(known)) > 1


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


def pictures(setting: Setting, context: Context) -> list[Any]:
    """Images of a row, RGB, in the order of their placeholders. Raises PolicyError for more than vLLM was made for."""
    found = [open_image(image, prompt) for prompt in context.prompts for image in prompt.images]
    _refuse_many(setting, context, "images", len(found))
    return found


def clips(setting: Setting, context: Context) -> list[Frames]:
    """As `pictures`, the clips."""
    found = [clip for prompt in context.prompts if prompt.videos for clip in setting.frames(prompt)]
    _refuse_many(setting, context, "videos", len(found))
    return found


def _refuse_many(setting: Setting, context: Context, kind: str, count: int) -> None:
    if count > (most := getattr(setting.options, kind)):
        later = ", what an environment showed included" if context.shown else ""
        raise PolicyError(
            f"prompt {context.prompt.id!r} shows {count} {kind}{later}, and vLLM set memory aside for "
            f"policy.engine.{kind}={most}; raise it"
        )


def as_video(clip: Frames) -> tuple[Any, dict[str, Any]]:
    """A clip as vLLM takes it: frames (F, H, W, 3), chosen already, and the times that they were chosen at."""
    told = {
        "fps": clip.fps, "duration": clip.total_frames / clip.fps, "total_num_frames": clip.total_frames,
        "frames_indices": list(clip.indices), "video_backend": clip.backend, "do_sample_frames": False,
    }  # fmt: skip
    return clip.pixels.permute(0, 2, 3, 1).contiguous().numpy(), told


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


class AdapterFolder:
    """The adapter as PEFT writes it, in a folder of its own that goes with the process; in memory where there is some.
    vLLM reads adapters from folders only."""

    NAME, NUMBER = "policy", 1

    def __init__(self, setting: Setting):
        self.setting = setting
        memory = Path("/dev/shm")
        self._folder = TemporaryDirectory(prefix="mmrl-adapter-", dir=memory if memory.is_dir() else None)

    @property
    def path(self) -> str:
        return self._folder.name

    def write(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """weights  all of the model under PEFT's names, of which the adapter's are kept"""
        from safetensors.torch import save_file

        kept = {n.replace(".default.", "."): w.cpu().contiguous() for n, w in weights if ".lora_" in n}
        if not kept:
            raise PolicyError("policy.engine.lora=adapter: the model that trains has no adapter")
        save_file(kept, Path(self.path) / "adapter_model.safetensors")
        self.setting.model().model.peft_config["default"].save_pretrained(self.path)

    def request(self, load_inplace: bool = False) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.NAME, self.NUMBER, self.path, load_inplace=load_inplace)
