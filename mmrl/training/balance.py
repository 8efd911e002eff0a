"""Which rank holds which group: about as many tokens each, by what prompts came to when they were asked last.

Ranks wait for the slowest, and clips and answers differ in length by a factor of ten. What a prompt will come to is
not known before it is answered, and opening every prompt on every rank would cost what is to be saved. So what
groups came to is remembered by data set row; a row nobody has asked for counts as the mean of the others. All ranks
keep the same books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Balance:
    """`places(rows)` -> the rank of each group. Every rank holds as many groups as it would in turn.

    world  how many ranks there are
    """

    def __init__(self, world: int, enabled: bool = True):
        self.world, self.enabled = world, enabled and world > 1
        self.tokens: dict[int, float] = {}

    def places(self, rows: Sequence[int | None], first: int = 0) -> list[int]:
        """The rank of each of these groups, the largest first to whom has least, with a group left to take.

        rows   data set row of each; None where a strategy made the prompt
        first  the rank whose turn it is
        """
        turns = [(first + place) % self.world for place in range(len(rows))]
        if not self.enabled or not any(row in self.tokens for row in rows):
            return turns
        usual = sum(self.tokens.values()) / len(self.tokens)
        cost = [usual if row is None else self.tokens.get(row, usual) for row in rows]
        left = [turns.count(rank) for rank in range(self.world)]
        held, found = [0.0] * self.world, turns
        for place in sorted(range(len(rows)), key=lambda i: (-cost[i], i)):
            rank = min((r for r in range(self.world) if left[r]), key=lambda r: (held[r], (r - first) % self.world))
            held[rank], left[rank], found[place] = held[rank] + cost[place], left[rank] - 1, rank
        return found

    def learn(self, tokens: Mapping[int, float]) -> None:
        """What groups of these data set rows came to, on any rank."""
        if self.enabled:
            self.tokens.update(tokens)

    def state_dict(self) -> dict[str, float]:
        return {str(row): tokens for row, tokens in sorted(self.tokens.items())}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.tokens = {int(row): tokens for row, tokens in state.items()}
