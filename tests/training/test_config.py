"""Configurations: precedence, dotted overrides, and errors that name the key and the nearest choice."""

import re

import pytest

from mmrl.errors import ConfigError
from mmrl.foreign import trl
from mmrl.pipelines.config import merge, read_config, set_dotted
from mmrl.pipelines.run import check_config
from mmrl.training.config import TrainingConfig

BASE = {"policy": {"model": "m"}, "data": {"train": "d.jsonl"}, "rewards": [{"name": "accuracy"}]}


def test_precedence_is_recipe_then_file_then_override():
    config = read_config({**BASE, "recipe": "dapo"}, [], "vlm")
    assert config.objective.trust_region["high"] == 0.28
    file = {**BASE, "recipe": "dapo", "objective": {"trust_region": {"high": 0.3}}}
    config = read_config(file, [], "vlm")
    assert config.objective.trust_region == {"name": "clip", "low": 0.2, "high": 0.3, "dual": 10.0}
    config = read_config(file, ["objective.trust_region.high=0.4", "training.steps=7"], "vlm")
    assert config.objective.trust_region["high"] == 0.4
    assert config.training.steps == 7


def test_a_recipe_brings_its_sampler_and_another_may_be_named():
    assert read_config(BASE, [], "vlm").prompts == "shuffled"
    spo = read_config({**BASE, "recipe": "spo_single_stream"}, ["prompts.keep=0.9"], "vlm")
    assert spo.prompts == {"name": "spo_single_stream", "keep": 0.9}
    assert read_config({**BASE, "recipe": "spo_single_stream", "prompts": "shuffled"}, [], "vlm").prompts == "shuffled"


def test_recipe_from_the_command_line_replaces_the_file_s():
    assert read_config({**BASE, "recipe": "dapo"}, ["recipe=gspo"], "vlm").objective.ratio == "sequence"


def test_another_stage_function_drops_the_old_parameters():
    assert merge({"name": "clip", "low": 0.1}, {"name": "none"}) == {"name": "none"}
    assert merge("clip", {"low": 0.1}) == {"name": "clip", "low": 0.1}
    assert merge({"name": "clip", "low": 0.1}, {"high": 0.3}) == {"name": "clip", "low": 0.1, "high": 0.3}


def test_lists_are_addressed_by_index_or_name():
    values = {"objective": {"regularizers": [{"name": "kl", "coefficient": 0.1}, {"name": "x", "coefficient": 1}]}}
    set_dotted(values, "objective.regularizers.kl.coefficient", 0.2)
    set_dotted(values, "objective.regularizers.1.coefficient", 3)
    assert [r["coefficient"] for r in values["objective"]["regularizers"]] == [0.2, 3]
    with pytest.raises(ConfigError, match="did you mean 'kl'"):
        set_dotted(values, "objective.regularizers.kll.coefficient", 0.2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.stepps=3"], "did you mean 'steps'"),
        (["placement.trainer=2"], "did you mean 'trainers'"),  # not verl's section of that name
        (["training.steps=many"], "training.steps"),
        (["training.steps=0"], "greater than or equal to 1"),
        (["recipe=grppo"], "did you mean 'grpo'"),
        (["objective.trust_region=clpi"], "did you mean 'clip'"),
        (["objective.trust_region.hihg=0.2"], "did you mean 'high'"),
        (["objective.advantage=clip"], "is a trust_region"),
        (["prompts=shufled"], "did you mean 'shuffled'"),
        (["prompts=clip"], "is a trust_region"),
        (["prompts=spo_single_stream", "prompts.kep=0.9"], "did you mean 'keep'"),
        (["data.workers=-1"], "greater than or equal to 0"),
        (["nonsense"], "expected key.sub=value"),
        (["training.updates.count=99"], "more optimizer steps than there are groups"),
        (["training.updates_per_step=2"], r"write training.updates=\{count: 2\}"),
        (["policy.modell=x"], "did you mean 'model'"),
        (["recipe=flow_grpo"], "not for 'vlm'"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(read_config(BASE, overrides, "vlm"))


def test_a_recipe_is_refused_where_the_policy_cannot_give_what_it_needs():
    values = {**BASE, "objective": {"credit": [{"name": "vppo"}]}}
    with pytest.raises(ConfigError, match=r"flow"):
        check_config(read_config(values, [], "flow"))


def test_the_resolved_configuration_reads_back_equal():
    import yaml

    config = read_config({**BASE, "recipe": "dapo"}, ["training.learning_rate=3e-5"], "vlm")
    assert config.training.learning_rate == 3e-5
    assert read_config(yaml.safe_load(config.to_yaml())) == config


def test_one_choice_is_a_list_of_one():
    config = read_config(BASE, ["rewards=accuracy", "objective.credit=vppo", "objective.group=dynamic_sampling"], "vlm")
    assert [spec.name for spec in config.rewards] == ["accuracy"]
    assert config.objective.credit == ["vppo"] and config.objective.group == ["dynamic_sampling"]
    config = read_config(BASE, ["rewards=[accuracy, {name: format, weight: 0.1}]", "rewards.accuracy.weight=2"], "vlm")
    assert [(spec.name, spec.weight) for spec in config.rewards] == [("accuracy", 2), ("format", 0.1)]
    regularized = read_config(BASE, ["objective.regularizers={name: kl, coefficient: 1e-3}"], "vlm")
    assert regularized.objective.regularizers == [{"name": "kl", "coefficient": 1e-3}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_generations=8", "what TRL calls num_generations is training.group_size"),
        ("training.beta=0.04", "what TRL calls beta is objective.regularizers="),
        ("output_dir=here", "what TRL calls output_dir is run_dir"),
        ("training.n=8", "calls n is training.group_size"),
        ("rollout.n=8", "calls n is training.group_size"),
        ("rewards.reward_function=file.py", "what EasyR1 calls reward_function is "),
        ("training.epsilon=0.2", "the clip range is objective.trust_region.low"),
        ("objective.regularizers.kl.coefficient=0.1", "add one with objective.regularizers=[{name: kl, ...}]"),
    ],
)
def test_names_of_other_projects_are_shown_the_way(override, message):
    with pytest.raises(ConfigError) as error:
        read_config(BASE, [override], "vlm")
    assert message in str(error.value)


def test_the_way_shown_exists():
    known = read_config(BASE, [], "vlm").model_dump()
    ways = (*trl.KEYS.values(), *trl.WAYS.values())
    for place in (re.split(r"[,=: ]", words)[0] for words in ways):
        section, _, key = place.partition(".")
        if section in known and key and section != "policy":
            assert key.split(".")[0] in known[section], place


def test_a_decay_ends_at_its_floor():
    """Half way a line is half way between the rate and its floor; a cosine is too."""
    for schedule in ("linear", "cosine"):
        config = TrainingConfig(steps=10, learning_rate=1.0, schedule=schedule, schedule_floor=0.2)
        assert [config.learning_rate_at(u) for u in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert TrainingConfig(learning_rate=1.0, schedule_floor=0.2).learning_rate_at(50) == 1.0


def test_epochs_of_the_data_are_steps():
    config = TrainingConfig(data_epochs=1.5, prompts_per_step=4)
    assert [config.for_rows(rows).steps for rows in (8, 100, 1)] == [3, 38, 1]
    assert TrainingConfig(steps=7).for_rows(100).steps == 7
