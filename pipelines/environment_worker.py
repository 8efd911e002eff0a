"""The process an environment runs in: `python -m mmrl.pipelines.environment_worker`, started by `environments`.

{"op": "load", "choice"}            the environment, once
{"op": "prompt", "prompt"}          a prompt that conversations will be about
{"op": "reset", "talk", "prompt"}   a new conversation about the prompt of that id
{"op": "step", "talk", "output"}    -> an observation, or {"done"}
{"op": "forget"}                    all conversations and prompts
{"op": "ping"}
"""

from __future__ import annotations

from typing import Any

from mmrl.errors import MMRLError
from mmrl.pipelines.environments import packed_reply, unpacked_prompt
from mmrl.rewards.worker import describe, serve
from mmrl.rollout.environments.base import Environment, checked
from mmrl.rollout.environments.opening import environment_of


class Desk:
    """What this process knows."""

    def __init__(self) -> None:
        self.environment: Environment | None = None
        self.prompts: dict[str, Any] = {}
        self.talks: dict[int, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whatever the environment raises becomes part of the answer."""
        try:
            return self._answered(request)
        except BaseException as error:  # SystemExit too: an environment may call sys.exit()
            return describe(error)

    def _answered(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "load":
            self.environment = environment_of(request["choice"]).state
        elif op == "prompt":
            prompt = unpacked_prompt(request["prompt"])
            self.prompts[prompt.id] = prompt
        elif op == "forget":
            self.prompts.clear()
            self.talks.clear()
        elif op in ("reset", "step"):
            if self.environment is None:
                raise MMRLError("the environment was not loaded")
            if op == "reset":
                self.talks[request["talk"]] = self.environment.reset(self.prompts[request["prompt"]])
            else:
                reply = self.environment.step(self.talks[request["talk"]], request["output"])
                return packed_reply(checked(reply, self.environment))
        return {}


if __name__ == "__main__":
    serve(Desk().answer)
