from tests.data.formats.shown import Shown, opened, shown


def test_rows_of_trl(folder):
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}]
    plain = [{"role": "user", "content": "Which colour?"}]
    rows = [
        {"prompt": bare, "image": "images/red.png", "solution": "red"},
        {"prompt": plain, "images": ["images/blue.png"], "completion": [{"role": "assistant", "content": "blue"}]},
        {"prompt": "2 + 2?", "completion": "4"},
    ]
    data = opened(folder, *rows)
    assert data.format == "trl"
    assert shown(data) == [
        Shown("<image>Which colour?", [(56, 56)], [], "red"),
        Shown("<image>Which colour?", [(64, 32)], [], "blue"),
        Shown("2 + 2?", solution="4"),
    ]
