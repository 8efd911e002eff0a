"""What `evaluate` scores of rollouts: one object, which every policy has.

    tokens      the log-prob of a token that was written            mmrl.policies.language.likelihoods
    transition  that of a stochastic denoising step                 mmrl.policies.generation.likelihoods
    matching    the flow-matching loss at draws of time and noise   mmrl.policies.generation.likelihoods
    masked      that of tokens hidden from a masked model           mmrl.policies.masked.likelihoods

`T`, the action axis, is the axis of what a likelihood draws. One of your own is a subclass in a file of yours, of the
family's own base, `policy.likelihood: my.py:Mine`. All of them answer `score`, inside the one forward pass of the
wrapped module; how the things to score come out of rollouts is the family's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from mmrl import plugins
from mmrl.errors import ConfigError, unknown
from mmrl.stages import Need


class Likelihood:
    """One object for rollout and training, so that they cannot differ.

    probes  what `score` can return besides log-probs; kept: columns that rollouts have of it
    trains  "ratio": objectives read its log-probs; "matching": they read its probes, and log-probs of the rollout
            are not computed
    """

    probes: ClassVar[frozenset[str]] = frozenset()
    kept: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[Literal["ratio", "matching"]] = "ratio"

    def __init__(self, config: Any):
        """config  the run's `policy` section"""
        self.config = config

    @classmethod
    def offers(cls) -> frozenset[str]:
        """Every probe that a stage function may need of it."""
        return cls.probes | cls.kept | ({"log_probs"} if cls.trains == "ratio" else set())

    @property
    def actions(self) -> int:
        """The limit on T."""
        raise NotImplementedError

    def settings(self) -> dict[str, float]:
        """What rollout and training must agree on, stored with every rollout."""
        return {}

    def score(self, work: Any, predict: Any, asked: Sequence[Need]) -> dict[str, Tensor]:
        """`{"log_probs": (N, ...), need.key: (N, ...)}` float32.

        work     what is scored: N states of denoising, tokens, or canvases with their noise
        predict  what the model says of it: velocities, logits, or log-probs of hidden tokens
        """
        raise NotImplementedError


Kind = TypeVar("Kind", bound=Likelihood)


def likelihood_class(name: str, known: Mapping[str, str], base: type[Kind]) -> type[Kind]:
    """A likelihood by name, or the one that `path/to/file.py:name` or `package.module:name` names.

    known  {name: "module:class"} of the family
    base   what one of your own must be a subclass of
    """
    if not plugins.is_reference(name):
        if name not in known:
            raise ConfigError(unknown("likelihood", name, known))
        module, _, attribute = known[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = plugins.load(name, "likelihood")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"likelihood {name!r} is {found!r:.80}; expected a subclass of {base.__module__}.{base.__qualname__}"
        )
    return found
