"""A batch of rows that are partly tokens and partly denoising steps: its loss is that of its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrl.batch import KINDS, Batch, Evaluation
from mmrl.errors import ConfigError
from mmrl.kinds import Places
from mmrl.objective import MixedObjective, Objective, compute, explain

TOKENS, STEPS = KINDS.index("tokens"), KINDS.index("transition")
LENGTHS, COUNT, GROUPS = (5, 3, 7, 2), 3, torch.tensor([0, 0, 1, 1])
OBJECTIVES = {
    "tokens": {"trust_region": {"name": "clip", "high": 0.28}, "aggregation": "token_mean"},
    "transition": {
        "ratio": "sequence",
        "aggregation": "sequence_mean",
        "regularizers": [{"name": "kl", "coefficient": 0.04}],
    },
}
COEFFICIENTS = {"tokens": 1.0, "transition": 0.3}


def written_out(length: int, seed: int, mask: Tensor) -> dict[str, Tensor]:
    """A part by itself: old, new and reference log-probs."""
    generator = torch.Generator().manual_seed(seed)
    old, moved, reference = (torch.randn(4, length, generator=generator, dtype=torch.float64) for _ in range(3))
    names = {
        "old_log_probs": -old.abs(),
        "new": -old.abs() + 0.1 * moved,
        "ref_log_probs": -old.abs() + 0.1 * reference,
    }
    return {"mask": mask} | {name: value * mask for name, value in names.items()}


def parts() -> dict[str, dict[str, Tensor]]:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    steps = torch.ones(4, COUNT, dtype=torch.bool)
    return {"tokens": written_out(max(LENGTHS), 0, mask), "transition": written_out(COUNT, 1, steps)}


def concatenated(values: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each row's tokens, its steps behind the last of them, and padding."""
    rows: dict[str, list[Tensor]] = {name: [] for name in (*values["tokens"], "kind")}
    for row, length in enumerate(LENGTHS):
        for name in values["tokens"]:
            rows[name].append(torch.cat([values["tokens"][name][row, :length], values["transition"][name][row]]))
        rows["kind"].append(torch.cat([torch.full((length,), TOKENS), torch.full((COUNT,), STEPS)]))
    pad = torch.nn.utils.rnn.pad_sequence
    return {name: pad(each, batch_first=True, padding_value=0) for name, each in rows.items()}


REWARD = torch.tensor([1.0, 0.0, 0.2, 0.9], dtype=torch.float64)


def loss_of(recipe, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    new = values["new"].clone().requires_grad_()
    batch = {k: v for k, v in values.items() if k != "new"} | {"reward": REWARD, "group": GROUPS}
    loss = compute(recipe, batch, new)
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient


def mixed(**more) -> dict:
    return {"kinds": {kind: {**own, "coefficient": COEFFICIENTS[kind]} for kind, own in OBJECTIVES.items()}, **more}


class TestLoss:
    def test_loss_and_gradient_are_those_of_the_parts_written_out(self):
        values = parts()
        whole, gradient = loss_of(mixed(), concatenated(values))
        alone = {kind: loss_of(OBJECTIVES[kind], values[kind]) for kind in values}
        assert abs(whole - sum(COEFFICIENTS[kind] * loss for kind, (loss, _) in alone.items())) < 1e-6
        expected = concatenated({k: {"gradient": COEFFICIENTS[k] * g} for k, (_, g) in alone.items()})["gradient"]
        assert (gradient - expected).abs().max() < 1e-6
        assert all(g.abs().max() > 1e-3 for _, g in alone.values())

    def test_under_one_objective_for_all_actions_it_is_another(self):
        """The negative control: one token mean over both kinds weighs them by their number."""
        values = concatenated(parts())
        del values["kind"]
        together = loss_of(OBJECTIVES["tokens"], values)[1]
        kinds = {kind: dict(OBJECTIVES["tokens"]) for kind in KINDS[:2]}
        apart = loss_of({"kinds": kinds}, concatenated(parts()))[1]
        assert (together - apart).abs().max() > 1e-3

    @pytest.mark.parametrize("rows", [[[0, 1, 2, 3]], [[3], [0, 2], [1]]])
    def test_micro_batches_add_up(self, rows):
        values = concatenated(parts())
        expected = loss_of(mixed(), values)
        objective = Objective.of(mixed())
        columns = {name: values[name] for name in ("kind", "ref_log_probs")}
        batch = Batch(values["mask"], values["old_log_probs"], reward=REWARD, group=GROUPS, columns=columns)
        batch, weights = objective.prepare(batch)
        new, total = values["new"].clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
        for some in map(torch.tensor, rows):
            total = total + objective.loss(Evaluation(new[some]), batch.index(some), weights[some]).loss
        (gradient,) = torch.autograd.grad(total, new)
        assert abs(total.detach() - expected[0]) < 1e-12 and (gradient - expected[1]).abs().max() < 1e-12

    def test_metrics_are_of_each_kind_and_of_all(self):
        values = concatenated(parts())
        batch = {k: v for k, v in values.items() if k != "new"} | {"reward": REWARD, "group": GROUPS}
        metrics = explain(mixed(), batch, values["new"]).metrics
        assert {"ratio/mean", "tokens/ratio/mean", "transition/ratio/mean", "transition/regularizer/kl"} <= set(metrics)
        low, high = sorted((metrics["tokens/ratio/mean"], metrics["transition/ratio/mean"]))
        assert low < metrics["ratio/mean"] < high

    def test_a_row_may_lack_a_kind(self):
        values = concatenated(parts())
        values["mask"] &= ~((values["kind"] == STEPS) & (torch.arange(4) == 2)[:, None])
        values["kind"][2, LENGTHS[2] :] = TOKENS
        assert loss_of(mixed(), values)[1][2, LENGTHS[2] :].abs().max() == 0


class TestPlaces:
    def test_there_and_back(self):
        kind = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 0, -1, -1]])
        values = torch.arange(10.0).view(2, 5)
        places = Places.of(kind, 1)
        assert places.take(values).tolist() == [[1, 3, 4], [5, 6, 0]]
        assert places.put(places.take(values)).tolist() == [[0, 1, 0, 3, 4], [5, 6, 0, 0, 0]]
        assert places.take(values[..., None].expand(2, 5, 2)).shape == (2, 3, 2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({"kinds": {"token": {}}}, r"unknown kind of action 'token'.*tokens"),
            ({"kinds": {"tokens": {"shaping": ["difficulty"]}}}, "shaping is of the whole row"),
            ({"kinds": {"tokens": {"coefficient": "much"}}}, r"objective\.kinds\.tokens\.coefficient"),
            ({"kinds": {"tokens": {"ratios": "sequence"}}}, "ratios"),
            ({"kinds": {"tokens": {"score": "sum", "score_objective": "pacs"}}}, "score"),
        ],
    )
    def test_at_configuration(self, config, says):
        with pytest.raises(ConfigError, match=says):
            Objective.of(config)

    def test_rows_without_the_column_or_of_another_kind(self):
        values = concatenated(parts())
        with pytest.raises(ConfigError, match=r"tokens, and these rollouts hold tokens, transition"):
            loss_of({"kinds": {"tokens": {}}}, values)
        del values["kind"]
        with pytest.raises(ConfigError, match="kind"):
            loss_of(mixed(), values)

    def test_the_column_needs_a_maker(self):
        objective = Objective.of(mixed())
        assert isinstance(objective, MixedObjective)
        assert objective.columns["kind"] == ["objective.kinds"]
        assert {n.probe for n in objective.needs} == {"log_probs"}
