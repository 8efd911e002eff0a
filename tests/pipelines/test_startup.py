"""The command line answers at once: nothing heavy is imported before it is used."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "diffusers", "peft", "accelerate", "datasets", "torchvision", "open_clip", "numpy"}


def imported_by(code: str) -> set[str]:
    """Top-level modules a fresh interpreter has loaded after `code`."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


RUN = "from mmrl.pipelines.cli import main\nsys.argv = ['mmrl', *{!r}]\ntry:\n    main()\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "code",
    ["import mmrl", RUN.format(["--help"]), RUN.format(["train", "--help"]), RUN.format(["cache", "--help"])],
    ids=["import", "help", "train help", "cache help"],
)
def test_nothing_heavy_is_imported(code):
    loaded = imported_by(code)
    assert "mmrl" in loaded
    assert not loaded & HEAVY


def test_the_check_sees_a_heavy_import():
    assert "numpy" in imported_by("import mmrl, numpy")
