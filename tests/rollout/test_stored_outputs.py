"""Training on pictures that were made and scored before: what is read, what is drawn, that nothing is sampled."""

import json
import wave

import numpy as np
import pytest
import torch

from mmrl.errors import ConfigError, DataError, PolicyError
from mmrl.media import Film, Sound, read_film, read_sound, write_video
from mmrl.objective import Objective
from mmrl.policies.generation.families import generator_of
from mmrl.policies.generation.families.asking import Asked
from mmrl.policies.generation.families.ltx import LTX
from mmrl.policies.generation.families.swap import Swapped
from mmrl.policies.generation.families.wan import Wan
from mmrl.policies.generation.policy import FlowPolicy
from mmrl.policies.images import open_image
from mmrl.randomness import Key
from mmrl.record import Rollouts, Scores, Stored
from mmrl.rollout.actor import Actor, score_rows
from mmrl.rollout.stored_outputs import StoredOutputs
from mmrl.training.config import TrainingConfig
from mmrl.training.run_log import save_rollouts
from mmrl.training.trainer import Trainer
from tests.policies.generation.families import recipes
from tests.policies.generation.families.cases import BY_NAME, picture
from tests.policies.generation.tiny import captions, flow_policy, flow_requests
from tests.rollout.plans import step

FORMS = (
    "SD3", "FLUX.1-dev", "FLUX.2-dev", "Qwen-Image", "Z-Image", "SANA", "CogView4", "Wan 2.1 text",
    "Wan 2.2 TI2V-5B image", "LTX-Video image", "HunyuanVideo", "HunyuanVideo-1.5",
)  # fmt: skip
"""One variant for each way from pixels to a state; Lumina 2 goes Z-Image's, and its tiny VAE has not its own factor."""
FIRST_FRAME = {
    "Wan 2.2 TI2V-5B image": lambda generator, x: Wan.clean(generator, x)[:, :, :1],
    "LTX-Video image": lambda generator, x: LTX.clean(generator, x)[:, : generator.given()],
}
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


def rollouts_of(outputs):
    """Outputs of one prompt, worth 1/2 each, as a policy's actor returns them."""
    rows = len(outputs)
    ones = torch.ones(rows, 1)
    rollouts = Rollouts(
        prompts=captions(1), encoded=[None], prompt=torch.zeros(rows, dtype=torch.long), group=torch.zeros(rows).long(),
        member=torch.arange(rows), actions=ones.long(), mask=ones.bool(), old_log_probs=ones, outputs=outputs,
        length=ones[:, 0].long(), finish=["finished"] * rows,
    )  # fmt: skip
    rollouts.reward, rollouts.components = ones[:, 0] / 2, {}
    return rollouts


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
            (row(films=["a.mp4", "b.mp4"]), "line 2: films: expected the file of one video"),
            (row(components=[1.0]), r"line 2: components: expected \{name: number\}"),
        ]):  # fmt: skip
            with pytest.raises(DataError, match=said):
                StoredOutputs(folders=[rows_in(tmp_path / str(number), [row(), bad])])
        with pytest.raises(ConfigError, match=r"neither a rows\.jsonl nor"):
            StoredOutputs(folders=[str(tmp_path / "nowhere")])

    def test_unscored_outputs_are_left_out_and_told(self, tmp_path, capsys):
        kept = StoredOutputs(folders=[rows_in(tmp_path, [row(), row(reward=None)])]).kept
        assert len(kept["p0"]) == 1 and "1 stored outputs have no reward" in capsys.readouterr().err

    def test_films_and_sounds_are_read_as_they_were_written(self, tmp_path):
        rollouts = rollouts_of([[picture(32, 32, seed=k).resize((8, 8)).resize((32, 32)) for k in range(5)],
                                Sound(np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16), 16)])  # fmt: skip
        save_rollouts(tmp_path / "made", rollouts, [[""]] * 2, None, None)
        film, sound = (kept.path for kept in StoredOutputs(folders=[str(tmp_path / "made")]).kept["p0"])
        read = np.stack([np.asarray(frame, dtype=np.float32) for frame in read_film(film)])
        written = np.stack([np.asarray(frame, dtype=np.float32) for frame in rollouts.outputs[0]])
        assert read.shape == written.shape and np.abs(read - written).mean() < 12, "the codec's loss"
        np.testing.assert_allclose(read_sound(sound).samples, rollouts.outputs[1].samples, atol=1 / 32767)
        (tmp_path / "made" / "output-0000.mp4").write_bytes(b"none")
        for read_it, path in ((read_film, film), (read_sound, film)):
            with pytest.raises(DataError, match=r"cannot read (video|sound) .*output-0000\.mp4"):
                read_it(path)

    def test_files_cut_short_or_with_a_byte_turned_are_read_or_named(self, tmp_path):
        """Nothing else may come of a damaged file, wherever the damage is."""
        write_video(tmp_path / "a.mp4", [picture(32, 32, seed=k) for k in range(5)], 16)
        picture(24, 24).save(tmp_path / "a.png")
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setparams((2, 2, 16, 0, "NONE", ""))
            file.writeframes(bytes(range(128)))
        readers = {"mp4": read_film, "wav": read_sound, "png": lambda path: open_image(path, captions(1)[0])}
        for kind, read in readers.items():
            whole, bad, named = (tmp_path / f"a.{kind}").read_bytes(), tmp_path / f"bad.{kind}", 0
            places = torch.randint(len(whole), (30,), generator=Key(0).generator()).tolist()
            for place in (0, *places):
                turned = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
                for damaged in (whole[:place], turned):
                    bad.write_bytes(damaged)
                    try:
                        read(bad)
                    except DataError as error:
                        named += str(bad) in str(error) and "\n" not in str(error)
            assert named > 5, kind


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
    @pytest.mark.parametrize("name", FORMS)
    def test_the_state_is_what_the_decoder_undoes(self, name):
        """Decoding the clean state is the VAE's own round trip, whatever scale, packing and statistics stand between;
        of a video whose first frame is given, the state is the rest."""
        case = BY_NAME[name]
        generator = generator_of(case.pipeline(), case.asked)
        size = generator.size
        shape = (2, 3, size.frames, size.height, size.width) if generator.video else (2, 3, size.height, size.width)
        x, still = torch.rand(shape, generator=Key(0).generator()) * 2 - 1, name == "Qwen-Image"
        with torch.no_grad():
            state = generator.clean(x)
            assert state.shape[1:] == generator.state_shape()
            given = {"_first": FIRST_FRAME[name](generator, x)} if name in FIRST_FRAME else {}
            own = torch.cat(
                [generator.decoded(generator.encoded(row[None])) for row in (x[:, :, None] if still else x)]
            )
            torch.testing.assert_close(
                generator.pixels(state, given), own[:, :, 0] if still else own, rtol=0, atol=1e-3
            )
            assert own.std() > 0.05

    def test_a_sound_is_followed_by_silence_as_long_as_the_state_is(self):
        generator = generator_of(recipes.stable_audio_3(), Asked(options={"duration": 3.3}))
        wave = Sound(np.random.default_rng(0).uniform(-1, 1, (2, 52)).astype(np.float32), 16)
        seen = generator.seen(wave, "p0")
        assert seen[:, 52:].eq(0).all() and seen.shape == (2, 56), "14 latents of 4 samples"
        assert generator.clean(seen[None]).shape[1:] == generator.state_shape()
        with pytest.raises(DataError, match="has 51 samples, 16 a second, and the policy draws 52, 16 a second"):
            generator.seen(Sound(wave.samples[:, 1:], 16), "p0")

    def test_they_draw_as_sampled_rows_do_and_keep_their_rewards(self, policy):
        key = Key(7, 3)
        sampled = policy.rollout(flow_requests(), key)
        prompts = [sampled.prompts[i] for i in sampled.prompt.tolist()]
        outputs = [Stored(o, k / 10, {"quality": k / 5, "gone": 1.0}) for k, o in enumerate(sampled.outputs)]
        rows = Actor(policy).stored(prompts, outputs, key)
        for name in ("draw_times", "draw_seeds"):
            assert torch.equal(rows.replay[name], sampled.replay[name]), name
        with torch.no_grad():
            pixels = torch.stack([policy.generator.seen(o.output, "p0") for o in outputs])
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
        with pytest.raises(PolicyError, match="Pipeline takes no stored outputs: its call is replayed unread"):
            Swapped(recipes.sd3()).clean(torch.zeros(1, 3, 24, 24))

    def test_videos_must_have_the_generators_frames(self):
        generator = generator_of(recipes.wan(), BY_NAME["Wan 2.1 text"].asked)
        assert generator.seen([picture()] * 9, "p0").shape == (3, 9, 32, 32)
        for output, said in (
            ([picture()] * 5, "'p0': a stored video has 5 frames, and the policy draws 9"),
            ([picture(16, 32)] * 9, "a stored video is 16 x 32, and the policy draws 32 x 32"),
            (picture(), "a stored video: expected the frames of a video"),
            (Film([picture()] * 9, 24), "runs at 24 frames a second, and the policy's at 16"),
        ):
            with pytest.raises(DataError, match=said):
                generator.seen(output, "p0")


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
