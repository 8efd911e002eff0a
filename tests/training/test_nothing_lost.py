"""Run directories, their locks and their metrics; whom a run lets in."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl.errors import ConfigError, StorageError
from mmrl.training import checkpoint
from mmrl.training.peers import end_with_launcher
from mmrl.training.resume import check_folder, fresh_start
from mmrl.training.run_lock import RunLock
from mmrl.training.stopping import LAUNCHED
from mmrl.training.tracking import JsonLines, read_metrics

HOLD = """
import sys, time
from pathlib import Path
from mmrl.training.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows))


def test_a_second_process_is_refused_by_pid_and_host(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"is in use by process {holder.pid} on {os.uname().nodename} since"):
            RunLock(tmp_path / "run")
    finally:
        holder.kill()
        holder.wait()
    RunLock(tmp_path / "run").release()  # a killed process holds nothing


def test_a_lock_is_refused_in_the_same_process_too_and_leaves_nothing_behind(tmp_path):
    lock = RunLock(tmp_path / "run")
    with pytest.raises(ConfigError, match="is in use by process"):
        RunLock(tmp_path / "run")
    lock.release()
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path, capsys):
    lines(tmp_path / "metrics.jsonl", '{"step": 1}', '{"step": 2}')
    fresh_start(tmp_path)
    assert "was stopped before its first checkpoint" in capsys.readouterr().err
    assert len(read_metrics(tmp_path / "set_aside" / "1" / "metrics.jsonl")) == 2
    JsonLines(tmp_path / "metrics.jsonl").close()
    fresh_start(tmp_path)  # nothing more to set aside
    assert [p.name for p in (tmp_path / "set_aside").iterdir()] == ["1"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_new_run_is_refused_where_there_are_checkpoints(tmp_path, whole):
    """Whatever became of metrics.jsonl."""
    lines(tmp_path / "checkpoints" / "step-000004" / ("state.json" if whole else "trainable.safetensors"), "{}")
    with pytest.raises(ConfigError, match=r"already holds a run \(step-000004 in checkpoints\)"):
        fresh_start(tmp_path)


def test_a_damaged_line_of_metrics_is_named_and_nothing_after_it_lost(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff{"step": 2\n{"nostep": 1}\n{"step": 3}\n{"step": 4}\n{"step": 5, "cut')
    assert [m["step"] for m in read_metrics(path)] == [1, 3, 4]
    assert f"{path}, line 2 and 1 more: not the metrics of a step" in capsys.readouterr().err
    JsonLines(path, keep_until=3).close()
    assert [m["step"] for m in read_metrics(path)] == [1, 3]
    assert (tmp_path / "metrics.damaged.txt").read_bytes() == b'\xff{"step": 2\n{"nostep": 1}\n'


def test_folders_that_are_no_run_of_ours_are_refused(tmp_path):
    lines(tmp_path / "other" / "thesis.tex", "text")
    lines(tmp_path / "file", "text")
    for folder, why in (("/", "this run alone"), (Path.home(), "this run alone"), (tmp_path / "file", "is a file")):
        with pytest.raises(ConfigError, match=why):
            check_folder(Path(folder))
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\) and is no run"):
        check_folder(tmp_path / "other")
    check_folder(tmp_path / "new")
    lines(tmp_path / "other" / "metrics.jsonl")
    check_folder(tmp_path / "other")  # a user's notes beside a run are welcome


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path):
    lines(tmp_path / "theirs" / "metrics.jsonl")
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_folder(tmp_path / "theirs")


def test_an_interrupted_deletion_is_never_complete(tmp_path, monkeypatch):
    """The name goes first: killed in the middle, what is left has none that counts."""
    path = tmp_path / "checkpoints" / "step-000001"
    lines(path / "state.json", json.dumps({"step": 1}))
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: None)  # killed before the first file went
    from mmrl.training.storage import remove_tree

    remove_tree(path)
    assert checkpoint.checkpoints(tmp_path) == []
    assert [p.name for p in path.parent.iterdir()] == [".step-000001.deleted"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system call is Linux's")
def test_a_launcher_that_is_killed_takes_its_ranks_along(tmp_path, monkeypatch):
    """A rank hears of it as SIGTERM, on which it saves."""
    monkeypatch.setenv(LAUNCHED, "a run")
    launcher = os.fork()
    if not launcher:
        if os.fork():
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, lambda *_: ((tmp_path / "asked").touch(), os._exit(0)))
        end_with_launcher()
        (tmp_path / "ready").touch()
        time.sleep(20)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1]) == -signal.SIGKILL
    limit = time.monotonic() + 10
    while not (tmp_path / "asked").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    assert (tmp_path / "asked").exists()


def test_a_configuration_of_the_user_s_own_is_not_written_over(tmp_path):
    lines(tmp_path / "mine" / "config.yaml", "recipe: grpo")
    with pytest.raises(ConfigError, match=r"holds other files \(config.yaml\) and is no run"):
        check_folder(tmp_path / "mine")
    lines(tmp_path / "mine" / "environment.json", "{}")
    check_folder(tmp_path / "mine")


def test_a_folder_this_user_trained_in_is_entered_whoever_owns_it(tmp_path, monkeypatch):
    """A container's user trains in a folder that the host made."""
    lines(tmp_path / "environment.json", "{}")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_folder(tmp_path)
    check_folder(tmp_path, made_here=True)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    lines(tmp_path / "thesis.tex", "text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(StorageError, match=r"\.lock: Too many levels of symbolic links"):
        RunLock(tmp_path / "run")
    assert (tmp_path / "thesis.tex").read_text() == "text\n"


@pytest.mark.parametrize("note", ['{"step": 1e999, "into": 1}', "[1]", "[" * 10**5, '{"step": "x", "into": 1}', "\xff"])
def test_a_note_of_going_back_that_is_none_is_not_followed(tmp_path, note):
    (tmp_path / checkpoint.GOING_BACK).write_text(note)
    assert checkpoint.going_back(tmp_path) is None
    fresh_start(tmp_path)
