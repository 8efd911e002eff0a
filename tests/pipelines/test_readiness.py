"""What nobody means is said before a run: a format that nothing asks for, fewer rows than a step takes, a reward whose
model is not there."""

import pytest

from mmrl.errors import RewardError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.readiness import few_rows, unasked
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel
from tests.pipelines.runs import write_config


def asking(text: str) -> list[Prompt]:
    return [Prompt("a", [{"role": "user", "content": text}])]


def test_a_format_that_is_rewarded_and_not_asked_for_is_said():
    with RewardPanel(["format", {"name": "format", "label": "boxes", "options": {"kind": "boxed"}}]) as panel:
        assert [line[:48] for line in unasked(panel, asking("How many?"))] == [
            "reward 'format' looks for <think> and <answer>, ",
            "reward 'boxes' looks for <think> and boxed, and ",
        ]
        assert unasked(panel, asking("<think> first, then <answer> with a \\boxed{}")) == []


@pytest.mark.parametrize("modality", ["vlm", "video"])
def test_the_shipped_configurations_ask_for_the_format_that_they_reward(modality):
    config = read_config("grpo", (), modality)
    text = config.data.template.replace("{prompt}", "How many?")
    with RewardPanel(config.rewards) as panel:
        assert "format" in [member.label for member in panel.members] and unasked(panel, asking(text)) == []


def test_few_rows_are_said():
    config = read_config({"modality": "vlm", "training": {"prompts_per_step": 31}})
    (line,) = few_rows(config, asking("a") * 2)
    assert line.startswith("the data set has 2 rows, and a step takes 31 prompts") and "up to 16 times" in line
    assert few_rows(config, asking("a") * 31) == []


def test_a_reward_without_its_weights_ends_a_run_before_its_model_is_loaded(tmp_path, bases, mmrl):
    config = write_config(tmp_path, "flow", bases, "flow_grpo")
    done = mmrl(
        "train", "flow", config, "rewards=[{name: clip_score, options: {model: ViT-B-32, pretrained: nowhere}}]"
    )
    assert done.code == 2
    assert "reward 'clip_score' cannot be made ready" in done.err and "nowhere" in done.err
    assert "prompt" not in done.err.split("nowhere")[0], "no row of the data is blamed"


def test_rewards_with_models_are_made_ready_by_no_rows():
    with RewardPanel(["clip_score"]) as panel:
        panel.load()
    absent = {"name": "aesthetic", "options": {"head": "/nowhere.safetensors"}}
    refused = pytest.raises(RewardError, match="reward 'aesthetic' cannot be made ready")
    with RewardPanel([absent]) as panel, refused:
        panel.load()


@pytest.mark.parametrize(
    ("modality", "policy", "rate"),
    [("vlm", {}, 1e-6), ("vlm", {"lora": {"rank": 8}}, 1e-5), ("flow", {}, 3e-4), ("flow", {"lora": None}, 1e-5)],
)
def test_adapters_and_full_fine_tuning_have_rates_of_their_own(modality, policy, rate):
    assert read_config({"modality": modality, "policy": policy}).training.learning_rate == rate
    given = {"modality": modality, "policy": policy, "training": {"learning_rate": 2e-5}}
    assert read_config(given).training.learning_rate == 2e-5
