"""Every draft is edited once, and edits count."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.rollout.reflectdrive_2 import ReflectDrive2
from tests.rollout.plans import rows, step


def columns(*episode):
    values = torch.tensor(episode, dtype=torch.float64)
    return {"episode": values, "part": (values >= 0).double()}


def test_drafts_then_edits_that_count():
    strategy = ReflectDrive2()
    assert [a.count for a in strategy.ask(step(size=6)).ask] == [3, 3]
    drafts = rows([0, 0, 1, 0], [0, 0, 1, 1], member=torch.tensor([0, 1, 0, 1]), columns=columns(-1, -1, -1, -1))
    plan = strategy.join(drafts, step(1))
    assert [(a.group, a.note, a.trains, a.columns["episode"]) for a in plan.ask] == [
        (0, 0, "shown", 0), (0, 1, "shown", 1), (1, 0, "shown", 0), (1, 1, "shown", 1),
    ]  # fmt: skip
    both = rows([0, 0, 1, 1, 0, 1, 0], [0] * 4 + [1] * 3, member=torch.tensor([0, 1, 2, 3, 0, 1, 2]),
                columns=columns(-1, -1, 0, 1, -1, -1, 0))  # fmt: skip
    plan = strategy.join(both, step(2))
    assert not plan.asks, "once a group"
    assert plan.counted.tolist() == [False, False, True, True, False, True, True], "an empty draft is its own end"
    assert plan.trained.all()


def test_a_group_that_leaves_nothing_to_compare_is_refused():
    with pytest.raises(ConfigError, match="a group of at least 4"):
        ReflectDrive2().ask(step(size=3))
    with pytest.raises(ConfigError, match=r"lacks \{draft\}"):
        ReflectDrive2(template="Edit it.")
