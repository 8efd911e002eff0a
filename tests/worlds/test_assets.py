"""The shipped bases load with plain libraries, start where their cards say, and name commands that exist."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mmrl.data.worlds import open_world
from mmrl.pipelines.bases.models import CAPTION_LENGTH, tiny_flow, tiny_processor
from mmrl.pipelines.config import shipped_asset

LANGUAGE, FLOW, CALLERS = ("tiny_vlm", "tiny_video"), "tiny_flow", {"tiny_zoom": "zoom", "tiny_frames": "frames"}
DRAWERS = {"tiny_flow": "flow", "tiny_wan": "clips", "tiny_kontext": "edits"}
MODULES = {"tiny_vlm": "vlm", "tiny_video": "video", "tiny_masked": "masked", **DRAWERS}


def card_scores(folder: Path) -> dict[str, float]:
    """The table of a card."""
    rows = [line for line in (folder / "CARD.md").read_text().splitlines() if line.startswith("|")]
    names, values = ([cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], rows[2]))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize("name", [*LANGUAGE, *CALLERS])
def test_language_bases_load_with_plain_transformers(name):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = shipped_asset(name)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_flow_base_loads_with_plain_diffusers_and_draws():
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(shipped_asset(FLOW), dtype=torch.float32)
    assert all(part is not None for name, part in pipeline.components.items() if "encoder" in name[:12])
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "one red circle on the left",
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=CAPTION_LENGTH,
    ).images[0]
    assert image.size == (24, 24)


def test_bases_of_clips_and_edits_load_with_plain_diffusers():
    from diffusers import FluxKontextPipeline, WanPipeline

    wan, kontext = shipped_asset("tiny_wan"), shipped_asset("tiny_kontext")
    for kind, folder in ((WanPipeline, wan), (FluxKontextPipeline, kontext)):
        pipeline = kind.from_pretrained(folder, dtype=torch.float32)
        assert pipeline.transformer is not None and pipeline.text_encoder is not None


@pytest.mark.parametrize("name", MODULES)
def test_cards_name_commands_that_exist_and_scores_in_the_promised_range(name):
    folder = shipped_asset(name)
    card = (folder / "CARD.md").read_text()
    modules = re.findall(r"python -m ([\w.]+)", card)
    assert len(modules) == 2 and all(find_spec(module) for module in modules)
    assert set(modules) == {f"mmrl.pipelines.bases.{MODULES[name]}"}
    scores = card_scores(folder)
    least = 0.25 if name in ("tiny_wan", "tiny_kontext") else 0.35
    assert least <= scores["overall" if name in DRAWERS else "all"] <= 0.85


@pytest.mark.parametrize("name", MODULES)
def test_bases_start_where_their_cards_say(name):
    """On 64 of the 256 held-out prompts: within three standard errors."""
    from importlib import import_module

    module = import_module(f"mmrl.pipelines.bases.{MODULES[name]}")
    folder = shipped_asset(name)
    main = "overall" if name in DRAWERS else "all"
    assert abs(module.score(folder, 64)[main] - card_scores(folder)[main]) < 3 * 0.5 / 8


@pytest.mark.parametrize("name", CALLERS)
def test_bases_that_call_guess_at_first_and_read_what_they_are_shown(name):
    """Cards say so, and 48 held-out prompts agree within three standard errors."""
    from importlib import import_module

    folder, module = shipped_asset(name), f"mmrl.pipelines.bases.{CALLERS[name]}"
    said, found = card_scores(folder), import_module(module).score(folder, 48)
    assert set(re.findall(r"python -m ([\w.]+)", (folder / "CARD.md").read_text())) == {module}
    assert said["all"] < 0.16 and said["looking"] > said["all"] + 0.2
    assert all(abs(found[key] - said[key]) < 3 * 0.5 / 48**0.5 for key in ("all", "looking"))


@pytest.mark.parametrize("name", [*MODULES, *CALLERS])
def test_everything_shipped_is_small_and_holds_no_pickles(name):
    files = [f for f in shipped_asset(name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 10 * 2**20
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".jinja", ".txt"}


def test_training_scripts_explain_themselves():
    command = [sys.executable, "-m", "mmrl.pipelines.bases.flow", "--help"]
    assert "--score" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_captions_are_one_token_a_word_in_each_encoder():
    pipeline = tiny_flow()
    for level in (2, 5):
        world = open_world("compositions", difficulty=level, size=50)
        for index in range(50):
            words = re.findall(r"\w+|,", world[index].text)
            assert len(pipeline.tokenizer(world[index].text)["input_ids"]) == len(words) + 2 <= CAPTION_LENGTH


def test_answers_are_one_token_a_word_and_questions_hardly_more(tmp_path):
    tokenizer = tiny_processor().tokenizer

    def tokens_and_words(text: str) -> tuple[int, int]:
        return len(tokenizer(text)["input_ids"]), len(re.findall(r"\d+\.\d+|\w+|[^\w\s]", text))

    for name in ("shapes", "digits", "motion"):
        world = open_world(name, difficulty=(1, 5), size=60, root=tmp_path)
        for prompt in (world[index] for index in range(60)):
            tokens, words = tokens_and_words(prompt.columns["solution"])
            assert tokens <= words and tokens < 12, prompt.columns["solution"]
            tokens, words = tokens_and_words(prompt.text)
            assert tokens <= words + 2, prompt.text
