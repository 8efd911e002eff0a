"""What strategies plan, on scored batches alone: rounds, nesting, masks, columns."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.rollout.nesting import Nested
from mmrl.rollout.plan import Ask, Given, Plan, Strategy
from mmrl.stages import Bound, find
from tests.rollout.plans import rows, step


def nested(*strategies: Strategy) -> Nested:
    """Strategies of a test, outermost first."""
    spec = find("rollout", "independent")
    return Nested([Bound(replace(spec, name=type(s).__name__), {}, s) for s in strategies])


def flat_groups_out(batch):
    """A selection: groups whose rewards are all equal leave."""
    spread = [batch.reward[batch.group == g].std(correction=0) > 0 for g in batch.group.tolist()]
    keep = torch.tensor(spread)
    return replace(batch, counted=batch.counted & keep, trained=batch.trained & keep)


class Rescue(Strategy):
    """Two more members for every flat group, once."""

    columns = {"rescued": 0.0}

    def ask(self, step):
        self.tried = set()

    def join(self, batch, step):
        flat = sorted({g for g in batch.group.tolist() if len(set(batch.reward[batch.group == g].tolist())) == 1})
        new = [g for g in flat if g not in self.tried]
        self.tried |= set(new)
        return Plan([Ask(2, group=g, columns={"rescued": 1.0}) for g in new]) if new else None


class Blind(Strategy):
    """Takes the first row of every group out of the loss, and asks for nothing."""

    def join(self, batch, step):
        return Plan(trained=batch.member > 0)


BARE, BARE_FOUR = ({"expert": torch.zeros(n), "rescued": torch.zeros(n)} for n in (2, 4))


class TestDynamicSampling:
    def join(self, batch, round=1, **options):
        strategy = Bound.of("rollout", {"name": "dynamic_sampling", **options}).state
        return strategy.join(batch, step(round, prompts=3, select=flat_groups_out))

    def test_as_many_new_prompts_as_were_dropped(self):
        plan = self.join(rows([1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2]))
        assert [(a.count, a.index) for a in plan.ask] == [(2, 0), (2, 1)]

    def test_enough_groups_are_enough(self):
        assert self.join(rows([0, 1, 0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])) is None

    def test_rows_without_reward_are_not_replaced(self):
        out = torch.tensor([False, False, True, True])
        assert self.join(rows([0, 0, 0, 1], [0, 0, 1, 1], counted=out)) is None

    def test_the_rounds_end(self):
        flat = rows([1, 1], [0, 0])
        assert self.join(flat, round=2, rounds=2) is not None
        assert self.join(flat, round=3, rounds=2) is None


class TestNesting:
    def test_the_outer_is_asked_once_the_inner_is_done_and_its_groups_pass_through_the_inner(self):
        outer = Bound.of("rollout", "dynamic_sampling").state
        both, now = nested(outer, Rescue()), step(1, prompts=1, select=flat_groups_out)
        assert len(both.ask(now).ask) == 1
        first = both.join(rows([1, 1], [0, 0]), now)
        assert [(a.group, a.by) for a in first.ask] == [(0, 1)], "the inner tries to rescue the flat group"
        second = both.join(rows([1, 1, 1, 1], [0, 0, 0, 0]), now)
        assert [(a.index, a.by) for a in second.ask] == [(1, 0)], "it stayed flat, so a new prompt is asked"
        third = both.join(rows([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]), now)
        assert [(a.group, a.by) for a in third.ask] == [(1, 1)], "and the inner has its turn on that"
        assert both.join(rows([1, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]), now) is None

    def test_masks_are_anded_and_hold_for_rows_by_their_address(self):
        both = nested(Blind(), Blind())
        both.ask(step())
        batch = rows([0, 1, 0, 1], [0, 0, 1, 1])
        assert both.join(batch, step(1)) is None
        assert both.masked(batch).trained.tolist() == [False, True, False, True]
        later = rows([0, 1, 2, 0, 1], [0, 0, 0, 1, 1])
        assert both.masked(later).trained.tolist() == [False, True, True, False, True], "a row that came later is in"
        assert both.masked(batch).counted.all()

    def test_a_new_step_forgets_the_masks(self):
        one = nested(Blind())
        one.ask(step())
        one.join(rows([0, 1], [0, 0]), step(1))
        one.ask(step())
        assert one.masked(rows([0, 1], [0, 0])).trained.all()

    def test_the_outer_counts_its_own_turns_and_forgets_the_step_before_though_the_inner_asked_first(self):
        """`demonstrations` remembers the groups of a step; those of the next have the same numbers."""
        both = nested(Bound.of("rollout", "demonstrations").state, Rescue())
        for _ in range(2):
            both.ask(step())
            assert [a.by for a in both.join(rows([1, 1], [0, 0], columns=BARE), step(1)).ask] == [1]
            plan = both.join(rows([1, 1, 0, 1], [0] * 4, columns=BARE_FOUR), step(2))
            assert [(g.group, g.by) for g in plan.given] == [(0, 0)], "in every step, not in the first alone"

    def test_rounds_of_the_inner_do_not_use_up_those_of_the_outer(self):
        outer = Bound.of("rollout", {"name": "dynamic_sampling", "rounds": 1}).state
        both, now = nested(outer, Rescue()), step(prompts=1, select=flat_groups_out)
        both.ask(now)
        assert both.join(rows([1, 1], [0, 0]), replace(now, round=1)).ask[0].by == 1
        assert both.join(rows([1] * 4, [0] * 4), replace(now, round=2)).ask[0].by == 0

    @pytest.mark.parametrize("pair", [("igrpo", "treepo"), ("drive_budget", "votes"), ("sage_light", "deepsearch")])
    def test_two_first_rounds_are_refused_by_name(self, pair):
        with pytest.raises(ConfigError, match=f"{pair[0]} and {pair[1]} each plan the first round"):
            Nested.of(["dynamic_sampling", *pair])

    @pytest.mark.parametrize("inner", ["branching", {"name": "xrpo_allocator", "average": 4}, "svs"])
    def test_what_only_remembers_a_step_may_stand_inside_one_that_plans_it(self, inner):
        Nested.of(["drive_budget", inner])

    def test_undeclared_columns_and_doubles_are_refused(self):
        class Undeclared(Strategy):
            def join(self, batch, step):
                return Plan([Ask(1, group=0, columns={"depth": 2.0})])

        with pytest.raises(ConfigError, match="sets the column 'depth', which it does not declare"):
            nested(Undeclared()).join(rows([0, 1], [0, 0]), step(1))
        with pytest.raises(ConfigError, match="stands twice"):
            Nested.of(["dynamic_sampling", "dynamic_sampling"])
        with pytest.raises(ConfigError, match="supo and m_grpo both mark their rows by column 'episode'"):
            Nested.of(["supo", "m_grpo"])
        with pytest.raises(ConfigError, match="did you mean 'dynamic_sampling'"):
            Nested.of("dynamic_samplin")

    def test_the_first_requests_are_independent_draws_unless_somebody_asks(self):
        assert [(a.count, a.index) for a in Nested.of([]).ask(step(size=4)).ask] == [(4, 0), (4, 1)]


def test_a_plan_s_digest_tells_plans_apart():
    plan = Plan([Ask(2, group=1, columns={"a": 1.0})])
    assert plan.digest() == Plan([Ask(2, group=1, columns={"a": 1.0})]).digest()
    others = [
        Plan([Ask(2, group=1)]),
        Plan([Ask(3, group=1, columns={"a": 1.0})]),
        Plan(given=[Given("replay", group=1)]),
    ]
    assert len({plan.digest(), *(other.digest() for other in others)}) == 4


def test_given_rows_name_their_source_and_behaviour():
    with pytest.raises(ConfigError, match="source of given rows"):
        Given("expert", group=0)
    with pytest.raises(ConfigError, match="behaviour"):
        Given("replay", behaviour="none", group=0)
