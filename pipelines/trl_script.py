"""What a TRL script says of its run: read from its syntax, never run.

Arguments of `GRPOConfig(...)`, `GRPOTrainer(...)`, `LoraConfig(...)`, `BitsAndBytesConfig(...)`, `load_dataset(...)`
and of the model's `from_pretrained(...)`, whose values stand in the file or in a constant of it. What is computed, and
what has no counterpart, becomes a note.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.foreign import trl

LORA = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
        "use_rslora": "rslora", "use_dora": "dora"}  # fmt: skip
CONFIGS, TRAINERS = ("GRPOConfig", "AsyncGRPOConfig"), ("GRPOTrainer", "AsyncGRPOTrainer")
TRAINER_ONLY = {
    "eval_dataset": "name held-out rows in data.eval",
    "processing_class": "the processor is the checkpoint's own",
    "reward_processing_classes": "a reward that is a model loads it itself (docs/writing_rewards.md)",
    "callbacks": "callbacks: classes of yours (docs/extending.md)",
    "optimizers": "training.optimizer",
    "tools": "environment: a class of yours that answers calls (docs/environments.md)",
    "environment_factory": "environment: a class of yours (docs/environments.md)",
    "rollout_func": "rollout: a strategy of yours, or policy.engine (docs/rollout.md)",
}
"""Arguments of the trainer that are told rather than carried over."""
HELD_OUT = ("test", "validation", "valid", "val", "eval")


@dataclass
class Script:
    """values   by TRL's names, and `system`, `eval_dataset_name`; rewards: entries as ours; notes: one line each"""

    values: dict[str, Any] = field(default_factory=dict)
    rewards: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)


def read_script(path: Path) -> Script:
    """Of a `.py` file or a notebook. Raises ConfigError where nothing in it trains with GRPO."""
    try:
        tree = ast.parse(_source(path))
    except (SyntaxError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a Python script or notebook: {error}") from None
    calls = _Calls(path, tree)
    calls.visit(tree)
    found = calls.found
    if not calls.trains:
        others = f" ({', '.join(calls.others)} is there)" if calls.others else ""
        raise ConfigError(
            f"{path}: no GRPOConfig(...) or GRPOTrainer(...) in it{others}; expected a script that trains with GRPO"
        )
    found.notes = list(dict.fromkeys([*found.notes, *calls.closing_notes()]))
    return found


def _source(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join(cells).split("\n")
    return "\n".join("" if line.lstrip().startswith(("!", "%")) else line for line in lines)


class _Calls(ast.NodeVisitor):
    """The calls of a script that say how it trains."""

    def __init__(self, path: Path, tree: ast.Module):
        self.path, self.found, self.trains, self.others = path, Script(), False, dict[str, None]()
        self.functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self.assigned = _assigned(tree)
        self.guarded = any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body)
        self.changed: dict[str, None] = {}  # what is done to the rows, in the order of the file

    def visit_Call(self, node: ast.Call) -> None:
        name = _called(node)
        if name in CONFIGS:
            self.trains = True
            self.found.values |= self._keywords(node)
        elif name == "LoraConfig":
            self._lora(node)
        elif name in TRAINERS:
            self.trains = True
            self._trainer(node, name)
        elif name == "load_dataset" and node.args:
            self._dataset(node)
        elif name == "TrlParser":
            self.found.notes.append("TrlParser: what stands on the command line is not here; add it, or give its YAML")
        elif name in ("map", "filter", "train_test_split", "select") and isinstance(node.func, ast.Attribute):
            self.changed[f"{name}({', '.join(map(ast.unparse, node.args))})"] = None
        elif name.endswith("Trainer"):
            self.others[name] = None
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        """A system message that the script puts before its rows."""
        keys = [k.value if isinstance(k, ast.Constant) else None for k in node.keys]
        if "role" in keys and "content" in keys:
            role, content = (self._value(node.values[keys.index(k)]) for k in ("role", "content"))
            if role == "system" and isinstance(content, str):
                self.found.values["system"] = content
        self.generic_visit(node)

    def closing_notes(self) -> list[str]:
        notes = []
        if self.changed:
            notes.append(
                f"rows are changed in the script by {', '.join(self.changed)}: say it by data.columns, data.template, "
                "data.limit, or write the changed rows into a file"
            )
        own = any(".py:" in r["name"] for r in self.found.rewards or ())
        if own and not self.guarded:
            notes.append(
                f"rewards of {self.path.name} are imported from it, and importing it trains: move them into a file of "
                "their own and name that"
            )
        return notes

    def _lora(self, node: ast.Call) -> None:
        lora = {"r": 8, "lora_alpha": 8} | self._keywords(node)  # peft's own
        self.found.values["use_peft"] = True
        known = {f"policy.lora.{LORA[k]}": v for k, v in lora.items() if k in LORA}
        self.found.values |= {"lora_dropout": 0.0} | {k: known[v] for k, v in trl.KEYS.items() if v in known}
        ignored = [k for k in lora if k not in LORA and k != "task_type"]
        self.found.notes += [f"LoraConfig {k}={lora[k]!r}: not carried over" for k in ignored]

    def _dataset(self, node: ast.Call) -> None:
        """`load_dataset(NAME, CONFIG, split=...)`, as `NAME?config=CONFIG&split=...`; a held-out split is data.eval."""
        given = {k.arg: self._value(k.value) for k in node.keywords if k.arg}
        name = self._value(node.args[0])
        if not isinstance(name, str):
            self.found.notes.append(f"dataset_name={ast.unparse(node.args[0])}: computed in the script, not read")
            return
        files = given.get("data_files")
        config = self._value(node.args[1]) if len(node.args) > 1 else given.get("name")
        split, cut, _ = (split if isinstance(split := given.get("split"), str) else "").partition("[")
        if cut:
            self.found.notes.append(
                f"split={given['split']!r}: a part of a split is data.limit=ROWS, from the first on"
            )
        asked = [f"{k}={v}" for k, v in (("config", config), ("split", split)) if isinstance(v, str) and v]
        query = [a for a in asked if a != "split=train"]
        where = files if isinstance(files, str) else name + (f"?{'&'.join(query)}" if query else "")
        key = "eval_dataset_name" if split in HELD_OUT else "dataset_name"
        before = self.found.values.get(key)
        if before not in (None, where):
            self.found.notes.append(f"load_dataset: {before} is read too; {where}, the later one, is taken")
        self.found.values[key] = where

    def _trainer(self, node: ast.Call, name: str) -> None:
        given = dict(zip(("model", "reward_funcs"), node.args, strict=False))
        given |= {k.arg: k.value for k in node.keywords if k.arg}
        if name != "GRPOTrainer":
            self.found.notes.append(f"{name}: rollouts beside the update are training.ahead, with an engine")
        if "model" in given:
            self._model(given["model"])
        for key in ("peft_config", "quantization_config"):
            if key in given:
                self._made_elsewhere(key, given[key])
        if (funcs := given.get("reward_funcs")) is not None:
            entries = funcs.elts if isinstance(funcs, ast.List | ast.Tuple) else [funcs]
            self.found.rewards = [self._reward(e) for e in entries]
        for key, said in TRAINER_ONLY.items():
            if key in given and ast.unparse(given[key]) != "None":
                self.found.notes.append(f"{key}={ast.unparse(given[key])}: not carried over; {said}")

    def _made_elsewhere(self, key: str, node: ast.expr) -> None:
        """An argument that is made by a call of its own: its arguments were read there, or are told here."""
        call = self._given(node) if isinstance(node, ast.Name) else node
        if isinstance(call, ast.Call) and _called(call) == "BitsAndBytesConfig":
            self._packed(call)
        elif not (isinstance(call, ast.Call) and _called(call) == "LoraConfig") and ast.unparse(node) != "None":
            self.found.notes.append(f"{key}={ast.unparse(node)}: computed in the script, not read")

    def _packed(self, node: ast.Call) -> None:
        for name, value in self._keywords(node).items():
            if name in ("load_in_4bit", "load_in_8bit") and value:
                self.found.values[name] = True
            elif (name, value) not in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_use_double_quant", True)):
                said = trl.TABLE.says(name) or "not carried over"
                self.found.notes.append(f"BitsAndBytesConfig {name}={value!r}: {said}")

    def _model(self, node: ast.expr) -> None:
        """By name, or as loaded by a `from_pretrained` of the script, whose arguments are TRL's `model_init_kwargs`."""
        call = self._given(node) if isinstance(node, ast.Name) else node
        if not (isinstance(call, ast.Call) and _called(call) == "from_pretrained" and call.args):
            value = self._value(node)
            if isinstance(value, str):
                self.found.values["model_name_or_path"] = value
            else:
                self.found.notes.append(f"model_name_or_path={ast.unparse(node)}: computed in the script, not read")
            return
        self._model(call.args[0])
        packed = [k for k in call.keywords if k.arg == "quantization_config"]
        for keyword in packed:
            self._made_elsewhere("quantization_config", keyword.value)
        rest = ast.Call(func=call.func, args=[], keywords=[k for k in call.keywords if k not in packed])
        loaded = {k: v for k, v in self._keywords(ast.copy_location(rest, call)).items() if k != "device_map"}
        if loaded:
            self.found.values["model_init_kwargs"] = loaded

    def _reward(self, node: ast.expr) -> dict[str, Any]:
        name = getattr(node, "id", None) or getattr(node, "attr", None) or ast.unparse(node)
        if name not in self.functions:
            return {"name": str(name)}
        chat = any(isinstance(n, ast.Constant) and n.value == "content" for n in ast.walk(self.functions[name]))
        return {"name": f"{self.path}:{name}"} | ({"style": "trl_chat"} if chat else {})

    def _keywords(self, node: ast.Call) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self.found.notes.append(f"line {node.lineno}: **{ast.unparse(keyword.value)} is not read")
                continue
            value = self._value(keyword.value)
            if value is UNKNOWN:
                self.found.notes.append(f"{keyword.arg}={ast.unparse(keyword.value)}: computed in the script, not read")
            else:
                read[keyword.arg] = value
        return read

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and (given := self._given(node)) is not None:
            return self._value(given)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch":
            return node.attr
        try:
            return ast.literal_eval(node)
        except ValueError:
            return UNKNOWN

    def _given(self, node: ast.Name) -> ast.expr | None:
        """What stands behind a name where it is used. None where the lines before give it several values: which of
        them holds is decided when the script runs."""
        before = [v for line, v in self.assigned.get(node.id, ()) if line < node.lineno]
        return before[0] if len({ast.unparse(v) for v in before}) == 1 else None


UNKNOWN = object()


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _assigned(tree: ast.Module) -> dict[str, list[tuple[int, ast.expr]]]:
    """{name: [(line, what it is given there)]}, in the order of the file."""
    found: dict[str, list[tuple[int, ast.expr]]] = {}
    for node in sorted((n for n in ast.walk(tree) if isinstance(n, ast.Assign)), key=lambda n: n.lineno):
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    found.setdefault(name.id, []).append((node.lineno, value))
    return found
