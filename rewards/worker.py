"""The process rewards run in: `python -m mmrl.rewards.worker`, started and killed by `mmrl.rewards.pool`.

Requests arrive on standard input and answers leave on the original standard output; what rewards print goes
to standard error. Requests:

    {"op": "load", "key", "name", "options", "style"}          -> its columns, "success", "isolated"
    {"op": "call", "key", "prompts", "completions", "columns"} -> {"rows": [[values, problems, lists], ...]}
    {"op": "ping"}                                             -> {}
    {"op": "unread", "why"}, in place of one that cannot be read -> {"refused"}

Any but the last may answer {"error", "traceback"} (the reward raised) or {"refused"} (a RewardError: a mistake in the
configuration or the dataset, which stops the run). No torch is imported here, and the process ends with the trainer.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from mmrl.errors import RewardError
from mmrl.rewards.calls import Callee, Inputs, prepare
from mmrl.rewards.children import MARK, adopt_orphans, kill_family
from mmrl.rewards.registry import resolve
from mmrl.rewards.wire import read_message, write_message

TRACEBACK_LINES = 12


def describe(error: BaseException) -> dict[str, str]:
    """`ValueError: message` on one line, and the end of its traceback."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    message = " ".join(str(error).split())
    name = type(error).__name__
    return {
        "error": f"{name}: {message}" if message else name,
        "traceback": "\n".join(lines[-TRACEBACK_LINES:]),
    }


def answer(request: dict[str, Any], loaded: dict[str, Callee]) -> dict[str, Any]:
    """Load or call a reward; whatever it raises becomes part of the answer."""
    try:
        if request["op"] == "ping":
            return {}
        if request["op"] == "unread":
            return {"refused": request["why"]}
        if request["op"] == "load":
            reward = resolve(request["name"])
            callee = loaded[request["key"]] = prepare(reward, request["options"], request["style"])
            return {**asdict(callee.columns), "success": reward.success, "isolated": reward.isolated}
        inputs = Inputs(request["prompts"], request["completions"], request["columns"])
        return {"rows": [[o.values, o.problems, o.lists] for o in loaded[request["key"]](inputs)]}
    except RewardError as error:
        return {"refused": str(error)}
    except BaseException as error:  # SystemExit too: a reward may call sys.exit()
        return describe(error)


def _read_all(stream: IO[bytes], requests: queue.SimpleQueue) -> None:
    while True:
        try:
            request = read_message(stream)
        except ImportError as error:  # pictures for an interpreter that cannot open any
            request = {"op": "unread", "why": f"{sys.executable} lacks {error.name}, which its pictures need"}
        if request is None:
            break
        requests.put(request)
    # the trainer is gone: stop, even in the middle of a reward that hangs, and take along what rewards started
    kill_family(os.getpid(), os.environ.get(MARK, ""), spare=os.getpid())
    os._exit(0)


def serve(answering: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests from standard input, one after another, until the trainer is gone.

    A child that a call forked and that comes back from it ends here: two answers to one question would be taken for the
    answer to the next.
    """
    owner = os.getpid()
    adopt_orphans()
    requests_in, answers_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read_all, args=(requests_in, requests), daemon=True).start()
    while True:
        reply = answering(requests.get())
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if os.getpid() != owner:
            os._exit(0)
        try:
            write_message(answers_out, reply)
        except (RewardError, ValueError, RecursionError) as error:  # values that cannot travel; nothing was written
            write_message(answers_out, describe(error))


if __name__ == "__main__":
    loaded: dict[str, Callee] = {}
    serve(lambda request: answer(request, loaded))
