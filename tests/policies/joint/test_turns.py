"""Text, picture, text, picture: the writer looks at what was drawn, and both act again in the same row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrl.batch import KINDS
from mmrl.errors import ConfigError
from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.policies.joint.config import JointConfig
from mmrl.policies.joint.policy import JointPolicy
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Request, Rollouts
from tests.policies.generation.tiny import flow_policy
from tests.policies.language.scenes import mixed_prompts

TURNS = [
    {"by": "writer"},
    {"by": "painter", "ask": "one {text}"},
    {"by": "writer", "ask": "Is this {text_1}?"},
    {"by": "painter", "ask": "{text_1} and {text}"},
]


@pytest.fixture(scope="module")
def actor() -> JointPolicy:
    writer = VisionPolicy(*tiny_vlm("qwen3_vl", 0), LanguagePolicyConfig(model="tiny", max_new_tokens=4))
    return JointPolicy(writer, flow_policy(lora=None, steps=3), turns=TURNS)


@pytest.fixture(scope="module")
def rows(actor) -> Rollouts:
    return actor.rollout([Request(p, 2, group=i) for i, p in enumerate(mixed_prompts()[:2])], Key(3))


def test_every_stretch_is_scored_as_it_was_sampled(actor, rows):
    kinds = [KINDS[int(rows.columns["kind"][0, t])] for t in (0, 4, 7, 11)]
    assert kinds == ["tokens", "transition", "tokens", "transition"] and rows.mask.shape == (4, 14)
    old, new, mask = actor.replayed(rows)
    assert (new - old).abs()[mask].max() < 1e-4
    few = torch.tensor([3, 0])
    assert torch.allclose(actor.evaluate(rows.index(few)).log_probs, old[few], atol=1e-4)
    assert all(len(told) == 4 and len(told.texts) == 2 for told in rows.outputs)
    assert rows.columns["segment"][mask].unique().tolist() == [0, 1, 2, 3]
    labels = actor.action_labels(rows)
    assert labels[0][4].startswith("t=") and labels[0][11].startswith("t=")


def test_the_writer_sees_what_was_drawn(actor, rows):
    asked = actor._all_asked(rows, 2)[1]
    prompt, told = rows.prompts[1], rows.outputs[1]
    roles = [message["role"] for message in asked.messages]
    assert roles == [*(m["role"] for m in prompt.messages), "assistant", "user"]
    assert asked.messages[-2]["content"] == told.part("text_1")
    last = asked.messages[-1]["content"]
    assert [part["type"] for part in last] == ["image", "text"] and last[1]["text"] == f"Is this {told.part('text_1')}?"
    assert np.array_equal(asked.images[-1], told.part("picture_1")) and len(asked.images) == len(prompt.images) + 1
    swapped = rows.index(torch.arange(4))
    swapped.outputs[0].stretches[1], swapped.encoded[0].each[2] = swapped.outputs[0].stretches[1].rotate(90), None
    swapped.encoded[0].each[2] = actor.writer.encode(actor._all_asked(swapped, 2)[0])
    again = actor.evaluate(swapped).log_probs
    place = rows.columns["segment"][0]
    assert not torch.allclose(again[0, place == 2], rows.old_log_probs[0, place == 2], atol=1e-4), "another picture"
    assert torch.allclose(again[0, place == 0], rows.old_log_probs[0, place == 0], atol=1e-4)


def section(turns, writer=None):
    return JointConfig(writer=writer or {"model": "x"}, painter={"model": "y"}, turns=turns)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"by": "writer"}], "the painter has no turn"),
        ([{"by": "writer", "ask": "x"}, TURNS[1]], "asked nothing more"),
        ([TURNS[0], {"by": "painter"}], "asked for nothing"),
        ([TURNS[0], {"by": "painter", "ask": "{text_2}"}], "not written yet; texts before this turn: {text}"),
        ([TURNS[0], {"by": "painter", "ask": "{picture}"}], "not written yet"),
        ([*TURNS[:2], {"by": "writer", "ask": "{picture}"}], "is a picture; a writer that reads images is shown it"),
        ([TURNS[0], {"by": "painter", "ask": "{"}], "a brace itself is written twice"),
        ([TURNS[0], {"by": "painter", "ask": "{0}"}], "expected a name"),
        ([*TURNS[:2], {"by": "writer"}], "what is the writer told here"),
    ],
)
def test_turns_that_make_no_sense_are_refused(turns, said):
    with pytest.raises(ConfigError) as refused:
        section(turns)
    assert said in str(refused.value)


def test_who_cannot_look_cannot_answer_a_picture():
    with pytest.raises(ConfigError, match="a masked writer cannot see what was drawn before its turn"):
        section(TURNS, {"modality": "masked", "model": "x"})
