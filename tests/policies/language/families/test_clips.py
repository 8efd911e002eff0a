"""Clips through the families that have a video processor: frames come chosen, and reach the log-probs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.language.families.check import reference
from mmrl.policies.language.families.reduced import random_actions
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from mmrl.stages import View
from tests.policies.language.families.expected import CLIPS
from tests.policies.language.families.tiny import RECIPES, picture
from tests.policies.language.scenes import read_made_clip

CLOSE = 2e-5
FAST = ("internvl", "glm4v")


def build(name: str, **options) -> VideoPolicy:
    model, processor = RECIPES[name]()
    options = {"model": "tiny", "max_new_tokens": 4} | options
    return VideoPolicy(model, processor, VideoPolicyConfig(**options), read_clip=read_made_clip)


def prompts() -> list[Prompt]:
    """A clip, a picture, and another clip: unlike media side by side."""

    def asked(label: str, kind: str, *media) -> Prompt:
        content = [{"type": kind}, {"type": "text", "text": "what moves"}]
        return Prompt(label, [{"role": "user", "content": content}], **{f"{kind}s": list(media)})

    return [asked("clip", "video", 1), asked("still", "image", picture(48, 48, 1)), asked("other", "video", 2)]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.families) for n in CLIPS])
def test_clips_beside_pictures_are_scored_as_single_rows(name):
    policy = build(name)
    with torch.no_grad():
        written = policy.rollout([Request(prompt, 2, group) for group, prompt in enumerate(prompts())], Key(1))
        rows = [row for p in range(3) for row in random_actions(policy.family, (4, 3), seed=p)]
        length = torch.tensor([4, 3] * 3)
        actions = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(4) < length[:, None]
        answered = {"actions": actions, "length": length, "extent": length, "mask": mask}
        rollouts = replace(written, **answered, old_log_probs=torch.zeros(6, 4))
        got = policy.evaluate(rollouts).log_probs
        shuffled = policy.evaluate(rollouts, under=View.of("noise", std=80.0)).log_probs
        model, _ = RECIPES[name]()
        for row, p in enumerate(rollouts.prompt.tolist()):
            ids = actions[row, : length[row]]
            wanted = reference(model, policy.family, rollouts.encoded[p], ids, policy.family.suppressed)
            assert (got[row, : len(ids)] - wanted).abs().max() < CLOSE
            assert (shuffled[row, : len(ids)] - wanted).abs().max() > 50 * CLOSE
    assert policy.capabilities.prefix_cache


def test_a_family_without_video_is_refused_by_name():
    with pytest.raises(ConfigError, match="'gemma3' reads no video"):
        build("gemma3")


def test_a_model_whose_clips_fail_is_refused_by_name():
    with pytest.raises(PolicyError, match=r"'kimi_k25' cannot read a clip: RuntimeError: split_with_sizes"):
        build("kimi_k25")


def test_a_model_that_does_not_read_its_pictures_is_refused_with_the_numbers(tmp_path, monkeypatch):
    """Looked at anew: what is kept of a healthy model goes by names and shapes of weights."""
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path))
    model, processor = RECIPES["internvl"]()
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.zero_()
    with pytest.raises(PolicyError, match=r"'internvl' does not read its pictures: .* expected at least 2e-03"):
        VideoPolicy(model, processor, VideoPolicyConfig(model="tiny"), read_clip=read_made_clip)
