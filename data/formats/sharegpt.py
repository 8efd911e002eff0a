"""ShareGPT as LLaMA-Factory writes it: `messages` with `<image>` tags that end with the answer, `images`, `videos`.

Source: hiyouga/LLaMA-Factory, data/README.md.
"""

from __future__ import annotations

from mmrl.data.formats.base import Format, Raw, is_messages


def recognise(raw: Raw) -> bool:
    return is_messages(raw.get("messages")) and raw.get("prompt") is None


FORMAT = Format("sharegpt", "ShareGPT messages", recognise, names={"prompt": "messages"}, known_by=("messages",))
