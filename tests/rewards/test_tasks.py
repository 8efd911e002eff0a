"""The router: names of tasks, settings of kinds, what is reported, and the prompt repeated."""

import pytest

from mmrl.errors import RewardError
from mmrl.rewards.accuracy import accuracy, check_row, verdict
from mmrl.rewards.panel import RewardPanel
from mmrl.rewards.registry import registered
from mmrl.rewards.tasks import UNREAD, Task, add, find_task, repeats, task_name
from tests.rewards.helpers import prompts

PROBLEM_TYPES = {
    "multiple choice": "choice", "numerical": "numeric", "OCR": "ocr", "free-form": "open_ended", "math": "math",
    "regression": "regression", "temporal grounding": "temporal", "spatial grounding": "box", "boolean": "boolean",
    "spatial-temporal grounding": "spatial_temporal", "tracking": "tracking", "open-ended": "open_ended",
    "code": "code_python", "svg": "code_svg", "html": "code_html", "llava-critic": "preference", "GUI": "gui",
    "TEDS": "table", "chartqa": "chart", "image quality": "quality", "video anomaly": "video_anomaly",
}  # fmt: skip


@pytest.mark.parametrize(("name", "task"), PROBLEM_TYPES.items())
def test_names_of_data_sets(name, task):
    assert find_task(name) is find_task(task)


def test_where_a_row_names_its_task():
    assert task_name({"task": "box", "problem_type": "OCR"}) == "box"
    assert task_name({"problem_type": "OCR", "data_type": "video"}) == "OCR"
    assert task_name({"data_type": "chart"}) == "chart"
    assert task_name({"data_type": "video"}) is None and task_name({}) is None
    with pytest.raises(RewardError, match="unknown task"):
        check_row({"data_type": "image", "solution": "x"})


def test_a_panel_reads_problem_type_and_reports_what_was_read():
    with RewardPanel(["accuracy"], workers=1) as panel:
        rows = prompts(3, problem_type=["OCR", "numerical", "OCR"], solution=["STOP HERE", "3", "STOP"])
        panel.check(rows)
        found = panel.score(["stop here", "3", "?"], rows)
    assert found.reward.tolist() == [1, 1, 0] and found.success.tolist() == [1, 1, 0]
    assert found.components["accuracy/parsed"].tolist() == [1, 1, 1]
    assert found.components["accuracy/wer"][0] == 1 and found.components["accuracy/wer"][1].isnan()
    assert not found.causes, "a part that other tasks do not have is no failure"


class TestSettings:
    def test_of_a_kind_pass_through_accuracy(self):
        rows = (["kitten"], ["sitting"], ["ocr"])
        assert accuracy(*rows)[0]["score"] == 0
        assert accuracy(*rows, tasks={"ocr": {"metric": "cer"}})[0]["score"] == pytest.approx(4 / 7)
        assert registered()["ocr"].function(["kitten"], ["sitting"], metric="cer")[0]["score"] == pytest.approx(4 / 7)

    @pytest.mark.parametrize(
        ("tasks", "said"),
        [({"ocrr": {}}, "unknown task 'ocrr'"), ({"ocr": {"metrik": "cer"}}, "unknown setting 'metrik'.*metric"),
         ({"ocr": {"metric": "werr"}}, "unknown metric 'werr'")],
    )  # fmt: skip
    def test_that_do_not_exist_are_refused(self, tasks, said):
        with pytest.raises(RewardError, match=said):
            accuracy(["x"], ["x"], ["ocr"], tasks=tasks)


class TestThePromptRepeated:
    question = "Describe what the man does with the horse in this clip."

    def test_it_is_worth_nothing(self):
        truth = "the man rides the horse"
        assert verdict(self.question, truth, "open_ended").score > 0, "alone, its words would be worth something"
        for text in (self.question, f"{self.question} " * 3, f"<answer>{self.question}</answer>"):
            assert verdict(text, truth, "open_ended", self.question).score == 0
        chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": self.question}]}]
        assert registered()["open_ended"].function([self.question], [truth], [chat])[0]["score"] == 0

    def test_an_answer_that_quotes_it_is_an_answer(self):
        said = f"{self.question} The man rides the horse along the beach while the sun goes down behind him."
        assert not repeats(said, self.question) and not repeats("B", "B")


def test_a_name_is_taken_once():
    with pytest.raises(RewardError, match="'ocr' is the task 'ocr' already"):
        add("mine", Task(lambda *_: UNREAD, lambda row: None, bool, "", "", ("ocr",)))


@pytest.mark.parametrize("solution", [None, "", float("nan"), {}, 5, [], ["x"], {"a": 1}, True, "no idea", b"x"])
def test_a_truth_of_any_type_is_read_or_refused_in_one_line(solution):
    for name in registered_kinds():
        try:
            check_row({"task": name, "solution": solution})
        except RewardError as error:
            assert "\n" not in str(error) and "solution" in str(error)


def registered_kinds():
    return [name for name in registered() if registered()[name].function.__module__.startswith("mmrl.rewards.kinds")]
