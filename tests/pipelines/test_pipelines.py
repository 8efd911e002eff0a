"""The three pipeline objects, in the order of their use: load, train, generate, evaluate, save, load elsewhere."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from mmrl import FlowPipeline, VideoPipeline, VLMPipeline
from mmrl.errors import ConfigError, DataError, RewardError
from tests.pipelines.runs import SIZES, policy_of, write_data

PIPELINES = {"vlm": VLMPipeline, "video": VideoPipeline, "flow": FlowPipeline}
REGISTERED = {"vlm": "accuracy", "video": "accuracy", "flow": "clip_score"}


def mine(completions, **columns):
    """A user's reward: share of vowels of a text, mean red of an image."""
    if isinstance(completions[0], str):
        return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]
    return [image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0] / 255 for image in completions]


@pytest.fixture(scope="module", params=PIPELINES)
def trained(request, tmp_path_factory, bases):
    modality = request.param
    folder = tmp_path_factory.mktemp(modality)
    lora = {"rank": 4} if modality != "flow" else {"rank": 4, "alpha": 8.0}
    pipe = PIPELINES[modality].from_pretrained(bases.of(modality), lora=lora, **policy_of(modality))
    data = write_data(folder, modality)
    rewards = [mine] if modality == "flow" else [mine, {"name": "accuracy", "weight": 0.5}]
    seen = []
    result = pipe.train(
        data, rewards, recipe="flow_grpo" if modality == "flow" else "grpo", eval_dataset=data,
        run_dir=folder / "run", training={**SIZES, "steps": 2}, cache={"root": str(folder / "cache")},
        report=lambda step, metrics: seen.append(step),
    )  # fmt: skip
    assert seen == [1, 2]
    return modality, pipe, data, result


def test_train_reports_before_and_after(trained):
    _, _, _, result = trained
    assert result.steps == 2
    assert not result.interrupted
    assert result.before["prompts"] == result.after["prompts"] == 4


def test_generate_gives_count_outputs_a_prompt(trained):
    modality, pipe, data, _ = trained
    kind = Image.Image if modality == "flow" else str
    one, three = pipe.generate(data), pipe.generate(data, count=3, seed=1)
    assert [len(outputs) for outputs in one] == [1] * 4
    assert [len(outputs) for outputs in three] == [3] * 4
    assert all(isinstance(output, kind) for outputs in three for output in outputs)
    again = pipe.generate(data, count=3, seed=1)
    if modality == "flow":
        assert [i.tobytes() for o in three for i in o] == [i.tobytes() for o in again for i in o]
    else:
        assert three == again


def test_generate_takes_rows_in_memory(trained):
    modality, pipe, _, _ = trained
    if modality == "vlm":
        rows = [{"prompt": "<image>What is it?", "image": Image.new("RGB", (64, 64), "red")}]
    else:
        rows = [{"prompt": "a red circle"}]
    assert len(pipe.generate(rows)) == 1


def test_generate_reads_outside_the_working_folder_only_when_told(trained, tmp_path, monkeypatch):
    modality, pipe, _, _ = trained
    if modality != "vlm":
        return
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    rows = [{"prompt": "<image>What is it?", "image": str(tmp_path / "red.png")}]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="allow_outside"):
        pipe.generate(rows)
    assert len(pipe.generate(rows, data={"allow_outside": True})) == 1


def test_evaluate_scores_every_prompt(trained):
    _, pipe, data, result = trained
    scores = pipe.evaluate(data, [mine])
    assert scores["prompts"] == 4
    assert scores["reward/mine"] == pytest.approx(result.after["reward/mine"], abs=1e-6)
    assert "pass@2" in pipe.evaluate(data, [{"name": "accuracy"}], samples=2) if pipe.modality != "flow" else True


def test_a_pipeline_needs_a_reward(trained):
    _, pipe, data, _ = trained
    with pytest.raises(ConfigError, match="no rewards"):
        pipe.train(data)
    with pytest.raises(ConfigError, match="3 is no name"):
        pipe.train(data, [3])
    with pytest.raises(RewardError, match="unknown reward 'acuracy'"):
        pipe.train(data, "acuracy")  # one that stands alone is a list of one


ELSEWHERE = """
import sys, importlib.abc, importlib.machinery

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'mmrl':
            raise ModuleNotFoundError(name)

{repair}
for name in [n for n in sys.modules if n.partition('.')[0] == 'mmrl']:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
try:
    import mmrl
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('mmrl was importable')
{load}
print('loaded')
"""
# a CPU torch beside a CUDA build of torchvision cannot import it; declaring its operators is torchvision's business
REPAIR = "import mmrl, torchvision"
LOADS = {
    "vlm": """
from transformers import AutoModelForImageTextToText, AutoProcessor
from peft import PeftModel
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base!r}), {adapter!r})
AutoModelForImageTextToText.from_pretrained({merged!r}); AutoProcessor.from_pretrained({merged!r})
""",
    "flow": """
from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained({base!r})
pipe.load_lora_weights({adapter!r})
whole = StableDiffusion3Pipeline.from_pretrained({merged!r})
image = whole('a red circle', num_inference_steps=2, max_sequence_length=16, guidance_scale=1.0).images[0]
assert image.size == (24, 24)
""",
}


def test_what_it_saves_loads_where_mmrl_is_absent(trained, tmp_path, bases):
    modality, pipe, _, _ = trained
    pipe.save_pretrained(tmp_path / "adapter")
    pipe.save_pretrained(tmp_path / "merged", merged=True)
    places = {
        "base": str(bases.of(modality)),
        "adapter": str(tmp_path / "adapter"),
        "merged": str(tmp_path / "merged"),
    }
    code = ELSEWHERE.format(repair=REPAIR, load=LOADS["flow" if modality == "flow" else "vlm"].format(**places))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loaded" in done.stdout


def test_a_saved_adapter_is_a_start(trained, tmp_path):
    modality, pipe, data, _ = trained
    pipe.save_pretrained(tmp_path / "adapter")
    again = PIPELINES[modality].from_pretrained(**{**pipe.settings, "adapter": str(tmp_path / "adapter")})
    first, second = pipe.generate(data), again.generate(data)
    if modality == "flow":
        assert [i.tobytes() for o in first for i in o] == [i.tobytes() for o in second for i in o]
    else:
        assert first == second


class TestRecipesOfGenerators:
    """What a recipe says of sampler, guidance and adapters reaches the policy, and the run's configuration."""

    TRAINING = {"steps": 1, "prompts_per_step": 2, "group_size": 18, "updates": {"count": 1}, "micro_batch_size": 36}

    @pytest.fixture(scope="class")
    def branched(self, tmp_path_factory, bases):
        folder = tmp_path_factory.mktemp("branched")
        pipe = FlowPipeline.from_pretrained(bases.of("flow"), max_sequence_length=16, eval_steps=4, steps=4)
        data = write_data(folder, "flow")
        result = pipe.train(
            data, ["clip_score"], recipe="tempflow_grpo", eval_dataset=data, run_dir=folder / "run",
            training=self.TRAINING,
        )  # fmt: skip
        return pipe, data, folder / "run", result

    def test_the_policy_has_them(self, branched):
        settings = branched[0].policy.config
        assert (settings.train_steps.select, settings.train_steps.branches) == ("one", 6)
        assert (settings.guidance_scale, settings.lora.rank) == (4.5, 32)
        assert settings.steps == 4, "what from_pretrained was told stays"

    def test_the_command_line_reads_the_run(self, branched, mmrl):
        *_, run, result = branched
        done = mmrl("evaluate", run)
        assert done.code == 0, done.err
        assert json.loads(done.out)["reward"] == pytest.approx(result.after["reward"], abs=1e-6)

    def test_another_recipe_cannot_follow(self, branched):
        pipe, data, run, _ = branched
        with pytest.raises(ConfigError, match=r"train_steps=.*with which this pipeline was trained"):
            pipe.train(data, ["clip_score"], recipe="flow_grpo", run_dir=run.with_name("other"))


def test_the_cache_of_a_training_is_the_one_it_names(tmp_path, bases):
    pipe = VideoPipeline.from_pretrained(bases.of("video"), **policy_of("video"))
    pipe.train(
        write_data(tmp_path, "video"), [mine], run_dir=tmp_path / "run", training={**SIZES, "steps": 1},
        cache={"root": str(tmp_path / "frames")},
    )  # fmt: skip
    assert list((tmp_path / "frames").rglob("*.safetensors"))


def test_training_shows_how_it_goes(tmp_path, bases, capsys):
    pipe = VLMPipeline.from_pretrained(bases.of("vlm"), **policy_of("vlm"))
    pipe.train(write_data(tmp_path, "vlm"), [mine], run_dir=tmp_path / "run", training={**SIZES, "steps": 1})
    assert "1/1" in capsys.readouterr().out
