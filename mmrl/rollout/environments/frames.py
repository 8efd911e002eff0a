"""More frames of a clip: the policy names two moments and is shown what lies between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmrl.errors import ConfigError
from mmrl.media import Clip
from mmrl.record import Prompt
from mmrl.rollout.environments.base import MAX_TURNS, Done, Environment, Observation
from mmrl.rollout.environments.calls import BadCall, call_in, numbers
from mmrl.stages import stage

EXAMPLE = '{"start": seconds, "end": seconds} with 0 <= start < end'


@stage(
    "environment",
    "frames",
    paper="after LongVT, arXiv 2511.20785",
    formula='<tool>{"start": s, "end": e}</tool> shows frames between two moments, sampled as the prompt is',
    confidence="ours",
    modalities=("video",),
)
class FramesBetween(Environment):
    """Frames between two moments of the prompt's clip, in seconds from its beginning.

    The policy's own reader samples them, with the same frame and pixel budgets as the prompt's clip: a shorter part
    is seen more often. Frames lie on the file's own grid, so a part shorter than the reader's fewest frames is refused.

    Its row column `fetched` is the overlap of the first part it shows with the prompt's column `span`, [start, end] in
    seconds, over their union: 0 where nothing was shown or a data set has no such column. Credit `dynframe_turns`
    reads it.

    video      which of the prompt's clips, from 0
    shortest   seconds; a shorter part is a bad call
    max_turns  looks and the answer, at most
    """

    columns: ClassVar[Mapping[str, float]] = {"fetched": 0.0}

    def __init__(self, *, video: int = 0, shortest: float = 0.5, max_turns: int = MAX_TURNS) -> None:
        if video < 0 or shortest <= 0:
            raise ConfigError(f"environment 'frames': video={video}, shortest={shortest}: expected 0 and more than 0")
        self.video, self.shortest, self.max_turns = video, shortest, max_turns

    def reset(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": prompt, "fetched": None}

    def step(self, state: dict[str, Any], output: str) -> Observation | Done:
        prompt = state["prompt"]
        try:
            arguments = call_in(output)
            if arguments is None:
                return Done({"fetched": state["fetched"] or 0.0})
            part = self._part(prompt, arguments)
        except BadCall as error:
            return Observation.of(f"{error}.", bad=error.cause)
        if state["fetched"] is None:
            state["fetched"] = overlap((arguments["start"], arguments["end"]), prompt.columns.get("span"))
        return Observation.of("", videos=[part])

    def _part(self, prompt: Prompt, arguments: dict[str, Any]) -> Clip:
        if self.video >= len(prompt.videos):
            raise BadCall("no clip", f"there is no clip {self.video} here, only {len(prompt.videos)}")
        clip = prompt.videos[self.video]
        whole = clip if isinstance(clip, Clip) else Clip(clip)
        if set(arguments) != {"start", "end"}:
            raise BadCall("wrong arguments", f"expected {EXAMPLE}, got {sorted(arguments)}")
        start, end = numbers([arguments["start"], arguments["end"]], 2, EXAMPLE)
        if not 0 <= start < end:
            raise BadCall("wrong times", f"expected {EXAMPLE}, got {start:g} and {end:g}")
        if end - start < self.shortest:
            raise BadCall("too short", f"a part lasts at least {self.shortest:g} seconds, got {end - start:g}")
        first = whole.start or 0.0
        if whole.end is not None and first + end > whole.end:
            raise BadCall("past the end", f"the clip lasts {whole.end - first:g} seconds, got end={end:g}")
        return Clip(whole.path, first + start, first + end)


def overlap(part: tuple[float, float], span: Any) -> float:
    """What two intervals share over what they cover; 0 for a span that is no [start, end]."""
    if not isinstance(span, list | tuple) or len(span) != 2 or not all(isinstance(each, int | float) for each in span):
        return 0.0
    shared = min(part[1], span[1]) - max(part[0], span[0])
    covered = max(part[1], span[1]) - min(part[0], span[0])
    return max(0.0, shared / covered) if covered > 0 else 0.0
