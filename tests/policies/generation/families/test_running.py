"""Families through the rest of the house: replayed training, loading and saving by folder, the doctor, the log."""

from __future__ import annotations

import json
import wave
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.media import Film, Sound
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families.doctor import examine, is_pipeline
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.training.run_log import save_rollouts
from tests.policies.generation.families.cases import BY_NAME
from tests.policies.generation.families.measure import policy_of, prompts_of

KEY = Key(3, 1)


def gradient(policy: FlowPolicy, rollouts) -> torch.Tensor:
    policy.evaluate(rollouts).log_probs.sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.requires_grad])


def test_the_replayed_call_trains_as_the_family_does():
    """Without guidance, where both have the same gradient; under it the replayed call's goes through both passes."""
    case = BY_NAME["FLUX.1-dev"]
    requests = [Request(prompts_of(case)[0], 2, group=0)]
    family, replayed = (policy_of(case) for _ in range(2))
    rollouts = family.rollout(requests, KEY)
    replayed._compared(requests[0].prompt)
    replayed._use(Swapped(replayed.pipeline, replayed.generator.asked))
    again = replayed.rollout(requests, KEY)
    torch.testing.assert_close(again.old_log_probs, rollouts.old_log_probs, rtol=0, atol=1e-5)
    assert all(
        np.abs(np.int16(a) - np.int16(b)).max() <= 1 for a, b in zip(again.outputs, rollouts.outputs, strict=True)
    )
    ours, theirs = gradient(family, rollouts), gradient(replayed, again)
    assert ours.norm() > 0 and (ours - theirs).norm() < 1e-4 * ours.norm()


def test_prompts_of_other_forms_are_scored_in_other_calls():
    """CogView4 pads texts without a mask: 16 and 32 tokens may not share a forward, and need not be asked to."""
    case = BY_NAME["CogView4"]
    policy, (short, _) = policy_of(case), prompts_of(case)
    words = " ".join(["a red circle left of a blue square"] * 4)
    long = replace(short, id="long", messages=[{"role": "user", "content": words}])
    together = policy.rollout([Request(short, 2, group=0), Request(long, 2, group=1)], KEY)
    alone = policy.rollout([Request(long, 2, group=1)], KEY)
    lengths = {entry.given["encoder_hidden_states"].shape[1] for entry in together.encoded}
    assert len(lengths) == 2
    torch.testing.assert_close(together.old_log_probs[2:], alone.old_log_probs, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert (policy.evaluate(together).log_probs - together.old_log_probs).abs().max() < 1e-5


def test_encoders_share_one_negative_and_conditions_are_stored_once():
    policy = policy_of(BY_NAME["Qwen-Image"])
    rollouts = policy.rollout([Request(p, 3, group=i) for i, p in enumerate(prompts_of(BY_NAME["Qwen-Image"]))], KEY)
    assert len(rollouts.encoded) == 2
    first, second = rollouts.encoded
    assert first.negative is second.negative
    assert first.given["encoder_hidden_states"].shape[1] != second.given["encoder_hidden_states"].shape[1]


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    BY_NAME["Wan 2.2 A14B text"].pipeline().save_pretrained(folder)
    return str(folder)


class TestTwoExperts:
    def config(self, model: str, **options) -> FlowPolicyConfig:
        size = {"height": 32, "width": 32, "frames": 9, "guidance_scale": 4.0, "guidance_scale_2": 3.0}
        short = {"pipeline_options": {"max_sequence_length": 32}, "steps": 4, "eval_steps": 4}
        return FlowPolicyConfig(model=model, **(size | short | options))

    def outputs(self, policy: FlowPolicy) -> np.ndarray:
        prompt = prompts_of(BY_NAME["Wan 2.2 A14B text"])[0]
        videos = policy.rollout([Request(prompt, 1, group=0)], KEY, greedy=True).outputs
        assert len(videos[0]) == 9 and isinstance(videos[0][0], Image.Image)
        return np.stack([np.asarray(frame, dtype=np.int16) for frame in videos[0]])

    @pytest.mark.parametrize("way", ["adapter", "full", "merged"])
    def test_both_are_trained_saved_and_loaded(self, wan, tmp_path, way):
        lora = None if way == "full" else {"rank": 4}
        policy = FlowPolicy.from_config(self.config(wan, lora=lora))
        before = self.outputs(policy)
        with torch.no_grad():
            for name, parameter in policy.inner.named_parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * Key(0, purpose=name).normal(*parameter.shape)
        assert {n.split(".")[0] for n, p in policy.inner.named_parameters() if p.requires_grad} == {
            "transformer", "transformer_2",
        }  # fmt: skip
        policy.save_pretrained(tmp_path, merged=way == "merged")
        loaded = {
            "adapter": {"model": wan, "adapter": str(tmp_path), "lora": lora},
            "full": {"model": wan, "transformer": str(tmp_path), "lora": None},
            "merged": {"model": str(tmp_path)},
        }[way]
        again = FlowPolicy.from_config(self.config(**loaded))
        after = self.outputs(policy)
        assert np.abs(after - before).max() > 5
        assert np.abs(self.outputs(again) - after).max() <= (1 if way == "merged" else 0)
        assert again.pipeline.config.boundary_ratio == 0.875


def test_the_doctor_says_how_a_pipeline_would_be_trained(wan, tmp_path):
    assert is_pipeline(wan) and not is_pipeline(str(tmp_path))
    size = {"height": 32, "width": 32, "frames": 9, "pipeline_options": {"max_sequence_length": 32}}
    found = dict(examine(wan, **size))
    assert "WanPipeline through Wan: velocity within" in found["pipeline"]
    assert found["schedule"].startswith("10 steps: 1, 0.96") and found["state"].startswith("(4, 3, 4, 4)")
    assert found["lora"].startswith("16 linear layers")


def test_sound_and_frames_are_kept_for_people(tmp_path):
    policy = policy_of(BY_NAME["Stable Audio 3"])
    rollouts = policy.rollout([Request(prompts_of(BY_NAME["Stable Audio 3"])[0], 2, group=0)], KEY)
    sound = rollouts.outputs[0]
    assert isinstance(sound, Sound) and sound.samples.shape == (2, 64) and sound.seconds == 4.0
    rollouts.outputs[1] = Film([Image.new("RGB", (32, 31), (i, i, i)) for i in range(40)])
    save_rollouts(tmp_path, rollouts, policy.action_labels(rollouts), None, None)
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    with wave.open(str(tmp_path / first["sounds"][0])) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16, 64)
    assert second["frames"] == 40 and len(second["images"]) == 16
    with av.open(str(tmp_path / second["films"][0])) as file:
        grays = [frame.to_ndarray(format="rgb24").mean() for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 16 and len(grays) == 40
    assert grays[0] < 3 and abs(grays[-1] - 39) < 3, "as bright as the frames they show"
