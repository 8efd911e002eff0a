"""The card of exported weights says what they are; sending them is an export, a card and two calls of the hub."""

import json
from pathlib import Path

import pytest
import yaml

from mmrl.errors import ConfigError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.model_card import model_card
from mmrl.pipelines.publishing import push


def test_a_card_holds_data_recipe_scores_command_and_version():
    config = read_config("grpo", ["recipe=vppo", "data.train=my|cats.jsonl", "policy.model=Qwen/Qwen2.5-VL-3B"], "vlm")
    card = model_card(config, {"prompts": 64, "success": 0.25}, {"prompts": 64, "success": 0.75, "unscored": 0}, 200)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft", "pipeline_tag": "image-text-to-text",
        "tags": ["mmrl", "reinforcement-learning", "vppo"], "base_model": "Qwen/Qwen2.5-VL-3B",
    }  # fmt: skip
    assert "| success | 0.250 | 0.750 |" in body and "On 64 prompts" in body and "my\\|cats.jsonl" in body
    assert "accuracy x 0.9, format x 0.1" in body and "200 of 200, 16 prompts x 8 answers" in body
    again = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert read_config(again) == config, "the configuration in a card rebuilds the run"


class Recorded:
    """Stands where the hub would: what it was asked, and the files as they were."""

    def __init__(self, refusal: Exception | None = None):
        self.calls, self.files, self.refusal = [], {}, refusal

    def create_repo(self, repository, **options):
        if self.refusal:
            raise self.refusal
        self.calls.append((repository, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}


def test_a_run_is_sent_private_with_its_card(trained):
    _, run, _ = trained
    hub = Recorded()
    assert push(run, "me/mine", merged=False, public=False, api=hub) == "weights and card in me/mine, private"
    assert hub.calls == [("me/mine", {"private": True, "exist_ok": True})]
    card = hub.files["README.md"].decode()
    after = json.loads((run / "result.json").read_text())["after"]
    assert f"{after['reward']:.3f}" in card and "More Information Needed" not in card
    assert any(name.endswith(".safetensors") for name in hub.files)


def test_what_the_hub_refuses_is_one_line(trained):
    _, run, _ = trained
    for error in (OSError("no\nnetwork"), RuntimeError("no network")):  # its client has errors of its own
        with pytest.raises(ConfigError, match=r"me/mine was not sent: no network"):
            push(run, "me/mine", merged=False, public=False, api=Recorded(error))
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        push(run, "mine", merged=False, public=False, api=Recorded())


def test_without_a_token_nothing_is_written_first(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token for the hub: `hf auth login`"):
        push(tmp_path / "no run", "me/mine", merged=False, public=False)
