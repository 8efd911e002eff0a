"""Words of the command line that override a configuration."""

from __future__ import annotations

from mmrl.errors import ConfigError

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command that takes them."""


def names_a_configuration(word: str) -> bool:
    """An override is `a.b=1`, or `--a.b 1` in two words; anything else in a configuration's place names one."""
    return "=" not in word and not word.startswith("--")


def overrides_of(arguments: list[str]) -> list[str]:
    """`a.b=1`, `--a.b=1` and `--a.b 1` all become `a.b=1`."""
    out, waiting = [], None
    for argument in arguments:
        if waiting is not None:
            out.append(f"{waiting}={argument}")
            waiting = None
        elif "=" in argument:
            out.append(argument.removeprefix("--"))
        elif argument.startswith("--"):
            waiting = argument[2:]
        else:
            raise ConfigError(f"{argument!r}: expected key.sub=value, such as training.steps=200")
    if waiting is not None:
        raise ConfigError(f"--{waiting}: expected a value after it")
    return out


def config_and_overrides(config: str | None, rest: list[str]) -> tuple[str | None, list[str]]:
    """Without a configuration the first override stands in its place; `--config FILE` names one, as elsewhere."""
    words = [part for word in (config, *rest) if word for part in _split_config(word)]
    if "--config" in words[:-1]:
        at = words.index("--config")
        return words[at + 1], overrides_of(words[:at] + words[at + 2 :])
    if config is not None and not names_a_configuration(config):
        return None, overrides_of([config, *rest])
    return config, overrides_of(rest)


def _split_config(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]
