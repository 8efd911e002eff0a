"""T-GRPO of Video-R1: a second group sees the frames in another order, and is only there to compare with."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from mmrl.errors import ConfigError
from mmrl.media import Reordered
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.origins import HINTED
from mmrl.rollout.plan import Ask, Plan, Step, Strategy
from mmrl.stages import stage


@stage(
    "rollout",
    "video_r1_t_grpo",
    method="video_r1",
    paper="Video-R1, arXiv 2503.21776; code tulerfeng/Video-R1, grpo_trainer.py",
    formula="o ~ pi(. | q, frames) train; G / 2 ~ pi(. | q, frames in another order) are compared with",
    confidence="partly",
    modalities=("video",),
)
class VideoR1TGrpo(Strategy):
    """After the group, a second one on frames in another order, for shaping `video_r1_t_grpo`.

    share  of the group's size that the second group has

    Column `reordered (B,)` is 1 on its rows, which neither count nor train. Prompts without a clip get none.
    """

    origins = (HINTED,)
    columns = {"reordered": 0.0}

    def __init__(self, *, share: float = 0.5) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"rollout 'video_r1_t_grpo': share={share}; choose above 0 and at most 1")
        self.share = share

    def join(self, batch: Batch, step: Step) -> Plan | None:
        other = batch["reordered"] > 0
        groups = sorted(set(batch.group[~other].tolist()) - set(batch.group[other].tolist()))
        count = max(1, round(self.share * step.group_size))
        asks = [] if step.round > 1 else [
            Ask(count, group=group, note=step.number, columns={"reordered": 1.0}) for group in groups
        ]  # fmt: skip
        return Plan(asks, counted=~other, trained=~other)

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        if not prompt.videos:
            return None
        clips = [Reordered(video, seed_of(prompt.id, ask.note, i)) for i, video in enumerate(prompt.videos)]
        return replace(prompt, id=f"{prompt.id}+reordered:{ask.note}", videos=clips, beside={"bare": prompt})


def seed_of(prompt: str, step: int, place: int) -> int:
    """Of the order of one clip: another one each step, the same on every rank and after a resume."""
    digest = hashlib.blake2b(f"{prompt}\x1f{step}\x1f{place}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
