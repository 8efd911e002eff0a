"""Worlds whose answers are not in what is shown at first: measured, not claimed."""

import numpy as np
import torch
from torch.nn import functional as F

from mmrl.data.sampling import choose_frames
from mmrl.data.worlds import open_world
from mmrl.data.worlds.digits import digit_images
from mmrl.data.worlds.fine_print import CROP, DIGIT, SHIFTS, SIZE, box_of, inked
from mmrl.data.worlds.flashes import FPS, FRAMES, GAPS, seconds_of
from mmrl.media import VideoSampling
from mmrl.rollout.environments.zoom import box_of as pixels_of

VIEW = 64


def nearest_neighbour(pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pictures whose nearest other picture shows the same digit."""
    flat = pictures.flatten(1).float()
    distance = torch.cdist(flat, flat).fill_diagonal_(float("inf"))
    return (labels[distance.argmin(1)] == labels).double().mean().item()


class TestFinePrint:
    def test_digits_are_read_in_a_crop_and_not_in_the_whole_picture(self):
        scale, rng = SIZE // VIEW, np.random.default_rng(0)
        labels = torch.tensor(digit_images()[1])
        place = torch.zeros(len(labels), 1, 12 * scale, 12 * scale)
        for i in range(len(labels)):
            top, left = 5 * scale + rng.integers(SHIFTS[0], SHIFTS[1] + 1, 2)
            place[i, 0, top : top + DIGIT, left : left + DIGIT] = torch.from_numpy(inked(i).copy())
        shown = F.interpolate(place, size=12, mode="bicubic", antialias=True).clamp(min=0).round()
        crops = F.interpolate(
            torch.stack([torch.from_numpy(inked(i).copy())[None] for i in range(len(labels))]).float(), size=32
        )
        assert nearest_neighbour(crops, labels) > 0.9
        assert nearest_neighbour(shown, labels) < 0.15, "chance is .10"

    def test_all_digits_have_the_same_ink(self):
        sums = [inked(i).sum() / 255 for i in range(0, 1797, 60)]
        assert max(sums) - min(sums) < 0.2

    def test_the_box_of_a_place_holds_its_digit_and_nothing_else(self):
        for prompt in [open_world("fine_print", split="test", size=12).prompt(i) for i in range(12)]:
            scene, picture = prompt.columns["scene"], prompt.images[0]
            assert picture.size == (SIZE, SIZE)
            ink = 0
            for place, digit in scene["digits"].items():
                box = pixels_of(box_of(place), picture.size)
                assert (box[2] - box[0], box[3] - box[1]) == (CROP, CROP)
                crop = np.asarray(picture.crop(box))[..., 0]
                assert crop.sum() == inked(digit).sum() and not crop[[0, -1]].any() and not crop[:, [0, -1]].any()
                ink += crop.sum()
            assert np.asarray(picture)[..., 0].sum() == ink
            assert prompt.columns["solution"] == str(digit_images()[1][scene["digits"][scene["asked"]]])

    def test_every_answer_is_as_frequent_as_any_other(self):
        world = open_world("fine_print", split="test", size=600)
        counts = np.bincount([int(world.prompt(i).columns["solution"]) for i in range(600)], minlength=10)
        assert abs(counts / 600 - 0.1).max() < 4 * (0.09 / 600) ** 0.5


class TestFlashes:
    def test_what_is_looked_at_first_is_black_and_each_gap_shows_its_own_colour(self, tmp_path):
        sampling = VideoSampling(fps=1, min_frames=4, max_frames=4)
        first, _ = choose_frames(FRAMES, FPS, sampling)
        assert first == [0, 8, 15, 23]
        world = open_world("flashes", split="test", size=20, root=tmp_path)
        asked = set()
        for i in range(20):
            _, scene = world.scene(i)
            frames = [np.asarray(f) for f in world.world.render(scene)]
            assert not any(frames[t].any() for t in first)
            gap = scene["asked"]
            asked.add(gap)
            seen, _ = choose_frames(FRAMES, FPS, sampling, *seconds_of(gap))
            assert len(seen) == 4 and all(frames[t].any() for t in seen)
            assert len({each["color"] for each in scene["objects"]}) == len(GAPS)
            assert world.prompt(i).columns["solution"] == scene["objects"][gap]["color"]
        assert asked == {0, 1, 2}
