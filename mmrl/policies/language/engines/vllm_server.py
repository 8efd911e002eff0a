"""vLLM as a server of its own, `policy.engine: {name: vllm, mode: server}`: started here, or found at a URL.

Rows are asked for one by one, many at once, over `/inference/v1/generate`: ids with one placeholder for each medium
and the media in, ids and log-probs out, beside the prompt as the server read it. Weights go through vLLM's own ways
(`vllm_transfer`). A server that dies is started again, at most `restarts` times, is given the last weights, and what it
had not answered is asked again: a row depends on its own seed, so that the run goes on as if nothing had been.

Its control routes can load weights and read files: it listens on this machine alone.

    https://github.com/vllm-project/vllm, 0.32: `entrypoints/scale_out/token_in_token_out`, `entrypoints/serve/dev`
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.engines import vllm_serve
from mmrl.policies.language.engines.base import Context, Draw, Setting
from mmrl.policies.language.engines.vllm_process import (
    LOOK,
    ServerProcess,
    Unreachable,
    alive,
    get,
    post,
    surroundings_of,
)
from mmrl.policies.language.engines.vllm_requests import (
    CAPABILITIES,
    LOGPROBS_MODE,
    AdapterFolder,
    VLLMOptions,
    Written,
    arguments_of,
    capabilities_for,
    clips,
    content_key,
    decoded,
    environment_of,
    parameters,
    pictures,
    rank,
    ranks,
    refuse,
    swaps_adapters,
)
from mmrl.policies.language.engines.vllm_serve import BACKEND, TAKES_CLIPS, packed
from mmrl.policies.language.engines.vllm_transfer import Transfer, transfer_of
from mmrl.policies.language.sampling import Decoded
from mmrl.shown import tell

FIRST = 20.0
"""Seconds in which a server at `url` must say what it is: a machine that is not there never refuses."""


def _an_address(url: str | None) -> str | None:
    """ConfigError for what no request could be sent to: asked for hours, it would never answer."""
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"policy.engine.url={url}: expected an address such as http://127.0.0.1:8000")
    return url


class ServerOptions(VLLMOptions):
    """Besides what both modes know.

    url         of a server that somebody else keeps, http://host:port; null: one is started, and ends with the run. It
                must run with --enable-scale-out --logprobs-mode processed_logprobs and VLLM_SERVER_DEV_MODE=1, and see
                `folder`; for clips as `vllm_serve` says
    transfer    how weights get there: files in `folder`; ipc, between processes on one GPU; nccl, between GPUs
    folder      where files of weights lie for a moment, two versions at most; null: in memory, where Linux has some
    gpus        numbers of GPUs of this machine for a server that is started: `tensor_parallel` for each process that
                trains; null: those the trainer sees, and the two then share their memory
    concurrency  rows asked for at once
    patience    seconds until a server that was started must answer, or one at `url` that stopped answering must again;
                one at `url` that never answered ends the run at once
    restarts    of a server that died, in a run; at `url`: how often it may stop answering
    """

    url: Annotated[str | None, AfterValidator(_an_address)] = None
    transfer: Literal["files", "ipc", "nccl"] = "files"
    folder: str | None = None
    gpus: list[int] | None = None
    concurrency: int = Field(64, ge=1)
    patience: float = Field(600, gt=0)
    restarts: int = Field(3, ge=0)


class Server:
    """restarted  how often a server was started again"""

    capabilities = CAPABILITIES
    needs = "vllm"
    Options = ServerOptions
    refuse = staticmethod(refuse)

    def __init__(self, setting: Setting):
        self.setting, self.options, self.restarted = setting, setting.options, 0
        _refuse_sharing(self.options)
        _refuse_devices(self.options)
        self.adapter = AdapterFolder(setting) if swaps_adapters(setting) else None
        self.capabilities = capabilities_for(setting, type(self).capabilities.media)
        self._process: ServerProcess | None = None
        self._transfer: Transfer = transfer_of(setting)
        self._known: dict[str, Any] = {}
        self._met = False  # whether the server at `url` has ever answered

    @property
    def url(self) -> str:
        """Of a server that answers; started if there is none yet."""
        if self.options.url is not None:
            return self._checked(self.options.url.rstrip("/"))
        if self._process is None:
            self._process = ServerProcess(*self.wanted(), self.options.patience)
        return self._process.url

    def wanted(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Arguments and variables that a server of this policy is started with."""
        arguments = arguments_of(self.setting) | self._transfer.arguments
        if "video" in self.capabilities.media & self.setting.family.written.keys():
            told = {"videos_kwargs": self.setting.family.video_options}
            arguments |= {**TAKES_CLIPS, "mm_processor_kwargs": arguments.get("mm_processor_kwargs", {}) | told}
        # another process: its engine may run apart from its door, as vLLM has it
        unsafe = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if self.options.transfer == "ipc" else {}
        return arguments, surroundings_of(environment_of(self.options) | unsafe) | self._devices()

    def _devices(self) -> dict[str, str]:
        """The GPUs that are named for the server of this process, of several in turn."""
        named, each = self.options.gpus, self.options.tensor_parallel
        if named is None:
            return {}
        mine = named[rank() * each : (rank() + 1) * each]
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, mine))}

    def _checked(self, url: str) -> str:
        """`url`, once it has said that its log-probs are those that rows are trained on."""
        if url not in self._known:
            try:
                told = get(f"{url}/server_info?config_format=json", timeout=FIRST)
            except Unreachable as error:
                if self._met:
                    raise
                raise PolicyError(
                    f"policy.engine.url={url}: {error}; start it first (mmrl serve-engine), or leave url out"
                ) from None
            except PolicyError as error:
                raise PolicyError(f"{error}; start it with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out") from None
            model = told["vllm_config"]["model_config"]
            mode = model["logprobs_mode"]
            if mode != LOGPROBS_MODE and self.setting.config.old_log_probs == "sampler":
                raise PolicyError(
                    f"policy.engine.url={url}: runs with --logprobs-mode {mode}, which are not the log-probs of what "
                    f"was sampled; start it with --logprobs-mode {LOGPROBS_MODE}"
                )
            self._known[url], self._met = model, True
        return url

    def _refuse_clips(self, context: Context) -> None:
        """Raise PolicyError where somebody else's server cannot read them as they are sent."""
        if self.options.url is None:
            return
        known = self._known[self.url]["multimodal_config"] or {}
        if ((known.get("media_io_kwargs") or {}).get("video") or {}).get("video_backend") != BACKEND:
            raise PolicyError(
                f"prompt {context.prompt.id!r} shows videos, and the server at policy.engine.url={self.url} takes "
                f"images only; for clips start it as python -m {vllm_serve.__name__}, with --media-io-kwargs "
                f"'{json.dumps(TAKES_CLIPS['media_io_kwargs'])}' --mm-processor-kwargs "
                f"'{json.dumps({'videos_kwargs': self.setting.family.video_options})}'"
            )

    def write(self, contexts: Sequence[Context], budgets: Tensor, draws: Sequence[Draw] | None) -> Decoded:
        """See `Engine.write`."""
        bodies = {context: self._body(context) for context in dict.fromkeys(contexts)}
        each = draws or [None] * len(contexts)
        asked = [
            bodies[context] | {"sampling_params": parameters(self.setting, draw, budget)}
            for context, draw, budget in zip(contexts, each, budgets.tolist(), strict=True)
        ]
        rows: list[Written | None] = [None] * len(asked)
        while missing := [i for i, row in enumerate(rows) if row is None]:
            with ThreadPoolExecutor(self.options.concurrency) as pool:
                answers = list(pool.map(lambda i: self._answer(asked[i]), missing))
            for i, answer in zip(missing, answers, strict=True):
                if not isinstance(answer, Unreachable):
                    rows[i] = answer
            if lost := [a for a in answers if isinstance(a, Unreachable)]:
                self._again(lost[0], len(lost))
        return decoded(self.setting, contexts, [row for row in rows if row is not None])

    def sync(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Weights to the server; what it kept of older ones goes."""
        if self.adapter is not None:
            self.adapter.write(weights)
        else:
            self._transfer.take(weights)
        try:
            self._give()
        except Unreachable as error:
            self._again(error, 0)

    def _give(self) -> None:
        """The last weights that were taken, to a server that may never have had any."""
        url = self.url
        if self.adapter is not None:
            named = {"lora_name": AdapterFolder.NAME, "lora_path": self.adapter.path, "load_inplace": True}
            post(f"{url}/v1/load_lora_adapter", named)
        else:
            self._transfer.give(url)
        post(f"{url}/reset_prefix_cache")
        post(f"{url}/reset_encoder_cache")

    def _again(self, why: Unreachable, rows: int) -> None:
        """Start the server again, or wait for it, and give it the weights."""
        done = "started again" if self.options.url is None else "waited for"
        if self.restarted >= self.options.restarts:
            raise PolicyError(f"policy.engine=vllm: {why}; it was {done} {self.restarted} times already")
        self.restarted += 1
        tell(f"{why}; {done} ({self.restarted} of {self.options.restarts}), {rows} rows asked again")
        if self._process is not None:
            self._process.close()
            self._process = None
        if self.options.url is not None:
            self._known.clear()  # whoever answers there may be another
            until = time.monotonic() + self.options.patience
            while not alive(self.options.url) and time.monotonic() < until:
                time.sleep(LOOK)
        try:
            self._give()
        except Unreachable as error:
            self._again(error, rows)

    def _answer(self, body: dict[str, Any]) -> Written | Unreachable:
        try:
            found = post(f"{self.url}/inference/v1/generate", body)
        except Unreachable as error:
            return error
        choice = found["choices"][0]
        content = choice["logprobs"]["content"] if choice.get("logprobs") else []
        log_probs = [float(each["logprob"]) for each in content]
        return Written(found["prompt_token_ids"], choice["token_ids"], log_probs, choice["finish_reason"])

    def _body(self, context: Context) -> dict[str, Any]:
        """What every row of a context is asked with: ids that are not expanded, and the pictures, without loss."""
        images = pictures(self.setting, context)
        parts = [{"type": "image_url", "url": _data_url(image), "uuid": content_key(image)} for image in images]
        body: dict[str, Any] = {"token_ids": self.setting.unexpanded(context), "return_token_ids": True}
        if videos := clips(self.setting, context):
            self._refuse_clips(context)
            parts += [{"type": "video_url", "url": packed(clip), "uuid": clip.key} for clip in videos]
        if parts:
            body["content_parts"] = parts
        if self.adapter is not None:
            body["model"] = AdapterFolder.NAME
        return body


def _refuse_sharing(options: ServerOptions) -> None:
    """Raise ConfigError where processes that train would need what is there for one."""
    if options.url is not None and ranks() > 1:
        raise ConfigError(
            f"policy.engine.url={options.url}: {ranks()} processes train, and each would give this server weights "
            "while it writes for the others; leave url out, for a server to each, or place engines: mmrl launch --ray"
        )
    if options.url is not None and options.gpus is not None:
        raise ConfigError(
            f"policy.engine.gpus={options.gpus}: the server at policy.engine.url has its own; leave it out"
        )
    if options.gpus is not None and len(options.gpus) != (needed := ranks() * options.tensor_parallel):
        raise ConfigError(
            f"policy.engine.gpus={options.gpus}: expected {needed}, tensor_parallel={options.tensor_parallel} for each "
            f"of {ranks()} processes"
        )


def _refuse_devices(options: ServerOptions) -> None:
    """Raise ConfigError for GPUs that are not here; a server of this policy would say so minutes later, if at all."""
    if options.transfer != "files" and not torch.cuda.is_available():
        raise ConfigError(
            f"policy.engine.transfer={options.transfer}: goes from GPU to GPU, and torch sees none here; take "
            "policy.engine.transfer=files"
        )
    named, hidden = options.gpus or [], "CUDA_VISIBLE_DEVICES" in os.environ
    if len({*named}) < len(named) or any(gpu < 0 for gpu in named):
        raise ConfigError(f"policy.engine.gpus={named}: expected numbers from 0 on, each once")
    if named and not hidden and max(named) >= (count := torch.cuda.device_count()):
        have = f"has {count}, numbered from 0" if count else "has none; leave it out for a server on the CPU"
        raise ConfigError(f"policy.engine.gpus={named}: this machine {have}")


def _data_url(image: Any) -> str:
    held = io.BytesIO()
    image.save(held, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
