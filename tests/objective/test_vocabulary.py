"""Tokens by their text: found by the tokenizer, refused where they are several, and the loss of their ids."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective.vocabulary import name_tokens, numbers
from mmrl.record import Batch
from mmrl.stages import Bound

WORDS = {"<line>": [7], "<shape>": [9], "</fps>": [3, 4], "": []}


def bound(name: str, **options) -> Bound:
    return Bound.of("credit", {"name": name, **options})


def test_texts_and_ids_may_stand_together():
    atlas, marker = (
        bound("atlas_la_grpo", tokens=["<line>", 5, "<shape>"]),
        bound("dynframe_sd_grpo", marker=["</fps>"]),
    )
    name_tokens([atlas, marker], WORDS.__getitem__)
    assert atlas.parameters["tokens"] == [7, 5, 9] and marker.parameters["marker"] == [3, 4]


@pytest.mark.parametrize(("text", "count"), [("</fps>", 2), ("", 0)])
def test_a_functional_token_is_one(text, count):
    with pytest.raises(ConfigError, match=rf"credit 'atlas_la_grpo': tokens: '{text}' is {count} tokens"):
        name_tokens([bound("atlas_la_grpo", tokens=[text])], WORDS.__getitem__)


def test_what_was_named_weighs_as_its_id_does():
    batch = Batch(
        mask=torch.ones(1, 4, dtype=torch.bool), old_log_probs=torch.zeros(1, 4), reward=torch.ones(1),
        group=torch.zeros(1).long(), actions=torch.tensor([[1, 7, 2, 3]]),
    )  # fmt: skip
    by_text, by_id = bound("atlas_la_grpo", tokens=["<line>"]), bound("atlas_la_grpo", tokens=[7])
    name_tokens([by_text], WORDS.__getitem__)
    found, expected = (each(torch.ones(1, 4), batch)[0] for each in (by_text, by_id))
    assert torch.equal(found, expected) and found[0].tolist() == pytest.approx([1, 1.4, 1, 1])


def test_without_a_tokenizer_texts_are_refused():
    assert numbers([1, 2], "x") == [1, 2]
    with pytest.raises(ConfigError, match="'<line>' is a text, and there is no tokenizer here"):
        numbers([1, "<line>"], "credit 'atlas_la_grpo': tokens")
