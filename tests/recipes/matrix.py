"""Every recipe in every modality it names, for two steps on the tiny model that ships.

python -m tests.recipes.matrix [--only NAME ...] [--jobs 2]     what `make recipes` runs; writes docs/recipes.json

In process: the configuration is read, checked and trained as a user's is, without evaluation and without reward
processes. docs/recipes.md and the counts of README.md are written from docs/recipes.json by docs/generate.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mmrl.columns import COLUMNS
from mmrl.errors import MMRLError
from mmrl.objective import Objective
from mmrl.pipelines.config import DataConfig, merge, read_config
from mmrl.pipelines.progress import quiet_libraries
from mmrl.pipelines.run import open_prompts, train
from mmrl.policies.registry import MODALITIES, policy_class
from mmrl.recipes import load_recipe, recipe_names
from mmrl.rollout.environments.base import made_by
from mmrl.rollout.environments.opening import environment_of
from mmrl.rollout.nesting import Nested
from mmrl.settings import read_section
from mmrl.training.learners import GRADIENT
from mmrl.training.updates import LEAST_GROUPS
from tests.recipes import toys

RESULTS = Path(__file__).parents[2] / "docs" / "recipes.json"
LANGUAGE = {"max_new_tokens": 6, "temperature": 1.0}
SAMPLING = {"fps": 4, "max_frames": 4, "min_pixels": 4096, "max_pixels": 4096}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vlm": ("world:stills?split=train&size=16&difficulty=1", LANGUAGE),
    "video": ("world:motion?split=train&size=16&difficulty=1", {**LANGUAGE, "sampling": SAMPLING}),
    "flow": (
        "world:compositions?split=train&size=16&difficulty=2",
        {"max_sequence_length": 16, "steps": 4, "schedule": "linear", "transformer_batch": 128, "decode_batch": 64},
    ),
    "masked": ("world:lists?split=train&size=16", {"max_new_tokens": 6}),
}
MODELS["joint"] = (
    "world:retold?split=train&size=16&difficulty=1",
    {
        "writer": {"model": "asset:tiny_vlm", **LANGUAGE}, "painter": {"model": "asset:tiny_flow", **MODELS["flow"][1]},
        "turns": [{"by": "writer"}, {"by": "painter", "ask": "one {text} {shape} {place}"}],
        "learning_rates": {"writer": 1e-3, "painter": 1e-3},
    },
)  # fmt: skip
"""The world and the sizes of each modality; its model is the one that ships as tiny_MODALITY, or says which."""
PROMPTS, GROUP = 2 * LEAST_GROUPS, 4
FEW_DRAWS = {"policy": {"draws": {"count": 2, "first": 0, "last": 4}}}
SMALLER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("awm", "crd", "dgpo_direct", "diffusion_nft", "marble"), FEW_DRAWS),
    "tempflow_grpo": {"training": {"group_size": 6}, "policy": {"train_steps": {"branches": 2}}},
    "mix_grpo": {"policy": {"steps": 6}},
    "uniref_image_edit_msgrpo": {"policy": {"steps": 10}},  # its noise outruns every one of 4 steps
    "mix_grpo_flash": {"policy": {"steps": 6}},
    "euphonium": {"policy": {"push": {"first": 1}}},
    "branchgrpo": {"rollout": [{"name": "branching", "at": [1, 2]}]},
    "branchgrpo_mix": {
        "rollout": [{"name": "branching", "at": [1, 2]}],
        "policy": {"train_steps": {"size": 1, "high": 1, "also": [0, 1, 2]}},
    },
    "flow_grpo_fast": {"policy": {"train_steps": {"size": 2, "high": 3}}},
    "essa": {"learner": {"population": 4}},
    "riskpo": {"training": {"prompts_per_step": 5}},
    "mc_grpo": {"training": {"group_size": 5}},
    "spo_single_stream": {"training": {"group_size": 1, "prompts_per_step": 8}},
    "secrets_of_rlhf_ii": {"policy": {"max_new_tokens": 24}},  # answers of the data set are never cut
    "xrpo": {"rollout": [{"name": "xrpo_allocator", "average": 4, "rounds": 3, "seeds": 2}]},
}
"""Where a method's own sizes leave no room for ours."""


def pairs(only: list[str] | None = None) -> list[tuple[str, str]]:
    """Every recipe with every modality it names."""
    return [(name, m) for name in only or recipe_names() for m in load_recipe(name).modalities]


@cache
def prompts_of(modality: str) -> list:
    """Prompts of the modality's world, opened once a process."""
    world, _ = MODELS[modality]
    return [toys.with_columns(p, i) for i, p in enumerate(open_prompts(world, DataConfig()))]


def configured(recipe: str, modality: str, folder: str) -> tuple[Any, list[str]]:
    """The run of a pair, and the toys it was given."""
    known = load_recipe(recipe)
    strategies = Nested.of(known.rollout)
    kind = policy_class(modality)
    kept = kind.columns_of(read_section(kind.config_type, merge(kind.least, known.policy), "policy"))
    made = {
        *strategies.makes,
        *kept,
        *kind.earned,
        *(name for reward in known.rewards for name in reward.get("columns", ())),
    }
    made |= set(made_by(environment_of(known.environment).state)) if known.environment else set()
    waits = [n for n in strategies.reads(Objective.of(known.objective).columns) if COLUMNS[n].makers and n not in made]
    values, given = toys.toys(recipe, waits)
    values |= {"rewards": toys.STRETCHES} if kind.earned else {}
    _, policy = MODELS[modality]
    policy = policy if "writer" in policy else {"model": f"asset:tiny_{modality}", **policy}
    sizes = {
        "training": {"steps": 2, "prompts_per_step": PROMPTS, "group_size": GROUP, "learning_rate": 1e-3,
                     "micro_batch_size": 64, "save_every": 0},
        "policy": policy,
        "run_dir": folder, "recipe": recipe, "data": {"workers": 0},
    }  # fmt: skip
    values = merge(merge(sizes, values), SMALLER.get(recipe, {}))
    if recipe in toys.TAUGHT:
        values["policy"]["teacher"] = {"adapter": toys.adapter(modality, folder + "-adapter")}
        given.append("policy.teacher: the model two steps further")
    if recipe in toys.ADAPTED:
        values["policy"]["adapter"] = toys.adapter(modality, folder + "-adapter")
        given.append("policy.adapter: of two steps")
    if (recipe, modality) in toys.PAINTED:
        values["policy"] = toys.painter(folder + "-painter")
        values["rewards"] = [{"name": f"{toys.__file__}:light", "isolated": False}]
        given.append("policy.class: a tiny Janus writes pictures, which a reward of their light judges")
    if recipe in toys.STORED:
        made = toys.pictures(folder + "-pictures", MODELS[modality][0], GROUP, 16)
        values["rollout"] = [{"name": "stored_outputs", "folders": [made]}]
        given.append(f"rollout.stored_outputs.folders: {GROUP} pictures of each prompt, by the model before training")
    if recipe in toys.FUNCTIONAL:
        texts = toys.FUNCTIONAL[recipe]
        values["policy"]["model"] = toys.with_tokens(modality, texts, folder + "-adapter")
        known_credit = known.objective["credit"][0]
        values["objective"] = {"credit": [{**known_credit, "tokens": texts}]}
        given.append("objective.credit.0.tokens: texts of tokens that the checkpoint in policy.model has")
    if recipe in toys.SERVED:
        values["rollout"] = [{**known.rollout[0], "url": toys.data_server()}]
        given.append("rollout.syn_grpo.url: a data server that puts pictures into new surroundings")
    changes = [f"{key}={json.dumps(value)}" for key, value in {**toys.SET, **toys.PUSHED}.get(recipe, {}).items()]
    return read_config(values, changes, modality), given


def run_pair(recipe: str, modality: str) -> dict[str, Any]:
    """One row of the table. A refusal is the one line that a user would read; anything else is a fault."""
    paper = load_recipe(recipe).updates
    row: dict[str, Any] = {"recipe": recipe, "modality": modality, "trains": False, "reason": "", "seconds": 0.0,
                           "paper": [paper.count, paper.epochs], "run": [], "acted": [], "toys": []}  # fmt: skip
    folder = tempfile.mkdtemp(prefix="recipe-")
    metrics: list[dict[str, Any]] = []
    start = time.process_time()
    try:
        if modality not in MODALITIES:
            read_config({"recipe": recipe}, (), modality)
        prompts = prompts_of("flow" if (recipe, modality) in toys.PAINTED else modality)
        prompts = [toys.with_boxes(p) for p in prompts] if recipe in toys.BOXED else prompts
        start = time.process_time()
        config, row["toys"] = configured(recipe, modality, folder)
        row["note"] = "" if config.learner == GRADIENT else "no gradient: it ran; what it learned is not judged"
        row["run"] = [config.training.updates_per_epoch, config.training.epochs]
        train(config, prompts=prompts, report=lambda step, values: metrics.append(values))
        row["reason"] = problem_of(metrics, config.learner)
        row["acted"] = [s for s in ("ratio", "trust_region") if any(m.get(f"{s}/acted") for m in metrics)]
    except MMRLError as error:
        row["reason"] = str(error)
    except Exception as error:
        row["reason"] = f"fault: {type(error).__name__}: {error}".replace("\n", " ")
    finally:
        for left in (folder, folder + "-adapter", folder + "-pictures", folder + "-painter"):
            shutil.rmtree(left, ignore_errors=True)
    row["trains"] = not row["reason"]
    row["seconds"] = round(time.process_time() - start, 2)
    return row


def problem_of(metrics: list[dict[str, Any]], learner: Any = GRADIENT) -> str:
    """Why two steps were not a training; "" if they were. Of a learner without a gradient that it ran and
    was judged is all that is asked."""
    if learner != GRADIENT:
        rewards = [m["reward/mean"] for m in metrics]
        return "" if len(rewards) == 2 and all(map(math.isfinite, rewards)) else f"fault: rewards {rewards}"
    norms = [m["gradient_norm"] for m in metrics]
    if len(norms) != 2 or not all(map(math.isfinite, norms)):
        return f"fault: gradient norms {norms}"
    if not any(norms) or not any(m["update/moved_fraction"] for m in metrics):
        return f"fault: nothing moved, gradient norms {norms}"
    return ""


def _start_worker() -> None:
    torch.set_num_threads(1)
    quiet_libraries()


def run_all(chosen: list[tuple[str, str]], jobs: int) -> list[dict[str, Any]]:
    """Rows in the order of `chosen`, each printed as it comes."""
    rows = {}
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker) as pool:
        for done in as_completed([pool.submit(run_pair, *pair) for pair in chosen]):
            row = done.result()
            rows[row["recipe"], row["modality"]] = row
            said = f"{row['seconds']:5.1f} s" if row["trains"] else row["reason"]
            print(f"{row['recipe']:30} {row['modality']:7} {said}", flush=True)
    return [rows[pair] for pair in chosen]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="these recipes; the others keep their rows")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args(arguments)
    rows = run_all(pairs(chosen.only), chosen.jobs)
    trained = {row["recipe"] for row in rows if row["trains"]}
    faults = [row for row in rows if row["reason"].startswith("fault")]
    seconds = [row["seconds"] for row in rows if row["trains"]]
    print(
        f"{len(trained)} of {len({r['recipe'] for r in rows})} recipes train, in {len(seconds)} of {len(rows)} pairs; "
        f"{median(seconds or [0]):.1f} s of processor time a pair; " + str(dict(Counter(r["modality"] for r in rows)))
    )
    known = json.loads(RESULTS.read_text()) if chosen.only and RESULTS.is_file() else []
    table = {(row["recipe"], row["modality"]): row for row in (*known, *rows)}
    kept = [table[pair] for pair in pairs() if pair in table]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
    print("written: docs/recipes.json; `make docs` puts it into the pages")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
