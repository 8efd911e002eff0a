"""The tiny next-scale model: its quantiser, which scale sees which, and its files."""

import pytest
import torch

from mmrl.errors import DataError
from mmrl.policies.scales.model import NextScaleConfig, NextScaleModel, centres, nearest
from mmrl.policies.scales.protocol import checked, write
from mmrl.randomness import Key

SHAPE = {
    "sides": (1, 2, 4), "patch": 2, "codes": 8, "words": ["blue", "left", "red"], "width": 16, "layers": 2, "heads": 2,
}  # fmt: skip
TEXTS = ["red left", "Blue, left"]


def model_of(**others) -> NextScaleModel:
    torch.manual_seed(0)
    model = NextScaleModel(NextScaleConfig(**(SHAPE | others))).eval()
    model.fit(pictures(64), Key(0))
    return model


def pictures(count: int) -> torch.Tensor:
    """8 x 8, halves of two of three colours."""
    key = torch.Generator().manual_seed(1)
    colors = torch.eye(3)[torch.randint(3, (count, 2), generator=key)]
    return torch.cat([colors[:, side, :, None, None].expand(-1, 3, 8, 4) for side in range(2)], 3)


@pytest.mark.parametrize("residual", [False, True])
def test_pictures_come_back_from_their_tokens(residual):
    """Nine pictures of halves: eight codes a scale hold every patch, of which there are three, and residuals nearly."""
    model, shown = model_of(residual=residual), pictures(16)
    tokens = model.tokens(shown)
    assert [each.shape for each in tokens] == [(16, 1), (16, 4), (16, 16)]
    error = (model.decode(tokens) - shown).abs().mean()
    assert error < (0.1 if residual else 1e-6)
    assert error < (model.decode(tokens[:1]) - shown).abs().mean() / 2  # finer scales make it better


def test_residual_scales_add_up_and_plain_ones_replace():
    """A coarse token is still in a VAR's picture, and no longer in a FlexVAR's."""
    for residual in (False, True):
        model = model_of(residual=residual)
        tokens = model.tokens(pictures(4))
        moved = [(tokens[0] + 1) % 3, *tokens[1:]]
        assert torch.equal(model.decode(tokens), model.decode(moved)) is not residual
        assert torch.equal(model.next_input(tokens[:2]), model.next_input(moved[:2])) is not residual


def test_a_scale_sees_coarser_ones_and_itself_alone():
    model = model_of()
    tokens = model.tokens(pictures(2))
    inputs = [model.next_input(tokens[:1]), model.next_input(tokens[:2])]
    before = model.logits(TEXTS, inputs)
    after = model.logits(TEXTS, [inputs[0], inputs[1] + 1])
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])
    middle = inputs[0].clone()
    middle[:, -1] += 1  # the last token of scale 2: its neighbours and scale 3 see it, scale 1 does not
    after = model.logits(TEXTS, [middle, inputs[1]])
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1][:, 0], after[1][:, 0])
    assert not torch.allclose(before[2], after[2])


def test_the_first_scales_alone_say_the_same_as_among_all():
    """What writing scale by scale asks is what training asked."""
    model = model_of()
    tokens = write(model, TEXTS, 3, Key(3))
    inputs = [model.next_input(tokens[:1]), model.next_input(tokens[:2])]
    for scale in range(3):
        torch.testing.assert_close(model.logits(TEXTS, inputs[:scale])[-1], model.logits(TEXTS, inputs)[scale])


def test_saved_and_loaded_it_is_the_same_model(tmp_path):
    model = checked(model_of(residual=True), "tiny")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = NextScaleModel.from_pretrained(tmp_path).eval()
    assert again.config.residual and torch.equal(again.codebooks, model.codebooks)
    assert all(map(torch.equal, write(again, TEXTS, 3, Key(5)), write(model, TEXTS, 3, Key(5))))


def test_unknown_words_and_other_sizes_are_refused():
    model = model_of()
    with pytest.raises(DataError, match="text 'reed left': unknown word 'reed'; did you mean 'red'"):
        model.logits(["reed left"], [])
    with pytest.raises(DataError, match=r"pictures are 16 x 16, and the model writes 8 x 8: patch=2 times 4"):
        model.tokens(torch.zeros(1, 3, 16, 16))
    assert not torch.equal(*(model.logits([text], [])[0] for text in TEXTS))


def test_centres_are_the_vectors_where_there_are_few_and_means_where_there_are_many():
    few = torch.tensor([[0.0], [0.0], [1.0]])
    assert centres(few, 3, Key(0)).unique().tolist() == [0.0, 1.0]
    many = torch.tensor([[0.0], [0.2], [0.8], [1.0]])
    assert centres(many, 2, Key(0)).sort(0).values.flatten().tolist() == pytest.approx([0.1, 0.9], abs=1e-3)
    assert nearest(many, torch.tensor([[0.1], [0.9]])).tolist() == [0, 0, 1, 1]
