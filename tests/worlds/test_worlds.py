"""Splits, determinism, difficulty: what holds for every world."""

import hashlib
import json
import subprocess
import sys

import pytest

from mmrl.data.worlds import WORLDS, open_world
from mmrl.data.worlds.scenes import picture_hash, split_of
from mmrl.errors import DataError

FINGERPRINT = """
import hashlib, json, sys
from mmrl.data.worlds import open_world
for name in sys.argv[1:]:
    world = open_world(name, size=20, seed=3, difficulty=(2, 5))
    scenes = json.dumps([world.scene(i) for i in range(20)], sort_keys=True)
    print(hashlib.sha256(scenes.encode()).hexdigest())
"""


def hashes(name: str, split: str, size: int, **options) -> list[str]:
    world = open_world(name, split=split, size=size, **options)
    return [picture_hash(world.scene(i)[1]) for i in range(size)]


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_no_picture_is_in_both_splits(name):
    train = {h for seed in (0, 1) for h in hashes(name, "train", 1500, seed=seed)}
    held_out = WORLDS[name].sizes["test"]
    test = {h for seed in (0, 7) for h in hashes(name, "test", held_out, seed=seed)}
    assert len(test) > held_out
    assert not train & test


@pytest.mark.parametrize("name", sorted(WORLDS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_prompts_are_all_different(name, seed):
    held_out = WORLDS[name].sizes["test"]
    assert len(set(hashes(name, "test", held_out, seed=seed))) == held_out


def test_the_split_ignores_what_is_asked_and_the_order_of_objects():
    world = open_world("shapes", difficulty=3, size=30)
    for index in range(30):
        scene = world.scene(index)[1]
        other = {**scene, "objects": scene["objects"][::-1], "skill": "something else"}
        assert picture_hash(other) == picture_hash(scene)
        assert split_of(other) == split_of(scene) == "train"
        assert picture_hash({**scene, "background": "none"}) != picture_hash(scene)


def test_held_out_handwriting_is_never_shown_in_training():
    def shown(split: str, seed: int) -> set[int]:
        world = open_world("digits", split=split, size=300, difficulty=3, seed=seed)
        return {digit for i in range(300) for digit in world.scene(i)[1]["cells"]}

    train, test = shown("train", 0), shown("test", 1)
    assert len(train) > 500 and len(test) > 200
    assert not train & test


def test_another_process_draws_the_same_scenes():
    names = sorted(WORLDS)
    command = [sys.executable, "-c", FINGERPRINT, *names]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    here = []
    for name in names:
        world = open_world(name, size=20, seed=3, difficulty=(2, 5))
        scenes = json.dumps([world.scene(i) for i in range(20)], sort_keys=True)
        here.append(hashlib.sha256(scenes.encode()).hexdigest())
    assert here == there


def test_another_seed_draws_other_scenes():
    assert not set(hashes("shapes", "train", 100, seed=0)) & set(hashes("shapes", "train", 100, seed=1))


def test_an_index_means_the_same_prompt_whatever_is_read_before_and_however_many_there_are():
    late = open_world("stills", split="test", size=40)[30]
    small = open_world("stills", split="test", size=31)
    assert small[30].columns == late.columns
    assert small.ids()[30] == late.id


def load(scene: dict) -> int:
    """What makes a scene hard, as a number: things to look at, over all frames."""
    if "digits" in scene:
        return len(scene["digits"])
    if "cells" in scene:
        return sum(cell >= 0 for cell in scene["cells"])
    things = sum(each.get("count", 1) for each in scene["objects"])
    return things * scene.get("frames", 1)


@pytest.mark.parametrize("name", sorted(WORLDS.keys() - {"fine_print", "flashes"}))
def test_difficulty_adds_things_to_look_at(name):
    means = []
    for level in range(1, 6):
        world = open_world(name, difficulty=level, size=300)
        means.append(sum(load(world.scene(i)[1]) for i in range(300)) / 300)
    assert means == sorted(means)
    assert means[4] > 1.5 * means[0]


def test_a_range_of_difficulties_is_drawn_from():
    world = open_world("shapes", difficulty=(2, 4), size=60)
    assert {world[i].columns["difficulty"] for i in range(60)} == {2, 3, 4}


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_prompts_carry_what_rewards_and_policies_read(name, tmp_path):
    world = open_world(name, split="test", size=3, difficulty=3, root=tmp_path)
    assert len(world) == len(world.ids()) == 3
    for index, id in enumerate(world.ids()):
        prompt = world[index]
        assert prompt.id == id
        assert prompt.columns["solution"] and prompt.columns["task"] and prompt.columns["difficulty"] == 3
        assert json.loads(json.dumps(prompt.columns)) == prompt.columns
        assert prompt.text
    with pytest.raises(IndexError):
        world[3]


def test_mistakes_name_the_nearest_choice():
    with pytest.raises(DataError, match="did you mean 'shapes'"):
        open_world("shape")
    with pytest.raises(DataError, match="did you mean 'train'"):
        open_world("shapes", split="training")
    with pytest.raises(DataError, match="from 1 to 5"):
        open_world("shapes", difficulty=6)
    with pytest.raises(DataError, match="lowest, highest"):
        open_world("shapes", difficulty=(4, 2))


def test_counting_a_single_digit_is_refused():
    with pytest.raises(DataError, match=r"difficulty 1 shows one digit.*expected difficulty 2 or more"):
        open_world("stills", split="train", size=1, difficulty=1, skills=["count"])[0]


def test_asking_for_more_scenes_than_there_are_says_so():
    with pytest.raises(DataError, match="no 200 different test scenes"):
        open_world("compositions", split="test", difficulty=1, size=200)[0]
