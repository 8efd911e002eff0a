"""Every `mmrl` line of README.md's command blocks, in their order, in one folder: with a tiny model in place of the
real one, and small sizes behind it."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.runs import write_data
from tests.pipelines.test_readme import REAL_MODEL, blocks

SIZES = ["training.steps=1", "training.prompts_per_step=2", "training.group_size=2", "training.micro_batch_size=4"]
SMALL = {
    "vlm": [*SIZES, "policy.dtype=float32", "policy.max_new_tokens=4"],
    "video": [
        *SIZES, "policy.dtype=float32", "policy.max_new_tokens=4", "policy.sampling.max_frames=4",
        "policy.sampling.min_pixels=1024", "policy.sampling.max_pixels=4096",
    ],
    "flow": [
        *SIZES, "policy.dtype=float32", "policy.steps=8", "policy.eval_steps=4", "policy.max_sequence_length=16",
        "rewards=[{name: red.py:red}]",
    ],
}  # fmt: skip
RED = "def red(completions):\n    return [i.convert('RGB').getpixel((0, 0))[0] / 255 for i in completions]\n"


def commands() -> list[list[str]]:
    """The words of each line, its comment left out."""
    lines = [line.strip() for block in blocks("README.md", "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mmrl ")]


@pytest.mark.parametrize("modality", ["vlm", "video", "flow"])
def test_they_run_as_printed(tmp_path, monkeypatch, bases, mmrl, modality):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("cats.png")
    Path("red.py").write_text(RED)
    rows = write_data(tmp_path, modality).read_text()
    names = {"vlm": ("train.jsonl", "test.jsonl"), "video": ("clips.jsonl",), "flow": ("prompts.jsonl",)}
    for name in names[modality]:
        Path(name).write_text(rows)
    meant = [words for words in commands() if words[0] != "sweep"]  # an hour; small in test_sweep.py
    mine = [words for words in meant if modality in words or (modality == "vlm" and "runs/vlm" in " ".join(words))]
    assert len(mine) == {"vlm": 6, "video": 1, "flow": 1}[modality], mine
    for words in mine:
        if words[0] == "compare":  # two runs: the same command again makes the second
            again = next(w for w in mine if w[0] == "train" and "--resume" not in w)
            assert mmrl(*_small(again, modality, bases)).code == 0
        done = mmrl(*_small(words, modality, bases))
        assert done.code == 0, (words, done.err)
    if modality == "vlm":
        assert (tmp_path / "runs/vlm-vppo/report.html").is_file() and (tmp_path / "comparison.html").is_file()


def _small(words: list[str], modality: str, bases) -> list[str]:
    model = [re.sub(rf"^{REAL_MODEL}$", lambda _: str(bases.of(modality)), word) for word in words]
    sized = words[0] == "train" and "--resume" not in words
    baseline = words[0] == "evaluate" and words[1] == modality
    return [*model, *(SMALL[modality] if sized else ["policy.dtype=float32"] if baseline else [])]
