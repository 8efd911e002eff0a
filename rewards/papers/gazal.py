"""Gazal-R1's guard against answers that say the same again and again."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import RewardError
from mmrl.rewards.registry import reward
from mmrl.rewards.wording import ngrams


def repeated_share(text: str, size: int) -> float:
    """Share of the text's runs of `size` words that stand elsewhere in it, too; 0 for a text of fewer words.

    >>> repeated_share("a b a b a b", 2)
    0.6
    """
    runs = ngrams(text.lower().split(), size)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@reward(
    "ngram_repetition",
    method="gazal_r1",
    paper="Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373; for Gazal-R1, arXiv 2506.21594",
    formula="-p (1 - different n-grams / all n-grams), of words",
    confidence="partly",
)
def ngram_repetition(completions: Sequence[str], *, size: int = 3, penalty: float = 1.0) -> list[float]:
    """0 for a text that never repeats itself, falling to `-penalty` for one that does nothing else.

    size     words of what may not be repeated: short ones punish any long text a little
    penalty  the most that it costs

    Beside a reward for right answers; alone it pays for silence. Source: huggingface/open-r1, src/open_r1/rewards.py.
    """
    if size < 1 or penalty < 0:
        raise RewardError(f"ngram_repetition: size={size}, penalty={penalty}; expected 1 word or more, and 0 or more")
    return [-penalty * repeated_share(text, size) + 0.0 for text in completions]
