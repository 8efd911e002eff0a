"""Rewards in worker processes: each way to fail, with real processes; the run goes on, and nothing is a silent 0."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.panel import RewardPanel
from tests.rewards.helpers import prompts, user


def score(panel: RewardPanel, how: list[str], **columns):
    return panel.score([f"text {i}" for i in range(len(how))], prompts(len(how), how=how, **columns))


def running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("raise", "behave: ValueError: cannot judge text 1"),
        ("hang", "behave: timeout"),
        ("exit", "behave: worker died with exit code 3"),
        ("kill", "behave: worker killed by SIGKILL"),
        ("sys.exit", "behave: SystemExit: 2"),
        ("nan", "behave: NaN"),
        ("inf", "behave: infinite"),
        ("none", "behave: None"),
        ("text", "behave: str, not a number"),
        ("list", "behave: list, not a number"),
    ],
)
def test_only_the_row_at_fault_is_unscored(how, cause):
    with RewardPanel([user("behave", timeout=0.5)]) as panel:
        scores = score(panel, ["ok", how, "ok"])
        assert scores.reward.isnan().tolist() == [False, True, False]
        assert scores.reward[[0, 2]].tolist() == [1, 1]
        assert scores.causes == {cause: 1}
        assert score(panel, ["ok", "ok"]).reward.tolist() == [1, 1]  # and the panel goes on


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("too_few", "too_few: ValueError: returned 0 values for 1 completions"),
        ("not_a_list", "not_a_list: ValueError: returned float, expected a list of 1 values"),
    ],
)
def test_a_wrong_number_of_values_scores_nothing(function, cause):
    with RewardPanel([user(function), "exact_match"], unscored_ceiling=1) as panel:
        scores = panel.score(["a", "b"], prompts(2, solution="a"))
    assert scores.components[function].isnan().all()
    assert scores.components["exact_match"].tolist() == [1, 0]
    assert scores.reward.isnan().all()
    assert scores.causes == {cause: 2}


def test_failures_are_counted_by_cause():
    with RewardPanel([user("behave", timeout=0.4)], unscored_ceiling=0.9) as panel:
        scores = score(panel, ["ok", "nan", "nan", "hang", "exit", "none"])
    assert scores.causes == {
        "behave: NaN": 2,
        "behave: timeout": 1,
        "behave: worker died with exit code 3": 1,
        "behave: None": 1,
    }


def test_many_different_messages_are_counted_by_kind():
    with RewardPanel([user("behave")], unscored_ceiling=1) as panel:
        assert score(panel, ["raise"] * 12).causes == {"behave: ValueError": 12}


def test_past_the_ceiling_the_run_stops_and_says_why():
    with RewardPanel([user("behave"), "exact_match"], unscored_ceiling=0.5) as panel:
        assert score(panel, ["ok", "raise"], solution="x").reward.isnan().sum() == 1  # half is not past half
        with pytest.raises(RewardError, match=r"2 of 3 .*ceiling of 50%.*behave: ValueError: cannot judge") as error:
            score(panel, ["ok", "raise", "raise"], solution="x")
    assert "user_rewards.py" in str(error.value)  # the traceback, down to the line at fault
    assert 'raise ValueError(f"cannot judge {completion}")' in str(error.value)


def test_a_reward_that_always_hangs_is_given_up_past_the_ceiling():
    with (
        RewardPanel([user("behave", timeout=0.3)], unscored_ceiling=0.1) as panel,
        pytest.raises(RewardError, match=r"timeout \(4\).*not tried after too many failures \(28\)|not tried.*timeout"),
    ):
        score(panel, ["hang"] * 32)


def test_a_hang_takes_the_processes_it_started_along(tmp_path):
    pid_file = tmp_path / "pid"
    with RewardPanel([user("with_child", timeout=1.5)], unscored_ceiling=1) as panel:
        scores = score(panel, ["hang"], pid_file=str(pid_file))
        assert scores.causes == {"with_child: timeout": 1}
        child = int(pid_file.read_text())
        for _ in range(100):
            if not running(child):
                break
            time.sleep(0.05)
        assert not running(child)


def test_what_a_reward_prints_is_not_taken_for_an_answer():
    with RewardPanel([user("behave")]) as panel:
        assert score(panel, ["print", "ok"]).reward.tolist() == [1, 1]


def test_a_worker_killed_between_two_calls_is_replaced():
    with RewardPanel([user("process")]) as panel:
        first = int(panel.score(["x"], prompts()).reward)
        os.kill(first, signal.SIGKILL)
        for _ in range(100):
            if not running(first):
                break
            time.sleep(0.05)
        scores = panel.score(["x"], prompts())
        assert scores.causes == {}
        assert int(scores.reward) not in (first, os.getpid())


def test_rewards_run_in_another_process_and_torch_stays_out_of_it():
    with RewardPanel(["accuracy", user("process"), user("torch_loaded", weight=0)]) as panel:
        scores = panel.score(["x"], prompts(solution="x", task="exact"))
    assert int(scores.components["process"]) != os.getpid()
    assert scores.components["torch_loaded"].tolist() == [0]


def test_a_hang_in_one_reward_leaves_the_others_alone():
    with RewardPanel([user("behave", timeout=0.4), "exact_match"], workers=2, unscored_ceiling=1) as panel:
        scores = score(panel, ["hang", "ok"], solution="text 0")
    assert scores.components["exact_match"].tolist() == [1, 0]
    assert scores.components["behave"].isnan().tolist() == [True, False]


def test_closing_ends_the_workers():
    panel = RewardPanel([user("process")])
    pid = int(panel.score(["x"], prompts()).reward)
    assert running(pid)
    panel.close()
    assert not running(pid)


SCRIPT = """
import os, sys
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel

panel = RewardPanel([{"name": sys.argv[1]}])
pid = panel.score(["x"], [Prompt("p", [{"role": "user", "content": ""}])]).reward
print(int(pid), flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ending", ["normal", "killed"])
def test_workers_end_with_the_trainer_even_without_a_main_guard(tmp_path, ending):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, str(script), user("process")["name"], ending], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip(), done.stderr
    worker = int(done.stdout)
    for _ in range(100):
        if not running(worker):
            break
        time.sleep(0.05)
    assert not running(worker)


class TestInProcess:
    """Functions passed as objects, and rewards declared `isolated=False`: guarded, without a time limit."""

    def test_what_it_raises_is_caught_row_by_row(self):
        def fragile(completions, how):
            return [1 / (each == "ok") for each in how]

        with RewardPanel([fragile]) as panel:
            scores = score(panel, ["ok", "bad", "ok"])
        assert scores.reward.isnan().tolist() == [False, True, False]
        assert scores.causes == {"fragile: ZeroDivisionError: division by zero": 1}

    def test_nan_is_unscored(self):
        with RewardPanel([lambda completions: [float("nan"), 1.0]]) as panel:
            scores = panel.score(["a", "b"], prompts(2))
        assert scores.reward.isnan().tolist() == [True, False]

    def test_a_user_may_declare_it(self):
        with RewardPanel([user("declared")]) as panel:
            scores = panel.score(["a"], prompts())
        assert int(scores.reward) == os.getpid()
        assert scores.success.tolist() == [1]

    def test_a_configuration_may_declare_it(self):
        with RewardPanel([user("process", isolated=False)]) as panel:
            assert int(panel.score(["a"], prompts()).reward) == os.getpid()
