"""Declared toy data: what stands in for a maker or for data that a recipe waits for, so that it can be trained.

Each toy says what it is for; a recipe that needs one is marked so in docs/recipes.md. Nothing here is learned from:
these runs ask whether every part of a recipe meets the others, not whether it helps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mmrl.columns import COLUMNS, DATA, REWARD, STRATEGY
from mmrl.record import Prompt


def bright(x: Any, t: Any, prompts: Sequence[str]) -> Any:
    """A process reward that likes large latents, so that its gradient is the state."""
    return x.flatten(1).square().mean(1)


SHARES = (0.0, 0.5, 1.0)
"""Where the toy segments of an output begin and end: two turns of the same length."""


def right(completions: Sequence[Any]) -> list[float]:
    """Right about every other time, so that every group has a signal, whatever a tiny model answers."""
    return [float((i + i // 11) % 2) for i in range(len(completions))]


def part(completions: Sequence[Any], *, shift: int = 0) -> list[float]:
    """A second reward that disagrees with the first, on a scale of 0 to 1."""
    return [((i + shift) % 3) / 2 for i in range(len(completions))]


def made(completions: Sequence[Any], *, columns: Mapping[str, Any] = {}) -> list[dict[str, Any]]:
    """Columns, by the shape they have: a number, or a number for each half of the output.

    columns  {name: numbers}: of the two halves of an answer, or of rows in turn
    """
    rows = []
    for i, text in enumerate(completions):
        ends = [round(share * len(text)) for share in SHARES]
        row: dict[str, Any] = {"toy": 0.0}
        for name, numbers in columns.items():
            values = numbers[::-1] if name in VARIED and (i + i // 11) % 2 else numbers
            spans = [[a, b, v] for a, b, v in zip(ends, ends[1:], values, strict=False) if a < b]
            row[name] = spans if COLUMNS[name].per_action else values[i % len(values)]
        rows.append(row)
    return rows


VARIED = {"action_reward", "choice", "belief_reward", "values"}
"""Columns in which right answers differ from wrong ones."""

COLUMN_VALUES: dict[str, list[float]] = {
    "segment": [0, 1],
    "state": [1, 2],
    "tag": [0, 1],
    "choice": [0, 1],
    "action_reward": [0.25, 1],
    "belief": [1, 2],
    "belief_reward": [0.5, 1],
    "flagged_tokens": [1, 0],
    "values": [0.3, 0.6],
    "expert_log_probs": [-1, -2],
    "bare_log_probs": [-3, -2],
    "sampler_log_probs": [-3, -3.5],
    "hint": [1, 2, 1, 2],
    "answer": [1, 2, 1, 1],
}
"""Columns that a toy reward returns, for makers of every kind but the two below."""

PARTS = {
    "arm_ada_grpo": ["format_label"],
    "carr_c_grpo": ["rubric"],
    "dr_irl_grpo_s": ["hardness", "gap"],
    "dynframe_sd_grpo": ["retrieval", "answer"],
    "datarus_r1": ["format"],
    "flowse_grpo": ["format"],
    "gdpo_decoupled": ["format"],
    "genrec_grpo_sr": ["relevance"],
    "lightningrl": ["tokens_per_forward"],
    "marble": ["format"],
    "prs_vspo": ["format"],
    "q_hawkeye": ["predicted_score"],
    "rubric_anchors": ["format"],
    "searchllm": ["format"],
    "secrets_of_rlhf_ii": ["second"],
}
"""Reward components that recipes read by name."""

TAUGHT = ("opd", "vopd", "teacher_answers")
"""Recipes that read a teacher: the model that ships, two steps further."""

ADAPTED = ("essa",)
"""Recipes that start from a trained adapter: of two steps."""


def adapter(modality: str, folder: str) -> str:
    """An adapter on the model that ships which two steps of GRPO have trained, as such a run leaves it in `folder`."""
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.run import train

    world, sampling = {
        "vlm": ("world:stills?split=train&size=8&difficulty=1", {}),
        "video": ("world:motion?split=train&size=8", {"sampling": {"fps": 4, "max_frames": 4}}),
    }[modality]
    section = {
        "recipe": "grpo", "run_dir": folder, "rewards": [{"name": f"{__file__}:right", "isolated": False}],
        "data": {"train": world, "workers": 0},
        "policy": {"model": f"asset:tiny_{modality}", "lora": {"rank": 2}, "max_new_tokens": 6, **sampling},
        "training": {"steps": 2, "prompts_per_step": 2, "group_size": 4, "learning_rate": 3e-3, "save_every": 2},
    }  # fmt: skip
    train(read_config(section, (), modality))
    return f"{folder}/checkpoints/step-000002/policy"


PAINTED = (("selftok", "vlm"),)
"""Recipes of policies that write pictures: a tiny Janus, built from its configuration, and a reward of its pictures."""


def light(completions: Sequence[Any]) -> list[float]:
    """Share of light of each picture."""
    from PIL import ImageStat

    return [sum(ImageStat.Stat(picture).mean) / (3 * 255) for picture in completions]


def painter(folder: str) -> dict[str, Any]:
    """The policy section."""
    from tests.policies.pictures.tiny import saved

    return {"class": "mmrl.policies.pictures.policy:JanusPolicy", "model": saved(Path(folder)), "guidance_scale": 2.0}


STRETCHES = [
    {"name": f"{__file__}:right", "label": "accuracy", "of": "text", "isolated": False},
    {"name": f"{__file__}:light", "of": "picture", "isolated": False},
]
"""Of rows that write and paint: a reward of each stretch."""

STORED = ("gdro_offline",)
"""Recipes that train on pictures made before: as `mmrl sample` leaves them."""


def pictures(folder: str, world: str, group: int, prompts: int) -> str:
    from mmrl.pipelines.sample import sample_run

    changes = [f"data.train={world}", "data.eval=null", "recipe=gdro", "policy.eval_steps=2"]
    return str(sample_run("flow", Path(folder), prompts, group, ["demo", *changes]))


SERVED = ("syn_grpo",)
"""Recipes that draw new pictures at a data server."""


BOXED = ("dino_r1_grqo",)
"""Recipes whose own reward reads boxes, as the data of such a run has them."""


def with_boxes(prompt: Prompt) -> Prompt:
    return replace(prompt, columns={**prompt.columns, "solution": [[0, 0, 8, 8], [8, 8, 16, 16]], "task": "boxes"})


@cache
def data_server() -> str:
    """The address of one that runs in a thread of this process."""
    from threading import Thread

    from mmrl.rollout.synthesis.server import SampleServer
    from mmrl.rollout.synthesis.surround import surround

    server = SampleServer(surround, port=0)
    Thread(target=server.serve_forever, daemon=True).start()
    return server.url


FUNCTIONAL = {"atlas_la_grpo": ["<|Line|>", "<|Region|>"]}
"""Recipes that name tokens which a checkpoint's tokenizer brings, by their texts."""


def with_tokens(modality: str, texts: list[str], folder: str) -> str:
    """The model that ships, with these texts as tokens of their own: a checkpoint as such a run starts from."""
    from mmrl.pipelines.config import read_config
    from mmrl.pipelines.run import build_policy

    policy = build_policy(read_config({"policy": {"model": f"asset:tiny_{modality}"}}, (), modality))
    policy.processor.tokenizer.add_tokens(texts, special_tokens=True)
    policy.inner.model.resize_token_embeddings(len(policy.processor.tokenizer), mean_resizing=False)
    policy.save_pretrained(folder)
    return folder


JUDGED = ("perceval",)
"""Recipes whose reward asks a process reward model."""


@cache
def process_judge() -> str:
    """The address of one that speaks the chat protocol and finds fault with the first words of every other answer."""
    import json
    import re
    from threading import Thread

    from mmrl.over_http import JsonServer

    def reply(body: Mapping[str, Any]) -> dict[str, Any]:
        asked = body["messages"][-1]["content"][-1]["text"]
        said = re.search(r"Response:\n(.*?)\n\nCompare", asked, re.DOTALL)
        named = [said[1][: len(said[1]) // 2]] if said and len(said[1]) % 2 else []
        return {"choices": [{"message": {"role": "assistant", "content": f"<answer>{json.dumps(named)}</answer>"}}]}

    server = JsonServer({"/v1/chat/completions": reply}, lambda: {}, host="127.0.0.1", port=0, key_env=None)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"{server.url}/v1"


SET = {
    "dynframe_sd_grpo": {"objective.credit.dynframe_sd_grpo.marker": [5]},
}
"""What a recipe leaves to the user because only the user knows it; tokens and addresses are named above."""

PUSHED = {"euphonium": {"policy.push.reward": f"{__file__}:bright"}}
"""Rewards of latent states, which such a run brings as every run brings rewards."""

ANSWERS = ["it is red", "three of them"]


def with_columns(prompt: Prompt, number: int) -> Prompt:
    """A prompt of a world, with the columns of a data set that brings demonstrations and reference values along."""
    added = {
        "demonstrations": ANSWERS[number % 2],
        "hint": "look again",
        "reference_value": 0.25 + 0.5 * (number % 2),
        "source": "ab"[number % 2],
        "rejected": ANSWERS[(number + 1) % 2],
        "labelled": bool(number % 2),
    }
    return replace(prompt, columns={**prompt.columns, **added})


def toys(recipe: str, waited_for: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration that gives a recipe the columns it waits for, and what was given, in words."""
    rewards: list[dict[str, Any]] = [{"name": f"{__file__}:right", "label": "accuracy", "isolated": False}]
    for shift, label in enumerate(PARTS.get(recipe, [])):
        options = {"shift": shift}
        rewards.append({"name": f"{__file__}:part", "label": label, "weight": 0.5, "isolated": False,
                        "options": options})  # fmt: skip
    values: dict[str, Any] = {"rewards": rewards}
    given = [f"reward {label}" for label in PARTS.get(recipe, [])] + [key for key in SET.get(recipe, {})]
    given += ["reward of latents" for _ in PUSHED.get(recipe, {})]
    if recipe in JUDGED:
        asked = {"url": process_judge(), "model": "local"}
        rewards.append({"name": recipe, "weight": 0, "columns": ["flagged_tokens"], "options": asked})
        given.append(f"rewards.{recipe}.options.url: a process reward model at an address of this machine")
    returned = {}
    for name in waited_for:
        makers = COLUMNS[name].makers
        if makers == (STRATEGY,) and name == "expert":
            values["rollout"] = ["demonstrations"]
            given.append("data column demonstrations, rollout demonstrations")
        elif DATA in makers:
            values["data"] = {"numbers": [name]}
            given.append(f"data column {name}")
        elif name in COLUMN_VALUES:
            returned[name] = COLUMN_VALUES[name]
            given.append(f"column {name}" + ("" if REWARD in makers else f" in place of its {makers[0]}"))
    if returned:
        rewards.append({"name": f"{__file__}:made", "weight": 0, "isolated": False, "columns": list(returned),
                        "options": {"columns": returned}})  # fmt: skip
    return values, given
