"""`import mmrl` is light, and its few names load their module when first used."""

import subprocess
import sys
from importlib import metadata

import pytest

import mmrl

HEAVY = ("torch", "torchvision", "transformers", "diffusers", "accelerate", "peft", "datasets", "numpy", "pydantic")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_importing_mmrl_loads_no_heavy_library():
    done = python("import sys, mmrl; print(*[m for m in sys.argv[1:] if m in sys.modules])", *HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_loads_no_heavy_library():
    done = python(
        "import sys\n"
        "from mmrl.pipelines.cli import main\n"
        "heavy, sys.argv = sys.argv[1:], ['mmrl', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('loaded:', *[m for m in heavy if m in sys.modules])\n",
        "torch", "torchvision", "transformers", "diffusers", "accelerate", "peft", "datasets",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


def test_python_dash_m_mmrl_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "mmrl", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize("name", ["VLMPipeline", "VideoPipeline", "FlowPipeline"])
def test_pipelines_are_reached_from_the_top(name):
    assert getattr(mmrl, name).__module__.startswith("mmrl.pipelines.")
    assert name in dir(mmrl)


def test_the_objective_is_reached_without_a_further_import():
    done = python("import mmrl; print(mmrl.objective.compute.__name__)")
    assert done.stdout.strip() == "compute", done.stderr


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"'VLMPipline'.*VLMPipeline"):
        mmrl.VLMPipline  # noqa: B018


def test_one_version():
    assert metadata.version("mmrl") == mmrl.__version__
