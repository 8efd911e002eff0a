from tests.data.formats.shown import Shown, opened, shown


def test_rows_of_easyr1(folder):
    red = (folder / "images" / "red.png").read_bytes()
    rows = [
        {"images": [{"bytes": red, "path": None}], "problem": "<image>Find x.", "answer": "\\sqrt{2}"},
        {"images": [], "problem": "What is 2 + 2?", "answer": "4"},
    ]
    data = opened(folder, *rows, name="rows.parquet")
    assert data.format == "easyr1"
    assert shown(data) == [
        Shown("<image>Find x.", [(56, 56)], [], "\\sqrt{2}", "math"),
        Shown("What is 2 + 2?", [], [], "4", "math"),
    ]


def test_a_task_of_the_row_or_the_run_is_kept(folder):
    row = {"problem": "Red?", "answer": "yes"}
    assert shown(opened(folder, {**row, "task": "boolean"}))[0].task == "boolean"
    assert shown(opened(folder, row, task="boolean"))[0].task == "boolean"
    assert shown(opened(folder, {**row, "task": "boolean"}, task="exact"))[0].task == "boolean"
