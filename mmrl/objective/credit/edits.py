"""Credit along a draft and its edit: one terminal reward, and edits that are paid by what they changed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.objective.episodes import shared
from mmrl.objective.groups import masked_mean
from mmrl.objective.prefixes import action_ids
from mmrl.record import Batch
from mmrl.stages import LANGUAGE, MASKED, stage


def changed(draft: Sequence[int], edit: Sequence[int]) -> list[bool]:
    """Of each token of an edit whether it is new: not one of those that were kept of the draft, in order.

    No token is too frequent to have been kept: `autojunk` would pass over those of 1 % of a draft of 200 tokens.

    >>> changed([5, 6, 7], [5, 9, 7, 8])
    [False, True, False, True]
    """
    new = [True] * len(edit)
    for block in SequenceMatcher(None, draft, edit, autojunk=False).get_matching_blocks():
        new[block.b : block.b + block.size] = [False] * block.size
    return new


@stage(
    "credit",
    paper="ReflectDrive-2: RL-aligned self-editing for discrete diffusion driving, arXiv 2605.04647",
    formula="drafts: A of their edit; edits: A on tokens that differ from the draft, `kept` A on those that do not",
    confidence="reconstructed",
    needs=("episode", "actions"),
    modalities=(*LANGUAGE, *MASKED),
)
def reflectdrive_2(advantage: Tensor, batch: Batch, *, kept: float = 0.0) -> tuple[Tensor, Tensor]:
    """A draft learns from what its edit earned, an edit by the tokens it changed. Returns (B, T) twice.

    kept  share of the advantage that tokens kept of the draft have: 0 pays changes alone, 1 is a plain episode. An edit
          that keeps everything trains its draft and, at 0, nothing else

    Reads `episode` and the mask of rollout `reflectdrive_2`: rows that count are the ends of their episodes. What was
    kept stays in the denominators. Source: the paper's abstract (the terminal reward is propagated through draft and
    edit transitions; an edit rewrites selected tokens); that kept tokens have no transition is ours.
    """
    if not 0 <= kept <= 1:
        raise ConfigError(f"reflectdrive_2: kept={kept}; expected 0 to 1")
    ends = batch.counted.bool()
    earned = shared(masked_mean(advantage, batch.mask), batch, ends).to(advantage)
    made = torch.where(ends[:, None], advantage, earned[:, None] * batch.mask)
    ids = action_ids(batch, "reflectdrive_2")
    places = {(int(g), int(m)): row for row, (g, m) in enumerate(zip(batch.group, batch.member, strict=True))}
    for row in (batch["episode"] >= 0).nonzero().squeeze(1).tolist():
        draft = places.get((int(batch.group[row]), int(batch["episode"][row])))
        if draft is None:
            continue
        mask = batch.mask[row]
        new = torch.tensor(changed(ids[draft][batch.mask[draft]].tolist(), ids[row][mask].tolist()), dtype=torch.bool)
        made[row, mask] = made[row, mask] * torch.where(new.to(mask.device), 1.0, kept).to(made)
    return made, batch.loss_mask
