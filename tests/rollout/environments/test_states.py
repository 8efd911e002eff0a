"""Numbers of states and of turns."""

import torch
from PIL import Image

from mmrl.columns import COLUMNS
from mmrl.media import Clip
from mmrl.rollout.environments.base import NUMBERS, Observation
from mmrl.rollout.environments.states import number_of, state_of, turn_column


def test_states_are_equal_where_the_same_is_shown():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    looks = [Observation.of("", images=[picture]) for picture in (red, red.copy(), blue, red.resize((2, 8)))]
    numbers = [state_of(look) for look in looks]
    assert numbers[0] == numbers[1] and len(set(numbers)) == 3 and 1 <= min(numbers) <= max(numbers) <= NUMBERS
    assert state_of(Observation.of("a")) != state_of(Observation.of("b"))
    assert state_of(Observation.of("", videos=[Clip("a.mp4", 0, 1)])) != state_of(
        Observation.of("", videos=[Clip("a.mp4", 0, 2)])
    )
    assert number_of("Red  one") == number_of("red one") and number_of(" ") == 0


def test_a_number_of_a_turn_stands_on_its_actions_and_a_reward_on_the_last():
    """Two turns of two and one actions with a shown column between; nobody spoke of the second row's second turn."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1]]).bool()
    turn = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1]])
    said = [[{"tag": 2.0, "action_reward": 0.5}, {"tag": 1.0}], [{"tag": 0.0, "action_reward": 1.0}]]
    tags = turn_column(COLUMNS["tag"], said, mask, turn)
    assert tags.tolist() == [[2, 2, -1, 1], [0, 0, -1, -1]] and tags.dtype == torch.long
    assert turn_column(COLUMNS["action_reward"], said, mask, turn).tolist() == [[0, 0.5, 0, 0], [0, 1, 0, 0]]
