"""Rewards of edits on the toy world's own edits, by the CLIP that ships."""

import pytest

from mmrl.data.worlds.compositions import Compositions, caption
from mmrl.errors import RewardError
from mmrl.rewards.papers.editing import check_judge, shared_likeness, uniref_msgrpo, viva_edit_grpo

JUDGE = """
def by_sources(outputs, sources):
    return [{"integration": 10, "consistency": 5, "quality": 2.5 * len(s)} for s in sources]

def too_high(outputs, sources):
    return [{"integration": 11, "consistency": 5, "quality": 5}] * len(outputs)
"""


def scene(color):
    return {
        "size": 24,
        "background": "black",
        "objects": [{"shape": "circle", "color": color, "count": 1, "position": "left"}],
    }


def row():
    before, after = scene("red"), scene("blue")
    return Compositions().render(before), Compositions().render(after), caption(before), caption(after)


def test_an_edit_is_worth_more_than_a_copy_and_the_parts_say_why():
    source, edited, before, after = row()
    done, copied = viva_edit_grpo([edited, source], [[source]] * 2, [after] * 2, [before] * 2)
    assert done["score"] > copied["score"] and done["following"] > 0 > copied["following"]
    assert copied["preserving"] == pytest.approx(1, abs=1e-5) and done["preserving"] < 0.99
    for each in (done, copied):
        assert each["score"] == pytest.approx(each["following"] + each["preserving"] + each["preference"])
    gated = viva_edit_grpo([source], [source], [after], [before], gate=True)[0]
    assert gated["score"] == pytest.approx(copied["score"] - 1, abs=1e-5)


def test_films_are_their_frames_and_another_scorer_is_asked():
    source, edited, before, after = row()
    film = viva_edit_grpo([[edited] * 3], [source], [after], [before])[0]
    assert film["score"] == pytest.approx(viva_edit_grpo([edited], [source], [after], [before])[0]["score"], abs=1e-5)
    same = viva_edit_grpo([edited], [source], [after], [before], scorer="clip_score")[0]
    assert same["preference"] == pytest.approx(film["preference"], abs=1e-5)
    with pytest.raises(RewardError, match="no registered reward"):
        viva_edit_grpo([edited], [source], [after], [before], scorer="pick")


def test_the_judges_scores_are_shares_of_ten_and_all_sources_count(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text(JUDGE)
    source, edited, *_ = row()
    found = uniref_msgrpo([edited] * 2, [[source, edited], [source]], judge=f"{file}:by_sources")
    assert [each["score"] for each in found] == pytest.approx([(1 + 0.5 + 0.5) / 3, (1 + 0.5 + 0.25) / 3])
    weighed = uniref_msgrpo([edited], [[source]], judge=f"{file}:by_sources", weights=[1, 0, 1])
    assert weighed[0]["score"] == pytest.approx(0.625)
    assert shared_likeness([0.9, 0.1]) == pytest.approx(0.3) and shared_likeness([0.5, 0.5]) == 0.5
    both, one = uniref_msgrpo([edited] * 2, [[edited, source], [edited, edited]], judge=f"{file}:by_sources", least=1.0)
    assert one["score"] > both["score"]
    with pytest.raises(ValueError, match="integration=11"):
        uniref_msgrpo([edited], [[source]], judge=f"{file}:too_high")
    with pytest.raises(RewardError, match="name who judges"):
        check_judge({})
    with pytest.raises(RewardError, match="condition images"):
        viva_edit_grpo([edited], ["path.png"], ["a"], ["b"])
