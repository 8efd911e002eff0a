"""Next-sequence groups: text that exists is gone on with from where the policy is unsure, and compared with itself."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from mmrl.errors import ConfigError
from mmrl.record import Answer, Batch, Prompt, Rollouts
from mmrl.rollout.hints import first_text
from mmrl.rollout.origins import OWN, brought
from mmrl.rollout.plan import Address, Ask, Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage


def entropy_positions(
    entropy: Tensor, chunks: int, width: int, temperature: float, generator: torch.Generator
) -> list[int]:
    """One place in each of `chunks` equal parts of `entropy (T,)`, drawn by the softmax of the smoothed entropy.

    width        of the box that smooths, its ends repeated
    temperature  small: where the policy is least sure; large: anywhere

    Places are from 1 on, so that something stands before each; shorter texts have as many parts as places.
    """
    length = len(entropy)
    if length < 2:
        return []
    left = (width - 1) // 2
    padded = torch.cat([entropy[:1].expand(left), entropy, entropy[-1:].expand(width - 1 - left)]).double()
    smooth = avg_pool1d(padded[None], width, stride=1)[0]
    edges = torch.linspace(1, length, min(chunks, length - 1) + 1).round().long().tolist()
    places = []
    for low, high in pairwise(edges):
        chance = (smooth[low:high].cpu() / temperature).softmax(0)
        places.append(low + int(torch.multinomial(chance, 1, generator=generator)))
    return places


@stage(
    "rollout",
    "refine",
    paper="REFINE: reinforced fast weights with next-sequence prediction, arXiv 2602.16704",
    formula="of each text: `chunks` places t ~ softmax(smoothed H / temperature), one a chunk; from each `count` rows "
    "~ pi(. | q, text up to t)",
    confidence="partly",
    needs=("entropy",),
    modalities=LANGUAGE,
)
class Refine(Strategy):
    """Texts of the data set are the only prompts: rows begin inside them, and are worth how well they go on.

    column       of the data set: the text, said in answer to the row's prompt
    chunks       places of a text, spread over it
    width        of the box that smooths the entropy, and the length of what is compared in shaping `refine`
    count        rows from each place
    temperature  how strongly the draw prefers unsure places

    Columns: `expert (B,)` is 1 on the texts, which do not count, and `begins (B,)` is where a row begins. Pair it with
    shaping and credit `refine`, and regularizer `nll` with `rows: expert` for the next-token part. Rows are written to
    their end, of which `width` actions are looked at: keep `policy.max_new_tokens` at the length of the texts. Source:
    detailed secondary notes with the authors' settings.
    """

    origins = (OWN, brought("demonstration"))
    columns = {"expert": 0.0, "begins": 0.0}

    def __init__(
        self, *, column: str = "demonstrations", chunks: int = 8, width: int = 5, count: int = 1,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        if chunks < 1 or width < 1 or count < 1 or temperature <= 0:
            raise ConfigError(
                f"rollout 'refine': chunks={chunks}, width={width}, count={count}, temperature={temperature}; expected "
                "at least 1 each, and above 0"
            )
        self.column, self.chunks, self.width, self.count, self.temperature = column, chunks, width, count, temperature
        self.data_columns = (column,)

    def ask(self, step: Step) -> Plan | None:
        indices = step.draw(step.prompts_per_step)
        return Plan(given=[Given("demonstration", index=i, columns={"expert": 1.0}) for i in indices])

    def join(self, batch: Batch, step: Step) -> Plan | None:
        expert = batch["expert"] > 0
        asks: list[Ask] = []
        for row in expert.nonzero().squeeze(1).tolist() if step.round == 1 else ():
            group, member = int(batch.group[row]), int(batch.member[row])
            draw = step.key.at(member=group, purpose="refine").generator()
            entropy = batch["entropy"][row, : int(batch.length[row])]
            for place in entropy_positions(entropy, self.chunks, self.width, self.temperature, draw):
                start = Address(member, place)
                asks.append(Ask(self.count, group=group, start=start, columns={"begins": float(place)}))
        return Plan(asks, counted=~expert)

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        text = first_text(prompt, self.column)
        return [] if text is None else [text]
