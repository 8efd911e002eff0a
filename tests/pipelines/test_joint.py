"""Two policies under one reward from the command line: checked, planned, trained, resumed, evaluated, exported."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmrl.data.worlds import open_world
from mmrl.errors import ConfigError, DataError, MMRLError
from mmrl.objective import Objective
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import read_config
from mmrl.pipelines.fitting import refuse_unasked
from mmrl.pipelines.joint import JointPipeline
from mmrl.pipelines.run import build_policy, check_config
from mmrl.rewards.image import verify

SMALL = [
    "training.prompts_per_step=2", "training.group_size=4", "data.eval_limit=4", "training.save_rollouts_every=1",
    "training.save_every=1", "policy.painter.steps=4", "policy.painter.eval_steps=2", "training.warmup_steps=0",
    "policy.painter.train_steps={size: 2, high: 3}", "data.workers=0", "data.limit=20", "reward_run.workers=1",
]  # fmt: skip
AGAIN = (
    '[{by: writer}, {by: painter, ask: "one {text} {shape} {place}"}, {by: writer, ask: "What color is the {shape}?"}]'
)


def mmrl(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_world_of_retold_says_what_to_draw():
    from mmrl.data.worlds.compositions import Compositions

    prompts = open_world("retold", size=20, difficulty=1)
    for prompt in (prompts[i] for i in range(20)):
        (wanted,) = prompt.columns["scene"]["objects"]
        assert wanted["color"] == prompt.columns["solution"] not in prompt.text
        assert prompt.columns["shape"] in prompt.text and wanted["position"] in prompt.columns["place"]
        assert verify(Compositions().render(prompt.columns["scene"]), prompt.columns["scene"])["success"] == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "run"
    mmrl("train", "joint", "demo", f"run_dir={folder}", "training.steps=2", *SMALL, "watch={every: 2, prompts: 2}")
    return folder


def test_a_run_trains_saves_and_is_evaluated(run):
    first, last = lines(run)
    assert (
        last["rollouts"] == 8 and {"eval/success", "reward/accuracy/mean", "reward/compositional/mean"} <= last.keys()
    )
    assert last["learning_rate/writer"] != last["learning_rate/painter"] and first["self_check/worst_gap"] < 1e-4
    for kind in ("tokens", "transition"):
        assert f"{kind}/ratio/gap" in last
    sides = [last[f"gradient_norm/{side}"] for side in ("writer", "painter")]
    assert min(sides) > 0 and math.hypot(*sides) == pytest.approx(last["gradient_norm"], rel=1e-4)
    start, end = json.loads((run / "watch.json").read_text())
    assert start["drift"] < 1e-9 < end["drift"] == last["watch/drift"] and {"reward", "pixels"} <= start.keys()
    assert f"{last['eval/reward']:.3f}"[:4] in mmrl("evaluate", str(run))
    rows = [json.loads(row) for row in (run / "rollouts/step-000001/rows.jsonl").read_text().splitlines()]
    assert rows[0]["stretches"] == 2 and (run / "rollouts/step-000001" / rows[0]["images"][0]).is_file()
    moved = load_file(run / "checkpoints/step-000002/trainable.safetensors")
    assert {name.partition(".")[0] for name in moved} == {"writer", "painter"}


def test_a_resume_is_exact_and_of_the_same_two(run, tmp_path):
    start = str(run / "checkpoints" / "step-000001")
    mmrl("train", "joint", "--resume", start, f"run_dir={tmp_path / 'again'}")
    one, two = (load_file(f / "checkpoints/step-000002/trainable.safetensors") for f in (run, tmp_path / "again"))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    done = CliRunner().invoke(app, ["train", "joint", "--resume", start, f"run_dir={tmp_path / 'b'}",
                                    "policy.writer.model=asset:tiny_video"])  # fmt: skip
    assert "belongs to a run with policy.writer.model='asset:tiny_vlm'" in str(done.exception)


def test_what_is_exported_goes_on_by_itself(run, tmp_path):
    mmrl("export", str(run), str(tmp_path / "out"))
    writer = read_config({"policy": {"model": str(tmp_path / "out" / "writer")}}, (), "vlm")
    trained = load_file(run / "checkpoints/step-000002/trainable.safetensors")
    name, weight = next((n, p) for n, p in build_policy(writer).inner.named_parameters() if p.dim() == 2)
    torch.testing.assert_close(weight.detach(), trained[f"writer.{name}"], rtol=1e-3, atol=1e-3)
    assert (tmp_path / "out" / "painter" / "model_index.json").is_file()


def test_interleaved_rows_train_with_what_each_stretch_earned(tmp_path):
    """Text, picture, text: the writer looks at the picture and says its color; one side may stay as it is."""
    rewards = (
        "[{name: accuracy, of: text_1, label: told}, {name: compositional, of: picture}, {name: accuracy, of: text}]"
    )
    mmrl("train", "joint", "demo", "recipe=interleaved_grpo", f"run_dir={tmp_path / 'run'}", "training.steps=1", *SMALL,
         "watch.every=0", f"policy.turns={AGAIN}", f"rewards={rewards}", "policy.train=[writer]", "data.eval=null",
         "objective.kinds={tokens: {credit: [vppo]}}")  # fmt: skip
    (last,) = lines(tmp_path / "run")
    assert last["gradient_norm"] > 0 and {"reward/told/mean", "regularizer/kl"} <= last.keys()
    assert "learning_rate/painter" not in last
    moved = load_file(tmp_path / "run/checkpoints/step-000001/trainable.safetensors")
    assert {name.partition(".")[0] for name in moved} == {"writer"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy.writer.max_new_tokns=3", "policy.writer: unknown key 'max_new_tokns'; did you mean 'max_new_tokens'?"),
        ("policy.writer.modality=vml", "did you mean 'vlm'?"),
        ("policy.learning_rates.writer=7", "policy.learning_rates.writer=7.0: expected 0 to 1"),
        ("policy.writer.engine=vllm", "policy.writer.engine: the writer of a joint policy writes by itself"),
        ("policy.painter.likelihood=matching", "it has no log-probs"),
        ("policy.painter.same_initial_noise=true", "each from its own noise"),
        ("objective.kinds.masked={}", "unknown kind of action here 'masked'; Known: tokens, transition"),
        ("objective.kinds.tokens.credit=[depth_pruning]", "is for flow, not for 'joint', whose rows are judged as vlm"),
        ("objective.advantage=densegrpo", "is for flow, not for 'joint', whose rows are judged as flow and vlm"),
        ("objective.kinds.tokens.ratoi=token", "objective.kinds.tokens: unknown key 'ratoi'; did you mean 'ratio'?"),
        ("recipe=grpo", "recipe 'grpo' is for vlm, video, flow, not for 'joint'"),
        ("policy.model=x", "policy: unknown key 'model' here; write policy.writer.model or"),
        ("policy.writer.eval_steps=3", "policy.writer: unknown key 'eval_steps' here; write policy.painter.eval_steps"),
        ("policy.painter.max_new_tokens=3", "write policy.writer.max_new_tokens"),
        ("policy.turns=[]", "policy.turns is empty"),
        ("policy.learning_rates={reader: 1e-3}", "policy.learning_rates.reader: Input should be 'writer' or 'painter'"),
        ("rewards=[{name: accuracy, of: txt}]", "reward 'accuracy': unknown stretch 'txt'; did you mean 'text'?"),
        ("rewards=[{name: accuracy, of: text_3}]", "unknown stretch 'text_3'"),
        ("rewards=[accuracy]", "reads one output, and a row here has several: give it `of`, one of text, picture"),
    ],
)
def test_a_mistake_is_one_line(change, said):
    with pytest.raises(ConfigError) as refused:
        config = read_config("demo", [change], "joint")
        config.policy_settings()
        check_config(config, {})
    assert said in str(refused.value)


def test_nobody_earns_where_no_reward_reads_a_stretch():
    config = read_config("demo", ["recipe=interleaved_grpo", "rewards=[accuracy]"], "joint")
    with pytest.raises(ConfigError, match="nobody makes the column action_reward"):
        check_config(config, {})


def test_who_acts_alone_has_no_stretches():
    config = read_config("demo", ["rewards=[{name: accuracy, of: text}]"], "vlm")
    with pytest.raises(ConfigError, match="of: text, one stretch of an output, and here an output is one text"):
        check_config(config, {})


def test_a_column_that_no_row_has_is_told_before_a_model_is_loaded():
    turns = "policy.turns=[{by: writer}, {by: painter, ask: 'one {text} {colr}'}]"
    done = CliRunner().invoke(app, ["check", "joint", "demo", turns, "data.limit=5", "data.eval=null"])
    assert done.exit_code == 1 and "colr" in done.output
    with pytest.raises(DataError, match=r"policy.turns reads \{colr\}, which is no column of it; there are demonstr"):
        refuse_unasked(read_config("demo", [turns], "joint").policy_settings().columns_asked, [open_world("retold")[0]])


def test_what_cannot_be_loaded_says_whose_it_is():
    config = read_config("demo", ["policy.painter.model=asset:tiny_vlm"], "joint")
    with pytest.raises(MMRLError, match=r"^policy\.painter\.model: cannot load"):
        build_policy(config)


def test_each_side_has_its_usual_rate():
    values = {"recipe": "unigrpo_joint", "policy": {"writer": {"model": "a"}, "painter": {"model": "b", "lora": None}}}
    config = read_config(values, (), "joint")
    assert config.policy["learning_rates"] == {"writer": 1e-6, "painter": 1e-5}
    config = read_config(values, ["training.learning_rate=1e-4"], "joint")
    assert config.policy_settings().learning_rates == {} and config.training.learning_rate == 1e-4


def test_plan_and_check_know_it():
    told = mmrl("plan", "joint", "demo")
    assert "asset:tiny_vlm and asset:tiny_flow" in told and "0.9 M parameters, all trained" in told
    assert "no problems" in mmrl("check", "joint", "demo", "data.limit=20", "data.eval_limit=20")
    assert Objective.of(read_config("demo", (), "joint").objective).kinds.keys() == {"tokens", "transition"}


def test_in_python(tmp_path):
    pipe = JointPipeline.from_pretrained("asset:tiny_vlm", "asset:tiny_flow", config="demo")
    [[told], _] = pipe.generate("world:retold?size=2&difficulty=1")
    assert told.text and told.picture.size == (24, 24)
