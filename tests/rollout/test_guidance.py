"""Groups that fail get help: hints, beginnings, explanations, teachers' and stored answers."""

from copy import deepcopy

import pytest
import torch

from mmrl.errors import ConfigError, DataError
from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.recipes import load_recipe
from mmrl.record import Batch, Prompt
from mmrl.rollout.ampo import Ampo, comprehension
from mmrl.rollout.ghpo import Ghpo, beginning
from mmrl.rollout.guide import Guide, replaced
from mmrl.rollout.hints import failed_groups, first_text, tells, with_text
from mmrl.rollout.igrpo import best_draft
from mmrl.rollout.offline_slot import OfflineSlot
from mmrl.rollout.sage import Sage, SageLight, next_level
from mmrl.rollout.scope import first_flagged
from mmrl.selection.prompts import unhelped
from mmrl.stages import Bound
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import RIGHT, hinted_prompts, score_right, taught_policy
from tests.rollout.plans import rows, step


@pytest.fixture(scope="module")
def taught():
    policy = taught_policy()
    return policy, {k: v.clone() for k, v in policy.trainable_state().items()}


@pytest.fixture
def policy(taught) -> VisionPolicy:
    """Answers wrongly unless its prompt holds more than the question."""
    made, state = taught
    made.load_trainable_state({k: v.clone() for k, v in state.items()})
    assert isinstance(made.config, LanguagePolicyConfig)
    return made


def trainer_of(policy, tmp_path, rollout, objective=None, prompts=None, score=score_right, **changes) -> Trainer:
    settings = {"steps": 1, "prompts_per_step": 2, "group_size": 4, "learning_rate": 3e-4, **changes}
    metrics: list[dict] = []
    made = Trainer(
        policy, Objective.of(deepcopy(objective or {})), prompts or hinted_prompts(2), score,
        TrainingConfig(**settings), tmp_path, rollout=rollout, report=lambda step, values: metrics.append(values),
    )  # fmt: skip
    made.reported = metrics
    return made


def levelled(levels: list[float], rewards: list[float], group: list[int]) -> Batch:
    return rows(rewards, group, columns={"hint": torch.tensor(levels)})


class TestHints:
    def test_a_group_fails_where_somebody_was_scored_and_nobody_right(self):
        nan = float("nan")
        assert failed_groups(rows([0, 0, 0, 1, nan, nan, 0, nan], [0, 0, 1, 1, 2, 2, 3, 3])) == [0, 3]

    def test_the_text_stands_behind_the_user_s_words_and_the_bare_prompt_beside(self):
        prompt = hinted_prompts(1)[0]
        shown = with_text(prompt, "Hint: red", "hint")
        assert shown.text.endswith("Hint: red") and shown.beside["bare"] is prompt and shown.images is prompt.images
        assert shown.id != prompt.id and shown.id != with_text(prompt, "Hint: blue", "hint").id
        assert shown.asks == prompt.id and "Hint" not in prompt.text
        plain = with_text(Prompt("a", [{"role": "user", "content": "Why?"}]), "So.", "hint")
        assert plain.messages[0]["content"] == "Why?\n\nSo."
        with pytest.raises(ConfigError, match="nothing of it is said by the user"):
            with_text(Prompt("a", [{"role": "system", "content": "Why?"}]), "So.", "hint")

    @pytest.mark.parametrize(
        ("text", "solution", "told"),
        [("It is RED, look", "red", True), ("a  big   dog", "Big dog", True), ("hundred", "red", False),
         ("about 12", 12, True), ("about 120", 12, False), ("anything", None, False)],
    )  # fmt: skip
    def test_a_hint_tells_the_answer_or_not(self, text, solution, told):
        assert tells(text, Prompt("a", [], columns={"solution": solution})) is told

    def test_columns_that_are_no_texts_are_refused(self):
        with pytest.raises(DataError, match="column 'hint': expected a text"):
            first_text(Prompt("a", [], columns={"hint": 3.5}), "hint")
        assert first_text(Prompt("a", [], columns={"hint": ""}), "hint") is None

    @pytest.mark.parametrize("name", ["guide", "ghpo", "sage", "hill", "igrpo", "expo", "fission_grpo", "privileged"])
    def test_a_template_without_its_field_is_refused(self, name):
        field = {"sage": "show", "hill": "show", "fission_grpo": "feedback"}.get(name, "template")
        with pytest.raises(ConfigError, match=r"lacks \{"):
            Bound.of("rollout", {"name": name, field: "nothing"})


class TestGuide:
    def test_hinted_members_take_the_places_of_as_many_wrong_ones(self):
        batch = levelled([0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1])
        assert replaced(batch, batch["hint"] > 0).tolist() == [False, False, True, True, True, True, True, True]

    def test_only_failed_groups_are_asked_and_only_once(self):
        guide, batch = Guide(), levelled([0] * 4, [0, 0, 1, 0], [0, 0, 1, 1])
        plan = guide.join(batch, step(1, size=4))
        assert [(a.group, a.count, a.trains) for a in plan.ask] == [(0, 2, "prompt")]
        assert not guide.join(batch, step(2, size=4)).asks

    def test_the_denominator_saw_the_hint_and_the_numerator_does_not(self, policy, tmp_path):
        rollouts = trainer_of(policy, tmp_path, ["guide"]).collector.collect(0).rollouts
        hinted = rollouts.columns["hint"] > 0
        assert hinted.sum() == 4 and all(rollouts.outputs[i] == RIGHT for i in hinted.nonzero().squeeze(1).tolist())
        bare = policy.evaluate(rollouts, ()).log_probs.sum(1)
        assert (bare[hinted] < rollouts.old_log_probs.sum(1)[hinted] - 1).all(), "unlikely without the hint"
        assert torch.allclose(bare[~hinted], rollouts.old_log_probs.sum(1)[~hinted], atol=1e-5)
        shown = [with_text(rollouts.prompts[p], "Hint: say ae", "hint") for p in rollouts.prompt[hinted].tolist()]
        told = policy.written(shown, [rollouts.outputs[i] for i in hinted.nonzero().squeeze(1).tolist()])
        assert torch.allclose(told.old_log_probs.sum(1), rollouts.old_log_probs.sum(1)[hinted], atol=1e-5)

    def test_a_flat_reward_gets_a_signal_and_is_learnt_without_the_hint(self, policy, taught, tmp_path):
        recipe = load_recipe("guide")
        plain = trainer_of(policy, tmp_path / "plain", [], steps=6, eval_every=6)
        plain.train()
        policy.load_trainable_state({k: v.clone() for k, v in taught[1].items()})
        guided = trainer_of(policy, tmp_path / "guided", recipe.rollout, recipe.objective, steps=6)
        guided.train()
        flat = [[m["signal/zero_variance_fraction"] for m in t.reported if "rollouts" in m] for t in (plain, guided)]
        assert min(flat[0]) == 1 and flat[1][:3] == [0, 0, 0], "no group has a signal; with hints every group has"
        bare = policy.rollout([r for r in _requests(hinted_prompts(2), 8)], guided.collector._step(9, _groups()).key)
        assert sum(o == RIGHT for o in bare.outputs) >= 8, "half of the answers without a hint are right"

    def test_rows_without_a_hint_keep_their_group_and_are_counted(self, policy, tmp_path):
        prompts = hinted_prompts(2)
        del prompts[0].columns["hint"]
        collected = trainer_of(policy, tmp_path, ["guide"], prompts=prompts).collector.collect(0)
        assert collected.not_shown == 2 and len(collected.rollouts) == 10 and collected.batch.trained.sum() == 8


def _requests(prompts, count):
    from mmrl.record import Request

    return [Request(p, count, group=i) for i, p in enumerate(prompts)]


def _groups():
    from mmrl.training.groups import Groups

    return Groups(0, 1)


class TestSamplers:
    def test_how_hard_a_prompt_is_is_what_the_policy_does_alone(self):
        helped = torch.tensor([False, False, True, True, False, False])
        counted = torch.tensor([False, False, True, True, True, False])
        batch = unhelped(rows([0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1], helped=helped, counted=counted))
        assert batch.group.tolist() == [0, 0, 1, 1] and batch.counted.tolist() == [True, True, True, False]
        plain = rows([0, 1], [0, 0])
        assert unhelped(plain) is plain

    @pytest.mark.parametrize("name", ["shuffled", "drive", "spo_single_stream"])
    def test_a_step_of_helped_rows_alone_says_nothing(self, name):
        sampler = Bound.of("prompts", name).state
        before = sampler.state_dict()
        sampler.observe([3], unhelped(rows([0, 1], [0, 0], helped=torch.tensor([True, True]))))
        assert sampler.state_dict() == before

    def test_rows_know_that_they_were_helped(self, policy, tmp_path):
        for rollout in (["guide"], ["ghpo"], ["demonstrations"]):
            batch = trainer_of(policy, tmp_path, rollout).collector.collect(0).batch
            name = "expert" if rollout == ["demonstrations"] else "hint"
            assert batch.helped.any() and torch.equal(batch.helped, batch[name] > 0), rollout


class TestGhpo:
    def test_shares_of_a_solution(self):
        assert [len(beginning("x" * 100, s)) for s in (0.25, 0.5, 0.75)] == [25, 50, 75]

    def test_one_share_after_the_other_until_somebody_is_right(self):
        ghpo = Ghpo()
        first = ghpo.join(levelled([0] * 4, [0, 0, 1, 0], [0, 0, 1, 1]), step(1))
        assert [(a.group, a.note, a.trains) for a in first.ask] == [(0, 0.25, "shown")] and first.trained.all()
        second = ghpo.join(levelled([0, 0, 1, 1], [0] * 4, [0] * 4), step(2))
        assert second.ask[0].note == 0.5 and second.trained.tolist() == [False, False, True, True]
        solved = ghpo.join(levelled([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 0], [0] * 6), step(3))
        assert not solved.asks and solved.counted.tolist() == [False] * 4 + [True] * 2

    def test_the_last_share_is_used_as_it_is_and_a_cold_start_has_none(self):
        ghpo = Ghpo(shares=(0.5,))
        assert ghpo.join(levelled([0] * 2, [0, 0], [0, 0]), step(1)).asks
        assert not ghpo.join(levelled([0, 0, 1, 1], [0] * 4, [0] * 4), step(2)).asks
        assert Ghpo(start=1).join(levelled([0] * 2, [0, 0], [0, 0]), step(1)) is None

    def test_the_loss_is_under_what_was_shown(self, policy, tmp_path):
        rollouts = trainer_of(policy, tmp_path, ["ghpo"]).collector.collect(0).rollouts
        hinted = rollouts.columns["hint"] > 0
        assert hinted.any() and not rollouts.replay["shown"].any()
        assert torch.allclose(policy.evaluate(rollouts, ()).log_probs, rollouts.old_log_probs, atol=1e-5)
        texts = {rollouts.prompts[p].text for p in rollouts.prompt[hinted].tolist()}
        assert all("begins like this" in text for text in texts)


class TestSage:
    @pytest.mark.parametrize(
        ("level", "rate", "then"), [(0, 0.0, 1), (1, 0.05, 2), (3, 0.0, 3), (2, 0.5, 1), (1, 0.2, 1), (0, 1.0, 0)]
    )
    def test_levels_of_the_light_form(self, level, rate, then):
        assert next_level(level, rate) == then

    def test_hints_are_written_aside_then_shown_to_the_whole_group(self):
        sage, batch = Sage(levels=2), levelled([0] * 2, [0, 0], [0, 0])
        (ask,) = sage.join(batch, step(1)).ask
        assert ask.aside and ask.note[:2] == ("write", 1)
        sage.heard(ask, ["look at the colour"])
        (again,) = sage.join(batch, step(2)).ask
        assert (again.count, again.trains, again.note) == (2, "shown", ("try", 1, "look at the colour"))
        tried = levelled([0, 0, 1, 1], [0] * 4, [0] * 4)
        assert sage.join(tried, step(3)).ask[0].note[:2] == ("write", 2)
        sage.heard(ask, [])
        assert not sage.join(tried, step(4)).asks, "a hint that was no use is not shown, and no third level is allowed"

    def test_a_hint_that_tells_is_no_use(self):
        prompt = Prompt("a", [], columns={"solution": "red"})
        assert Sage().usable(None, prompt, ["it is red", " ", "look closer"]) == ["look closer"]

    def test_on_a_policy_that_writes_its_own_hints(self, policy, tmp_path):
        collected = trainer_of(policy, tmp_path, ["sage"]).collector.collect(0)
        hinted = collected.rollouts.columns["hint"] > 0
        assert len(collected.rollouts) == 16 and hinted.sum() == 8, "what is written aside is no row"
        assert (collected.rollouts.reward[hinted] == 1).all()
        assert collected.batch.counted.tolist() == (collected.batch["hint"] > 0).tolist()

    def test_the_light_form_helps_at_the_next_visit_and_resumes(self, policy, tmp_path):
        trainer = trainer_of(policy, tmp_path, ["sage_light"], steps=2)
        first = trainer.collector.collect(0).rollouts
        assert (first.columns["hint"] == 0).all() and len(first) == 8
        state = trainer.strategies.state_dict()
        assert sorted(state["sage_light"]["levels"]) == ["0", "1"]
        again = trainer_of(policy, tmp_path, ["sage_light"], steps=2)
        again.strategies.load_state_dict(state)
        second = again.collector.collect(1).rollouts
        assert (second.columns["hint"] == 1).all() and (second.reward == 1).all()
        assert again.strategies.state_dict() == {"sage_light": {"levels": {}}}, "solved with help: no help next time"
        assert SageLight(low=0.2, high=0.2)


class TestHill:
    def test_hints_have_groups_of_their_own_and_bare_log_probs(self, policy, tmp_path):
        recipe = load_recipe("hill")
        trainer = trainer_of(policy, tmp_path, [{"name": "hill", "hints": 1}], recipe.objective)
        collected = trainer.collector.collect(0)
        rollouts, batch = collected.rollouts, collected.batch
        hinted = rollouts.columns["hint"] > 0
        assert rollouts.group.tolist() == [g for g in range(4) for _ in range(4)] and hinted.sum() == 8
        assert len(set(batch.prompt[batch.group == 0].tolist() + batch.prompt[batch.group == 2].tolist())) == 1
        (key,) = [k for k in rollouts.columns if k.startswith("log_probs()|under=beside(prompt=bare)")]
        bare = rollouts.columns[key].sum(1)
        assert torch.allclose(bare[~hinted], rollouts.old_log_probs.sum(1)[~hinted], atol=1e-5)
        assert (bare[hinted] < rollouts.old_log_probs.sum(1)[hinted] - 1).all()
        trainer.train()


class TestOthers:
    def test_the_shortest_of_the_best_drafts(self):
        nan = float("nan")
        length, member = torch.tensor([5, 3, 3, 1]), torch.tensor([0, 1, 2, 3])
        assert best_draft(torch.tensor([1.0, 1.0, 1.0, 0.0]), length, member) == 1
        assert best_draft(torch.tensor([nan, 0.0, nan, nan]), length, member) == 1

    def test_drafts_are_context_and_the_budget_stays(self, policy, tmp_path):
        collected = trainer_of(policy, tmp_path, ["igrpo"]).collector.collect(0)
        draft = collected.batch["draft"] > 0
        assert len(collected.rollouts) == 8 and draft.sum() == 4
        assert collected.batch.trained.tolist() == (~draft).tolist()
        with pytest.raises(ConfigError, match="leave no group of two"):
            trainer_of(policy, tmp_path, [{"name": "igrpo", "drafts": 3}]).collector.collect(0)

    def test_explanations_train_without_the_answer_and_stay_out_of_the_baseline(self, policy, tmp_path):
        recipe = load_recipe("expo")
        collected = trainer_of(policy, tmp_path, recipe.rollout, recipe.objective).collector.collect(0)
        expert = collected.batch["expert"] > 0
        assert expert.sum() == 2 and not collected.batch.counted[expert].any()
        assert collected.batch.trained[expert].tolist() == (collected.batch.reward[expert] > 0).tolist()
        assert collected.rollouts.replay["shown"].sum() == 2
        none = trainer_of(policy, tmp_path, [{"name": "expo", "until": 0.5}], steps=2).collector.collect(1)
        assert len(none.rollouts) == 8, "the second half of the run has no explanations"

    def test_comprehension_of_an_answer(self):
        probability = torch.tensor([[0.1, 0.5, 0.9, 0.0], [0.2, 0.4, 0.6, 0.8]])
        mask = torch.tensor([[True, True, True, False], [True] * 4])
        log_probs = probability.log().masked_fill(~mask, 0)
        assert comprehension(log_probs, mask, 2).tolist() == pytest.approx([0.7, 0.7])
        assert comprehension(log_probs, mask, 0).tolist() == pytest.approx([0.5, 0.5])

    def test_the_best_understood_traces_take_the_places_of_members(self):
        expert = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0]).float()
        batch = rows([0, 0, 0, 1, 1, 1, 1, 0], [0] * 6 + [1] * 2, columns={"expert": expert})
        batch.old_log_probs = torch.tensor([0, 0, 0, -3.0, -1.0, -2.0, 0, 0])[:, None]
        plan = Ampo(count=2, answer=0).join(batch, step(2))
        assert plan.trained[3:].tolist() == [False, True, True, True, True] and plan.trained[:3].sum() == 1
        assert [g.group for g in plan.given] == [0], "group 1 has somebody who is right"

    def test_a_stored_answer_takes_one_place(self):
        expert = torch.tensor([0, 0, 0, 1, 0, 0]).float()
        batch = rows([0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], columns={"expert": expert})
        last = OfflineSlot(below=0.5).join(batch, step(2))
        assert last.trained.tolist() == [True, True, False, True, True, True] and [g.group for g in last.given] == [0]
        worst = OfflineSlot(below=0.25, replaces="worst").join(batch, step(2))
        assert worst.trained.tolist() == [False, True, True, True, True, True] and not worst.given
        wrong = rows([0, 1, 0, 0], [0] * 4, columns={"expert": expert[:4]})
        assert OfflineSlot(verified=True).join(wrong, step(2)).trained.tolist() == [True, True, True, False]

    def test_the_first_flagged_action(self):
        mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
        assert first_flagged(torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]), mask).tolist() == [2, -1, 0]

    def test_a_failed_answer_goes_on_from_its_first_wrong_step(self, policy, tmp_path):
        def flagged(outputs, prompts):
            scores = score_right(outputs, prompts)
            scores.columns = {"flagged_tokens": [[[1, 2]] if len(o) > 1 else [] for o in outputs]}
            return scores

        batch = trainer_of(policy, tmp_path, ["scope"], score=flagged).collector.collect(0).batch
        begun = (batch.owner[:, 0] != batch.member).nonzero().squeeze(1).tolist()
        assert len(begun) == 8 and batch.trained.sum() == 8
        for row in begun:
            parent = (batch.group == batch.group[row]) & (batch.member == batch.owner[row, 0])
            (mother,) = parent.nonzero().squeeze(1).tolist()
            assert batch.actions[row, 0] == batch.actions[mother, 0] and not batch.trained[mother]
        with pytest.raises(ConfigError, match="flagged_tokens"):
            trainer_of(policy, tmp_path, ["scope"]).collector.collect(0)

    def test_failures_are_asked_to_recover(self, policy, tmp_path):
        collected = trainer_of(policy, tmp_path, [{"name": "fission_grpo", "most": 1}]).collector.collect(0)
        recovery = collected.rollouts.columns["recovery"] > 0
        assert recovery.sum() == 4 and set(collected.rollouts.group[recovery].tolist()) == {1}
        assert collected.batch.trained.sum() == 8
        assert "cd" in collected.rollouts.prompts[int(collected.rollouts.prompt[recovery][0])].text
