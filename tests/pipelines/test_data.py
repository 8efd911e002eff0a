"""What a configuration says of data reaches the rows, for `check` and training alike."""

import pytest
from PIL import Image

from mmrl.errors import DataError
from mmrl.pipelines.checking import check_configured
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import open_prompts, reward_panel, train
from mmrl.pipelines.sizing import image_sizing
from mmrl.training.tracking import read_metrics
from tests.pipelines.runs import write_config, write_rows

JUDGE = """
def like(completions, reference):
    return [1.0] * len(completions)
"""


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (9, 700), (1000, 1000)])
@pytest.mark.parametrize("changes", [[], ["policy.max_pixels=8192"]])
def test_the_resized_size_is_the_one_the_processor_makes(size, changes):
    from transformers import AutoProcessor

    config = read_config("demo", changes, "vlm")
    settings = config.policy_settings()
    sizing = image_sizing(config)
    processor = AutoProcessor.from_pretrained(settings.model).image_processor
    if changes:
        processor.size = {"shortest_edge": processor.size["shortest_edge"], "longest_edge": 8192}
    _, tall, wide = processor(images=[Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert sizing.within(size) == (wide * processor.patch_size, tall * processor.patch_size)


@pytest.mark.parametrize("values", [{"modality": "vlm"}, {"modality": "flow"}])
def test_without_a_model_nothing_is_known_of_sizes(values):
    assert image_sizing(read_config(values)) is None


def test_columns_that_rewards_read_are_read(bases, tmp_path):
    """An image column for a reward is nobody's question; without the reward it is refused, unless ignored."""
    (tmp_path / "judge.py").write_text(JUDGE)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Draw it.", "reference": "a.png", "solution": "x"}])
    config = {"modality": "vlm", "data": {"train": str(rows)}}
    rewards = [{"name": f"{tmp_path / 'judge.py'}:like"}]
    settings = read_config(config | {"rewards": rewards})
    with reward_panel(settings) as panel:
        [prompt] = open_prompts(str(rows), settings.data, panel=panel)
    assert prompt.columns["reference"] == "a.png"
    for changes, total in [(["rewards=[exact_match]"], 1), (["rewards=[exact_match]", "data.ignore=[reference]"], 0)]:
        path = tmp_path / "config.yaml"
        path.write_text(read_config(config).to_yaml())
        [report], _ = check_configured("vlm", str(path), changes)
        assert report.total == total
        assert report.format == "mmrl"


def test_the_task_of_all_rows_can_be_set(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "x"}], "solution": "2"}])
    (tmp_path / "c.yaml").write_text(f"modality: vlm\nrewards: [accuracy]\ndata: {{train: {rows}}}\n")
    assert [p.column for p in check_configured("vlm", str(tmp_path / "c.yaml"), [])[0][0].problems] == ["task"]
    assert check_configured("vlm", str(tmp_path / "c.yaml"), ["data.task=numeric"])[0][0].total == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_is_left_out_by_choice(tmp_path, bases, capsys, workers):
    """It ends the run, unless `data.on_error=skip`: then another row stands in, and the metrics count it."""
    config = read_config(write_config(tmp_path, "video", bases, "grpo", steps=2), [f"data.workers={workers}"], "video")
    clip = tmp_path / "blue.mp4"
    clip.write_bytes(clip.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"blue\.mp4"):
        train(read_config(config.model_dump(mode="json"), ["data.eval=null"]))
    asked = ["data.eval=null", "data.on_error=skip", "data.skip_ceiling=0.3", f"run_dir={tmp_path / 'other'}"]
    train(read_config(config.model_dump(mode="json"), asked))
    assert [m["data/left_out"] for m in read_metrics(tmp_path / "other" / "metrics.jsonl")][-1] == 1.0
    assert capsys.readouterr().err.count("blue.mp4: ") == 1
