"""Rewards that hang, die, raise, answer nonsense, or leave processes behind."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from mmrl.errors import RewardError
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel
from tests.chaos.trials import Tally

SOURCE = """
import os, subprocess, sys, time

CHILD = "import os, sys, time; open(sys.argv[1], 'a').write(str(os.getpid()) + ' '); time.sleep(600)"

def child(pidfile, detached):
    return subprocess.Popen([sys.executable, "-c", CHILD, pidfile], start_new_session=detached)

def hangs(completions): time.sleep(600)
def hangs_on_a(completions):
    if "a" in completions: time.sleep(600)
    return [1.0] * len(completions)
def dies(completions): os._exit(3)
def aborts(completions): os.abort()
def exits(completions): sys.exit(4)
def raises(completions): raise ValueError("\\x1b[2J no")
def too_few(completions): return [1.0]
def nothing(completions): return None
def words(completions): return ["good"] * len(completions)
def huge(completions): return [10**400] + [1e39] + [1.0] * (len(completions) - 2)
def nan(completions): return [float("nan")] * len(completions)
def forks(completions): os.fork(); return [float(len(text)) for text in completions]
def forks_and_raises(completions):
    if os.fork() == 0: raise ValueError("the child")
    return [float(len(text)) for text in completions]
def writes_into_pipes(completions):
    for number in range(3, 64):
        try: os.write(number, b"garbage\\n")
        except OSError: pass
    return [1.0] * len(completions)
def closes_pipes_then_hangs(completions): os.closerange(3, 64); time.sleep(600)
def cannot_travel(completions): return [{"made": [object()], "score": 1.0}] * len(completions)
def endless_recursion(completions): return endless_recursion(completions)
def no_memory(completions): raise MemoryError
def interrupts(completions): os.kill(os.getpid(), 2); time.sleep(600)
def closes_pipes(completions): os.closerange(3, 64); return [1.0] * len(completions)
def child_then_hangs(completions, *, pidfile): child(pidfile, True); time.sleep(600)
def child_then_dies(completions, *, pidfile): child(pidfile, True); time.sleep(1); os._exit(1)
def daemon_then_hangs(completions, *, pidfile):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execve(sys.executable, [sys.executable, "-c", CHILD, pidfile], {})
        os._exit(0)
    time.sleep(600)
def child_left(completions, *, pidfile): child(pidfile, False); time.sleep(1); return [1.0] * len(completions)
"""
ALL_LOST = (
    "hangs", "dies", "aborts", "exits", "raises", "nothing", "words", "nan", "writes_into_pipes",
    "closes_pipes_then_hangs", "cannot_travel", "endless_recursion", "no_memory", "interrupts",
)  # fmt: skip
PROMPTS = [Prompt(str(i), [{"role": "user", "content": "x"}]) for i in range(4)]
OUTPUTS = ["a", "b", "c", "d"]


def misbehave(folder: Path) -> list[Tally]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bad.py").write_text(SOURCE)
    lost = Tally("a reward that hangs, dies, raises or answers nonsense")
    for name in ALL_LOST:
        lost.count(_unscored(folder, name, len(OUTPUTS)))
    lost.count(_unscored(folder, "hangs_on_a", 1))
    lost.count(_unscored(folder, "huge", 2))
    for name in ("forks", "forks_and_raises"):
        lost.count(_answered_once(folder, name))
    left = Tally("a process that a reward started, in a session of its own or not")
    for name in ("child_then_hangs", "child_then_dies", "child_left", "daemon_then_hangs"):
        left.count(_leaves_nobody(folder, name))
    return [lost, left, _budget(folder)]


def _unscored(folder: Path, name: str, expected: int) -> str:
    with RewardPanel([{"name": f"{folder / 'bad.py'}:{name}", "timeout": 1.0}], unscored_ceiling=1.0) as panel:
        scores = panel.score(OUTPUTS, PROMPTS)
    found = int(scores.reward.isnan().sum())
    return "" if found == expected else f"{name}: {found} unscored, expected {expected}: {scores.causes}"


def _answered_once(folder: Path, name: str) -> str:
    """A forked child that comes back from the call answers nothing: its words would be taken for the next answer."""
    with RewardPanel([{"name": f"{folder / 'bad.py'}:{name}", "timeout": 10.0}]) as panel:
        for outputs in (["a", "bb", "ccc", "dddd"], ["dddd", "ccc", "bb", "a"], ["", "a", "bb", "ccc"]):
            scores = panel.score(outputs, PROMPTS)
            if scores.reward.tolist() != [float(len(text)) for text in outputs]:
                return f"{name}: {outputs} scored {scores.reward.tolist()}, {scores.causes}"
    return ""


def _budget(folder: Path) -> Tally:
    """Twenty rows that hang for a second each may take three together."""
    tally = Tally("a reward that hangs on every row, within its budget")
    prompts, began = PROMPTS * 5, time.monotonic()
    spec = {"name": f"{folder / 'bad.py'}:hangs", "timeout": 1.0}
    with RewardPanel([spec], unscored_ceiling=1.0, budget=3.0) as panel:
        scores = panel.score(OUTPUTS * 5, prompts)
    seconds = time.monotonic() - began
    told = any("budget of 3 s" in cause for cause in scores.causes)
    tally.count("" if told and seconds < 15 else f"{seconds:.0f} s, {scores.causes}")
    return tally


def _leaves_nobody(folder: Path, name: str) -> str:
    pids = folder / f"{name}.pids"
    spec = {"name": f"{folder / 'bad.py'}:{name}", "timeout": 3.0, "options": {"pidfile": str(pids)}}
    with RewardPanel([spec], unscored_ceiling=1.0) as panel, suppress(RewardError):
        panel.score(OUTPUTS[:1], PROMPTS[:1])
    started = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    alive = [pid for pid in started if _alive(pid)]
    return "" if started and not alive else f"{name}: started {started}, alive {alive}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False
