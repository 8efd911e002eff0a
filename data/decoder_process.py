"""Decoder processes: FFmpeg may crash or hang on a hostile file, and takes only its own process along.

Each decoder is a fresh interpreter that answers one JSON line per request on its standard output; frames come
back as a safetensors file, memory-mapped by the caller, never through the pipe. A decoder that dies or
overruns its time is killed, and the next request gets a new one. A file whose decoder died is tried once more; a
file that two decoders died of, or one overran its time with, is reported as a DataError.

    python -m mmrl.data.decoder_process      serves requests until its standard input closes

A plain subprocess rather than multiprocessing: spawn runs the user's script a second time when it lacks the
`__main__` guard, and forking a process that holds CUDA or threads is worse.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrl.errors import DataError, StorageError

START_SECONDS = 180.0


class DecoderDied(Exception):
    """The process ended or was killed; the message says how.

    overrun  it was stopped here, for taking longer than its time
    """

    def __init__(self, message: str, overrun: bool = False):
        super().__init__(message)
        self.overrun = overrun


class Decoder:
    """One decoder process. Not thread-safe: borrow it from a pool."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        paths = [p for p in sys.path if p]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmrl.data.decoder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is the trainer's to handle
        )
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait for its answer; raises DecoderDied when there is none in `timeout` seconds."""
        if not self._ready:
            self._receive(START_SECONDS)
            self._ready = True
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead decoder shows in the answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._receive(timeout)

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        overrun = threading.Event()

        def kill() -> None:
            overrun.set()
            self._process.kill()

        timer = threading.Timer(timeout, kill)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        code = self._process.wait()
        if overrun.is_set():
            raise DecoderDied(f"took more than {timeout:g} s and was stopped", overrun=True)
        raise DecoderDied(f"the decoder {_ending(code)}{self._last_error()}")

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1]})" if lines else ""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


class DecoderPool:
    """Decoders kept warm, as many as were ever borrowed at once; each serves one caller at a time."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._idle: queue.LifoQueue[Decoder] = queue.LifoQueue()
        self._owner = os.getpid()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Decoder]:
        """A warm decoder, or a new one; it is given back unless it died or was interrupted."""
        if self._owner != os.getpid():  # forked: the parent's pipes are not ours
            self._start()
        decoder = self._take()
        try:
            yield decoder
        except BaseException:
            decoder.close()
            raise
        self._idle.put(decoder)

    def _take(self) -> Decoder:
        with contextlib.suppress(queue.Empty):
            while True:
                decoder = self._idle.get_nowait()
                if decoder.alive:  # one that died while idle is no fault of the next file
                    return decoder
                decoder.close()
        return Decoder()

    def close(self) -> None:
        """Stop the idle decoders."""
        if self._owner != os.getpid():
            return
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


decoders = DecoderPool()
atexit.register(decoders.close)


def decode_apart(
    request: dict[str, Any], timeout: float, on_restart: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run one request in a decoder process. Raises DataError naming the file, whatever happened to it, and StorageError
    where its frames cannot be written.

    A decoder that dies may have been killed for what others did (memory, an administrator): the file is tried once
    more in a new one, after `on_restart`. One that overruns its time is not.
    """
    try:
        try:
            answer = _ask(request, timeout)
        except DecoderDied as error:
            if error.overrun:
                raise
            on_restart()
            answer = _ask(request, timeout)
    except DecoderDied as error:
        again = "" if error.overrun else ", twice"
        raise DataError(f"{request['path']}: {error}{again}") from None
    if "refused" in answer:
        raise StorageError(answer["refused"])
    if "error" in answer:
        raise DataError(answer["error"])
    return answer


def _ask(request: dict[str, Any], timeout: float) -> dict[str, Any]:
    with decoders.borrow() as decoder:
        return decoder.ask(request, timeout)


def clip_request(
    path: Path, sampling, start, end, limits, output: Path, key: str, index: Path | None = None
) -> dict[str, Any]:
    """Decode `path` and write its frames to `output` under `key`; `index`: where the index of its packets lies."""
    return {
        "path": str(path),
        "sampling": sampling.model_dump(),
        "start": start,
        "end": end,
        "limits": asdict(limits),
        "output": str(output),
        "key": key,
        "index": str(index) if index is not None else None,
    }


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from mmrl.data.cache import write_frames
    from mmrl.data.decoding import decode
    from mmrl.data.frame_index import DecodeLimits
    from mmrl.media import Frames, VideoSampling

    path, limits = Path(request["path"]), DecodeLimits(**request["limits"])
    index = Path(request["index"]) if request["index"] else None
    sampling = VideoSampling(**request["sampling"])
    made = decode(path, sampling, request["start"], request["end"], limits, index)
    frames = Frames(**vars(made), key=request["key"])
    write_frames(Path(request["output"]), frames)
    return {"backend": made.backend}


def serve() -> None:
    """Answer requests, one JSON line each. Libraries that print do so to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    import mmrl.data.decoding

    torch.set_num_threads(1)
    print(json.dumps({"ready": mmrl.data.decoding.__name__}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        _alarm(request["limits"]["timeout"] + 10)
        try:
            answer = _answer(request)
        except StorageError as error:
            answer = {"refused": str(error)}
        except DataError as error:
            answer = {"error": str(error)}
        except Exception as error:  # a decoder outlives whatever one file makes it raise
            answer = {"error": f"{request.get('path')}: {type(error).__name__}: {error}"}
        _alarm(0)
        print(json.dumps(answer), file=answers)


def _alarm(seconds: float) -> None:
    """End this process if it is still busy then: the caller that would have killed it may be dead itself."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds))


if __name__ == "__main__":
    serve()
