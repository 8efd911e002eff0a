"""The colours of reports, charts and notebooks."""

from __future__ import annotations

UP, DOWN = "#2456a5", "#c23a2a"
"""What an update makes likelier, and less likely."""
INK, SOFT, LINE, PAPER, CARD = "#22252b", "#69707d", "#e1e4e9", "#f7f8fa", "#ffffff"
SERIES = (UP, "#c2571a", "#2f7d4f", "#8b3f8f", "#8a7a1d", "#356f7e", "#a03a4a", "#5b5b5b")
"""Lines of one chart, in order."""


def signed(share: float) -> str:
    """The colour of a signed quantity."""
    return UP if share > 0 else DOWN


def tint(color: str, opacity: float) -> str:
    """`#rrggbb` as CSS writes it with an opacity in [0, 1]."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return f"rgba({red}, {green}, {blue}, {opacity:.2f})"
