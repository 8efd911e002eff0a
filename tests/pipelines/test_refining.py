"""`mmrl sar`: a base, and as many steps more of teacher forcing and of SAR; interrupted runs go on bit for bit."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmrl.errors import ConfigError, DataError
from mmrl.pipelines import refining_steps
from mmrl.pipelines.refining import Refinement, read_refinement, refine
from mmrl.policies.scales.model import NextScaleModel

SMALL = [
    "tiny.sides=[1,2,4]", "tiny.patch=6", "tiny.codes=16", "tiny.width=16", "tiny.layers=1", "tiny.heads=2",
    "tiny.fitted=32", "data.train='world:compositions?split=train&size=32&difficulty=1'",
    "data.eval='world:compositions?split=test&size=8&difficulty=1'",
    "pretrain=3", "steps=3", "batch_size=4", "save_every=2", "samples=1",
]  # fmt: skip


def plan(out, *overrides: str) -> Refinement:
    return read_refinement("shapes", [*SMALL, f"out={out}", *overrides])


def states(out) -> dict[str, dict[str, torch.Tensor]]:
    return {arm: load_file(out / arm / "state.safetensors") for arm in ("base", "teacher", "sar")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sar") / "whole"
    return out, refine(plan(out), lambda line: None)


def test_both_refinements_begin_with_the_base_and_see_the_same_rows(whole):
    out, said = whole
    found = json.loads((out / "refined.json").read_text())
    assert {arm: (row["steps"], row["passes"]) for arm, row in found.items()} == {
        "base": (3, 3), "teacher": (3, 3), "sar": (3, 6),
    }  # fmt: skip
    assert all(0 < row["loss"] < 10 and 0 <= row["reward"] <= 1 for row in found.values())
    assert len({row["loss"] for row in found.values()}) == 3 and "sar      steps 3, passes 6" in said
    curves = {arm: [json.loads(line) for line in (out / arm / "metrics.jsonl").open()] for arm in found}
    assert [line["step"] for line in curves["sar"]] == [1, 2, 3]
    assert curves["teacher"][0]["teacher"] == curves["sar"][0]["teacher"]  # one start, one batch
    first = curves["sar"][0]
    assert first["loss"] == pytest.approx(first["teacher"] + 0.01 * first["student"])
    assert "student" not in curves["teacher"][0] and 0 < first["mistaken"] <= 1
    loaded = NextScaleModel.from_pretrained(out / "sar" / "model")
    assert torch.equal(loaded.place, states(out)["sar"]["model/place"])


def test_an_interrupted_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch):
    """Stopped in the middle of SAR, one step past what was saved; then the same command, and nothing is run twice."""
    real, steps = refining_steps._step, []

    def step(model, stage, *rest):
        steps.append(stage.name)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return real(model, stage, *rest)

    out, told = tmp_path / "run", []
    monkeypatch.setattr(refining_steps, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        refine(plan(out), told.append)
    assert refine(plan(out), told.append) == whole[1].replace(str(whole[0]), str(out))
    assert steps == ["base"] * 3 + ["teacher"] * 3 + ["sar"] * 4 and "sar: goes on after step 2 of 3" in told
    for arm, state in states(whole[0]).items():
        assert all(torch.equal(value, states(out)[arm][name]) for name, value in state.items())
    assert (out / "sar" / "metrics.jsonl").read_text() == (whole[0] / "sar" / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="holds a run with another weight; name another folder"):
        refine(plan(out, "weight=0.5"), told.append)


def test_the_plan_of_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "methods-flow.md").read_text()
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "pretrain:" in block]
    (tmp_path / "plan.yaml").write_text(text)
    assert read_refinement(tmp_path / "plan.yaml").model == "my_model.py:Model"


MINE = """
import torch

class Model(torch.nn.Module):
    '''Two scales of a dark or a bright pixel each.'''

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(2))
        self.second = torch.nn.Linear(1, 2)

    def tokens(self, pictures):
        bright = pictures.mean((1, 2, 3))[:, None]
        return [(bright > 0.5).long(), (bright > 0.25).long()]

    def logits(self, texts, inputs):
        return [self.first.expand(len(texts), 1, 2), *[self.second(each)[:, None] for each in inputs]]

    def next_input(self, tokens):
        return tokens[-1].float()

    def decode(self, tokens):
        return tokens[-1].float()[:, :, None, None].expand(-1, 3, 8, 8)

class Asking(Model):
    def __init__(self, size):
        super().__init__()
"""


def test_a_model_and_pictures_of_the_user_s_own(tmp_path):
    from PIL import Image

    (tmp_path / "mine.py").write_text(MINE)
    rows = []
    for place, shade in enumerate((20, 90, 200, 250)):
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / f"{place}.png")
        rows.append({"prompt": f"shade {shade}", "image": f"{place}.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": f"{tmp_path}/mine.py:Model", "data": {key: str(tmp_path / "rows.jsonl") for key in ("train", "eval")},
        "rewards": [{"name": "jpeg_compressibility"}], "pretrain": 0, "steps": 2, "out": str(tmp_path / "out"),
        "drawn": True, "student": "last",
    }  # fmt: skip
    said = refine(Refinement(**values), lambda line: None)
    assert "sar      steps 2, passes 4" in said and not (tmp_path / "out" / "base").exists()
    with pytest.raises(
        ConfigError, match=r"mine.py:Asking: .* 'size'; expected a class that is made without arguments"
    ):
        refine(Refinement(**{**values, "model": f"{tmp_path}/mine.py:Asking", "out": str(tmp_path / "other")}))
    mixed = [*rows[:1], {"prompt": "none"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    with pytest.raises(DataError, match="has 0 images; expected one, the picture that is learned"):
        refine(Refinement(**{**values, "out": str(tmp_path / "other")}), lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shape"], "unknown shipped plan of sar 'shape'; did you mean 'shapes'"),
        (["shapes", "wieght=1"], "unknown key 'wieght'; did you mean 'weight'"),
        (["shapes", "data.eval=null"], "expected data.train and data.eval"),
        (["shapes", "rewards=[]"], "no rewards: name at least one"),
        (["shapes", "data.train=world:shapes"], "expected world:compositions, or rows with a caption and a picture"),
        (["shapes", "model=nowhere"], "expected tiny, path.py:Model, or a folder"),
        (["shapes", "tiny.heads=3"], "tiny: width=16 is no multiple of heads=3"),
        (["shapes", "tiny.sides=[4,2]"], "tiny: sides=[4, 2]; expected two or more, rising"),
        (["shapes", "tiny.patch=3"], "pictures are 24 x 24, and the model writes 12 x 12"),
    ],
)
def test_what_cannot_work_is_one_line(arguments, line, tmp_path):
    from mmrl.errors import MMRLError
    from mmrl.pipelines.cli import app

    done = CliRunner().invoke(app, ["sar", arguments[0], *SMALL, *arguments[1:], f"out={tmp_path / 'run'}"])
    assert isinstance(done.exception, MMRLError) and line in str(done.exception)
    assert "\n" not in str(done.exception) and not (tmp_path / "run").exists()
