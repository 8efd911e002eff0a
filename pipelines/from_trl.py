"""`mmrl from-trl FILE`: a TRL script or its YAML as a configuration of ours, and what could not be carried over.

A script is read, never run: arguments of `GRPOConfig(...)`, `GRPOTrainer(...)`, `LoraConfig(...)` and
`load_dataset(...)` whose values stand in the file, or in a constant of it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmrl.errors import ConfigError
from mmrl.foreign import trl
from mmrl.settings import read_yaml_file
from mmrl.training.config import TrainingConfig

REWARDS = {"accuracy_reward": "accuracy", "reasoning_accuracy_reward": "accuracy", "think_format_reward": "format"}
LORA = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
        "use_rslora": "rslora", "use_dora": "dora"}  # fmt: skip
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size",
         "steps_per_generation", "num_generations", "num_iterations", "max_steps", "num_train_epochs")  # fmt: skip
PEFT = {"lora_r": 16, "lora_alpha": 32}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
AGGREGATIONS: dict[str, Any] = {
    "grpo": {"name": "sequence_mean", "empty": "count"},
    "dapo": "token_mean",
    "bnpo": "bnpo",
    "dr_grpo": {"name": "constant", "empty": "count"},
    "cispo": "token_mean",
    "luspo": {"name": "sequence_sum", "empty": "count"},
    "sapo": {"name": "sequence_mean", "empty": "count"},
    "vespo": "token_mean",
}
QUIET = {"output_dir", "report_to", "run_name", "logging_steps", "log_completions", "num_completions_to_print",
         "remove_unused_columns", "bf16", "fp16", "eval_strategy", "save_strategy", "do_eval"}  # fmt: skip
"""What needs no note: ours is at hand by default, or it is carried over by `_rest`."""


@dataclass
class Converted:
    """config  a configuration of ours; notes  one line for each thing that was not carried over as it stands"""

    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def to_yaml(self) -> str:
        head = "".join(f"# {note}\n" for note in self.notes)
        return head + yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)


def convert_file(path: Path, processes: int = 1) -> Converted:
    """`processes`: of the TRL run, which its batch sizes are for each of."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a TRL script (.py) or its configuration (.yaml)")
    if path.suffix in (".yaml", ".yml"):
        values = read_yaml_file(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected keys and values, as `trl grpo --config` takes them")
        return convert(values, processes=processes)
    if path.suffix != ".py":
        raise ConfigError(f"{path}: expected a TRL script (.py) or its configuration (.yaml)")
    found = read_script(path)
    return convert(found.values, rewards=found.rewards, notes=found.notes, processes=processes)


def convert(
    values: Mapping[str, Any], *, rewards: list[Any] | None = None, notes: list[str] | None = None, processes: int = 1
) -> Converted:
    """TRL's names and values, as ours. Defaults of its objective come with recipe `trl`; those of the rest that are not
    ours are written out."""
    made = Converted({"recipe": "trl", "policy": {}, "data": {}, "training": {}}, list(notes or []))
    left = {k: v for k, v in values.items() if v is not None}
    _adapters(left, made)
    _batches({k: left.pop(k) for k in BATCH if k in left}, made, processes)
    _objective(left, made)
    _rewards(left, rewards, made)
    _rest(left, made)
    for name, value in left.items():
        told = trl.TABLE.says(name)
        if name in trl.KEYS:
            _put(made.config, trl.KEYS[name], value)
        elif told and name not in QUIET:
            made.notes.append(f"{name}={value!r}: {told}")
        elif name in trl.ABSENT:
            made.notes.append(f"{name}={value!r}: not here, {trl.ABSENT[name]}")
        elif not told:
            made.notes.append(f"{name}={value!r}: not a name of GRPOConfig that is known here")
    made.config = {k: v for k, v in made.config.items() if v != {}}
    return made


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = value


def _batches(given: dict[str, Any], made: Converted, processes: int) -> None:
    """TRL counts completions for each device and optimizer step; here a step is a rollout batch of all devices."""
    group, each = given.get("num_generations", 8), given.get("per_device_train_batch_size", 8)
    gathered = given.get("gradient_accumulation_steps", 1)
    completions = given.get("generation_batch_size")
    between = given.get("steps_per_generation", gathered)
    if completions is None:
        completions = each * between * processes
    count, rest = divmod(completions, each * gathered * processes)
    prompts, odd = divmod(completions, group)
    if rest or odd or not count or not prompts:
        made.notes.append(
            f"{completions} completions a generation are not whole groups of {group}, or not whole optimizer steps of "
            f"{each * gathered * processes}: choose training.prompts_per_step and training.updates yourself"
        )
        prompts, count = max(prompts, 1), max(count, 1)
    epochs = given.get("num_iterations", 1)
    training = made.config["training"]
    training |= {"prompts_per_step": prompts, "group_size": group, "micro_batch_size": each}
    training["updates"] = {"count": count, "epochs": epochs}
    if given.get("max_steps", -1) > 0:
        training["steps"] = max(1, round(given["max_steps"] / (count * epochs)))
    else:
        passes = given.get("num_train_epochs", 3)
        made.notes.append(
            f"num_train_epochs={passes:g}: set training.steps to {passes:g} x rows / {prompts}, here "
            f"{TrainingConfig().steps} unless you do"
        )
    made.notes.append(f"batch sizes are those of {processes} process{'es' * (processes > 1)} (--processes N)")


def _objective(left: dict[str, Any], made: Converted) -> None:
    objective: dict[str, Any] = {}
    kind = left.pop("loss_type", "dapo")
    low = left.pop("epsilon", 0.2)
    high, dual = left.pop("epsilon_high", None), left.pop("delta", None)
    clip = {"name": "clip", "low": low, "high": low if high is None else high} | ({"dual": dual} if dual else {})
    if kind not in AGGREGATIONS:
        made.notes.append(f"loss_type={kind!r}: not known here; the mean over all tokens stands in its place")
    elif kind != "dapo":
        objective["aggregation"] = AGGREGATIONS[kind]
    if kind == "cispo":
        objective["trust_region"] = {"name": "cispo", "high": 0.2 if high is None else high}
    elif kind in ("sapo", "vespo"):
        objective["trust_region"] = kind
    elif clip != {"name": "clip", "low": 0.2, "high": 0.2}:
        objective["trust_region"] = clip
    level = left.pop("importance_sampling_level", "token")
    if level == "sequence" or kind == "luspo":
        objective["ratio"] = "sequence"
    scale = left.pop("scale_rewards", "group")
    scale = {True: "group", False: "none"}.get(scale, scale)
    if scale != "group":
        objective["advantage"] = {"name": "grpo", "eps": 1e-4, "std": scale}
    if left.pop("multi_objective_aggregation", "sum_then_normalize") == "normalize_then_sum":
        objective["advantage"] = "gdpo_decoupled"
    beta, importance = left.pop("beta", 0.0), left.pop("use_bias_correction_kl", True)
    if beta:
        objective["regularizers"] = [{"name": "kl", "coefficient": beta, "importance": bool(importance)}]
    if entropy := left.pop("entropy_coef", 0.0):
        objective.setdefault("regularizers", []).append({"name": "entropy_bonus", "coefficient": entropy})
    if left.pop("mask_truncated_completions", False):
        objective["group"] = ["overlong_filter"]
    if (share := left.pop("top_entropy_quantile", 1.0)) < 1:
        objective["credit"] = [{"name": "80_20_forking_tokens", "share": share}]
    if objective:
        made.config["objective"] = objective


def _adapters(left: dict[str, Any], made: Converted) -> None:
    """Of TRL's command line: adapters are asked for by `use_peft` alone, with ranks of its own."""
    given = [name for name, key in trl.KEYS.items() if key.startswith("policy.lora.") and name in left]
    if left.pop("use_peft", False):
        left |= {n: v for n, v in PEFT.items() if n not in left}
        if "lora_dropout" not in given:
            made.notes.append("lora_dropout=0.05 is TRL's default; here 0, so that ratios are exact")
    elif given:
        made.notes.append(f"{', '.join(given)}: without use_peft TRL trains no adapters, and neither does this")
        for name in given:
            left.pop(name)


def _rewards(left: dict[str, Any], rewards: list[Any] | None, made: Converted) -> None:
    named = rewards if rewards is not None else left.pop("reward_funcs", None)
    weights = left.pop("reward_weights", None)
    if named is None:
        made.notes.append("rewards: none found; name them, such as rewards=[accuracy]")
        return
    several = named if isinstance(named, list) else [named]
    entries = []
    for i, name in enumerate(several):
        ours = REWARDS.get(str(name), str(name))
        if ours == str(name) and ".py:" not in ours:
            made.notes.append(f"reward {name!r}: not found in the script; write it as file.py:function")
        entry: dict[str, Any] = {"name": ours}
        if weights is not None and i < len(weights):
            entry["weight"] = weights[i]
        entries.append(entry)
    if any(".py:" in e["name"] for e in entries):
        made.notes.append(
            "own rewards get completions as texts here, not as lists of messages (docs/writing_rewards.md)"
        )
    made.config["rewards"] = entries


def _rest(left: dict[str, Any], made: Converted) -> None:
    """What takes a word more than another key."""
    training, policy = made.config["training"], made.config["policy"]
    if "adam_beta1" in left or "adam_beta2" in left:
        training["betas"] = [left.pop("adam_beta1", 0.9), left.pop("adam_beta2", 0.999)]
    schedule = left.pop("lr_scheduler_type", "linear")
    if schedule in SCHEDULES:
        training["schedule"] = SCHEDULES[schedule]
    else:
        made.notes.append(f"lr_scheduler_type={schedule!r}: not here; choose constant, linear or cosine")
    training.setdefault("learning_rate", left.pop("learning_rate", 1e-6))
    for name, key in (("eval_steps", "eval_every"), ("save_steps", "save_every")):
        if isinstance(left.get(name), int):
            training[key] = left.pop(name)
    if left.get("fp16"):
        policy |= {"dtype": "float32", "autocast": "float16"}
    elif left.get("bf16", True):
        policy["dtype"] = "bfloat16"
        made.notes.append("bf16, TRL's default: weights are loaded in bfloat16; trained ones have float32 copies")
    policy["gradient_checkpointing"] = bool(left.pop("gradient_checkpointing", True))
    if "num_generations_eval" in left:
        training["eval_samples"] = left.pop("num_generations_eval")
    inner = left.pop("model_init_kwargs", None)
    for name, value in inner.items() if isinstance(inner, dict) else ():
        if isinstance(key := trl.KEYS.get({"torch_dtype": "dtype"}.get(name, name)), str):
            _put(made.config, key, value)
        else:
            made.notes.append(f"model_init_kwargs[{name!r}]={value!r}: not carried over")


@dataclass
class Script:
    values: dict[str, Any] = field(default_factory=dict)
    rewards: list[str] | None = None
    notes: list[str] = field(default_factory=list)


class _Calls(ast.NodeVisitor):
    """The calls of a script that say how it trains."""

    def __init__(self, path: Path, constants: dict[str, Any], functions: set[str]):
        self.path, self.constants, self.functions, self.found = path, constants, functions, Script()

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "GRPOConfig":
            self.found.values |= self._keywords(node)
        elif name == "LoraConfig":
            lora = {"r": 8, "lora_alpha": 8} | self._keywords(node)  # peft's own
            self.found.values["use_peft"] = True
            known = {f"policy.lora.{LORA[k]}": v for k, v in lora.items() if k in LORA}
            self.found.values |= {"lora_dropout": 0.0} | {k: known[v] for k, v in trl.KEYS.items() if v in known}
            ignored = [k for k in lora if k not in LORA and k != "task_type"]
            self.found.notes += [f"LoraConfig {k}={lora[k]!r}: not carried over" for k in ignored]
        elif name == "GRPOTrainer":
            self._trainer(node)
        elif name == "load_dataset" and node.args:
            self._known(node.args[0], "dataset_name")
        self.generic_visit(node)

    def _trainer(self, node: ast.Call) -> None:
        given = {k.arg: k.value for k in node.keywords}
        if "model" in given:
            self._known(given["model"], "model_name_or_path")
        funcs = given.get("reward_funcs")
        if funcs is not None:
            entries = funcs.elts if isinstance(funcs, ast.List | ast.Tuple) else [funcs]
            self.found.rewards = [self._reward(e) for e in entries]

    def _reward(self, node: ast.expr) -> str:
        name = getattr(node, "id", None) or getattr(node, "attr", None) or ast.unparse(node)
        return f"{self.path}:{name}" if name in self.functions else str(name)

    def _keywords(self, node: ast.Call) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self.found.notes.append(f"line {node.lineno}: **{ast.unparse(keyword.value)} is not read")
                continue
            value = self._value(keyword.value)
            if value is _UNKNOWN:
                self.found.notes.append(f"{keyword.arg}={ast.unparse(keyword.value)}: computed in the script, not read")
            else:
                read[keyword.arg] = value
        return read

    def _known(self, node: ast.expr, name: str) -> None:
        value = self._value(node)
        if isinstance(value, str):
            self.found.values[name] = value
        else:
            self.found.notes.append(f"{name}={ast.unparse(node)}: computed in the script, not read")

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self.constants[node.id]
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch":
            return node.attr
        try:
            return ast.literal_eval(node)
        except ValueError:
            return _UNKNOWN


_UNKNOWN = object()


def read_script(path: Path) -> Script:
    """What a TRL script passes to GRPOConfig, GRPOTrainer, LoraConfig and load_dataset."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a Python script: {error}") from None
    constants: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                constants.pop(node.targets[0].id, None)
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    calls = _Calls(path, constants, functions)
    calls.visit(tree)
    if not calls.found.values and calls.found.rewards is None:
        raise ConfigError(
            f"{path}: no GRPOConfig(...) or GRPOTrainer(...) in it; expected a script that trains with TRL"
        )
    return calls.found
