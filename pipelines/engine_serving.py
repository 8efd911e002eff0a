"""`mmrl serve-engine`: the vLLM server that a configuration's policy needs, for runs that find it by its URL."""

from __future__ import annotations

import os
from typing import Any

from mmrl.errors import ConfigError
from mmrl.over_http import free_address
from mmrl.pipelines.config import SPEAKING, RunConfig
from mmrl.pipelines.run import build_policy
from mmrl.pipelines.run_commands import say
from mmrl.policies.language.engines.vllm_process import command_of
from mmrl.policies.language.engines.vllm_server import Server

QUIET = "VLLM_LOGGING_LEVEL"
"""What lets a server that a run started say nothing; this one is somebody's to watch."""


def serve_engine(config: RunConfig, host: str, port: int) -> None:
    """Become that server. What it is started with follows from the policy, which is loaded for it and then gone."""
    if config.modality not in SPEAKING:
        raise ConfigError(f"{config.modality} policies write by themselves: no engine serves them")
    port = free_address(host, port)
    given = config.policy.get("engine", "local")
    named = {"name": "vllm", **given} if isinstance(given, dict) else {"name": given}
    if named["name"] not in ("local", "vllm"):
        raise ConfigError(f"policy.engine={named['name']!r}: only vllm is served; leave it out here")
    engine = {n: v for n, v in named.items() if n not in ("url", "sleep")} | {"name": "vllm", "mode": "server"}
    policy: Any = build_policy(config.model_copy(update={"policy": config.policy | {"engine": engine}}))
    assert isinstance(policy.bridge.engine, Server)
    arguments, variables = policy.bridge.engine.wanted()
    command = command_of(arguments, host, port)
    url = f"http://{host}:{port}"
    say(f"{arguments['model']} at {url}, when it says so; train with engine=vllm engine.mode=server engine.url={url}")
    if QUIET not in os.environ:
        del variables[QUIET]
    os.execve(command[0], command, variables)
