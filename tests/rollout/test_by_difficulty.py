"""DeepVideo-R1's augmentation: what hard and easy prompts are shown, and what is left as it is."""

import json

import pytest
import torch

from mmrl.media import Frames, Noised
from mmrl.record import Prompt
from mmrl.rollout.by_difficulty import ByDifficulty
from tests.rollout.plans import rows, step

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": "Which way?"}], videos=["a.mp4"] if i else [],
           columns={"demonstrations": "one two three four five six seven eight"} if i < 3 else {})
    for i in range(5)
]  # fmt: skip


def visited(rates: list[list[float]]) -> ByDifficulty:
    """Rows 0, 1, ... were asked once, two answers each."""
    strategy = ByDifficulty()
    strategy.meet(PROMPTS)
    now = step(1)
    now.groups = list(range(len(rates)))
    strategy.observe(rows([r for each in rates for r in each], [g for g, each in enumerate(rates) for _ in each]), now)
    return strategy


def test_hard_prompts_see_a_beginning_and_easy_clips_carry_noise():
    """The mean is .5: rows 1 and 3 failed, rows 2 and 4 are solved, row 0 is as usual."""
    strategy = visited([[1, 0], [0, 0], [1, 1], [0, 0], [1, 1]])
    asks = strategy.ask(step(size=4, prompts=5)).ask
    assert [(a.index, a.note is None) for a in asks] == [(0, True), (1, False), (2, False), (3, True), (4, False)]
    helped, noised = (strategy.shown(asks[i], PROMPTS[i], None) for i in (1, 2))
    assert "one two ..." in helped.text and "three" not in helped.text, "half of half of eight words"
    assert helped.videos == ["a.mp4"] and helped.id != "p1"
    assert noised.videos[0].std == pytest.approx(25) and noised.text == "Which way?" and noised.asks == "p2"


def test_a_first_visit_is_left_as_it_is():
    strategy = ByDifficulty()
    strategy.meet(PROMPTS)
    assert all(ask.note is None for ask in strategy.ask(step(size=4, prompts=5)).ask)


def test_it_goes_on_after_a_save():
    strategy, again = visited([[1, 0], [0, 0]]), ByDifficulty()
    again.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert [again.gap(i) for i in range(3)] == [strategy.gap(i) for i in range(3)] == [-0.25, 0.25, 0.0]


def test_noise_of_a_clip():
    pixels = torch.full((8, 3, 16, 16), 128, dtype=torch.uint8)
    frames = Frames(pixels, list(range(8)), 2.0, 8, (16, 16), "test", "key")
    seen = Noised("a.mp4", 20.0, 3).of(frames)
    assert seen.pixels.dtype == torch.uint8 and seen.pixels.float().std() == pytest.approx(20, rel=0.05)
    assert torch.equal(seen.pixels, Noised("a.mp4", 20.0, 3).of(frames).pixels) and seen.key != frames.key
    assert torch.equal(Noised("a.mp4", 0.0, 3).of(frames).pixels, pixels)
