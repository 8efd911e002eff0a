"""How weights get to a vLLM server: as files, or by vLLM's own engines between GPUs.

`files` is what runs on any machine, and what the tests run. `ipc` and `nccl` call vLLM's trainer side
(`vllm.distributed.weight_transfer`, 0.32) as its examples do; they need GPUs, and no test has run them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mmrl.errors import PolicyError, StorageError
from mmrl.policies.language.engines.base import Setting
from mmrl.policies.language.engines.vllm_process import HOST, Unreachable, free_port, post
from mmrl.policies.language.engines.weights import named_weights

SHARD = 2 * 2**30
"""Bytes held before they are written."""


class Transfer(Protocol):
    """arguments  of vLLM's engine that this way needs"""

    arguments: dict[str, Any]

    def take(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Hold them, in memory or elsewhere, until the next are taken: a server that died is given them again."""

    def give(self, url: str) -> None:
        """Put them into the server. Raises Unreachable where it is gone."""


def transfer_of(setting: Setting) -> Transfer:
    options = setting.options
    return Files(options.folder) if options.transfer == "files" else Devices(options.transfer, setting)


class Files:
    """Two folders in turn, so that what a server reads is never half written."""

    def __init__(self, folder: str | None):
        self.arguments: dict[str, Any] = {}
        memory = Path("/dev/shm")
        place = folder or (str(memory) if memory.is_dir() else None)
        self._holder = tempfile.TemporaryDirectory(prefix="mmrl-weights-", dir=place)
        self._count, self._last = 0, Path()

    def take(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self._count += 1
        folder = Path(self._holder.name) / f"{self._count:06d}"
        folder.mkdir()
        held: dict[str, Tensor] = {}
        parts = 0
        for name, tensor in weights:
            held[name] = tensor.cpu().contiguous()
            if sum(t.nbytes for t in held.values()) >= SHARD:
                parts += 1
                self._save(held, folder / f"model-{parts:05d}.safetensors")
                held = {}
        if held:
            self._save(held, folder / f"model-{parts + 1:05d}.safetensors")
        if self._last.name:
            shutil.rmtree(self._last, ignore_errors=True)
        self._last = folder

    def _save(self, held: dict[str, Tensor], path: Path) -> None:
        from safetensors.torch import save_file

        try:
            save_file(held, path)
        except Exception as error:  # safetensors raises its own for a full disk
            raise StorageError(f"{path}: weights for the vLLM server cannot be written: {error}") from error

    def give(self, url: str) -> None:
        post(f"{url}/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self._last)}})


class Devices:
    """Straight from the trainer's memory, by `ipc` on one GPU or `nccl` between several. Not run by the tests."""

    def __init__(self, backend: str, setting: Setting):
        self.backend, self.setting = backend, setting
        self.arguments: dict[str, Any] = {"weight_transfer_config": {"backend": backend}}
        self._sender: tuple[str, Any] | None = None

    def take(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """They stay where they are, and are read from the model when they are sent."""

    def give(self, url: str) -> None:
        try:
            if self._sender is None or self._sender[0] != url:
                self._sender = (url, self._opened(url))
            self._sender[1].send_weights()
        except OSError as error:  # as all errors of `requests`, which vLLM's client asks with
            if getattr(error, "response", None) is not None:
                raise PolicyError(f"the vLLM server took no weights by {self.backend}: {error}") from None
            self._sender = None
            raise Unreachable(f"the vLLM server at {url} does not answer: {error}") from None

    def _opened(self, url: str) -> Any:
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        model = self.setting.model

        class Merged(WeightSource):
            def metadata(self) -> list[Any]:
                return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in named_weights(model().model)]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                return named_weights(model().model)

        told = self._init_info()
        return WeightTransferTrainerFactory.trainer_init(
            init_info=told, client=HTTPVLLMWeightSyncClient(url), source=Merged()
        )

    def _init_info(self) -> Any:
        if self.backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        ranks = 1 + self.setting.options.tensor_parallel
        return NCCLTrainerInitInfo(rank=0, master_address=HOST, master_port=free_port(), world_size=ranks)
