"""Training on pictures that were made and scored before: what is read, what is drawn, that nothing is sampled."""

import json

import pytest
import torch

from mmrl.errors import ConfigError, DataError, PolicyError
from mmrl.objective import Objective
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.asking import Asked
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.generation.stored import pixels_of
from mmrl.randomness import Key
from mmrl.record import Scores, Stored
from mmrl.rollout.actor import Actor, score_rows
from mmrl.rollout.stored_outputs import StoredOutputs
from mmrl.training.config import TrainingConfig
from mmrl.training.run_log import save_rollouts
from mmrl.training.trainer import Trainer
from tests.policies.generation.families import recipes
from tests.policies.generation.families.cases import picture
from tests.policies.generation.tiny import captions, flow_policy, flow_requests
from tests.rollout.plans import step

MATCHING = {"likelihood": "matching", "draws": {"count": 2, "shared": "group"}, "lora": {"rank": 4}}


def scores(**components) -> Scores:
    """Worth the first component."""
    columns = {name: torch.as_tensor(values, dtype=torch.float32) for name, values in components.items()}
    reward = next(iter(columns.values()))
    return Scores(columns, reward, torch.full_like(reward, float("nan")))


def rows_in(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(24, 24).save(folder / "a.png")
    return str(folder)


def row(prompt="p0", reward=0.5, **more):
    return {"prompt_id": prompt, "images": ["a.png"], "reward": reward, **more}


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return flow_policy(**MATCHING)


class TestReading:
    def test_what_is_no_picture_with_a_reward_is_named_with_its_line(self, tmp_path):
        for number, (bad, said) in enumerate([
            ({"images": ["a.png"], "reward": 1}, "line 2: no 'prompt_id'"),
            (row(images=["a.png", "a.png"]), "line 2: images: expected the file of one picture"),
            (row(images=["b.png"]), "line 2: images: no file"),
            (row(reward="high"), "line 2: reward: expected a finite number or null, got 'high'"),
            (row(reward=True), "line 2: reward"),
            (row(films=["a.mp4"]), "line 2: images"),
        ]):  # fmt: skip
            with pytest.raises(DataError, match=said):
                StoredOutputs(folders=[rows_in(tmp_path / str(number), [row(), bad])])
        with pytest.raises(ConfigError, match=r"neither a rows\.jsonl nor"):
            StoredOutputs(folders=[str(tmp_path / "nowhere")])

    def test_unscored_outputs_are_left_out_and_told(self, tmp_path, capsys):
        kept = StoredOutputs(folders=[rows_in(tmp_path, [row(), row(reward=None)])]).kept
        assert len(kept["p0"]) == 1 and "1 stored outputs have no reward" in capsys.readouterr().err


class TestDrawing:
    def strategy(self, tmp_path, counts):
        rows = [row(f"p{i}", reward=k / 10) for i, count in enumerate(counts) for k in range(count)]
        made = StoredOutputs(folders=[rows_in(tmp_path, rows)])
        made.meet(captions(len(counts)))
        return made

    def test_prompts_without_enough_outputs_are_passed_over_and_told(self, tmp_path, capsys):
        plan = self.strategy(tmp_path, [1, 3, 2]).ask(step(size=2, prompts=2))
        assert [g.index for g in plan.given] == [1, 2] and not plan.ask
        assert "1 of 3 prompts have fewer than 2 stored outputs" in capsys.readouterr().err

    def test_a_group_is_different_outputs_drawn_anew_at_each_step(self, tmp_path):
        strategy, groups = self.strategy(tmp_path, [8]), set()
        for number in range(20):
            now = step(size=3, prompts=1)
            now.key = Key(0, number)
            given = strategy.ask(now).given[0]
            rewards = [s.reward for s in strategy.given(given, captions(1)[0], None)]
            assert len(set(rewards)) == 3 and rewards == [s.reward for s in strategy.given(given, captions(1)[0], None)]
            groups.add(tuple(rewards))
        assert len(groups) > 10

    def test_a_data_set_of_other_prompts_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"no prompt of the data set has 4 stored outputs .* \['p0', 'p1'\]"):
            self.strategy(tmp_path, [3, 3]).ask(step(size=4))


class TestRows:
    def test_the_state_is_what_the_decoder_undoes(self):
        """decode(clean(x)) is the VAE's own round trip, whatever scale, shift and packing stand between."""
        for make in (recipes.sd3, recipes.flux):
            pipeline = make()
            generator = generator_of(pipeline, Asked())
            x = torch.rand(2, 3, generator.size.height, generator.size.width, generator=Key(0).generator()) * 2 - 1
            with torch.no_grad():
                state, vae = generator.clean(x), pipeline.vae
                own = vae.decode(vae.encode(x).latent_dist.mode()).sample
                assert state.shape[1:] == generator.state_shape()
                torch.testing.assert_close(generator.pixels(state, {}), own, rtol=1e-4, atol=1e-5)

    def test_they_draw_as_sampled_rows_do_and_keep_their_rewards(self, policy):
        key = Key(7, 3)
        sampled = policy.rollout(flow_requests(), key)
        prompts = [sampled.prompts[i] for i in sampled.prompt.tolist()]
        outputs = [Stored(o, k / 10, {"quality": k / 5, "gone": 1.0}) for k, o in enumerate(sampled.outputs)]
        rows = Actor(policy).stored(prompts, outputs, key)
        for name in ("draw_times", "draw_seeds"):
            assert torch.equal(rows.replay[name], sampled.replay[name]), name
        with torch.no_grad():
            pixels = torch.stack([pixels_of(o.output, prompts[0], policy.generator) for o in outputs])
            torch.testing.assert_close(
                rows.replay["clean"].float(), policy.generator.clean(pixels), rtol=0.01, atol=0.01
            )

        def score(outputs, prompts):
            assert not outputs, "stored rewards are not asked for again"
            return scores(quality=[], other=[])

        score_rows(rows, score)
        torch.testing.assert_close(rows.reward, torch.arange(6) / 10)
        torch.testing.assert_close(rows.components["quality"], torch.arange(6) / 5)
        assert rows.components["other"].isnan().all() and "gone" not in rows.components

    def test_refusals(self, policy):
        prompt = captions(1)
        with pytest.raises(DataError, match="'p0': a stored picture is 32 x 16, and the policy draws 24 x 24"):
            policy.stored(prompt, [Stored(picture(32, 16))], Key(0))
        with pytest.raises(PolicyError, match=r"policy\.likelihood=transition"):
            flow_policy().stored(prompt, [Stored(picture(24, 24))], Key(0))
        with pytest.raises(PolicyError, match="QwenImagePipeline takes no stored pictures"):
            generator_of(recipes.qwen_image(), Asked()).clean(torch.zeros(1, 3, 16, 16))


def test_a_run_trains_on_them_and_samples_nothing(policy, tmp_path):
    """The group's best picture becomes likelier against the others, by the update's own loss; the generator is called
    for losses alone."""
    made = tmp_path / "made"
    rollouts = policy.rollout(flow_requests(4), Key(1))
    score_rows(rollouts, lambda outputs, prompts: scores(quality=torch.arange(8) % 4 / 4))
    save_rollouts(made, rollouts, policy.action_labels(rollouts), None, None)
    settings = {"steps": 2, "prompts_per_step": 2, "group_size": 3, "learning_rate": 1e-3, "save_every": 0}
    objective = {"score": "matching_loss", "score_objective": "gdro", "aggregation": "sequence_mean"}
    metrics = []
    trainer = Trainer(
        policy, Objective.of(objective), captions(2), lambda outputs, prompts: scores(quality=[]),
        TrainingConfig(**settings), tmp_path / "run", rollout=[{"name": "stored_outputs", "folders": [str(made)]}],
        report=lambda number, values: metrics.append(values),
    )  # fmt: skip
    before, _ = policy.trainable_state(), policy.counted()
    trainer.train()
    assert [m["calls/sampled"] for m in metrics] == [0, 0] and all(m["calls/trained"] > 0 for m in metrics)
    assert all(m["reward/mean"] > 0 for m in metrics)
    assert any(not torch.equal(before[n], v) for n, v in policy.trainable_state().items())
