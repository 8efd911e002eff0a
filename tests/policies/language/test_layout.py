"""Which way `auto` takes, from lengths alone."""

from types import SimpleNamespace

import pytest
import torch

from mmrl.policies.language.layout import Way, cheaper


def taken(way: Way, prompt: int, new: int, members: int) -> Way:
    """For one group of answers of `new` tokens to a prompt."""
    mask = torch.ones(members, new, dtype=torch.bool)
    extent = torch.full((members,), new)
    rows = SimpleNamespace(prompt=torch.zeros(members, dtype=torch.long), mask=mask, extent=extent)
    return cheaper(way, [range(prompt)], rows)


@pytest.mark.parametrize(
    ("way", "prompt", "new", "members", "wanted"),
    [
        (Way.PACKED, 282, 64, 8, Way.PACKED),  # 794 tokens of 1.25, and 2,768 plain ones
        (Way.PACKED, 90, 64, 1, Way.PLAIN),
        (Way.PACKED, 90, 1024, 8, Way.PACKED),  # 8,282 and 8,912: measured 3.6 s and 4.0
        (Way.TWO_CALLS, 90, 1024, 8, Way.PLAIN),  # measured 4.4 s and 4.0
        (Way.PACKED, 90, 1024, 1, Way.PLAIN),  # nothing is shared
        (Way.TWO_CALLS, 1050, 64, 8, Way.TWO_CALLS),
        (Way.PLAIN, 282, 64, 8, Way.PLAIN),
    ],
)
def test_what_is_shared_decides(way, prompt, new, members, wanted):
    assert taken(way, prompt, new, members) is wanted
