"""Prompts the policy writes: who is asked what in which round, and what a proposal earns."""

import pytest
import torch

from mmrl.record import Prompt
from mmrl.rollout.absolute_zero import AbsoluteZero, calculated
from mmrl.rollout.proposing import Proposal, asking, tagged, without_media
from mmrl.rollout.search_self_play import SearchSelfPlay
from mmrl.rollout.svs import Svs
from mmrl.stages import Bound
from tests.rollout.plans import rows, step

SEED = Prompt(
    "seed", [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}], images=["x.png"],
    columns={"solution": "3", "task": "numeric"},
)  # fmt: skip


def batch_of(reward, group, **columns):
    """Members count up in their group; columns that are not named say nothing."""
    members = torch.tensor([group[:i].count(g) for i, g in enumerate(group)])
    fill = {"proposes": 0.0, "proposal_group": -1.0, "proposal_member": -1.0, "checks_proposal": 0.0}
    named = {n: torch.tensor(columns.get(n, [value] * len(group)), dtype=torch.float64) for n, value in fill.items()}
    return rows(reward, group, member=members, columns=named)


def told(texts: dict, group_rows: list[int], round: int = 1, **options):
    now = step(round, **options)
    now.texts, now.groups = texts, group_rows
    now.asked = {g: "How many?" for g in range(len(group_rows))}
    return now


class TestWords:
    def test_the_last_pair_of_tags_counts(self):
        assert tagged("<question>a</question> no: <question> b </question>", "question") == "b"
        assert tagged("<question> </question>", "question") is None and tagged("a</question>", "question") is None

    def test_other_words_keep_the_media_and_tell_where_they_come_from(self):
        new = asking(SEED, "What color?", "proposed", "red")
        assert new.text == "What color?" and new.images == SEED.images and new.id != SEED.id
        assert new.columns == {"solution": "red", "task": "exact"} and new.beside["bare"] is SEED
        assert new.asks == SEED.id, "so that outcomes are not taken for those of the seed"
        assert asking(SEED, "a", "k").id != asking(SEED, "b", "k").id
        assert without_media(new).images == [] and without_media(new).marked == "What color?"


class TestCalculator:
    @pytest.mark.parametrize(("text", "value"), [("17*3+4", 55), ("-7 // 2 + 1", -3), ("(2+3)%4 - 1", 0)])
    def test_sums_have_a_value(self, text, value):
        assert calculated(text) == value

    @pytest.mark.parametrize(
        "text",
        ["7", "2**99", "1/2 + 1", "1 // 0", "x + 1", "__import__('os')", "10**9 * 10", "1.5 + 2", "9" * 300, "(" * 150,
         "True + True", ""],
    )  # fmt: skip
    def test_anything_else_has_none(self, text):
        assert calculated(text) is None


class TestAbsoluteZero:
    def test_proposals_are_read_once_and_each_is_solved_by_a_group(self):
        strategy = AbsoluteZero(proposers=1, proposals=4, solvers=2)
        first = strategy.ask(step(size=2, prompts=1))
        assert [(a.count, a.note, dict(a.columns)) for a in first.ask] == [
            (2, None, {}), (4, "invite", {"proposes": 1.0}),
        ]  # fmt: skip
        said = {(1, 0): "<question>2+2</question>", (1, 1): "no", (1, 2): "<question>2+2</question>",
                (1, 3): "<question>3*4</question>"}  # fmt: skip
        batch = batch_of([0] * 6, [0, 0, 1, 1, 1, 1], proposes=[0, 0, 1, 1, 1, 1])
        plan = strategy.join(batch, told(said, [7, 8]))
        assert [(a.count, a.index, a.columns["proposal_member"]) for a in plan.ask] == [(2, 8, 0), (2, 8, 3)]
        posed = strategy.shown(plan.ask[1], SEED, None)
        assert posed.columns["solution"] == "12" and not posed.images and "3*4" in posed.text
        assert strategy.join(batch, told(said, [7, 8], round=2)) is None


class TestSearchSelfPlay:
    SAID = "<evidence>The cube is red.</evidence><question>What color is the cube?</question><answer>red</answer>"

    def test_only_what_its_own_evidence_answers_is_asked(self):
        strategy = SearchSelfPlay(proposers=1, proposals=2, solvers=3)
        strategy.ask(step(prompts=1))
        said = {(1, 0): self.SAID, (1, 1): self.SAID.replace("cube", "ball")}
        start = batch_of([0, 0, 0, 0], [0, 0, 1, 1], proposes=[0, 0, 1, 1])
        checks = strategy.join(start, told(said, [7, 8]))
        assert [(a.count, a.columns["checks_proposal"]) for a in checks.ask] == [(1, 1), (1, 1)]
        assert "The ball is red." in strategy.shown(checks.ask[1], SEED, None).text
        after = batch_of(
            [0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 2, 3], proposes=[0, 0, 1, 1, 0, 0], proposal_group=[-1] * 4 + [1, 1],
            proposal_member=[-1] * 4 + [0, 1], checks_proposal=[0] * 4 + [1, 1],
        )  # fmt: skip
        solving = strategy.join(after, told(said, [7, 8, 8, 8], round=2))
        assert [(a.count, a.columns["proposal_member"]) for a in solving.ask] == [(3, 0)]
        assert solving.trained.tolist() == solving.counted.tolist() == [True] * 4 + [False] * 2
        assert strategy.shown(solving.ask[0], SEED, None).text == "What color is the cube?"
        assert not strategy.join(after, told(said, [7, 8, 8, 8], round=3)).asks

    @pytest.mark.parametrize("gone", ["evidence", "question", "answer"])
    def test_a_part_that_is_missing_is_no_proposal(self, gone):
        assert SearchSelfPlay().read(self.SAID.replace(f"</{gone}>", ""), "") is None

    def test_a_question_that_holds_its_answer_is_none(self):
        assert SearchSelfPlay().read(self.SAID.replace("What color", "Is it Red"), "") is None
        assert SearchSelfPlay().read(self.SAID, "") == Proposal("What color is the cube?", "red", "The cube is red.")


class TestSvs:
    def test_seldom_solved_prompts_are_varied_and_keep_their_answer(self):
        """Group 0 is solved half the time, group 1 always, group 2 never, group 3 one time in four."""
        right = [1, 1, 0, 0] + [1] * 4 + [0] * 4 + [0, 1, 0, 0]
        batch = batch_of(right, [g for g in range(4) for _ in range(4)])
        said = {(g, m): f"answer {g}.{m}" for g in range(4) for m in range(4)}
        strategy = Svs(proposals=2, most=1, solvers=4)
        strategy.ask(step(size=4))
        plan = strategy.join(batch, told(said, [5, 6, 7, 8]))
        assert [(a.count, a.index, a.note) for a in plan.ask] == [(2, 8, "vary:answer 3.1")]
        assert "answer 3.1" in strategy.shown(plan.ask[0], SEED, None).text

        more = batch_of([*right, 0, 0], [*[g for g in range(4) for _ in range(4)], 4, 4], proposes=[0] * 16 + [1, 1])
        said |= {(4, 0): "<question>How many in all?</question>", (4, 1): "<question>How many?</question>"}
        plan = strategy.join(more, told(said, [5, 6, 7, 8, 8], round=2))
        assert [(a.count, a.columns["proposal_member"]) for a in plan.ask] == [(4, 0)], "the second repeats its prompt"
        assert strategy.shown(plan.ask[0], SEED, None).columns == SEED.columns

    def test_without_one_in_the_band_nothing_is_asked(self):
        strategy = Svs()
        assert strategy.join(batch_of([1, 1, 0, 0], [0, 0, 1, 1]), told({}, [5, 6])) is None


class TestProposals:
    def paid(self, scores: list[float], **options) -> float:
        """What the one proposal of group 0 earns, whose answers came to `scores`."""
        n = len(scores)
        batch = batch_of(
            [0.3, *scores], [0] + [1] * n, proposes=[1] + [0] * n, proposal_group=[-1] + [0] * n,
            proposal_member=[-1] + [0] * n,
        )  # fmt: skip
        shaped = Bound.of("shaping", {"name": "proposals", **options})(batch)
        assert shaped[1:].tolist() == pytest.approx(scores, nan_ok=True), "solvers keep their reward"
        return float(shaped[0])

    @pytest.mark.parametrize(
        ("scores", "paid"), [([0, 0, 0, 1], 0.75), ([0, 1], 0.5), ([1, 1], -0.5), ([0, 0], -0.5), ([], -1.0)]
    )
    def test_rare_success_is_worth_most(self, scores, paid):
        assert self.paid([float(s) for s in scores]) == pytest.approx(paid)

    @pytest.mark.parametrize(("right", "paid"), [(0, 0), (1, 1), (5, 1), (6, 0), (8, 0)])
    def test_svs_pays_inside_its_band(self, right, paid):
        assert self.paid([1.0] * right + [0.0] * (8 - right), kind="band", useless=0.0, malformed=0.0) == paid

    def test_search_self_play_pays_for_what_nobody_solves(self):
        paid = [self.paid(scores, kind="failure", useless=0.0, malformed=0.0) for scores in ([0.0, 0.0], [1.0, 1.0])]
        assert paid == [1.0, 0.0]

    def test_answers_without_a_score_say_nothing(self):
        assert self.paid([float("nan"), 1.0, 0.0]) == pytest.approx(0.5)
        assert torch.isnan(torch.tensor(self.paid([float("nan")])))

    def test_checks_are_no_answers(self):
        batch = batch_of([0, 1], [0, 1], proposes=[1, 0], proposal_group=[-1, 0], proposal_member=[-1, 0],
                         checks_proposal=[0, 1])  # fmt: skip
        assert Bound.of("shaping", "proposals")(batch)[0] == -1
