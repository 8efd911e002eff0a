import pytest

from mmrl.errors import DataError
from tests.data.formats.shown import Shown, opened, roles, shown

BLUE = {"prompt": "turn it blue", "media": [{"modality": "image", "role": "condition", "uri": "images/red.png"}]}


def test_roles_and_labels(folder):
    asked = {"caption": "How many?", "media_refs": [{"modality": "image", "role": "prompt", "uri": "images/blue.png"}],
             "metadata": {"answer": "4", "level": 2}}  # fmt: skip
    judged = {"prompt": "a red cube", "vqa_list": [["Is there a cube?", "yes"]], "skills": ["object"]}
    data = opened(folder, BLUE, asked, judged)
    assert data.format == "unirl"
    assert shown(data) == [
        Shown("<image>turn it blue", [(56, 56)]),
        Shown("<image>How many?", [(64, 32)], [], "4"),
        Shown("a red cube"),
    ]
    assert [roles(p) for p in data] == [["condition"], [None], []]
    assert data[1].columns["level"] == 2 and data[2].columns["vqa_list"] == [["Is there a cube?", "yes"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media": [{"modality": "audio", "role": "prompt", "uri": "a.wav"}]}, "unknown modality 'audio'"),
        ({"media": [{"modality": "image", "role": "mask", "uri": "a.png"}]}, "unknown role 'mask'"),
        ({"media": [{"modality": "image", "uri": "a.png"}]}, "entry 0: expected {'modality', 'role', 'uri'}"),
        ({"prompt_embeds": "x.pt"}, "column 'prompt_embeds': embeddings made beforehand are not read"),
    ],
)
def test_what_has_no_meaning_here_is_refused(folder, changes, message):
    with pytest.raises(DataError, match=message):
        opened(folder, {**BLUE, **changes})
