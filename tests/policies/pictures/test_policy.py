"""Pictures token by token: the model's own `generate` and decoder as the reference, log-probs, and a run."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmrl.errors import ConfigError, PolicyError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from mmrl.policies.pictures.policy import JanusPolicy, PicturePolicyConfig
from mmrl.randomness import Key
from mmrl.record import Prompt, Request, Start
from tests.policies.generation.tiny import captions, flow_requests
from tests.policies.pictures.tiny import picture_policy, saved

KEY = Key(3, 1)


def bright(completions):
    """Share of light: an image reward."""
    return [float(np.asarray(picture, dtype=float).mean()) / 255 for picture in completions]


@pytest.fixture(scope="module", params=[1.0, 3.0], ids=["plain", "guided"])
def policy(request):
    return picture_policy(guidance_scale=request.param)


class TestActing:
    def test_greedy_is_what_the_model_itself_generates(self, policy):
        """Tokens of its own call, with its guidance, and the pixels of its own decoder as its processor shows them. At
        a scale of exactly 1 that call fails (it doubles the rows and never joins them), so it gets a hair more."""
        from transformers import GenerationConfig

        model, rows = policy.inner.core, policy.rollout(flow_requests(1), KEY, greedy=True)
        for row, prompt in enumerate(captions(2)):
            ids = policy.encode(prompt)[None]
            said = GenerationConfig(**{**model.generation_config.to_dict(), "do_sample": False,
                                       "guidance_scale": max(policy.config.guidance_scale, 1 + 1e-6)})  # fmt: skip
            own = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_mode="image", generation_config=said
            )
            assert own[0].tolist() == rows.actions[row].tolist() and len(set(own[0].tolist())) > 1
            with torch.no_grad():
                pixels = model.decode_image_tokens(own)[0].float().clamp(-1, 1)
            shown = ((pixels / 2 + 0.5) * 255).numpy()
            assert np.abs(np.asarray(rows.outputs[row]) - shown).max() <= 0.5 + 1e-3

    def test_draws_belong_to_prompt_and_member(self, policy):
        together = policy.rollout(flow_requests(2), KEY)
        alone = policy.rollout([Request(captions(2)[1], 1, group=0, first_member=1)], KEY)
        assert torch.equal(together.actions[3], alone.actions[0])
        assert not torch.equal(together.actions[2], together.actions[3])

    def test_what_is_sampled_is_what_is_scored(self, policy):
        """Prompts of unequal length, with and without the cache; all of the mass on picture tokens."""
        rows = policy.rollout(flow_requests(2), KEY)
        torch.testing.assert_close(policy.evaluate(rows).log_probs, rows.old_log_probs, rtol=1e-4, atol=1e-5)
        prompt, seen = policy._padded([rows.encoded[i] for i in rows.prompt.tolist()])
        each = [
            policy.inner(prompt, seen, rows.actions.clone().index_fill(1, torch.tensor([15]), t)) for t in range(24)
        ]
        torch.testing.assert_close(torch.stack([e[:, 15] for e in each]).exp().sum(0), torch.ones(4))

    def test_only_what_writes_pictures_trains(self, policy):
        rows = policy.rollout(flow_requests(2), KEY)
        policy.evaluate(rows).log_probs.sum().backward()
        parts = {n.split(".")[2] for n, p in policy.inner.named_parameters() if p.grad is not None}
        assert policy.inner.core.model.language_model.embed_tokens.weight.grad is not None, (
            "though the head may share it"
        )
        assert parts == {"language_model", "generation_embeddings", "generation_aligner", "generation_head"}

    def test_refusals(self, policy):
        with pytest.raises(PolicyError, match="shows a picture"):
            policy.encode(Prompt("p", [{"role": "user", "content": "a"}], images=["a.png"]))
        with pytest.raises(ConfigError, match="guidance_scale"):
            read_config(
                {"policy": {"model": "m", "guidance_scale": 0.5}}, ["policy.class=" + CLASS], "vlm"
            ).policy_settings()


CLASS = "mmrl.policies.pictures.policy:JanusPolicy"


def test_the_reference_is_where_training_began():
    policy = picture_policy(lora={"rank": 2})
    rows = policy.rollout(flow_requests(1), KEY)
    with torch.no_grad():
        for name, weight in policy.inner.named_parameters():
            if weight.requires_grad:
                weight += 0.3 * Key(0, purpose=name).normal(*weight.shape)
    torch.testing.assert_close(policy.evaluate(rows, weights="reference").log_probs, rows.old_log_probs,
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    assert not torch.allclose(policy.evaluate(rows).log_probs, rows.old_log_probs, atol=1e-3)
    with pytest.raises(PolicyError, match=r"set policy\.reference"):
        picture_policy().evaluate(rows, weights="reference")


def test_a_picture_goes_on_from_the_beginning_of_another():
    """The tokens taken over, their log-probs and owner; what follows is drawn as the member draws it."""
    policy = picture_policy(guidance_scale=2.0)
    first = policy.rollout([Request(captions(1)[0], 1, group=0)], KEY)
    start = Start(first, 5)
    later = policy.rollout([Request(captions(1)[0], 2, group=0, first_member=1, start=start)], KEY)
    assert (later.actions[:, :5] == first.actions[:, :5]).all() and not torch.equal(later.actions[0], later.actions[1])
    assert torch.equal(later.old_log_probs[:, :5], first.old_log_probs[:, :5].expand(2, -1))
    assert later.owner[:, :5].eq(0).all() and later.owner[:, 5:].tolist() == [[1] * 11, [2] * 11]
    torch.testing.assert_close(policy.evaluate(later).log_probs, later.old_log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recipe", "group", "found"), [("selftok", 4, 4), ("ordered_search", 8, 20)])
def test_recipes_train_it_on_a_reward_of_pictures(tmp_path, recipe, group, found):
    """Two steps; the first update's check against the sampler is part of the run, and a resume finds the same end."""
    metrics = []
    world = "world:compositions?split=train&size=8&difficulty=1"
    config = read_config(
        {"recipe": recipe, "policy": {"class": CLASS, "model": saved(tmp_path / "model"), "guidance_scale": 2.0},
         "data": {"train": world, "workers": 0}, "run_dir": str(tmp_path / "run"),
         "rewards": [{"name": f"{__file__}:bright", "isolated": False}],
         "training": {"steps": 2, "prompts_per_step": 2, "group_size": group, "learning_rate": 1e-2, "save_every": 1}},
        (), "vlm",
    )  # fmt: skip
    train(config, report=lambda step, values: metrics.append(values))
    assert [m["rollouts"] for m in metrics] == [2 * found] * 2
    again = config.model_copy(update={"run_dir": str(tmp_path / "again")})
    train(again, resume=tmp_path / "run" / "checkpoints" / "step-000001")
    ends = [load_file(f"{run.run_dir}/checkpoints/step-000002/trainable.safetensors") for run in (config, again)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert [m["gradient_norm"] > 0 for m in metrics] == [True, True] and metrics[-1]["update/moved_fraction"] > 0
    written = next((tmp_path / "run" / "checkpoints").glob("step-*2/policy"))
    again = JanusPolicy.from_config(PicturePolicyConfig(model=str(written)))
    assert again.rollout(flow_requests(1, 1), KEY, greedy=True).actions.shape == (1, 16)
    assert list((tmp_path / "run" / "rollouts").glob("step-*/output-0000-0.png")), "pictures are kept"
