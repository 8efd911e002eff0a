"""Which tokens stand for media, or around them: a policy may never sample one."""

from __future__ import annotations

from typing import Any

KINDS = ("image", "video")
HEARD = (*KINDS, "audio")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
SEEN = ("image", "video", "visual", "vision")
AROUND = (
    "_start_token_id", "_end_token_id", "boi_token_id", "eoi_token_id", "boi_token_index", "eoi_token_index",
)  # fmt: skip
"""How settings of a configuration end that name tokens around media."""
MARKING = ("image", "video", "audio", "img", "boi", "eoi", "boa", "eoa", "slice", "tile")
"""What names of a processor's tokens have in them that stand around media or parts of them."""


def written_tokens(processor: Any) -> dict[str, str]:
    """{kind: text} that the chat template writes for one medium: mostly `image_token`; some processors keep another
    token for it, and the former for the features that take its place."""
    found = {}
    for kind in KINDS:
        if usual := getattr(processor, f"{kind}_token", None):
            others = [v for n, v in vars(processor).items() if kind in n and n.endswith("_token") and v]
            texts = list(dict.fromkeys(map(str, [usual, *others])))
            found[kind] = next((text for text in texts if _writes_one(processor, kind, text)), texts[0])
    return found


def _writes_one(processor: Any, kind: str, text: str) -> bool:
    message = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "-"}]}
    try:
        rendered = processor.apply_chat_template([message], tokenize=False)
    except Exception:  # a template that takes no such part says so when a prompt has one
        return False
    return rendered.count(text) == 1


def never_sampled(config: Any, processor: Any, vocabulary: int) -> tuple[int, ...]:
    """Ids of placeholders and of markers of media, as configuration and processor name them."""
    known = processor.tokenizer.get_vocab()
    ids = {token for kind in HEARD for token in getattr(processor, f"{kind}_token_ids", None) or ()}
    ids |= {getattr(config, f"{kind}_token_id", None) for kind in HEARD}
    ids |= {value for name, value in vars(config).items() if name.endswith(AROUND)}
    lists = {n: v for n, v in vars(config).items() if n.endswith("_token_ids") and isinstance(v, list)}
    ids |= {token for name, tokens in lists.items() if name.startswith(SEEN) for token in tokens}
    named = [*VISION_TOKENS, *(getattr(processor, f"{kind}_token", None) for kind in HEARD)]
    ids |= {known[token] for token in named if token in known} | _markers(processor)
    return tuple(sorted(i for i in ids if isinstance(i, int) and 0 <= i < vocabulary))


def _markers(processor: Any) -> set[int]:
    """Of tokens that the processor keeps by name; no ordinary word, whatever it is called."""
    added = processor.tokenizer.get_added_vocab()
    marks = [v for n, v in vars(processor).items() if n.endswith("_token") and any(word in n for word in MARKING)]
    return {added[token] for token in marks if isinstance(token, str) and token in added}
