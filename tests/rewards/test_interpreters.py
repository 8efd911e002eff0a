"""A reward under an interpreter of its own: it sees this package and none of the trainer's other packages."""

import subprocess
import sys

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts, user


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An empty environment."""
    place = tmp_path_factory.mktemp("venv_of_rewards")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    return str(place / "bin" / "python")


def test_it_runs_there_and_not_here(python):
    with RewardPanel([user("interpreter", python=python)]) as panel:
        found = panel.score(["hello", "hi"], prompts(2))
    assert found.reward.tolist() == [5, 2]
    assert found.components["interpreter/own"].tolist() == [1, 1]
    assert found.components["interpreter/torch"].tolist() == [0, 0], "the trainer's packages are not in its way"


def test_it_hangs_without_taking_the_run_along(python):
    with RewardPanel([user("behave", python=python, timeout=2.0)], unscored_ceiling=0.5) as panel:
        found = panel.score(["a", "b"], prompts(2, how=["fine", "hang"]))
    assert found.reward[1].isnan() and not found.reward[0].isnan()


def test_what_is_missing_there_is_one_line(python):
    with (
        RewardPanel([{"name": "hpsv2", "python": python}]) as panel,
        pytest.raises(RewardError, match="lacks PIL"),
    ):
        panel.score([picture()], prompts())


def picture():
    from PIL import Image

    return Image.new("RGB", (4, 4))


@pytest.mark.parametrize("options", [{"python": "/no/python"}, {"python": "/"}, {"python": "x", "isolated": False}])
def test_what_is_no_interpreter_is_refused(options):
    with pytest.raises(RewardError, match=r"python=|isolated=false"):
        RewardPanel([user("interpreter", **options)])
