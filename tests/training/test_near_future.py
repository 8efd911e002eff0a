"""AutoNPO: the moment, the guide's worth, and a run that rolls back and goes on with its later self's answers."""

import json
import math

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.near_future import NearFuture, run_with_guides
from mmrl.rollout.offline_slot import OfflineSlot
from mmrl.training.near_future import Guide, Trigger, best_guide, slope, variance_cost
from mmrl.training.tracking import read_metrics


def test_a_line_s_slope():
    assert slope([1, 3, 5, 7]) == pytest.approx(2) and slope([4, 4]) == 0 and slope([1]) == 0


def test_the_cost_of_a_guide_is_nothing_for_itself_and_its_squared_ratio_less_one():
    logs = torch.tensor([-1.0, -2.0])
    assert variance_cost(logs, logs) == 0
    assert variance_cost(torch.tensor([math.log(2.0), 0]), torch.zeros(2)) == pytest.approx((4 + 1) / 2 - 1)


def test_a_near_guide_beats_a_better_and_farther_one():
    near, far = Guide(1, 0.4, 0.5), Guide(2, 0.6, 1.5)
    assert (near.signal(), far.signal()) == pytest.approx((0.8, 0.4)) and best_guide([far, near]) is near
    assert best_guide([Guide(1, 0, 0.5)]) is None and best_guide([]) is None
    assert best_guide([Guide(2, 0.3, 0), Guide(1, 0.3, 0)]).step == 1, "a cost of 0 is no infinite worth"


def seen(trigger, rewards, entropy=2.0):
    trigger.begin(0)
    for number, reward in enumerate(rewards, 1):
        trigger.watch(number, {"reward/mean": reward, "entropy/sampled": entropy})
    return trigger


def test_it_fires_where_the_reward_stands_still_and_ends_the_run_some_steps_later():
    trigger = seen(Trigger(window=3, slope=0.05, ahead=2), [0.0, 0.1, 0.2, 0.2, 0.2])
    assert trigger.fired == 5 and not trigger.ended, "slopes .1, .05, 0"
    for number in (6, 7):
        trigger.watch(number, {"reward/mean": 0.9})
    assert "no longer rises" in trigger.ended and "2 steps were run ahead" in trigger.ended
    assert seen(Trigger(window=3, slope=0.05), [0.1 * n for n in range(9)]).fired is None
    assert seen(Trigger(window=9, entropy=0.5), [0.1, 0.2], entropy=0.4).fired == 1
    with pytest.raises(ConfigError, match="autonpo: window=1"):
        Trigger(window=1)


def test_stored_answers_are_tokens_by_prompt(tmp_path):
    table = tmp_path / "a.jsonl"
    table.write_text('{"id": "a", "tokens": [5, 6]}\n')
    assert OfflineSlot(answers=str(table)).answers == {"a": [5, 6]}
    with pytest.raises(ConfigError, match="no such file"):
        OfflineSlot(answers=str(tmp_path / "none"))


@pytest.mark.learns
def test_a_run_rolls_back_and_its_later_self_helps(tmp_path):
    values = {
        "recipe": "grpo", "run_dir": str(tmp_path / "run"), "rewards": [{"name": "accuracy"}],
        "policy": {"model": "asset:tiny_vlm", "max_new_tokens": 5},
        "data": {"train": "world:stills?split=train&size=16&skills=color", "workers": 0},
        "training": {"steps": 5, "prompts_per_step": 8, "group_size": 4, "learning_rate": 1e-4, "save_every": 1},
    }  # fmt: skip
    asked = NearFuture(window=2, slope=9, ahead=2, mixed=2, below=0.9, prompts=8, samples=2, times=1)
    said = run_with_guides(read_config(values, (), "vlm"), asked)
    (told,) = json.loads((tmp_path / "run" / "autonpo.json").read_text())
    assert (told["fired"], told["rolled_back_to"], told["until"]) == (2, 2, 4)
    assert f"step {told['guide']} solves" in said
    assert [t["step"] for t in told["tried"]] == [3, 4]
    table = [json.loads(line) for line in (tmp_path / "run/guides/1.jsonl").read_text().splitlines()]
    assert len(table) == told["answers"] > 0
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5], "what was run ahead is set aside"
    assert (tmp_path / "run" / "set_aside" / "1" / "metrics.jsonl").is_file()
    helped = {m["step"] for m in metrics if any(line["source"] == "demonstration" for line in m["rows_by_source"])}
    assert helped and helped <= {3, 4}
    with pytest.raises(ConfigError, match=r"training.save_every=1000: expected 1 to 2"):
        run_with_guides(read_config(values, ["training.save_every=1000"], "vlm"), asked)
