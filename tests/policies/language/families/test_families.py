"""Every tiny family through every way it has: the same log-probs and gradients as one unpadded row at a time.

A handful runs with the suite, all of them with `make families`, which writes the table of docs/families.md too.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from mmrl.errors import ConfigError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.language.config import LanguagePolicyConfig, load_model
from mmrl.policies.language.families.check import own_logits, reference
from mmrl.policies.language.families.reduced import random_actions
from mmrl.policies.language.log_probs import Distribution
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.recipes import load_recipe
from mmrl.record import Prompt, Request, Rollouts, Scores
from mmrl.stages import View
from mmrl.training.config import TrainingConfig
from mmrl.training.trainer import Trainer
from tests.policies.language.families.expected import EXPECTED, LEARNS_NO_PICTURES, NO_TEXT, NOT_RELOADED, ONE_PICTURE
from tests.policies.language.families.tiny import RECIPES, picture

CLOSE, STEEP = 2e-5, 1e-4
"""Of log-probs; of gradients, relative."""
FAST = ("internvl", "gemma3")
WAYS = {"plain": "off", "two_calls": "two_calls", "packed": "packed"}


def names() -> list[Any]:
    return [n if n in FAST else pytest.param(n, marks=pytest.mark.families) for n in EXPECTED]


@pytest.fixture(params=names())
def name(request) -> str:
    return request.param


def build(name: str, way: str = "auto", **options: Any) -> VisionPolicy:
    model, processor = RECIPES[name]()
    attention = model.config.get_text_config()._attn_implementation
    options = {"model": "tiny", "max_new_tokens": 6, "attention": attention, "shared_prompt": way} | options
    return VisionPolicy(model, processor, LanguagePolicyConfig(**options))


def prompts(name: str, seed: int = 0) -> list[Prompt]:
    """One picture, two of unlike sizes, and text alone, where the family reads them."""

    def asked(label: str, *parts: Any) -> Prompt:
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
        return Prompt(label, [{"role": "user", "content": content}], [p for p in parts if not isinstance(p, str)])

    sizes = ((48, 48), (64, 40), (40, 72))
    one, two, three = (picture(*size, seed + index) for index, size in enumerate(sizes))
    found = [asked("one", one, "what is in the image")]
    if name not in ONE_PICTURE:
        found.append(asked("two", two, "look at", three, "how many red"))
    return found if name in NO_TEXT else [*found, asked("none", "how many red")]


@dataclass
class Case:
    """A family, three responses of random tokens to each of its prompts, and their log-probs by the reference.

    Random ones, since these models are often sure of what they write, and then nothing shows.
    """

    policy: VisionPolicy
    written: Rollouts
    rollouts: Rollouts
    expected: Tensor

    def gap(self, log_probs: Tensor) -> float:
        return float((log_probs - self.expected).detach()[self.rollouts.mask].abs().max())


@functools.cache
def case(name: str) -> Case:
    policy = build(name)
    asked = [Request(prompt, 3, group) for group, prompt in enumerate(prompts(name))]
    with torch.no_grad():
        written = policy.rollout(asked, Key(3))
        rollouts = randomly_answered(written, policy)
        model, _ = RECIPES[name]()
        return Case(policy, written, rollouts, torch.stack(references(model, policy.family, rollouts)))


def randomly_answered(written: Rollouts, policy: VisionPolicy) -> Rollouts:
    """The same prompts with other responses, of 6, 3 and 5 tokens."""
    lengths = (6, 3, 5)
    rows = [random_actions(policy.family, lengths, seed=p) for p in range(len(written.prompts))]
    actions = torch.nn.utils.rnn.pad_sequence([row for group in rows for row in group], batch_first=True)
    length = torch.tensor(lengths * len(rows))
    mask = torch.arange(6) < length[:, None]
    known = torch.zeros(mask.shape)
    return replace(written, actions=actions, length=length, extent=length, mask=mask, old_log_probs=known)


def references(model: Any, family: Any, rollouts: Rollouts) -> list[Tensor]:
    rows = []
    for row, p in enumerate(rollouts.prompt.tolist()):
        actions = rollouts.actions[row, : rollouts.length[row]]
        found = reference(model, family, rollouts.encoded[p], actions, family.suppressed)
        rows.append(torch.nn.functional.pad(found, (0, rollouts.actions.shape[1] - len(actions))))
    return rows


def ways_of(name: str) -> list[str]:
    found = EXPECTED[name]
    return ["plain", *(["two_calls"] if found.prefix_cache else []), *(["packed"] if found.packed else [])]


def weights(rollouts: Rollouts) -> Tensor:
    return torch.linspace(-1, 1, rollouts.mask.numel()).view(rollouts.mask.shape) * rollouts.mask


def flat_gradient(model: Any) -> Tensor:
    parts = [(n, torch.zeros_like(p) if p.grad is None else p.grad) for n, p in model.named_parameters()]
    return torch.cat([g.flatten() for _, g in sorted(parts, key=lambda part: part[0])])


class TestTheWays:
    def test_what_the_self_check_found(self, name):
        found, wanted = case(name).policy.capabilities, EXPECTED[name]
        assert {n: getattr(found, n) for n in wanted._fields} == wanted._asdict(), found.gaps
        assert case(name).policy.ways[0].value == ways_of(name)[-1]

    @torch.no_grad()
    def test_decoding_saw_the_log_probs_of_the_reference(self, name):
        written = case(name).written
        model, _ = RECIPES[name]()
        wanted = torch.stack(references(model, case(name).policy.family, written))
        assert (written.old_log_probs - wanted)[written.mask].abs().max() < CLOSE

    def test_log_probs_of_each_way_are_those_of_single_rows(self, name):
        here = case(name)
        for way in ways_of(name):
            policy = build(name, WAYS[way])
            with torch.no_grad():
                assert here.gap(policy.evaluate(here.rollouts).log_probs) < CLOSE, way

    def test_gradients_of_each_way_are_those_of_single_rows(self, name):
        here, factors = case(name), weights(case(name).rollouts)
        model, _ = RECIPES[name]()
        total = torch.stack(references(model, here.policy.family, here.rollouts)) * factors
        total.sum().backward()
        wanted = flat_gradient(model)
        for way in ways_of(name):
            policy = build(name, WAYS[way])
            (policy.evaluate(here.rollouts).log_probs * factors).sum().backward()
            gap = (flat_gradient(policy.inner.core) - wanted).norm() / wanted.norm()
            assert wanted.norm() > 0 and gap < STEEP, (way, float(gap))

    def test_another_picture_shows(self, name):
        """The control: agreement would mean nothing if a wrong picture went unnoticed."""
        here = case(name)
        changed = here.rollouts.index(list(range(len(here.rollouts))))
        others = prompts(name, seed=50)
        changed.prompts, changed.encoded = others, [None] * len(others)
        with torch.no_grad():
            gap = (build(name).evaluate(changed).log_probs - here.expected).abs() * changed.mask
        seen = torch.tensor([bool(others[p].images) for p in changed.prompt.tolist()])
        assert (gap[seen].amax(1) > 100 * CLOSE).all()


class TestActing:
    def test_greedy_tokens_are_the_argmax_of_the_reference(self, name):
        policy = case(name).policy
        asked = [Request(prompt, 1, group) for group, prompt in enumerate(prompts(name))]
        written = policy.rollout(asked, Key(0), greedy=True)
        model, _ = RECIPES[name]()
        for row, entry in enumerate(written.encoded):
            ids = written.actions[row, : written.length[row]]
            logits = Distribution(1.0, policy.family.suppressed)(own_logits(model, policy.family, entry, ids))
            chosen = logits.gather(-1, ids[:, None])[:, 0]
            assert (logits.amax(-1) - chosen).max() < CLOSE

    def test_a_view_changes_what_the_model_sees(self, name):
        here = case(name)
        with torch.no_grad():
            dark = here.policy.evaluate(here.rollouts, under=View.of("darken", factor=0.1)).log_probs
        seen = torch.tensor([bool(p.images) for p in here.rollouts.prompts])[here.rollouts.prompt]
        gap = ((dark - here.expected) * here.rollouts.mask).abs().amax(1)
        assert (gap[seen] > 100 * CLOSE).all() and (gap[~seen] < CLOSE).all()


class TestTraining:
    @pytest.mark.parametrize("trained", ["decoder", "tower"])
    def test_a_step_of_grpo(self, name, trained, tmp_path):
        """On two prompts, with adapters on the decoder alone or on everything: they move, and nothing else does."""
        options = {"lora": {"rank": 2, "alpha": 4.0}, "train_vision": trained == "tower", "temperature": 4.0}
        if trained == "tower" and name in LEARNS_NO_PICTURES:
            with pytest.raises(ConfigError, match="no gradient reaches what reads media"):
                build(name, **options)
            return
        policy = build(name, **options)
        readers = tuple(policy.family.readers(policy.inner.core))
        before = {n: p.detach().clone() for n, p in policy.inner.core.named_parameters()}
        trainer = Trainer(
            policy, Objective.of(load_recipe("grpo").objective), prompts(name)[:2], checksum,
            TrainingConfig(steps=1, prompts_per_step=min(2, len(prompts(name)[:2])), group_size=3, learning_rate=1e-2),
            tmp_path,
        )  # fmt: skip
        result = trainer.train()
        moved = {n for n, p in policy.inner.core.named_parameters() if not torch.equal(p, before[n])}
        assert result.steps == 1 and moved and all("lora_" in n for n in moved)
        assert any(n.startswith(readers) for n in moved) == (trained == "tower")

    def test_saved_and_reloaded(self, name, tmp_path):
        here = case(name)
        build(name).save_pretrained(tmp_path)
        unreadable(name)
        options = {"attention": here.policy.config.attention, "max_new_tokens": 6}
        again = VisionPolicy.from_config(LanguagePolicyConfig(model=str(tmp_path), **options))
        with torch.no_grad():
            assert here.gap(again.evaluate(here.rollouts).log_probs) < CLOSE
        assert torch.equal(again.encode(prompts(name)[0]).ids, here.rollouts.encoded[0].ids)

    def test_adapters_merge_into_weights_that_transformers_loads(self, name, tmp_path):
        policy = build(name, lora={"rank": 2, "alpha": 4.0})
        with torch.no_grad():
            for n, p in policy.inner.named_parameters():
                if "lora_B" in n:
                    p.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
            changed = policy.evaluate(case(name).rollouts).log_probs
            policy.save_pretrained(tmp_path, merged=True)
            unreadable(name)
            loaded = LanguagePolicyConfig(model=str(tmp_path), attention=policy.config.attention)
            model = load_model(loaded).eval()
            again = torch.stack(references(model, policy.family, case(name).rollouts))
        assert case(name).gap(changed) > 100 * CLOSE
        assert ((again - changed) * case(name).rollouts.mask).abs().max() < 5 * CLOSE


def test_a_model_whose_tokens_depend_on_what_stands_beside_them_is_refused():
    model, processor = RECIPES["dots3_note"](heads=2, chosen=32)  # fewer than a prompt has tokens
    with pytest.raises(PolicyError, match=r"'dots3_note': tokens written one by one .* keys that score alike"):
        VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny"))


def test_where_keys_score_alike_rows_are_read_up_to_the_number_chosen():
    """Two index heads leave one key in four at exactly 0: beyond the number chosen, which of them are taken depends on
    how many stand beside them."""
    model, processor = RECIPES["dots3_note"](heads=2, chosen=300)
    policy = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny", max_new_tokens=6))
    assert policy.capabilities.limit == 300 and policy.capabilities.gaps["beyond the keys chosen"] > 0.01
    assert any("more than 300 tokens are refused" in line for line in policy.capabilities.fallbacks)
    short, long = (Prompt(n, [{"role": "user", "content": n * 100}]) for n in ("ab", "abc"))
    policy.rollout([Request(short, 2, 0)], Key(0))
    with pytest.raises(PolicyError, match=r"prompt 'abc': dots3_note: a row of 3\d\d tokens.* up to 300 can be scored"):
        policy.encode(long)


def test_a_checkpoint_whose_weights_have_another_shape_is_refused_by_name(tmp_path):
    model, processor = RECIPES["llava"]()
    weights = model.state_dict()
    name = next(n for n in weights if n.endswith("mlp.down_proj.weight"))
    model.save_pretrained(tmp_path, state_dict=weights | {name: weights[name][:3].clone()})
    processor.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"down_proj\.weight of shape \(3, 96\), and Llava.* \(64, 96\)"):
        VisionPolicy.from_config(LanguagePolicyConfig(model=str(tmp_path)))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """transformers would draw them at random, and say so in a warning."""
    model, processor = RECIPES["llava"]()
    weights = {n: w for n, w in model.state_dict().items() if "multi_modal_projector" not in n}
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks 4 of the weights that LlavaForConditionalGeneration has, such as"):
        VisionPolicy.from_config(LanguagePolicyConfig(model=str(tmp_path)))


class TestTemplates:
    @pytest.fixture
    def folder(self, tmp_path):
        model, processor = RECIPES["llava"]()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return tmp_path

    @staticmethod
    def rendered(folder, **options) -> str:
        policy = VisionPolicy.from_config(LanguagePolicyConfig(model=str(folder), **options))
        ids = policy.encode(Prompt("p", [{"role": "user", "content": "hi"}])).ids
        return policy.processor.tokenizer.decode(ids)

    def test_of_the_tokenizer_alone(self, folder):
        usual = self.rendered(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = (folder / "chat_template.jinja").read_text()
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "chat_template.jinja").unlink()
        assert self.rendered(folder) == usual

    def test_of_the_configuration(self, folder):
        other = (folder / "chat_template.jinja").read_text().replace("<turn>", "Now ")
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(ConfigError, match=r"neither the processor nor the tokenizer .* policy.chat_template=FILE"):
            self.rendered(folder)
        (folder / "mine.jinja").write_text(other)
        assert self.rendered(folder, chat_template=str(folder / "mine.jinja")).startswith("Now user")
        with pytest.raises(ConfigError, match=r"^policy\.chat_template: cannot read '.*none.jinja' as text: .*No such"):
            self.rendered(folder, chat_template=str(folder / "none.jinja"))

    def test_what_a_tokenizer_puts_behind_every_text_is_not_part_of_a_prompt(self):
        model, processor = RECIPES["internvl"]()
        plain = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny")).encode(prompts("internvl")[0])
        end = processor.tokenizer.eos_token_id
        add = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", end)])
        processor.tokenizer.backend_tokenizer.post_processor = add
        model, _ = RECIPES["internvl"]()
        added = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny")).encode(prompts("internvl")[0])
        assert processor.tokenizer("a")["input_ids"][-1] == end and torch.equal(added.ids, plain.ids)


def unreadable(name: str) -> None:
    if name in NOT_RELOADED:
        pytest.skip(f"{name}: transformers does not read back what it wrote of it")


def checksum(outputs: list[str], prompts: list[Prompt]) -> Scores:
    values = torch.tensor([sum(map(ord, text)) % 11 / 11 for text in outputs])
    return Scores({"vowels": values}, values, (values > 0.5).float())
