"""Every kind by its table in `cases/kinds`: [completion, solution, score, settings], as real answers look."""

import json

import pytest

from mmrl.rewards.accuracy import check_row, verdict
from mmrl.rewards.tasks import TASKS
from tests.rewards.helpers import CASES, cases

TABLES = sorted(path.stem for path in (CASES / "kinds").glob("*.jsonl"))
ELSEWHERE = {"exact", "choice", "multi_choice", "boolean", "numeric", "regression", "math", "temporal", "box", "boxes"}
FEWEST = 400


def test_every_kind_has_a_table():
    assert set(TABLES) == set(TASKS) - ELSEWHERE
    assert sum(len(cases(f"kinds/{name}")) for name in TABLES) >= FEWEST


@pytest.mark.parametrize("name", TABLES)
def test_table(name):
    faults = []
    for completion, solution, score, *settings in cases(f"kinds/{name}"):
        check_row({"task": name, "solution": solution})
        found = verdict(completion, solution, name, **(settings[0] if settings else {}))
        near = abs(found.score - score) <= (0.012 if name == "polygon" else 1e-9)
        if not near or not all(0 <= value <= 1 for value in found.parts.values()):
            faults.append(f"{completion!r} for {json.dumps(solution)}: {found}, should be {score}")
    assert not faults, "\n".join(faults)
