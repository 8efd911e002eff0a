"""Worlds whose answers are not in what is shown at first: measured, not claimed."""

from collections import Counter

import numpy as np
import torch
from torch.nn import functional as F

from mmrl.data.sampling import choose_frames
from mmrl.data.worlds import open_world
from mmrl.data.worlds.digits import digit_images
from mmrl.data.worlds.fine_print import CROP, DIGIT, GREY, PLACES, SIZE, box_of, etched
from mmrl.data.worlds.flashes import FPS, FRAMES, GAPS, seconds_of
from mmrl.data.worlds.scenes import COLORS
from mmrl.media import VideoSampling
from mmrl.pipelines.bases.models import tiny_processor
from mmrl.rollout.environments.zoom import box_of as pixels_of

VIEW = 64


def nearest_neighbour(pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pictures whose nearest other picture shows the same digit."""
    flat = pictures.flatten(1).float()
    distance = torch.cdist(flat, flat).fill_diagonal_(float("inf"))
    return (labels[distance.argmin(1)] == labels).double().mean().item()


class TestFinePrint:
    def test_what_is_shown_first_is_the_same_for_all_digits_to_the_last_bit(self):
        processor = tiny_processor().image_processor
        processor.size = {"shortest_edge": 1024, "longest_edge": VIEW**2}
        world = open_world("fine_print", size=12)
        pictures = [world.prompt(i).images[0] for i in range(12)]
        shown = [processor(images=[p], return_tensors="pt")["pixel_values"] for p in pictures]
        assert all(torch.equal(shown[0], other) for other in shown[1:])
        assert len({p.tobytes() for p in pictures}) == 12, "and yet they differ"

    def test_every_digit_vanishes_in_the_whole_picture_and_is_read_in_a_crop(self):
        scale, labels = SIZE // VIEW, torch.tensor(digit_images()[1])
        digits = torch.from_numpy(etched().copy())[:, None].float()
        around = torch.full((len(digits), 1, 8 * scale, 8 * scale), float(GREY))
        at = 4 * scale + PLACES["top left"][0] * SIZE // 1000 % scale
        around[:, :, at : at + DIGIT, at : at + DIGIT] = digits
        assert (F.interpolate(around, size=8, mode="bicubic", antialias=True).round() == GREY).all()
        assert nearest_neighbour(digits, labels) > 0.95, "chance is .10"

    def test_the_box_of_a_place_holds_its_digit_and_nothing_else(self):
        for prompt in [open_world("fine_print", split="test", size=12).prompt(i) for i in range(12)]:
            scene, picture = prompt.columns["scene"], prompt.images[0]
            assert picture.size == (SIZE, SIZE)
            rest = np.asarray(picture)[..., 0].copy()
            for place, digit in scene["digits"].items():
                left, top, right, bottom = pixels_of(box_of(place), picture.size)
                assert (right - left, bottom - top) == (CROP, CROP)
                crop = rest[top:bottom, left:right]
                assert (crop[4:12, 4:12] == etched()[digit]).all()
                crop[4:12, 4:12] = GREY
            assert (rest == GREY).all()
            assert prompt.columns["solution"] == str(digit_images()[1][scene["digits"][scene["asked"]]])

    def test_every_held_out_answer_is_as_frequent_as_any_other(self):
        world = open_world("fine_print", split="test", size=800)
        scenes = [world.scene(i)[1] for i in range(800)]
        counts = Counter((s["asked"], digit_images()[1][s["digits"][s["asked"]]]) for s in scenes)
        assert len(counts) == 40 and abs(np.array([*counts.values()]) - 20).max() <= 1


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

    def test_no_held_out_guess_is_better_or_worse_than_chance(self, tmp_path):
        world = open_world("flashes", split="test", size=768, root=tmp_path)
        scenes = [world.scene(i)[1] for i in range(len(world))]
        counts = Counter((s["asked"], s["objects"][s["asked"]]["color"]) for s in scenes)
        assert len(counts) == len(GAPS) * len(COLORS) and abs(np.array([*counts.values()]) - 32).max() <= 1
        few = open_world("flashes", split="test", size=20, root=tmp_path)
        assert [few.scene(i) for i in range(20)] == [world.scene(i) for i in range(20)], "a larger split begins alike"
