"""vLLM in the process that trains, `policy.engine: {name: vllm, mode: colocate}`: weights pass from tensor to tensor.

Prompts go in as ids with one placeholder for each medium, beside the media themselves; vLLM expands them, and what it
read comes back and is compared with what the trainer reads. On a GPU vLLM sleeps while the trainer has the memory; that
path is vLLM's own (`sleep`, `wake_up`) and was not run by the tests, which have no GPU.

    https://github.com/vllm-project/vllm, 0.32: `LLM.generate`, `collective_rpc("reload_weights")`, `reset_*_cache`
"""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.engines.base import Context, Draw, Setting
from mmrl.policies.language.engines.vllm_requests import (
    CAPABILITIES,
    AdapterFolder,
    VLLMOptions,
    Written,
    arguments_of,
    as_video,
    capabilities_for,
    clips,
    content_key,
    decoded,
    environment_of,
    on_cpu,
    parameters,
    pictures,
    ranks,
    refuse,
    swaps_adapters,
)
from mmrl.policies.language.sampling import Decoded
from mmrl.shown import one_line

VLLM = "VLLM_"
IN_PROCESS = {f"{VLLM}ENABLE_V1_MULTIPROCESSING": "0"}


class ColocateOptions(VLLMOptions):
    """Besides what both modes know.

    sleep  on a GPU, leave its memory to the trainer between two rollouts: the weights wait in the CPU's memory, the
           cache is dropped. False keeps both, for a GPU that has room for all of it
    """

    sleep: bool = True


class Colocated:
    """One vLLM for each process, made when it first acts; on several ranks all of them do then, since it makes process
    groups."""

    capabilities = CAPABILITIES
    needs = "vllm"
    Options = ColocateOptions
    refuse = staticmethod(refuse)

    def __init__(self, setting: Setting):
        self.setting, self._llm, self._asleep = setting, None, False
        self.adapter = AdapterFolder(setting) if swaps_adapters(setting) else None
        self.capabilities = capabilities_for(setting, CAPABILITIES.media)
        if ranks() > 1 and setting.options.tensor_parallel > 1:
            raise ConfigError(
                f"policy.engine.tensor_parallel={setting.options.tensor_parallel}: each of the {ranks()} processes has "
                "a vLLM of its own, on its own GPU; write 1, or take policy.engine.mode=server"
            )

    @property
    def llm(self) -> Any:
        if self._llm is None:
            for name, value in (environment_of(self.setting.options) | IN_PROCESS).items():
                os.environ.setdefault(name, value)
            with undisturbed():
                self._llm = made = self._made()
            core = made.llm_engine.engine_core.engine_core
            runner = core.model_executor.driver_worker.worker.model_runner
            weakref.finalize(self, release, runner).atexit = False
        return self._llm

    def _made(self) -> Any:
        from vllm import LLM

        given = arguments_of(self.setting) | {"enable_sleep_mode": self._sleeps}
        if ranks() > 1:  # vLLM then takes the process group that is there, and the GPU of LOCAL_RANK
            given["distributed_executor_backend"] = "external_launcher"
        try:
            return collectable(LLM(**given, disable_log_stats=True))
        except Exception as error:  # of a checkpoint it does not know, or of memory: its own classes, and pydantic's
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise PolicyError(f"policy.engine=vllm: vLLM cannot take {given['model']}: {one_line(reason)}") from error

    @property
    def _sleeps(self) -> bool:
        return self.setting.options.sleep and not on_cpu()

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`. Rows of one context share what vLLM made of its media, and its cached prompt."""
        from vllm import SamplingParams

        self._wake()
        asked = {context: self._prompt(context) for context in dict.fromkeys(contexts)}
        each = draws or [None] * len(contexts)
        params = [
            SamplingParams(**parameters(self.setting, draw, budget), flat_logprobs=True)
            for draw, budget in zip(each, budgets.tolist(), strict=True)
        ]
        adapter = self.adapter and self.adapter.request()
        outputs = self.llm.generate([asked[c] for c in contexts], params, use_tqdm=False, lora_request=adapter)
        done = [(output.prompt_token_ids, output.outputs[0]) for output in outputs]
        rows = [Written(ids, list(row.token_ids), list(row.logprobs.logprobs), row.finish_reason) for ids, row in done]
        if self._sleeps:
            self.llm.sleep(level=1)
            self._asleep = True
        return decoded(self.setting, contexts, rows)

    def sync(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Every tensor into vLLM's own, or an adapter in place of the one before. What it kept of older weights goes:
        prompts, and encoded media, whose cache the scheduler would otherwise still believe in."""
        self._wake("weights")
        if self.adapter is None:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        else:
            self.adapter.write(weights)
            self.llm.llm_engine.add_lora(self.adapter.request(load_inplace=True))
        self.llm.llm_engine.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _wake(self, *parts: str) -> None:
        """All of vLLM, or its weights alone, back on the GPU."""
        if self._asleep:
            self.llm.wake_up(tags=list(parts) or None)
            self._asleep = bool(parts)

    def _prompt(self, context: Context) -> dict[str, Any]:
        """What vLLM is asked with: ids that are not expanded, and the media."""
        asked: dict[str, Any] = {"prompt_token_ids": self.setting.unexpanded(context)}
        media: dict[str, list[Any]] = {}
        keys: dict[str, list[str]] = {}
        if images := pictures(self.setting, context):
            media["image"], keys["image"] = images, [content_key(image) for image in images]
        if videos := clips(self.setting, context):
            media["video"], keys["video"] = [as_video(clip) for clip in videos], [clip.key for clip in videos]
            asked["mm_processor_kwargs"] = {"videos_kwargs": self.setting.family.video_options}
        if media:
            asked |= {"multi_modal_data": media, "multi_modal_uuids": keys}
        return asked


def collectable(llm: Any) -> Any:
    """`llm`, in a process that may outlive it. vLLM takes all objects out of Python's garbage collection when it is
    made, and closes the process groups when it ends, which others here may use; neither is left so."""
    gc.unfreeze()
    if ending := getattr(llm.llm_engine.engine_core, "_finalizer", None):
        ending.detach()
    return llm


def release(runner: Any) -> None:
    """Let go of the cache and weights of one vLLM, which its own registries would keep as long as the process.
    As `GPUModelRunner.shutdown`, without what other vLLMs of the process share."""
    layers = runner.compilation_config.static_forward_context
    for layer in layers.values():
        if hasattr(layer, "kv_cache"):
            layer.kv_cache = torch.empty(0) if isinstance(layer.kv_cache, torch.Tensor) else []
    layers.clear()
    runner.kv_caches.clear()
    runner.model = None


@contextmanager
def undisturbed() -> Iterator[None]:
    """What vLLM changes in the whole process when it is made, put back: the global generators, which it seeds; on CPUs
    torch's way to set threads, which it takes away; and variables that are not its own, such as LD_PRELOAD, which
    every process would inherit that rewards run in."""
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    environment = dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
        for name in [n for n in os.environ if n not in environment and not n.startswith(VLLM)]:
            del os.environ[name]
        os.environ |= {name: value for name, value in environment.items() if not name.startswith(VLLM)}
