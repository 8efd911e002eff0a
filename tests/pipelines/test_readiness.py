"""What nobody means is said before a run: a format that nothing asks for, fewer rows than a step takes, a reward whose
model is not there."""

import pytest

from mmrl.errors import ConfigError, RewardError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.readiness import few_rows, unasked, weights_unread
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


class TestWeightsThatNobodyReads:
    """Methods of several rewards normalise each apart; what `weight` says of them would be lost without a word."""

    def lines(self, weights, **objective):
        named = [{"name": "format", "label": label, "weight": weight} for label, weight in weights.items()]
        config = read_config({"modality": "vlm", "rewards": named, "objective": objective})
        with RewardPanel(named) as panel:
            return weights_unread(config, panel)

    def test_they_are_said_with_the_key_that_is_read(self):
        (line,) = self.lines({"a": 0.9, "b": 0.1}, advantage="gdpo_decoupled")
        assert "(a 0.9, b 0.1): for these objective.advantage={name: gdpo_decoupled, weights: {a: 0.9, b: 0.1}}" in line
        own = {"name": "gdpo_decoupled", "weights": {"a": 1.0, "b": 0.1}}
        for objective in ({"advantage": own}, {"advantage": "grpo"}, {"advantage": "grpo", "shaping": ["recap"]}):
            assert self.lines({"a": 0.9, "b": 0.1}, **objective) == []
        assert self.lines({"a": 1.0, "b": 1.0}, advantage="gdpo_decoupled") == []

    @pytest.mark.parametrize(
        ("objective", "said"),
        [
            ({"advantage": "gdpo_decoupled"}, "objective.advantage={name: gdpo_decoupled, weights: {a: 1, b: 1}}"),
            ({"shaping": ["flowse_grpo"]}, "objective.shaping=[{name: flowse_grpo, weights: {a: 1, b: 1}}]"),
            ({"shaping": ["recap"]}, "objective.shaping=[{name: recap, objectives: [a, b]}]"),
        ],
    )
    def test_one_that_is_there_to_be_looked_at_does_not_train(self, objective, said):
        with pytest.raises(ConfigError) as refused:
            self.lines({"a": 1.0, "b": 1.0, "looked_at": 0.0}, **objective)
        assert "reward 'looked_at' has weight 0" in str(refused.value) and str(refused.value).endswith(said)


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
