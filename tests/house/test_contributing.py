"""The examples of CONTRIBUTING.md are followed to the letter in a copy of the repository."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmrl.rewards.panel import RewardSpec
from tests.house.source import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def example(name: str) -> str:
    """The code block behind the line that names a file, `like/this.py`."""
    found = re.search(rf"`{re.escape(name)}`[^\n]*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"CONTRIBUTING.md has no block for {name}"
    return found.group(1)


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def followed(checkout) -> Path:
    """The copy, after the page's method, recipe, test and reward were added."""
    names = ("mmrl/objective/credit/fading.py", "configs/recipes/fading.yaml", "tests/objective/test_fading.py")
    for name in (*names, "mmrl/rollout/second_chance.py", "my_rewards.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(example(name))
    return checkout


def test_the_method_passes_its_own_test(followed):
    done = run(followed, "-m", "pytest", "-p", "no:cacheprovider", "tests/objective/test_fading.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_that_test_can_fail(followed):
    recipe = followed / "configs/recipes/fading.yaml"
    recipe.write_text(example("configs/recipes/fading.yaml").replace("decay: 0.5", "decay: 0.6"))
    done = run(followed, "-m", "pytest", "-p", "no:cacheprovider", "tests/objective/test_fading.py")
    recipe.write_text(example("configs/recipes/fading.yaml"))
    assert "1 failed" in done.stdout


def test_the_command_line_shows_the_method(followed):
    done = run(followed, "-m", "mmrl", "methods", "fading")
    assert done.returncode == 0, done.stderr
    assert "A_t = A decay^t" in done.stdout and "decay=0.99" in done.stdout


def test_the_strategy_plans_what_the_page_says(followed):
    code = (
        "from mmrl.rollout.nesting import Nested\n"
        "from tests.rollout.plans import rows, step\n"
        "strategies = Nested.of(['dynamic_sampling', 'second_chance'])\n"
        "plan = strategies.join(rows([0, 0, 1, 0], [0, 0, 1, 1]), step(1))\n"
        "print([(a.group, a.count, dict(a.columns)) for a in plan.ask])\n"
    )
    done = run(followed, "-c", code)
    assert done.stdout.strip() == "[(0, 2, {'second': 1.0})]", done.stderr


def test_the_reward_is_found_by_its_file_and_scores(followed):
    (block,) = re.findall(r"```yaml\n(rewards:.*?)```", PAGE, re.DOTALL)
    (spec,) = yaml.safe_load(block)["rewards"]
    RewardSpec(**spec)
    code = (
        "import sys, json\n"
        "from mmrl.rewards.registry import resolve\n"
        "reward = resolve(sys.argv[1])\n"
        "print(reward.function(['word ' * 10, 'word ' * 45, 'word ' * 90], **json.loads(sys.argv[2])))\n"
    )
    done = run(followed, "-c", code, spec["name"], json.dumps(spec["options"]))
    assert done.stdout.strip() == "[1.0, 0.5, 0.0]", done.stderr


def test_the_layout_it_shows_exists():
    folders = re.findall(r"^(\w+)/ ", PAGE, re.MULTILINE)
    assert {"mmrl", "rewards", "data", "pipelines", "configs", "tests"} <= set(folders)
    assert all((ROOT / folder).is_dir() for folder in folders)
