from tests.data.formats.shown import Shown, opened, roles, shown


def test_the_image_of_an_edit_is_a_condition(folder):
    row = {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "make it two cups",
           "image": "images/red.png", "t2i_prompt": "a photo of two cups"}  # fmt: skip
    data = opened(folder, row)
    assert data.format == "flow_edit"
    assert shown(data) == [Shown("<image>make it two cups", [(56, 56)])]
    assert roles(data[0]) == ["condition"]
    assert data[0].text == "make it two cups"


def test_plain_rows_can_say_the_same(folder):
    part = {"type": "image", "image": "images/red.png", "role": "condition"}
    rows = [
        {"prompt": "at night", "condition_image": "images/red.png"},
        {"prompt": "at dawn", "image": {"path": "images/red.png", "role": "condition"}},
        {"prompt": [{"role": "user", "content": [part, {"type": "text", "text": "at noon"}]}]},
        {"prompt": "like <image>", "condition_image": "images/red.png", "image": "images/blue.png"},
    ]
    data = opened(folder, *rows)
    assert [roles(p) for p in data] == [["condition"], ["condition"], ["condition"], ["condition", None]]
    assert shown(data)[3] == Shown("<image>like <image>", [(56, 56), (64, 32)])
