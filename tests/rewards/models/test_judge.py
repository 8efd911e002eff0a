"""Judges, listeners and process reward models behind a real local server."""

import base64
import io
import math
import pickle
import time
from email.utils import formatdate

import pytest
from PIL import Image

from mmrl.errors import RewardError
from mmrl.record import Prompt
from mmrl.rewards import http
from mmrl.rewards.models import judge as judges
from mmrl.rewards.models import perceval
from mmrl.rewards.models.listener import chance, thought_of
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.registry import registered
from tests.rewards.models.http import chat, serving

RED = Image.new("RGB", (4, 4), (220, 30, 30))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(judges, "_MEMORIES", {})
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)


def ask(url, completions, **options):
    """Rows of the reward `judge`; the solution is blue."""
    count = len(completions)
    questions = [[{"role": "user", "content": "Which colour is the car in the picture?"}]] * count
    return registered()["judge"].function(
        prompts=questions, completions=completions, solution=["blue"] * count, url=url, model="m", **options
    )


def text_of(body):
    """The text of the last turn."""
    return body["messages"][-1]["content"][-1]["text"]


class TestJudge:
    def test_pictures_template_and_score(self):
        with serving(lambda body, n: chat('```json\n{"score": 0.75}\n```')) as (url, asked):
            found = ask(url + "/v1", ["<answer>navy</answer>"], images=[[RED]], system="Be strict.")
        assert found == [{"score": 0.75, "parsed": 1.0}]
        system, user = asked.bodies[0]["messages"]
        image, text = user["content"]
        sent = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
        assert sent.getpixel((0, 0)) == (220, 30, 30) and system["content"] == "Be strict."
        assert "Which colour" in text["text"] and "navy" in text["text"] and "blue" in text["text"]

    def test_frames_of_clips_are_shown(self, tmp_path):
        clip = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(16)]
        with serving(lambda body, n: chat("1")) as (url, asked):
            ask(url, ["<answer>navy</answer>"], videos=[[clip]], frames=4)
        assert sum(part["type"] == "image_url" for part in asked.bodies[0]["messages"][-1]["content"]) == 4

    def test_a_generated_picture_is_judged(self):
        with serving(lambda body, n: chat("Fits well.\nFinal Score: 4")) as (url, asked):
            found = registered()["judge"].function(
                prompts=["a red square"], completions=[RED], url=url, model="m", template="final_score", low=1, high=5
            )
        assert found[0]["score"] == 0.75 and "a red square" in asked.bodies[0]["messages"][0]["content"][1]["text"]

    def test_equal_questions_are_asked_once_and_remembered(self, tmp_path):
        said = ["<answer>navy</answer>"] * 5 + ["<answer>red</answer>"]
        with serving(lambda body, n: chat("0.5")) as (url, asked):
            ask(url, said, cache=str(tmp_path))
            assert len(asked.bodies) == 2
            judges._MEMORIES.clear()
            assert ask(url, said, cache=str(tmp_path))[0]["score"] == 0.5 and len(asked.bodies) == 2
            ask(url, said, cache=str(tmp_path), temperature=0.5)
            assert len(asked.bodies) == 4, "another way of asking is another question"

    def test_no_more_at_once_than_allowed(self):
        def slow(body, n):
            time.sleep(0.05)
            return chat("1")

        with serving(slow) as (url, asked):
            ask(url, [f"<answer>{i} blue</answer>" for i in range(12)], concurrency=3)
        assert 1 < asked.most <= 3

    def test_what_passes_is_tried_again(self):
        page = (200, {"Content-Type": "text/html"}, b"<html><title>Gateway</title></html>")
        busy = [(503, {}, b"busy"), (200, {}, b"{broken"), page, chat("1")]
        with serving(lambda body, n: busy[n]) as (url, asked):
            assert ask(url, ["<answer>navy</answer>"])[0]["score"] == 1 and len(asked.bodies) == 4
        with serving(lambda body, n: page) as (url, _):
            found = ask(url, ["<answer>teal</answer>"], retries=0)[0]
        assert "a page of HTML, 'Gateway'" in str(found["score"]) and found["parsed"] is None

    def test_a_pause_that_the_server_asks_for(self):
        soon = formatdate(time.time() + 30, usegmt=True)
        asked = [http._asked_pause(each) for each in ("7", soon, "9999", "-1", "soon", None)]
        assert asked == [7, pytest.approx(30, abs=3), 120, 0, None, None]

    def test_what_cannot_pass_stops_the_run(self, monkeypatch):
        with serving(lambda body, n: (401, {}, b'{"error": "no key"}')) as (url, asked):
            with pytest.raises(RewardError, match=r"answered 401.*no key"):
                ask(url, ["<answer>navy</answer>"])
            assert len(asked.bodies) == 1
        with pytest.raises(RewardError, match="MISSING_KEY is not set"):
            ask("http://127.0.0.1:1", ["x"], key_env="MISSING_KEY")
        monkeypatch.setenv("JUDGE_KEY", "secret")
        with serving(lambda body, n: chat("1")) as (url, asked):
            ask(url, ["<answer>navy</answer>"], key_env="JUDGE_KEY")
            assert asked.headers[0]["Authorization"] == "Bearer secret"

    def test_pickles_are_refused_and_never_opened(self):
        class Trap:
            def __reduce__(self):
                return pytest.fail, ("unpickled",)

        kind = {"Content-Type": "application/octet-stream"}
        sent = pickle.dumps(Trap())
        with (
            serving(lambda body, n: (200, kind, sent)) as (url, _),
            pytest.raises(RewardError, match=r"octet-stream.*"),
        ):
            ask(url, ["<answer>navy</answer>"])

    def test_what_cannot_be_read_is_unscored_and_counted(self):
        replies = [chat("I would rather not."), chat("7"), chat("0.5"), {"odd": 1}]
        answers = {"a": replies[0], "b": replies[1], "c": replies[2], "d": replies[3]}
        prompt = Prompt(
            "p", [{"role": "user", "content": "Which letter is it, do you think?"}], columns={"solution": "c"}
        )
        with serving(lambda body, n: answers[body["messages"][0]["content"][0]["text"].split("grade:\n")[1][0]]) as (
            url,
            _,
        ):
            spec = {"name": "judge", "options": {"url": url, "model": "m", "retries": 0}}
            with RewardPanel([spec], unscored_ceiling=1.0) as panel:
                found = panel.score(list("abcd"), [prompt] * 4)
        assert [math.isnan(v) for v in found.reward.tolist()] == [True, True, False, True]
        assert set(found.causes) == {
            "judge: the judge's reply holds no score", "judge: the judge's score lies off the scale from 0 to 1",
            "judge: the judge's answer is no chat completion",
        }  # fmt: skip

    def test_a_judge_of_weight_0_that_fails_is_counted(self):
        judge = {"name": "judge", "weight": 0, "options": {"url": "http://127.0.0.1:9", "model": "m", "retries": 0}}
        prompt = Prompt("p", [{"role": "user", "content": "What is it?"}], columns={"solution": "x", "task": "exact"})
        with RewardPanel(["accuracy", judge]) as panel:
            found = panel.score(["x", "x"], [prompt] * 2)
        assert (
            found.reward.tolist() == [1, 1]
            and [*found.causes.values()] == [2]
            and next(iter(found.causes)).startswith("judge: 127")
        )

    @pytest.mark.parametrize("reply", ['{"score": 0.', '```json\n{"score": 1', '{"reason": "it is 1'])
    def test_a_reply_that_was_cut_says_nothing(self, reply):
        with pytest.raises(ValueError, match="was cut"):
            judges.read_score(reply, "auto", 0, 1)

    def test_a_server_that_is_not_there_leaves_rows_unscored(self):
        found = ask("http://127.0.0.1:9", ["<answer>navy</answer>"], retries=1, timeout=2)
        assert "cannot be reached" in str(found[0]["score"])

    def test_degenerate_answers_are_not_asked_about(self):
        with serving(lambda body, n: chat("1")) as (url, asked):
            question = "Which colour is the car in the picture?"
            rows = ["", "<answer></answer>", "<think>blue", question, f"{question}\n" * 3]
            assert [row["score"] for row in ask(url, rows)] == [0] * 5 and not asked.bodies

    @pytest.mark.parametrize(
        ("reply", "score"),
        [('{"score": 0.2}', 0.2), ("Score: 0.4", 0.4), ("Rating: [[0.6]]", 0.6), ("0.8", 0.8), ("Yes, it does.", 1),
         ("No.", 0), ("8/10", 0.8), ("**Score:** 8 / 10", 0.8), ('{"score": "8/10"}', 0.8), ("80%", 0.8),
         ("I give it a score of 0.7.", 0.7), ("<think>Score: 0.1</think>Final score: 0.9", 0.9)],
    )  # fmt: skip
    def test_replies(self, reply, score):
        assert judges.read_score(reply, "auto", 0, 1) == score

    def test_a_score_with_a_scale_of_its_own_is_brought_to_ours(self):
        assert judges.read_score("Score: 4/5", "auto", 1, 5) == judges.read_score("Score: 8/10", "auto", 1, 5) == 0.75
        with pytest.raises(ValueError, match="off the scale"):
            judges.read_score("12/10", "auto", 0, 1)

    @pytest.mark.parametrize(
        "options", [{"parse": "regex"}, {"template": "grad"}, {"template": "{quest}"}, {"template": "{"}]
    )
    def test_settings_that_cannot_work(self, options):
        with pytest.raises(RewardError, match="judge: "):
            ask("http://127.0.0.1:9", ["<answer>navy</answer>"], **options)

    def test_a_server_that_is_not_named_is_asked_for(self):
        with pytest.raises(RewardError, match="options url and model are missing"):
            ask("", ["<answer>navy</answer>"])


class TestListener:
    def considered(self, **shares):
        top = [{"token": f" {k}", "logprob": math.log(v)} for k, v in shares.items()]
        return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}

    def test_reward(self):
        text = "<think>It barks. So the answer is B.</think><answer>B</answer>"
        with serving(lambda body, n: self.considered(A=0.2, B=0.6, the=0.2)) as (url, asked):
            found = registered()["listener_reward"].function(
                prompts=["Which pet?"], completions=[text], solution=["B"], options=[["cat", "dog"]], url=url, model="m"
            )
        assert found[0]["score"] == pytest.approx(1 + 0.5 + 0.5 * 0.75)
        shown = asked.bodies[0]["messages"][0]["content"][-1]["text"]
        assert "It barks." in shown and "answer is B" not in shown and asked.bodies[0]["logprobs"] is True

    def test_parts(self):
        assert thought_of("no thought") == "" and chance([], "A", ("A", "B")) == 0


class TestPerceval:
    def test_spans(self):
        assert perceval.spans_of("a red car and a red car", ["red car", "blue"]) == ([[2, 9]], 1)
        assert perceval.flagged('<think>x</think><answer>["red car"]</answer>') == ["red car"]
        assert perceval.flagged("The response is correct.") == [] and perceval.flagged("hm") is None
        assert perceval.flagged("<answer>[]</answer>") == []
        assert perceval.flagged("<answer>['a red car', \"the dog's tail\",]</answer>") == [
            "a red car",
            "the dog's tail",
        ]

    def test_columns_reach_the_batch(self):
        prompt = Prompt("p", [{"role": "user", "content": "What is there?"}], columns={"solution": "x"})
        replies = {"a": chat('<answer>["red car"]</answer>'), "n": chat("The response is correct")}
        with serving(lambda b, n: replies[b["messages"][0]["content"][0]["text"].split("Response:\n")[1][0]]) as (
            url,
            _,
        ):
            spec = {"name": "perceval", "columns": ["flagged_tokens"], "options": {"url": url, "model": "m"}}
            with RewardPanel([spec]) as panel:
                found = panel.score(["a red car", "nothing"], [prompt] * 2)
        assert found.columns == {"flagged_tokens": [[[2, 9]], []]} and found.reward.tolist() == [0, 1]

    def test_a_row_that_no_model_looked_at_is_unscored_and_counted_at_any_weight(self):
        prompt = Prompt(
            "p", [{"role": "user", "content": "What is there?"}], columns={"solution": "x", "task": "exact"}
        )
        lost = (500, {}, b"out of memory")
        with serving(lambda body, number: lost if number % 2 else chat("<answer>[]</answer>")) as (url, _):
            options = {"url": url, "model": "m", "retries": 0, "concurrency": 1}
            judge = {"name": "perceval", "weight": 0, "columns": ["flagged_tokens"], "options": options}
            with RewardPanel(["accuracy", judge]) as panel:
                found = panel.score(["x", "a x"], [prompt] * 2)
        assert found.reward.isnan().sum() == 1 and found.components["perceval/parsed"].isnan().sum() == 1
        assert found.causes == {f"perceval/flagged_tokens: {url[7:]} answered 500: out of memory": 1}
