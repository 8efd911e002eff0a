"""Which class `policy.engine` names, and the settings of its own that it is given."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from mmrl import plugins
from mmrl.errors import ConfigError, got, unknown
from mmrl.policies.language.config import LOCAL, LanguagePolicyConfig
from mmrl.policies.language.engines.base import Engine, EngineCapabilities
from mmrl.settings import Section, read_section

HOME = "mmrl.policies.language.engines"
SHIPPED = {
    LOCAL: {"": f"{HOME}.local:Local"},
    "extrapolated": {"": f"{HOME}.extrapolated:Extrapolated"},
    "nlpo": {"": f"{HOME}.nlpo:Nlpo"},
    "soft": {"": f"{HOME}.soft:Soft"},
    "vllm": {"colocate": f"{HOME}.vllm:Colocated", "server": f"{HOME}.vllm_server:Server"},
}
"""{name: {mode: class}}; the first mode is the one where none is named."""
METHODS = ("write", "sync")
PLACE = "policy.engine"


def engine_class(config: LanguagePolicyConfig, *, here: bool = False) -> type[Engine]:
    """The class that `policy.engine` names. Raises ConfigError where it is none, or cannot train as configured.

    here  it is about to be made: what it needs must be installed. A configuration may be read anywhere
    """
    name = config.engine_name
    kind = plugins.load(_reference(config), PLACE)
    lacks = [method for method in METHODS if not callable(getattr(kind, method, None))]
    found = getattr(kind, "capabilities", None)
    if not isinstance(kind, type) or lacks or not isinstance(found, EngineCapabilities):
        missing = ", ".join(lacks) or "capabilities = EngineCapabilities(...) on the class"
        raise ConfigError(f"{PLACE}={name!r}: expected a class of an engine; it lacks {missing}")
    if config.old_log_probs == "sampler" and not found.exact_log_probs:
        raise ConfigError(
            f"{PLACE}={name!r} says its log-probs are not exact, and policy.old_log_probs=sampler would train on "
            "them; write policy.old_log_probs=trainer, for a pass of the trainer's own over every response"
        )
    options = engine_options(config, kind)
    if refuse := getattr(kind, "refuse", None):
        refuse(config, options)
    needs = getattr(kind, "needs", None)
    if here and needs and find_spec(needs) is None:
        raise ConfigError(
            f"{PLACE}={name!r}: {needs} is not installed here; pip install 'mmrl[{needs}]', or take policy.engine=local"
        )
    return kind


def engine_options(config: LanguagePolicyConfig, kind: type[Engine]) -> Any:
    """What stands beside the engine's name, as its own section `Options`; None of an engine that has none."""
    given = {} if isinstance(config.engine, str) else dict(config.engine)
    given.pop("name", None)
    if config.engine_name in SHIPPED:
        given.pop("mode", None)
    options: type[Section] | None = getattr(kind, "Options", None)
    if options is not None:
        _refuse_strange_keys(config, options, given)
        return read_section(options, given, PLACE)
    if given:
        raise ConfigError(
            f"{PLACE}={config.engine_name!r} has no settings of its own, got {', '.join(map(str, given))}"
        )
    return None


def _refuse_strange_keys(config: LanguagePolicyConfig, options: type[Section], given: dict) -> None:
    """ConfigError for a key that a shipped engine does not know in this mode; one of another mode names the mode."""
    modes = SHIPPED.get(config.engine_name, {})
    for key in (key for key in given if modes and key not in options.model_fields):
        for mode, reference in modes.items():
            if key in getattr(plugins.load(reference, PLACE), "Options", options).model_fields:
                raise ConfigError(f"{PLACE}.{key} is a setting of mode {mode}; write {PLACE}.mode={mode} beside it")
        raise ConfigError(f"{PLACE}: {unknown('key', key, ['name', 'mode', *options.model_fields])}")


def _reference(config: LanguagePolicyConfig) -> str:
    """`package.module:Class` of the engine."""
    name = config.engine_name
    if name in SHIPPED:
        modes = SHIPPED[name]
        mode = next(iter(modes)) if isinstance(config.engine, str) else config.engine.get("mode", next(iter(modes)))
        if mode not in modes:
            known = [m for m in modes if m]
            said = unknown("mode", str(mode), known) if known else f"{name} has no modes, got {got(mode)}"
            raise ConfigError(f"{PLACE}.mode: {said}")
        return modes[mode]
    if not name:
        raise ConfigError(f"{PLACE}={got(config.engine)}: expected a name in it, such as {{name: vllm, mode: server}}")
    if not plugins.is_reference(name):
        raise ConfigError(
            f"{PLACE}: {unknown('engine', name, [*SHIPPED])}; one of your own is file.py:Class or package.module:Class"
        )
    return name
