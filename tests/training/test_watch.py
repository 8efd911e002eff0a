"""The watch: what it measures, what it calls moved, and that it sees a hack while the reward still rises."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import train
from mmrl.training import checkpoint
from mmrl.training.config import TrainingConfig
from mmrl.training.monitors import reason
from mmrl.training.trainer import Trainer
from mmrl.training.variety import descriptor, diversity
from mmrl.training.watch import Watch, WatchConfig
from tests.policies.generation.tiny import captions, flow_policy, nudge
from tests.training.tiny import make_policy, make_prompts, score_vowels


def plain(*color):
    return Image.new("RGB", (8, 8), color)


class TestDiversity:
    def test_one_picture_again_and_again_is_zero(self):
        found = diversity([[plain(255, 0, 0)] * 3, [plain(0, 9, 0)] * 2])
        assert found["pixels"] == 0 and found["embedding"] == pytest.approx(0)

    def test_pixels_by_hand(self):
        assert diversity([[plain(0, 0, 0), plain(255, 255, 255)]])["pixels"] == 1
        two = diversity([[plain(0, 0, 0), plain(255, 255, 255)], [plain(9, 9, 9)] * 2])["pixels"]
        assert two == 0.5, "prompts weigh alike"

    def test_prompts_are_compared_within_not_across(self):
        assert diversity([[plain(255, 0, 0)] * 2, [plain(0, 0, 255)] * 2])["pixels"] == 0

    def test_noise_moves_pixels_more_than_the_descriptor(self):
        noise = np.random.default_rng(0)
        speckled = [Image.fromarray(noise.integers(100, 156, (32, 32, 3)).astype("uint8")) for _ in range(2)]
        drawn = [Image.new("RGB", (32, 32), (128, 128, 128)) for _ in range(2)]
        drawn[1].paste((255, 0, 0), (0, 0, 16, 32))
        assert diversity([speckled])["pixels"] > 0.05
        assert diversity([drawn])["embedding"] > 5 * diversity([speckled])["embedding"]

    def test_an_embedding_of_yours_and_what_it_may_not_return(self):
        apart = diversity([[plain(1, 1, 1), plain(2, 2, 2)]], lambda outputs: np.eye(len(outputs)))
        assert apart["embedding"] == 1
        with pytest.raises(ConfigError, match=r"shape \(2,\)"):
            diversity([[plain(1, 1, 1)] * 2], lambda outputs: np.ones(len(outputs)))
        with pytest.raises(ConfigError, match=r"my\.py:f of output 1 is not finite"):
            diversity([[plain(1, 1, 1)] * 2], lambda outputs: np.array([[1.0], [np.nan]]), called="my.py:f")
        with pytest.raises(ConfigError, match="two outputs"):
            diversity([[plain(1, 1, 1)]])

    def test_films_are_read_frame_by_frame(self):
        film = [plain(0, 0, 0), plain(255, 255, 255)]
        assert len(descriptor(film)) == 2 * len(descriptor(film[0]))
        assert diversity([[film, film[::-1]]])["pixels"] == 1


def watched(rows, **settings):
    watch = Watch.__new__(Watch)
    watch.config, watch.rows, watch.spread = WatchConfig(**settings), rows, 0.2
    return watch.moved()


def row(step, reward, held_out=0.5, pixels=0.2, embedding=0.4, drift=0.0):
    return {
        "step": step, "reward": reward, "held_out": held_out, "pixels": pixels, "embedding": embedding, "drift": drift
    }  # fmt: skip


class TestMoved:
    def test_the_held_out_reward_falls_by_half_its_spread(self):
        rows = [row(0, 0.3), row(10, 0.5, 0.6), row(20, 0.6, 0.49), row(30, 0.7, 0.45)]
        said = watched(rows)
        assert (
            "held-out reward fell to 0.450 from 0.600" in said and "from 0.300 to 0.700" in said and "step 30" in said
        )
        assert not watched(rows[:3]), "once is not yet"
        assert not watched([row(0, 0.3), row(10, 0.5, 0.6), row(20, 0.6, 0.52), row(30, 0.7, 0.51)])

    def test_of_several_held_out_rewards_the_one_that_fell_is_named(self):
        """Their sum stays: one rises by what the other loses."""

        def judged(step, reward, ocr):
            return row(step, reward, 0.5) | {"held_out/ocr": ocr, "held_out/clip": 1 - ocr}

        spreads = {"spread/held_out/ocr": 0.2, "spread/held_out/clip": 0.2}
        rows = [judged(0, 0.3, 0.6) | spreads, judged(10, 0.5, 0.45), judged(20, 0.6, 0.4)]
        said = watched(rows)
        assert "the held-out reward 'ocr' fell to 0.400 from 0.600" in said and "clip" not in said
        assert not watched(rows, fall=1.5)

    def test_diversity_and_drift_are_named(self):
        alike = [row(0, 0.3), row(10, 0.4, pixels=0.09), row(20, 0.5, pixels=0.08)]
        assert "diversity (pixels) fell to 0.080 from 0.200" in watched(alike)
        assert "embedding" not in watched(alike)
        far = [row(0, 0.3), row(10, 0.4, drift=0.3), row(20, 0.5, drift=0.6)]
        assert not watched(far) and "drift from the start grew to 0.600, past 0.2" in watched(far, drift=0.2)

    def test_nothing_moved(self):
        assert not watched([row(0, 0.3)]) and not watched([row(s, 0.3 + s / 100) for s in (0, 10, 20, 30)], drift=1)


def test_a_held_out_reward_that_nobody_has_is_named_with_its_key():
    from mmrl.pipelines.watching import placed
    from mmrl.rewards.panel import RewardPanel

    with pytest.raises(ConfigError, match=r"^watch\.rewards: unknown reward 'compositionel'; did you mean"):
        placed("watch.rewards", lambda: RewardPanel(["compositionel"]))


def test_drift_is_zero_at_the_start_kept_with_the_run_and_grows(tmp_path):
    from mmrl.policies.generation.drift import Probes

    policy = flow_policy()
    probes = Probes(policy, captions(), tmp_path / "probes.safetensors")
    probes.begin()
    assert probes.drift() < 1e-9, "but for how rows are batched"
    nudge(policy, 0.01)
    near = probes.drift()
    nudge(policy, 0.05)
    assert 1e-6 < near < probes.drift()
    again = Probes(policy, captions(), tmp_path / "probes.safetensors")
    again.begin()
    assert again.drift() == probes.drift(), "a resumed run compares with the first start"
    assert torch.equal(again.kept["x"], probes.kept["x"])


def test_a_watch_that_begins_late_says_what_it_compares_with(tmp_path, monkeypatch):
    from mmrl.pipelines import watching
    from mmrl.record import Scores
    from mmrl.training import watch

    said = []
    for module in (watch, watching):
        monkeypatch.setattr(module, "tell", said.append)

    def score(outputs, prompts):
        return Scores({}, torch.zeros(len(outputs)), torch.zeros(len(outputs)))

    def begun(step):
        made = watching.watch_of(WatchConfig(every=1), flow_policy(), score, captions(), None, folder=tmp_path)
        made.begin(step)
        return made

    begun(0)
    begun(5)
    assert not said, "a run that was watched from its start"
    (tmp_path / watching.PROBES).unlink()
    begun(5).watch(6, {})
    assert len(said) == 1 and "probes.safetensors is gone" in said[0] and "not the start" in said[0]
    (tmp_path / watch.FILE).unlink()
    begun(5)
    assert len(said) == 2 and "nothing was measured before step 5" in said[1] and "not the start" in said[1]


BLIND = """
from mmrl.rewards.pixels import color_share

def colorful(completions, scene):
    # A verifier with a blind spot: it looks for the asked colour, and not whether anything is drawn with it.
    return color_share(completions, [each["objects"][0]["color"] for each in scene], enough=0.6)
"""


def hacked(tmp_path, *changes):
    """The demo under a verifier with a blind spot, until the watch ends it: the run's result, and what was measured."""
    (tmp_path / "blind.py").write_text(BLIND)
    always = [
        f"run_dir={tmp_path / 'run'}", f"rewards=[{{name: '{tmp_path / 'blind.py'}:colorful'}}]", "training.steps=60",
        "training.schedule=constant", "training.learning_rate=8e-4",
        "watch={every: 3, stop: true, rewards: [compositional], prompts: 32}",
    ]  # fmt: skip
    result = train(read_config("demo", [*always, *changes], "flow"))
    return result, json.loads((tmp_path / "run" / "watch.json").read_text())


@pytest.mark.learns
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ((), "diversity"),
        (("watch.diversity=0",), "the held-out reward fell"),
    ],
    ids=["diversity", "held_out"],
)
def test_the_watch_sees_a_hack_while_the_reward_still_rises(changes, first, tmp_path):
    """A verifier that only counts pixels of the asked colour is satisfied by filling the picture. The run ends with the
    reward at its height, which alone would have said that all is well. Pictures become alike before the other
    verifier minds; without that rule, it is the other verifier that ends the run."""
    result, rows = hacked(tmp_path, *changes)
    assert result.ended.startswith(first) and result.steps < 60
    assert rows[-1]["reward"] == max(r["reward"] for r in rows) > rows[0]["reward"] + 0.05


def test_the_first_monitor_that_ends_a_run_is_named():
    class Ends:
        def __init__(self, ended):
            self.ended = ended

    assert reason([Ends(""), Ends("enough"), Ends("more")]) == "enough" and reason([]) == ""


def test_a_monitor_ends_a_run_which_is_evaluated_and_saved(tmp_path):
    class Second:
        ended = ""

        def begin(self, step):
            self.began = step

        def watch(self, step, metrics):
            self.ended = "two are enough" if step == 2 else ""
            return {"second/step": step}

    seen, second = [], Second()
    trainer = Trainer(
        make_policy(), Objective.of({}), make_prompts(4), score_vowels,
        TrainingConfig(steps=9, prompts_per_step=2, group_size=4, micro_batch_size=8), tmp_path,
        eval_prompts=make_prompts(2), monitors=[second], report=lambda step, metrics: seen.append(metrics),
    )  # fmt: skip
    result = trainer.train()
    assert (result.steps, result.ended, result.interrupted, second.began) == (2, "two are enough", False, 0)
    assert result.after and [m["second/step"] for m in seen] == [1, 2]
    assert checkpoint.latest(tmp_path).name == "step-000002"


def test_a_watch_without_prompts_is_refused():
    from mmrl.rollout.actor import Actor

    with pytest.raises(ConfigError, match=r"data\.eval"):
        Watch(Actor(flow_policy()), [], {}, WatchConfig())
