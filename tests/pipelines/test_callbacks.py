"""Code of the user's own hears of a run, and `training.data_epochs` becomes steps before anything hears of them."""

import pytest
import yaml

from mmrl.errors import ConfigError
from mmrl.pipelines.callbacks import Callbacks
from tests.pipelines.runs import write_config

LISTENER = """
class Listener:
    def __init__(self, into):
        self.into = open(into, "a")

    def begin(self, config):
        print("begin", config.training.steps, file=self.into, flush=True)

    def step(self, step, metrics):
        print("step", step, "reward/mean" in metrics, file=self.into, flush=True)

    def rollouts(self, step, folder):
        print("rollouts", step, (folder / "rows.jsonl").exists(), file=self.into, flush=True)

    def end(self, result):
        print("end", result.steps, file=self.into, flush=True)

class Deaf:
    pass
"""


def test_a_run_of_one_epoch_tells_a_listener_everything(tmp_path, bases, mmrl):
    """Four rows, two a step: 1.5 epochs are three steps."""
    (tmp_path / "mine.py").write_text(LISTENER)
    config = write_config(tmp_path, "vlm", bases, "grpo", data_epochs=1.5, save_rollouts_every=2, save_every=0)
    values = yaml.safe_load(config.read_text())
    values["data"].pop("eval")
    values["callbacks"] = [{"name": "mine.py:Listener", "into": str(tmp_path / "heard")}]
    config.write_text(yaml.safe_dump(values))
    done = mmrl("train", "vlm", config)
    assert done.code == 0, done.err
    assert (tmp_path / "heard").read_text().splitlines() == [
        "begin 3", "rollouts 1 True", "step 1 True", "step 2 True", "rollouts 3 True", "step 3 True", "end 3",
    ]  # fmt: skip
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]
    assert (written["steps"], written["data_epochs"]) == (3, None), "the run says what it came to"
    card = (next((tmp_path / "run" / "checkpoints").glob("step-*")) / "policy" / "README.md").read_text()
    assert "More Information Needed" not in card and "3 of 3" in card and "no held-out prompts" in card


def test_in_python_an_object_is_a_listener_already():
    heard = []

    class Own:
        def step(self, step, metrics):
            heard.append((step, metrics))

    Callbacks([Own(), Own]).step(3, {"loss": 1.0})
    assert heard == [(3, {"loss": 1.0})] * 2
    with pytest.raises(ConfigError, match="object has none of begin, step, rollouts, end"):
        Callbacks([object()])


def test_what_would_never_be_called_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(LISTENER)
    for name, why in (("Deaf", "never be called"), ("Listener", "missing 1 required"), ("Nobody", "Nobody")):
        with pytest.raises(ConfigError, match=why):
            Callbacks([f"{tmp_path}/mine.py:{name}"])
    with pytest.raises(ConfigError, match=r"expected path/to/file.py:Class"):
        Callbacks(["wandb"])
