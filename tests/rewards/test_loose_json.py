"""JSON as models write it."""

import pytest

from mmrl.rewards.loose_json import DEEPEST, LONGEST, loose


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"a": 1,},]', [{"a": 1}]),
        ("{'a': 'b', 'c': None, 'd': True}", {"a": "b", "c": None, "d": True}),
        ("{'a': null, 'b': true}", {"a": None, "b": True}),
        ("{0: [1, 2], 5: (3, 4)}", {"0": [1, 2], "5": [3, 4]}),
        ("{a: 1, b_2: [2,]}", {"a": 1, "b_2": [2]}),
        ('{"a": 1 // the first\n}', {"a": 1}),
        ('{"a": 1, /* two\nlines */ "b": 2}', {"a": 1, "b": 2}),
        ('{"a": ", ] // b: c",}', {"a": ", ] // b: c"}),
        ('["it\'s", \'said "so"\']', ["it's", 'said "so"']),
        ("{'a': {1, 2}}", None),
        ("{'a': f(1)}", None),
        ("{'a': 1 + 2}", None),
        ("__import__('os')", None),
        ("[1, 2", None),
        ("7", None),
        ("", None),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), None),
        ("[" + "1," * LONGEST + "]", None),
    ],
)
def test_loose(text, value):
    assert loose(text) == value
