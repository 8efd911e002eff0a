"""One thing followed over frames, and where and when it is seen.

The mean runs over the frames of the truth, so that answering one easy frame is worth one frame; peers take the
mean over the frames both name (`over="shared"`).
"""

from __future__ import annotations

from mmrl.rewards.grounding import iou
from mmrl.rewards.intervals import Interval
from mmrl.rewards.tasks import UNREAD, Verdict, kind, one_of
from mmrl.rewards.temporal import overlap
from mmrl.rewards.tracks import Track, read, track_in, true_track, true_tube, tube

OVER = ("truth", "shared")


def mean_iou(found: Track, right: Track, over: str = "truth") -> float:
    """Mean IoU over the frames of the truth, or over those that both have."""
    one_of("over", over, OVER)
    shared = [frame for frame in right if frame in found]
    total = sum(iou(found[frame], right[frame]) for frame in shared)
    count = len(right) if over == "truth" else len(shared)
    return total / count if count else 0.0


@kind(
    "tracking",
    read=true_track,
    valid=lambda text: bool(track_in(read(text))),
    answer='JSON of boxes by frame: `{"0": [x1, y1, x2, y2], ...}`, a list of `{"frame": 0, "bbox": [...]}`, or lines '
    "`Frame 0: [x1, y1, x2, y2]`",
    truth="the same",
    aliases=("object_tracking", "video_tracking", "sot"),
)
def tracking(answer: str, right: Track, *, over: str = "truth") -> Verdict:
    """Mean IoU of the boxes over the frames of the truth."""
    found = track_in(read(answer))
    if not found:
        return UNREAD
    parts = {"coverage": sum(frame in found for frame in right) / len(right)}
    return Verdict(mean_iou(found, right, over), True, parts)


@kind(
    "spatial_temporal",
    read=true_tube,
    valid=lambda text: all(tube(text)),
    answer='JSON `{"time": [start, end], "boxes": {"3": [x1, y1, x2, y2], ...}}`, or `2 to 4 s` and lines as for '
    "`tracking`",
    truth="the same",
    aliases=("spatial_temporal_grounding", "spatio_temporal_grounding", "stvg", "temporal_spatial_grounding"),
)
def spatial_temporal(answer: str, right: tuple[Interval, Track], *, over: str = "truth") -> Verdict:
    """Half the overlap in time, half the mean IoU of the boxes (EasyVideoR1)."""
    when, found = tube(answer)
    if when is None and not found:
        return UNREAD
    parts = {"time": overlap(when, right[0]) if when else 0.0, "boxes": mean_iou(found, right[1], over)}
    return Verdict(0.5 * parts["time"] + 0.5 * parts["boxes"], True, parts)
