"""The generated pages say everything the code registers, and a stale page is noticed."""

import re

import pytest

from docs import generate
from mmrl import stages
from mmrl.pipelines.methods import methods_json
from mmrl.recipes import recipe_names
from mmrl.settings import Section
from mmrl.stages import registered, stage
from mmrl.training.config import TrainingConfig
from mmrl.training.diagnosis import RULES
from mmrl.training.glossary import entries


def test_every_method_and_recipe_is_on_the_page():
    text = generate.methods()
    headings = re.findall(r"^### `(\w+)\(", text, re.MULTILINE)
    assert sorted(headings) == sorted(f.name for f in generate.shipped())
    assert all(f"| **`{name}`** |" in text for name in recipe_names())
    for method in methods_json():
        assert all(method[key] for key in ("summary", "formula", "stages", "modalities", "confidence", "paper")), method


def test_what_a_plugin_registers_is_not_on_the_page(monkeypatch):
    """Other tests of this process load plugins; so may whoever runs `make docs`."""
    registered()
    monkeypatch.setattr(stages, "_REGISTRY", dict(stages._REGISTRY))

    @stage("advantage", "of_a_plugin", paper="none", confidence="ours")
    def of_a_plugin(batch):
        return batch.rewards

    assert "of_a_plugin" in {f.name for f in registered("advantage")}
    assert "of_a_plugin" not in generate.methods()


def test_every_reward_is_on_the_page():
    text = generate.rewards()
    assert all(f"| `{name}` |" in text for name in generate.shipped_rewards())


def test_every_key_is_on_the_page_with_its_default():
    training = generate.configuration().split("\n## training\n")[1].split("\n## ")[0]
    for key, info in TrainingConfig.model_fields.items():
        default = "see below" if isinstance(info.default, Section) else repr(info.default)
        assert re.search(rf"^\| `{key}` \| .* \| `{re.escape(default)}` \|$", training, re.MULTILINE), key


def test_tables_keep_their_columns():
    """A bar or a line break inside a cell would shift every cell behind it."""
    assert generate.table(("a", "b"), ("x | y", "two\nlines")).splitlines()[2] == "| x \\| y | two lines |"


@pytest.mark.parametrize(("text", "code"), [("page\n", 0), ("older\n", 1), (None, 1)])
def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys, text, code):
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"page.md": lambda: "page\n"})
    if text is not None:
        (tmp_path / "page.md").write_text(text)
    assert generate.main(check=True) == code
    assert ("page.md" in capsys.readouterr().out) == bool(code)


def test_writing_makes_pages_current(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"page.md": lambda: "page\n"})
    assert generate.main(check=False) == 0
    assert generate.main(check=True) == 0


def test_recipes_that_are_recommended_exist():
    tables = [line for line in (generate.FOLDER / "choosing.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for line in tables for name in re.findall(r"`(\w+)`", line.split("|")[3])}
    assert len(named) > 25 and named - set(recipe_names()) == set()


def test_every_rule_and_metric_is_on_its_page():
    text = generate.metrics()
    assert all(f"| `{entry.name}` |" in text for entry in entries())
    assert all(f"| `{rule.name}` |" in text for rule in RULES)
