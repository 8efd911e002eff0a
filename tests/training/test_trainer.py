"""The loop: it learns, whatever the micro-batches; it resumes bit for bit; it reports what it did."""

import io
import json
import signal

import pytest
import torch

from mmrl.data.ahead import Ahead
from mmrl.errors import ConfigError, DataError, SelfCheckError
from mmrl.objective import Objective
from mmrl.recipes import load_recipe
from mmrl.record import Scores
from mmrl.stages import Bound
from mmrl.training import checkpoint
from mmrl.training.config import TrainingConfig
from mmrl.training.tracking import JsonLines, read_metrics
from mmrl.training.trainer import Trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels

TIMING = ("seconds/", "rate/", "memory/")


def make_trainer(
    run_dir,
    policy=None,
    recipe="grpo",
    score=score_vowels,
    keep_until=0,
    prompts=None,
    sampler=None,
    regularizers=(),
    rollout=(),
    **changes,
):
    settings = {"steps": 3, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-3, "save_every": 1}
    config = TrainingConfig(**{**settings, **changes})
    run_dir.mkdir(parents=True, exist_ok=True)
    objective = load_recipe(recipe).objective
    objective = {**objective, "regularizers": [*objective.get("regularizers", ()), *regularizers]}
    return Trainer(
        policy or make_policy(), Objective.of(objective), prompts or make_prompts(16), score,
        config, run_dir, eval_prompts=make_prompts(4), sampler=sampler, rollout=rollout or load_recipe(recipe).rollout,
        trackers=[JsonLines(run_dir / "metrics.jsonl", keep_until)],
    )  # fmt: skip


def weights_of(trainer):
    return {k: v.clone() for k, v in trainer.policy.inner.state_dict().items()}


def timeless(run_dir):
    return [{k: v for k, v in m.items() if not k.startswith(TIMING)} for m in read_metrics(run_dir / "metrics.jsonl")]


def test_the_reward_rises(tmp_path):
    trainer = make_trainer(tmp_path, steps=40, learning_rate=2e-3, save_every=0, prompts_per_step=4)
    trainer.train()
    rewards = [m["reward/mean"] for m in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


@pytest.mark.parametrize("recipe", ["grpo", "dr_grpo", "gspo"])
def test_micro_batches_do_not_change_the_update(tmp_path, recipe):
    also = [{"name": "sampled_entropy", "coefficient": 0.01}, {"name": "kl", "coefficient": 0.01}]
    whole = make_trainer(tmp_path / "whole", recipe=recipe, regularizers=also, steps=1, micro_batch_size=16)
    split = make_trainer(tmp_path / "split", recipe=recipe, regularizers=also, steps=1, micro_batch_size=3)
    start = weights_of(whole)
    whole.train()
    split.train()
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("whole", "split"))
    assert one["regularizer/kl"] == 0
    for name in ("ratio/mean", "regularizer/sampled_entropy", "gradient_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-5), name
    assert one["regularizer/sampled_entropy"] == pytest.approx(one["entropy/sampled"], rel=0.2), "a mean over tokens"
    after = weights_of(split)
    moved = 0.0
    for name, value in weights_of(whole).items():
        # Adam turns rounding of near-zero gradients into steps of the learning rate: compare in the mean
        assert (value - after[name]).abs().mean() < 2e-5, name
        moved += (value - start[name]).abs().sum().item()
    assert moved > 1


def test_updates_split_a_step_into_optimizer_steps(tmp_path):
    trainer = make_trainer(tmp_path, steps=1, updates={"count": 2})
    trainer.train()
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["updates"] == 2
    assert metrics["ratio/mean"] != 1.0


def test_resume_equals_never_having_stopped(tmp_path):
    straight = make_trainer(tmp_path / "straight", steps=4)
    straight.train()
    first = make_trainer(tmp_path / "resumed", steps=4)
    first.config.steps = 4
    for _ in range(2):
        first.train_step()
        first.step += 1
    first.save()
    second = make_trainer(tmp_path / "resumed", steps=4)
    second.train(checkpoint.latest(tmp_path / "resumed"))
    assert timeless(tmp_path / "resumed") == timeless(tmp_path / "straight")[2:]
    for name, value in weights_of(straight).items():
        assert torch.equal(value, weights_of(second)[name]), name


class Announced(list):
    """Prompts that remember, by step, what was announced after the step's own were, and what was asked for."""

    def __init__(self, prompts):
        super().__init__(prompts)
        self.announced, self.asked = [], []

    def prefetch(self, indices):
        self.announced.append(list(indices))

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("name", ["shuffled", "spo_single_stream"])
def test_the_prompts_of_the_next_step_are_announced_while_this_one_trains(tmp_path, name):
    prompts = Announced(make_prompts(16))
    trainer = make_trainer(tmp_path, prompts=prompts, sampler=Bound.of("prompts", name).state)
    for step in range(3):
        trainer.train_step()
        trainer.step += 1
        *_, known, first, coming = [[], *prompts.announced]
        assert first[:4] == prompts.asked[-4:], "what a step asks for comes first"
        assert known == (prompts.asked[-4:] if step else []), "and was known before it began"
    assert coming == [], "after the last step comes nothing"


def test_preparing_prompts_ahead_changes_nothing(tmp_path):
    plain, ahead = make_trainer(tmp_path / "plain"), Ahead(make_prompts(16), workers=2)
    plain.train()
    with ahead:
        prepared = make_trainer(tmp_path / "ahead", prompts=ahead)
        prepared.train()
    assert timeless(tmp_path / "plain") == timeless(tmp_path / "ahead")
    for name, value in weights_of(plain).items():
        assert torch.equal(value, weights_of(prepared)[name]), name


def test_a_sampler_from_the_registry_prefers_prompts_of_uncertain_success(tmp_path):
    def even_ones_are_easy(outputs, prompts):
        reward = torch.tensor([float(int(p.id[1:]) % 2 == 0 or i % 2 == 0) for i, p in enumerate(prompts)])
        return Scores({"right": reward}, reward, reward)

    prompts = Announced(make_prompts(16))
    sampler = Bound.of("prompts", {"name": "spo_single_stream", "keep": 0.5}).state
    trainer = make_trainer(
        tmp_path, prompts=prompts, sampler=sampler, score=even_ones_are_easy, steps=24, group_size=2, save_every=0,
    )  # fmt: skip
    trainer.train()
    late = prompts.asked[-48:]
    assert sum(i % 2 for i in late) > 32
    assert json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())["sampler"] == sampler.state_dict()


def test_checkpoints_are_whole_and_only_the_last_are_kept(tmp_path):
    trainer = make_trainer(tmp_path, steps=3, keep_checkpoints=2)
    trainer.train()
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2, 3]
    half = tmp_path / "checkpoints" / "step-000009"
    half.mkdir()
    assert checkpoint.latest(tmp_path).name == "step-000003"
    (tmp_path / "checkpoints" / ".step-000008.partial").mkdir()
    (tmp_path / "checkpoints" / "best").mkdir()
    trainer.step = 4
    trainer.save()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-000003", "step-000004"], "remains of killed processes go, a user's own stays"
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.bin"))


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(tmp_path):
    make_trainer(tmp_path, steps=4, keep_checkpoints=3).train()
    again = make_trainer(tmp_path, steps=3, keep_checkpoints=2)
    again.train(tmp_path / "checkpoints" / "step-000002")
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2, 3]
    aside = tmp_path / "set_aside" / "1" / "checkpoints"
    assert sorted(p.name for p in aside.iterdir()) == ["step-000003", "step-000004"]


def test_the_self_check_stops_a_policy_that_trains_on_other_probabilities(tmp_path):
    policy = make_policy()
    rollout = policy.rollout

    def hotter(requests, key, greedy=False):
        rollouts = rollout(requests, key, greedy=greedy)
        rollouts.old_log_probs *= 1.3
        return rollouts

    policy.rollout = hotter
    trainer = make_trainer(tmp_path, policy)
    before = weights_of(trainer)
    with pytest.raises(SelfCheckError, match="temperature"):
        trainer.train()
    for name, value in weights_of(trainer).items():
        assert torch.equal(value, before[name])


def test_the_self_check_leaves_out_what_was_sampled_under_a_hint(tmp_path):
    policy = make_policy()
    rollout = policy.rollout

    def hinting(requests, key, greedy=False):
        rollouts = rollout(requests, key, greedy=greedy)
        rollouts.replay["shown"] = rollouts.member == 0
        rollouts.old_log_probs[rollouts.member == 0] *= 1.3
        return rollouts

    policy.rollout = hinting
    make_trainer(tmp_path, policy, steps=1).train()
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["self_check/not_compared"] > 0
    assert metrics["self_check/worst_gap"] < 1e-4


def test_unscored_rollouts_leave_the_loss_and_are_reported(tmp_path):
    def flaky(outputs, prompts):
        scores = score_vowels(outputs, prompts)
        scores.reward[::4] = float("nan")
        return Scores(scores.components, scores.reward, scores.success, {"vowels: timeout": len(scores.reward[::4])})

    trainer = make_trainer(tmp_path, score=flaky, steps=1)
    trainer.train()
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["reward/unscored_fraction"] == 0.25
    assert metrics["unscored"] == {"vowels: timeout": 4}
    assert metrics["gradient_norm"] > 0


def test_flat_groups_move_nothing(tmp_path):
    def flat(outputs, prompts):
        reward = torch.ones(len(outputs))
        return Scores({"one": reward}, reward, reward)

    trainer = make_trainer(tmp_path, score=flat, steps=1)
    before = weights_of(trainer)
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in weights_of(trainer).items())
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["signal/zero_variance_fraction"] == 1.0


def test_dynamic_sampling_asks_for_more_prompts_in_place_of_flat_groups(tmp_path):
    def half_flat(outputs, prompts):
        scores = score_vowels(outputs, prompts)
        easy = torch.tensor([int(p.id[1:]) % 2 == 0 for p in prompts])
        scores.reward[easy] = 1.0
        scores.success[:] = float("nan")
        return scores

    trainer = make_trainer(
        tmp_path, recipe="dapo", score=half_flat, steps=1, rollout={"name": "dynamic_sampling", "rounds": 6}
    )
    trainer.train()
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["rollouts"] > 16
    assert metrics["signal/active_fraction"] * metrics["rollouts"] >= 16


def test_rollouts_are_saved_with_their_credit(tmp_path):
    make_trainer(tmp_path, steps=1).train()
    lines = (tmp_path / "rollouts" / "step-000001" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    groups = [row["group"] for row in rows]
    assert sorted(groups) == groups and [groups.count(g) for g in set(groups)] == [4] * 4, "four whole groups"
    assert {a["label"] for r in rows for a in r["actions"]}
    assert any(a["credit"] for r in rows for a in r["actions"])
    assert (tmp_path / "rollouts" / "step-000001" / rows[0]["media"][0]).exists()


def test_a_prompt_that_comes_twice_in_a_step_is_answered_anew(tmp_path):
    make_trainer(tmp_path, steps=1, prompts=make_prompts(2), save_rollouts=16).train()
    lines = (tmp_path / "rollouts" / "step-000001" / "rows.jsonl").read_text().splitlines()
    said = {}
    for row in map(json.loads, lines):
        said.setdefault(row["prompt_id"], {}).setdefault(row["group"], []).append(row["output"])
    assert [len(groups) for groups in said.values()] == [2, 2]
    assert all(first != second for first, second in (groups.values() for groups in said.values()))


def test_a_group_of_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="group_size=1"):
        make_trainer(tmp_path, group_size=1)


def test_a_notebook_s_stderr_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())  # has no file descriptor, and the watchdog wants one
    assert make_trainer(tmp_path, steps=1).train().steps == 1


def test_interrupting_saves_and_stops(tmp_path):
    trainer = make_trainer(tmp_path, steps=50, save_every=0)
    trainer.report = lambda step, metrics: signal.raise_signal(signal.SIGINT) if step == 1 else None
    result = trainer.train()
    assert result.interrupted
    assert result.steps == 1
    assert checkpoint.latest(tmp_path).name == "step-000001"


def test_a_signal_in_the_first_evaluation_has_nothing_to_save(tmp_path):
    calls = []

    def score(outputs, prompts):
        calls.append(len(outputs))
        signal.raise_signal(signal.SIGTERM)
        return score_vowels(outputs, prompts)

    trainer = make_trainer(tmp_path, score=score, eval_batch_size=1)
    result = trainer.train()
    assert (result.interrupted, result.steps, result.signal) == (True, 0, signal.SIGTERM)
    assert len(calls) == 1 < len(trainer.eval_prompts), "it does not wait for the whole evaluation"
    assert checkpoint.checkpoints(tmp_path) == []


class OneBroken(list):
    """Prompts of which one cannot be read."""

    def __init__(self, prompts, broken):
        super().__init__(prompts)
        self.broken = broken

    def __getitem__(self, index):
        if index == self.broken:
            raise DataError(f"clips.jsonl, line {index + 1}: cut short")
        return super().__getitem__(index)


@pytest.mark.parametrize("sampler", ["shuffled", "spo_single_stream"])
def test_what_was_trained_is_saved_when_a_step_fails(tmp_path, sampler):
    def make(folder, **changes):
        sample = Bound.of("prompts", sampler).state
        return make_trainer(tmp_path / folder, steps=4, save_every=0, sampler=sample, recipe="durian", **changes)

    straight = make("straight")
    asked = []
    straight.sampler.select = lambda *a, select=straight.sampler.select: asked.append(select(*a)) or asked[-1]
    straight.train()
    third = next(i for i in asked[2] if i not in asked[0] + asked[1])
    with pytest.raises(DataError, match="cut short") as raised:
        make("broken", prompts=OneBroken(make_prompts(16), third)).train()
    assert raised.value.__notes__ == [f"step 2 is saved: continue with --resume {tmp_path / 'broken'}"]
    mended = make("broken", keep_until=2)
    assert mended.train(checkpoint.latest(tmp_path / "broken")).start == 2
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "straight")
    for name, value in weights_of(straight).items():
        assert torch.equal(value, weights_of(mended)[name]), name


def test_a_first_step_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="cut short") as raised:
        make_trainer(tmp_path, prompts=OneBroken(make_prompts(4), 2)).train()
    assert not hasattr(raised.value, "__notes__")
    assert checkpoint.checkpoints(tmp_path) == []


def test_scores_after_are_those_of_the_last_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, steps=3)
    done = trainer.train()
    assert done.after == trainer.evaluate() != done.before
    again = make_trainer(tmp_path, steps=3).train(checkpoint.latest(tmp_path))
    assert (again.start, again.steps, again.before, again.after) == (3, 3, done.before, done.after)
    stopped = make_trainer(tmp_path / "stopped", steps=3)
    stopped.report = lambda step, metrics: signal.raise_signal(signal.SIGINT)
    assert stopped.train().after == {}
