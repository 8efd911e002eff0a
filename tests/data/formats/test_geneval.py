from tests.data.formats.shown import Shown, opened, shown

ROWS = [
    {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1,
     "position": ["right of", 0]}], "prompt": "a photo of a tie right of a dog"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup", "count": 3}],
     "prompt": "a photo of two cups"},
]  # fmt: skip


def test_rows_of_geneval(folder):
    data = opened(folder, *ROWS)
    assert data.format == "geneval"
    assert shown(data) == [Shown(row["prompt"]) for row in ROWS]
    assert [p.columns["include"] for p in data] == [row["include"] for row in ROWS]
    assert [p.columns["exclude"] for p in data] == [[], [{"class": "cup", "count": 3}]]  # in every row: see `adapt`
