"""Lessons in words: operations, and what of an answer is one."""

import pytest

from mmrl.weights.experiences import as_text, merged, operations_in


def test_operations_in_order():
    done = merged({1: "a", 2: "b"}, [("ADD", None, "x"), ("UPDATE", 1, "y"), ("DELETE", 2, "")])
    assert done == {1: "y", 3: "x"}


def test_what_is_not_there_is_not_changed():
    assert merged({1: "a"}, [("UPDATE", 7, "y"), ("DELETE", 9, ""), ("ADD", None, "a")]) == {1: "a"}


def test_the_oldest_go_first():
    assert merged({1: "a", 2: "b"}, [("ADD", None, "c")], most=2) == {2: "b", 3: "c"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Sure: [{"operation": "add", "text": " look "}]', [("ADD", None, "look")]),
        ('[{"operation": "DELETE", "number": 2}]', [("DELETE", 2, "")]),
        ("[]", []),
        ("nothing", None),
        ('[{"operation": "UPDATE", "text": "x"}]', None),
        ('[{"operation": "ADD", "text": ""}]', None),
        ('[{"operation": "SHOUT", "text": "x"}]', None),
        ("[1]", None),
        ("[{]", None),
    ],
)
def test_what_of_an_answer_is_operations(text, found):
    assert operations_in(text) == found


def test_as_a_prompt_is_told():
    assert as_text({1: "a", 4: "b"}, "Keep in mind:") == "Keep in mind:\n1. a\n4. b" and as_text({}, "Keep") == ""
