from tests.data.formats.shown import Shown, opened, shown


def test_rows_of_mmk12(folder):
    image = {"bytes": (folder / "images" / "red.png").read_bytes(), "path": None}
    row = {"id": "k1", "question": "Which angle?", "answer": "B", "subject": "math", "image": image}
    data = opened(folder, row, name="rows.parquet")
    assert data.format == "mmk12" and data.ids() == ["k1"]
    assert shown(data) == [Shown("<image>Which angle?", [(56, 56)], [], "B", "math")]
