"""`mmrl from-trl FILE`: a TRL script or its YAML as a configuration of ours, and what could not be carried over.

A script or notebook is read, never run (`mmrl.pipelines.trl_script`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmrl import foreign
from mmrl.errors import ConfigError
from mmrl.foreign import trl
from mmrl.pipelines.trl_script import read_script
from mmrl.settings import read_yaml_file

REWARDS = {"accuracy_reward": "accuracy", "reasoning_accuracy_reward": "accuracy", "think_format_reward": "format"}
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
OPTIMIZERS = {"adamw_torch": "adamw", "adamw_torch_fused": "fused", "adamw_8bit": "8bit", "adamw_bnb_8bit": "8bit",
              "paged_adamw_8bit": "8bit"}  # fmt: skip
QUIET = {"output_dir", "logging_steps", "log_completions", "num_completions_to_print", "remove_unused_columns", "bf16",
         "fp16", "eval_strategy", "save_strategy", "do_eval", "bnb_4bit_use_double_quant"}  # fmt: skip
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
        for name, value in values.items():
            if isinstance(value, dict) and not trl.TABLE.says(name) and (said := foreign.answer(name, value)):
                raise ConfigError(f"{path}: not a configuration of TRL's; {said}")
        return convert(values, processes=processes)
    if path.suffix not in (".py", ".ipynb"):
        raise ConfigError(f"{path}: expected a TRL script (.py, .ipynb) or its configuration (.yaml)")
    found = read_script(path)
    return convert(found.values, rewards=found.rewards, notes=found.notes, processes=processes)


def convert(
    values: Mapping[str, Any],
    *,
    rewards: list[dict[str, Any]] | None = None,
    notes: list[str] | None = None,
    processes: int = 1,
) -> Converted:
    """TRL's names and values, as ours. Defaults of its objective come with recipe `trl`; those of the rest that are not
    ours are written out."""
    made = Converted({"recipe": "trl", "policy": {}, "data": {}, "training": {}}, list(notes or []))
    left = {k: v for k, v in values.items() if v is not None}
    _adapters(left, made)
    _batches({k: left.pop(k) for k in BATCH if k in left}, made, processes)
    _objective(left, made)
    _rewards(left, rewards, made)
    _model(left, made)
    _optimizer(left, made)
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
        training["data_epochs"] = given.get("num_train_epochs", 3)
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


def _rewards(left: dict[str, Any], rewards: list[dict[str, Any]] | None, made: Converted) -> None:
    named = rewards if rewards is not None else left.pop("reward_funcs", None)
    weights = left.pop("reward_weights", None)
    if named is None:
        made.notes.append("rewards: none found; name them, such as rewards=[accuracy]")
        return
    several = named if isinstance(named, list) else [named]
    entries = []
    for i, asked in enumerate(several):
        entry = dict(asked) if isinstance(asked, dict) else {"name": str(asked)}
        name = entry["name"]
        entry["name"] = REWARDS.get(name, name)
        if name not in REWARDS and ":" not in name:
            made.notes.append(f"reward {name!r}: not found in the script; write it as file.py:function")
        if ".ipynb:" in name:
            made.notes.append(f"reward {name!r}: a function of a notebook; copy it into a file.py and name that")
        if name == "think_format_reward":
            entry["options"] = {"kind": "think"}
        if name in ("accuracy_reward", "reasoning_accuracy_reward"):
            made.config["data"]["task"] = "math"
        if weights is not None and i < len(weights):
            entry["weight"] = weights[i]
        entries.append(entry)
    made.config["rewards"] = entries
    objective = made.config.get("objective", {})
    if weights is not None and objective.get("advantage") == "gdpo_decoupled":
        # TRL weighs what it normalised; ours reads no weights of rewards
        own = {entry.get("label") or entry["name"].rpartition(":")[2].rpartition(".")[2]: entry for entry in entries}
        named = {label: float(entry.get("weight", 1.0)) for label, entry in own.items()}
        objective["advantage"] = {"name": "gdpo_decoupled", "weights": named}


def _model(left: dict[str, Any], made: Converted) -> None:
    """TRL loads weights in float32 unless it is told otherwise, and trains under autocast: bfloat16 by default."""
    policy = made.config["policy"]
    inner = left.pop("model_init_kwargs", None)
    inner = dict(inner) if isinstance(inner, dict) else {}
    dtype = str(inner.pop("torch_dtype", None) or inner.pop("dtype", None) or left.pop("dtype", None) or "float32")
    dtype = dtype.removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16"):
        made.notes.append(f"dtype={dtype!r}: what the checkpoint is stored in is not asked here; policy.dtype=bfloat16")
        dtype = "bfloat16"
    policy["dtype"] = dtype
    autocast = "float16" if left.get("fp16") else "bfloat16" if left.get("bf16") in (True, None) else None
    if dtype == "float32" and autocast:
        policy["autocast"] = autocast
    elif dtype == "bfloat16":
        made.notes.append("weights are loaded in bfloat16; trained ones have float32 copies, which TRL has not")
    for name in ("load_in_4bit", "load_in_8bit"):
        if left.pop(name, False):
            policy["quantize"] = "nf4" if name == "load_in_4bit" else "int8"
    for name, value in inner.items():
        if isinstance(key := trl.KEYS.get(name), str):
            _put(made.config, key, value)
        elif value is not None:
            made.notes.append(f"model_init_kwargs[{name!r}]={value!r}: not carried over")
    policy["gradient_checkpointing"] = bool(left.pop("gradient_checkpointing", True))


def _optimizer(left: dict[str, Any], made: Converted) -> None:
    training = made.config["training"]
    if "adam_beta1" in left or "adam_beta2" in left:
        training["betas"] = [left.pop("adam_beta1", 0.9), left.pop("adam_beta2", 0.999)]
    schedule, more = left.pop("lr_scheduler_type", "linear"), left.pop("lr_scheduler_kwargs", None) or {}
    if schedule == "cosine_with_min_lr" and "min_lr_rate" in more:
        schedule, training["schedule_floor"] = "cosine", more["min_lr_rate"]
    elif more:
        made.notes.append(f"lr_scheduler_kwargs={more!r}: not carried over; training.schedule_floor is min_lr_rate")
    if schedule in SCHEDULES:
        training["schedule"] = SCHEDULES[schedule]
    else:
        made.notes.append(f"lr_scheduler_type={schedule!r}: not here; choose constant, linear or cosine")
    for name in ("warmup_steps", "warmup_ratio"):
        if isinstance(left.get(name), float) and not left[name].is_integer():
            made.notes.append(f"{name}={left.pop(name)!r}: a share; set training.warmup_steps in optimizer steps")
    training.setdefault("learning_rate", left.pop("learning_rate", 1e-6))
    optimizer = left.pop("optim", None)
    if optimizer in OPTIMIZERS:
        training["optimizer"] = {"name": OPTIMIZERS[optimizer]}
    elif optimizer is not None:
        made.notes.append(f"optim={optimizer!r}: not here; training.optimizer.name is adamw, fused, 8bit or muon")


def _rest(left: dict[str, Any], made: Converted) -> None:
    """What takes a word more than another key."""
    training, policy = made.config["training"], made.config["policy"]
    for name, key in (("eval_steps", "eval_every"), ("save_steps", "save_every")):
        if isinstance(left.get(name), int):
            training[key] = left.pop(name)
    if "num_generations_eval" in left:
        training["eval_samples"] = left.pop("num_generations_eval")
    for name, key in (("system", "system"), ("eval_dataset_name", "eval")):
        if name in left:
            made.config["data"][key] = left.pop(name)
    template = left.get("chat_template_kwargs")
    if isinstance(template, dict) and set(template) == {"enable_thinking"}:
        policy["thinking"] = bool(left.pop("chat_template_kwargs")["enable_thinking"])
    _trackers(left, made)


def _trackers(left: dict[str, Any], made: Converted) -> None:
    asked, run, project = left.pop("report_to", None), left.pop("run_name", None), left.pop("project", None)
    names = [asked] if isinstance(asked, str) else asked or []
    trackers = [name for name in names if name in ("wandb", "tensorboard")]
    if others := [name for name in names if name not in (*trackers, "none")]:
        made.notes.append(f"report_to={others!r}: not here; trackers are wandb and tensorboard (tracking)")
    own = {k: v for k, v in (("project", project), ("run", run)) if v}
    if trackers:
        made.config["tracking"] = [{"name": n} | own if n == "wandb" else {"name": n} for n in trackers]
    elif own:
        made.notes.append(f"{', '.join(f'{k}={v!r}' for k, v in own.items())}: names of a tracker, and none is asked")
