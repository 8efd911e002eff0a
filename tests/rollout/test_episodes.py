"""Episodes of several rows: answers that are summed up and go on, and a main agent with its assistants."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.advantages.episodes import m_grpo, sub_rewards, supo
from mmrl.objective.advantages.group import grpo
from mmrl.objective.episodes import episodes, last_parts, shared, with_any
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.rollout.hints import filled, with_text
from mmrl.rollout.m_grpo import RESULTS, MGrpo, kept_calls
from mmrl.rollout.proposing import asking
from mmrl.rollout.supo import CONTINUE, SUMMARISE, Supo
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import taught
from tests.rollout.plans import rows, step
from tests.training.tiny import make_prompts


def collected(policy, prompts, rollout, objective, score, folder, size=2):
    settings = TrainingConfig(steps=1, prompts_per_step=len(prompts), group_size=size, learning_rate=1e-3)
    trainer = Trainer(policy, Objective.of(objective), prompts, score, settings, folder, rollout=rollout)
    return trainer, trainer.collector.collect(0)


def of(rewards, episode, part, group=None, **columns):
    made = {"episode": torch.tensor(episode), "part": torch.tensor(part)}
    made |= {name: torch.tensor(values) for name, values in columns.items()}
    return rows(rewards, group or [0] * len(rewards), columns=made)


THREE = of([0.0, 0.0, 1.0, 0.0, 0.0], [-1.0, -1.0, 0.0, 0.0, -1.0], [0.0, 0.0, 1.0, 2.0, 0.0], [0, 0, 0, 0, 1])
"""Group 0: member 0 goes on as members 2 and 3; member 1 is alone. Group 1: one row."""


class TestEpisodes:
    def test_rows_know_theirs_and_groups_do_not_mix(self):
        key = episodes(THREE)
        assert key[0] == key[2] == key[3] and len({key[0].item(), key[1].item(), key[4].item()}) == 3
        assert last_parts(THREE, torch.ones(5, dtype=torch.bool)).tolist() == [False, True, False, True, True]
        assert with_any(torch.tensor([False, False, False, True, False]), THREE).tolist() == [
            True, False, True, True, False,
        ]  # fmt: skip
        values = torch.tensor([9.0, 2.0, 9.0, 3.0, float("nan")])
        assert shared(values, THREE, last_parts(THREE, torch.ones(5, dtype=torch.bool))).tolist() == [3, 2, 3, 3, 0]


class TestSupo:
    def test_pieces_share_the_advantage_and_the_baseline_is_over_episodes(self):
        """The spec's check: J = 3 rows of one advantage; statistics over G = 2 episodes, not over 4 rows."""
        counted = torch.tensor([False, True, False, True])
        batch = replace(of([0.0, 0.0, 0.0, 1.0], [-1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]), counted=counted)
        expected = [0.707106, -0.707106, 0.707106, 0.707106]
        assert supo(batch).tolist() == pytest.approx(expected, abs=1e-5)

    def test_whole_answers_get_what_grpo_gives(self):
        batch = of([0.0, 1.0, 1.0], [-1.0] * 3, [0.0] * 3)
        assert torch.allclose(supo(batch), grpo(batch))

    def test_cut_rows_are_summed_up_until_there_is_no_room(self):
        strategy = Supo(summaries=1)
        first = replace(of([0.0, 1.0], [-1.0, -1.0], [0.0, 0.0]), truncated=torch.tensor([True, False]))
        plan = strategy.join(first, step(1))
        assert [(a.note, a.columns) for a in plan.ask] == [((False, 0), {"episode": 0.0, "part": 1.0})]
        second = replace(
            of([0.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 1.0]), truncated=torch.tensor([True, False, False])
        )
        plan = strategy.join(second, step(2))
        assert [(a.note, a.columns) for a in plan.ask] == [((True, 2), {"episode": 0.0, "part": 2.0})]
        last = replace(
            of([0.0, 1.0, 0.0, 0.0], [-1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]),
            truncated=torch.tensor([True, False, False, True]),
        )
        plan = strategy.join(last, step(3))
        assert not plan.asks, "cut again, and its one summary is spent"
        assert plan.counted.tolist() == [False, True, False, True], "it is a wrong answer of the baseline"
        assert plan.trained.tolist() == [False, True, False, False], "and is masked"

    def test_what_was_written_is_shown(self):
        with pytest.raises(ConfigError, match=r"lacks \{summary\}"):
            Supo(go_on="nothing")

    def test_an_answer_that_does_not_fit_is_finished_and_all_its_pieces_learn(self, tmp_path):
        """One piece has room for six tokens. The answer needs seven: cut, summed up as "e", gone on with as "ae"."""
        (prompt,) = prompts = make_prompts(1)
        long, summary, end = "cdcdcd", "e", "ae"
        asked = with_text(prompt, filled(SUMMARISE, "supo", work=long), "work")
        next_ = with_text(prompt, filled(CONTINUE, "supo", summary=summary), "summary")
        pairs = [(prompt, long), (asked, summary), (next_, end), (next_, "dd")]
        policy = taught(pairs, weights=[1, 1, 0.5, 0.5], steps=40, endless=long)

        def score(outputs, prompts):
            reward = torch.tensor([float(o == end) for o in outputs])
            return Scores({"right": reward}, reward, reward.clone())

        recipe = load_recipe("supo")
        trainer, found = collected(policy, prompts, recipe.rollout, recipe.objective, score, tmp_path, size=4)
        outputs = list(zip(found.rollouts.columns["part"].tolist(), found.rollouts.outputs, strict=True))
        assert (0.0, long) in outputs and (1.0, summary) in outputs and (2.0, end) in outputs
        batch = found.batch
        finished = with_any((batch["part"] == 2) & (batch.reward == 1), batch)
        pieces = finished & (batch["part"] == 0)
        assert pieces.any() and batch.trained[pieces].all() and not batch.counted[pieces].any()
        assert len(set(supo(batch)[finished].tolist())) == 1 and batch.counted.sum() == 4, "four episodes"
        before = {k: v.clone() for k, v in policy.trainable_state().items()}
        trainer.train()
        assert any(not torch.equal(v, before[k]) for k, v in policy.trainable_state().items())


class TestMGrpo:
    def test_what_a_call_earns(self):
        """The spec's check: (malformed, right), (well, wrong), (well, right) = 0, .1, 1."""
        sub, success = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
        assert sub_rewards(sub, success, 0.1).tolist() == pytest.approx([0, 0.1, 1])

    def test_an_episode_trains_as_many_calls_as_it_may(self):
        """K = (1, 3), D = 2: min(K, D) calls each, whichever are drawn."""
        episode, call = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([True] * 4 + [False])
        keeps = [kept_calls(call, episode, 2, Key(seed)) for seed in range(20)]
        assert all(k[0] and k[1:4].sum() == 2 and not k[4] for k in keeps)
        assert len({tuple(k.tolist()) for k in keeps}) == 3, "every pair is drawn at times"

    def test_two_groups(self):
        """Episodes of reward 1 and 0; their calls earn 1 and .1, and are compared with each other alone."""
        batch = of(
            [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [-1.0, -1.0, 0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0],
            sub=[0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
        )  # fmt: skip
        batch = replace(batch, counted=torch.tensor([False] * 4 + [True] * 2))
        half = 0.5**0.5
        assert m_grpo(batch).tolist() == pytest.approx([half, -half, half, -half, half, -half], abs=1e-5)

    def test_calls_are_read(self):
        strategy = MGrpo(calls=2)
        assert strategy.tasks("a <call> x </call> b <call></call><call>y</call><call>z</call>") == ["x", "y"]
        with pytest.raises(ConfigError, match="two marks"):
            MGrpo(begin="")

    def test_calls_are_answered_and_both_agents_learn(self, tmp_path):
        """The main agent asks "a", its assistant says "e", and knowing that it answers "ae"; alone it never does."""
        (prompt,) = prompts = make_prompts(1)
        main, task, found_, end = "cad", "a", "e", "ae"
        call = asking(prompt, task, "call")
        results = with_text(prompt, filled(RESULTS, "m_grpo", work=main, results=f"1. {found_}"), "results")
        policy = taught(
            [(prompt, main), (prompt, "dd"), (call, found_), (results, end)], weights=[0.6, 0.4, 1, 1], steps=40
        )

        def score(outputs, prompts):
            reward = torch.tensor([float(o == end) for o in outputs])
            return Scores({"right": reward}, reward, reward.clone())

        recipe = load_recipe("m_grpo")
        rollout = [{"name": "m_grpo", "begin": "c", "end": "d"}]
        trainer, found = collected(policy, prompts, rollout, recipe.objective, score, tmp_path, size=6)
        batch = found.batch
        sub = batch["sub"] > 0
        assert sub.any() and (batch["part"] == 2).any() and not batch.counted[sub].any()
        solved = with_any(batch.counted & (batch.reward == 1), batch)
        advantage = m_grpo(batch)
        assert (advantage[solved & ~sub] > 0).all() and solved.any()
        assert batch.counted.sum() == 6, "an episode counts once, however many rows it has"
        texts = [str(found.rollouts.prompts[p].text) for p in found.rollouts.prompt[sub[found.mine]].tolist()]
        assert all(text == task for text in texts), "an assistant sees its task alone"
        before = {k: v.clone() for k, v in policy.trainable_state().items()}
        trainer.train()
        assert any(not torch.equal(v, before[k]) for k, v in policy.trainable_state().items())
