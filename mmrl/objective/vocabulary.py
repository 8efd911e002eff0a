"""Hyper-parameters that are token ids, given as the texts of tokens: the policy's tokenizer finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mmrl.errors import ConfigError
from mmrl.stages import Bound

Ids = Callable[[str], list[int]]


def name_tokens(stages: Iterable[Bound], ids: Ids) -> None:
    """Put ids in the place of texts, in every hyper-parameter that a stage function declares in `vocabulary`.

    ids  the ids of a text in the policy's vocabulary, without what the tokenizer adds around it
    """
    for bound in stages:
        for name, kind in bound.spec.vocabulary.items():
            given = bound.parameters.get(name, ())
            if any(isinstance(each, str) for each in given):
                where = f"{bound.spec.stage} {bound.name!r}: {name}"
                bound.parameters[name] = [i for each in given for i in _found(each, kind, where, ids)]


def _found(given: int | str, kind: str, where: str, ids: Ids) -> list[int]:
    if isinstance(given, int):
        return [given]
    found = ids(given)
    if not found or (kind == "single" and len(found) != 1):
        raise ConfigError(
            f"{where}: {given!r} is {len(found)} tokens of this model's vocabulary, expected one: take a model whose "
            "tokenizer has it as a token of its own, or name another"
        )
    return found


def numbers(given: Sequence[int | str], where: str) -> list[int]:
    """The ids as they are; ConfigError for a text, which only a training with a tokenizer can read."""
    for each in given:
        if isinstance(each, str):
            raise ConfigError(f"{where}: {each!r} is a text, and there is no tokenizer here: give its id")
    return [int(each) for each in given]
