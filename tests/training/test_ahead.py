"""Rollouts that an engine writes while earlier steps train: how old they are, and what a resume makes of them."""

from __future__ import annotations

import threading

import pytest

from mmrl.errors import ConfigError
from mmrl.rollout.environments.base import Here
from mmrl.training.tracking import read_metrics
from tests.policies.language.engines.test_engine_turns import TURNS
from tests.policies.language.engines.test_engines import OWN, trainer_of
from tests.policies.language.test_turns import two_pictures
from tests.training.tiny import make_policy

MORE = """
from mmrl.rollout.plan import Ask, Plan, Strategy
from mmrl.stages import stage

@stage("rollout", "more_members", paper="-", formula="-", confidence="ours")
class More(Strategy):
    def join(self, batch, step):
        return Plan([Ask(2, group=g) for g in range(len(step.groups))]) if step.round == 1 else None
"""


@pytest.fixture
def engine(tmp_path):
    (tmp_path / "engines.py").write_text(OWN + TURNS + MORE)
    return f"{tmp_path}/engines.py:Apart"


def metrics_of(folder, engine, policy=None, **changes):
    trainer = trainer_of(
        folder, make_policy(engine=engine, **(policy or {})), **{"steps": 6, "check_every": 0, **changes}
    )
    trainer.train()
    return read_metrics(folder / "metrics.jsonl")


def numbers(metrics):
    """What a step came to, without how long it took."""
    kept = ("reward/", "length/", "gradient_norm", "ratio/", "trust_region/")
    return [{k: v for k, v in m.items() if k.startswith(kept)} for m in metrics]


class TestAge:
    @pytest.mark.parametrize(
        ("changes", "ages"),
        [
            ({"ahead": 0}, [None] * 6),
            ({"ahead": 1}, [0, 1, 1, 1, 1, 1]),
            ({"ahead": 2}, [0, 1, 2, 2, 2, 2]),
            ({"ahead": 2, "check_every": 4}, [0, 1, 2, 2, 0, 1]),
            ({"ahead": 1, "updates": {"count": 2}}, [0, 2, 2, 2, 2, 2]),
        ],
    )
    def test_is_bounded_and_shown(self, tmp_path, engine, changes, ages):
        """In optimizer steps. A step that is checked starts with rows of the present weights, and passes."""
        metrics = metrics_of(tmp_path / "run", engine, **changes)
        assert [m.get("ahead/staleness_max") for m in metrics] == ages
        assert [m.get("ahead/staleness_mean") for m in metrics] == ages
        assert all(m["engine/gap_max"] < 1e-4 for m in metrics if "engine/gap_max" in m)

    def test_zero_is_the_loop_without_it(self, tmp_path, engine):
        assert numbers(metrics_of(tmp_path / "a", engine, ahead=0)) == numbers(metrics_of(tmp_path / "b", engine))

    def test_of_weights_that_stand_still_changes_nothing(self, tmp_path, engine):
        still = numbers(metrics_of(tmp_path / "now", engine, learning_rate=0.0))
        assert numbers(metrics_of(tmp_path / "ahead", engine, learning_rate=0.0, ahead=2)) == still

    def test_writes_while_the_step_before_trains(self, tmp_path, engine):
        """The engine holds back the rows of step 2 until step 1 updates: one after the other would never end."""
        trainer = trainer_of(tmp_path / "run", make_policy(engine=engine), steps=2, ahead=1)
        updating, write, update = threading.Event(), trainer.policy.bridge.engine.write, trainer.update
        calls = []

        def held(*given):
            calls.append(threading.current_thread().name)
            assert len(calls) == 1 or updating.wait(60)
            return write(*given)

        def seen(*given):
            updating.set()
            update(*given)

        trainer.policy.bridge.engine.write, trainer.update = held, seen
        trainer.train()
        assert trainer.step == 2 and len(calls) == 2 and all(name.startswith("engine") for name in calls)


class TestResume:
    def test_asks_again_for_what_was_in_flight_and_says_so(self, tmp_path, engine, capsys):
        """The same prompts in the same order, none lost; rows are those of the checkpoint's weights."""
        whole = trainer_of(tmp_path / "whole", make_policy(engine=engine), steps=6, ahead=2, check_every=0)
        part = trainer_of(tmp_path / "part", make_policy(engine=engine), steps=6, ahead=2, check_every=0)
        shown = {id(whole): [], id(part): []}
        for trainer in (whole, part):
            collect = trainer.collector.collect
            trainer.collector.collect = lambda n, t=trainer, c=collect: shown[id(t)].append(c(n)) or shown[id(t)][-1]
        whole.train()
        part.report = lambda step, metrics: setattr(part.stopping, "asked", 2) if step == 3 else None
        part.train()
        assert part.step == 3 and "lost" not in capsys.readouterr().err
        rest = trainer_of(tmp_path / "part", make_policy(engine=engine), steps=6, ahead=2, check_every=0)
        seen, collect = [], rest.collector.collect
        rest.collector.collect = lambda n: seen.append(collect(n)) or seen[-1]
        rest.train(tmp_path / "part" / "checkpoints" / "step-000003")
        assert "rollouts of step 4, 5 were being written and are lost" in capsys.readouterr().err
        drawn = [c.indices for c in shown[id(part)] + seen]
        assert drawn == [c.indices for c in shown[id(whole)]]
        assert [int(c.rollouts.replay["version"].max()) for c in seen] == [3, 3, 3]


class TestRefusals:
    def test_without_an_engine_of_its_own(self, tmp_path):
        with pytest.raises(ConfigError, match=r"training\.ahead=1: the policy writes its responses itself"):
            trainer_of(tmp_path / "run", make_policy(), ahead=1)

    def test_under_a_strategy_with_one_step_in_mind(self, tmp_path, engine):
        with pytest.raises(ConfigError, match="rollout treepo goes on from a first round of its own"):
            trainer_of(tmp_path / "run", make_policy(engine=engine), rollout="treepo", ahead=1)


class TestStrategies:
    """What they ask first is written ahead; what they ask for having seen it, in the step itself."""

    @pytest.mark.parametrize("rollout", ["drive_budget", "dynamic_sampling"])
    def test_of_weights_that_stand_still_changes_nothing(self, tmp_path, engine, rollout):
        changes = {"learning_rate": 0.0, "rollout": rollout, "steps": 4}
        still = metrics_of(tmp_path / "now", engine, **changes)
        ahead = metrics_of(tmp_path / "ahead", engine, ahead=2, **changes)
        assert numbers(ahead) == numbers(still)
        assert [m["rollouts"] for m in ahead] == [m["rollouts"] for m in still]

    def test_rows_of_a_later_round_are_of_its_weights(self, tmp_path, engine):
        """Two more members of every group, once it is scored: their age is 0."""
        trainer = trainer_of(tmp_path / "run", make_policy(engine=engine), rollout=f"{tmp_path}/engines.py:More",
                             steps=4, ahead=1, check_every=0)  # fmt: skip
        seen, collect = [], trainer.collector.collect
        trainer.collector.collect = lambda n: seen.append(collect(n)) or seen[-1]
        trainer.train()
        for step, collected in enumerate(seen):
            later = collected.rollouts.member >= 4
            versions = collected.rollouts.replay["version"]
            assert later.sum() == 8 and set(versions[later].tolist()) == {step}
            assert set(versions[~later].tolist()) == {max(step - 1, 0)}


class TestEnvironments:
    def test_conversations_are_had_ahead(self, tmp_path, engine):
        """With weights that stand still the same ones, bit for bit; else they are as old as any rows."""
        talks = engine.replace("Apart", "Talks")
        surroundings = {"environment": Here(two_pictures()), "steps": 4}
        stops = {"stop_tokens": list(range(0, 1200, 2))}
        still = metrics_of(tmp_path / "now", talks, learning_rate=0.0, policy=stops, **surroundings)
        ahead = metrics_of(tmp_path / "ahead", talks, learning_rate=0.0, policy=stops, ahead=2, **surroundings)
        assert numbers(ahead) == numbers(still) and all(m["environment/calls_per_row"] > 0 for m in still)
        moved = metrics_of(tmp_path / "moved", talks, policy=stops, ahead=1, **surroundings)
        assert [m["ahead/staleness_max"] for m in moved] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("recipe", "changes"), [("vcpo", {"advantage": "grpo"}), ("minirl_stabilising", {})], ids=["vcpo", "minirl"]
)
def test_corrections_read_the_weights_that_wrote(tmp_path, engine, recipe, changes):
    """With old_log_probs: trainer, older weights are the difference between the two log-probs. vcpo's own baseline
    reads a column that nobody makes; its importance weights and its step size by effective samples need none."""
    policy = make_policy(engine=engine, old_log_probs="trainer")
    trainer = trainer_of(tmp_path / "run", policy, recipe, changes, steps=4, ahead=2, check_every=0, learning_rate=1e-2)
    trainer.train()
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert metrics[0]["engine/gap_max"] < 1e-4 < 1e-3 < metrics[2]["engine/gap_max"]
