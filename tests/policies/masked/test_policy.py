"""A tiny bidirectional model acts and trains as a masked diffusion language model."""

from __future__ import annotations

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.adapters import LoraConfig
from mmrl.policies.masked.likelihoods import left_to_right
from mmrl.policies.masked.policy import MaskedDiffusionConfig, MaskedDiffusionPolicy
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Prompt, Request, Rollouts, Scores
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer

LETTERS = "abcdefghij"
SURROGATES = ("one_step", "coupled", "random_share", "quadrature", "monte_carlo", "left_to_right")


def tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {t: i for i, t in enumerate(["<mask>", "<end>", "<unk>", *LETTERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<mask>", eos_token="<end>", unk_token="<unk>")


def policy(**settings) -> MaskedDiffusionPolicy:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    changes = {"max_new_tokens": 6, "block": 3, **settings}
    return MaskedDiffusionPolicy(model, tokenizer(), MaskedDiffusionConfig(**changes))


def requests(*texts: str, count: int = 3) -> list[Request]:
    prompts = [Prompt(f"p{t}", [{"role": "user", "content": t}]) for t in texts]
    return [Request(p, count, group=g) for g, p in enumerate(prompts)]


def rolled(actor: MaskedDiffusionPolicy, *texts: str) -> Rollouts:
    return actor.rollout(requests(*texts), Key(3))


@pytest.mark.parametrize("name", SURROGATES)
def test_training_scores_what_the_rollout_scored(name):
    actor = policy(surrogate=name, samples=5)
    rollouts = rolled(actor, "abc", "defgh")
    assert (rollouts.old_log_probs[~rollouts.mask] == 0).all()
    assert torch.allclose(actor.evaluate(rollouts).log_probs, rollouts.old_log_probs, atol=1e-5)
    few = torch.tensor([4, 1])
    alone = actor.evaluate(rollouts.index(few)).log_probs
    assert torch.allclose(alone, rollouts.old_log_probs[few], atol=1e-5), "whatever the micro-batch"


def test_draws_do_not_depend_on_the_batch():
    actor = policy()
    together, alone = rolled(actor, "abc", "defgh"), rolled(actor, "defgh")
    assert torch.equal(together.replay["tokens"][3:], alone.replay["tokens"])
    assert torch.allclose(together.old_log_probs[3:], alone.old_log_probs, atol=1e-5)
    assert len({tuple(row) for row in together.replay["tokens"].tolist()}) > 2


def test_greedy_filling_repeats_itself():
    actor = policy(tokens_per_step=2)
    tokens = actor.rollout(requests("abc"), Key(1), greedy=True).replay["tokens"]
    assert (tokens == tokens[0]).all() and (tokens != 0).all(), "the mask token is never written"


def test_a_completion_ends_with_its_end_token():
    actor = policy(max_new_tokens=12)
    rollouts = rolled(actor, "abc", "def", "ghi")
    ended = torch.tensor([f == "stop" for f in rollouts.finish])
    assert ended.any()
    last = rollouts.replay["tokens"][torch.arange(9), rollouts.length - 1]
    assert (last[ended] == 1).all()
    assert [len(o.replace(" ", "")) for o in rollouts.outputs] <= rollouts.length.tolist()


def test_left_to_right_generation_has_an_exact_likelihood():
    """The probability of each token when it was written is what the surrogate says."""
    actor = policy(block=1, surrogate="left_to_right", temperature=0.8)
    rollouts = rolled(actor, "abc")
    prompt, mask = actor._padded([rollouts.encoded[0]] * 3)
    tokens = rollouts.replay["tokens"]
    for t in range(tokens.shape[1]):
        canvas = torch.where(torch.arange(6) < t, tokens, 0)
        logits = actor.module.logits(prompt, mask, canvas)[:, t]
        expected = logits.log_softmax(-1).gather(1, tokens[:, t : t + 1])[:, 0] * rollouts.mask[:, t]
        assert torch.allclose(rollouts.old_log_probs[:, t], expected, atol=1e-5)
    assert left_to_right is actor.likelihood.chosen.function


def test_references_by_copy_or_by_adapter():
    for settings in ({"reference": True}, {"lora": LoraConfig(rank=2, targets=["query", "value"])}):
        actor = policy(**settings)
        rollouts = rolled(actor, "abc")
        with torch.no_grad():
            for parameter in actor.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05)
        moved = actor.evaluate(rollouts).log_probs
        reference = actor.evaluate(rollouts, weights="reference").log_probs
        assert torch.allclose(reference, rollouts.old_log_probs, atol=1e-5)
        assert not torch.allclose(moved, reference, atol=1e-3)


def test_what_it_cannot_do_is_said():
    actor = policy()
    rollouts = rolled(actor, "abc")
    with pytest.raises(PolicyError, match=r"policy\.reference"):
        actor.evaluate(rollouts, weights="reference")
    with pytest.raises(PolicyError, match="prefix"):
        actor.rollout([Request(Prompt("p", []), 1, 0, prefix=torch.tensor([1]))], Key(0))
    with pytest.raises(ConfigError, match="surrogate"):
        policy(surrogate="elbow")


def test_saved_weights_load_with_transformers_alone(tmp_path):
    from transformers import AutoModelForMaskedLM

    actor = policy()
    actor.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), actor.module.model.parameters(), strict=True))


def many_a(outputs, prompts) -> Scores:
    values = torch.tensor([o.count("a") / 6 for o in outputs])
    return Scores({"a": values}, values, (values > 0.5).float())


RECIPES = {
    "diffu_grpo": "one_step", "diffucoder_coupled_grpo": "coupled", "mmada_unigrpo": "random_share",
    "gdpo_diffusion_lm": "quadrature", "bgpo": "monte_carlo", "justgrpo": "left_to_right",
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_through_the_one_trainer(recipe, tmp_path):
    """A few steps move the reward's letter up."""
    described = load_recipe(recipe)
    settings = {k: v for k, v in described.policy.items() if k != "block"}
    actor = policy(**{**settings, "block": 1 if recipe == "justgrpo" else 3, "samples": 8})
    assert actor.config.surrogate == RECIPES[recipe]
    prompts = [r.prompt for r in requests("abc", "bcd", "cde", "def")]
    seen: list[float] = []
    config = TrainingConfig(steps=12, prompts_per_step=4, group_size=8, micro_batch_size=16, learning_rate=3e-3)
    trainer = Trainer(
        actor, Objective.of(described.objective), prompts, many_a, config, tmp_path,
        report=lambda step, metrics: seen.append(metrics["reward/mean"]),
    )  # fmt: skip
    trainer.train()
    assert trainer.checked is not None and trainer.checked.passed
    assert sum(seen[-3:]) > sum(seen[:3]) + 0.1
