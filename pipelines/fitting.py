"""Whether stage functions are for what acts: the policy's modality, or those of a joint policy's parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmrl.errors import ConfigError, unknown
from mmrl.objective import Objective
from mmrl.stages import Bound


def refuse_strange(modality: str, parts: Mapping[str, str], objective: Objective, beside: Iterable[Bound]) -> None:
    """ConfigError for a stage function that is not for what it judges.

    parts   {kind of action: the modality whose functions judge it}; empty for a policy of one model
    beside  what chooses prompts and asks for rollouts
    """
    if strange := [kind for kind in objective.kinds if parts and kind not in parts]:
        raise ConfigError(f"objective.kinds: {unknown('kind of action here', strange[0], parts)}")
    judged = {id(b): {parts[kind]} for kind, own in objective.kinds.items() if parts for b in own.stages}
    everyone = set(parts.values()) or {modality}
    shared = {id(objective.advantage)}
    for bound in (*beside, *objective.stages):
        acting = everyone if id(bound) in shared else judged.get(id(bound), everyone)
        if left := sorted(acting - set(bound.spec.modalities)):
            supported = ", ".join(bound.spec.modalities)
            of = f"{modality!r}, whose rows are judged as {' and '.join(sorted(acting))}" if parts else f"{left[0]!r}"
            raise ConfigError(f"{bound.spec.stage} {bound.name!r} is for {supported}, not for {of}")
