from tests.data.formats.shown import Shown, opened, shown


def test_tags_and_answers_of_sharegpt_messages(folder):
    said = [
        {"role": "user", "content": "<image>Is it the colour of <image>?"},
        {"role": "assistant", "content": "no"},
    ]
    data = opened(folder, {"messages": said, "images": ["images/red.png", "images/blue.png"]})
    assert data.format == "sharegpt"
    assert shown(data) == [Shown("<image>Is it the colour of <image>?", [(56, 56), (64, 32)], [], "no")]
