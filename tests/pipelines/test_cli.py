"""The command line: help, overrides, what can be asked before a run, and one line for every mistake."""

import json
from pathlib import Path

import pytest
import yaml

from mmrl.pipelines.config import overruled, read_config
from mmrl.pipelines.overriding import config_and_overrides, overrides_of
from mmrl.policies.registry import MODALITIES
from mmrl.recipes import load_recipe, recipe_names
from mmrl.stages import STAGES
from tests.pipelines.runs import write_config, write_data, write_rows

COMMANDS = (
    "train", "evaluate", "sample", "methods", "check", "plan", "cache", "cache build", "cache verify", "cache prune",
    "export", "report", "compare", "push", "demo", "doctor",
)  # fmt: skip
SHIPPED = [
    (modality, path.stem)
    for modality in MODALITIES
    for path in sorted((Path(__file__).parents[2] / "configs" / modality).glob("*.yaml"))
]

SIZED = ("_24gb", "_80gb")


def one_line(done) -> str:
    """The single line a mistake is told in."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.err.startswith("mmrl: ")
    return done.err


class TestHelp:
    def test_every_command_is_listed(self, mmrl):
        text = mmrl("--help").out
        assert all(command.split()[0] in text for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, mmrl, command):
        done = mmrl(*command.split(), "--help")
        assert done.code == 0
        assert f"mmrl {command}" in done.out

    def test_an_unknown_command_is_refused(self, mmrl):
        done = mmrl("trian")
        assert done.code == 2
        assert "trian" in done.err


class TestOverrides:
    def test_three_styles_mean_the_same(self):
        assert overrides_of(["a.b=1", "--c.d=2", "--e.f", "3"]) == ["a.b=1", "c.d=2", "e.f=3"]
        assert overrides_of(["--policy.model", "org/name=x"]) == ["policy.model=org/name=x"]

    @pytest.mark.parametrize(
        "words",
        [
            ["f.yaml", "a.b=1"],
            ["--config", "f.yaml", "a.b=1"],
            ["a.b=1", "--config", "f.yaml"],
            ["--config=f.yaml", "--a.b", "1"],
        ],
    )
    def test_the_configuration_by_place_or_by_name(self, words):
        assert config_and_overrides(words[0], words[1:]) == ("f.yaml", ["a.b=1"])

    def test_without_a_configuration(self):
        assert config_and_overrides("a.b=1", ["c.d=2"]) == (None, ["a.b=1", "c.d=2"])
        assert config_and_overrides(None, []) == (None, [])

    @pytest.mark.parametrize("wrong", [["steps"], ["--training.steps"]])
    def test_anything_else_is_refused(self, mmrl, wrong):
        assert "expected" in one_line(mmrl("plan", "vlm", "grpo", *wrong))

    def test_numbers_and_words_are_what_they_look_like(self):
        changes = ["objective.trust_region.low=1e-4", "policy.shared_prompt=off", "data.template=yes"]
        config = read_config("grpo", changes, "vlm")
        assert config.objective.trust_region["low"] == 1e-4
        assert config.policy["shared_prompt"] == "off" and config.data.template == "yes"
        assert config.policy_settings().shared_prompt == "off"
        assert read_config("grpo", ["data.allow_urls=yes"], "vlm").data.allow_urls is True

    def test_they_reach_the_run(self, mmrl, bases):
        changes = ["training.steps=3", "--training.group_size=5", "--policy.model", bases.of("vlm")]
        text = mmrl("plan", "vlm", "grpo", *changes).out
        assert "3 steps" in text and "x 5 rollouts" in text and str(bases.of("vlm")) in text


class TestMethods:
    def test_the_json_list_is_complete(self, mmrl):
        listed = {m["name"]: m for m in json.loads(mmrl("methods", "--json").out)}
        assert set(recipe_names()) <= set(listed)
        for name, method in listed.items():
            assert method["stages"] and set(method["stages"]) <= {*STAGES, "reward", "learner", "tool"}, name
            # masked diffusion language models train from Python only
            assert method["modalities"] and set(method["modalities"]) <= set(MODALITIES), name
            assert method["paper"] and method["confidence"] in ("verified", "partly", "reconstructed", "ours"), name
            assert isinstance(method["needs"], list), name

    def test_one_method_shows_formula_and_defaults(self, mmrl):
        text = mmrl("methods", "dapo").out
        for part in ("paper:", "formula:", "recipe dapo:", "'high': 0.28"):
            assert part in text

    def test_the_table_names_every_recipe(self, mmrl):
        text = mmrl("methods").out
        assert "vppo" in text and "flow_grpo" in text

    def test_an_unknown_method_gets_the_nearest(self, mmrl):
        assert "did you mean 'vppo'" in one_line(mmrl("methods", "vpo"))


class TestPlan:
    @pytest.mark.parametrize(
        ("modality", "name"),
        [(m, n) for m, n in SHIPPED if m != "flow" or not n.endswith(SIZED)],  # these: test_sized.py
        ids=lambda value: value,
    )
    def test_shipped_configurations_can_run(self, mmrl, bases, modality, name):
        own = "asset:" in str(read_config(name, (), modality).policy)
        done = mmrl("plan", modality, name, *([] if own else ["--policy.model", bases.of(modality)]))
        assert done.code == 0, done.err
        for word in ("batch", "passes of a step", "memory", "parameters"):
            assert word in done.out

    def test_a_shipped_configuration_is_named_after_its_recipe(self):
        wrong = {(m, name): recipe for m, name in SHIPPED if (recipe := read_config(name, (), m).recipe) != name}
        own = {"demo", "video_demo", "edit_demo", "few_steps", "frames", "zoom"}
        assert {name for _, name in wrong if not name.endswith(SIZED)} <= own
        for name in recipe_names():
            assert load_recipe(name).method == name

    def test_a_need_becomes_a_pass(self, mmrl, bases):
        plain = mmrl("plan", "vlm", "grpo", "recipe=grpo", "--policy.model", bases.of("vlm")).out
        perturbed = mmrl("plan", "vlm", "grpo", "recipe=vppo", "--policy.model", bases.of("vlm")).out
        assert "prepare:" not in plain
        assert "prepare:" in perturbed

    def test_a_model_that_is_not_here_is_no_obstacle(self, mmrl):
        done = mmrl("plan", "vlm", "grpo", "--policy.model", "nobody/nothing")
        assert done.code == 0
        assert "model not available here" in done.out


class TestCheck:
    @pytest.mark.parametrize("modality", ["vlm", "video"])
    def test_a_sound_file(self, mmrl, tmp_path, modality):
        done = mmrl("check", write_data(tmp_path, modality))
        assert done.code == 0
        assert "4 rows" in done.out and "no problems" in done.out

    def test_a_bad_file_names_row_and_column(self, mmrl, tmp_path):
        rows = [
            {"prompt": "<image>What?", "image": "gone.png", "solution": "a"},
            {"prompt": "no answer"},
            {"question": "?"},
        ]
        done = mmrl("check", write_rows(tmp_path / "rows.jsonl", rows))
        assert done.code == 1
        assert "gone.png" in done.out and "solution" in done.out and "prompt" in done.out

    def test_a_world(self, mmrl):
        done = mmrl("check", "world:shapes?size=4")
        assert done.code == 0
        assert "4 rows" in done.out

    def test_tasks_and_solutions_are_those_accuracy_reads(self, mmrl, tmp_path):
        rows = [
            {"prompt": "How many?", "solution": "2", "task": "Multiple-Choice"},
            {"prompt": "How many then?", "solution": "2", "task": "cuont"},
            {"prompt": "How many now?", "solution": "a few", "task": "numeric"},
            {"prompt": "How many at last?", "task": "numeric"},
        ]
        done = mmrl("check", write_rows(tmp_path / "rows.jsonl", rows))
        assert done.code == 1
        assert "3 problems in 3 rows (by column: solution 2, task 1)" in done.out
        assert "line 2, column 'task': unknown task 'cuont'; did you mean 'count'" in done.out
        assert "line 3, column 'solution': " in done.out and "line 4, column 'solution': is missing" in done.out

    def test_captions_for_a_generator_need_no_answer(self, mmrl, tmp_path):
        data = write_data(tmp_path, "flow")
        assert mmrl("check", data).code == 0
        done = mmrl("check", data, "--rewards", "[{name: compositional}]")
        assert done.code == 1
        assert "by column: scene 4" in done.out and "read for the rewards compositional" in done.out

    def test_a_configuration_is_checked_for_its_own_rewards_and_data(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "vlm", bases, "grpo")
        assert mmrl("check", "vlm", config).code == 0
        done = mmrl(
            "check", "vlm", config, f"rewards.0.name={tmp_path / 'my_rewards.py'}:shaky", "data.columns.prompt=q"
        )
        assert done.code == 1
        assert "no such column" in done.out and "read for the rewards shaky" in done.out
        world = mmrl("check", "flow", "demo", "data.train=world:compositions?size=3", "data.eval=world:digits?size=2")
        assert "world:compositions?size=3: 3 rows" in world.out and "by column: scene 2" in world.out

    def test_media_options_reach_the_checker(self, mmrl, tmp_path):
        (tmp_path / "rows").mkdir()
        data = write_data(tmp_path, "vlm").rename(tmp_path / "rows" / "rows.jsonl")
        assert mmrl("check", data).code == 1
        assert mmrl("check", data, f"data.media_root={tmp_path}").code == 0
        assert mmrl("check", data, "--data.media_root", tmp_path).code == 0

    def test_a_modality_without_configuration_is_refused(self, mmrl, tmp_path):
        assert "which configuration?" in one_line(mmrl("check", "vlm"))
        assert "expected key.sub=value" in mmrl("check", "rows.jsonl", "demo").err


class TestCache:
    def test_build_verify_prune(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "video", bases, "grpo")
        built = mmrl("cache", "build", config, "--workers", "1")
        assert built.code == 0, built.err
        assert "4 decoded" in built.out and "0 failed" in built.out
        assert "8 clips: 0 decoded" in mmrl("cache", "build", config, "--workers", "1").out
        entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
        assert len(entries) == 4
        entries[0].write_bytes(entries[0].read_bytes()[:-64])
        assert "1" in mmrl("cache", "verify", tmp_path / "cache").out
        assert not entries[0].exists()
        assert mmrl("cache", "prune", "0", "--root", tmp_path / "cache").code == 0
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    def test_a_clip_that_cannot_be_read_fails_the_build_after_the_others(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "video", bases, "grpo")
        (tmp_path / "red.mp4").write_bytes(b"not a video")
        built = mmrl("cache", "build", config, "--workers", "1")
        assert built.code == 1
        assert "3 decoded" in built.out and "1 failed" in built.out and f"{tmp_path / 'red.mp4'}: " in built.out

    def test_a_folder_that_is_not_there(self, mmrl, tmp_path):
        assert "no such cache folder" in one_line(mmrl("cache", "verify", tmp_path / "gone"))
        assert "no such cache folder" in one_line(mmrl("cache", "prune", "1", "--root", tmp_path / "gone"))

    def test_a_configuration_without_clips(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "video", bases, "grpo")
        write_rows(tmp_path / "rows.jsonl", [{"prompt": "text alone", "solution": "a"}])
        assert "no videos" in one_line(mmrl("cache", "build", config, "--workers", "1"))


def test_doctor_reports_on_this_machine(mmrl):
    done = mmrl("doctor")
    assert done.code == 0
    assert "torch" in done.out and "transformers" in done.out


class TestMistakes:
    """One clear line and exit status 2 for each; nothing is written."""

    def train(self, mmrl, config, modality="vlm", *overrides):
        return mmrl("train", modality, config, *overrides)

    @pytest.fixture
    def config(self, tmp_path, bases):
        return write_config(tmp_path, "vlm", bases, "grpo")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("training.stepps=3", "did you mean 'steps'"),
            ("training.steps=many", "training.steps"),
            ("recipe=grppo", "did you mean 'grpo'"),
            ("recipe=flow_grpo", "not for 'vlm'"),
            ("objective.trust_region=clpi", "did you mean 'clip'"),
            ("objective.trust_region.low=little", "trust_region 'clip': low: Input should be a valid number"),
            ("objective.trust_region.lwo=0.1", "did you mean 'low'"),
            ("policy.model=nobody/nothing", "cannot load 'nobody/nothing'"),
            ("rewards=[{name: acuracy}]", "did you mean 'accuracy'"),
            ("rewards=[]", "no rewards"),
            ("rewards=[{name: 'gone.py:f'}]", "gone.py"),
            ("data.train=gone.jsonl", "gone.jsonl"),
            ("data.train=", "data.train"),
            ("training.group_size=1", "group_size=1"),
            ("policy.attention=flash_attention_2", "cannot load"),  # not installed here
            ("policy.dtype=float61", "'float32'"),
        ],
    )
    def test_configuration(self, mmrl, tmp_path, config, override, message):
        assert message in one_line(self.train(mmrl, config, "vlm", override))
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

    def test_a_modality_that_is_none(self, mmrl, tmp_path):
        for command in (["train", "vln", "grpo"], ["plan", "vln", "grpo"], ["demo", "--only", "vln"]):
            assert "unknown modality 'vln'; did you mean 'vlm'" in one_line(mmrl(*command))

    def test_sampling_of_clips(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "video", bases, "grpo")
        assert "did you mean 'fps'" in one_line(mmrl("train", "video", config, "policy.sampling.fsp=3"))

    def test_a_start_that_failed_may_be_repeated(self, mmrl, tmp_path, config):
        assert "max_prompt_tokens" in one_line(self.train(mmrl, config, "vlm", "policy.max_prompt_tokens=3"))
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
        assert "max_prompt_tokens" in one_line(self.train(mmrl, config, "vlm", "policy.max_prompt_tokens=4"))

    def test_a_file_that_is_not_there(self, mmrl):
        assert "did you mean 'grpo'" in one_line(self.train(mmrl, "grp"))
        assert "no such configuration file" in one_line(self.train(mmrl, "gone.yaml"))

    def test_a_file_that_is_not_yaml(self, mmrl, tmp_path):
        (tmp_path / "broken.yaml").write_text("policy: [1, 2")
        assert "not valid YAML" in one_line(self.train(mmrl, tmp_path / "broken.yaml"))

    def test_another_modality(self, mmrl, config):
        config.write_text(yaml.safe_dump({"modality": "video", **yaml.safe_load(config.read_text())}))
        assert "not for 'vlm'" in one_line(self.train(mmrl, config))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "<image>What?", "image": "gone.png", "solution": "a"}, "gone.png"),
            ({"image": "red.png", "solution": "a"}, "prompt"),
            ({"prompt": 3, "solution": "a"}, "prompt"),
            ({"prompt": "<image><image>Two?", "image": "red.png", "solution": "a"}, "image"),
        ],
        ids=["missing media", "no prompt", "wrong type", "marks and media differ"],
    )
    def test_rows(self, mmrl, tmp_path, config, row, message):
        write_rows(tmp_path / "rows.jsonl", [row])
        line = one_line(self.train(mmrl, config))
        assert message in line and "rows.jsonl" in line

    @pytest.mark.parametrize(
        ("modality", "other", "words"),
        [
            ("vlm", "video", "this policy does not read"),
            ("flow", "vlm", "condition image(s); StableDiffusion3Pipeline"),
        ],
    )
    def test_media_that_the_policy_does_not_read(self, mmrl, tmp_path, bases, modality, other, words):
        config = write_config(tmp_path / "own", modality, bases, "flow_grpo" if modality == "flow" else "grpo")
        rows = write_data(tmp_path, other)
        line = one_line(
            mmrl("train", modality, config, f"data.train={rows}", "data.eval=null", "rewards=[{name: format}]")
        )
        assert words in line and f"that prompt is {rows}, line" in line

    def test_an_error_in_the_middle_names_the_row(self, mmrl, tmp_path, config):
        rows = (tmp_path / "rows.jsonl").read_text().splitlines()
        long = json.loads(rows[2]) | {"prompt": "<image>" + "What colour is it? " * 30}
        (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:2], json.dumps(long), rows[3]]) + "\n")
        line = one_line(self.train(mmrl, config, "vlm", "policy.max_prompt_tokens=60"))
        assert "the limit max_prompt_tokens is 60" in line
        assert line.endswith(f"that prompt is {tmp_path / 'rows.jsonl'}, line 3\n")

    def test_a_row_that_no_reward_could_score(self, mmrl, tmp_path, config):
        write_rows(tmp_path / "rows.jsonl", [{"prompt": "How many?", "solution": "2"}])
        line = one_line(self.train(mmrl, config, "vlm", "rewards=[{name: accuracy}]"))
        assert "'task'" in line and "rows.jsonl, line 1" in line
        assert "'task'" in one_line(self.train(mmrl, config, "vlm", "rewards=[{name: accuracy}]"))
        assert not (tmp_path / "run").exists()

    def test_rows_that_are_not_json(self, mmrl, tmp_path, config):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "solution": "b"}\n{"prompt": \n')
        line = one_line(self.train(mmrl, config))
        assert "rows.jsonl" in line and "2" in line

    def test_an_unreadable_video(self, mmrl, tmp_path, bases):
        config = write_config(tmp_path, "video", bases, "grpo")
        (tmp_path / "red.mp4").write_bytes(b"not a video")
        assert "red.mp4" in one_line(mmrl("train", "video", config))

    @pytest.mark.parametrize("command", ["report", "evaluate", "sample", "export"])
    def test_a_missing_run(self, mmrl, tmp_path, command):
        folder = [tmp_path / "new"] if command == "export" else []
        assert "gone" in one_line(mmrl(command, tmp_path / "gone", *folder))

    def test_neither_configuration_nor_run(self, mmrl):
        assert "--resume RUN" in one_line(mmrl("train", "vlm"))
        assert "--resume RUN" in one_line(mmrl("train", "vlm", "training.steps=3"))

    def test_resuming_nothing(self, mmrl, tmp_path, config):
        assert "no complete checkpoint" in one_line(self.train(mmrl, config, "vlm", "--resume", str(tmp_path / "gone")))

    def test_a_run_directory_that_holds_a_run(self, mmrl, tmp_path, config):
        (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
        assert "--resume" in one_line(self.train(mmrl, config))
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_resolved_configuration_of_a_shipped_file_reads_back():
    for modality, name in SHIPPED:
        config = read_config(name, [], modality)
        assert read_config(yaml.safe_load(config.to_yaml())) == config


class TestOverruled:
    """A recipe named on the command line, under a file that was written for another."""

    def test_what_the_file_sets_otherwise_is_said(self):
        note = overruled("demo", ["recipe=tempflow_grpo"], "flow")
        assert note.startswith("demo was written for flow_grpo_fast and overrules what tempflow_grpo suggests: ")
        assert "policy.train_steps={'select': 'window', 'size': 3" in note and "'branches': 6}" in note
        assert "training.learning_rate" not in note

    def test_what_the_command_line_sets_itself_is_not(self):
        changes = ["recipe=tempflow_grpo", "policy.train_steps.select=one"]
        assert "train_steps" not in overruled("demo", changes, "flow")

    @pytest.mark.parametrize("changes", [[], ["recipe=flow_grpo_fast"], ["training.steps=2"]])
    def test_nothing_is_said_of_the_file_s_own_recipe(self, changes):
        assert overruled("demo", changes, "flow") == ""

    def test_nor_where_nothing_is_lost(self):
        assert overruled("grpo", ["recipe=vppo"], "vlm") == ""

    def test_the_command_line_tells(self, mmrl):
        assert "overrules what tempflow_grpo suggests" in mmrl("plan", "flow", "demo", "recipe=tempflow_grpo").out


def test_brackets_in_what_is_printed_are_no_markup(mmrl, tmp_path, bases):
    config = write_config(tmp_path, "vlm", bases, "grpo", steps=1)
    done = mmrl("train", "vlm", config, f"run_dir={tmp_path}/[b]run[/b]")
    assert done.code == 0, done.err
    assert f"run in {tmp_path}/[b]run[/b]" in done.out
