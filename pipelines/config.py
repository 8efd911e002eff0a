"""One YAML, dotted overrides, typed all the way down. Precedence: recipe < file < overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from mmrl import foreign, plugins
from mmrl.errors import ConfigError, got, unknown
from mmrl.objective import ObjectiveConfig
from mmrl.objective.objective import Choice
from mmrl.pipelines.rates import usual_rates
from mmrl.placed import placed
from mmrl.policies.base import Policy
from mmrl.policies.registry import MODALITIES, policy_class
from mmrl.recipes import Recipe, is_file, load_recipe
from mmrl.rewards.panel import BUDGET_CALLS, SMALLEST_BUDGET, RewardSpec
from mmrl.settings import Section, read_section, read_yaml, read_yaml_file
from mmrl.stages import RENAMED
from mmrl.training.config import TrainingConfig
from mmrl.training.trackers import TrackerSpec
from mmrl.training.watch import WatchConfig

ASSET = "asset:"
LONGEST_NAME, LARGEST_INTEGER = 255, 10**12
LONGEST_WAIT = 1e6
"""Seconds; more than a timer can take is no limit at all."""
CLASS = "class"
"""Of `policy`: a class of the user's own."""
SHORT = {"engine": "policy.engine"}
"""Overrides that are written often: engine=vllm, engine.mode=server."""
METHOD_KEYS = ("self_check",)
"""Training settings that belong to a method; the others to the machine and the data."""


def shipped_asset(name: str) -> Path:
    """The folder of a tiny checkpoint that ships with mmrl."""
    folder = resources.files("mmrl") / "data" / "assets"
    known = [f.name for f in folder.iterdir() if f.is_dir()]
    if name not in known:
        raise ConfigError(unknown("shipped checkpoint", name, known))
    return Path(str(folder / name))


class DataConfig(Section):
    """Where prompts come from: a file, a `datasets` directory, a hub name, or `world:NAME`.

    eval        held-out prompts; without it nothing is evaluated
    sft         data sets that the checkpoint was fine-tuned on: the share of training prompts that are in one of
                them, by their words and media, is told, and is an error above `sft_overlap`
    format      the data format of the rows, by name; auto recognises it
    columns     our names to theirs: {prompt: question, solution: answer}
    numbers     columns of numbers that stage functions read, such as reference_value; every row must have them
    template    wraps the prompt, as in "{prompt}\\nAnswer inside <answer></answer>."; {column} is read from the row
    system      a system message put before every prompt
    task        of rows that name none
    ignore      columns that are left out: the answer to "holds an image that nothing reads"
    repeats     equal rows get numbered ids, or are refused
    on_error    a row whose image or clip cannot be read in training: stop, or skip it, when the next one that can be
                read stands in. Rows left out are named, and counted as `data/left_out`; held-out rows always stop
    skip_ceiling  share of the rows that may be left out before the run stops after all; one always may
    allow_outside, allow_urls  media may leave the dataset's folder, or be fetched; off for safety
    workers     prompts of the next step made ready while one trains: so many at a time have their images opened and
                their clips decoded, each in a process of its own; 0: all is read when it is needed
    """

    train: str = ""
    eval: str | None = None
    sft: list[str] = []
    sft_overlap: float = Field(0.1, ge=0, le=1)
    limit: int | None = None
    eval_limit: int | None = None
    format: str = "auto"
    columns: dict[str, str] | None = None
    numbers: list[str] = []
    media_root: str | None = None
    template: str | None = None
    system: str | None = None
    task: str | None = None
    ignore: list[str] = []
    repeats: Literal["number", "refuse"] = "number"
    on_error: Literal["stop", "skip"] = "stop"
    skip_ceiling: float = Field(0.05, ge=0, le=1)
    allow_outside: bool = False
    allow_urls: bool = False
    workers: int = Field(2, ge=0)


class CacheConfig(Section):
    """Decoded video on disk: root (default: the user's cache folder), size, decoder processes of `mmrl cache build`.

    Without it every step decodes its clips anew, and none ahead of it.
    """

    enabled: bool = True
    root: str | None = None
    budget_gb: float = Field(50.0, gt=0)
    workers: int = Field(2, ge=1)


class RewardRunConfig(Section):
    """How rewards run.

    workers           processes they run in
    timeout           seconds a call may take
    budget            seconds a reward may take for one batch when its rows are tried one by one, after a call on all
                      of them failed; null: ten times `timeout`, at least 60
    unscored_ceiling  share of unscored rollouts past which the run stops and says why
    """

    workers: int = Field(2, ge=1, le=256)
    timeout: float = Field(30.0, gt=0, le=LONGEST_WAIT)
    budget: float | None = Field(None, gt=0, le=LONGEST_WAIT)
    unscored_ceiling: float = Field(0.5, ge=0, le=1)


class EnvironmentRunConfig(Section):
    """How an environment runs: worker processes, seconds a call may take, and the share of rows it may lose before the
    run stops and says why. `isolated: false` keeps it in this process, without a time limit."""

    workers: int = Field(2, ge=1)
    timeout: float = Field(30.0, gt=0)
    lost_ceiling: float = Field(0.5, ge=0, le=1)
    isolated: bool = True


SPEAKING = ("vlm", "video")
"""Modalities whose responses an engine can write."""
PLACED_ENGINE = "mmrl.policies.language.engines.ray_actors:RayEngine"


class Placement(Section):
    """Where `mmrl launch --ray` puts the parts of a run; `mmrl train` does not read it.

    trainers        processes of one group, each with `trainer_gpus`; training.sharding says how they share weights
    engines         actors that write responses with a model of their own, the engine of `policy.engine`; 0: each
                    trainer writes its own
    reward_workers  actors that run rewards; 0: processes beside each trainer
    *_cpus, *_gpus  of each
    spread          trainers on as many machines as there are, rather than as few
    restarts        times trainers that died begin again from the last checkpoint
    address         of a running cluster, or "auto"; null: one on this machine, for this run
    """

    trainers: int = Field(1, ge=1)
    engines: int = Field(0, ge=0)
    reward_workers: int = Field(0, ge=0)
    trainer_cpus: float = Field(1, gt=0)
    trainer_gpus: float = Field(0, ge=0)
    engine_cpus: float = Field(1, gt=0)
    engine_gpus: float = Field(0, ge=0)
    reward_cpus: float = Field(1, gt=0)
    spread: bool = False
    restarts: int = Field(3, ge=0)
    address: str | None = None


class RunConfig(Section):
    """Everything a run is made of; written into the run directory as it was resolved.

    prompts  which prompts a step takes: "shuffled", or another sampler by name or as {name: ..., parameter: ...}
    rollout  how a group comes to be: strategies by name or as {name: ..., parameter: ...}, outermost first; none:
             independent draws
    callbacks  classes of your own that hear of steps and rollouts, as file.py:Class (pipelines/callbacks.py)
    environment  who answers between the turns of a response, by name, as file.py:Class, or as {name: ..., parameter:
                 ...}; null: a response is one run
    learner  what learns from rollouts: "gradient" of the objective, "essa" (adapters, forward passes alone),
             "training_free" (lessons in words) or "frozen" (no weight; what rollout strategies remember), by name or as
             {name: ..., option: ...}
    watch    of a generator with held-out prompts: what moves beside the reward
    """

    modality: Literal["vlm", "video", "flow", "masked", "joint"]
    recipe: str = "grpo"
    run_dir: str = "runs/{modality}-{recipe}"
    policy: dict[str, Any] = {}
    data: DataConfig = DataConfig()
    rewards: list[RewardSpec] = []
    reward_run: RewardRunConfig = RewardRunConfig()
    prompts: Choice = "shuffled"
    rollout: list[Choice] = []
    environment: Choice | None = None
    environment_run: EnvironmentRunConfig = EnvironmentRunConfig()
    learner: Choice = "gradient"
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    cache: CacheConfig = CacheConfig()
    placement: Placement = Placement()
    tracking: list[TrackerSpec] = []
    callbacks: list[Choice] = []
    watch: WatchConfig = WatchConfig()

    @field_validator("rollout", "callbacks", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value

    @field_validator("rewards", "tracking", mode="before")
    @classmethod
    def _names_will_do(cls, value: Any) -> Any:
        """`accuracy`, `[accuracy, format]`, `{name: accuracy}`: each is a list of rewards; of trackers likewise."""
        several = [value] if isinstance(value, str | Mapping) else value
        return [{"name": v} if isinstance(v, str) else v for v in several] if isinstance(several, list) else several

    @property
    def policy_class(self) -> type[Policy]:
        """The policy of the modality, or the one that `policy.class` names by `file.py:Class`."""
        own = self.policy.get(CLASS)
        if own is None:
            return policy_class(self.modality)
        kind = plugins.load(str(own), "policy.class") if plugins.is_reference(str(own)) else None
        if not (isinstance(kind, type) and issubclass(kind, Policy) and kind.modality == self.modality):
            raise ConfigError(
                f"policy.class={own!r}: expected file.py:Class of a mmrl.policies.base.Policy of modality "
                f"{self.modality!r}"
            )
        return kind

    @property
    def patience(self) -> float:
        """Seconds ranks wait for each other: past the watchdog, and what the rewards of a step may take, each once in
        time and then its rows one by one."""
        run = self.reward_run
        each = [spec.timeout or run.timeout for spec in self.rewards]
        longest = sum(seconds + (run.budget or max(SMALLEST_BUDGET, BUDGET_CALLS * seconds)) for seconds in each)
        return self.training.patience(longest)

    def policy_settings(self) -> Any:
        """The typed `policy:` section, with `asset:NAME` resolved to the checkpoint that ships as NAME."""
        kind = self.policy_class
        values = {k: v for k, v in self.policy.items() if k != CLASS}
        values = _with_assets(values)
        if (found := placed()) is not None and found.engines and self.modality in SPEAKING:
            values["engine"] = PLACED_ENGINE  # the actor has the one that was named
        return read_section(kind.config_type, values, "policy", lambda: [("", RunConfig), *kind.sections()[1:]])

    @field_validator("run_dir")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        left = value.replace("{modality}", "").replace("{recipe}", "")
        if not value.strip() or "\0" in value or "{" in left or "}" in left:
            raise ValueError("expected a folder, in which {modality} and {recipe} may stand")
        if any(len(part.encode(errors="replace")) > LONGEST_NAME for part in Path(value).parts):
            raise ValueError(f"a folder's name has at most {LONGEST_NAME} bytes")
        return value

    @property
    def directory(self) -> Path:
        name = self.recipe if not is_file(self.recipe) else Path(self.recipe).stem
        return Path(self.run_dir.replace("{modality}", self.modality).replace("{recipe}", name))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def where_it_is(model: str) -> str:
    """A path or hub name as it stands; of `asset:NAME` the folder of the checkpoint that ships as NAME."""
    return str(shipped_asset(model.removeprefix(ASSET))) if model.startswith(ASSET) else model


def _with_assets(values: dict[str, Any]) -> dict[str, Any]:
    """A section whose `model`, and that of each section in it, is a path where it named a checkpoint that ships."""
    inner = {name: _with_assets(value) for name, value in values.items() if isinstance(value, dict)}
    name = str(values.get("model", ""))
    return values | inner | ({"model": where_it_is(name)} if name.startswith(ASSET) else {})


def read_config(
    source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str] = (), modality: str | None = None
) -> RunConfig:
    """A file, the name of a shipped configuration ("demo"), or a mapping; then `key.sub=value` overrides."""
    values = dict(source) if isinstance(source, Mapping) else read_values(source, modality)
    where = "" if source is None or isinstance(source, Mapping) else str(source)
    changes = dict(override(o) for o in overrides)
    if modality is not None and values.setdefault("modality", modality) != modality:
        raise ConfigError(f"{where or 'modality'}: is for {got(values['modality'])}, not for {modality!r}")
    folders = [Path(), *([Path(source).parent] if isinstance(source, str | Path) else [])]
    _plain(values, where)
    _plain(changes, "")
    values, changes = plugins.absolute(values, folders), plugins.absolute(changes, folders)
    recipe = _recipe_of(values, changes, folders)
    place = Path(str(changes.get("recipe", values.get("recipe")))).stem
    _plain(recipe.model_dump(), f"recipe {place}")
    read_section(TrainingConfig, recipe.training, f"{place}.training")  # also where the file overrules it
    base: dict[str, Any] = {"prompts": recipe.prompts, "rollout": recipe.rollout}
    base |= {"environment": recipe.environment} if recipe.environment else {}
    base |= {"learner": recipe.learner}
    base |= {"policy": recipe.policy, "training": recipe.training}
    base["objective"] = read_section(ObjectiveConfig, recipe.objective, f"{place}.objective").model_dump()
    merged = merge(base, values)
    for key, value in changes.items():
        set_dotted(merged, key, value)
    given = merged.get("rewards", [])
    if isinstance(given := [given] if isinstance(given, str | Mapping) else given, list):
        merged["rewards"] = [*given, *recipe.beside(given)]
    merged["recipe"] = values["recipe"] if "recipe" not in changes else changes["recipe"]
    merged |= usual_rates(merged)
    config = read_section(RunConfig, merged, where, lambda: _policy_keys(merged.get("modality")))
    supported = recipe.modalities
    if strange := [name for name in supported if name not in MODALITIES]:
        raise ConfigError(f"recipe {place}: modalities: {unknown('modality', strange[0], MODALITIES)}")
    if config.modality not in supported:
        raise ConfigError(f"recipe {config.recipe!r} is for {', '.join(supported)}, not for {config.modality!r}")
    config.training = config.training.following(recipe.updates.count, recipe.updates.epochs)
    return config


def _policy_keys(modality: Any) -> list[tuple[str, type[Section]]]:
    """The typed `policy` section of a modality, which RunConfig keeps as a mapping."""
    return policy_class(modality).sections() if modality in MODALITIES else []


def _plain(values: Any, where: str, key: str = "") -> None:
    """ConfigError for what YAML can hold and a configuration cannot: keys that are no text, dates, bytes, sets."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if not isinstance(name, str):
                raise ConfigError(f"{where or 'configuration'}: {key or 'a key'}: expected names, got {got(name)}")
            _plain(value, where, f"{key}.{name}" if key else name)
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            _plain(value, where, f"{key}.{i}")
    elif isinstance(values, int) and abs(values) > LARGEST_INTEGER:
        raise ConfigError(f"{where or 'configuration'}: {key}: a number this large is a mistake, got {got(values)}")
    elif values is not None and not isinstance(values, str | int | float | Path):
        raise ConfigError(f"{where or 'configuration'}: {key}: expected text or a number, got {got(values)}")


def _recipe_of(values: dict[str, Any], changes: dict[str, Any], folders: list[Path]) -> Recipe:
    """The recipe that the configuration names; one in a file is named by its whole path from here on, and one of a
    former name by its present one."""
    holder = changes if "recipe" in changes else values
    name = holder.setdefault("recipe", "grpo")
    if isinstance(name, str):
        holder["recipe"] = RENAMED.get(name, name)
    if isinstance(name, str) and is_file(name):
        found = [f / Path(name).expanduser() for f in folders if (f / Path(name).expanduser()).is_file()]
        holder["recipe"] = str(found[0].resolve()) if found else name
    return load_recipe(holder["recipe"])


def overruled(source: str | Path, overrides: Iterable[str], modality: str) -> str:
    """What a recipe named among the overrides suggests, and a file written for another recipe sets otherwise: one
    sentence, "" if nothing."""
    values, changes = read_values(source, modality), dict(override(o) for o in overrides)
    written_for = values.get("recipe", "grpo")
    if changes.get("recipe", written_for) == written_for:
        return ""
    recipe = load_recipe(changes["recipe"])
    suggested = {f"policy.{k}": v for k, v in recipe.policy.items()}
    suggested |= {f"training.{k}": v for k, v in recipe.training.items() if k in METHOD_KEYS}
    suggested |= {f"objective.{k}": v for k, v in recipe.objective.items()}
    suggested["training.updates"] = {"count": recipe.updates.count, "epochs": recipe.updates.epochs}
    lost = []
    for key, value in suggested.items():
        section, _, name = key.partition(".")
        given = (values.get(section) or {}).get(name, value)
        if merge(value, given) != value and not any(c == key or c.startswith(f"{key}.") for c in changes):
            lost.append(f"{key}={given} in place of {value}")
    if not lost:
        return ""
    return f"{source} was written for {written_for} and overrules what {recipe.method} suggests: {'; '.join(lost)}"


def shipped_configurations(modality: str) -> list[str]:
    """Names of `configs/MODALITY/NAME.yaml`."""
    return sorted(Path(str(f)).stem for f in (resources.files("mmrl") / "configs" / modality).iterdir())


def which_configuration(modality: str) -> str:
    """What to say where a command needs a configuration and none is named."""
    return (
        f"{modality}: which configuration? Name a YAML file, or one that ships: "
        f"{', '.join(shipped_configurations(modality))}"
    )


def read_values(source: str | Path | None, modality: str | None) -> dict[str, Any]:
    if source is None:
        return {}
    path = Path(source)
    if not path.exists() and modality and path.suffix == "":
        folder, shipped = resources.files("mmrl") / "configs" / modality, shipped_configurations(modality)
        if str(source) not in shipped:
            raise ConfigError(
                f"{source}: no such file, and {unknown(f'shipped {modality} configuration', str(source), shipped)}"
            )
        path = Path(str(folder / f"{source}.yaml"))
    if not path.exists():
        raise ConfigError(f"{source}: no such configuration file")
    values = read_yaml_file(path) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of sections, got {type(values).__name__}")
    return values


def override(text: str) -> tuple[str, Any]:
    """`key.sub=value`, read as YAML where it is."""
    key, equals, value = text.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r}: expected key.sub=value, such as objective.trust_region.low=0.2")
    first, _, rest = key.partition(".")
    key = ".".join(filter(None, (SHORT[first], rest))) if first in SHORT else key
    try:
        return key, read_yaml(value)
    except yaml.YAMLError:
        return key, value


def merge(base: Any, over: Any) -> Any:
    """Mappings merge key by key, anything else is replaced. A stage given as a bare name merges as `{name: ...}`;
    another name drops the parameters of the one it replaces."""
    if not isinstance(over, Mapping):
        return over
    if isinstance(base, str):
        base = {"name": base}
    if not isinstance(base, Mapping) or ("name" in over and "name" in base and over["name"] != base["name"]):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base.get(key), value)
    return merged


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """`objective.regularizers.kl.coefficient=0.1`: lists are addressed by index or by the entry's name."""
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"override {key}: expected key.sub=value, got a name that is empty")
    node: Any = values
    for depth, part in enumerate(parts[:-1]):
        node = _step_into(node, part, ".".join(parts[: depth + 1]))
    last = parts[-1]
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = merge(node.get(last), value) if isinstance(value, Mapping) else value


def _step_into(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        at = _position(node, part, path)
        if isinstance(node[at], str):
            node[at] = {"name": node[at]}
        if not isinstance(node[at], dict | list):
            raise ConfigError(f"override {path}: {got(node[at])} is a value, it has no parts")
        return node[at]
    child = node.get(part)
    if isinstance(child, str):
        child = {"name": child}
    if child is None:
        child = {}
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"override {path}: {got(child)} is a value, it has no parts")
    node[part] = child
    return child


def _position(items: list[Any], part: str, path: str) -> int:
    names = [i.get("name") if isinstance(i, Mapping) else i for i in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    if not part.isdigit():
        theirs = foreign.answer(part)  # `rollout.n`, where `rollout` is a list of strategies here
        example = theirs or f"add one with {path.removesuffix(f'.{part}')}=[{{name: {part}, ...}}]"
        raise ConfigError(f"override {path}: {unknown('entry', part, [str(n) for n in names])}; {example}")
    raise ConfigError(f"override {path}: {unknown('entry', part, [str(n) for n in names])}")
