"""What the tiny bases of clips and edits learn from, before anything is trained."""

import random

from mmrl.data.worlds import open_world
from mmrl.data.worlds.edits import after
from mmrl.data.worlds.scenes import split_of
from mmrl.pipelines.bases import clips, edits
from mmrl.pipelines.bases.generators import LENGTH, WORDS
from mmrl.pipelines.bases.tokenizers import t5_tokenizer
from mmrl.rewards.edited import verify


def test_words_of_captions_and_instructions_are_one_token_each():
    tokenizer = t5_tokenizer(LENGTH, WORDS)
    for name in ("moves", "edits"):
        world = open_world(name, difficulty=(1, 5), size=40)
        for index in range(40):
            text = world[index].text.replace(",", " ,")
            assert len(tokenizer(text)["input_ids"]) <= min(len(text.split()) + 4, LENGTH), text


def test_mistaken_clips_are_never_held_out_ones_and_differ_as_often_as_asked():
    world, rng = open_world("moves", size=300, difficulty=1), random.Random(0)
    pairs = [(scene, clips.mistaken(scene, {"motion": 0.5}, rng)) for scene in (world.scene(i)[1] for i in range(300))]
    assert all(split_of(changed) == "train" for _, changed in pairs)
    assert 0.3 < sum(scene != changed for scene, changed in pairs) / 300 < 0.6
    assert all(each == clips.mistaken(each, {}, rng) for each, _ in pairs[:20])


def test_edits_without_mistakes_are_right_and_with_them_often_not():
    world, rng = open_world("edits", size=200), random.Random(0)
    scenes = [world.scene(index)[1] for index in range(200)]
    assert all(edits.mistaken(scene, {}, rng) == after(scene) for scene in scenes)
    drawn = [world.world.render(scene, edits.mistaken(scene, edits.WRONG, rng)) for scene in scenes]
    right = sum(verify(picture, scene)["success"] for picture, scene in zip(drawn, scenes, strict=True)) / 200
    assert 0.3 < right < 0.7
