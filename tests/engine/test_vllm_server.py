"""vLLM as a server: the same rows over HTTP, weights by files, and a run that goes on when the server is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from mmrl.errors import PolicyError
from mmrl.objective import Objective
from mmrl.policies.language.engines.vllm_process import alive, free_port
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Request
from mmrl.rollout.environments.base import Here, Observation
from mmrl.training.config import TrainingConfig
from mmrl.training.tracking import JsonLines, read_metrics
from mmrl.training.trainer import Trainer
from tests.engine.test_vllm import EXACT, STOPS, gap, moved
from tests.policies.language.scenes import clip_prompts, mixed_prompts, requests
from tests.policies.language.test_turns import Shows, two_pictures
from tests.training.tiny import make_prompts, score_vowels

SERVER = {"name": "vllm", "mode": "server", "max_num_seqs": 32, "videos": 3}
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


def test_turns(policy):
    """Two pictures between the runs of a response; each run is asked with all that stands."""
    asked = [Request(prompt, 8, group=i) for i, prompt in enumerate(mixed_prompts())]
    rows = policy.converse(asked, Key(3), Here(two_pictures()))
    assert (rows.columns["turn"] == 2).any() and any(rows.media) and gap(policy, rows) < EXACT


def test_a_killed_server_comes_back_and_metrics_continue(policy, make_policy, tmp_path, capsys):
    """Killed among the rows of step 3: what it had not answered is asked again, and the run is that of an engine in
    process, which nothing happened to."""
    expected = trained(make_policy(temperature=0.7, **STOPS), tmp_path / "whole")
    policy.load_trainable_state(make_policy(engine="local").trainable_state())
    engine, seen, count = policy.bridge.engine, [], itertools.count(1)

    def answer(body):
        seen.append(body)
        if next(count) == 2 * 16 + 5:
            os.killpg(engine._process.process.pid, signal.SIGKILL)
        return type(engine)._answer(engine, body)

    engine._answer = answer
    metrics = trained(policy, tmp_path / "killed")
    assert engine.restarted == 1 and len(seen) > 4 * 16
    assert "started again (1 of 3)" in capsys.readouterr().err
    assert all(m["engine/gap_max"] < 1e-4 for m in metrics)
    for name in ("reward/mean", "length/mean", "gradient_norm"):
        assert [m[name] for m in metrics] == pytest.approx([m[name] for m in expected], rel=1e-4), name


def test_clips(policy, make_policy):
    """One clip, two of unlike sizes, an image beside one, neither: the frames and times of the trainer. The server is
    the one above, found at its URL."""
    given = {**SERVER, "url": policy.bridge.engine.url}
    shown = make_policy(videos=True, engine=given, **STOPS)
    assert gap(shown, shown.rollout(requests(clip_prompts()), Key(0))) < EXACT
    look = Here(Shows(Observation.of("look", videos=[clip_prompts()[0].videos[0]])))
    rows = shown.converse([Request(prompt, 4, group=i) for i, prompt in enumerate(clip_prompts())], Key(0), look)
    assert any(rows.media) and gap(shown, rows) < EXACT


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


class TestElsewhere:
    """A server that somebody else keeps, started by the command of docs/engines.md."""

    @pytest.fixture(scope="class")
    def url(self, checkpoint, tmp_path_factory):
        folder, port = tmp_path_factory.mktemp("server"), free_port()
        config, log = folder / "my.yaml", folder / "log"
        engine = "{max_model_len: 1024, max_num_seqs: 32}"
        config.write_text(
            f"recipe: grpo\npolicy: {{model: {checkpoint()}, engine: {engine}}}\ndata: {{train: x.jsonl}}\n"
            "rewards: [accuracy]\ntraining: {steps: 1}\n"
        )
        command = [sys.executable, "-m", "mmrl", "serve-engine", "vlm", str(config), "--port", str(port)]
        with log.open("wb") as out:
            started = subprocess.Popen(command, stdout=out, stderr=out, process_group=0)
        until = time.monotonic() + 300
        while not alive(f"http://127.0.0.1:{port}"):
            assert started.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()

    def test_trains_and_is_left_running(self, url, make_policy, tmp_path):
        policy = make_policy(engine={**SERVER, "url": f"{url}/"}, temperature=0.7, **STOPS)
        metrics = trained(policy, tmp_path / "run")
        assert len(metrics) == 4 and all(m["engine/gap_max"] < 1e-4 for m in metrics)
        assert policy.bridge.engine.restarted == 0 and policy.bridge.engine._process is None and alive(url)

    def test_reads_clips(self, url, make_policy):
        policy = make_policy(videos=True, engine={**SERVER, "url": url})
        assert gap(policy, policy.rollout(requests(clip_prompts()[:2]), Key(0))) < EXACT

    def test_nobody_there(self, make_policy):
        there = f"http://127.0.0.1:{free_port()}"
        policy = make_policy(engine={**SERVER, "url": there, "patience": 0.5, "restarts": 2})
        with pytest.raises(PolicyError, match=rf"{there}/\S+ does not answer.*refused.*; start it first"):
            policy.rollout(requests(mixed_prompts()[:1]), Key(0))
