"""New pictures for old questions: Syn-GRPO lets the policy describe them, and a data server draw them meanwhile."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mmrl.errors import ConfigError, MMRLError
from mmrl.over_http import to_base64
from mmrl.record import Batch, Prompt, Rollouts
from mmrl.rollout.plan import Ask, Plan, Step
from mmrl.rollout.proposing import MEMBER, SOLVES, Proposal, Proposing, asking, tagged
from mmrl.rollout.synthesis.client import DataServer, Taken
from mmrl.stages import LANGUAGE, stage

INVITATION = (
    "{question}\n\nDo not answer. Describe other surroundings for what is in the picture, so that the question becomes "
    "harder to answer, and its answer stays the same. Write them between <description> and </description>."
)
LONGEST = 1000  # characters of a description that are sent


@stage(
    "rollout",
    "syn_grpo",
    paper="Syn-GRPO, arXiv 2511.19343",
    formula="d ~ pi(. | x); x' = server(x, d), drawn meanwhile; o ~ pi(. | x') train; r(d) = clip(std r(o) / .5, 0, 1) "
    "by shaping `proposals`, kind spread",
    confidence="reconstructed",
    waits=("url",),
    modalities=LANGUAGE,
)
class SynGrpo(Proposing):
    """The policy describes new surroundings of pictures; what a data server draws of them is asked in their place.

    url         where `mmrl serve-samples` listens
    proposers   prompts of a step that are described anew, besides the prompts of the step
    proposals   descriptions of each
    solvers     answers to a new picture; None: `training.group_size`
    wait        seconds a step waits for what it has just asked for: a description whose picture comes in time is paid
                by the spread of the answers to it. One that comes later trains as a prompt; its description no longer
    most        pictures of earlier steps that a step takes on
    patience    steps after which a picture that never came is given up
    timeout, retries, key_env  of the server

    The question stays, and so does the truth where the server does not say another. What was asked for and has not come
    is part of a checkpoint; a server that does not know it any more is asked again.
    """

    def __init__(
        self, *, url: str = "", proposers: int = 1, proposals: int = 4, solvers: int | None = None, wait: float = 30.0,
        most: int = 4, patience: int = 100, template: str = INVITATION, timeout: float = 60.0, retries: int = 4,
        key_env: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(proposers=proposers, proposals=proposals, solvers=solvers)
        if wait < 0 or most < 0 or patience < 1 or "{question}" not in template:
            raise ConfigError(
                f"rollout 'syn_grpo': wait={wait}, most={most}, patience={patience}; expected at least 0, 0 and 1, and "
                "a template with {question}"
            )
        self.server = DataServer(url, timeout, retries, key_env) if url else None
        self.wait, self.most, self.patience, self.template = wait, most, patience, template
        self.prompts: Sequence[Prompt] = ()
        self.pending: list[dict[str, Any]] = []
        self.pictures: dict[str, tuple[Any, Any]] = {}
        self.lost = 0

    def meet(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def invite(self, prompt: Prompt) -> Prompt:
        if len(prompt.images) != 1:
            raise ConfigError(
                f"rollout 'syn_grpo': prompt {prompt.id!r} has {len(prompt.images)} pictures; expected one to draw anew"
            )
        return asking(prompt, self.template.replace("{question}", prompt.text), "describe")

    def read(self, text: str, seed: str) -> Proposal | None:
        said = tagged(text, "description")
        return Proposal(said[:LONGEST]) if said else None

    # ---- rounds

    def ask(self, step: Step) -> Plan | None:
        """The step's own prompts, those that describe, and pictures of earlier steps that have come."""
        self.pictures = {}
        plan = super().ask(step)
        old, taken = list(self.pending), self._take(self.pending, step, 0.0)
        came = [sample for sample in old if sample["id"] in taken.ready][: self.most]
        self.pictures |= {sample["id"]: taken.ready[sample["id"]] for sample in came}
        self._tell(taken)
        gone = {s["id"] for s in old if s["id"] in taken.failed or step.number - s["step"] >= self.patience}
        self.lost += len(gone - {sample["id"] for sample in came})
        self.pending = [s for s in old if s["id"] not in gone | self.pictures.keys()]
        self._put([sample for sample in self.pending if sample["id"] in taken.unknown])
        return Plan([*(plan.ask if plan else ()), *(self._posed(sample, step) for sample in came)])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        new = [
            {"id": _id(step, g, m, said.question), "row": step.groups[g], "description": said.question,
             "step": step.number, "group": g, "member": m}
            for g, m, said in self.unread(batch, step) if step.groups[g] is not None
        ]  # fmt: skip
        if not new:
            return None
        self._put(new)
        taken = self._take(new, step, self.wait)
        self.pictures |= taken.ready
        self.lost += len(taken.failed)
        self._tell(taken)
        self.pending += [
            {key: sample[key] for key in ("id", "row", "description", "step")}
            for sample in new if sample["id"] not in taken.ready and sample["id"] not in taken.failed
        ]  # fmt: skip
        late = [sample for sample in new if sample["id"] not in taken.ready]
        out = torch.zeros_like(batch.counted)
        for sample in late:  # nobody can say what it is worth
            out |= (batch.group == sample["group"]) & (batch.member == sample["member"])
        asks = [self._posed(sample, step, sample) for sample in new if sample["id"] in taken.ready]
        return Plan(asks, counted=batch.counted & ~out, trained=batch.trained & ~out)

    def _posed(self, sample: dict[str, Any], step: Step, by: dict[str, Any] | None = None) -> Ask:
        columns = {SOLVES: float(by["group"]), MEMBER: float(by["member"])} if by else {}
        return Ask(
            self.solvers or step.group_size, index=sample["row"], note=("sample", sample["id"]), trains="shown",
            columns=columns,
        )  # fmt: skip

    def shown(self, ask: Ask, prompt: Prompt, rows: Rollouts | None) -> Prompt | None:
        if ask.note == "invite":
            return self.invite(prompt)
        picture, truth = self.pictures[ask.note[1]]
        columns = dict(prompt.columns) if truth is None else {**prompt.columns, "solution": truth}
        return replace(
            prompt, id=f"{prompt.id}+drawn:{ask.note[1]}", images=[picture], columns=columns, beside={"bare": prompt}
        )

    # ---- the server

    @property
    def _at(self) -> DataServer:
        if self.server is None:
            raise ConfigError("rollout 'syn_grpo' waits for its url: where `mmrl serve-samples` listens")
        return self.server

    def _put(self, samples: Sequence[dict[str, Any]]) -> None:
        """All ranks ask for the same: the server leaves alone what it knows."""
        if samples:
            self._at.put([self._told(sample) for sample in samples])

    def _told(self, sample: dict[str, Any]) -> dict[str, Any]:
        from mmrl.policies.images import open_image

        prompt = self.prompts[sample["row"]]
        told = {name: prompt.columns.get(name) for name in ("solution", "task")}
        picture = to_base64(open_image(prompt.images[0], prompt))
        return {"id": sample["id"], "description": sample["description"], "question": prompt.text, **told,
                "image_b64": picture}  # fmt: skip

    def _take(self, samples: Sequence[dict[str, Any]], step: Step, wait: float) -> Taken:
        ids = [sample["id"] for sample in samples]
        digest = hashlib.blake2b("\n".join(ids).encode(), digest_size=6).hexdigest()
        taken = self._at.take(f"{step.key.seed}-{step.number}-{step.round}-{digest}", ids, wait)
        if strange := {*taken.ready, *taken.failed} - set(ids):
            raise MMRLError(f"data server {self._at.url} gave {sorted(strange)[0]!r}, which nobody asked for")
        return taken

    def _tell(self, taken: Taken) -> None:
        if taken.failed:
            why = next(iter(taken.failed.values()))
            logging.getLogger(__name__).warning("%d pictures could not be drawn, the first: %s", len(taken.failed), why)

    def state_dict(self) -> dict[str, Any]:
        return {"pending": [dict(sample) for sample in self.pending], "lost": self.lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pending, self.lost = [dict(sample) for sample in state["pending"]], state["lost"]


def _id(step: Step, group: int, member: int, description: str) -> str:
    named = f"{step.key.seed}-{step.number}-{group}-{member}-{description}"
    return hashlib.blake2b(named.encode(), digest_size=12).hexdigest()
