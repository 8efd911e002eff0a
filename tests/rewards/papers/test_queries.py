"""The boxes of an answer as queries: where each stands in the text, and how well it meets a truth."""

from mmrl.rewards.papers.queries import query_boxes

TRUE = [[0, 0, 10, 10], [20, 20, 30, 30]]


def test_each_box_has_its_span_and_its_best_match():
    text = "<think>[0, 0, 10, 10]?</think><answer>[[0, 0, 10, 10], [20, 20, 30, 25], [50, 50, 60, 60]]</answer>"
    (row,) = query_boxes([text], [TRUE])
    assert [text[a:b] for a, b, _ in row["segment"]] == ["[0, 0, 10, 10]", "[20, 20, 30, 25]", "[50, 50, 60, 60]"]
    assert text.index("<answer>") < row["segment"][0][0], "what was thought is no query"
    assert [q for *_, q in row["segment"]] == [0, 1, 2] and [u for *_, u in row["action_reward"]] == [1, 0.5, 0]
    assert row["score"] == 1.5 / 3 and row["queries"] == 3


def test_corner_pairs_are_queries_too_and_walls_and_cut_thoughts_hold_none():
    (pairs,) = query_boxes(["<box>(0,0),(10,10)</box><box>(20,20),(30,30)</box>"], [TRUE])
    assert [u for *_, u in pairs["action_reward"]] == [1, 1]
    wall = str([[x, 0, x + 10, 10] for x in range(0, 200, 10)])
    for text in (wall, "<think>[0, 0, 10, 10]", "", "no box"):
        (row,) = query_boxes([text], [TRUE])
        assert row["segment"] == row["action_reward"] == [] and row["score"] == 0
