"""How many optimizer steps a rollout batch serves, which rows each has, and what they leave without effect."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.objective import Objective
from mmrl.objective.idle import idle_at_one
from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run
from mmrl.recipes import load_recipe, recipe_names
from mmrl.record import Batch
from mmrl.training import checkpoint
from mmrl.training.config import TrainingConfig
from mmrl.training.step_metrics import acted, not_acted
from mmrl.training.tracking import read_metrics
from mmrl.training.update import passes_over
from mmrl.training.updates import assign_updates, updates_a_batch
from tests.training.test_trainer import make_trainer, timeless, weights_of
from tests.training.tiny import score_vowels

BASE = {"policy": {"model": "asset:tiny_vlm"}, "rewards": [{"name": "accuracy"}]}


def score_freely(outputs, prompts):
    """Without `success`, so that dynamic sampling keeps what differs in reward."""
    scores = score_vowels(outputs, prompts)
    scores.success[:] = float("nan")
    return scores


def batch_of(groups: int, size: int = 2, **fields) -> Batch:
    group = torch.arange(groups).repeat_interleave(size)
    mask = torch.ones(len(group), 3, dtype=torch.bool)
    return Batch(mask=mask, old_log_probs=-torch.ones(len(group), 3), group=group, **fields)


def groups_of(batch: Batch, update: torch.Tensor) -> list[list[int]]:
    return [sorted({int(g) for g in batch.group[update == u]}) for u in range(int(update.max()) + 1)]


@pytest.mark.parametrize(
    ("count", "prompts", "made"), [(3, 8, 3), (16, 8, 4), (16, 512, 16), (4, 3, 1), (1, 8, 1), (2, 1, 1), (4, 8, 4)]
)
def test_a_smaller_batch_makes_fewer_updates_of_at_least_two_groups(count, prompts, made):
    assert updates_a_batch(count, prompts) == made


@pytest.mark.parametrize(
    ("recipe", "changes", "count", "epochs"),
    [
        ("vppo", [], 3, 1),
        ("dapo", [], 4, 1),
        ("dapo", ["training.updates={count: 8}"], 8, 1),
        ("mc_grpo", [], 1, 2),
        ("mc_grpo", ["training.updates.count=2"], 2, 2),
        ("vppo", ["training.updates=auto", "training.updates.epochs=2"], 3, 2),
        ("grpo", [], 1, 1),
    ],
)
def test_a_run_follows_its_recipe_unless_it_says_otherwise(recipe, changes, count, epochs):
    config = read_config({**BASE, "recipe": recipe}, ["training.prompts_per_step=8", *changes], "vlm").training
    assert (config.updates_per_epoch, config.epochs) == (count, epochs)
    assert config.total_updates == config.steps * count * epochs


def test_eight_groups_make_three_updates_of_three_three_and_two():
    batch = batch_of(8)
    assert groups_of(batch, assign_updates(batch, 3)) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_groups_that_do_not_train_leave_no_update_empty():
    batch = batch_of(8)
    batch.trained = batch.group >= 4
    update = assign_updates(batch, 2)
    assert groups_of(batch.index(batch.trained), update[batch.trained]) == [[4, 5], [6, 7]]


def test_each_epoch_shuffles_whole_groups_by_seed_step_and_epoch():
    batch = batch_of(8, seed=1, step=2)
    splits = [groups_of(batch, assign_updates(batch, 4, epoch)) for epoch in range(3)]
    assert all(sorted(g for part in split for g in part) == list(range(8)) for split in splits)
    assert splits[0] != splits[1] != splits[2]
    assert splits[1] == groups_of(batch, assign_updates(batch, 4, 1)), "a draw of its key alone"
    assert splits[1] != groups_of(batch, assign_updates(batch_of(8, seed=1, step=3), 4, 1))


def test_a_further_round_of_a_selection_stands_behind_the_first():
    batch = batch_of(4)
    batch.update = torch.tensor([0, 1] * 4)
    assert assign_updates(batch, 2).tolist() == [0, 2, 0, 2, 1, 3, 1, 3]


def test_functions_that_remember_see_the_batch_once_whatever_the_epochs():
    def remembered(epochs: int) -> tuple[dict, list]:
        regularizers = [{"name": "entropy_target", "coefficient": 1.0}]
        objective = Objective.of({"advantage": "grpo", "regularizers": regularizers})
        key = next(need.key for need in objective.regularizers[0].bound.needs.values())
        batch = batch_of(4, reward=torch.tensor([0.0, 1.0] * 4), columns={key: torch.full((8, 3), 0.1)})
        config = TrainingConfig(updates={"count": 2, "epochs": epochs})
        passes = passes_over(objective, objective.assess(objective.shape_and_select(batch)[0]), config)
        return objective.state_dict(), passes

    (once, one), (twice, two) = remembered(1), remembered(2)
    assert once == twice and once["regularizer/entropy_target"]["weight"] > 0
    assert (len(one), len(two)) == (1, 2)
    assert torch.equal(two[0][1], two[1][1]), "equal sizes of groups: only who goes together differs"


def test_weights_and_update_wide_credit_follow_the_epoch_s_own_split():
    batch = batch_of(2, reward=torch.tensor([0.0, 1.0] * 2))
    batch.mask[2:, 2:] = False  # the second group is shorter
    objective = Objective.of({"advantage": "grpo"})
    config = TrainingConfig(updates={"count": 2, "epochs": 4})
    prepared = objective.assess(objective.shape_and_select(batch)[0])
    for assigned, weights in passes_over(objective, prepared, config):
        sums = [float(weights[assigned.update == u].sum()) for u in range(2)]
        assert sums == pytest.approx([1.0, 1.0]), "a token mean over each optimizer step by itself"


@pytest.mark.parametrize("recipe", ["vppo", "gspo", "gmpo", "sapo", "cispo", "ctpo", "holderpo"])
def test_the_ratios_of_a_recipe_s_second_update_are_not_one(tmp_path, recipe):
    paper = load_recipe(recipe).updates
    config = TrainingConfig().following(paper.count, paper.epochs)
    settings = {"steps": 1, "prompts_per_step": 8, "updates": config.updates.model_dump()}
    trainer = make_trainer(tmp_path, recipe=recipe, score=score_freely, **settings)
    trainer.train()
    (metrics,) = read_metrics(tmp_path / "metrics.jsonl")
    first, second, *_ = metrics["ratio/mean_by_update"]
    assert first == pytest.approx(1, abs=1e-5) and abs(second - 1) > 1e-5
    assert metrics["updates"] == len(metrics["ratio/mean_by_update"]) == updates_a_batch(paper.count, 8)
    assert metrics["ratio/acted"] == 1


def test_with_one_update_nothing_acts_and_the_run_says_so(tmp_path):
    result = make_trainer(tmp_path, recipe="gspo", steps=2).train()
    assert [m["ratio/acted"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0]
    assert [m["trust_region/acted"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0]
    assert result.not_acted == (
        "ratio and trust region have not acted: with one optimizer step a rollout batch every ratio is 1"
    )


def test_a_clip_that_nothing_reaches_has_not_acted(tmp_path):
    result = make_trainer(tmp_path, steps=1, updates={"count": 2}, learning_rate=1e-6).train()
    assert result.not_acted == "trust region has not acted: no ratio left its bounds"
    far = make_trainer(tmp_path / "far", steps=1, updates={"count": 2}, learning_rate=1e-2).train()
    assert far.not_acted == ""


def test_rounding_is_no_ratio():
    def logged(first: float, later: float) -> list[dict]:
        gaps = [{"ratio/gap": (g, 1.0), "trust_region/changed_fraction": (0.0, 1.0)} for g in (first, later)]
        return gaps

    assert acted(logged(1e-7, 1e-3), torch.float32) == {"ratio/acted": 1, "trust_region/acted": 0}
    assert acted(logged(1e-2, 1.5e-2), torch.bfloat16)["ratio/acted"] == 0
    assert not_acted([{"ratio/acted": 0.0, "updates/of_step": 2}]) == "ratio has not acted: ratios stayed at 1"


@pytest.mark.parametrize("changes", [{"updates": {"count": 2}}, {"updates": {"count": 2, "epochs": 2}}])
def test_resuming_with_several_updates_and_epochs_equals_never_having_stopped(tmp_path, changes):
    straight = make_trainer(tmp_path / "straight", recipe="gspo", steps=3, **changes)
    straight.train()
    first = make_trainer(tmp_path / "resumed", recipe="gspo", steps=3, **changes)
    first.doctor(first.train_step())
    first.step += 1
    first.save()
    second = make_trainer(tmp_path / "resumed", recipe="gspo", steps=3, **changes)
    second.train(checkpoint.latest(tmp_path / "resumed"))
    assert timeless(tmp_path / "resumed") == timeless(tmp_path / "straight")[1:]
    for name, value in weights_of(straight).items():
        assert torch.equal(value, weights_of(second)[name]), name
    assert straight.updates == 3 * 2 * changes["updates"].get("epochs", 1)


@pytest.mark.parametrize("recipe", ["vppo", "disco"])
def test_micro_batches_do_not_change_several_updates(tmp_path, recipe):
    """One, two and four micro-batches an update, two epochs; a whole-sequence objective, and credit of update scope."""
    runs = {}
    score = score_vowels if recipe == "disco" else score_freely
    for size in (8, 4, 2):
        folder = tmp_path / str(size)
        changes = {"updates": {"count": 2, "epochs": 2}, "learning_rate": 1e-4, "epsilon": 1e-4}
        trainer = make_trainer(folder, recipe=recipe, score=score, steps=1, micro_batch_size=size, **changes)
        trainer.train()
        runs[size] = (read_metrics(folder / "metrics.jsonl")[0], weights_of(trainer))
    for size in (4, 2):
        assert runs[size][0]["updates"] == 4
        assert runs[size][0]["gradient_norm"] == pytest.approx(runs[8][0]["gradient_norm"], rel=1e-4)
        for name, value in runs[8][1].items():
            assert (value - runs[size][1][name]).abs().max() < 1e-6, name


def test_plan_shows_paper_and_run_and_what_cannot_act():
    def planned(recipe: str, *changes: str) -> str:
        return plan_run(read_config({**BASE, "recipe": recipe}, ["training.prompts_per_step=8", *changes], "vlm"))

    text = planned("vppo")
    assert "paper: 3 optimizer steps a rollout batch of 384 prompts" in text
    assert "run: 3 optimizer steps a rollout batch of 8 prompts" in text
    assert "cannot act" not in text
    assert "  recipe: 1 optimizer step a rollout batch (ours)" in planned("rloo")  # no paper's number
    alone = planned("gspo", "training.updates.count=1")
    assert "cannot act with one update a batch: ratio 'sequence'" in alone
    assert "cannot act with one update a batch: trust region 'clip' (low=0.0003, high=0.0004)" in alone


def test_recipes_whose_point_is_a_ratio_make_several_updates():
    dull = {"token", "clip", "reinforce", "unit_ratio", "rec", "expert_shaped"}
    for name in recipe_names():
        recipe = load_recipe(name)
        objective = Objective.of(recipe.objective)
        chosen = {objective.ratio.name, objective.trust_region.name} - dull
        if chosen and not objective.score_objective and idle_at_one(objective):
            assert recipe.updates.count * recipe.updates.epochs > 1, (name, chosen)


def test_the_old_key_is_refused_with_the_new_spelling():
    with pytest.raises(ConfigError, match=r"write training.updates=\{count: 4\}"):
        TrainingConfig(updates_per_step=4)
