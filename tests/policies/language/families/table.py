"""Write the table of docs/families.md: every tiny family, what was found about it, and what a step takes on each way.

python -m tests.policies.language.families.table          all of them
python -m tests.policies.language.families.table NAME...  these rows alone; the others stay as they are
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.families.reduced import random_actions
from mmrl.policies.language.vision import VisionPolicy
from mmrl.randomness import Key
from mmrl.record import Prompt, Request
from tests.policies.language.families.expected import CLIPS_REFUSED, EXPECTED
from tests.policies.language.families.tiny import RECIPES, picture

PAGE = Path(__file__).parents[4] / "docs" / "families.md"
START, END = "<!-- table: make families -->", "<!-- end of table -->"
MEMBERS, TOKENS = 8, 32
HEAD = (
    "| tiny family | model type | features | batches | cache | packed | later turns | video | worst gap | plain, s "
    "| two calls, s | packed, s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def seconds(name: str, way: str) -> float | None:
    """Processor time of scoring one group and going backward, the least of three; None where the way is not exact."""
    model, processor = RECIPES[name]()
    attention = model.config.get_text_config()._attn_implementation
    options = {"model": "tiny", "attention": attention, "max_new_tokens": 2, "shared_prompt": "off"}
    policy = VisionPolicy(model, processor, LanguagePolicyConfig(**options))
    found = policy.capabilities
    if (way == "two_calls" and not found.prefix_cache) or (way == "packed" and not found.packed):
        return None
    policy = VisionPolicy(*RECIPES[name](), LanguagePolicyConfig(**options | {"shared_prompt": way}))
    content = [{"type": "image"}, {"type": "text", "text": "How many of the squares in this picture are red?"}]
    prompt = Prompt("p", [{"role": "user", "content": content}], [picture(64, 64, 0)])
    with torch.no_grad():
        rollouts = policy.rollout([Request(prompt, MEMBERS, 0)], Key(0))
    rollouts.actions = torch.stack(random_actions(policy.family, (TOKENS,) * MEMBERS, 0))
    rollouts.length = rollouts.extent = torch.full((MEMBERS,), TOKENS)
    rollouts.mask = torch.ones(MEMBERS, TOKENS, dtype=torch.bool)
    taken = []
    for _ in range(3):
        start = time.process_time()
        policy.evaluate(rollouts).log_probs.sum().backward()
        taken.append(time.process_time() - start)
    return min(taken)


def row(name: str) -> str:
    model, processor = RECIPES[name]()
    attention = model.config.get_text_config()._attn_implementation
    policy = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny", attention=attention))
    found = policy.capabilities
    used = ["features", "two calls", "decoding", "shared cache", "packed, causal", "packed, masked"]
    gaps = [g for n in used if isinstance(g := found.gaps.get(n), float) and g < 1e-4]

    def said(value: Any) -> str:
        return ("yes" if value else "no") if isinstance(value, bool) or value is None else str(value)

    cache = "shared" if found.shared_cache else "repeated" if found.prefix_cache else "none"
    times = [seconds(name, way) for way in ("off", "two_calls", "packed")]
    shown = [name, policy.family.model_type, said(found.features), said(found.batches), cache, said(found.packed)]
    shown += [
        said(found.turns),
        "refused" if name in CLIPS_REFUSED else said(policy.family.reads_video),
        f"{max(gaps):.0e}",
    ]
    return "| " + " | ".join([*shown, *("–" if t is None else f"{t:.2f}" for t in times)]) + " |"


def main(asked: list[str]) -> None:
    """asked: families whose rows are measured anew; none: all."""
    torch.set_num_threads(1)
    page = PAGE.read_text()
    before, rest = page.split(START)
    old, after = rest.split(END)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in old.splitlines()[3:]}
    for name in asked or EXPECTED:
        rows[name] = row(name)
        print(rows[name], flush=True)
    table = "\n".join([HEAD, *(rows[name] for name in EXPECTED if name in rows)])
    PAGE.write_text(f"{before}{START}\n{table}\n{END}{after}")
    print(f"{len(asked) or len(EXPECTED)} families written to {PAGE.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
