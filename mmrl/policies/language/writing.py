"""From requests to rows that are written, and from what was written to rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import NonFiniteError, PolicyError
from mmrl.policies.language.encoded import Encoded
from mmrl.policies.language.encoding import extended
from mmrl.policies.language.engines.base import Context, Draw
from mmrl.policies.language.fast.prefill import Prefill
from mmrl.policies.language.sampling import Decoded
from mmrl.randomness import Key
from mmrl.record import FINISHED, TRUNCATED, Answer, Prompt, Request, Rollouts, owned


@dataclass
class WritingPlan:
    """The rows of a rollout, in the order of its requests.

    limit     on tokens of a response, replayed prefix included
    prefixes  one per request, possibly empty: what nobody sampled, or the beginning of the row it starts in
    context   (B,) the request of each row
    member    B members
    """

    requests: Sequence[Request]
    limit: int
    prefixes: list[Tensor]
    context: Tensor
    member: list[int]

    @classmethod
    def of(cls, requests: Sequence[Request], limit: int) -> WritingPlan:
        prefixes: list[Tensor] = []
        context: list[int] = []
        member: list[int] = []
        for index, request in enumerate(requests):
            prefix = _prefix(request)
            if len(prefix) >= limit:
                raise PolicyError(
                    f"prompt {request.prompt.id!r}: a prefix of {len(prefix)} tokens leaves nothing to sample "
                    f"under max_new_tokens={limit}"
                )
            prefixes.append(prefix)
            context += [index] * request.count
            member += range(request.first_member, request.first_member + request.count)
        return cls(requests, limit, prefixes, torch.tensor(context), member)

    @property
    def before(self) -> Tensor:
        """(B,) tokens replayed before the first one that is sampled."""
        return torch.tensor([len(prefix) for prefix in self.prefixes])[self.context]

    @property
    def budget(self) -> Tensor:
        """(B,) tokens a row may sample."""
        return self.limit - self.before

    def draws(self, key: Key) -> list[Draw]:
        """B: what chooses the tokens of each row."""
        drawn = []
        for request, member in zip(self.context.tolist(), self.member, strict=True):
            named = key.at(prompt=self.requests[request].prompt.id, member=member, purpose="sample")
            drawn.append(Draw(named, self.limit, len(self.prefixes[request])))
        return drawn

    def contexts(self, shown: Sequence[Encoded], prefills: Mapping[Encoded, Prefill]) -> list[Context]:
        """B: what each row continues. shown: the prompt of each request as it is shown, without its prefix"""
        made = []
        for request, entry, prefix in zip(self.requests, shown, self.prefixes, strict=True):
            whole = extended(entry, prefix)
            made.append(Context(request.shown or request.prompt, whole, prefix, prefills.get(whole)))
        return [made[request] for request in self.context.tolist()]

    def _refuse_what_is_no_number(self, written: Decoded) -> None:
        """Logits that overflow or weights that are not finite end here, before anything is scored or trained."""
        bad = (~torch.isfinite(written.log_probs)).any(1).nonzero().squeeze(1).tolist()
        if bad:
            named = f"prompt {self.requests[int(self.context[bad[0]])].prompt.id!r} member {self.member[bad[0]]}"
            raise NonFiniteError(
                f"the policy's own log-probs are not finite for {named}, and {len(bad)} of {len(self.context)} rows in "
                "all: its weights have grown too large for its precision, or are not finite",
                acting=True,
            )

    def record(
        self, written: Decoded, prompts: dict[str, Prompt], encoded: dict[str, Encoded], tokenizer: Any
    ) -> Rollouts:
        """prompts, encoded: by id, in the order of `Rollouts.prompts`."""
        self._refuse_what_is_no_number(written)
        device = written.tokens.device
        before = self.before.to(device)
        extent = before + written.length
        column = torch.arange(int(extent.max()), device=device)
        mask = (column >= before[:, None]) & (column < extent[:, None])
        fresh = torch.arange(written.tokens.shape[1], device=device) < written.length[:, None]
        actions = torch.zeros(mask.shape, dtype=torch.long, device=device)
        old = torch.zeros(mask.shape, device=device)
        actions[mask], old[mask] = written.tokens[fresh], written.log_probs[fresh]
        owner = torch.tensor(self.member, device=device)[:, None].repeat(1, mask.shape[1])
        for row, request in enumerate(self.context.tolist()):
            actions[row, : before[row]] = self.prefixes[request].to(device)
            if (start := self.requests[request].start) is not None:
                for mine, theirs in ((mask, start.row.mask), (old, start.row.old_log_probs), (owner, start.row.owner)):
                    mine[row, : start.action] = theirs[0, : start.action].to(mine)
        places = {name: place for place, name in enumerate(prompts)}
        texts = [ids[:n] for ids, n in zip(actions.tolist(), extent.tolist(), strict=True)]
        asked = [self.requests[request] for request in self.context.tolist()]
        return Rollouts(
            prompts=list(prompts.values()),
            encoded=[encoded[name] for name in prompts],
            prompt=torch.tensor([places[r.prompt.id] for r in asked], device=device),
            group=torch.tensor([r.group for r in asked], device=device),
            member=torch.tensor(self.member, device=device),
            actions=actions,
            mask=mask,
            old_log_probs=old,
            outputs=tokenizer.batch_decode(texts, skip_special_tokens=True),
            length=mask.sum(1),
            extent=extent,
            finish=[FINISHED if stopped else TRUNCATED for stopped in written.stopped.tolist()],
            owner=owned(owner, mask),
            replay={"shown": torch.tensor([r.shown is not None for r in asked], device=device)}
            | {name: _placed(values, fresh, mask) for name, values in written.kept.items()},
        )


def _placed(values: Tensor, fresh: Tensor, mask: Tensor) -> Tensor:
    """(B, T, ...) the `values (B, N, ...)` of what was written, `fresh (B, N)`, where a row has it: `mask (B, T)`."""
    placed = values.new_zeros(*mask.shape, *values.shape[2:])
    placed[mask] = values[fresh]
    return placed


def _prefix(request: Request) -> Tensor:
    """(t,) the tokens every member of a request begins with."""
    if request.start is not None:
        if request.prefix is not None:
            raise PolicyError(f"prompt {request.prompt.id!r}: a request has a start or a prefix, not both")
        return request.start.row.actions[0, : request.start.action].cpu().long()
    return torch.zeros(0, dtype=torch.long) if request.prefix is None else request.prefix.cpu().long()


def tokens_of(
    answer: str | Answer, prompt: Prompt, tokenizer: Any, end: int, limit: int, suppressed: Sequence[int]
) -> Tensor:
    """(t,) the ids of an answer somebody wrote, with the end token.

    Longer than `limit` is refused: answers are never cut. So is one with `suppressed` ids, which no policy samples.
    """
    if isinstance(answer, Answer):
        ids = answer.ids.cpu().long()
    else:
        known = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([*known, *([] if known and known[-1] == end else [end])], dtype=torch.long)
    if not 0 < len(ids) <= limit:
        raise PolicyError(
            f"prompt {prompt.id!r}: a given answer has {len(ids)} tokens, expected 1 to max_new_tokens={limit}; given "
            f"answers are never cut: raise policy.max_new_tokens or leave this one out"
        )
    if never := set(ids.tolist()) & set(suppressed):
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(never))))
        raise PolicyError(f"prompt {prompt.id!r}: a given answer holds {names}, which the policy can never write")
    return ids


def given_rows(
    answers: Sequence[Tensor], prompts: Sequence[Prompt], encoded: dict[str, Encoded], tokenizer: Any, device: Any
) -> Rollouts:
    """Rows as `WritingPlan.record` makes them, of answers that were written elsewhere; old log-probs are still 0."""
    names = list(encoded)
    length = torch.tensor([len(ids) for ids in answers], device=device)
    actions = torch.zeros(len(answers), int(length.max()), dtype=torch.long, device=device)
    for row, ids in enumerate(answers):
        actions[row, : len(ids)] = ids.to(device)
    mask = torch.arange(actions.shape[1], device=device) < length[:, None]
    unique = {p.id: p for p in prompts}
    return Rollouts(
        prompts=[unique[name] for name in names],
        encoded=[encoded[name] for name in names],
        prompt=torch.tensor([names.index(p.id) for p in prompts], device=device),
        group=torch.zeros(len(answers), dtype=torch.long, device=device),
        member=torch.arange(len(answers), device=device),
        actions=actions,
        mask=mask,
        old_log_probs=torch.zeros(mask.shape, device=device),
        outputs=tokenizer.batch_decode([ids.tolist() for ids in answers], skip_special_tokens=True),
        length=length,
        finish=[FINISHED] * len(answers),
        replay={"shown": torch.zeros(len(answers), dtype=torch.bool, device=device)},
    )
