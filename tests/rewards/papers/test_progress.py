"""How far every beginning of an answer is."""

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.papers.progress import check_scorer, step_progress

SCORER = """
def share(completions, goal):
    return [sum(word in text for word in words) / len(words) for text, words in zip(completions, goal)]

def shrugs(completions):
    return [None] * len(completions)
"""


@pytest.fixture
def scorer(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SCORER)
    return lambda name: f"{file}:{name}"


def test_each_sentence_has_the_score_of_all_up_to_its_end(scorer):
    texts = ["It is red. It is round.", "So what?", ""]
    got = step_progress(texts, scorer=scorer("share"), goal=[["red", "round"]] * 3)
    assert got[0]["progress"] == [[0, 11, 0.5], [11, 23, 1.0]] and got[0]["score"] == 1
    assert got[0]["segment"] == [[0, 11, 0], [11, 23, 1]]
    assert got[1]["progress"] == [[0, 8, 0.0]] and got[2] == {"score": 0.0, "segment": [], "progress": []}


def test_a_model_that_cannot_say_is_refused(scorer):
    with pytest.raises(RewardError, match="said None of a beginning; expected a number"):
        step_progress(["It is red."], scorer=scorer("shrugs"))
    with pytest.raises(RewardError, match="unknown reward 'acuracy'"):
        check_scorer({}, scorer="acuracy")
    with pytest.raises(RewardError):
        check_scorer({"solution": None, "task": "choice"})
