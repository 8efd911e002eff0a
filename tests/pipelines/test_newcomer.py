"""What somebody who comes from another trainer types first, and what he is told."""

import json

import pytest

from mmrl import VLMPipeline
from mmrl.errors import ConfigError, MMRLError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.in_python import in_python, python_of
from mmrl.pipelines.plan import plan_run
from tests.pipelines.runs import policy_of, write_data, write_rows

MODEL = ("--policy.model", "asset:tiny_video")
ONE = {"steps": 1, "prompts_per_step": 2, "group_size": 2}


class TestAConfigurationThatIsNotNamed:
    @pytest.mark.parametrize(
        "words", [("plan", "video"), ("train", "video"), ("evaluate", "video"), ("sample", "video"), ("check", "video")]
    )
    @pytest.mark.parametrize("overrides", [(), MODEL, ("policy.model=asset:tiny_video",)])
    def test_those_that_ship_are_listed(self, mmrl, words, overrides):
        done = mmrl(*words, *overrides)
        assert done.code == 2
        assert "video: which configuration? Name a YAML file, or one that ships: demo, frames, grpo" in done.err

    def test_commands_of_one_modality_say_so_too(self, mmrl):
        assert "flow: which configuration?" in mmrl("calibrate", *MODEL).err
        assert "video: which configuration?" in mmrl("cache", "build", *MODEL).err


class TestAKeyInAnotherSection:
    @pytest.mark.parametrize(
        ("override", "home"),
        [
            ("lora.rank=4", "policy.lora"),
            ("training.temperature=0.7", "policy.temperature"),
            ("training.gradient_checkpointing=true", "policy.gradient_checkpointing"),
            ("policy.steps=3", "training.steps"),
            ("policy.group_size=4", "training.group_size"),
            ("policy.template=x", "data.template"),
        ],
    )
    def test_its_home_is_named_across_the_border_of_the_policy(self, override, home):
        with pytest.raises(ConfigError, match=rf"unknown key '\w+' here; write {home}\b"):
            read_config("demo", [override], "vlm").policy_settings()

    def test_a_generator_has_its_own(self):
        with pytest.raises(ConfigError, match=r"write policy\.eval_steps"):
            read_config("demo", ["training.eval_steps=3"], "flow")


class TestPlanRefusesWhatTrainRefuses:
    @pytest.mark.parametrize("kind", ["llama", "t5"])
    def test_a_model_of_another_kind(self, tmp_path, kind):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        config = read_config("demo", [f"policy.model={tmp_path}"], "vlm")
        with pytest.raises(ConfigError, match=f"model type '{kind}' is not supported") as planned:
            plan_run(config)
        with pytest.raises(ConfigError) as trained:
            config.policy_class.from_config(config.policy_settings())
        assert str(planned.value) == str(trained.value)


def test_a_recipe_of_ones_own_without_its_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"unknown recipe 'mine'; a file of your own goes by its whole name: mine\.y"):
        read_config("demo", ["recipe=mine"], "vlm")


class TestPythonSpeaksPython:
    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (
                "name yours: data.columns.prompt=question",
                "data.columns.prompt is train(..., data={'columns': {'prompt': 'question'}})",
            ),
            (
                "name yours: data.columns.prompt=q data.columns.solution=a (`mmrl check` ...)",
                "data.columns is train(..., data={'columns': {'prompt': 'q', 'solution': 'a'}})",
            ),
            ("raise policy.max_new_tokens", "policy.max_new_tokens is from_pretrained(..., max_new_tokens=...)"),
            ("choose training.steps=200", "training.steps is train(..., training={'steps': 200})"),
            ("continue with --resume runs/a", 'resume is train(..., resume="runs/a")'),
        ],
    )
    def test_keys_and_flags_are_said_again(self, said, told):
        assert told.replace("'", '"') in (python_of(said) or "").replace("'", '"')

    @pytest.mark.parametrize(
        "said", ["rows.jsonl, line 1: missing", "see docs/data.md", "train.py:reward is no reward"]
    )
    def test_what_is_no_key_is_left_alone(self, said):
        assert python_of(said) is None
        with pytest.raises(MMRLError) as met, in_python():
            raise ConfigError(said)
        assert not hasattr(met.value, "__notes__")

    def test_a_pipeline_says_what_to_do(self, tmp_path, monkeypatch, bases):
        monkeypatch.chdir(tmp_path)
        pipe = VLMPipeline.from_pretrained(bases.of("vlm"), **policy_of("vlm"))
        rows = [
            {"question": r["prompt"], "image": r["image"]} for r in map(json.loads, write_data(tmp_path, "vlm").open())
        ]
        with pytest.raises(MMRLError) as met:
            pipe.train(str(write_rows(tmp_path / "mine.jsonl", rows)), ["exact_match"], training=ONE)
        assert met.value.__notes__[-1].startswith("in Python, data.columns.prompt is train(..., data=")

    def test_a_second_run_in_a_folder_that_was_named(self, tmp_path, bases):
        """And one into a folder that mmrl names goes on into the next number."""
        pipe = VLMPipeline.from_pretrained(bases.of("vlm"), **policy_of("vlm"))
        rows, named = str(write_data(tmp_path, "vlm")), tmp_path / "run"
        pipe.train(rows, ["exact_match"], training=ONE, run_dir=named)
        with pytest.raises(ConfigError, match="already holds a run") as met:
            pipe.train(rows, ["exact_match"], training=ONE, run_dir=named)
        assert f"resume='{named}'" in str(met.value)


def test_a_column_that_a_reward_misses_comes_with_its_remedy(tmp_path, mmrl, bases):
    rows = [json.loads(line) for line in write_data(tmp_path, "vlm").open()]
    for row in rows:
        del row["task"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    done = mmrl(
        "train", "vlm", "demo", f"data.train={data}", f"policy.model={bases.of('vlm')}", f"run_dir={tmp_path}/r"
    )
    assert done.code == 2
    assert "data.columns.task=YOURS names one, data.task=choice one task for all rows" in done.err


def test_a_checkpoint_that_ships_has_its_name_in_every_command(mmrl):
    done = mmrl("doctor", "asset:tiny_vml")
    assert done.code == 2 and "tiny_vlm" in done.err and "hub" not in done.err
