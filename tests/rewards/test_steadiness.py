"""Flicker, motion and consistency of clips: numbers worked by hand, limits, and what each must not mind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.errors import RewardError
from mmrl.rewards.steadiness import (
    consistency_of,
    flicker,
    flicker_of,
    histogram,
    motion_magnitude,
    motion_of,
    temporal_consistency,
    there_and_back,
)
from tests.rewards.pictures import gliding, noise, plain, square

clips = st.lists(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12), min_size=2, max_size=6).map(
    lambda frames: np.array(frames, dtype=np.float32).reshape(len(frames), 2, 2, 3)
)


def series(*values: float) -> np.ndarray:
    """A clip of one gray pixel."""
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1).repeat(3, axis=3)


class TestByHand:
    def test_what_comes_back_is_flicker(self):
        """.2 -> .6 -> .3: up .4, down .3, so .3 comes back."""
        assert there_and_back(series(0.2, 0.6, 0.3)).mean() == pytest.approx(0.3)
        assert flicker_of(series(0.2, 0.6, 0.3)) == pytest.approx(0.3)

    def test_a_fade_is_motion_and_no_flicker(self):
        assert flicker_of(series(0, 0.2, 0.4, 0.6)) == 0
        assert motion_of(series(0, 0.2, 0.4, 0.6)) == pytest.approx(0.2)

    def test_flicker_is_no_motion(self):
        """0 -> .5 -> 0 -> .5: all of every change is taken back or takes one back."""
        assert motion_of(series(0, 0.5, 0, 0.5)) == pytest.approx(0)
        assert flicker_of(series(0, 0.5, 0, 0.5)) == pytest.approx(0.5)

    def test_the_overlap_of_half_the_colours(self):
        """Half red and half black, then half blue and half black: sqrt(.5 x .5) of the black is shared."""
        first = np.zeros((1, 2, 3), dtype=np.float32)
        second = first.copy()
        first[0, 0, 0] = second[0, 0, 2] = 1
        assert consistency_of(np.stack([first, second])) == pytest.approx(0.5)

    def test_histograms_are_shares(self):
        assert histogram(np.random.default_rng(0).random((5, 7, 3))).sum() == pytest.approx(1)


class TestRewards:
    def test_a_still_clip_is_steady_and_does_not_move(self):
        still = [square(8, 8)] * 5
        assert flicker([still]) == temporal_consistency([still]) == [pytest.approx(1)]
        assert motion_magnitude([still]) == [0]

    def test_gliding_moves_and_is_consistent(self):
        assert temporal_consistency([gliding()])[0] > 0.99
        # 2 x 4 columns of 8 pixels change at each step, by (220 + 30 + 30) / 765 of full brightness
        assert motion_magnitude([gliding()])[0] == pytest.approx(64 / 1024 * 280 / 765 / 0.05, abs=1e-5)
        assert flicker([gliding()])[0] > 0.95

    def test_a_blinking_clip_flickers_and_does_not_move(self):
        blinking = [plain((0, 0, 0)), plain((200, 200, 200))] * 3
        assert flicker([blinking]) == [0]
        assert motion_magnitude([blinking])[0] == pytest.approx(0, abs=1e-6)

    def test_faster_is_more_motion(self):
        slow, fast = gliding(range(0, 6)), gliding(range(0, 18, 3))
        assert motion_magnitude([slow], enough=1)[0] < motion_magnitude([fast], enough=1)[0]

    def test_an_object_that_changes_its_colour_or_vanishes_costs_consistency(self):
        kept = [square(8, 8, side=20)] * 4
        turned = kept[:2] + [square(8, 8, side=20, color=(30, 60, 230))] * 2
        gone = kept[:2] + [plain((0, 0, 0), 32)] * 2
        rest = 1 - 400 / 1024  # of the picture is black in all frames
        assert temporal_consistency([kept, turned, gone]) == [
            pytest.approx(1), pytest.approx((3 + 3 * rest) / 6), pytest.approx((3 + 3 * rest**0.5) / 6),
        ]  # fmt: skip

    def test_noise_is_neither_steady_nor_consistent_with_a_picture(self):
        static = [noise(seed, 32) for seed in range(5)]
        assert flicker([static])[0] < flicker([gliding()])[0] - 0.3

    @pytest.mark.parametrize("reward", [flicker, motion_magnitude, temporal_consistency])
    @pytest.mark.parametrize("wrong", ["text", plain((0, 0, 0)), [], [plain((0, 0, 0))], ["a", "b", "c"]])
    def test_what_is_no_video_is_refused(self, reward, wrong):
        with pytest.raises(RewardError, match="reads videos"):
            reward([wrong])

    def test_frames_of_two_sizes_are_refused(self):
        with pytest.raises(RewardError, match="different sizes"):
            flicker([[plain("red", 16), plain("red", 16), plain("red", 8)]])


@settings(max_examples=60, deadline=None)
@given(clips)
def test_all_three_lie_in_their_range_and_time_may_run_backwards(frames):
    assert 0 <= flicker_of(frames) <= 1 and -1e-6 <= motion_of(frames) <= 1 and 0 <= consistency_of(frames) <= 1
    assert flicker_of(frames) == pytest.approx(flicker_of(frames[::-1]), abs=1e-6)
    assert motion_of(frames) == pytest.approx(motion_of(frames[::-1]), abs=1e-6)
