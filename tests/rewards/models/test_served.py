"""Rewards of other machines: our own server, Flow-Factory's lists, and what a server may not do."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request

import pytest
from PIL import Image

from mmrl.errors import ConfigError, RewardError
from mmrl.record import Prompt
from mmrl.rewards import http
from mmrl.rewards.panel import RewardPanel, RewardSpec
from mmrl.rewards.registry import registered
from mmrl.rewards.server import RewardServer, ServeConfig
from tests.rewards.helpers import USER_FILE, prompts
from tests.rewards.models.http import serving

RED = Image.new("RGB", (4, 4), (220, 30, 30))


@pytest.fixture(scope="module")
def ours():
    specs = [RewardSpec(name="accuracy"), RewardSpec(name="format"), RewardSpec(name=f"{USER_FILE}:redness")]
    server = RewardServer(ServeConfig(rewards=specs, port=0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.close()


def post(url, data, kind="application/json"):
    """(status, body) of a request as it is."""
    request = urllib.request.Request(url, data=data, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class TestOurServer:
    def test_a_panel_of_a_run_scores_by_it(self, ours):
        spec = {"name": "served", "options": {"url": ours.url, "rewards": ["accuracy", "format"], "batch_size": 2}}
        spec["weight"] = {"accuracy": 0.9, "format": 0.1}
        said = ["<think>t</think><answer>3</answer>", "3", "4"]
        with RewardPanel([spec], workers=1) as panel:
            found = panel.score(said, prompts(3, solution="3", task="numeric"))
        assert found.reward.tolist() == pytest.approx([1, 0.9, 0])
        assert found.components["served/accuracy/parsed"].tolist() == [1, 1, 1]

    def test_pictures_and_clips_travel(self, ours):
        call = registered()["served"].function
        found = call(
            prompts=["red", "red"], completions=[RED, Image.new("RGB", (4, 4))], url=ours.url, rewards=["redness"]
        )
        assert [row["score"] for row in found] == [220, 0]
        clip = call(prompts=["red"], completions=[[RED, RED]], url=ours.url, rewards=["redness"])
        assert clip[0]["score"] == 220

    def test_a_reward_it_lacks_is_an_error_of_that_reward(self, ours):
        found = registered()["served"].function(
            prompts=["q"], completions=["3"], url=ours.url, rewards=["format", "hpsv9"], solution=["3"]
        )
        assert found[0]["format"] == 0 and "this server has accuracy, format, redness" in str(found[0]["hpsv9"])

    def test_a_row_it_cannot_score_says_why(self, ours):
        body = {"requests": [{"history": [{"text": "q"}, {"text": "3"}], "required_rewards": ["accuracy"],
                              "metadata": {"task": "numeric", "solution": "three apples or four"}}]}  # fmt: skip
        status, answer = post(ours.url, json.dumps(body).encode())
        assert status == 200 and answer["results"] == [{}] and "is not one number" in answer["errors"][0]["accuracy"]

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"{", "Expecting"), (b"[]", "expected"), (b'{"requests": []}', "expected"),
            (b'{"requests": [{"history": [], "required_rewards": []}]}', "history"),
            (b'{"requests": [{"history": [{"text": "a"}]}]}', "required_rewards"),
            (b'{"requests": [{"history": [{"image_b64": "!!"}], "required_rewards": ["format"]}]}', "is no PNG"),
            (b'{"requests": [{"history": [{"video_path": "/etc/passwd"}], "required_rewards": []}]}', "sender's disk"),
        ],
    )  # fmt: skip
    def test_what_is_no_request_is_refused(self, ours, body, said):
        status, answer = post(ours.url, body)
        assert status == 422 and said in answer["error"]

    def test_only_json_to_the_right_place(self, ours):
        assert post(ours.url, b"x", "application/octet-stream")[0] == 415
        assert post(ours.url + "s", b"{}")[0] == 404
        with urllib.request.urlopen(ours.url.replace("/score", "/health")) as answer:
            assert json.loads(answer.read()) == {"rewards": ["accuracy", "format", "redness"]}

    def test_a_key(self, monkeypatch):
        monkeypatch.setenv("SERVER_KEY", "secret")
        server = RewardServer(ServeConfig(rewards=[RewardSpec(name="format")], port=0, key_env="SERVER_KEY"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            call = registered()["served"].function
            given = {"prompts": ["q"], "completions": ["3"], "url": server.url, "rewards": ["format"]}
            assert call(**given, key_env="SERVER_KEY")[0]["score"] == 0
            with pytest.raises(RewardError, match="answered 401"):
                call(**given)
        finally:
            server.close()
        with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
            RewardServer(ServeConfig(rewards=[RewardSpec(name="format")], port=0, key_env="NO_SUCH_KEY"))


class TestLists:
    def test_base64_lists(self):
        with serving(lambda body, n: {"rewards": [0.25] * len(body["prompt"])}) as (url, asked):
            found = registered()["served"].function(
                prompts=["a", "b"],
                completions=[RED, RED],
                images=[[RED], []],
                url=url,
                protocol="lists",
                kind=["x", "y"],
            )
        assert [row["score"] for row in found] == [0.25, 0.25]
        body = asked.bodies[0]
        assert body["prompt"] == ["a", "b"] and [len(c) for c in body["condition_images"]] == [1, 0]
        assert Image.open(io.BytesIO(base64.b64decode(body["image"][0]))).size == (4, 4)
        assert body["extra"] == [{"kind": "x"}, {"kind": "y"}]


class TestWhatServersMayAnswer:
    @pytest.mark.parametrize(
        "answer",
        [{}, {"results": []}, {"results": [{}]}, {"results": [{"a": {"a": "NaN"}}]}, [],
         {"results": [{"a": {"a": None}}]}, {"results": [{"a": [1]}]}],
    )  # fmt: skip
    def test_anything_else_leaves_the_row_unscored(self, answer, monkeypatch):
        monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
        with serving(lambda body, n: answer) as (url, _):
            found = registered()["served"].function(prompts=["q"], completions=["3"], url=url, rewards=["a"])
        assert isinstance(found[0]["score"], Exception)

    def test_one_row_is_lost_and_the_others_are_not(self):
        answer = {"results": [{"a": {"a": 1}}, {}], "errors": [{}, {"a": "out of memory"}]}
        with serving(lambda body, n: answer) as (url, _):
            spec = {"name": "served", "options": {"url": url, "rewards": ["a"]}}
            with RewardPanel([spec], unscored_ceiling=0.5) as panel:
                found = panel.score(["x", "y"], [Prompt("p", [{"role": "user", "content": "q"}])] * 2)
        assert found.reward[0] == 1 and found.reward[1].isnan() and found.causes == {"served: out of memory": 1}

    @pytest.mark.parametrize(
        "options",
        [{"url": "ftp://x/y"}, {"url": ""}, {"url": "http://u:p@h/score"}, {"protocol": "pickle"}, {"rewards": []}],
    )
    def test_settings_that_cannot_work(self, options):
        given = {"url": "http://127.0.0.1:9/score", "rewards": ["a"], **options}
        with pytest.raises(RewardError):
            registered()["served"].function(prompts=["q"], completions=["3"], **given)
