"""Commands that serve runs elsewhere: rewards, new pictures, a vLLM server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrl.errors import ConfigError
from mmrl.pipelines.overriding import config_and_overrides
from mmrl.pipelines.run_commands import Modality, say


def serve_rewards(
    config: Annotated[Path, typer.Argument(help="rewards, host, port: docs/serving_rewards.md.")],
) -> None:
    """Score for runs on other machines: the rewards of a configuration behind an address, by JSON."""
    from mmrl.rewards.server import RewardServer, ServeConfig
    from mmrl.settings import read_section, read_yaml_file

    server = RewardServer(read_section(ServeConfig, read_yaml_file(config), "serve-rewards"))
    say(f"{', '.join(server.members)} at {server.url}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.panel.close()


def serve_samples(
    draw: Annotated[str, typer.Argument(help="path/to/file.py:function, or `surround`, which needs no model.")],
    port: Annotated[int, typer.Option(help="0: any free one, which is printed.")] = 8091,
    host: Annotated[str, typer.Option(help="Anyone who reaches it may ask.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, help="Pictures that are drawn at once.")] = 1,
    key_env: Annotated[
        str | None, typer.Option(help="The environment variable with a key requests must bring.")
    ] = None,
) -> None:
    """Draw new pictures for a run of `syn_grpo`, in a process of their own: docs/serving_samples.md."""
    from mmrl.rollout.synthesis.server import SampleServer, drawer

    server = SampleServer(drawer(draw), host=host, port=port, workers=workers, key_env=key_env)
    say(f"{draw} at {server.url}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.http.server_close()


def serve_engine(
    context: typer.Context,
    modality: Modality,
    config: Annotated[str | None, typer.Argument(help="The configuration of the run that it writes for.")] = None,
    host: Annotated[str, typer.Option(help="It can load files: open it to nobody who may not.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one, which is printed.")] = 8000,
) -> None:
    """A vLLM server with all that a configuration's policy needs, for runs with `engine.url`: docs/engines.md."""
    from mmrl.pipelines.config import read_config, which_configuration
    from mmrl.pipelines.engine_serving import serve_engine as serve
    from mmrl.pipelines.progress import quiet_libraries

    config, changes = config_and_overrides(config, context.args)
    if config is None:
        raise ConfigError(which_configuration(modality))
    quiet_libraries()
    serve(read_config(config, changes, modality), host, port)
