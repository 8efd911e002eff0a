"""Where rows come from: what is declared, planned, counted and written down is one and the same."""

import json

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.rollout.nesting import Nested
from mmrl.rollout.origins import HINTED, OWN, SHOWN, Tally, brought, merged
from mmrl.rollout.plan import Ask, Given, Plan, Strategy, planned
from mmrl.stages import registered
from mmrl.training.bridge import NoLongerFalling
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.rollout.hinted import hinted_prompts, score_right
from tests.rollout.plans import rows, step
from tests.rollout.test_strategies import nested
from tests.training.tiny import make_policy


def trainer_of(folder, rollout, **changes):
    settings = {"steps": 1, "prompts_per_step": 2, "group_size": 4, "learning_rate": 1e-3, **changes}
    return Trainer(
        make_policy(), Objective.of({}), hinted_prompts(2), score_right, TrainingConfig(**settings), folder,
        rollout=rollout,
    )  # fmt: skip


def test_requests_tell_what_their_rows_will_be():
    assert planned(Ask(1, group=0)) == OWN
    assert planned(Ask(1, group=0, note=1)) == HINTED and planned(Ask(1, group=0, note=1, trains="shown")) == SHOWN
    assert planned(Given("demonstration", "one", group=0)) == brought("demonstration", "one")


def test_every_shipped_strategy_declares_its_rows_and_others_are_refused():
    shipped = [f for f in registered("rollout") if f.function.__module__.startswith("mmrl.")]
    unsaid = [f.name for f in shipped if getattr(f.function, "origins", None) is None]
    assert unsaid == ["demonstrations"], "which depends on a parameter"
    assert Nested.of([{"name": "demonstrations", "behaviour": "one"}]).strategies[0].origins

    class Silent(Strategy):
        origins = (OWN,)

        def join(self, batch, step):
            return Plan([Ask(1, group=0, note="a hint")])

    with pytest.raises(ConfigError, match="origin that it does not declare"):
        nested(Silent()).join(rows([0, 1], [0, 0]), step(1))


def test_a_step_counts_its_rows_by_source_and_each_saved_row_says_its_own(tmp_path):
    """Nobody is right: guide's hints take places of wrong ones, and a stored answer of probability 1 joins."""
    told = []
    trainer = trainer_of(tmp_path, [{"name": "demonstrations", "behaviour": "one"}, "guide"])
    trainer.report = lambda step, metrics: told.append(metrics)
    trainer.train()
    lines = {(line["source"], line["saw"]): line for line in told[0]["rows_by_source"]}
    assert [(line["rows"], line["counted"], line["trained"]) for line in lines.values()] == [
        (8, 4, 4),
        (4, 4, 4),
        (2, 2, 2),
    ]
    kinds = [OWN, HINTED, brought("demonstration", "one")]
    assert list(lines) == [(k.source, k.saw) for k in kinds]
    assert [line["divisor"] for line in lines.values()] == [k.divisor for k in kinds]
    assert [line["oldest"] for line in lines.values()] == [0, 0, -1]
    saved = [json.loads(line) for line in (tmp_path / "rollouts/step-000001/rows.jsonl").read_text().splitlines()]
    assert {(row["source"], row["saw"], row["divisor"]) for row in saved} == {
        (k.source, k.saw, k.divisor) for k in kinds
    }


def test_ranks_add_up_and_the_oldest_is_kept():
    one, two = {OWN: Tally(2, 2, 1, 0)}, {OWN: Tally(3, 1, 1, 2), SHOWN: Tally(1, 1, 1, 0)}
    lines = merged([one, two], "old")
    assert [(x["rows"], x["counted"], x["trained"], x["oldest"], x["weights"]) for x in lines] == [
        (5, 3, 2, 2, "old"), (1, 1, 1, 0, "old"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["deepsearch", "supo", "m_grpo", "ssb", "refine"])
def test_a_resumed_step_of_strategies_that_ask_in_rounds_is_the_step_that_went_on(name, tmp_path):
    from tests.training.two_ranks import OBJECTIVES, ROLLOUTS, SCORES, score_vowels

    def run(folder, steps, resume=None):
        prompts = hinted_prompts(3)
        settings = TrainingConfig(steps=steps, prompts_per_step=2, group_size=2, learning_rate=1e-3, save_every=1)
        trainer = Trainer(
            make_policy(), Objective.of(OBJECTIVES[name]), prompts, SCORES.get(name, score_vowels), settings, folder,
            rollout=ROLLOUTS[name],
        )  # fmt: skip
        trainer.train(resume)
        return trainer

    whole = run(tmp_path / "whole", 2)
    resumed = run(tmp_path / "part", 2, tmp_path / "whole" / "checkpoints" / "step-000001")
    assert json.dumps(whole.strategies.state_dict()) == json.dumps(resumed.strategies.state_dict())
    for weight, value in whole.policy.trainable_state().items():
        assert torch.equal(value, resumed.policy.trainable_state()[weight]), weight


def test_distillation_ends_where_the_teacher_is_no_longer_nearer():
    monitor = NoLongerFalling(window=2, least=0.1)
    for number, kl in enumerate([4.0, 3.0, 2.0, 1.0]):
        monitor.watch(number, {"teacher/kl": kl})
    assert not monitor.ended, "1.5 after 3.5"
    monitor.watch(5, {"teacher/kl": 1.9})
    monitor.watch(6, {"teacher/kl": 1.0})
    assert "no longer falls: 1.5000, then 1.4500" in monitor.ended
