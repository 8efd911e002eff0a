"""What the policy's `evaluate` scores, and what its rollouts keep for it: one object a run, by name or from a file.

transition  the log-prob of a stochastic denoising step; T is the axis of steps
matching    the flow-matching loss of the clean output at random times and noises; T is the axis of draws
"""

from __future__ import annotations

import importlib

from mmrl import plugins
from mmrl.errors import ConfigError, unknown
from mmrl.policies.generation.likelihoods.base import Likelihood

LIKELIHOODS = {
    "transition": "mmrl.policies.generation.likelihoods.transition:Transition",
    "matching": "mmrl.policies.generation.likelihoods.matching:Matching",
}


def likelihood_class(name: str) -> type[Likelihood]:
    """A likelihood by name, or the one that `path/to/file.py:name` or `package.module:name` names."""
    if plugins.is_reference(name):
        found = plugins.load(name, "likelihood")
        if not (isinstance(found, type) and issubclass(found, Likelihood)):
            raise ConfigError(
                f"likelihood {name!r} is {found!r:.80}; expected a subclass of "
                "mmrl.policies.generation.likelihoods.base.Likelihood"
            )
        return found
    if name not in LIKELIHOODS:
        raise ConfigError(unknown("likelihood", name, LIKELIHOODS))
    module, _, attribute = LIKELIHOODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
