"""What the pages of docs/ show, beside those with tests of their own: Python runs, YAML is a configuration, commands
exist. A page is added here by being written."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from mmrl import stages
from mmrl.errors import ConfigError
from mmrl.pipelines import cli
from mmrl.pipelines.config import read_config
from mmrl.rewards import registry
from tests.pipelines.runs import write_data
from tests.pipelines.test_readme import REAL_MODEL

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = ("python.md", "data.md")
"""test_readme.py, tests/data/test_data_docs.py"""
BASE = {"vlm": {"policy": {"model": "asset:tiny_vlm"}, "data": {"train": "x"}, "rewards": ["accuracy"]}}
BASE["flow"] = {"policy": {"model": "asset:tiny_flow"}, "data": {"train": "x"}, "rewards": ["accuracy"]}
BASE["joint"] = {
    "policy": {"writer": BASE["vlm"]["policy"], "painter": BASE["flow"]["policy"]}, "data": {"train": "x"},
    "rewards": ["accuracy"], "recipe": "unigrpo_joint",
}  # fmt: skip
NOT_OF_A_RUN = {"stages": "a bridge: test_bridge.py", "updates": "of a recipe", "host": "of a server: test_wire.py"}
"""A key by which a YAML block that is no configuration of a run is known."""
RUN_ELSEWHERE = {("joint.md", 0): "tests/pipelines/test_joint.py"}
"""Python blocks on objects of the reader's own, and the tests that make such: here what they import is there."""


def blocks(language: str) -> list[tuple[str, int, str]]:
    """(page, its place among the page's blocks of this language, text)"""
    return [
        (page.name, number, text)
        for page in sorted(DOCS.glob("*.md"))
        for number, text in enumerate(re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.M))
    ]


PYTHON = [block for block in blocks("python") if block[0] not in ELSEWHERE]


@pytest.fixture
def own_registries(monkeypatch):
    """What a page registers is gone after the test; what ships is there before it."""
    stages.registered()
    registry.registered()
    monkeypatch.setattr(stages, "_REGISTRY", dict(stages._REGISTRY))
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def given(page: str, number: int) -> dict:
    """Names that a block takes from the reader's own program."""
    import torch

    from mmrl.data.worlds import open_world
    from mmrl.record import Batch, Evaluation

    if (page, number) == ("writing_rewards.md", 0):
        return {"outputs": ["<think>.</think><answer>1</answer>"] * 2, "prompts": list(open_world("shapes", size=2))}
    if (page, number) == ("objective.md", 1):
        import mmrl

        first: dict = {}
        exec(next(text for p, n, text in PYTHON if (p, n) == ("objective.md", 0)), first)
        groups, reward = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0])
        batch = Batch(mask=first["mask"], old_log_probs=first["old"], reward=reward, group=groups)
        parts = [torch.tensor([0, 1]), torch.tensor([2, 3])]
        return {"mmrl": mmrl, "Evaluation": Evaluation, "batch": batch, "micro_batches": parts,
                "log_probs_of": lambda rows: first["new"][rows]}  # fmt: skip
    if (page, number) == ("objective.md", 2):
        from mmrl.pipelines.bases.masked import tiny_masked
        from mmrl.rewards.panel import RewardPanel
        from mmrl.training.config import TrainingConfig

        model, tokenizer = tiny_masked(0)
        config = TrainingConfig(steps=1, prompts_per_step=2, group_size=2, micro_batch_size=4)
        panel = RewardPanel([{"name": "exact_match"}])
        return {"model": model, "tokenizer": tokenizer, "prompts": open_world("lists", size=4), "score": panel.score,
                "config": config}  # fmt: skip
    return {}


@pytest.mark.parametrize(("page", "number", "text"), PYTHON, ids=[f"{p}-{n}" for p, n, _ in PYTHON])
def test_python_runs(tmp_path, monkeypatch, own_registries, bases, page, number, text):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text(write_data(tmp_path, "vlm").read_text())
    names = given(page, number)
    if (page, number) in RUN_ELSEWHERE:
        assert (DOCS.parent / RUN_ELSEWHERE[page, number]).is_file()
        text = "\n".join(ast.unparse(n) for n in ast.parse(text).body if isinstance(n, ast.Import | ast.ImportFrom))
    text = re.sub(rf'"{REAL_MODEL}"', lambda _: repr(str(bases.of("vlm"))), text).replace('"bfloat16"', '"float32"')
    exec(compile(text.replace("max_new_tokens=128", "max_new_tokens=4"), page, "exec"), names)
    if page == "environments.md":
        patience = names["Patience"](times=1)
        state = patience.reset(None)
        assert isinstance(patience.step(state, "yes"), names["Observation"])
        assert patience.step(state, "yes").columns == {"thoughts": 1.0}
    if page == "extending.md":
        names["Stopper"]().step(1, {"ratio/approx_kl": 0.1})
        with pytest.raises(RuntimeError, match=r"KL is 2.00 after step 3"):
            names["Stopper"]().step(3, {"ratio/approx_kl": 2.0})
    if (page, number) == ("writing_rewards.md", 1):
        assert names["short"](["?"] * 2, ["it is red", "red " * 11], ["red", "red"]) == [1.0, 0.5]
    if page == "policies-language.md":
        assert names["evaluation"].log_probs.shape[0] == 8


@pytest.mark.parametrize(("page", "number", "text"), blocks("yaml"), ids=[f"{p}-{n}" for p, n, _ in blocks("yaml")])
def test_yaml_is_a_configuration(page, number, text):
    """Of one modality at least; files of the reader's own are not there to be opened."""
    values = yaml.safe_load(text)
    if set(values) & set(NOT_OF_A_RUN):
        return
    met = []
    for modality in BASE:
        try:
            config = read_config({**BASE[modality], **values} | _within(BASE[modality], values), [], modality)
            config.policy_settings()
            return
        except ConfigError as error:
            if "does not exist" in str(error) or "is no file" in str(error):
                return
            met.append(str(error))
    raise AssertionError(met)


def _within(base: dict, values: dict) -> dict:
    return {k: {**base[k], **v} for k, v in values.items() if k in base and isinstance(v, dict)}


def commands() -> list[tuple[str, list[str]]]:
    """`mmrl ...` of the pages, alone or after `-m`, and of Markdown code in their text."""
    found = [(page, text.replace("\\\n", " ")) for page, _, text in [*blocks("bash"), *blocks("sh")]]
    lines = [
        (page, line.partition("mmrl ")[2]) for page, text in found for line in text.splitlines() if "mmrl " in line
    ]
    return [(page, shlex.split(line, comments=True)) for page, line in lines]


@pytest.mark.parametrize(("page", "words"), commands(), ids=[f"{p}-{w[0]}" for p, w in commands()])
def test_commands_exist_and_take_what_they_are_given(page, words):
    import typer

    group = typer.main.get_command(cli.app)
    name, *rest = words
    assert name in group.commands, f"{page}: mmrl {' '.join(words)}"
    command = group.commands[name]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    if name != "launch":  # which hands everything on
        command.make_context(name, rest)
