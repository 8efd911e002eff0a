"""The groups of one step: who they are, how their members are numbered, and which rank holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmrl.errors import ConfigError
from mmrl.record import Prompt
from mmrl.rollout.plan import Ask, Given
from mmrl.training.balance import Balance


@dataclass
class Groups:
    """Strategies ask; this numbers. Every rank keeps the same books; prompts are opened on the rank that holds them.

    Members are numbered per (step, prompt): a prompt that is drawn twice in a step goes on counting, so that no two
    of its rollouts have the same draws.

    rank, world  which process this is, of how many; group g lives on rank g modulo world unless `hold` says otherwise
    rows         dataset row of each group, None where a strategy made its prompt
    """

    rank: int
    world: int
    rows: list[int | None] = field(default_factory=list)
    _names: list[int | str] = field(default_factory=list)
    _made: list[Prompt | None] = field(default_factory=list)
    _members: Counter = field(default_factory=Counter)
    _opened: dict[int, Prompt] = field(default_factory=dict)
    _held: list[int] = field(default_factory=list)

    def place(self, wanted: Ask | Given) -> int:
        """The group of `wanted`; a new one where it names none."""
        if wanted.group is not None:
            if not 0 <= wanted.group < len(self.rows):
                raise ConfigError(
                    f"a rollout strategy asks for group {wanted.group}, and this step has groups 0 to "
                    f"{len(self.rows) - 1}; leave `group` out to open a new one"
                )
            return wanted.group
        if (wanted.index is None) == (wanted.prompt is None):
            raise ConfigError(
                "a rollout strategy opens a group with neither or both of `index` (a dataset row that step.draw gave) "
                "and `prompt` (one it made itself); give one of them"
            )
        self.rows.append(wanted.index)
        self._names.append(wanted.index if wanted.prompt is None else wanted.prompt.id)
        self._made.append(wanted.prompt)
        return len(self.rows) - 1

    def number(self, group: int, count: int) -> int:
        """The first of `count` new members of `group`."""
        name = self._names[group]
        self._members[name] += count
        return self._members[name] - count

    def hold(self, balance: Balance) -> None:
        """Say where the groups live that were opened since."""
        new = self.rows[len(self._held) :]
        self._held += balance.places(new, first=len(self._held) % self.world)

    def mine(self, group: int) -> bool:
        rank = self._held[group] if group < len(self._held) else group % self.world
        return rank == self.rank

    def prompt(self, group: int, prompts: Sequence[Prompt]) -> Prompt:
        """The prompt of a group that this rank holds, opened once."""
        if group not in self._opened:
            made, row = self._made[group], self.rows[group]
            self._opened[group] = made if row is None else prompts[row]  # type: ignore[assignment]
        return self._opened[group]
