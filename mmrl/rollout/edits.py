"""What strategies that write drafts and edit them share."""

from __future__ import annotations

from mmrl.errors import ConfigError
from mmrl.rollout.hints import filled
from mmrl.rollout.plan import Ask, Plan, Step

EDIT = "A draft of the answer:\n{draft}\n\nChange what is wrong with it, and keep the rest."
LEAST = 2


def check_edits(name: str, drafts: int | None, template: str) -> None:
    """Refuse options of rollout `name`: a number of drafts, None for half of a group, and a template with {draft}."""
    if drafts is not None and drafts < LEAST:
        raise ConfigError(f"rollout {name!r}: drafts={drafts}; edits are compared, so choose at least {LEAST}")
    filled(template, f"rollout {name!r}", draft="")


def ask_drafts(name: str, drafts: int | None, step: Step) -> Plan:
    """Drafts of a step's prompts, half of a group where `drafts` is None."""
    count = drafts or step.group_size // 2
    if count < LEAST:
        raise ConfigError(
            f"rollout {name!r}: training.group_size={step.group_size} leaves {count} draft to edit, and edits are "
            f"compared; choose a group of at least {2 * LEAST}"
        )
    return Plan([Ask(count, index=index) for index in step.draw(step.prompts_per_step)])
