"""New pictures for old questions: a data server in a thread, the protocol over HTTP, and what a run makes of it."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmrl.errors import ConfigError, MMRLError
from mmrl.over_http import to_base64
from mmrl.record import Prompt
from mmrl.rollout.syn_grpo import SynGrpo
from mmrl.rollout.synthesis.client import DataServer
from mmrl.rollout.synthesis.server import SampleServer, drawer
from mmrl.rollout.synthesis.surround import surround
from mmrl.stages import Bound
from tests.rollout.plans import rows, step

RED = Image.new("RGB", (8, 8), "red")
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
SEEDS = [Prompt(f"p{i}", ASKED, images=[RED], columns={"solution": "3", "task": "numeric"}) for i in range(9)]
SAID = "<description>a green meadow</description>"


@contextmanager
def serving(draw, **options):
    server = SampleServer(draw, port=0, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.close()


def blue(sample):
    if "fail" in sample["description"]:
        raise RuntimeError("out of paint")
    return Image.new("RGB", sample["image"].size, "blue")


def sample(name, description="a meadow"):
    return {"id": name, "description": description, "image_b64": to_base64(RED)}


class TestDataServer:
    def test_samples_are_drawn_once_and_what_fails_is_told(self):
        drawn = []
        with serving(lambda s: drawn.append(s["id"]) or blue(s)) as server:
            asked = DataServer(server.url)
            asked.put([sample("a"), sample("b", "fail")])
            asked.put([sample("a")])
            taken = asked.take("first", ["a", "b", "c"], wait=20)
            assert taken.ready["a"][0].getpixel((0, 0)) == (0, 0, 255) and taken.ready["a"][1] is None
            assert taken.failed == {"b": "RuntimeError: out of paint"} and taken.unknown == ("c",)
            assert sorted(drawn) == ["a", "b"], "the second rank asks for the same"

    def test_the_first_to_take_fixes_the_answer_under_its_name(self):
        hold = threading.Event()
        with serving(lambda s: hold.wait(20) and blue(s)) as server:
            asked = DataServer(server.url)
            asked.put([sample("a")])
            assert not asked.take("step 1", ["a"]).ready
            hold.set()
            assert list(asked.take("step 2", ["a"], wait=20).ready) == ["a"]
            assert not asked.take("step 1", ["a"]).ready, "what a resumed run, or another rank, is told"

    @pytest.mark.parametrize(
        ("path", "body"),
        [("/samples", {"samples": [{"id": "a"}]}), ("/samples", {"samples": [{"id": "a", "image_b64": "eA=="}]}),
         ("/samples", []), ("/take", {"name": "x", "ids": [1]}), ("/take", {"ids": ["a"]}),
         ("/take", {"name": "x", "ids": ["a"], "wait": "long"}), ("/take", {"name": "x", "ids": ["a"], "wait": -1})],
    )  # fmt: skip
    def test_what_is_not_of_the_protocol_is_refused(self, path, body):
        with serving(blue) as server:
            for kind, status in (("application/json", 422), ("text/plain", 415)):
                asked = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": kind})
                with pytest.raises(urllib.error.HTTPError) as raised:
                    urllib.request.urlopen(asked)
                assert raised.value.code == status

    def test_a_key_is_asked_for(self, monkeypatch):
        monkeypatch.setenv("DRAW_KEY", "secret")
        with serving(blue, key_env="DRAW_KEY") as server:
            DataServer(server.url, key_env="DRAW_KEY").put([sample("a")])
            with pytest.raises(MMRLError, match="401"):
                DataServer(server.url).put([sample("b")])

    def test_an_address_that_is_none_or_nobodys_is_one_line(self):
        with pytest.raises(ConfigError, match="serve-samples"):
            DataServer("localhost:8091")
        with pytest.raises(MMRLError, match="cannot be reached"):
            DataServer("http://127.0.0.1:9", retries=0).take("n", ["a"])


class TestSurround:
    def test_boxes_move_with_the_picture_and_other_truths_stay(self):
        asked = {"image": Image.new("RGB", (80, 40), "red"), "description": "under a navy sky", "task": "box"}
        picture, box = surround({**asked, "solution": [0, 0, 80, 40]})
        assert picture.size == (80, 40) and (box[2] - box[0], box[3] - box[1]) == (60, 30)
        inner = picture.crop([round(v) for v in box])
        assert inner.getcolors() == [(1800, (255, 0, 0))], "the old picture, whole"
        assert {(0, 0, 128)} <= {color for _, color in picture.getcolors()}
        assert surround({**asked, "task": "numeric", "solution": "3"})[1] == "3"
        with pytest.raises(ConfigError, match="tracking"):
            surround({**asked, "task": "tracking", "solution": {}})

    def test_a_drawer_is_named(self, tmp_path):
        file = tmp_path / "paint.py"
        file.write_text("def draw(sample):\n    return sample['image']\n")
        assert drawer(f"{file}:draw")({"image": 1}) == 1 and drawer("surround") is surround
        for wrong in ("paint", f"{file}:other"):
            with pytest.raises(ConfigError):
                drawer(wrong)


def told(number: int, texts: dict, groups: list[int], round: int = 1):
    now = replace(step(round, size=2, prompts=1), number=number)
    now.texts, now.groups, now.asked = texts, groups, {g: "How many?" for g in range(len(groups))}
    return now


def proposing(url: str, **options) -> SynGrpo:
    strategy = SynGrpo(url=url, proposers=1, proposals=2, solvers=3, **options)
    strategy.meet(SEEDS)
    return strategy


def described(group=(0, 0, 1, 1)):
    """A group that answers and one that describes."""
    columns = {"proposes": [0.0, 0, 1, 1], "proposal_group": [-1.0] * 4, "proposal_member": [-1.0] * 4}
    return rows(
        [0.0] * 4, list(group), member=torch.tensor([0, 1, 0, 1]),
        columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()},
    )  # fmt: skip


class TestSynGrpo:
    def test_pictures_that_come_in_time_are_asked_and_pay_their_description(self):
        with serving(blue) as server:
            strategy = proposing(server.url, wait=20)
            first = strategy.ask(told(0, {}, [], round=0))
            assert [(a.count, a.note, dict(a.columns)) for a in first.ask] == [
                (2, None, {}), (2, "invite", {"proposes": 1.0}),
            ]  # fmt: skip
            assert "How many?" in strategy.shown(first.ask[1], SEEDS[8], None).text
            texts = {(1, 0): SAID, (1, 1): "<description>fail</description>"}
            plan = strategy.join(described(), told(0, texts, [7, 8]))
            assert [(a.count, a.index, dict(a.columns)) for a in plan.ask] == [
                (3, 8, {"proposal_group": 1.0, "proposal_member": 0.0})
            ]
            assert plan.trained.tolist() == plan.counted.tolist() == [True, True, True, False], "it was not drawn"
            new = strategy.shown(plan.ask[0], SEEDS[8], None)
            assert new.images[0].getpixel((0, 0)) == (0, 0, 255) and new.text == "How many?"
            assert new.columns == SEEDS[8].columns and new.asks == SEEDS[8].id != new.id
            assert strategy.state_dict() == {"pending": [], "lost": 1}
            assert strategy.join(described(), told(0, texts, [7, 8, 8], round=2)) is None

    def test_a_late_picture_trains_later_and_a_resumed_run_takes_the_same(self):
        hold = threading.Event()
        with serving(lambda s: hold.wait(20) and blue(s)) as server:
            strategy = proposing(server.url, wait=0)
            plan = strategy.join(described(), told(0, {(1, 0): SAID, (1, 1): "nothing"}, [7, 8]))
            assert not plan.asks and plan.trained.tolist() == [True, True, False, True], "unreadable is worth 0"
            state = strategy.state_dict()
            assert [s["row"] for s in state["pending"]] == [8]
            hold.set()
            DataServer(server.url).take("elsewhere", [state["pending"][0]["id"]], wait=20)
            plans = []
            for _ in range(2):
                resumed = proposing(server.url, wait=0)
                resumed.load_state_dict(state)
                plans.append(resumed.ask(told(1, {}, [], round=0)))
                assert resumed.state_dict()["pending"] == []
            assert plans[0].digest() == plans[1].digest()
            assert [(a.count, a.index, a.columns) for a in plans[0].ask[2:]] == [(3, 8, {})]

    def test_a_server_that_was_restarted_is_asked_again_and_patience_ends(self):
        with serving(lambda s: threading.Event().wait(20)) as server:
            strategy = proposing(server.url, wait=0, patience=2)
            old = {"id": "old", "row": 8, "description": "a meadow", "step": 0}
            strategy.load_state_dict({"pending": [old], "lost": 0})
            strategy.ask(told(1, {}, [], round=0))
            assert list(server.samples.asked) == ["old"] and strategy.pending == [old]
            strategy.ask(told(2, {}, [], round=0))
            assert strategy.state_dict() == {"pending": [], "lost": 1}

    def test_without_an_address_or_a_picture_it_says_what_is_missing(self):
        assert Bound.of("rollout", "syn_grpo").waits == [
            "rollout 'syn_grpo' waits for its url: rollout.syn_grpo.url=YOURS"
        ]
        with pytest.raises(ConfigError, match="0 pictures"):
            proposing("http://127.0.0.1:9").invite(replace(SEEDS[0], images=[]))


@pytest.mark.parametrize(("scores", "paid"), [([0, 1, 0, 1], 1.0), ([1, 0, 0, 0], 0.75**0.5), ([1, 1, 1], 0.0)])
def test_a_description_is_worth_the_spread_of_the_answers_to_its_picture(scores, paid):
    """Deviations .5, .433 and 0, over .5."""
    n = len(scores)
    named = {
        "proposes": [1.0] + [0] * n, "proposal_group": [-1.0] + [0] * n, "proposal_member": [-1.0] + [0] * n,
    }  # fmt: skip
    batch = rows(
        [0.0, *map(float, scores)], [0] + [1] * n, member=torch.arange(n + 1),
        columns={k: torch.tensor(v, dtype=torch.float64) for k, v in named.items()},
    )  # fmt: skip
    shaped = Bound.of("shaping", {"name": "proposals", "kind": "spread", "useless": 0.0})(batch)
    assert float(shaped[0]) == pytest.approx(paid)
