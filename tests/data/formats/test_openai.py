import base64

import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown


def asked(*parts, answer="red") -> dict:
    chat = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": "Be brief."}, *chat]}


def test_parts_addresses_and_answers(folder):
    uri = "data:image/png;base64," + base64.b64encode((folder / "images" / "blue.png").read_bytes()).decode()
    text = {"type": "text", "text": "Which?"}
    rows = [
        asked(text, {"type": "image_url", "image_url": {"url": uri, "detail": "auto"}}),
        asked({"type": "image_url", "image_url": "images/red.png"}, text, answer=[{"type": "text", "text": "blue"}]),
    ]
    data = opened(folder, *rows)
    assert data.format == "openai"
    assert shown(data) == [
        Shown("Be brief.\nWhich?<image>", [(64, 32)], [], "red"),
        Shown("Be brief.\n<image>Which?", [(56, 56)], [], "blue"),
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "images/red.png", "detail": "low"}},
            "detail 'low' is not honoured",
        ),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "type text, image or video"),
    ],
)
def test_what_is_not_honoured_is_refused(folder, part, message):
    with pytest.raises(DataError, match=message):
        opened(folder, asked(part))
