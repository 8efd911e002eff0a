"""Caches written in place: the same keys and values, views that nobody has to copy, rows that leave."""

import pytest
import torch

from mmrl.policies.language.fast.shared_decode import SharedPrefix, _at_once, _joined
from mmrl.policies.language.fast.written import BLOCK, Growing, in_place


def joined(parts):
    return torch.cat(parts, dim=2)


class TestGrowing:
    def test_is_what_joining_makes(self):
        """Over several blocks, and with more than one token at a time."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(3, 2, 1 + i % 2, 4, generator=generator) for i in range(2 * BLOCK)]
        grown, written = Growing(), parts[0][:, :, :0]
        for part in parts:
            written = grown.add(written, part)
        assert torch.equal(written, joined(parts))

    def test_a_token_moves_no_other(self):
        grown, new = Growing(), torch.ones(2, 1, 1, 4)
        first = grown.add(new[:, :, :0], new)
        second = grown.add(first, 2 * new)
        assert second.data_ptr() == first.data_ptr() and torch.equal(second[:, :, :1], first)

    def test_rows_that_stay_go_on_in_place(self):
        grown, new = Growing(), torch.arange(4.0).view(4, 1, 1, 1)
        kept = grown.choose(grown.add(new[:, :, :0], new), torch.tensor([1, 3]))
        after = grown.add(kept, new[:2] + 10)
        assert after.flatten(1).tolist() == [[1.0, 10.0], [3.0, 11.0]] and after.data_ptr() == kept.data_ptr()

    def test_what_took_its_place_is_what_goes_on(self):
        """A cache cropped or reordered by someone else."""
        grown, new = Growing(), torch.arange(4.0).view(4, 1, 1, 1)
        fewer = grown.add(grown.add(new[:, :, :0], new)[:2], new[:2])
        assert fewer.flatten(1).tolist() == [[0.0, 0.0], [1.0, 1.0]]
        assert grown.add(new.flip(0).clone(), new).flatten(1)[:, 0].tolist() == [3.0, 2.0, 1.0, 0.0]

    def test_matrix_products_read_the_view_as_it_is(self):
        """One distance between rows and heads, tokens behind one another: (B H, t, d) needs no copy."""
        grown, new = Growing(), torch.ones(2, 3, 1, 4)
        written = grown.add(grown.add(new[:, :, :0], new), new)
        assert written.view(6, 2, 4).data_ptr() == written.data_ptr()


def test_the_cache_of_transformers_takes_it():
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(1)
    plain, ours = DynamicCache(), DynamicCache()
    for cache in (plain, ours):
        cache.update(torch.zeros(3, 2, 0, 4), torch.zeros(3, 2, 0, 4), 0)
        cache.reset()
    in_place(ours)
    for step in range(BLOCK + 3):
        new = torch.randn(2, 3 if step < 5 else 2, 2, 1, 4, generator=generator)
        found = [cache.update(new[0], new[1], 0) for cache in (plain, ours)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        if step == 4:
            for cache in (plain, ours):
                cache.batch_select_indices(torch.tensor([2, 0]))
    assert ours.get_seq_length() == plain.get_seq_length() == BLOCK + 3
    assert ours.layers[0].keys.data_ptr() == found[1][0].data_ptr()


@pytest.mark.parametrize("padded", [False, True], ids=["one length", "padded"])
@pytest.mark.parametrize("context", [[0, 0, 1, 1], [0, 0, 0, 1]], ids=["even", "uneven"])
def test_two_kernels_are_one_softmax(padded, context):
    from types import SimpleNamespace

    generator = torch.Generator().manual_seed(2)
    keys, values = torch.randn(2, 2, 2, 7, 8, generator=generator)
    own = torch.randn(2, 4, 2, 5, 8, generator=generator)
    query = torch.randn(4, 2, 3, 8, generator=generator)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, :3] = not padded
    layer = SimpleNamespace(keys=keys, values=values)
    prefix = SharedPrefix.of(SimpleNamespace(layers=[layer]), real, torch.tensor(context))
    one, other = (way(query, own[0], own[1], layer, prefix, 0.3) for way in (_joined, _at_once))
    assert (one - other).abs().max() < 1e-6
    if padded:
        keys[1, :, :3] += 100.0
        assert torch.equal(_joined(query, own[0], own[1], layer, prefix, 0.3), one)
