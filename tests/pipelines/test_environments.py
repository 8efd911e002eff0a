"""Environments in worker processes: what raises, hangs or dies loses one row; what it said before is played again."""

import json
import shutil
from contextlib import ExitStack

import pytest
from PIL import Image

from mmrl.errors import ConfigError, DataError
from mmrl.media import Clip, FrameList
from mmrl.pipelines.config import read_config, shipped_asset
from mmrl.pipelines.environments import Apart, packed_video, unpacked_video
from mmrl.pipelines.evaluating import evaluate_run
from mmrl.pipelines.run import check_config, surroundings_of, train
from mmrl.pipelines.sample import sample_run
from mmrl.pipelines.vlm import VLMPipeline
from mmrl.record import Prompt
from mmrl.rollout.environments.base import Done, Here, Lost, Observation
from mmrl.rollout.environments.opening import environment_of
from mmrl.training.tracking import read_metrics

TALKER = '''
import os, sys, time
from mmrl.rollout.environments.base import Done, Environment, Observation

class Talker(Environment):
    """Says what was said so far; some words are the end of it."""

    columns = {"words": 0.0}

    def reset(self, prompt):
        if prompt.columns.get("bad"):
            raise RuntimeError("no such prompt")
        return [prompt.columns.get("name", "")]

    def step(self, state, output):
        print("printing harms nobody")
        state.append(output)
        if output == "raise":
            raise ValueError("no\\nsuch word")
        if output == "hang":
            time.sleep(60)
        if output == "die":
            os._exit(3)
        if output == "exit":
            sys.exit(1)
        if output == "wrong":
            return Done({"unknown": 1.0})
        return Done({"words": float(len(state))}) if output == "bye" else Observation.of(" ".join(state))
'''


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    file = tmp_path_factory.mktemp("mine") / "talker.py"
    file.write_text(TALKER)
    return f"{file}:Talker"


@pytest.fixture(scope="module")
def apart(talker):
    made = Apart(talker, workers=1, timeout=5.0)
    yield made
    made.close()


def prompt(name, **columns):
    return Prompt(name, [{"role": "user", "content": "?"}], columns={"name": name, **columns})


def text(reply):
    return reply.messages[0]["content"][0]["text"]


class TestApart:
    def test_conversations_keep_their_own_state(self, apart):
        talks = apart.reset([prompt("a"), prompt("b"), prompt("a")])
        assert [text(r) for r in apart.step(talks, ["x", "y", "z"])] == ["a x", "b y", "a z"]
        replies = apart.step(talks[:2], ["bye", "w"])
        assert replies[0] == Done({"words": 3.0}) and text(replies[1]) == "b y w"

    @pytest.mark.parametrize(
        ("word", "cause"),
        [
            ("raise", "ValueError: no such word"),
            ("hang", "timeout"),
            ("die", "worker died with exit code 3"),
            ("exit", "SystemExit: 1"),
            ("wrong", "TypeError: Done sets the column 'unknown', which `columns` does not declare"),
        ],
    )
    def test_a_failure_loses_its_row_and_the_others_go_on_where_they_were(self, apart, word, cause):
        apart._lanes[0].timeout = 1.0 if word == "hang" else 5.0
        apart.counts.clear()
        talks = apart.reset([prompt("a"), prompt("b"), prompt("c")])
        apart.step(talks, ["1", "2", "3"])
        replies = apart.step(talks, ["4", word, "6"])
        assert text(replies[0]) == "a 1 4" and replies[1] == Lost(cause) and text(replies[2]) == "c 3 6"
        assert text(apart.step(talks[:1], ["7"])[0]) == "a 1 4 7"
        assert apart.counts[f"lost/{cause}"] == 1 and apart.counts["calls"] == 6

    def test_a_reset_that_raises_loses_its_rows(self, apart):
        talks = apart.reset([prompt("a"), prompt("b", bad=True)])
        assert talks[1] == Lost("RuntimeError: no such prompt")
        assert text(apart.step(talks[:1], ["x"])[0]) == "a x"

    def test_what_cannot_travel_is_named(self, apart):
        with pytest.raises(DataError, match=r"prompt 'a' cannot go.*columns.thing is a object.*isolated=false"):
            apart.reset([prompt("a", thing=object())])

    def test_pictures_and_clips_come_as_they_went(self):
        zoom = Apart({"name": "zoom", "side": 32}, workers=1)
        frames = Apart("frames", workers=1)
        try:
            picture = Image.radial_gradient("L").convert("RGB")
            asked = Prompt("p", [{"role": "user", "content": "?"}], images=[picture])
            call = '<tool>{"box": [0, 0, 500, 500]}</tool>'
            (there,) = zoom.step(zoom.reset([asked]), [call])
            here = Here(environment_of({"name": "zoom", "side": 32}).state)
            (same,) = here.step(here.reset([asked]), [call])
            assert there.images[0].tobytes() == same.images[0].tobytes() and there.messages == list(same.messages)
            seen = Prompt("v", [{"role": "user", "content": "?"}], videos=[Clip("a.mp4", 1.0)])
            (part,) = frames.step(frames.reset([seen]), ['<tool>{"start": 0, "end": 1}</tool>'])
            assert part == Observation(
                [{"role": "user", "content": [{"type": "video"}]}], (), (Clip("a.mp4", 1.0, 2.0),)
            )
        finally:
            zoom.close()
            frames.close()

    def test_every_kind_of_video_travels(self, tmp_path):
        for video in (Clip(tmp_path / "a.mp4", 1.0, None), FrameList((tmp_path / "a.png",), 4.0), "a.mp4"):
            assert unpacked_video(packed_video(video)) == video


class TestConfiguration:
    def test_a_configuration_names_it_and_how_it_runs(self, talker):
        changes = [f"environment={talker}", "environment_run.workers=1", "policy.model=asset:tiny_vlm"]
        config = read_config("demo", changes, "vlm")
        check_config(config)
        with ExitStack() as stack:
            made = surroundings_of(config, stack)
            assert isinstance(made, Apart) and made.columns == {"words": 0.0} and made.ceiling == 0.5
        config = read_config("demo", [*changes, "environment_run.isolated=false"], "vlm")
        with ExitStack() as stack:
            assert isinstance(surroundings_of(config, stack), Here)

    def test_what_it_is_not_for_is_refused_before_a_model_is_loaded(self, talker):
        with pytest.raises(ConfigError, match="environment 'zoom' is for vlm, video, not for 'flow'"):
            check_config(read_config("demo", ["environment=zoom"], "flow"))
        with pytest.raises(ConfigError, match="is for vlm, video, not for 'flow'"):
            check_config(read_config("demo", [f"environment={talker}"], "flow"))
        with pytest.raises(ConfigError, match="environment 'frames' is for video, not for 'vlm'"):
            check_config(read_config("demo", ["environment=frames"], "vlm"))

    def test_none_is_none(self):
        with ExitStack() as stack:
            assert surroundings_of(read_config("demo", (), "vlm"), stack) is None


class TestRuns:
    """Two steps of the shipped configuration; its long form is `python -m benchmarks.accept_environments`."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("run") / "zoom"
        changes = [
            f"run_dir={folder}", "training.steps=2", "training.prompts_per_step=2", "training.group_size=8",
            "data.eval_limit=6", "training.eval_every=1", "training.save_every=1", "training.warmup_steps=0",
            "training.save_rollouts_every=1", "environment_run.workers=1", "reward_run.workers=1",
        ]  # fmt: skip
        train(read_config("zoom", changes, "vlm"))
        return folder

    def test_it_trains_and_says_how_the_tool_was_used(self, run):
        metrics = read_metrics(run / "metrics.jsonl")
        assert len(metrics) == 2 and metrics[0]["self_check/worst_gap"] < 1e-4
        assert all(0 <= m["environment/call_rate"] <= 1 and "eval/calls" in m for m in metrics)
        assert any(m["environment/observed_columns"] > 0 for m in metrics)

    def test_evaluation_and_samples_use_the_same_tool(self, run, tmp_path):
        scores = evaluate_run(run, ["data.eval_limit=4"])
        assert "calls" in scores and "calls" not in evaluate_run(run, ["data.eval_limit=4", "environment=null"])
        sample_run(run, tmp_path / "out", prompts=2, count=32)
        rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
        assert len(rows) == 64 and any(part["who"] == "environment" for row in rows for part in row.get("said", ()))

    def test_it_resumes_exactly_and_not_with_another_tool(self, run, tmp_path):
        again = tmp_path / "again"
        shutil.copytree(run, again)
        shutil.rmtree(again / "checkpoints" / "step-000002")
        train(read_config(again / "config.yaml", [f"run_dir={again}"]), resume=again)
        ends = [(f / "checkpoints/step-000002/policy/model.safetensors").read_bytes() for f in (run, again)]
        assert ends[0] == ends[1]
        with pytest.raises(ConfigError, match="environment="):
            train(read_config(again / "config.yaml", [f"run_dir={again}", "environment=null"]), resume=again)

    def test_a_pipeline_generates_with_its_environment(self, talker):
        name, words = talker, {"stop_tokens": list(range(0, 1200, 2)), "max_new_tokens": 12}
        pipeline = VLMPipeline.from_pretrained(str(shipped_asset("tiny_zoom")), environment=name, **words)
        asked = [{"prompt": "Which digit is at the top left?", "image": Image.new("RGB", (64, 64))}]
        outputs = pipeline.generate(asked, count=4)
        assert len(outputs) == 1 and len(outputs[0]) == 4
