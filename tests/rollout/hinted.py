"""A tiny policy that answers wrongly, unless the prompt holds a hint: made by a few supervised steps."""

import torch

from mmrl.record import Answer, Prompt, Scores
from mmrl.rollout.hints import with_text
from tests.training.tiny import make_policy, make_prompts

HINT, RIGHT, WRONG = "say ae", "ae", "cd"


def hinted_prompts(count: int = 4):
    """Prompts whose columns hold all that a strategy of guidance can show."""
    prompts = make_prompts(count)
    for prompt in prompts:
        prompt.columns |= {"hint": HINT, "demonstrations": RIGHT, "solution": "red"}
    return prompts


def score_right(outputs, prompts) -> Scores:
    """1 for the right answer, as a verifier gives it."""
    reward = torch.tensor([float(output == RIGHT) for output in outputs])
    return Scores({"accuracy": reward}, reward, reward.clone())


def taught_policy(told: str = f"Hint: {HINT}", *, steps: int = 16, share: float = 0.03, count: int = 2, **changes):
    """Writes `RIGHT` where `told` stands behind the prompt, and with probability of about `share` where it does not.

    steps  supervised steps at a rate far above any that training has
    """
    policy, prompts = make_policy(**changes), hinted_prompts(count)
    both = [*prompts, *prompts, *(with_text(p, told, "hint") for p in prompts)]
    rows = policy.written(both, [WRONG] * count + [RIGHT] * 2 * count)
    weight = torch.tensor([1 - share] * count + [share] * count + [1.0] * count)
    optimizer = torch.optim.Adam([p for p in policy.module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-(policy.evaluate(rows, ()).log_probs.sum(1) * weight).sum() / count).backward()
        optimizer.step()
    policy.module.zero_grad()
    return policy


def taught(
    pairs: list[tuple[Prompt, str]],
    *,
    weights: list[float] | None = None,
    steps: int = 24,
    endless: str = "",
    **changes,
):
    """A tiny policy that answers each prompt with the text beside it, made by supervised steps.

    weights  of the pairs, for prompts that have several answers
    endless  the text that is not ended, as it fills all the room there is
    """
    policy = make_policy(**changes)
    known = policy.processor.tokenizer(endless, add_special_tokens=False)["input_ids"] if endless else []
    answers = [Answer(torch.tensor(known)) if text == endless else text for _, text in pairs]
    rows = policy.written([prompt for prompt, _ in pairs], answers)
    weight = torch.tensor(weights or [1.0] * len(pairs))
    optimizer = torch.optim.Adam([p for p in policy.module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-(policy.evaluate(rows, ()).log_probs.sum(1) * weight).mean()).backward()
        optimizer.step()
    policy.module.zero_grad()
    return policy
