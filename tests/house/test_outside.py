"""What a user brings from files of their own: nothing in mmrl changes for it, and a run goes on from anywhere."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrl import plugins
from mmrl.errors import ConfigError
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config

OWN = '''
import copy
from dataclasses import replace

from mmrl.policies.language.engines.base import EngineCapabilities
from mmrl.policies.language.engines.local import Local
from mmrl.policies.language.likelihoods.tokens import Tokens
from mmrl.policies.language.vision import VisionPolicy
from mmrl.rollout.environments.base import Done, Environment, Observation
from mmrl.rollout.plan import Ask, Plan, Strategy
from mmrl.stages import stage


@stage("credit", "outside_fading", paper="-", formula="A_t = A decay^t", confidence="ours")
def fading(advantage, batch, *, decay: float = 0.9):
    """Early tokens learn most."""
    place = (batch.mask.cumsum(1) - 1).clamp(min=0)
    return advantage * decay**place * batch.mask, batch.loss_mask


@stage("rollout", "outside_more", paper="-", formula="one more each", confidence="ours")
class More(Strategy):
    """One more member for every group."""

    def __init__(self, *, count: int = 1):
        self.count = count

    def join(self, batch, step):
        groups = sorted(set(batch.group.tolist()))
        return Plan([Ask(self.count, group=g) for g in groups]) if step.round == 1 else None


def vowels(completions):
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


class Mine(VisionPolicy):
    pass


def unregistered(advantage, batch):
    return advantage, batch.loss_mask


class Halved(Tokens):
    """Half of the log-prob, which sampling does not give."""

    sampled = False

    def score(self, work, predict, asked):
        scores = super().score(work, predict, asked)
        return scores | {"log_probs": scores["log_probs"] / 2}


class Apart:
    """An engine with a model of its own."""

    capabilities = EngineCapabilities(exact_log_probs=True, media=frozenset({"image"}))
    syncs = 0

    def __init__(self, setting):
        model = copy.deepcopy(setting.model())
        self.own = dict(model.model.named_parameters())
        self.local = Local(replace(setting, model=lambda: model))

    def write(self, contexts, budgets, draws):
        return self.local.write(contexts, budgets, draws)

    def sync(self, weights):
        type(self).syncs += 1
        for name, tensor in weights:
            self.own[name].data.copy_(tensor)


class Twice(Environment):
    """Asks once more."""

    columns = {"asked": 0.0}

    def __init__(self, *, max_turns: int = 3):
        self.max_turns = max_turns

    def reset(self, prompt):
        return []

    def step(self, state, output):
        state.append(output)
        return Observation.of("Again.") if len(state) < 2 else Done({"asked": 1.0})
'''
RECIPE = """
method: my_method
title: Mine
paper: an example
confidence: ours
summary: Fading credit, one more member.
modalities: [vlm]
rollout: ["own.py:More"]
objective:
  credit:
    - {name: "own.py:fading", decay: 0.5}
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 0, done.output
    return done.output


SMALL = [
    "training.prompts_per_step=2", "training.group_size=2", "policy.max_new_tokens=4", "data.eval=null",
    "training.save_every=1", "data.limit=8", "rewards=own.py:vowels", "policy.class=own.py:Mine",
]  # fmt: skip


def test_a_recipe_with_a_stage_a_strategy_a_reward_and_a_policy_of_one_s_own_trains_and_resumes(own, monkeypatch):
    run("train", "vlm", "demo", "recipe=mine.yaml", "run_dir=out", "training.steps=1", *SMALL)
    lines = [json.loads(line) for line in (own / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rollouts"] == 2 * 3 and lines[0]["reward/vowels/mean"] >= 0
    assert lines[0]["credit/outside_fading/reweighted"] >= 0
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    run("train", "vlm", "../out/config.yaml", "--resume", "../out", "run_dir=../out", "training.steps=2")
    assert len((own / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_strategy_an_environment_a_likelihood_an_engine_and_a_recipe_of_one_s_own_train(own):
    """Responses of several turns are the local engine's and `tokens`': the environment has a run by itself."""

    def first_step(name: str, *changes: str) -> dict:
        run("train", "vlm", "demo", "recipe=mine.yaml", f"run_dir={name}", "training.steps=1", *SMALL, *changes)
        return json.loads((own / name / "metrics.jsonl").read_text().splitlines()[0])

    plain = first_step("plain")
    halved = first_step("halved", "policy.likelihood=own.py:Halved")
    assert halved["gradient_norm"] == pytest.approx(plain["gradient_norm"] / 2, rel=1e-3), "the same rollouts"
    both = first_step("both", "policy.likelihood=own.py:Halved", "policy.engine=own.py:Apart")
    assert plugins.load(f"{own}/own.py:Apart", "engine").syncs
    assert both["gradient_norm"] == pytest.approx(halved["gradient_norm"], rel=1e-4), "the same numbers from elsewhere"
    turns = first_step("turns", "environment=own.py:Twice", "policy.max_new_tokens=16")
    assert turns["environment/calls_per_row"] > 0 and turns["rollouts"] == plain["rollouts"] == 2 * 3


def test_run_directories_are_named_by_the_recipe_and_not_by_its_path(own):
    assert read_config(None, ["recipe=mine.yaml"], "vlm").directory == Path("runs/vlm-mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("objective.credit=own.py:unregistered", "not registered for this stage: put @stage"),
        ("objective.credit=own.py:More", "it plays rollout"),
        ("objective.credit=own.py:fadin", "did you mean 'fading'"),
        ("rollout=gone.py:More", "no such file"),
        ("policy.class=own.py:fading", "expected file.py:Class of a mmrl.policies.base.Policy of modality 'vlm'"),
        ("policy.class=Mine", "expected file.py:Class"),
        ("recipe=gone.yaml", "no such file"),
    ],
)
def test_what_cannot_be_is_one_line(own, change, words):
    with pytest.raises(ConfigError, match=words) as error:
        check_config(read_config("demo", [change], "vlm"))
    assert "\n" not in str(error.value)


def test_installed_packages_bring_theirs_by_an_entry_point(own, monkeypatch):
    from importlib import metadata

    monkeypatch.syspath_prepend(str(own))
    (own / "a_package.py").write_text(OWN.replace("outside_", "installed_"))
    point = metadata.EntryPoint("theirs", "a_package", plugins.GROUP)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [point] if group == plugins.GROUP else [])
    monkeypatch.setattr(plugins, "_entered", False)
    plugins.enter()
    check_config(read_config("demo", ["objective.credit=installed_fading", "rollout=installed_more"], "vlm"))
    monkeypatch.setattr(plugins, "_entered", False)
    monkeypatch.setattr(
        plugins.metadata, "entry_points", lambda group: [metadata.EntryPoint("x", "no_such_module", group)]
    )
    with pytest.raises(ConfigError, match=r"plugin 'x' .no_such_module. cannot be imported"):
        plugins.enter()
