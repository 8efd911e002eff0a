"""T-GRPO: a second group on frames in another order, and the bonus that compares with it."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.media import Frames, Reordered
from mmrl.objective.shaping.temporal import video_r1_t_grpo
from mmrl.record import Prompt
from mmrl.rollout.plan import Ask
from mmrl.rollout.t_grpo import VideoR1TGrpo
from tests.rollout.plans import rows, step


def batch_of(accuracy, reordered, group, length=400):
    made = rows(accuracy, group, columns={"reordered": torch.tensor(reordered, dtype=torch.float32)})
    made.components = {"accuracy": torch.tensor(accuracy, dtype=torch.float64)}
    made.length = torch.full((len(accuracy),), length)
    return made


class TestStrategy:
    def test_half_a_group_more_that_neither_counts_nor_trains(self):
        strategy, batch = VideoR1TGrpo(), batch_of([1, 0, 1, 0], [0] * 4, [0, 0, 1, 1])
        plan = strategy.join(batch, step(1, size=4))
        assert [(ask.group, ask.count, ask.columns) for ask in plan.ask] == [(g, 2, {"reordered": 1.0}) for g in (0, 1)]
        after = strategy.join(batch_of([1, 0, 1], [0, 0, 1], [0, 0, 0]), step(2, size=4))
        assert not after.ask and after.counted.tolist() == after.trained.tolist() == [True, True, False]

    def test_what_the_second_group_sees(self):
        clip = Prompt("p", [], videos=["a.mp4", "b.mp4"])
        shown = VideoR1TGrpo().shown(Ask(2, group=0, note=3), clip, None)
        assert shown.videos == VideoR1TGrpo().shown(Ask(2, group=0, note=3), clip, None).videos
        assert [each.path for each in shown.videos] == ["a.mp4", "b.mp4"] and shown.videos[0].seed != shown.videos[
            1
        ].seed
        assert VideoR1TGrpo().shown(Ask(2, group=0, note=4), clip, None).videos != shown.videos, (
            "another order each step"
        )
        assert VideoR1TGrpo().shown(Ask(2, group=0, note=3), Prompt("q", []), None) is None, "no clip, no order"

    def test_frames_in_another_order_at_the_same_times(self):
        pixels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 2, 2)
        frames = Frames(pixels, list(range(8)), 2.0, 8, (2, 2), "test", "key")
        seen = Reordered("a.mp4", 1).of(frames)
        assert sorted(seen.pixels[:, 0, 0, 0].tolist()) == list(range(8)) and seen.timestamps == frames.timestamps
        assert seen.pixels[:, 0, 0, 0].tolist() != list(range(8)) and seen.key != frames.key

    def test_a_share_that_asks_for_nothing_is_refused(self):
        with pytest.raises(ConfigError, match="share=0"):
            VideoR1TGrpo(share=0)


class TestBonus:
    def shaped(self, accuracy, reordered, length=100, group=None):
        return video_r1_t_grpo(batch_of(accuracy, reordered, group or [0] * len(accuracy), length)).tolist()

    def test_right_answers_gain_where_order_mattered(self):
        assert self.shaped([1, 0, 0, 0], [0, 0, 1, 1]) == pytest.approx([1.3, 0, 0, 0])
        assert self.shaped([1, 0, 1, 1], [0, 0, 1, 1]) == [1, 0, 1, 1]

    def test_four_fifths_are_enough(self):
        assert self.shaped([0.8, 0.8, 1, 1], [0, 0, 1, 1])[0] == pytest.approx(1.1)
        assert self.shaped([0.79, 0.79, 1, 1], [0, 0, 1, 1])[0] == pytest.approx(0.79)

    def test_length_needs_two_right_answers(self):
        assert self.shaped([1, 1, 1], [0, 0, 1], 320)[:2] == pytest.approx([1.5, 1.5])
        assert self.shaped([1, 0, 1], [0, 0, 1], 320)[0] == 1
        assert self.shaped([1, 1, 1], [0, 0, 1], 513)[:2] == pytest.approx([1.3, 1.3])

    def test_a_group_without_a_second_one_gains_nothing(self):
        assert self.shaped([1, 0, 1, 0], [0, 0, 0, 1], group=[0, 0, 1, 1]) == pytest.approx([1, 0, 1.3, 0])
