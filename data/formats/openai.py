"""OpenAI chat: `messages` whose contents are parts, images as `image_url` addresses; the last answer is the truth.

Source: the chat completions reference; ms-swift reads the same rows.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, is_messages


def recognise(raw: Raw) -> bool:
    messages = raw.get("messages")
    return (
        is_messages(messages)
        and raw.get("prompt") is None
        and any(isinstance(m.get("content"), list) for m in messages)
    )


FORMAT = Format("openai", "OpenAI messages", recognise, names={"prompt": "messages"})
