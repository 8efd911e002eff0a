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


class SurroundingsError(MMRLError):
    """An environment that failed more rows than a run may lose."""


class SelfCheckError(MMRLError):
    """The first update does not see the probabilities the rollout was sampled with."""


class StorageError(MMRLError):
    """A disk that is full, read-only or refuses; names the path. What was saved before still stands."""


class NonFiniteError(MMRLError):
    """A loss, gradient or weight that is not finite; raised before the optimizer moves.

    acting  the policy could not even act: its weights are no state to go on from
    """

    def __init__(self, message: str, acting: bool = False):
        super().__init__(message)
        self.acting = acting


SHOWN_CHARACTERS = 80
SHOWN_NAMES = 30


def got(value: object) -> str:
    """A value as an error shows it: on one line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        text = f"a {type(value).__name__} with a number too large to be written"
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def finite(value: object, what: str) -> float:
    """A number of a configuration. Raises ConfigError that names `what`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ConfigError(f"{what}: expected a finite number, got {got(value)}")
    return float(value)


def unknown(kind: str, name: object, known: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """`unknown trust region 'clp'; did you mean 'clip'? Known: cispo, clip, ...`; aliases are only suggested.

    Of many names the nearest are shown.
    """
    known = sorted(map(str, known))
    word = name if isinstance(name, str) else got(name)
    close = difflib.get_close_matches(word[:SHOWN_CHARACTERS], [*known, *aliases], n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    shown = ", ".join(known) or "none"
    if len(known) > SHOWN_NAMES:
        nearest = difflib.get_close_matches(word[:SHOWN_CHARACTERS], known, n=SHOWN_NAMES // 2, cutoff=0.0)
        shown = f"{', '.join(nearest)} and {len(known) - len(nearest)} more"
    return f"unknown {kind} {got(name)}{hint} Known: {shown}"
