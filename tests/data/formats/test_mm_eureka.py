import json

import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, shown


def row(folder) -> dict:
    image = {"type": "image", "image": f"file://{folder / 'images' / 'red.png'}"}
    message = [{"role": "user", "content": [image, {"type": "text", "text": "How many squares?"}]}]
    return {"id": "0", "message": json.dumps(message), "answer": "\\frac{2}{2}"}


@pytest.mark.parametrize("columns", [None, {"prompt": "message", "solution": "answer"}])
def test_messages_in_a_string_are_messages(folder, columns):
    data = opened(folder, row(folder), columns=columns)
    assert data.format == "mm_eureka" and data.ids() == ["0"]
    assert shown(data) == [Shown("<image>How many squares?", [(56, 56)], [], "\\frac{2}{2}", "math")]


def test_a_message_that_is_none_is_refused(folder):
    with pytest.raises(DataError, match="column 'message': expected chat messages as a JSON string"):
        opened(folder, {**row(folder), "message": "How many?"})
