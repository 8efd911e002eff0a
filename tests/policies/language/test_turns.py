"""Responses of several turns: what is acted and what is shown, and that both are scored as they were written."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmrl.errors import PolicyError, SurroundingsError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.fast import shared_prompt
from mmrl.policies.language.sampling import Decoded
from mmrl.policies.language.turns import POSITIONS, Turns
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import LOST, Batch, Request, Rollouts
from mmrl.rollout.actor import Actor, score_rows
from mmrl.rollout.environments.base import Done, Environment, Here, Observation
from mmrl.stages import View
from tests.policies.language.scenes import FAMILIES, image_prompt, mixed_prompts, picture, video_prompt

RED, BLUE = picture("red", (48, 64)), picture("blue", (80, 48))


class Shows(Environment):
    """What each member of a conversation is shown, turn by turn; then it is done."""

    columns = {"seen": -1.0}
    max_turns = 3

    def __init__(self, *observations):
        self.observations = observations

    def reset(self, prompt):
        return {"step": 0}

    def step(self, state, output):
        state["step"] += 1
        if state["step"] > len(self.observations):
            return Done({"seen": float(len(self.observations))})
        return self.observations[state["step"] - 1]


class Sometimes(Shows):
    """Shows something about some prompts only."""

    def step(self, state, output):
        return super().step(state, output) if state["shows"] else Done()

    def reset(self, prompt):
        return {"step": 0, "shows": prompt.id in ("one", "none")}


def two_pictures():
    return Shows(Observation.of("look", images=[RED]), Observation.of("and", images=[BLUE]))


def stops(every=2):
    """Many tokens end a run, so that untrained policies take turns."""
    return {"stop_tokens": list(range(0, 1200, every)), "max_new_tokens": 24}


@pytest.fixture(scope="module")
def policies(make_policy):
    return {family: make_policy(family, **stops()) for family in FAMILIES}


@pytest.fixture(scope="module")
def spoken(policies):
    requests = [Request(p, 3, group=i) for i, p in enumerate(mixed_prompts())]
    return {f: policy.converse(requests, Key(3), Here(two_pictures())) for f, policy in policies.items()}


def written(policy, prompt, environment, words, end=True):
    """One row as if the policy had said `words`, run by run."""
    tokenizer = policy.processor.tokenizer
    runs = [tokenizer(w)["input_ids"] + ([tokenizer.eos_token_id] if end else []) for w in words]
    tape = iter(runs)

    def write(contexts, budgets, draws):
        ids = torch.tensor([next(tape)])
        return Decoded(ids, torch.zeros(ids.shape), torch.tensor([ids.shape[1]]), torch.tensor([True]))

    policy.bridge.engine.write = write
    try:
        return policy.converse([Request(prompt, 1, group=0)], Key(0), Here(environment))
    finally:
        del policy.bridge.engine.write


class TestColumns:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_observations_are_laid_out_and_not_acted(self, policies, spoken, family):
        rows, policy = spoken[family], policies[family]
        many = (rows.columns["calls"] == 2).nonzero().squeeze(1).tolist()
        assert many, "some rows take three turns"
        for row in range(len(rows)):
            extent, mask = int(rows.extent[row]), rows.mask[row]
            assert int(rows.length[row]) == int(mask.sum()) and not mask[extent:].any()
            assert int(rows.columns["observed"][row]) == extent - int(rows.length[row])
            turns = rows.columns["turn"][row][mask].tolist()
            assert turns == sorted(turns) and (rows.old_log_probs[row][~mask] == 0).all()
            pads = rows.actions[row] == policy.family.image_token
            assert not (pads & mask).any() and bool(pads.any()) == (rows.media[row] is not None)
        assert rows.columns["turn"][many].max() == 2 and {rows.columns["seen"][r].item() for r in many} <= {2.0, -1.0}
        assert (rows.owner[~rows.mask] == -1).all()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_conversation_is_what_the_template_makes_of_it_whole(self, policies, family):
        """Prompt, run, observation and run equal the ids of the conversation rendered at once."""
        policy, prompt = policies[family], image_prompt("p", picture("green"))
        rows = written(policy, prompt, Shows(Observation.of("Is it red?", images=[RED])), ["green", "yes"])
        said = [
            *prompt.messages,
            {"role": "assistant", "content": "green"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it red?"}]},
        ]
        text = policy.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        whole = policy.processor(text=[text], images=[prompt.images[0], RED], return_tensors="pt")
        ids = torch.cat([rows.encoded[0].ids, rows.actions[0]])
        end = policy.processor.tokenizer("yes")["input_ids"] + [policy.processor.tokenizer.eos_token_id]
        assert ids.tolist() == whole["input_ids"][0].tolist() + end
        assert torch.equal(torch.cat([rows.encoded[0].media["pixel_values"], rows.media[0]["pixel_values"]]),
                           whole["pixel_values"])  # fmt: skip
        places = policy.inner.core.model.get_rope_index(
            input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], image_grid_thw=whole["image_grid_thw"],
            mm_token_type_ids=(ids == policy.family.image_token).long()[None],
        )[0]  # fmt: skip
        assert torch.equal(rows.media[0][POSITIONS], places[:, 0, len(rows.encoded[0]) :])

    def test_the_end_of_a_turn_is_shown_only_if_it_was_not_sampled(self, policies):
        policy, prompt = policies["qwen3_vl"], image_prompt("p", picture("green"))
        end = policy.processor.tokenizer.eos_token_id
        for ended in (True, False):
            rows = written(policy, prompt, Shows(Observation.of("go on")), ["green", "yes"], end=ended)
            ends = (rows.actions[0] == end).nonzero().squeeze(1).tolist()
            sampled = [bool(rows.mask[0, t]) for t in ends]
            assert sampled == ([True, False, True] if ended else [False, False]), "and one ends the user's message"

    def test_a_template_that_renders_earlier_turns_anew_is_refused_by_name(self, make_policy):
        policy = make_policy("qwen3_vl")
        said = "{{ part['text'] }}"
        assert said in policy.processor.chat_template
        shortened = "{{ part['text'] if messages | length < 3 or message['role'] == 'user' else '...' }}"
        policy.processor.chat_template = policy.processor.chat_template.replace(said, shortened)
        with pytest.raises(PolicyError, match=r"qwen3_vl.*writes a conversation otherwise"):
            Actor(policy, Here(two_pictures()))

    def test_what_a_policy_without_turns_says(self):
        from mmrl.policies.generation.policy import FlowPolicy

        policy = FlowPolicy.__new__(FlowPolicy)
        policy.config = None
        with pytest.raises(PolicyError, match="flow policy acts once"):
            policy.check_turns()


class TestScoring:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_update_sees_what_was_sampled(self, policies, spoken, family):
        rows = spoken[family]
        with torch.no_grad():
            new = policies[family].evaluate(rows).log_probs
        assert (new - rows.old_log_probs).abs().max() < 1e-4
        assert all((rows.old_log_probs[r][rows.mask[r]] < 0).all() for r in range(len(rows)))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_another_picture_changes_what_follows_it_and_nothing_before(self, policies, spoken, family):
        policy, rows = policies[family], spoken[family]
        seen = [r for r in range(len(rows)) if rows.media[r] is not None]
        wrong = replace(rows.index(seen), media=[{k: v.clone() for k, v in rows.media[r].items()} for r in seen])
        for media in wrong.media:
            media["pixel_values"] = media["pixel_values"].flip(0)
        with torch.no_grad():
            right, other = (policy.evaluate(part).log_probs for part in (rows.index(seen), wrong))
        later = wrong.columns["turn"] > 0
        gap = (right - other).abs()
        assert gap[later].max() > 1e-2 and gap[wrong.mask & ~later].max() < 1e-5

    @pytest.mark.parametrize("family", FAMILIES)
    def test_clips_within_responses(self, make_video_policy, family):
        policy = make_video_policy(family, **stops())
        env = Shows(Observation.of("part", videos=[2]), Observation.of("again", images=[RED], videos=[4]))
        prompts = [video_prompt("clip", 1), video_prompt("bare"), video_prompt("both", 5, images=(BLUE,))]
        rows = policy.converse([Request(p, 3, group=i) for i, p in enumerate(prompts)], Key(5), Here(env))
        assert any("pixel_values_videos" in (m or {}) for m in rows.media)
        with torch.no_grad():
            assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-4

    @pytest.mark.parametrize("family", FAMILIES)
    def test_gradients_are_those_of_the_row_written_out(self, make_policy, family):
        policy, prompt = make_policy(family, **stops()), image_prompt("p", picture("green"))
        rows = written(policy, prompt, Shows(Observation.of("Is it red?", images=[RED])), ["green", "yes no"])
        weights = torch.linspace(0.5, 1.5, rows.mask.shape[1])
        (policy.evaluate(rows).log_probs[0] * weights * rows.mask[0]).sum().backward()
        made = {n: p.grad.clone() for n, p in policy.inner.named_parameters() if p.grad is not None}
        policy.inner.zero_grad()
        ids, start = torch.cat([rows.encoded[0].ids, rows.actions[0]]), len(rows.encoded[0])
        whole = policy.processor.image_processor(images=[prompt.images[0], RED], return_tensors="pt")
        logits = policy.inner.model(
            input_ids=ids[None], attention_mask=torch.ones_like(ids)[None],
            mm_token_type_ids=(ids == policy.family.image_token).long()[None], **whole,
        ).logits[0].float()  # fmt: skip
        log_probs = torch.log_softmax(policy.inner.distribution(logits), -1)
        place = rows.mask[0].nonzero().squeeze(1)
        (log_probs[start - 1 + place, rows.actions[0][place]] * weights[place]).sum().backward()
        for name, parameter in policy.inner.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().max() > 1e-6:
                scale = parameter.grad.abs().max()
                assert (made[name] - parameter.grad).abs().max() < 1e-4 * scale, name

    def test_words_alone_keep_the_shared_prompt(self, policies, monkeypatch):
        policy, packed = policies["qwen3_vl"], []
        real = shared_prompt.pack
        monkeypatch.setattr(shared_prompt, "pack", lambda *a: packed.append(1) or real(*a))
        requests = [Request(p, 3, group=i) for i, p in enumerate(mixed_prompts())]
        rows = policy.converse(requests, Key(3), Here(Shows(Observation.of("go on"))))
        assert rows.media == [None] * len(rows) and (rows.extent > rows.length).any()
        with torch.no_grad():
            assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-4
        assert packed

    def test_rows_with_pictures_stand_apart_and_the_others_keep_the_shared_prompt(self, policies, monkeypatch):
        policy, packed = policies["qwen3_vl"], []
        requests = [Request(p, 3, group=i) for i, p in enumerate(mixed_prompts())]
        rows = policy.converse(requests, Key(3), Here(Sometimes(Observation.of("look", images=[RED]))))
        parts = policy.micro_batches(rows, torch.arange(len(rows)), 5)
        kinds = [{rows.media[r] is None for r in part.tolist()} for part in parts]
        assert kinds == sorted(kinds, key=lambda k: k != {True}) and {True} in kinds and {False} in kinds
        assert sorted(r for part in parts for r in part.tolist()) == list(range(len(rows)))
        real = shared_prompt.pack
        monkeypatch.setattr(shared_prompt, "pack", lambda *a: packed.append(1) or real(*a))
        with torch.no_grad():
            apart = torch.zeros_like(rows.old_log_probs)
            for part in parts:
                apart[part] = policy.evaluate(rows.index(part)).log_probs[:, : apart.shape[1]]
            assert len(packed) == kinds.count({True})
            mixed = policy.evaluate(rows).log_probs
        assert (apart - rows.old_log_probs).abs().max() < 1e-4 and (mixed - apart).abs().max() < 1e-4

    def test_views_change_pictures_of_the_response_too(self, policies, spoken):
        policy, rows = policies["qwen3_vl"], spoken["qwen3_vl"]
        seen = rows.index([r for r in range(len(rows)) if rows.media[r] is not None])
        with torch.no_grad():
            plain = policy.evaluate(seen).log_probs
            masked = policy.evaluate(seen, under=View.of("patch_black", share=0.9, size=14)).log_probs
            again = policy.evaluate(seen, under=View.of("patch_black", share=0.9, size=14)).log_probs
            with pytest.raises(PolicyError, match="has no form under the view"):
                policy.evaluate(seen, under=View.of("remove_media"))
        later = seen.columns["turn"] > 0
        assert (plain - masked).abs()[later].max() > 1e-2 and torch.equal(masked, again)


class TestRows:
    def test_a_row_depends_on_its_key_alone(self, make_policy, spoken, policies):
        """Neither on how rows are split, nor on which others converse, nor on the grad mode."""
        rows = spoken["qwen3_vl"]
        alone = make_policy("qwen3_vl", **stops(), decode_rows=1, shared_prompt="off")
        requests = [Request(p, 3, group=i) for i, p in enumerate(mixed_prompts())]
        for policy, asked, keep in ((alone, requests, range(12)), (policies["qwen3_vl"], requests[2:], range(6, 12))):
            with torch.no_grad():
                other = policy.converse(asked, Key(3), Here(two_pictures()))
            for mine, row in enumerate(keep):
                extent = int(rows.extent[row])
                assert other.actions[mine, :extent].tolist() == rows.actions[row, :extent].tolist()
                assert other.finish[mine] == rows.finish[row]

    def test_save_load_index_and_concatenate(self, policies, spoken, tmp_path):
        rows = spoken["qwen3_vl"]
        rows.save(tmp_path / "rows")
        back = Rollouts.load(tmp_path / "rows")
        assert torch.equal(back.extent, rows.extent) and [m is None for m in back.media] == [
            m is None for m in rows.media
        ]
        assert all(torch.equal(v, a[k]) for a, b in zip(back.media, rows.media, strict=True) if b for k, v in b.items())
        halves = [rows.index(range(6)), rows.index(range(6, 12))]
        joined = Rollouts.concatenate([halves[1], halves[0]])
        with torch.no_grad():
            new = policies["qwen3_vl"].evaluate(joined).log_probs
        assert (new - joined.old_log_probs).abs().max() < 1e-4
        assert torch.equal(joined.extent, torch.cat([rows.extent[6:], rows.extent[:6]]))

    def test_loaded_rows_score_as_before(self, policies, spoken, tmp_path):
        rows = spoken["qwen3_vl"]
        rows.save(tmp_path / "rows")
        back = Rollouts.load(tmp_path / "rows")
        back.prompts = rows.prompts
        with torch.no_grad():
            assert (policies["qwen3_vl"].evaluate(back).log_probs - rows.old_log_probs).abs().max() < 1e-4

    def test_what_does_not_fit_ends_the_row(self, make_policy):
        policy = make_policy("qwen3_vl", **stops(), max_extent=30)
        rows = policy.converse([Request(mixed_prompts()[0], 8, group=0)], Key(3), Here(two_pictures()))
        assert (rows.extent <= 30).all() and "length" in rows.finish
        cut = [r for r in range(8) if rows.finish[r] == "length"]
        assert any(rows.columns["calls"][r] > 0 and rows.media[r] is None for r in cut), "a picture did not fit"
        assert Batch.of(rows).truncated.tolist() == [f == "length" for f in rows.finish]

    def test_the_budget_is_of_what_is_acted(self, make_policy):
        policy = make_policy("qwen3_vl", **stops(8) | {"max_new_tokens": 6})
        rows = policy.converse([Request(mixed_prompts()[0], 8, group=0)], Key(3), Here(two_pictures()))
        assert (rows.length <= 6).all() and (rows.extent > 6).any()

    def test_the_last_turn_may_not_ask(self, policies):
        env = Shows(*[Observation.of("more")] * 9)
        env.max_turns = 2
        rows = policies["qwen3_vl"].converse([Request(mixed_prompts()[0], 4, group=0)], Key(3), Here(env))
        assert rows.columns["turn"].max() == 1 and set(rows.finish) == {"length"}

    def test_replayed_tokens_come_first_and_are_not_acted(self, policies):
        policy, prompt = policies["qwen3_vl"], mixed_prompts()[0]
        prefix = torch.tensor(policy.processor.tokenizer("red green")["input_ids"])
        rows = policy.converse([Request(prompt, 3, group=0, prefix=prefix)], Key(3), Here(two_pictures()))
        assert (rows.actions[:, : len(prefix)] == prefix).all() and not rows.mask[:, : len(prefix)].any()
        assert (rows.columns["observed"] == rows.extent - rows.length - len(prefix)).all()
        with torch.no_grad():
            assert (policy.evaluate(rows).log_probs - rows.old_log_probs).abs().max() < 1e-4


class Breaks(Shows):
    def __init__(self, *which):
        super().__init__(Observation.of("go on"))
        self.which = which

    def step(self, state, output):
        if output and len(output) % 2 in self.which:
            raise ValueError("no such thing")
        return super().step(state, output)


class TestFailures:
    def test_a_row_that_is_lost_is_unscored_and_counted_and_the_others_are_not(self, policies):
        requests = [Request(p, 4, group=i) for i, p in enumerate(mixed_prompts())]
        here = Here(Breaks(1), ceiling=0.9)
        actor = Actor(policies["qwen3_vl"], here)
        rows = actor.act(requests, Key(3))
        lost = [why.startswith(LOST) for why in rows.finish]
        assert 0 < sum(lost) < len(rows)
        causes = score_rows(rows, lambda outputs, prompts: scores_of(len(outputs))).causes
        assert rows.reward.isnan().tolist() == lost and rows.success.isnan().tolist() == lost
        assert causes == {"environment: ValueError: no such thing": sum(lost)}
        assert here.counts["lost/ValueError: no such thing"] == sum(lost)
        metrics = actor.metrics(Batch.of(rows))
        assert metrics["environment/call_rate"] == (rows.columns["calls"] > 0).double().mean()

    def test_past_the_ceiling_the_run_stops_and_says_why(self, policies):
        with pytest.raises(SurroundingsError, match=r"failed 4 of 4 rows.*ceiling of 50%: ValueError"):
            Actor(policies["qwen3_vl"], Here(Breaks(0, 1))).act([Request(mixed_prompts()[0], 4, group=0)], Key(3))

    def test_a_reset_that_raises_loses_its_rows(self, policies):
        class NoStart(Shows):
            def reset(self, prompt):
                if prompt.id == "two":
                    raise RuntimeError("no start")
                return super().reset(prompt)

        requests = [Request(p, 2, group=i) for i, p in enumerate(mixed_prompts())]
        rows = Actor(policies["qwen3_vl"], Here(NoStart())).act(requests, Key(3))
        assert [g for g, why in zip(rows.group.tolist(), rows.finish, strict=True) if why.startswith(LOST)] == [1, 1]

    def test_an_answer_that_is_none_is_named(self, policies):
        class Nothing(Shows):
            def step(self, state, output):
                return "hello"

        here = Here(Nothing(), ceiling=1.0)
        Actor(policies["qwen3_vl"], here).act([Request(mixed_prompts()[0], 2, group=0)], Key(3))
        assert here.counts == Counter({"lost/TypeError: step returned str, expected Observation or Done": 2})


def scores_of(count):
    from mmrl.record import Scores

    return Scores({"one": torch.ones(count)}, torch.ones(count), torch.ones(count))


def test_the_same_class_serves_every_processor(tiny):
    for family in FAMILIES:
        model, processor = tiny(family)
        policy = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny"))
        assert isinstance(policy.turns, Turns) and policy.turns.end == processor.tokenizer.eos_token_id


class Counts(Environment):
    """Says of every turn which it was, and pays for it."""

    turn_columns = ("tag", "action_reward")
    max_turns = 3

    def reset(self, prompt):
        return [0]

    def step(self, state, output):
        state[0] += 1
        numbers = {"tag": float(state[0]), "action_reward": 0.5}
        return Done(of_turn=numbers) if state[0] == 3 else Observation.of("go on", of_turn=numbers)


def test_numbers_of_turns_and_states_stand_where_they_were_acted(policies):
    """What is shown is the same after the first turn and after the second, so those turns begin in one state."""
    rows = next(iter(policies.values())).converse([Request(mixed_prompts()[0], 4, group=0)], Key(3), Here(Counts()))
    segment, state, tag = (rows.columns[name] for name in ("segment", "state", "tag"))
    heard = [why == "stop" for why in rows.finish]
    assert any(heard) and int(segment.max()) == 2
    for row in torch.tensor(heard).nonzero().squeeze(1).tolist():
        acted = rows.mask[row]
        assert torch.equal(tag[row, acted], segment[row, acted] + 1) and (tag[row, ~acted] == -1).all()
        assert (state[row][segment[row] == 0] == 0).all() and (state[row, ~acted] == -1).all()
        assert len(set(state[row][segment[row] > 0].tolist())) == 1 and state[row].max() > 0
        assert rows.columns["action_reward"][row].sum() == 1.5
