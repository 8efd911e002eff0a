"""Runs from elsewhere, and text that would steer a terminal."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from mmrl.errors import ConfigError
from mmrl.pipelines.cli import app
from mmrl.pipelines.config import read_config
from mmrl.pipelines.report import write_report
from mmrl.pipelines.trust import doors, made_here, remember, require
from mmrl.shown import shown
from tests.pipelines.runs import write_rows

CODE = {"rewards": [{"name": "mine.py:f"}], "policy": {"model": "m", "trust_remote_code": True}}
PLAIN = {"modality": "vlm", "policy": {"model": "m"}, "data": {"train": "d.jsonl"}, "rewards": ["accuracy"]}


@pytest.fixture(autouse=True)
def _nobody_was_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MMRL_TRUST", raising=False)


def test_what_a_configuration_opens():
    assert doors(read_config(PLAIN)) == []
    opened = doors(
        read_config({**PLAIN, **CODE, "data": {"train": "d.jsonl", "allow_urls": True, "allow_outside": True}})
    )
    for part in (
        f"runs the reward {Path.cwd()}/mine.py:f",
        "comes with the model m",
        "from anywhere",
        "fetches addresses",
    ):
        assert any(part in door for door in opened), part


def test_rewards_that_send_or_start_something_are_doors():
    judge = {"name": "judge", "options": {"url": "http://elsewhere:1/v1", "model": "m", "key_env": "MY_KEY"}}
    opened = doors(read_config({**PLAIN, "rewards": [judge, {"name": "hpsv2", "python": "/opt/there/bin/python"}]}))
    assert opened == [
        "sends prompts, answers and media to http://elsewhere:1/v1, with the key in MY_KEY",
        "runs the reward hpsv2 by the program /opt/there/bin/python",
    ]


def test_rewards_that_only_watch_are_doors_too():
    judge = {"name": "judge", "python": "/opt/there/bin/python", "options": {"url": "http://elsewhere:1/v1"}}
    watched = doors(read_config({**PLAIN, "watch": {"rewards": [judge, "accuracy", "mine.py:f"]}}))
    assert set(doors(read_config({**PLAIN, "rewards": [judge, "accuracy", "mine.py:f"]}))) <= set(watched)
    assert len(watched) >= 3


def test_doors_of_a_foreign_run_are_shut_until_this_user_opened_them(tmp_path):
    config = read_config({**PLAIN, **CODE})
    with pytest.raises(ConfigError, match=r"runs the reward .*mine.py:f.*comes with the model m.*--trust"):
        require(config, config, tmp_path, trust=False)
    require(config, config, tmp_path, trust=True)
    own = read_config({**PLAIN, **CODE}, ["rewards=[{name: other.py:g}]", "policy.trust_remote_code=false"])
    require(config, own, tmp_path, trust=False)  # what the user asks for now is the user's own
    assert not made_here(tmp_path)
    remember(config, tmp_path)
    require(config, config, tmp_path, trust=False)
    assert made_here(tmp_path)


def test_a_bare_resume_of_a_foreign_run_runs_nothing(tmp_path):
    """Its configuration names a reward that would leave a trace."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\ndef f(completions): return [1.0]\n")
    run = tmp_path / "run"
    run.mkdir()
    values = {**PLAIN, "rewards": [{"name": f"{tmp_path}/evil.py:f"}], "policy": {"model": "asset:tiny_vlm"}}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="--trust"), redirect_stdout(io.StringIO()):
        app(["train", "vlm", "--resume", str(run)], standalone_mode=False)
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A run with one rollout, whose files someone else wrote."""
    folder = tmp_path / "run" / "rollouts" / "step-000001"
    folder.mkdir(parents=True)
    row = {
        "prompt": "a question",
        "solution": None,
        "group": 0,
        "media": [],
        "videos": [],
        "reward": 1.0,
        "components": {},
    }
    write_rows(folder / "rows.jsonl", [{**row, "components": {}, "output": "an answer", "actions": []}])
    write_rows(tmp_path / "run" / "metrics.jsonl", [{"step": 1, "rollouts": 1, "reward/mean": 0.5}])
    (tmp_path / "secret.png").write_bytes(b"a secret")
    return tmp_path / "run"


def change(run: Path, **values) -> None:
    path = run / "rollouts" / "step-000001" / "rows.jsonl"
    write_rows(path, [{**json.loads(path.read_text()), **values}])


def test_a_report_shows_what_is_inside_the_run(foreign):
    assert "a question" in write_report(foreign).read_text()


@pytest.mark.parametrize("how", ["path", "link", "folder", "videos"])
def test_a_report_reads_nothing_outside_the_run(foreign, how, capsys):
    step = foreign / "rollouts" / "step-000001"
    if how == "path":
        change(foreign, media=["../../../secret.png"])
    elif how == "link":
        (step / "a.png").symlink_to(foreign.parent / "secret.png")
        change(foreign, media=["a.png"])
    elif how == "folder":
        shutil.move(step, foreign.parent / "elsewhere")
        step.symlink_to(foreign.parent / "elsewhere")
    else:
        change(
            foreign, videos=[str(foreign.parent / "secret.png")]
        )  # would be refused by the decoder, if it were asked
    page = write_report(foreign).read_text()
    assert "YSBzZWNyZXQ" not in page
    assert ("a question" in page) == (how == "videos")
    assert ("is left out" in capsys.readouterr().err) == (how != "videos")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "result.json"])
def test_a_report_of_links_is_refused(foreign, name):
    (foreign / name).unlink(missing_ok=True)
    (foreign.parent / "outside").write_text('{"step": 1, "rollouts": 1}\n')
    (foreign / name).symlink_to(foreign.parent / "outside")
    with pytest.raises(ConfigError, match="leads outside the run"):
        write_report(foreign)


def test_a_folder_killed_while_it_was_saved_is_left_out(foreign):
    (foreign / "rollouts" / "step-000009").mkdir()
    assert "a question" in write_report(foreign).read_text()


def test_control_codes_are_shown_not_obeyed():
    assert shown("a\x1b]0;owned\x07\x1b[2J\x9b31m") == "a\\x1b]0;owned\\x07\\x1b[2J\\x9b31m"
    assert shown("turned \u202e and half \ud800") == "turned \\u202e and half \\ud800"
    assert shown("é 漢 😀\n\ttab") == "é 漢 😀\n\ttab"
    shown("\ud800").encode()


def test_check_shows_a_data_set_s_codes(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [{"prompt": "\x1b]52;c;cHduZWQ=\x07\x1b[2J", "solution": "1"}])
    with redirect_stdout(io.StringIO()) as out:
        app(["check", str(rows)], standalone_mode=False)
    assert "\x1b" not in out.getvalue()
    assert "\\x1b]52" in out.getvalue()


@pytest.mark.parametrize("reward", [float("nan"), 10**400, "x", [1]])
def test_a_number_that_no_browser_reads_leaves_its_step_out_and_not_the_page(foreign, reward, capsys):
    change(foreign, reward=reward)
    page = write_report(foreign).read_text()
    assert "a question" not in page and "NaN" not in page
    assert "is left out" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"watch\.rewards\.0\.name: .* got \[\{\}\]"):
        doors(read_config({**PLAIN, "watch": {"rewards": [{"name": [{}]}]}}))
