"""`mmrl cache`: decoded video on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrl.errors import ConfigError
from mmrl.pipelines.overriding import OVERRIDES, config_and_overrides
from mmrl.pipelines.run_commands import say

app = typer.Typer(no_args_is_help=True, help="The cache of decoded video: build, verify, prune.")


@app.command("build", context_settings=OVERRIDES)
def cache_build(
    context: typer.Context,
    config: Annotated[str | None, typer.Argument(help="A video configuration.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoder processes; default: cache.workers.")] = None,
) -> None:
    """Decode every clip of a configuration's data once, ahead of training."""
    from mmrl.pipelines.caching import build_cache
    from mmrl.pipelines.config import which_configuration

    config, changes = config_and_overrides(config, context.args)
    if config is None:
        raise ConfigError(which_configuration("video"))
    built = build_cache(config, changes, workers)
    say(str(built))
    if built.failed:
        raise typer.Exit(1)


@app.command("verify")
def cache_verify(root: Annotated[Path | None, typer.Argument(help="Default: the user's cache folder.")] = None) -> None:
    """Check the checksum of every entry; corrupt ones are removed and counted."""
    from mmrl.pipelines.caching import verify_cache

    say(verify_cache(root))


@app.command("prune")
def cache_prune(
    budget_gb: Annotated[float, typer.Argument(help="Keep the most recently used entries up to this size.")],
    root: Annotated[Path | None, typer.Option(help="Default: the user's cache folder.")] = None,
) -> None:
    """Evict least recently used entries."""
    from mmrl.pipelines.caching import prune_cache

    say(prune_cache(budget_gb, root))
