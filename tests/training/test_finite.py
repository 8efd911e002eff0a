"""Nothing steps on garbage: what is not finite stops by name, moves nothing and is never saved."""

import json

import pytest
import torch

from mmrl.errors import ConfigError, NonFiniteError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.run import check_config
from mmrl.training import checkpoint
from mmrl.training.optimizer import MasterAdamW
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from tests.training.test_trainer import make_trainer, weights_of
from tests.training.tiny import make_policy, score_vowels


def damage_gradient(monkeypatch, at_step: int, value: float) -> None:
    step = Trainer._optimizer_step

    def damaged(self, share=1.0):
        if self.step == at_step:
            next(p for p in self.policy.module.parameters() if p.grad is not None).grad.view(-1)[0] = value
        return step(self, share)

    monkeypatch.setattr(Trainer, "_optimizer_step", damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tmp_path, monkeypatch, value):
    damage_gradient(monkeypatch, 1, value)
    trainer = make_trainer(tmp_path, steps=4, save_every=0)
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    message = str(raised.value)
    assert message.startswith("step 2, optimizer step 1: the gradient of '") and "member 0" in message
    assert all(bool(v.isfinite().all()) for v in weights_of(trainer).values())
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [1], "the last good state"


def test_it_may_be_left_out_and_is_counted(tmp_path, monkeypatch):
    damage_gradient(monkeypatch, 1, float("nan"))
    trainer = make_trainer(tmp_path, steps=3, skip_nonfinite=True)
    assert trainer.train().steps == 3
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [m["updates/skipped"] for m in lines] == [0, 1, 0]
    assert "step 2, optimizer step 1: the gradient of" in lines[1]["skipped"][0]
    assert trainer.updates == 2
    assert all(bool(v.isfinite().all()) for v in weights_of(trainer).values())
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)


def test_a_loss_that_is_not_finite_names_the_component_and_the_rows(tmp_path):
    policy = make_policy()
    evaluate = policy.evaluate

    def overflowing(rollouts, needs=(), **options):
        evaluation = evaluate(rollouts, needs, **options)
        if torch.is_grad_enabled():
            bad = (rollouts.group == 1) & (rollouts.member == 2)
            evaluation.log_probs = torch.where(bad[:, None], torch.nan, evaluation.log_probs)
        return evaluation

    policy.evaluate = overflowing
    trainer = make_trainer(tmp_path, policy, micro_batch_size=4)
    prompts = trainer.collector.prompts
    with pytest.raises(
        NonFiniteError, match=r"the loss is not finite: the log-probs of prompt '(p\d+)' member 2;"
    ) as e:
        trainer.train()
    assert any(p.id in str(e.value) for p in prompts)
    assert trainer.updates == 0 and checkpoint.checkpoints(tmp_path) == []


def test_a_reward_that_is_infinite_stops_before_the_update(tmp_path):
    def huge(outputs, prompts):
        scores = score_vowels(outputs, prompts)
        scores.reward[3] = float("inf")
        return scores

    trainer = make_trainer(tmp_path, score=huge, steps=1)
    with pytest.raises(NonFiniteError, match=r"the advantages of prompt '.*' member 0"):
        trainer.train()


def test_a_policy_that_cannot_act_is_stopped_by_name_and_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, steps=4, save_every=0)
    trainer.config.__dict__["learning_rate"] = 1e10  # no configuration may say so
    with pytest.raises(NonFiniteError, match="not finite") as raised:
        trainer.train()
    assert checkpoint.checkpoints(tmp_path) == []
    notes = getattr(raised.value, "__notes__", [])
    assert any("are not saved" in note for note in notes) or "after step" in str(raised.value)


def test_weights_that_are_not_finite_are_neither_trained_nor_saved_nor_loaded(tmp_path):
    trainer = make_trainer(tmp_path, steps=1)
    trainer.train()
    parameter = next(p for p in trainer.policy.module.parameters() if p.requires_grad)
    with torch.no_grad():
        parameter.view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match="is not written"):
        trainer.save()
    with pytest.raises(NonFiniteError, match="before training"):
        trainer.train()
    path = checkpoint.latest(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(path / "trainable.safetensors")
    state[next(iter(state))].view(-1)[0] = torch.inf
    save_file(state, path / "trainable.safetensors")
    with pytest.raises(NonFiniteError, match=r"trainable.safetensors: the weights of '"):
        checkpoint.load_weights(path, make_policy())


def test_trained_float16_weights_are_refused_and_what_works_is_named():
    base = {"policy": {"model": "m", "dtype": "float16"}, "rewards": [{"name": "accuracy"}]}
    with pytest.raises(ConfigError, match=r"policy\.autocast=float16"):
        check_config(read_config(base, [], "vlm"))
    check_config(read_config(base, ["policy.lora={rank: 4}"], "vlm"))


class TestMasterWeights:
    """AdamW on float32 copies of weights of lower precision."""

    def trained(self, dtype: torch.dtype, steps: int = 50) -> tuple[torch.Tensor, MasterAdamW]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter((torch.randn(4096) * 0.02).to(dtype))
        optimizer = MasterAdamW([weight], lr=1e-6, weight_decay=0.0)
        start = weight.detach().float().clone()
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        now = optimizer.state[weight].get("master", weight).float()
        return now.detach() - start, optimizer

    def test_float32_is_torch_s_adamw_bit_for_bit(self):
        torch.manual_seed(0)
        values, gradients = torch.randn(64), torch.randn(5, 64)
        ours, theirs = (torch.nn.Parameter(values.clone()) for _ in range(2))
        pair = [(ours, MasterAdamW([ours], lr=1e-2)), (theirs, torch.optim.AdamW([theirs], lr=1e-2))]
        for gradient in gradients:
            for parameter, optimizer in pair:
                parameter.grad = gradient.clone()
                optimizer.step()
        assert torch.equal(ours, theirs)
        assert float(pair[0][1].moved.changed) == 64

    def test_bfloat16_weights_go_as_far_as_float32_ones(self):
        far, _ = self.trained(torch.float32)
        low, optimizer = self.trained(torch.bfloat16)
        assert low.mean() == pytest.approx(far.mean().item(), rel=1e-3)
        assert float(optimizer.moved.changed) / optimizer.moved.total > 0.99
        weight = next(iter(optimizer.state))
        assert torch.equal(weight.detach(), optimizer.state[weight]["master"].bfloat16()), "the model has them rounded"

    def test_what_is_saved_goes_on_bit_for_bit(self, tmp_path):
        def policy():
            made = make_policy()
            made.module.to(torch.bfloat16)
            return made

        straight = make_trainer(tmp_path / "straight", policy(), steps=2, learning_rate=1e-5)
        straight.train()
        first = make_trainer(tmp_path / "resumed", policy(), steps=2, learning_rate=1e-5)
        first.train_step()
        first.step += 1
        first.save()
        second = make_trainer(tmp_path / "resumed", policy(), steps=2, learning_rate=1e-5)
        second.train(checkpoint.latest(tmp_path / "resumed"))
        states = [
            [t.adamw.state[p] for p in t.policy.module.parameters() if p in t.adamw.state] for t in (straight, second)
        ]
        assert len(states[0]) > 0
        for one, other in zip(*states, strict=True):
            assert torch.equal(one["master"], other["master"])
        assert read_metrics(tmp_path / "straight" / "metrics.jsonl")[-1]["update/moved_fraction"] > 0.5
