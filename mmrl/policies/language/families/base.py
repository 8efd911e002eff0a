"""What a model can do, as it was found when it was loaded.

Nothing here is listed by family: the self-check (`check.py`) compares each way to run a model with one unpadded row
of raw media through the model's own forward pass. What does not agree is not used; what takes its place is slower,
never wrong, and is named in `Capabilities.fallbacks`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Capabilities:
    """Each False (or None) falls back to something slower.

    features      media encoded once per prompt and given to later passes; else raw media in every pass
    batches       rows of different prompts in one padded batch: "media" with raw media of all of them one after the
                  other, "features" only with each prompt's media encoded by themselves, None: one prompt at a time
    linear_head   logits are `soft cap(scale * head(states))`: only states that predict an action meet the head
    prefix_cache  a prompt runs once, and all responses of its group go on from its cache: scoring in two calls, and
                  decoding
    shared_cache  decoding reads one copy of the prompt's keys and values for the whole group
    packed        a group in one packed row: "causal", "masked" (prompts need the model's own mask), None: not exact
    turns         a picture in a later turn, put behind what the model wrote
    learns        gradient reaches what reads media; not through codes that pictures are turned into
    borrows       what is made of media has the decoder's own embeddings in it: it is not kept while those train
    scale         of the head's output
    limit         tokens that a row may have, prompt and response: beyond, log-probs are not settled. None: no limit
    gaps          largest difference of a log-prob from the reference, for each of the above; or what was raised
    fallbacks     what is not used, and what is used in its place
    """

    features: bool = False
    batches: Literal["media", "features"] | None = None
    linear_head: bool = False
    prefix_cache: bool = False
    shared_cache: bool = False
    packed: Literal["causal", "masked"] | None = None
    turns: bool = False
    learns: bool = True
    borrows: bool = False
    scale: float = 1.0
    limit: int | None = None
    gaps: dict[str, float | str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def named_fallbacks(self) -> list[str]:
        """What a reader should know of this model's speed, in words."""
        said = {
            "media pass the encoders in every pass (no features to keep)": self.features,
            "one prompt at a time (no padded batches of unlike prompts)": self.batches,
            "prompts run again for every response (no cache to go on from)": self.prefix_cache,
            "decoding repeats the prompt's cache for every row (no shared copy)": self.shared_cache,
            "pictures in later turns are refused (the row is not what its conversation would be)": self.turns,
            "groups are scored in two calls or plain rows (no packed row)": self.packed,
            "what reads media cannot be trained (no gradient reaches it)": self.learns,
            f"rows of more than {self.limit} tokens are refused (chosen keys may score alike)": not self.limit,
        }
        return [text for text, there in said.items() if not there]
