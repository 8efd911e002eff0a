from tests.data.formats.shown import Shown, opened, shown


def chat(text: str) -> list[dict]:
    return [{"role": "system", "content": "Describe the image:"}, {"role": "user", "content": text}]


def test_rows_of_verl_omni(folder):
    row = {
        "data_source": "ocr",
        "prompt": chat('a door with "PUSH"'),
        "negative_prompt": chat("blurry"),
        "reward_model": {"style": "model", "ground_truth": "PUSH"},
    }
    data = opened(folder, row, name="rows.parquet")
    assert data.format == "verl_omni"
    assert shown(data) == [Shown('Describe the image:\na door with "PUSH"', solution="PUSH")]
    assert data[0].messages[0] == {"role": "system", "content": "Describe the image:"}
    assert data[0].columns["negative_prompt"] == "blurry"
