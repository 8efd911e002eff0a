"""Every benchmark runs at its smallest, its equality checks hold, and its arithmetic is right. No timing assertions."""

import importlib
import json

import pytest
import torch

from benchmarks import bench_floor, bench_flow, bench_video, flow_families, long_clips, measuring, models, small_wan
from benchmarks.bench_group import line
from benchmarks.bench_growth import exponent
from benchmarks.bench_ways import WAYS, group
from benchmarks.flops import Sizes, counted, step_floor, vision_forward
from benchmarks.flow_counts import Costs, Training


@pytest.fixture
def measured(tmp_path):
    """`measured(name, *arguments)` -> the result file of the benchmark at its smallest; `file`: where it has two."""

    def run(name: str, *arguments: str, file: str | None = None) -> dict:
        module = importlib.import_module(f"benchmarks.{name}")
        module.main(["--tiny", "--threads", "1", "--steps", "1", "--out", str(tmp_path), *arguments])
        return json.loads((tmp_path / f"{file or name}.json").read_text())

    return run


class TestTheyRun:
    def test_vlm_beside_trl(self, measured):
        content = measured("bench_vlm", "--only", "trl")
        rows = content["56 pixels, vision trained"]
        assert [r["trainer"] for r in rows] == ["ours", "TRL"]
        assert all(r["seconds"] > 0 and r["peak_mib"] > r["peak_mib_after_loading"] for r in rows)

    def test_vlm_features_change_nothing(self, measured):
        rows = measured("bench_vlm", "--only", "features", file="bench_vlm_features")["features on and off"]
        assert [r["feature"] for r in rows] == ["shared prompt", "chunked log-softmax"]
        for row in rows:
            assert row["log-probs differ by"] < 1e-4 and row["gradients by"] < 1e-4, row["feature"]

    def test_group(self, measured):
        content = measured("bench_group")
        assert [r["G"] for r in content["seconds a step"]] == [2, 4] * 3
        fits = {r["variant"]: r for r in content["seconds = a + b G"]}
        assert fits["no picture"]["b / b without picture"] == 1
        assert fits["shared prompt"]["prompt tokens"] > fits["no picture"]["prompt tokens"]

    def test_ways_score_alike(self, tmp_path):
        models.build_vlm(tmp_path / "model")
        pictures = models.write_pictures(tmp_path, 56, 1)
        answers = group({"model": tmp_path / "model", "pictures": pictures, "new": 4})
        far = answers["equal"]()
        assert far["log_probs"] < 1e-4 and far["gradients"] < 1e-4
        assert list(answers["step"]()["taken"]) == list(WAYS)

    def test_growth_beside_trl(self, measured):
        content = measured("bench_growth")
        assert [r["cell"] for r in content["growth"]] == ["base", "image tokens 16", "new tokens 8", "G 4"]
        assert all(r["times"] > 0 and r["floor, s"] > 0 for r in content["growth"])
        laws = {r["axis"]: r for r in content["seconds = a size^exponent"]}
        assert set(laws) == {"image tokens", "new tokens", "G"}
        assert 0 < laws["G"]["of the floor"] < 1  # prompt and picture are paid for once

    def test_video_frames_from_the_cache_are_those_decoded(self, measured):
        content = measured("bench_video")
        assert content["setting"][0]["cached frames equal"] is True
        assert {r["reading"] for r in content["a step"]} == {"cache", "decode", "ahead"}

    def test_a_group_holds_the_frames_of_its_clip_once(self, tmp_path):
        models.build_vlm(tmp_path / "model")
        clips = [str(tmp_path / f"{n}.mp4") for n in range(2)]
        for clip in clips:
            bench_video.write_clip(clip, 1.0)
        spec = {"folder": str(tmp_path), "model": f"{tmp_path}/model", "pixels": 56 * 56, "frames": 4, "new": 4}
        answers = long_clips.answers(spec | {"members": 4, "clips": clips})
        held = answers["record"]()
        assert held["all"] == held["one"] > 4 * 3 * 28 * 28
        taken = answers["step"]()
        assert 0 < taken["reading"] < taken["decoding"]

    def test_flow_scores_as_the_plain_loop(self, measured):
        content = measured("bench_flow", "--only", "iteration", "--seconds", "0.1")
        differences = content["exact beside plain: differences"][0]
        assert differences["log_probs"] < 1e-5 and differences["gradient"] < 1e-4
        assert {r["loop"] for r in content["an iteration"]} == {"plain", "exact", "fast"}

    def test_small_wan_costs_part_by_part_what_the_published_model_does(self):
        pipeline = small_wan.pipeline()
        pipeline.transformer.requires_grad_(True)
        found = small_wan.proportions(small_wan.PlainWan(pipeline, 1e-4, small_wan.TEXT, 4))
        for part, published in bench_flow.PUBLISHED.items():
            assert found[part] == pytest.approx(published, rel=0.1), part

    @pytest.mark.parametrize("name", flow_families.TINY)
    def test_a_family_rolls_out_as_the_plain_loop_over_its_transformer(self, name):
        shape = flow_families.TINY[name]
        assert flow_families.equality(flow_families.family(shape), shape)["log-probs differ by"] < 1e-5
        outputs = flow_families.PlainRollout(shape, flow_families.pipeline(shape))
        assert len(outputs.roll_out(outputs.encode([flow_families.CAPTION] * shape.members))) == shape.members


class TestArithmetic:
    def test_a_line_through_points_on_it(self):
        a, b, explained = line([4, 8, 16], [5.0, 7.0, 11.0])
        assert (a, b, explained) == pytest.approx((3.0, 0.5, 1.0))

    def test_the_exponent_of_points_on_a_power(self):
        assert exponent([2, 4, 16], [3 * 2**1.5, 3 * 4**1.5, 3 * 16**1.5]) == pytest.approx(1.5)

    def test_an_iteration_of_a_generator_counted_by_hand(self):
        """A call 1, with gradient 2, text 3, decoding 4, eight outputs in ten steps."""
        costs = Costs(text=3.0, call=1.0, trained=2.0, decode=4.0, activations=0.0)
        guided = Training("", "", 10, True, 8, lambda: costs)
        assert guided.plain(costs) == 2 * 3 + 20 + 9 * 2 * (2 + 1) + 4
        assert guided.exact(costs) == 3 / 8 + 20 + 9 * (2 + 1 + 2) + 4
        assert guided.exact(costs, kept=True, graph=True) == 3 / 8 + 20 + 9 * (1 + 2) + 4
        assert guided.fast(costs) == 3 / 8 + (10 - 7 / 8) + 3 * 2 + 4
        alone = Training("", "", 10, False, 8, lambda: costs)
        assert alone.exact(costs) == alone.exact(costs, kept=True) == 3 / 8 + 10 + 9 * (2 + 1) + 4

    def test_ratios_are_of_neighbouring_steps(self):
        slow, fast = [{"seconds": s} for s in (2.0, 8.0, 6.0)], [{"seconds": s} for s in (1.0, 2.0, 2.0)]
        assert measuring.ratio(slow, fast) == {"median": 3.0, "range": [2.0, 4.0]}

    def test_a_worker_that_fails_says_why(self):
        wrong = measuring.workers("benchmarks.bench_vlm", {"a": {"kind": "no_such_kind"}}, 1)
        with pytest.raises(RuntimeError, match="no_such_kind"), wrong:
            pass

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("model")
        models.build_vlm(folder)
        return models.vlm_policy(folder, 4).inner.core

    @pytest.mark.parametrize("merged", [8, 12])
    def test_vision_flops_are_those_counted(self, model, merged):
        """Pictures of several windows; attention inside windows and over the whole picture."""
        side = models.MERGE * merged
        grid = torch.tensor([[1, side, side]])
        pixels = torch.zeros(side**2, 3 * 2 * models.PATCH**2)
        with torch.no_grad():
            seen = counted(lambda: model.model.visual(pixels, grid_thw=grid))
        assert seen == pytest.approx(vision_forward(model.config.vision_config, side**2), rel=1e-3)

    def test_decoder_flops_are_those_counted(self, model):
        """A forward pass over a text, apart from attention, which the counter takes as if nothing were masked."""
        from benchmarks.flops import prompt_forward

        text, length = model.config.get_text_config(), 64
        with torch.no_grad():
            seen = counted(lambda: model.model.language_model(torch.ones(1, length, dtype=torch.long), use_cache=False))
        masked = 4.0 * length * (length / 2) * text.hidden_size * text.num_hidden_layers
        assert seen == pytest.approx(prompt_forward(text, length) + masked, rel=1e-3)

    def test_the_floor_by_parts_multiplies_with_every_weight(self):
        from benchmarks.flops import _dense

        text = bench_floor.config().get_text_config()
        seen = sum(2 * n * inner * outer for n, inner, outer in bench_floor.weights(text))
        assert seen == _dense(text, 1) + 2 * text.hidden_size * text.vocab_size
        assert all(seconds > 0 for seconds in bench_floor.parts(bench_floor.config(), 4, 0.01).values())

    def test_the_floor_grows_with_the_group_by_responses_alone(self, model):
        sizes = [Sizes(2, members, 1050, 64, 4096) for members in (4, 8)]
        four, eight = (step_floor(model.config, s, True) for s in sizes)
        assert four["vision"] == eight["vision"] and four["prompt"] == eight["prompt"]
        assert eight["response"] == 2 * four["response"]
        assert step_floor(model.config, sizes[0], False)["vision"] == pytest.approx(four["vision"] / 3)


def test_arms_measured_one_by_one_are_judged_together(tmp_path):
    from benchmarks.accept_environments import TASKS, added, misses

    out = tmp_path / "found.json"
    tool = {"before": 0.1, "after": 0.9, "gain": 0.8, "processor_seconds": 90.0, "shown_blanks": 0.1}
    out.write_text(json.dumps(added(out, "zoom", 0, {"tool": tool})))
    both = added(out, "zoom", 0, {"none": {"before": 0.1, "after": 0.16}})
    assert both["zoom seed 0"]["arms"].keys() == {"tool", "none"}
    assert both["zoom seed 0"]["missed"] == ["none: 0.160, expected 0.100 +- 0.05"]
    assert added(out, "frames", 1, {"none": {"before": 0.1, "after": 0.1}}).keys() == {"zoom seed 0", "frames seed 1"}
    late = misses(TASKS["zoom"], {"tool": tool | {"after": 0.19, "processor_seconds": 181.0, "shown_blanks": 0.2}})
    assert [line.partition(":")[0] for line in late] == ["tool", "tool", "tool, shown blanks"]
    assert misses(TASKS["zoom"], {"blank": {"before": 0.1, "after": 0.131}}) == [
        "blank: gain +0.031, expected less than +0.03"
    ]


def test_flow_methods_are_judged_by_the_better_baseline_of_each_seed():
    """By hand: .9 less .6 and .7 less .7; .5 after 4 of 40 seconds, and never with seed 1, so nothing is met."""
    from benchmarks.accept_flow import judged

    def run(*points):
        return [{"reward": r, "held_out": r / 2, "seconds": s, "calls": s} for r, s in points]

    curves = {
        "flow_grpo": {0: run((0.2, 0.0), (0.5, 40.0)), 1: run((0.2, 0.0), (0.8, 40.0))},
        "flow_grpo_fast": {0: run((0.2, 0.0), (0.6, 20.0)), 1: run((0.2, 0.0), (0.7, 20.0))},
        "crd": {0: run((0.2, 0.0), (0.5, 4.0), (0.9, 9.0)), 1: run((0.2, 0.0), (0.7, 9.0))},
    }
    found = judged(curves)
    assert found["best"] == "crd" and list(found["candidates"]) == ["crd"] and not found["met"]
    assert found["candidates"]["crd"]["gain"] == {0: pytest.approx(0.3), 1: pytest.approx(-0.1)}
    assert found["candidates"]["crd"]["gain_by_the_other_verifier"] == {0: pytest.approx(0.15), 1: pytest.approx(-0.05)}
    assert found["candidates"]["crd"]["times_sooner"] == {0: 10.0, 1: None} and found["times_sooner"] is None
    curves["crd"][1] = run((0.2, 0.0), (0.8, 5.0), (0.85, 9.0))
    met = judged(curves)
    assert met["met"] and met["least_gain"] == pytest.approx(0.05) and met["times_sooner"] == pytest.approx(9.0)
