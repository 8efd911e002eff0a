"""Clips: the reader's frames and times reach the model as they are, in rollout and training alike."""

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.media import Frames, VideoSampling
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
from mmrl.randomness import Key
from mmrl.record import Request
from mmrl.stages import Need, View
from tests.policies.language.scenes import (
    clip_prompts,
    generated,
    gradients,
    read_made_clip,
    relative_error,
    requests,
    video_prompt,
)
from tests.policies.language.test_scoring import naive_log_probs, weighted
from tests.policies.language.test_views import frames_of


def test_frames_enter_unchanged_and_once(video_policies, family):
    policy = video_policies[family]
    entry = policy.encode(video_prompt("p", 2))
    frames = read_made_clip(2, policy.sampling)
    assert torch.allclose(frames_of(policy, entry, "video"), frames.pixels.float(), atol=1e-3)
    assert entry.media["video_grid_thw"].tolist() == [[4, 4, 8]]


def test_the_reader_learns_the_model_factor(tiny):
    asked = []

    def reader(clip, sampling):
        asked.append(sampling)
        return read_made_clip(clip, sampling)

    config = VideoPolicyConfig(model="tiny", sampling=VideoSampling(fps=1.0, max_frames=16))
    VideoPolicy(*tiny(), config, read_clip=reader).encode(video_prompt("p", 1))
    assert (asked[0].factor, asked[0].frame_multiple, asked[0].fps, asked[0].max_frames) == (16, 2, 1.0, 16)


def test_time_reaches_qwen2_5_through_seconds_per_grid(video_policies):
    """Frames 0, 6, 12 ... of a 24 fps file: half a second per grid step, times 4 position units a second."""
    entry = video_policies["qwen2_5_vl"].encode(video_prompt("p", 2))
    assert entry.media["second_per_grid_ts"].tolist() == [0.5]
    seen = entry.positions[0][entry.token_types == 2]
    assert torch.unique(seen - seen[0]).tolist() == [0, 2, 4, 6]


def test_time_reaches_qwen3_as_text(video_policies):
    policy = video_policies["qwen3_vl"]
    text = policy.processor.decode(policy.encode(video_prompt("p", 2)).ids)
    assert [f"<{t} seconds>" in text for t in ("0.1", "0.6", "1.1", "1.6", "2.1")] == [True] * 4 + [False]


def test_log_probs_and_gradients_equal_the_plain_model(make_video_policy, family):
    """Qwen2.5-VL's plain forward numbers tokens after a clip differently from its own generation when the clip
    outlasts the text (see the next test), so the comparison keeps to prompts where they agree."""
    policy = make_video_policy(family)
    prompts = [p for p in clip_prompts() if family == "qwen3_vl" or p.id in ("still", "bare")]
    rollouts = policy.rollout(requests(prompts, 2), Key(0))
    scored = policy.evaluate(rollouts).log_probs
    weighted(scored).backward()
    got = gradients(policy)
    naive = naive_log_probs(policy, rollouts)
    weighted(naive).backward()
    assert (scored - naive).abs().max() < 1e-5 and relative_error(got, gradients(policy)) < 1e-5


def test_greedy_equals_transformers_generate(video_policies, family):
    policy = video_policies[family]
    for prompt in clip_prompts():
        rollouts = policy.rollout([Request(prompt, 1, 0)], Key(0), greedy=True)
        assert rollouts.actions[0].tolist() == generated(policy, rollouts.encoded[0], 8)


def test_sampled_log_probs_agree_with_scoring(video_policies, watched, family):
    with torch.no_grad():
        scored = video_policies[family].evaluate(watched[family]).log_probs
    assert (scored - watched[family].old_log_probs).abs().max() < 1e-5


def test_the_clip_is_read_once_per_rollout_and_never_for_scoring(tiny):
    reads = []

    def reader(clip, sampling):
        reads.append(clip)
        return read_made_clip(clip, sampling)

    policy = VideoPolicy(*tiny(), VideoPolicyConfig(model="tiny", max_new_tokens=4), read_clip=reader)
    rollouts = policy.rollout(requests([video_prompt("p", 1)], 8), Key(0))
    for view in (None, View.of("patch_black"), View.of("remove_media")):
        policy.evaluate(rollouts, [Need("visual_entropy"), Need("entropy")], under=view, weights="old")
    assert reads == [1]


def test_swapping_clips_changes_log_probs(video_policies, family):
    policy = video_policies[family]
    rollouts = policy.rollout(requests([video_prompt("a", 1), video_prompt("b", 4)]), Key(0))
    with torch.no_grad():
        swapped = policy.evaluate(replace(rollouts, encoded=rollouts.encoded[::-1])).log_probs
    assert ((swapped - rollouts.old_log_probs).abs().amax(1) > 1e-2).all()


@pytest.mark.parametrize("kind", ["patch_black", "shuffle_frames", "drop_frames", "noise", "remove_media"])
def test_views_cover_videos(video_policies, watched, family, kind):
    """VPPO's released code leaves videos clean; here a view of a clip is seen by the model."""
    rollouts = watched[family]
    scored = video_policies[family].evaluate(rollouts, under=View.of(kind), weights="old").log_probs
    difference = (scored - rollouts.old_log_probs).abs().amax(1).view(5, 3).amax(1)
    still = kind in ("shuffle_frames", "drop_frames")
    assert (difference[[0, 1, 3]] > 1e-3).all() and (difference[2] > 1e-3) != still and difference[4] < 1e-5


def test_a_tube_of_two_frames_loses_one_square(video_policies):
    policy, prompt = video_policies["qwen3_vl"], video_prompt("p", 1)
    rollouts = policy.rollout(requests([prompt], 1), Key(0))
    entry = policy._shown(rollouts, View.of("patch_black", size=8, share=0.5))[0]
    black = (frames_of(policy, entry, "video") < 1e-3).all(1).view(-1, 6, 8, 8, 8).all(2).all(3)
    assert torch.equal(black[0::2], black[1::2]) and not torch.equal(black[0], black[2])


def test_a_reader_is_needed(tiny):
    with pytest.raises(ConfigError, match="needs `read_clip`"):
        VideoPolicy(*tiny(), VideoPolicyConfig(model="tiny"))


@pytest.mark.parametrize("shape", [(3, 3, 32, 64), (4, 3, 40, 64)])
def test_frames_that_do_not_fit_are_refused(tiny, shape):
    def reader(clip, sampling):
        return Frames(torch.zeros(shape, dtype=torch.uint8), list(range(shape[0])), 8.0, shape[0], (1, 1), "made", "k")

    policy = VideoPolicy(*tiny(), VideoPolicyConfig(model="tiny"), read_clip=reader)
    with pytest.raises(PolicyError, match=r"prompt 'odd': \d frames of \d+x64 pixels.*multiple of 2 frames"):
        policy.encode(video_prompt("odd", 1))
