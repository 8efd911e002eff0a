"""Rows of `mmrl sar`: captions with the pictures they belong to, and how a model does on those held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.data.worlds.compositions import Compositions
from mmrl.data.worlds.scenes import keyed_random
from mmrl.errors import ConfigError, DataError
from mmrl.pipelines.config import DataConfig
from mmrl.pipelines.run import open_prompts
from mmrl.policies.generation.families.outputs import as_images
from mmrl.policies.images import open_image
from mmrl.policies.scales.protocol import agree, write
from mmrl.policies.scales.refinement import staggered, token_loss
from mmrl.randomness import Key
from mmrl.record import Prompt
from mmrl.rewards.panel import RewardPanel


class Rows:
    """Prompts whose one picture is what is to be written. `world`: they say a scene, of which one is drawn."""

    def __init__(self, prompts: Sequence[Prompt], world: bool):
        if not len(prompts):
            raise DataError("mmrl sar: the data set has no rows")
        self.prompts, self.world = prompts, world

    def __len__(self) -> int:
        return len(self.prompts)

    def texts(self) -> list[str]:
        return [self.prompts[row].text.strip() for row in range(len(self))]

    def first(self, count: int) -> Tensor:
        """(B, 3, H, W) of the first rows."""
        return self.batch(range(min(count, len(self))), Key(0, purpose="first"))[1]

    def drawn(self, count: int, key: Key) -> list[int]:
        return torch.randint(len(self), (count,), generator=key.generator()).tolist()

    def batch(self, rows: Sequence[int], key: Key) -> tuple[list[str], Tensor]:
        """Texts, and pictures (B, 3, H, W) from 0 to 1; `key` says which of a scene's pictures."""
        prompts = [self.prompts[row] for row in rows]
        pictures = [self._picture(prompt, key.at(prompt=prompt.id)) for prompt in prompts]
        other = next((i for i, each in enumerate(pictures) if each.shape != pictures[0].shape), None)
        if other is not None:
            sizes = [f"{pictures[i].shape[1]} x {pictures[i].shape[0]}" for i in (0, other)]
            raise DataError(
                f"prompt {prompts[other].id!r}: a picture of {sizes[1]}, and prompt {prompts[0].id!r} has one of "
                f"{sizes[0]}; expected pictures of one size"
            )
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return [prompt.text.strip() for prompt in prompts], stacked

    def _picture(self, prompt: Prompt, key: Key) -> np.ndarray:
        if self.world:
            return np.asarray(Compositions().render(prompt.columns["scene"], keyed_random(key)))
        if len(prompt.images) != 1:
            raise DataError(
                f"prompt {prompt.id!r} has {len(prompt.images)} images; expected one, the picture that is learned, in "
                "the column `image` or `images`"
            )
        return np.asarray(open_image(prompt.images[0], prompt))


@contextmanager
def opened(data: DataConfig, rewards: Sequence[Any]) -> Iterator[tuple[Rows, Rows, RewardPanel]]:
    """Rows to train on, held-out rows, and the rewards. Raises ConfigError where one is not named."""
    if not data.train or not data.eval:
        raise ConfigError("mmrl sar: names no data; expected data.train and data.eval")
    if not rewards:
        raise ConfigError("mmrl sar: no rewards: name at least one, as in `rewards: [{name: compositional}]`")
    with RewardPanel(rewards) as panel:
        both = []
        for spec, limit, held in ((data.train, data.limit, False), (data.eval, data.eval_limit, True)):
            if str(spec).startswith("world:") and not str(spec).startswith("world:compositions"):
                raise ConfigError(
                    f"mmrl sar: {spec}: expected world:compositions, or rows with a caption and a picture"
                )
            prompts = open_prompts(spec, data, limit, panel=panel, held_out=held)
            both.append(Rows(prompts, str(spec).startswith("world:")))
        panel.check([both[1].prompts[row] for row in range(min(64, len(both[1])))])
        yield both[0], both[1], panel


@torch.no_grad()
def held_out(
    model: Any, rows: Rows, panel: RewardPanel, key: Key, samples: int, temperature: float, at_once: int
) -> dict[str, float]:  # fmt: skip
    """`loss` in nats a token under teacher forcing, and of free-running samples `reward` and `success`, means over
    those that could be scored; `unscored` counts the others."""
    model.eval()
    losses, counts, pictures, asked = [], [], [], []
    for start in range(0, len(rows), at_once):
        places = range(start, min(start + at_once, len(rows)))
        texts, true = rows.batch(places, key)
        truth = model.tokens(true.to(_device(model)))
        logits = model.logits(texts, staggered(model, truth, truth))
        agree(model, logits, truth)
        losses.append(token_loss(logits, truth).item())
        counts.append(len(texts))
        for member in range(samples):
            own = write(model, texts, len(truth), key.at(step=start, member=member), temperature)
            pictures += as_images(model.decode(own).float() * 2 - 1)
            asked += [rows.prompts[row] for row in places]
    scores = panel.score(pictures, asked)
    known = scores.reward.isfinite()
    found = {
        "loss": float(np.average(losses, weights=counts)),
        "reward": scores.reward[known].mean().item(),
    }
    if (told := scores.success[scores.success.isfinite()]).numel():
        found["success"] = told.double().mean().item()
    return found | ({"unscored": int((~known).sum())} if not known.all() else {})


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
