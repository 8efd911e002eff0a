"""The panel: weights, components, success, columns, signatures, and what it refuses."""

import math

import pytest
import torch

from mmrl.errors import ConfigError, RewardError
from mmrl.record import Prompt
from mmrl.rewards import registry
from mmrl.rewards.panel import RewardPanel, RewardSpec
from mmrl.rewards.presets import PRESETS
from tests.rewards.helpers import USER_FILE, prompts, user

RIGHT, WRONG = "<think>a</think><answer>3</answer>", "4"
NAN = math.nan


def scores_of(specs, outputs, rows, **options):
    with RewardPanel(specs, **options) as panel:
        return panel.score(outputs, rows)


def same(tensor: torch.Tensor, values: list[float]) -> bool:
    return torch.allclose(tensor, torch.tensor(values, dtype=torch.float32), equal_nan=True)


class TestCombination:
    def test_components_are_kept_apart_and_weighted(self):
        specs = [{"name": "accuracy", "weight": 0.9}, {"name": "format", "weight": 0.1}]
        scores = scores_of(specs, [RIGHT, WRONG, "3"], prompts(3, solution="3", task="numeric"))
        assert scores.components["accuracy"].tolist() == [1, 0, 1]
        assert scores.components["format"].tolist() == [1, 0, 0]
        assert same(scores.reward, [1, 0, 0.9])
        assert scores.success.tolist() == [1, 0, 1]
        assert scores.causes == {}

    def test_a_weight_of_zero_reports_without_training(self):
        scores = scores_of(["exact_match", user("several", weight=0)], ["a"], prompts(solution="a"))
        assert scores.reward.tolist() == [1]
        assert "several/format" in scores.components

    def test_an_unscored_component_of_weight_zero_does_not_unscore_the_row(self):
        scores = scores_of(["exact_match", user("behave", weight=0)], ["a"], prompts(solution="a", how="nan"))
        assert scores.reward.tolist() == [1]
        assert scores.components["behave"].isnan().all()
        assert scores.causes == {"behave: NaN": 1}

    def test_none_may_mean_does_not_apply(self):
        """TRL's multi-task rewards return None for the rows of other tasks."""
        rows = prompts(2, task=["mine", "other"], solution="a")
        unscored = scores_of([user("sometimes"), "exact_match"], ["a", "a"], rows)
        assert same(unscored.reward, [2, NAN])
        skipped = scores_of([user("sometimes", none="skip"), "exact_match"], ["a", "a"], rows)
        assert same(skipped.reward, [2, 1])
        assert skipped.causes == {}

    def test_a_row_to_which_no_reward_applies_is_unscored(self):
        rows = prompts(2, task=["mine", "other"])
        assert same(scores_of([user("sometimes", none="skip")], ["a", "a"], rows).reward, [1, NAN])

    def test_dictionaries_are_several_components(self):
        scores = scores_of([user("several")], ["right", "wrong"], prompts(2))
        assert scores.components["several/accuracy"].tolist() == [1, 0]
        assert scores.components["several/format"].tolist() == [1, 1]
        assert scores.reward.tolist() == [2, 1]
        assert scores.success.tolist() == [1, 0]

    def test_a_weight_for_each_key(self):
        spec = user("several", weight={"accuracy": 0.9, "format": 0.1})
        assert same(scores_of([spec], ["right", "wrong"], prompts(2)).reward, [1, 0.1])

    def test_a_weighted_key_that_never_comes_is_unscored(self):
        spec = user("several", weight={"accuracy": 1, "speed": 1})
        scores = scores_of([spec], ["right"], prompts(), unscored_ceiling=1)
        assert scores.reward.isnan().all()
        assert scores.causes == {"several/speed: missing": 1}

    def test_overall_is_what_trains_where_there_is_one(self):
        scores = scores_of([user("overall", weight=2)], ["a"], prompts())
        assert scores.components["overall"].tolist() == [0.5]
        assert scores.reward.tolist() == [1]

    def test_no_outputs(self):
        scores = scores_of(["accuracy"], [], [])
        assert scores.reward.shape == scores.success.shape == (0,)


class TestSuccess:
    def test_at_least_half(self):
        rows = prompts(3, solution="[0, 0, 10, 10]", task="box")
        scores = scores_of(["accuracy"], ["[0, 0, 10, 5]", "[0, 0, 10, 4]", "none"], rows)
        assert scores.success.tolist() == [1, 0, 0]

    def test_nan_stays_nan(self):
        scores = scores_of([user("behave", success=True)], ["a", "b"], prompts(2, how=["ok", "nan"]))
        assert same(scores.success, [1, NAN])

    def test_none_declared(self):
        assert scores_of(["format"], [RIGHT], prompts()).success.isnan().all()

    def test_all_declared_must_agree(self):
        rows = prompts(2, solution=["a", "b"], how="ok")
        specs = ["exact_match", user("behave", success=True)]
        assert scores_of(specs, ["a", "a"], rows).success.tolist() == [1, 0]


class TestColumns:
    def test_a_function_gets_the_columns_it_names(self):
        rows = prompts(2, text="abc", bonus=[1.0, 2.0], unread=object())
        scores = scores_of([user("of_the_prompt", options={"scale": 0})], ["x", "y"], rows)
        assert scores.reward.tolist() == [1, 2]

    def test_an_optional_column_needs_all_rows(self):
        rows = [*prompts(1, bonus=1.0), *prompts(1)]
        assert scores_of([user("of_the_prompt", options={"scale": 0})], ["x", "y"], rows).reward.tolist() == [0, 0]

    def test_a_missing_column_names_prompt_and_column(self):
        with pytest.raises(RewardError, match=r"'accuracy' reads the column 'task', which prompt 'p0'.*solution"):
            scores_of(["accuracy"], ["a"], prompts(solution="a"))

    def test_prompts_are_messages_for_text_and_text_for_pictures(self):
        from PIL import Image

        seen = []

        def look(prompts, completions):
            seen.append(prompts[0])
            return [1.0]

        scores_of([look], ["text"], prompts(text="abc"))
        scores_of([look], [Image.new("RGB", (2, 2))], prompts(text="abc"))
        assert seen == [[{"role": "user", "content": "abc"}], "abc"]

    def test_images_of_the_prompt_can_be_asked_for(self):
        def size(completions, images):
            return [float(each[0].width) for each in images]

        from PIL import Image

        row = Prompt("p", [{"role": "user", "content": ""}], images=[Image.new("RGB", (7, 3))])
        assert scores_of([size], ["x"], [row]).reward.tolist() == [7]

    def test_check_finds_a_bad_row_before_training(self):
        with RewardPanel(["accuracy", "format"]) as panel:
            panel.check(prompts(2, solution="3", task="numeric"))
            with pytest.raises(RewardError, match=r"prompt 'p1'.*'red' is not one number"):
                panel.check(prompts(2, solution=["3", "red"], task="numeric"))
            with pytest.raises(RewardError, match="'task'"):
                panel.check(prompts(1, solution="3"))

    @pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
    def test_check_refuses_null_and_blank_columns_that_a_reward_reads(self, value):
        message = r"'p0': column 'solution' is (null|blank), and reward 'exact_match'"
        with RewardPanel(["exact_match"]) as panel, pytest.raises(RewardError, match=message):
            panel.check(prompts(1, solution=value))

    def test_check_and_scoring_refuse_the_same_truths(self):
        """Each reward refuses before training what it would refuse when it judges."""
        for name, solution in {
            "number": "red",
            "temporal_iou": "8 to 2",
            "boxes_iou": "a cat",
            "choice": "A, B",
        }.items():
            with RewardPanel([name]) as panel, pytest.raises(RewardError, match=r"'p0'.*solution"):
                panel.check(prompts(1, solution=solution))
            with pytest.raises(RewardError, match=r"'p0'.*solution"):
                scores_of([name], ["x"], prompts(1, solution=solution))

    def test_a_row_that_cannot_be_judged_stops_the_run_and_is_named(self):
        with pytest.raises(RewardError, match=r"prompt 'p1': reward 'accuracy': unknown task 'numerc'"):
            scores_of(["accuracy"], ["3", "3"], prompts(2, solution="3", task=["numeric", "numerc"]))

    def test_one_prompt_per_output(self):
        with pytest.raises(RewardError, match="2 outputs for 1 prompts"):
            scores_of(["exact_match"], ["a", "b"], prompts(solution="a"))


class TestFloat32:
    """The batch holds rewards in float32, where 1e39 is infinite."""

    def test_a_number_it_cannot_hold_leaves_its_row_unscored(self):
        def huge(completions):
            return [1e39, -1e39, 10**400, 3.4e38, 1.0, 0.0]

        scores = scores_of([huge], list("abcdef"), prompts(6))
        assert scores.reward[:3].isnan().all() and scores.reward[3:].isfinite().all()
        assert sum(scores.causes.values()) == 3
        assert all(cause.startswith("huge: ") and "infinite in float32" in cause for cause in scores.causes)

    def test_a_sum_it_cannot_hold_is_unscored_and_says_so(self):
        def large(completions):
            return [3e38, 1.0, 2.0]

        scores = scores_of(
            [large, {"name": "format", "weight": 3e38}], ["<think></think><answer>b</answer>", "b", "b"], prompts(3)
        )
        assert scores.reward.isnan().tolist() == [True, False, False]
        assert list(scores.causes.values()) == [1] and "weighted sum: 6e+38, infinite in float32" in scores.causes


class TestSignatures:
    def test_numpy_values(self):
        assert scores_of([user("numpy_values")], ["a", "b"], prompts(2)).reward.tolist() == [0, 1]

    def test_async_functions(self):
        async def later(completions):
            return [float(len(text)) for text in completions]

        assert same(scores_of([later], ["a", "bcd"], prompts(2)).reward, [1, 3])

    def test_trl_chat_completions_are_messages(self):
        assert scores_of([user("chat", style="trl_chat")], ["abc"], prompts()).reward.tolist() == [3]

    def test_verl(self):
        rows = prompts(2, solution="3", data_source="toy", extra_info=[{"split": "train"}, {"split": "test"}])
        spec = user("verl_score", style="verl", options={"bonus": 0.25})
        scores = scores_of([spec], ["3", "3"], rows)
        assert scores.reward.tolist() == [1.25, 0.25]
        assert scores.components["verl_score/seen"].tolist() == [1, 1]

    def test_verl_reads_our_own_column_names(self):
        rows = prompts(solution="3", task="toy", split="train")
        assert scores_of([user("verl_score", style="verl")], ["3"], rows).reward.tolist() == [1]

    def test_easyr1(self):
        spec = user("easyr1_score", style="easyr1", options={"format_weight": 0.2})
        scores = scores_of([spec], ["3", "4"], prompts(2, solution="3"))
        assert same(scores.reward, [0.8, 0])
        assert same(scores.components["easyr1_score/accuracy"], [1, 0])
        assert scores.success.tolist() == [1, 0]

    def test_what_easyr1_gives_and_we_do_not_is_missed_not_invented(self):
        scores = scores_of([user("easyr1_length", style="easyr1")], ["a"], prompts(solution="a"), unscored_ceiling=1)
        assert scores.causes == {"easyr1_length: KeyError: 'response_length'": 1}

    def test_a_style_is_never_guessed(self):
        """The verl function read as TRL's: its parameters are columns that the rows do not have."""
        with pytest.raises(RewardError, match="column 'data_source'"):
            scores_of([user("verl_score")], ["3"], prompts(solution="3"))


class TestNames:
    def test_by_file(self):
        assert scores_of([user("length")], ["abc"], prompts()).components["length"].tolist() == [3]

    def test_by_a_file_relative_to_the_working_directory(self, monkeypatch):
        monkeypatch.chdir(USER_FILE.parent)
        assert scores_of(["user_rewards.py:length"], ["abc"], prompts()).reward.tolist() == [3]

    @pytest.mark.parametrize("name", ["own_lengths:length", "own_lengths.length"])
    def test_by_module(self, tmp_path, monkeypatch, name):
        (tmp_path / "own_lengths.py").write_text("def length(completions): return [len(c) for c in completions]\n")
        monkeypatch.chdir(tmp_path)
        assert scores_of([name], ["abc"], prompts()).reward.tolist() == [3]

    def test_a_function(self):
        def length(completions, **columns):
            return [len(text) for text in completions]

        assert scores_of([length], ["abc"], prompts()).components["length"].tolist() == [3]

    def test_the_same_reward_twice_needs_labels(self):
        twice = [{"name": "format"}, {"name": "format", "options": {"kind": "answer"}}]
        with pytest.raises(RewardError, match="two rewards are called 'format'"):
            RewardPanel(twice)
        twice[1]["label"] = "tagged"
        assert list(scores_of(twice, [RIGHT], prompts()).components) == ["format", "tagged"]

    @pytest.mark.parametrize(
        ("spec", "error", "message"),
        [
            ("acuracy", RewardError, "did you mean 'accuracy'"),
            ({"name": "accuracy", "wieght": 1}, ConfigError, "did you mean 'weight'"),
            ({"name": "accuracy", "options": {"decimal": 1}}, RewardError, "did you mean 'decimals'"),
            ({"name": "accuracy", "timeout": 0}, ConfigError, "rewards.timeout"),
            ({"name": "accuracy", "style": "vrl"}, ConfigError, "rewards.style"),
            ("nowhere.py:f", RewardError, "no such file"),
            (f"{USER_FILE}:lenght", RewardError, "did you mean 'length'"),
            ("nowhere.at.all", RewardError, "no module named 'nowhere'"),
            ("os:sep", RewardError, "expected a function"),
            ({"name": "accuracy", "weight": 0}, RewardError, "weight 0"),
        ],
    )
    def test_mistakes_are_found_before_anything_is_scored(self, spec, error, message):
        with pytest.raises(error, match=message):
            RewardPanel([spec])

    def test_a_file_that_cannot_be_imported(self, tmp_path):
        (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
        with pytest.raises(RewardError, match="nothing_of_the_kind"):
            RewardPanel([f"{tmp_path / 'broken.py'}:f"])

    def test_no_rewards(self):
        with pytest.raises(RewardError, match="name at least one"):
            RewardPanel([])

    def test_a_name_is_taken_once(self):
        with pytest.raises(RewardError, match="'accuracy' is registered twice"):
            registry.reward("accuracy")(lambda completions: completions)


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_preset_loads(self, name):
        with RewardPanel([name]) as panel:
            assert [member.spec.name for member in panel.members] == [each["name"] for each in PRESETS[name]]

    def test_easyvideor1_weights(self):
        scores = scores_of(["easyvideor1"], ["<answer>3</answer>", "3"], prompts(2, solution="3", task="numeric"))
        assert same(scores.reward, [1, 0.9])

    def test_a_weight_multiplies_and_nothing_else_is_accepted(self):
        rows = prompts(solution="3", task="numeric")
        assert same(scores_of([{"name": "easyr1_r1v", "weight": 2}], ["3"], rows).reward, [1])
        with pytest.raises(RewardError, match="only a number as weight"):
            RewardPanel([{"name": "vppo", "timeout": 3}])


def test_every_registered_reward_says_what_it_does():
    for name, entry in registry.registered().items():
        if entry.function.__module__.startswith("mmrl.rewards"):
            assert entry.function.__doc__, name


def test_a_spec_goes_through_yaml_unchanged():
    spec = RewardSpec(name="accuracy", weight={"a": 1.0}, options={"decimals": 3}, timeout=5)
    assert RewardSpec(**spec.model_dump(mode="json")) == spec
