"""What a language policy's `evaluate` scores of a response: one object a run, by name or from a file.

tokens       the log-prob of each token that was written, and what its distribution says besides; T is their axis
soft_tokens  the density of mixtures of tokens, as engine `soft` writes them
limited      the log-prob among the tokens that were allowed, as engine `nlpo` keeps them
"""

from __future__ import annotations

from mmrl.policies import likelihood
from mmrl.policies.language.likelihoods.tokens import Tokens

LIKELIHOODS = {
    "tokens": "mmrl.policies.language.likelihoods.tokens:Tokens",
    "limited": "mmrl.policies.language.likelihoods.limited:Limited",
    "soft_tokens": "mmrl.policies.language.likelihoods.soft_tokens:SoftTokens",
}


def likelihood_class(name: str) -> type[Tokens]:
    """By name, or by `path/to/file.py:name`."""
    return likelihood.likelihood_class(name, LIKELIHOODS, Tokens)
