"""Masked diffusion language models from the command line: checked, planned, trained, sampled, evaluated."""

import json

import pytest
from typer.testing import CliRunner

from mmrl.data.worlds import open_world
from mmrl.pipelines.cli import app

SMALL = ["training.prompts_per_step=2", "training.group_size=4", "data.eval_limit=8", "training.save_rollouts_every=1"]


def mmrl(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_world_of_lists_says_what_it_asks():
    prompts = open_world("lists", size=60, difficulty=(1, 5))
    for prompt in (prompts[i] for i in range(60)):
        shown = [int(d) for d in prompt.text.partition(": ")[2].split()]
        orders = {"reverse": shown[::-1], "sort": sorted(shown), "rotate": [*shown[1:], shown[0]]}
        assert prompt.columns["solution"] == " ".join(map(str, orders[prompt.columns["skill"]]))
        assert len(shown) == prompt.columns["difficulty"] + 2


@pytest.mark.parametrize("recipe", ["justgrpo", "diffucoder_coupled_grpo"])
def test_a_run_trains_saves_and_is_evaluated(tmp_path, recipe):
    run = str(tmp_path / "run")
    mmrl("train", "masked", "demo", f"recipe={recipe}", f"run_dir={run}", "training.steps=2", *SMALL)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[-1]["rollouts"] == 8 and "eval/success" in lines[-1]
    scores = mmrl("evaluate", run)
    assert f"{lines[-1]['eval/success']:.3f}"[:4] in scores


OWN = """
from mmrl.policies.masked.likelihoods import Masked


class Halved(Masked):
    def score(self, work, predict, asked=()):
        scores = super().score(work, predict, asked)
        return scores | {"log_probs": scores["log_probs"] / 2}
"""


def test_a_likelihood_from_a_file_is_what_trains(tmp_path):
    """At ratio 1 half the log-prob has half the gradient, of the same rollouts."""
    (tmp_path / "own.py").write_text(OWN)

    def first_step(name: str, *changes: str) -> dict:
        run = tmp_path / name
        mmrl("train", "masked", "demo", f"run_dir={run}", "training.steps=1", *SMALL, "data.eval=null", *changes)
        return json.loads((run / "metrics.jsonl").read_text())

    plain, halved = first_step("plain"), first_step("halved", f"policy.likelihood={tmp_path}/own.py:Halved")
    assert halved["reward/mean"] == plain["reward/mean"] and plain["gradient_norm"] > 0
    assert halved["gradient_norm"] == pytest.approx(plain["gradient_norm"] / 2, rel=1e-4)


def test_plan_and_check_know_it():
    assert "0.5 M parameters" in mmrl("plan", "masked", "demo")
    assert "no problems" in mmrl("check", "masked", "demo", "data.limit=20", "data.eval_limit=20")
