"""AdamW by name: fused and eight bits beside the reference, state on the CPU, and checkpoints that fit them all."""

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
