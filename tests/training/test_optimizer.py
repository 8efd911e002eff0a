"""Optimizers by name: fused, eight bits and Muon beside the reference, state on the CPU, and checkpoints that fit."""

import importlib.util

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.training import optimizer as module
from mmrl.training.eight_bits import Packed
from mmrl.training.optimizer import MasterAdamW, OptimizerConfig, whole_state

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: eight bits were not run"
)


def trained(steps: int = 20, dtype: torch.dtype = torch.float32, kept: OptimizerConfig | None = None, start=None):
    """A weight of 64 x 128 after steps with keyed gradients, and its optimizer."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 128, generator=generator).to(dtype))
    optimizer = MasterAdamW([weight], kept, lr=1e-2, weight_decay=0.1)
    if start is not None:
        optimizer.state[weight].update(start)
    for _ in range(steps):
        weight.grad = torch.randn(64, 128, generator=generator).to(dtype)
        optimizer.step()
    return weight, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_the_same_to_rounding(dtype):
    (plain, _), (fused, optimizer) = trained(dtype=dtype), trained(dtype=dtype, kept=OptimizerConfig(name="fused"))
    assert (plain.float() - fused.float()).abs().max() < (1e-6 if dtype is torch.float32 else 0.02)
    assert optimizer.moved.total == 64 * 128 and optimizer.moved.finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_state_is_the_same_bit_for_bit(dtype):
    (plain, _), (moved, optimizer) = trained(dtype=dtype), trained(dtype=dtype, kept=OptimizerConfig(offload=True))
    assert torch.equal(plain, moved)
    assert {t.device.type for t in optimizer.state[moved].values()} == {"cpu"}


def test_offloaded_weights_pass_by_as_copies(monkeypatch):
    """Where a weight is elsewhere, the step is made on a copy that is put back: here the copy is forced."""
    monkeypatch.setattr(MasterAdamW, "_master", _copied(MasterAdamW._master))
    moved, optimizer = trained(kept=OptimizerConfig(offload=True))
    monkeypatch.undo()
    plain, reference = trained()
    assert torch.equal(plain, moved) and torch.equal(optimizer.moved.changed, reference.moved.changed)


def _copied(master):
    return lambda self, parameter: master(self, parameter).detach().clone()


@needs_bitsandbytes
class TestEightBits:
    KEPT = OptimizerConfig(name="8bit")

    def test_moments_take_a_byte_a_weight(self):
        weight, optimizer = trained(kept=self.KEPT)
        state = optimizer.state[weight]
        assert all(isinstance(state[n], Packed) and state[n].codes.dtype == torch.uint8 for n in module.MOMENTS)
        assert sum(state[n].codes.numel() for n in module.MOMENTS) == 2 * weight.numel()

    def test_it_goes_where_adamw_goes(self):
        (plain, _), (small, _) = trained(100), trained(100, kept=self.KEPT)
        start, _ = trained(0)
        moved, apart = plain - start, small - plain
        assert apart.norm() / moved.norm() < 0.05
        assert not torch.equal(plain, small)  # else eight bits were not in play

    def test_a_checkpoint_is_float32_and_goes_on_either_way(self):
        weight, optimizer = trained(kept=self.KEPT)
        state = whole_state(optimizer.state[weight], weight)
        assert {t.dtype for t in state.values()} == {torch.float32}
        assert state["exp_avg"].shape == weight.shape
        _, plain = trained(20)
        relative = (state["exp_avg"] - plain.state[next(iter(plain.state))]["exp_avg"]).norm() / state["exp_avg"].norm()
        assert relative < 0.05
        for kept in (self.KEPT, OptimizerConfig()):
            again, _ = trained(1, kept=kept, start={k: v.clone() for k, v in state.items()})
            assert torch.isfinite(again).all()

    def test_small_tensors_stay_whole(self):
        weight = torch.nn.Parameter(torch.ones(64))
        optimizer = MasterAdamW([weight], self.KEPT, lr=0.1)
        weight.grad = torch.ones(64)
        optimizer.step()
        assert isinstance(optimizer.state[weight]["exp_avg"], torch.Tensor)


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("mmrl.training.eight_bits.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, which is not installed: pip install 'mmrl\[8bit\]'"):
        MasterAdamW([torch.nn.Parameter(torch.ones(2))], OptimizerConfig(name="8bit"))


class Small(torch.nn.Module):
    """An embedding that is the head too, a hidden matrix and its bias."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding, self.hidden = torch.nn.Embedding(8, 16), torch.nn.Linear(16, 24)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def get_output_embeddings(self):
        return self.embedding


class TestMuon:
    KEPT = OptimizerConfig(name="muon")

    def stepped(self, optimizer_of, steps: int = 3, dtype: torch.dtype = torch.float32):
        model = Small().to(dtype)
        optimizers = optimizer_of(model)
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            for optimizer in optimizers:
                optimizer.step()
        return model, optimizers

    def ours(self, model):
        options = {"lr": 1e-2, "weight_decay": 0.1}
        return [MasterAdamW(list(model.parameters()), self.KEPT, module=model, **options)]

    def test_it_is_torch_s_on_hidden_matrices_and_adamw_elsewhere(self):
        def theirs(model):
            options = {"lr": 1e-2, "weight_decay": 0.1}
            hidden, rest = [model.hidden.weight], [model.embedding.weight, model.hidden.bias]
            muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options)
            return [muon, torch.optim.AdamW(rest, **options)]

        (mine, _), (reference, _) = self.stepped(self.ours), self.stepped(theirs)
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), reference.parameters(), strict=True))

    def test_a_step_is_as_long_in_every_direction(self):
        """Singular values of the step are within a factor of two of each other; AdamW's are not."""
        (muon, _), (adamw, _) = (
            self.stepped(make, 1)
            for make in (self.ours, lambda m: [MasterAdamW(list(m.parameters()), lr=1e-2, weight_decay=0.0)])
        )
        spread = [
            torch.linalg.svdvals(m.hidden.weight.detach() - (1 - d) * Small().hidden.weight.detach())
            for m, d in ((muon, 1e-3), (adamw, 0.0))
        ]
        assert spread[0].max() < 2 * spread[0].min() and spread[1].max() > 4 * spread[1].min()

    def test_a_matrix_keeps_one_moment_and_low_weights_a_master(self):
        model, (optimizer,) = self.stepped(self.ours, dtype=torch.bfloat16)
        assert set(optimizer.state[model.hidden.weight]) == {"step", "exp_avg", "master"}
        assert "exp_avg_sq" in optimizer.state[model.embedding.weight]
        assert optimizer.moved.total == sum(p.numel() for p in model.parameters())

    def test_from_adamw_it_goes_on_and_back_it_says_why_not(self):
        model, (muon,) = self.stepped(self.ours)
        weight = model.hidden.weight
        back = MasterAdamW([weight])
        back.state[weight].update(whole_state(muon.state[weight], weight))
        with pytest.raises(ConfigError, match=r"has no exp_avg_sq, which muon does not keep; go on with .*name=muon"):
            back.step()
        there = MasterAdamW([weight], self.KEPT, module=model)
        there.state[weight].update({n: torch.zeros_like(weight) for n in module.MOMENTS} | {"step": torch.zeros(())})
        there.step()
        assert set(there.state[weight]) == {"step", "exp_avg"}

    def test_a_torch_without_it_is_named(self, monkeypatch):
        monkeypatch.delattr(torch.optim, "Muon")
        with pytest.raises(ConfigError, match=r"needs a torch with torch.optim.Muon, this is"):
            MasterAdamW([torch.nn.Parameter(torch.ones(2))], self.KEPT)
