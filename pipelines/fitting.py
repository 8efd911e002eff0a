"""Whether stage functions, rewards and rows are for what acts: one policy, or the parts of a joint one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmrl.errors import ConfigError, DataError, unknown
from mmrl.objective import Objective
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardSpec
from mmrl.rewards.registry import registered
from mmrl.stages import Bound
from mmrl.told import names_of, place_of


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


def refuse_readers(rewards: Iterable[RewardSpec], kinds: Sequence[str]) -> None:
    """ConfigError for a reward that reads a stretch rows do not have, or all of a row where it knows one output.

    kinds  "text" or "picture" of each stretch of a row; empty where a row is one output
    """
    for spec in rewards:
        name, several = spec.label or spec.name, names_of(list(kinds))
        if spec.of is not None and not kinds:
            raise ConfigError(
                f"reward {name!r} reads of: {spec.of}, one stretch of an output, and here an output is one text, "
                "picture or film; `of` is for policies that write and paint in turns (mmrl train joint)"
            )
        if spec.of is not None:
            try:
                place_of(spec.of, list(kinds))
            except KeyError:
                raise ConfigError(f"reward {name!r}: {unknown('stretch', spec.of, several)}") from None
        elif kinds and spec.name in registered():
            raise ConfigError(
                f"reward {name!r} reads one output, and a row here has several: give it `of`, one of "
                f"{', '.join(several)}"
            )


def refuse_unasked(names: Sequence[str], prompts: Sequence[Prompt]) -> None:
    """DataError for the first row without a column that the policy puts into what it is asked."""
    if not names:
        return
    known = prompts.columns if hasattr(prompts, "columns") else lambda index: prompts[index].columns
    for index in range(len(prompts)):
        columns = known(index)
        if columns is None:
            columns = prompts[index].columns  # one that a world draws: all have the columns of the first
        if lost := [name for name in names if name not in columns]:
            there = ", ".join(sorted(columns)) or "none"
            where = prompts.where(index) if hasattr(prompts, "where") else ""
            raise DataError(
                f"{where or f'prompt {prompts[index].id!r}'}: policy.turns reads {{{lost[0]}}}, which is no column of "
                f"it; there are {there}"
            )
        if known(index) is None:
            return
