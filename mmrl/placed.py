"""What a trainer that Ray placed knows of the others: where the cluster is, and which actors write and score.

The driver (`mmrl.pipelines.ray_launch`) says it in one environment variable, so that a trainer is an ordinary
`mmrl train`. Ray is imported where an actor is first asked for.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

VARIABLE = "MMRL_PLACED"


@dataclass(frozen=True)
class Placed:
    """address, namespace  of the cluster and of this run's actors in it
    engines         how many actors write responses, `engine-0` and on
    reward_workers  how many run rewards, `reward-0` and on
    attempt         how often the trainers have begun: weights of an earlier attempt are not this one's
    rank, world     of this trainer
    ahead           steps that engines write while one trains: as many older weights are still asked for
    """

    address: str
    namespace: str
    engines: int = 0
    reward_workers: int = 0
    attempt: int = 0
    rank: int = 0
    world: int = 1
    ahead: int = 0

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    def actor(self, name: str) -> Any:
        """The actor of this run that has the name."""
        import ray

        if not ray.is_initialized():
            ray.init(address=self.address, namespace=self.namespace, log_to_driver=False, configure_logging=False)
        return ray.get_actor(name, namespace=self.namespace)


def placed() -> Placed | None:
    """None where nobody placed this process."""
    said = os.environ.get(VARIABLE)
    return None if said is None else Placed(**json.loads(said))
