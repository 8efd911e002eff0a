"""What a generator's `evaluate` scores, and what its rollouts keep for it: one object a run, by name or from a file.

transition  the log-prob of a stochastic denoising step; T is the axis of steps
matching    the flow-matching loss of the clean output at random times and noises; T is the axis of draws
"""

from __future__ import annotations

from mmrl.policies import likelihood
from mmrl.policies.generation.likelihoods.base import Likelihood

LIKELIHOODS = {
    "transition": "mmrl.policies.generation.likelihoods.transition:Transition",
    "matching": "mmrl.policies.generation.likelihoods.matching:Matching",
}


def likelihood_class(name: str) -> type[Likelihood]:
    """By name, or by `path/to/file.py:name`."""
    return likelihood.likelihood_class(name, LIKELIHOODS, Likelihood)
