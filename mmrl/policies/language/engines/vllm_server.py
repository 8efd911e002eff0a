"""vLLM as a server of its own, `policy.engine: {name: vllm, mode: server}`: started here, or found at a URL.

Rows are asked for one by one, many at once, over `/inference/v1/generate`: ids with one placeholder for each picture
and the pictures in, ids and log-probs out, beside the prompt as the server read it. Weights go through vLLM's own ways
(`vllm_transfer`). A server that dies is started again, at most `restarts` times, is given the last weights, and what it
had not answered is asked again: a row depends on its own seed, so that the run goes on as if nothing had been.

Its control routes can load weights and read files: it listens on this machine alone.

    https://github.com/vllm-project/vllm, 0.32: `entrypoints/scale_out/token_in_token_out`, `entrypoints/serve/dev`
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from mmrl.errors import PolicyError
from mmrl.policies.images import open_image
from mmrl.policies.language.engines.base import Context, Draw, Setting
from mmrl.policies.language.engines.vllm_process import ServerProcess, Unreachable, get, post
from mmrl.policies.language.engines.vllm_requests import (
    CAPABILITIES,
    LOGPROBS_MODE,
    AdapterFolder,
    VLLMOptions,
    Written,
    arguments_of,
    capabilities_for,
    content_key,
    decoded,
    environment_of,
    parameters,
    refuse,
    swaps_adapters,
)
from mmrl.policies.language.engines.vllm_transfer import Transfer, transfer_of
from mmrl.policies.language.sampling import Decoded
from mmrl.shown import tell


class ServerOptions(VLLMOptions):
    """Besides what both modes know.

    url         of a server that somebody else keeps, http://host:port; null: one is started, and ends with the run. It
                must run with --enable-scale-out --logprobs-mode processed_logprobs and VLLM_SERVER_DEV_MODE=1, and see
                `folder`
    transfer    how weights get there: files in `folder`; ipc, between processes on one GPU; nccl, between GPUs
    folder      where files of weights lie for a moment, two versions at most; null: in memory, where Linux has some
    concurrency  rows asked for at once
    patience    seconds until a server that was started must answer
    restarts    of a server that died, in a run
    """

    url: str | None = None
    transfer: Literal["files", "ipc", "nccl"] = "files"
    folder: str | None = None
    concurrency: int = Field(64, ge=1)
    patience: float = Field(600, gt=0)
    restarts: int = Field(3, ge=0)


class Server:
    """restarted  how often a server was started again"""

    capabilities = replace(CAPABILITIES, media=frozenset({"image"}))
    needs = "vllm"
    Options = ServerOptions
    refuse = staticmethod(refuse)

    def __init__(self, setting: Setting):
        self.setting, self.options, self.restarted = setting, setting.options, 0
        self.adapter = AdapterFolder(setting) if swaps_adapters(setting) else None
        self.capabilities = capabilities_for(setting, type(self).capabilities.media)
        self._process: ServerProcess | None = None
        self._transfer: Transfer = transfer_of(setting)
        self._known: set[str] = set()

    @property
    def url(self) -> str:
        """Of a server that answers; started if there is none yet."""
        if self.options.url is not None:
            return self._checked(self.options.url.rstrip("/"))
        if self._process is None:
            arguments = arguments_of(self.setting) | self._transfer.arguments
            # another process: its engine may run apart from its door, as vLLM has it
            unsafe = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if self.options.transfer == "ipc" else {}
            self._process = ServerProcess(arguments, environment_of(self.options) | unsafe, self.options.patience)
        return self._process.url

    def _checked(self, url: str) -> str:
        """`url`, once it has said that its log-probs are those that rows are trained on."""
        if url not in self._known:
            told = get(f"{url}/server_info?config_format=json")
            mode = told["vllm_config"]["model_config"]["logprobs_mode"]
            if mode != LOGPROBS_MODE and self.setting.config.old_log_probs == "sampler":
                raise PolicyError(
                    f"policy.engine.url={url}: runs with --logprobs-mode {mode}, which are not the log-probs of what "
                    f"was sampled; start it with --logprobs-mode {LOGPROBS_MODE}"
                )
            self._known.add(url)
        return url

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
        if self.restarted >= self.options.restarts:
            raise PolicyError(f"policy.engine=vllm: {why}; it was started {self.restarted} times again already")
        self.restarted += 1
        tell(f"{why}; started again ({self.restarted} of {self.options.restarts}), {rows} rows asked again")
        if self._process is not None:
            self._process.close()
            self._process = None
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
        images = [open_image(image, context.prompt) for image in context.prompt.images]
        parts = [{"type": "image_url", "url": _data_url(image), "uuid": content_key(image)} for image in images]
        body: dict[str, Any] = {"token_ids": self.setting.unexpanded(context), "return_token_ids": True}
        if parts:
            body["content_parts"] = parts
        if self.adapter is not None:
            body["model"] = AdapterFolder.NAME
        return body


def _data_url(image: Any) -> str:
    held = io.BytesIO()
    image.save(held, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
