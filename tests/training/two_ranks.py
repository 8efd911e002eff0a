"""Run by `accelerate launch`: short trainings, their metrics and weights written by the main process."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmrl.data.ahead import Ahead
from mmrl.objective import Objective
from mmrl.policies.base import Policy
from mmrl.policies.joint.policy import JointPolicy
from mmrl.policies.sharding import is_sharded
from mmrl.record import Prompt, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import make_accelerator
from mmrl.training.tracking import JsonLines
from mmrl.training.trainer import Trainer
from tests.policies.generation.tiny import captions, flow_policy
from tests.policies.language.engines.test_engines import OWN
from tests.policies.masked.test_policy import policy as written_policy
from tests.policies.pictures.tiny import picture_policy
from tests.training.tiny import make_policy, make_prompts, score_vowels

OBJECTIVES = {
    "grpo": {},
    "durian": {"advantage": "durian"},
    "batch_quantile": {"credit": ["80_20_forking_tokens"]},
    "delta": {"credit": ["delta"]},
    "refills": {"group": ["dynamic_sampling"], "regularizers": [{"name": "entropy_bonus", "coefficient": 0.01}]},
    "refills_early": {"group": ["dynamic_sampling"], "shaping": ["kl_in_reward"]},
    "helped": {},
    "deepsearch": {"advantage": "deepsearch"},
    "supo": {"advantage": "supo"},
    "m_grpo": {"advantage": "m_grpo"},
    "ssb": {"regularizers": [{"name": "nll", "rows": "expert", "coefficient": 1.0}]},
    "refine": {"shaping": ["refine"], "advantage": {"name": "grpo", "ddof": 0}, "credit": ["refine"],
               "regularizers": [{"name": "nll", "rows": "expert", "coefficient": 1.0}]},
    "ahead": {},
    "vppo": {"credit": ["vppo"], "regularizers": [{"name": "kl", "coefficient": 0.1}]},
    "marble": {
        "advantage": {"name": "marble", "every": 2}, "matching_objective": "diffusion_nft",
        "aggregation": "sequence_mean",
        "regularizers": [{"name": "velocity_kl", "to": "reference", "coefficient": 0.5}],
    },
    "joint": {
        "advantage": "interleaved_grpo", "aggregation": "sequence_mean",
        "kinds": {"tokens": {"regularizers": [{"name": "kl", "coefficient": 0.1}]}, "transition": {"coefficient": 0.5}},
    },
    "janus": {},
    "sharded": {"regularizers": [{"name": "entropy_bonus", "coefficient": 0.01}]},
}  # fmt: skip
"""`marble`: a generator whose first optimizer step combines two rewards' gradients, and whose second mixes them.
`joint`: words and pictures of two models, `janus`: pictures token by token. `sharded`: FSDP2, as accelerate prepares
it. The last one: an accelerator shards from then on."""

ROLLOUTS = {
    "refills": ["dynamic_sampling"],
    "refills_early": ["dynamic_sampling"],
    "helped": [{"name": "replay", "least": 0.0}, "sage"],
    "deepsearch": [{"name": "deepsearch", "segment": 2, "width": 2, "solved": 0.9}],
    "supo": [{"name": "supo", "summaries": 2}],
    "m_grpo": [{"name": "m_grpo", "begin": "a", "end": "e", "turns": 2}],
    "ssb": ["ssb"],
    "refine": [{"name": "refine", "chunks": 3}],
}
"""`helped`: hints written on one rank and heard on all, and a buffer that all ranks share. The five after it ask in
rounds that depend on what was written: tree search, summaries, assistants, solutions, and texts gone on with."""


def score_some(outputs, prompts) -> Scores:
    """A third of the prompts has groups that are all alike, so that a step asks for one more, or for two."""
    scores = score_vowels(outputs, prompts)
    scores.reward[torch.tensor([int(p.id[1:]) % 3 == 0 for p in prompts])] = 1.0
    return replace(scores, success=torch.full_like(scores.reward, float("nan")))


def score_fewer(outputs, prompts) -> Scores:
    """A third of the prompts is never solved."""
    scores = score_vowels(outputs, prompts)
    scores.reward[torch.tensor([int(p.id.partition("+")[0][1:]) % 3 == 0 for p in prompts])] = 0.0
    return replace(scores, success=torch.full_like(scores.reward, float("nan")))


def engine(out: Path) -> str:
    """One with a model of its own on each rank, which writes while they train."""
    path = out / f"engines_{os.environ.get('RANK', 0)}.py"
    path.write_text(OWN)
    return f"{path}:Apart"


def score_colors(outputs, prompts) -> Scores:
    """How red a picture is, and how little of it is green: two rewards that do not agree."""
    pixels = [np.asarray(each.convert("RGB"), dtype=np.float32) / 255 for each in outputs]
    red, green = (torch.tensor([float(each[..., channel].mean()) for each in pixels]) for channel in (0, 1))
    reward = red - green
    return Scores({"red": red, "green": -green}, reward, torch.full_like(reward, float("nan")))


def score_letter(outputs, prompts) -> Scores:
    """1 for an answer with an "a" in it: most groups hold both."""
    reward = torch.tensor([float("a" in output) for output in outputs])
    return Scores({"letter": reward}, reward, reward.clone())


def score_both(outputs, prompts) -> Scores:
    """Words by their vowels, pictures by their colors, and what each of the two stretches earned."""
    words = score_vowels([told.text for told in outputs], prompts).reward
    reds = score_colors([told.picture for told in outputs], prompts).reward
    earned = [[[0, 1, a], [1, 2, b]] for a, b in zip(words.tolist(), reds.tolist(), strict=True)]
    scores = Scores({"words": words, "reds": reds}, words + reds, torch.full_like(words, float("nan")))
    return replace(scores, columns={"action_reward": earned})


SCORES = {
    "helped": score_fewer, "marble": score_colors, "refills": score_some, "refills_early": score_some,
    "deepsearch": score_letter, "ssb": score_letter, "joint": score_both, "janus": score_colors,
}  # fmt: skip


FAINT = {"marble": 1e-4, "janus": 1e-4, "joint": 1e-6}


def prompts_of(name: str, count: int) -> list[Prompt]:
    if name not in ("marble", "joint", "janus"):
        return make_prompts(count)
    return [replace(captions(3)[i % 3], id=f"p{i}") for i in range(count)]


def policy_of(name: str, out: Path) -> Policy:
    if name == "ahead":
        return make_policy(engine=engine(out))
    if name == "sharded":
        return make_policy(gradient_checkpointing=True)
    lora = {"rank": 4, "alpha": 8}
    if name == "janus":
        return picture_policy(guidance_scale=2.0)
    if name == "joint":
        words = written_policy(surrogate="one_step", lora={"rank": 4}, max_new_tokens=4)
        return JointPolicy(words, flow_policy(lora=lora, steps=3, eval_steps=2))
    if name != "marble":
        return make_policy()
    return flow_policy(likelihood="matching", draws={"count": 2}, anchor={}, lora=lora, eval_steps=2)


def main(out: Path, name: str) -> None:
    torch.set_num_threads(1)
    updates = {"count": 2, "epochs": 2} if name == "vppo" else "auto"
    sizes: dict[str, Any] = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "micro_batch_size": 4}
    if name in (*FAINT,):  # AdamW moves a weight by its gradient's sign, which of one that is nearly 0 is rounding
        sizes["epsilon"] = FAINT[name]
    written = {"ahead": 1, "check_every": 0} if name == "ahead" else {}
    config = TrainingConfig(**sizes, learning_rate=1e-3, updates=updates, **written)
    accelerator = make_accelerator("fsdp2" if name == "sharded" else "launcher")
    out.mkdir(parents=True, exist_ok=True)
    (out / "world.txt").write_text(str(accelerator.num_processes))
    trackers = [JsonLines(out / "metrics.jsonl")] if accelerator.is_main_process else []
    prompts = prompts_of(name, 4 if name == "delta" else 8)  # 4: the second step asks all again, and balances ranks
    for prompt in prompts:
        prompt.columns["demonstrations"] = "a red" if name == "refine" else "a worked solution"
    if accelerator.num_processes > 1:  # each rank prepares its share ahead, which changes nothing either
        prompts = Ahead(prompts, workers=1)
    score = SCORES.get(name, score_vowels)
    rollout = ROLLOUTS.get(name, [])
    trainer = Trainer(
        policy_of(name, out), Objective.of(OBJECTIVES[name]), prompts, score, config, out, rollout=rollout,
        eval_prompts=prompts_of(name, 5), accelerator=accelerator, trackers=trackers,
    )  # fmt: skip
    trainer.train()
    assert is_sharded(trainer.policy.module) is (name == "sharded" and accelerator.num_processes > 1)
    balanced = trainer.collector.balance
    assert name != "delta" or accelerator.num_processes == 1 or len(balanced.tokens) == 4
    state = trainer.policy.trainable_state()
    if accelerator.is_main_process:
        save_file({k: v.contiguous() for k, v in state.items()}, out / "weights.safetensors")


if __name__ == "__main__":
    for objective in OBJECTIVES:
        main(Path(sys.argv[1]) / objective, objective)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
