"""`mmrl sweep`: budgets hold, runs are kept, and the table says what the curves say."""

import json
from pathlib import Path

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.sweep import compare, read_comparison
from mmrl.pipelines.sweep_report import reached, sooner, table
from tests.pipelines.test_readme_commands import commands

SMALL = [
    "seeds=[0]", "budget.calls=400", "measurements=2", "watch.prompts=2", "common.training.prompts_per_step=2",
    "common.training.group_size=4", "common.policy.eval_steps=4", "common.policy.steps=9",
    "recipes.flow_grpo_fast.training={prompts_per_step: 2, group_size: 4}",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def curves(folder):
    return compare(read_comparison("flow", ["recipes=[flow_grpo_fast, diffusion_nft]", *SMALL, f"out={folder}"]))


def test_every_run_spends_the_budget_and_no_more_than_a_step_beyond(curves):
    for runs in curves.values():
        rows = runs[0]
        each = rows[1]["calls"] / rows[1]["step"]
        assert rows[0]["calls"] == 0 and 400 <= rows[-1]["calls"] < 400 + 2 * each
        assert [r["step"] for r in rows] == sorted({r["step"] for r in rows}) and len(rows) >= 3
        assert rows[0]["drift"] < 1e-9 < rows[-1]["drift"] and 0 <= rows[-1]["held_out"] <= 1
        assert rows[-1]["seconds"] > 0


def test_all_begin_at_the_same_place(curves):
    first = [{k: v for k, v in runs[0][0].items() if k != "seconds"} for runs in curves.values()]
    assert first[0] == first[1]


def test_calls_are_those_of_the_method(curves):
    """8 rows, 9 steps: 72 sampled and at most 24 trained, as rows without advantage are left out; NFT: 72, and 3 draws,
    each through policy, anchor and reference, whatever the advantage."""
    fast, nft = (curves[name][0] for name in ("flow_grpo_fast", "diffusion_nft"))
    assert nft[1]["calls"] / nft[1]["step"] == 72 + 8 * 3 * 3
    assert 72 < fast[1]["calls"] / fast[1]["step"] <= 72 + 24


def test_what_has_run_is_not_run_again_and_another_run_is_not_mixed_in(curves, folder):
    asked = ["recipes=[flow_grpo_fast, diffusion_nft]", *SMALL, f"out={folder}"]
    before = (folder / "runs/diffusion_nft-0/curve.json").stat().st_mtime_ns
    again = compare(read_comparison("flow", asked))
    assert again["diffusion_nft"][0] == curves["diffusion_nft"][0]
    assert (folder / "runs/diffusion_nft-0/curve.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="was run with another budget"):
        compare(read_comparison("flow", [*asked, "budget.calls=500"]))


def test_a_curve_from_before_a_setting_existed_is_read_with_its_default(curves, folder):
    """Otherwise every new setting would make all curves run again."""
    asked = ["recipes=[flow_grpo_fast, diffusion_nft]", *SMALL, f"out={folder}"]
    path = folder / "runs/diffusion_nft-0/curve.json"
    whole = path.read_text()
    try:
        older = json.loads(whole)
        del older["asked"]["data"]["repeats"], older["asked"]["training"]["epsilon"]
        path.write_text(json.dumps(older))
        assert compare(read_comparison("flow", asked))["diffusion_nft"][0] == curves["diffusion_nft"][0]
        older["asked"]["policy"]["steps"] = 7
        path.write_text(json.dumps(older))
        with pytest.raises(ConfigError, match="was run with another policy"):
            compare(read_comparison("flow", asked))
        older["asked"]["policy"]["gone"] = 1
        path.write_text(json.dumps(older))
        with pytest.raises(ConfigError, match="was run with another policy"):
            compare(read_comparison("flow", asked))
    finally:
        path.write_text(whole)
        compare(read_comparison("flow", asked))  # whose table the refused ones cut short


def test_table_and_plot_are_written(curves, folder):
    text = (folder / "comparison.md").read_text()
    assert text.splitlines()[0].startswith("| recipe | seeds | reward | other verifier | diversity, pixels")
    assert {"`flow_grpo_fast`", "`diffusion_nft`", "(before)"} <= set(text.replace("|", " ").split())
    drawn = (folder / "comparison.svg").read_text()
    assert drawn.startswith("<svg") and "diffusion_nft" in drawn and drawn.count('class="s0"') == 4
    import xml.etree.ElementTree as Tree

    Tree.fromstring(drawn)
    assert json.loads((folder / "comparison.json").read_text()).keys() == curves.keys()


def test_the_command_of_the_readme_prints_the_table(curves, folder, mmrl):
    (line,) = [words for words in commands() if words[0] == "sweep"]
    done = mmrl(*line, "recipes=[flow_grpo_fast, diffusion_nft]", *SMALL, f"out={folder}")
    assert done.code == 0, done.err
    assert (folder / "comparison.md").read_text().splitlines()[0] in done.out


def test_the_table_orders_by_reward_and_gives_the_range_of_seeds():
    row = {"step": 1.0, "calls": 9.0, "seconds": 2.0, "pixels": 0.1, "embedding": 0.2, "drift": 0.0}
    made = table({
        "a": {0: [row | {"reward": 0.1}, row | {"reward": 0.2}], 1: [row | {"reward": 0.1}, row | {"reward": 0.4}]},
        "b": {0: [row | {"reward": 0.1}, row | {"reward": 0.5}]},
    })  # fmt: skip
    lines = made.splitlines()
    assert lines[3].startswith("| `b` | 1 | 0.500") and lines[4].startswith("| `a` | 2 | 0.300 (0.200 to 0.400)")


def test_what_was_spent_when_a_reward_was_reached():
    rows = [{"reward": r, "seconds": s} for r, s in ((0.2, 0.0), (0.4, 10.0), (0.3, 20.0), (0.8, 30.0))]
    assert reached(rows, 0.3) == pytest.approx(5) and reached(rows, 0.7) == pytest.approx(28)
    assert reached(rows, 0.9) is None and reached(rows, 0.1) == 0


def test_how_much_sooner_by_hand():
    """The slow one ends at .6 after 40 seconds; the fast one is there halfway from 4 to 12, with one of two seeds."""

    def run(*points):
        return [{"reward": r, "seconds": s, "calls": 10 * s} for r, s in points]

    made = sooner({
        "slow": {0: run((0.2, 0.0), (0.6, 40.0)), 1: run((0.2, 0.0), (0.9, 40.0))},
        "fast": {0: run((0.2, 0.0), (0.5, 4.0), (0.7, 12.0)), 1: run((0.2, 0.0), (0.5, 4.0))},
    })  # fmt: skip
    assert made.splitlines()[2] == "| `fast` | 8, with 1 of 2 seeds | 1 / 5.0 | 80, with 1 of 2 seeds | 1 / 5.0 |"
    assert sooner({"slow": {0: run((0.2, 0.0))}}) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["budget={calls: 1, seconds: 1}"], "either calls or seconds"), (["budget={}"], "either calls or seconds"),
        (["recipes=[]"], "recipes"), (["seed=3"], "training.seed"), (["recipes=[flow_grpoo]"], "flow_grpo"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_runs(changes, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        compare(read_comparison("flow", [*changes, f"out={tmp_path}"]))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="shipped comparison"):
        read_comparison("flows")
