from tests.data.formats.shown import Shown, opened, shown


def test_rows_of_virl39k(folder):
    row = {
        "question": "<image><image>Same colour?",
        "answer": "\\boxed{\\text{No}}",
        "PassRate_32BTrained": 1.0,
        "qid": "q1",
        "category": "Charts",
        "image": ["images/red.png", "images/blue.png"],
    }
    data = opened(folder, row, name="rows.parquet")
    assert data.format == "virl39k"
    assert shown(data) == [Shown("<image><image>Same colour?", [(56, 56), (64, 32)], [], "\\boxed{\\text{No}}", "math")]
    assert data[0].columns["PassRate_32BTrained"] == 1.0
    assert data[0].columns["image_size"] == [[56, 56], [64, 32]]  # no box can be measured in both
