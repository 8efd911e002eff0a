"""One family of errors for bad input: what was received, what was expected, the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MMRLError(Exception):
    """Something the user can mend. Shown by the command line as one line, without a traceback."""


class ConfigError(MMRLError):
    """A configuration, recipe or override that cannot work; raised before anything is loaded."""


class DataError(MMRLError):
    """A dataset row, image or video that cannot be used; names file, row and column."""


class RewardError(MMRLError):
    """A reward that is unknown, mis-declared, or left too many rollouts unscored.

    column  of the data set, where one is at fault
    """

    def __init__(self, message: str, column: str = ""):
        super().__init__(message)
        self.column = column


class PolicyError(MMRLError):
    """A policy that cannot do what was asked, or whose inputs do not fit together."""


class SelfCheckError(MMRLError):
    """The first update does not see the probabilities the rollout was sampled with."""


class NonFiniteError(MMRLError):
    """A loss, gradient or weight that is not finite; raised before the optimizer moves.

    acting  the policy could not even act: its weights are no state to go on from
    """

    def __init__(self, message: str, acting: bool = False):
        super().__init__(message)
        self.acting = acting


def unknown(kind: str, name: str, known: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """`unknown trust region 'clp'; did you mean 'clip'? Known: cispo, clip, ...`; aliases are only suggested."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), [*known, *aliases], n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"
