"""A vLLM server as a child of this process: started, watched, ended; and the way to ask one."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path
from typing import Any

from mmrl.errors import PolicyError
from mmrl.shown import one_line

HOST = "127.0.0.1"
ANSWER = 3600.0
"""Seconds a row may take: it waits for those before it."""
LOOK = 0.2
DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class Unreachable(Exception):
    """The server did not answer, or broke off: it may be asked again. One line."""


def post(url: str, body: Any = None, *, timeout: float = ANSWER) -> Any:
    """The JSON a POST is answered with. Raises Unreachable where nobody answers or the server's engine has died, and
    PolicyError with the server's own words where it refuses."""
    data = json.dumps(body or {}).encode()
    return _asked(urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST"), timeout)


def get(url: str, *, timeout: float = 60) -> Any:
    """As `post`, asking for what is there."""
    return _asked(urllib.request.Request(url), timeout)


def _asked(request: urllib.request.Request, timeout: float) -> Any:
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            told, kind = response.read(), response.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        said = one_line(error.read().decode(errors="replace"))[:400]
        if error.code >= 500 and not alive(url):
            raise Unreachable(f"the vLLM server at {url} broke off: {said}") from None
        raise PolicyError(f"the vLLM server refused {url}: {error.code} {said}") from None
    except (OSError, EOFError) as error:  # refused, reset, timed out; http.client's own are both
        raise Unreachable(f"the vLLM server at {url} does not answer: {one_line(str(error))}") from None
    except Exception as error:
        if type(error).__module__ == "http.client":
            raise Unreachable(f"the vLLM server at {url} broke off: {one_line(str(error))}") from None
        raise
    return json.loads(told) if told and "json" in kind else None  # some routes answer with a sentence


def alive(url: str) -> bool:
    """Whether the server of `url` says that it is healthy."""
    host = "/".join(url.split("/")[:3])
    try:
        with urllib.request.urlopen(f"{host}/health", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class ServerProcess:
    """One server, on a free port of this machine. It ends with this object, and with this process however that ends."""

    def __init__(self, arguments: dict[str, Any], environment: dict[str, str], patience: float):
        """
        arguments    of vLLM's engine, by the names of its Python class
        environment  all its variables; see `surroundings_of`
        patience     seconds until it must answer
        """
        self.log = Path(tempfile.mkstemp(prefix="mmrl-vllm-", suffix=".log")[1])
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command_of(arguments, HOST, port), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
        self.close = weakref.finalize(self, _end, self.process, self.log)
        self._wait(patience)

    def _wait(self, patience: float) -> None:
        until = time.monotonic() + patience
        while not alive(self.url):
            if self.process.poll() is not None or time.monotonic() > until:
                state = f"ended with {self.process.returncode}" if self.process.returncode is not None else "is not up"
                said = self._reason()
                self.close()
                raise PolicyError(f"policy.engine=vllm: the server {state} after its start: {said}")
            time.sleep(LOOK)

    def _reason(self) -> str:
        """The first line of its log that names an error, which is the cause of those after it; else the last."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        named = [line for line in lines if re.search(r"(\w*Error|error): ", line)]
        return one_line((named or lines[-1:] or ["it said nothing"])[0])[:400]


def command_of(arguments: dict[str, Any], host: str, port: int) -> list[str]:
    """Of a server that trainers can ask and give weights to. arguments: of vLLM's engine, `model` among them"""
    rest = {name: value for name, value in arguments.items() if name != "model"}
    command = [sys.executable, "-m", "mmrl.policies.language.engines.vllm_serve", arguments["model"]]
    command += ["--host", host, "--port", str(port), "--disable-uvicorn-access-log", "--enable-scale-out"]
    return [*command, *_options(rest)]


def surroundings_of(environment: dict[str, str]) -> dict[str, str]:
    """All variables of such a server. environment: those that the user has not set"""
    given = {**environment, **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    given.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    return given


def _options(arguments: dict[str, Any]) -> list[str]:
    """`{"max_num_seqs": 4, "enforce_eager": True}` -> `--max-num-seqs 4 --enforce-eager`"""
    options = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return options


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def _end(process: subprocess.Popen, log: Path) -> None:
    """The server and the engine it started, which are a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
    process.poll()
    log.unlink(missing_ok=True)
