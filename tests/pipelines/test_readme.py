"""The examples of README.md and docs/ run as written, with a tiny model in place of the real one."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from docs import generate
from mmrl import FlowPipeline, VideoPipeline, VLMPipeline
from mmrl.pipelines.config import read_config
from tests.pipelines.runs import write_data, write_rows

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/python.md", "docs/quickstart.md")}
REAL_MODEL = r"[\w-]+/(?:Qwen|stable)[\w.-]+"
SMALL = {
    "vlm": '"steps": 1, "prompts_per_step": 2, "group_size": 2',
    "video": '"steps": 1, "prompts_per_step": 2, "group_size": 2',
    "flow": '"steps": 1, "prompts_per_step": 2, "group_size": 2',
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    text = "\n".join(block for page in PAGES for block in blocks(page, "bash"))
    return [
        line.strip() for line in text.splitlines() if re.match(r"\s*mmrl (train|plan) \w+ \w+ .*--policy.model", line)
    ]


def modality_of(code: str) -> str:
    return next(m for m, name in (("vlm", "VLM"), ("video", "Video"), ("flow", "Flow")) if f"{name}Pipeline" in code)


@pytest.mark.parametrize("command", commands())
def test_commands_can_be_planned(mmrl, bases, command):
    words = shlex.split(command)
    model = next(word for word in words if re.fullmatch(REAL_MODEL, word))
    words[words.index(model)] = str(bases.of(words[2]))
    done = mmrl("plan", *words[2:])
    assert done.code == 0, done.err
    assert "passes of a step" in done.out


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_pipelines_run_as_written(tmp_path, monkeypatch, bases, page):
    examples = [code for code in blocks(page, "python") if "Pipeline" in code]
    assert len(examples) == {"README.md": 3, "docs/python.md": 1}[page]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("cats.png")
    for code in examples:
        modality = modality_of(code)
        names = {"vlm": ("train.jsonl", "test.jsonl"), "video": ("clips.jsonl",), "flow": ("prompts.jsonl",)}
        rows = write_data(tmp_path, modality).read_text()
        for name in names[modality]:
            Path(name).write_text(rows)
        exec(compile(tiny(code, modality, bases), page, "exec"), {})
    assert (
        Path("my-adapter/adapter_config.json").exists() and Path("image.png").exists() if page == "README.md" else True
    )


def tiny(code: str, modality: str, bases) -> str:
    """The same code on a model that is here: name, sizes and the published CLIP are replaced."""
    small = '"max_sequence_length": 16, "steps": 8, "eval_steps": 4' if modality == "flow" else '"max_new_tokens": 4'
    small += ', "dtype": "float32"' if "config=" in code else ""
    if modality == "video":
        small += ', "sampling": {"fps": 2.0, "max_frames": 4, "min_pixels": 1024, "max_pixels": 4096}'
    code = re.sub(rf'"{REAL_MODEL}"', lambda _: f"{str(bases.of(modality))!r}, **{{{small}}}", code)
    code = code.replace('dtype="bfloat16"', 'dtype="float32"')
    red = f'[{{"name": {str(bases.root / "reward.py") + ":red"!r}}}]'  # in place of a CLIP that is not here
    code = code.replace('"prompts.jsonl",', f'"prompts.jsonl", rewards={red},')
    (bases.root / "reward.py").write_text(
        "def red(completions):\n    return [i.getpixel((0, 0))[0] / 255 for i in completions]\n"
    )
    code = code.replace('"steps": 200', SMALL[modality])
    if "training=" not in code:
        code = code.replace('run_dir="runs/mine"', f'run_dir="runs/mine", training={{{SMALL[modality]}}}')
    return code


@pytest.mark.parametrize(("modality", "recipe", "data"), [
    ("vlm", "vppo", "train.jsonl"), ("video", "tor", "clips.jsonl"), ("flow", None, "prompts.jsonl"),
])  # fmt: skip
def test_a_command_and_its_python_are_one_job(modality, recipe, data):
    """The resolved configuration of `mmrl train` beside that of the block below it."""
    (code,) = [c for c in blocks("README.md", "python") if "Pipeline" in c and modality_of(c) == modality]
    named = re.search(r'from_pretrained\("([^"]+)", config="(\w+)"\)', code)
    assert f'"{data}"' in code and (recipe is None or f'recipe="{recipe}"' in code)
    given = [f"data.train={data}", f"policy.model={named[1]}", *([f"recipe={recipe}"] if recipe else [])]
    command = read_config(named[2], given, modality)
    pipe = {"vlm": VLMPipeline, "video": VideoPipeline, "flow": FlowPipeline}[modality]
    made = pipe.unloaded(named[1], config=named[2])
    python = made._config(recipe, None, {"training": {"steps": 200}, "data": {"train": data}})
    assert python.model_dump() == command.model_dump()


def test_the_optimizer_alone_runs_as_written():
    (code,) = [code for code in blocks("docs/python.md", "python") if "compute(" in code]
    names: dict = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["new"].grad.abs().sum() > 0


def test_own_data_passes_the_check(tmp_path, monkeypatch, mmrl):
    (code,) = [code for code in blocks("README.md", "python") if "json.dumps" in code]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("cats.png")
    exec(compile(code, "README.md", "exec"), {})
    done = mmrl("check", "train.jsonl")
    assert done.code == 0, done.out
    assert len(code.strip().splitlines()) <= 10


def test_rows_of_the_quickstart_pass_the_check(tmp_path, mmrl):
    from tests.data.clips import write_clip

    (text,) = blocks("docs/quickstart.md", "json")
    rows = [json.loads(line) for line in text.strip().splitlines()]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cats.png")
    write_clip(tmp_path / "hall.mp4", frames=12, size=(64, 64))
    rows[-1]["solution"] = "none is read for images"
    assert mmrl("check", write_rows(tmp_path / "rows.jsonl", rows)).code == 0


def test_own_reward_is_five_lines_and_scores():
    (code,) = [code for code in blocks("README.md", "python") if "def brief" in code]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["brief"](["word " * 10, "word " * 30, "word " * 90]) == [1.0, 0.5, 0.0]
    assert len(code.strip().splitlines()) <= 5


def test_own_method_is_that_of_contributing_which_is_followed_to_the_letter():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    method = [code for code in blocks("README.md", "python") if "@stage" in code]
    recipe = [code for code in blocks("README.md", "yaml") if "method: fading" in code]
    assert len(method) == len(recipe) == 1
    assert all(block in contributing for block in method + recipe)


def test_counts_are_written_by_the_generator():
    counts = generate.readme().partition("<!-- counts")[2].partition("<!-- /counts -->")[0]
    assert re.search(
        r"\d+ recipes, \d+ of them for language models and generators alike, composed of \d+ stage functions", counts
    )
    assert "| `credit` |" in counts
