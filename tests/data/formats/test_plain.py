from mmrl.data.datasets import open_dataset
from tests.data.formats.shown import Shown, opened, shown


def test_our_own_rows(folder):
    rows = [{"prompt": "Which?", "image": "images/red.png", "solution": "<answer>red</answer>", "task": "exact"},
            {"prompt": "Which?", "options": {"A": "left", "B": "right"}, "solution": "B"}]  # fmt: skip
    data = opened(folder, *rows)
    assert data.format == "mmrl"
    assert shown(data) == [
        Shown("<image>Which?", [(56, 56)], [], "<answer>red</answer>", "exact"),
        Shown("Which?\nA. left\nB. right", [], [], "B", None, ["A. left", "B. right"]),
    ]


def test_a_prompt_a_line(folder):
    (folder / "prompts.txt").write_text('\ufeffa red cube left of a blue ball\r\n\na sign that reads "OPEN LATE"\n')
    data = open_dataset(folder / "prompts.txt")
    assert data.format == "prompts"
    assert shown(data) == [Shown("a red cube left of a blue ball"), Shown('a sign that reads "OPEN LATE"')]
    assert data.where(1).endswith("prompts.txt, line 3")
