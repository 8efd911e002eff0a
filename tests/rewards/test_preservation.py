"""Pixels outside an edit against the condition image."""

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.preservation import outside, preservation, preserved
from tests.rewards.pictures import plain, square

BEFORE = square(0, 0)
BOX = [0, 0, 8, 8]


def test_a_change_inside_costs_nothing_and_one_outside_by_its_area():
    assert preserved(square(0, 0, color=(30, 60, 230)), BEFORE, BOX) == 1
    assert preserved(BEFORE, BEFORE, BOX) == 1
    both = square(0, 0)
    both.paste(square(16, 16).crop((16, 16, 24, 24)), (16, 16))
    assert preserved(both, BEFORE, BOX) == pytest.approx(1 - 64 / (32 * 32 - 64))  # 64 of 960 pixels


def test_a_small_difference_costs_its_share_of_the_tolerance():
    """A tenth of full brightness everywhere, at a tolerance of a quarter: 1 - .1 / .25 = .6 (26 of 255 is .102)."""
    assert preserved(plain((26, 26, 26), 32), plain((0, 0, 0), 32), BOX) == pytest.approx(1 - 26 / 255 / 0.25)
    assert preserved(plain((255, 255, 255), 32), plain((0, 0, 0), 32), BOX) == 0


def test_regions_are_boxes_or_a_picture():
    mask = square(0, 0, color=(255, 255, 255))
    assert (outside(mask, (32, 32)) == outside(BOX, (32, 32))).all()
    assert (~outside([BOX, [8, 8, 16, 16]], (32, 32))).sum() == 128
    assert outside([-5, -5, 4, 100], (32, 32)).sum() == 28 * 32


def test_an_output_of_another_size_is_compared_at_the_references():
    assert preserved(plain((9, 9, 9), 64), plain((9, 9, 9), 32), BOX) == 1


@pytest.mark.parametrize(
    "region", [None, "", [], [1, 2, 3], [5, 5, 5, 9], [[0, 0, 4, 4], [1]], {"box": 1}, [0, 0, True, 4]]
)
def test_what_is_no_region_is_refused(region):
    with pytest.raises(RewardError, match="edit_region"):
        preserved(BEFORE, BEFORE, region)


def test_a_region_of_everything_leaves_nothing():
    with pytest.raises(RewardError, match="nothing is left"):
        preserved(BEFORE, BEFORE, [0, 0, 32, 32])


def edit(images: list, **columns) -> Prompt:
    content = [{"type": "image", "role": "condition"}] * len(images) + [{"type": "text", "text": "make it blue"}]
    return Prompt("edit", [{"role": "user", "content": content}], images=images, columns=columns)


class TestReference:
    """The condition image reaches a reward as `reference`, opened."""

    def test_through_the_panel_from_a_picture_and_from_a_file(self, tmp_path):
        BEFORE.save(tmp_path / "a.png")
        rows = [edit([BEFORE], edit_region=BOX), edit([str(tmp_path / "a.png")], edit_region=BOX)]
        with RewardPanel(["preservation"]) as panel:
            panel.check(rows)
            scores = panel.score([BEFORE, plain((0, 0, 0), 32)], rows)
        assert scores.reward.tolist() == [1, 1]

    def test_a_row_without_one_is_refused_by_name(self):
        row = edit([], edit_region=BOX)
        with RewardPanel(["preservation"]) as panel:
            with pytest.raises(RewardError, match="prompt 'edit' has none; it is for edits"):
                panel.check([row])
            with pytest.raises(RewardError, match="has none"):
                panel.score([BEFORE], [row])

    def test_two_images_are_not_compared_with(self):
        with pytest.raises(RewardError, match="the row has 2"):
            preservation([BEFORE], [[BEFORE, BEFORE]], [BOX])

    def test_it_is_optional_absent_for_texts_and_a_column_of_that_name_comes_first(self):
        seen = []

        def looks(completions, reference=None):
            seen.append(reference)
            return [0.0] * len(completions)

        with RewardPanel([looks]) as panel:
            panel.score([BEFORE], [edit([BEFORE])])
            panel.score([BEFORE], [edit([])])
            panel.score(["a text"], [edit([BEFORE])])
            panel.score([BEFORE], [edit([BEFORE], reference="a caption")])
        assert isinstance(seen[0][0][0], Image.Image) and seen[1:] == [None, None, ["a caption"]]
