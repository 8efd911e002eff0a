"""vLLM as a server: the same rows over HTTP, weights by files, and a run that goes on when the server is killed."""

from __future__ import annotations

import os
import signal
import urllib.request

import pytest

from mmrl.errors import PolicyError
from mmrl.objective import Objective
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.training.config import TrainingConfig
from mmrl.training.tracking import JsonLines, read_metrics
from mmrl.training.trainer import Trainer
from tests.engine.test_vllm import EXACT, STOPS, gap, moved
from tests.policies.language.scenes import clip_prompts, mixed_prompts, requests
from tests.training.tiny import make_prompts, score_vowels

SERVER = {"name": "vllm", "mode": "server", "max_num_seqs": 32}
RUN = {"steps": 4, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-2, "save_every": 0, "check_every": 1}


@pytest.fixture(scope="module")
def policy(make_policy):
    policy = make_policy(engine=SERVER, temperature=0.7, **STOPS)
    yield policy
    if policy.bridge.engine._process is not None:
        policy.bridge.engine._process.close()


def trained(policy, folder):
    folder.mkdir()
    trackers = [JsonLines(folder / "metrics.jsonl", 0)]
    objective = Objective.of(load_recipe("grpo").objective)
    Trainer(policy, objective, make_prompts(8), score_vowels, TrainingConfig(**RUN), folder, trackers=trackers).train()
    return read_metrics(folder / "metrics.jsonl")


def test_rows_and_weights(policy):
    """No image, one, two; weights that moved."""
    asked = requests(mixed_prompts())
    before = policy.rollout(asked, Key(0))
    assert gap(policy, before) < EXACT
    moved(policy)
    after = policy.rollout(asked, Key(0))
    assert gap(policy, after) < EXACT and gap(policy, before) > 0.1


def test_a_killed_server_comes_back_and_metrics_continue(policy, make_policy, tmp_path, capsys):
    """Killed among the rows of step 3: what it had not answered is asked again, and the run is that of an engine in
    process, which nothing happened to."""
    expected = trained(make_policy(temperature=0.7, **STOPS), tmp_path / "whole")
    policy.load_trainable_state(make_policy(engine="local").trainable_state())
    engine, seen = policy.bridge.engine, []

    def answer(body):
        seen.append(body)
        if len(seen) == 2 * 16 + 5:
            os.killpg(engine._process.process.pid, signal.SIGKILL)
        return type(engine)._answer(engine, body)

    engine._answer = answer
    metrics = trained(policy, tmp_path / "killed")
    assert engine.restarted == 1 and len(seen) > 4 * 16
    assert "started again (1 of 3)" in capsys.readouterr().err
    assert all(m["engine/gap_max"] < 1e-4 for m in metrics)
    for name in ("reward/mean", "length/mean", "gradient_norm"):
        assert [m[name] for m in metrics] == pytest.approx([m[name] for m in expected], rel=1e-4), name


def test_it_ends_with_its_policy(policy):
    """Port and process are gone, and no file is left."""
    process = policy.bridge.engine._process
    assert urllib.request.urlopen(f"{process.url}/health").status == 200
    process.close()
    assert process.process.poll() is not None and not process.log.exists()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{process.url}/health")


def test_a_server_that_does_not_start_says_why(make_policy):
    policy = make_policy(engine={**SERVER, "arguments": {"no_such": 7}})
    with pytest.raises(PolicyError, match=r"the server ended with 2 after its start: .*--no-such") as raised:
        policy.rollout(requests(mixed_prompts()[:1]), Key(0))
    assert "\n" not in str(raised.value)


def test_clips_are_refused_before_anything_starts(make_policy):
    policy = make_policy(videos=True, engine=SERVER)
    with pytest.raises(PolicyError, match="'clip' shows videos, and engine 'vllm' takes image"):
        policy.rollout(requests(clip_prompts()[:1]), Key(0))
    assert policy.bridge.engine._process is None
