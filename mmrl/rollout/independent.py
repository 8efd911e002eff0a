"""Independent draws: the plain way to act, and what every other strategy begins with."""

from __future__ import annotations

from mmrl.rollout.plan import Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "independent",
    paper="-",
    confidence="ours",
    formula="group_size members of each of prompts_per_step prompts, each drawn for itself",
)
class Independent(Strategy):
    """One round, nothing added: what a run does that names no strategy."""

    origins = ()
