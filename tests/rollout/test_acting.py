"""Rounds of acting with a real tiny policy: numbering, given rows, rows that start in others, what strategies keep."""

import pytest
import torch

from mmrl.errors import ConfigError, DataError, PolicyError
from mmrl.objective import Objective
from mmrl.record import SOURCES, Answer, Prompt
from mmrl.rollout.nesting import Nested
from mmrl.rollout.plan import Address, Ask, Given, Plan, Strategy
from mmrl.stages import Bound, find
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels


def trainer_of(tmp_path, *strategies, policy=None, prompts=None, objective=None, **changes):
    settings = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "learning_rate": 1e-3, **changes}
    made = Trainer(
        policy or make_policy(), Objective.of(objective or {}), prompts or make_prompts(4), score_vowels,
        TrainingConfig(**settings), tmp_path,
    )  # fmt: skip
    if strategies:
        nest(made, *strategies)
    return made


def nest(trainer, *strategies):
    spec = find("rollout", "independent")
    bounds = [s if isinstance(s, Bound) else Bound(spec, {}, s) for s in strategies]
    trainer.strategies = trainer.collector.strategies = Nested(bounds)


def by_address(rollouts):
    return {(int(g), int(m)): o for g, m, o in zip(rollouts.group, rollouts.member, rollouts.outputs, strict=True)}


class Once(Strategy):
    """A plan for the second round."""

    columns = {"depth": -1.0}

    def __init__(self, plan):
        self.plan = plan

    def join(self, batch, step):
        return self.plan if step.round == 1 else None


class TestNumbering:
    def test_a_prompt_drawn_twice_in_a_step_goes_on_counting_and_draws_anew(self, tmp_path):
        trainer = trainer_of(tmp_path, prompts=make_prompts(1), prompts_per_step=2, group_size=3)
        rollouts = trainer.collector.collect(0).rollouts
        assert rollouts.member.tolist() == [0, 1, 2, 3, 4, 5] and rollouts.group.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(set(rollouts.outputs)) > 3, "the second group is not the first once more"

    def test_two_requests_for_a_group_get_members_of_their_own(self, tmp_path):
        trainer = trainer_of(tmp_path, Once(Plan([Ask(1, group=0), Ask(2, group=1), Ask(1, group=0)])))
        collected = trainer.collector.collect(0)
        members = collected.batch.member[collected.batch.group == 0].tolist()
        assert members == [0, 1, 2, 3] and len(collected.rollouts.prompts) == 2, "a prompt stands once"

    def test_what_one_member_draws_does_not_depend_on_the_rounds(self, tmp_path):
        both = trainer_of(tmp_path / "a", group_size=4).collector.collect(0).rollouts
        more = Once(Plan([Ask(2, group=0), Ask(2, group=1)]))
        later = trainer_of(tmp_path / "b", more, group_size=2).collector.collect(0).rollouts
        assert by_address(both) == by_address(later)

    def test_columns_have_their_fill(self, tmp_path):
        trainer = trainer_of(tmp_path, Once(Plan([Ask(1, group=1, columns={"depth": 3.0})])))
        batch = trainer.collector.collect(0).batch
        assert batch["depth"].tolist() == [-1, -1, -1, -1, 3]

    def test_prompts_a_strategy_made_belong_to_no_dataset_row(self, tmp_path):
        made = Prompt("made up", [{"role": "user", "content": "Say something"}])
        collected = trainer_of(tmp_path, Once(Plan([Ask(2, prompt=made)]))).collector.collect(0)
        assert collected.indices == [*collected.indices[:2], None] and collected.indices[0] is not None
        assert [p.id for p in collected.rollouts.prompts][-1] == "made up"

    @pytest.mark.parametrize(
        ("ask", "words"),
        [
            (Ask(1, group=7), "asks for group 7"),
            (Ask(1), "neither or both"),
            (Ask(1, group=0, start=Address(9, 1)), "there is none"),
            (Ask(1, group=0, start=Address(0, 99)), "starts behind action 99"),
        ],
    )
    def test_plans_that_cannot_be_are_refused(self, tmp_path, ask, words):
        with pytest.raises(ConfigError, match=words):
            trainer_of(tmp_path, Once(Plan([ask]))).collector.collect(0)


class TestGivenRows:
    def prompts(self):
        prompts = make_prompts(2)
        prompts[0].columns["demonstrations"] = ["aeiou", "second"]
        return prompts

    def test_demonstrations_join_their_groups_scored_and_with_the_policy_s_own_log_probs(self, tmp_path):
        policy = make_policy()
        trainer = trainer_of(tmp_path, Bound.of("rollout", {"name": "demonstrations", "count": 2}), policy=policy,
                             prompts=self.prompts())  # fmt: skip
        collected = trainer.collector.collect(0)
        rollouts, batch = collected.rollouts, collected.batch
        given = (rollouts.source == SOURCES.index("demonstration")).nonzero().squeeze(1)
        assert [rollouts.outputs[i] for i in given.tolist()] == ["aeiou", "second"]
        assert rollouts.reward[given].tolist()[0] == 1.0 and rollouts.columns["expert"].sum() == 2
        assert rollouts.actions[given[0], rollouts.length[given[0]] - 1] in policy.stopping.ids, "it ends"
        again = policy.evaluate(rollouts, ()).log_probs
        assert (again - rollouts.old_log_probs).abs().max() < 1e-5
        assert batch.source.bool().sum() == 2 and batch["expert"].sum() == 2

    def test_certain_demonstrators_are_the_ratio_s_denominator_and_nothing_else(self, tmp_path):
        strategy = Bound.of("rollout", {"name": "demonstrations", "behaviour": "one"})
        trainer = trainer_of(tmp_path, strategy, prompts=self.prompts())
        batch = trainer.collector.collect(0).batch
        expert = batch.source.bool()
        assert (batch["behaviour_log_probs"][expert] == 0).all() and (batch.old_log_probs[expert].sum(1) < 0).all()
        assert torch.equal(batch["behaviour_log_probs"][~expert], batch.old_log_probs[~expert])
        trainer.train()  # and the self-check passes

    def test_a_demonstration_beside_the_group_is_only_read(self, tmp_path):
        strategy = Bound.of("rollout", {"name": "demonstrations", "joins": "beside"})
        batch = trainer_of(tmp_path, strategy, prompts=self.prompts()).collector.collect(0).batch
        expert = batch["expert"] > 0
        (row,) = expert.nonzero().squeeze(1).tolist()
        assert not (batch.counted & expert).any() and not (batch.trained & expert).any()
        for at in range(len(batch)):
            told = (
                batch.old_log_probs[row]
                if batch.group[at] == batch.group[row]
                else torch.zeros_like(batch.old_log_probs[0])
            )
            assert torch.equal(batch["expert_log_probs"][at], told)

    def test_a_demonstration_in_the_loss_alone_trains_and_moves_no_baseline(self, tmp_path):
        strategy = Bound.of("rollout", {"name": "demonstrations", "joins": "loss"})
        batch = trainer_of(tmp_path, strategy, prompts=self.prompts()).collector.collect(0).batch
        expert = batch["expert"] > 0
        assert expert.any() and batch.trained[expert].all() and not batch.counted[expert].any()
        assert batch.counted[~expert].all()

    def test_answers_token_by_token_bring_their_own_log_probs(self, tmp_path):
        class Replay(Strategy):
            def join(self, batch, step):
                return Plan(given=[Given("replay", "given", group=1)]) if step.round == 1 else None

            def given(self, given, prompt, rows):
                assert rows is not None and len(rows) == 2, "it sees its group"
                return [Answer(torch.tensor([25, 26, 27]), torch.tensor([-1.0, -2.0, -3.0]))]

        batch = trainer_of(tmp_path, Replay()).collector.collect(0).batch
        (row,) = batch.source.nonzero().squeeze(1).tolist()
        assert batch["behaviour_log_probs"][row, :3].tolist() == [-1, -2, -3] and batch.length[row] == 3
        assert batch.actions[row, :3].tolist() == [25, 26, 27]

    def test_answers_that_cannot_be_written_are_refused(self):
        policy, (prompt,) = make_policy(), make_prompts(1)
        with pytest.raises(PolicyError, match="7 tokens, expected 1 to max_new_tokens=6"):
            policy.written([prompt], [Answer(torch.full((7,), 25))])
        with pytest.raises(PolicyError, match=r"image_pad.*can never write"):
            policy.written([prompt], ["<|image_pad|>"])

    def test_bad_demonstrations_name_the_prompt_and_the_column(self, tmp_path):
        prompts = make_prompts(2)
        prompts[1].columns["demonstrations"] = 3
        with pytest.raises(DataError, match="prompt 'p1': column 'demonstrations': expected a text"):
            trainer_of(tmp_path, Bound.of("rollout", "demonstrations"), prompts=prompts).collector.collect(0)


class TestShown:
    def test_hints_are_seen_while_sampling_and_trained_without(self, tmp_path):
        class Hint(Strategy):
            def join(self, batch, step):
                return Plan([Ask(1, group=0, note="a hint")]) if step.round == 1 else None

            def shown(self, ask, prompt, rows):
                messages = [{"role": "system", "content": ask.note}, *prompt.messages]
                return Prompt(prompt.id, messages, prompt.images)

        trainer = trainer_of(tmp_path, Hint())
        rollouts = trainer.collector.collect(0).rollouts
        assert rollouts.replay["shown"].tolist() == [False] * 4 + [True]
        assert trainer.self_check(rollouts).excluded == 1

    def test_what_is_trained_as_shown_needs_an_id(self, tmp_path):
        class Draft(Strategy):
            def __init__(self, name):
                self.name = name

            def join(self, batch, step):
                return Plan([Ask(2, group=0, note=1, trains="shown")]) if step.round == 1 else None

            def shown(self, ask, prompt, rows):
                return Prompt(self.name or prompt.id, prompt.messages, prompt.images)

        with pytest.raises(ConfigError, match="needs an id of its own"):
            trainer_of(tmp_path / "a", Draft("")).collector.collect(0)
        rollouts = trainer_of(tmp_path / "b", Draft("draft")).collector.collect(0).rollouts
        assert len(rollouts.prompts) == 3 and not rollouts.replay["shown"].any()


class TestStarts:
    """A tree is stored as its leaves: a shared token is counted by every leaf through it."""

    def tree(self, tmp_path, policy):
        """Depth 3: two roots; a branch of the first behind action 1; a branch of that behind action 2."""

        class Grow(Strategy):
            def join(self, batch, step):
                if step.round > 2:
                    return None
                member = {1: 0, 2: 2}[step.round]
                return Plan([Ask(1, group=0, start=Address(member, step.round))])

        trainer = trainer_of(tmp_path, Grow(), policy=policy, prompts=make_prompts(1), prompts_per_step=1)
        return trainer.collector.collect(0)

    def test_leaves_share_tokens_masks_log_probs_and_owners(self, tmp_path):
        rollouts = self.tree(tmp_path, make_policy()).rollouts
        assert rollouts.member.tolist() == [0, 1, 2, 3]
        assert torch.equal(rollouts.actions[2, :1], rollouts.actions[0, :1])
        assert torch.equal(rollouts.actions[3, :2], rollouts.actions[2, :2])
        assert rollouts.mask[:, :2].all()
        assert rollouts.owner[2, :3].tolist() == [0, 2, 2][: int(rollouts.length[2])]
        assert rollouts.owner[3, :3].tolist() == [0, 2, 3][: int(rollouts.length[3])]
        assert torch.equal(rollouts.old_log_probs[3, :1], rollouts.old_log_probs[0, :1])

    def test_loss_and_gradient_are_those_of_the_leaves_written_out(self, tmp_path):
        policy = make_policy()
        collected = self.tree(tmp_path, policy)
        rollouts = collected.rollouts
        written = policy.written([rollouts.prompts[0]] * 4, [
            Answer(a[:n]) for a, n in zip(rollouts.actions, rollouts.length.tolist(), strict=True)
        ])  # fmt: skip
        advantage = torch.tensor([1.0, -1.0, 0.5, -2.0])[:, None]

        def gradient(rows):
            policy.module.zero_grad()
            loss = -(policy.evaluate(rows, ()).log_probs * advantage).sum() / rows.mask.sum()
            loss.backward()
            return loss.item(), {n: p.grad.clone() for n, p in policy.inner.named_parameters() if p.grad is not None}

        assert torch.equal(written.mask, rollouts.mask)
        (loss, gradients), (expected, reference) = gradient(rollouts), gradient(written)
        assert loss == pytest.approx(expected, abs=1e-6)
        for name, value in reference.items():
            assert (gradients[name] - value).abs().max() <= 1e-6 * max(1.0, value.abs().max().item()), name


class TestBranching:
    def collect(self, tmp_path, **options):
        strategy = Bound.of("rollout", {"name": "branching", "at": [1, 3], **options})
        return trainer_of(tmp_path, strategy).collector.collect(0)

    def test_every_row_that_reaches_a_split_has_siblings_there(self, tmp_path):
        batch = self.collect(tmp_path).batch
        for group in (0, 1):
            rows = (batch.group == group).nonzero().squeeze(1)
            roots = {int(o) for o in batch.owner[rows, 0]}
            first = {int(o) for o in batch.owner[rows, 1] if o >= 0}
            last = {int(o) for o in batch.owner[rows, 3] if o >= 0}
            long = sum(int(n) > 3 for n in batch.length[rows])
            assert roots == {0, 1} and len(first) == 4 and len(last) == long

    def test_what_is_shared_is_the_same_in_every_leaf(self, tmp_path):
        batch = self.collect(tmp_path, width=3).batch
        for t in range(batch.mask.shape[1]):
            seen: dict[tuple[int, int], tuple] = {}
            for row in (batch.mask[:, t]).nonzero().squeeze(1).tolist():
                state = (int(batch.group[row]), int(batch.owner[row, t]))
                what = (batch.actions[row, : t + 1].tolist(), batch.old_log_probs[row, : t + 1].tolist())
                assert seen.setdefault(state, what) == what

    def test_a_tree_trains(self, tmp_path):
        strategy = Bound.of("rollout", {"name": "branching", "at": [1, 3]})
        objective = {"credit": "tempo", "aggregation": {"name": "token_mean", "shared": "once"}}
        trainer = trainer_of(tmp_path, strategy, objective=objective)
        assert trainer.train().steps == 1

    @pytest.mark.parametrize(
        ("options", "words"), [({"at": [3, 1]}, "rising places"), ({"width": 1}, "splits nothing")]
    )
    def test_splits_that_split_nothing_are_refused(self, options, words):
        with pytest.raises(ConfigError, match=words):
            Bound.of("rollout", {"name": "branching", **options})


class TestState:
    def test_strategies_are_asked_to_remember_once_a_step_and_resume(self, tmp_path):
        class Counts(Strategy):
            def __init__(self):
                self.steps = 0

            def join(self, batch, step):
                return Plan([Ask(1, group=0)]) if step.round < 3 else None

            def observe(self, batch, step):
                self.steps += 1

            def state_dict(self):
                return {"steps": self.steps}

            def load_state_dict(self, state):
                self.steps = state["steps"]

        trainer = trainer_of(tmp_path, Counts(), steps=2, save_every=1)
        trainer.train()
        again = trainer_of(tmp_path, Counts(), steps=3)
        again.train(tmp_path / "checkpoints" / "step-000002")
        assert again.strategies.strategies[0].steps == 3

    def test_one_that_never_ends_is_stopped(self, tmp_path):
        class Endless(Strategy):
            def join(self, batch, step):
                return Plan(given=[Given("replay", group=0)])

            def given(self, given, prompt, rows):
                return []

        with pytest.raises(ConfigError, match="it will never end"):
            trainer_of(tmp_path, Endless()).collector.collect(0)
