"""What no scorer may reward, asked of every reward there is: nothing, noise, a cut reply, all options, the prompt."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.worlds.edits import Edits, after
from mmrl.data.worlds.moves import Moves
from mmrl.errors import RewardError
from mmrl.rewards.accuracy import TASKS
from mmrl.rewards.registry import registered, takes
from tests.rewards.pictures import gliding, noise, plain

PETS = ["A cat", "A dog", "A cow", "A hen"]
PET_PROMPT = "Which pet is it?\nA. A cat\nB. A dog\nC. A cow\nD. A hen\nAnswer with the option's letter: A, B, C or D."
BOX, BOXES = [10, 20, 110, 220], [[10, 20, 110, 220], [300, 300, 400, 400]]
BOX_PROMPT = "Where is the cat? Answer with its box as [x1, y1, x2, y2] in pixels."
HTML = "<table><tr><td>red</td><td>blue</td></tr><tr><td>4</td><td>6</td></tr></table>"
CALL = {"name": "zoom", "parameters": {"x": 1, "y": 2}}

OLDER = ("choice", "multi_choice", "boolean", "regression", "math")
SCENE = {"shape": "circle", "color": "red"}
MOVES = {"objects": [{**SCENE, "motion": "right"}], "background": "black", "size": 16, "frames": 5}
EDIT = {
    "objects": [{**SCENE, "box": [0, 0, 7, 7]}, {"shape": "square", "color": "green", "box": [16, 16, 23, 23]}],
    "background": "black", "size": 24, "asked": {"edit": "recolor", "color": "red", "shape": "circle", "to": "blue"},
}  # fmt: skip
BEFORE = Edits().render(EDIT)
# reward of pictures or videos: (a right output, its columns, what no output may exceed)
PICTURES = {
    "choreography": (Moves().render(MOVES), {"scene": MOVES}, 1),
    "edited": (Edits().render(EDIT, after(EDIT)), {"scene": EDIT}, 1),
    "preservation": (BEFORE, {"reference": [BEFORE], "edit_region": [0, 0, 7, 7]}, 1),
    "color_share": (plain((220, 30, 30)), {"color": "red"}, 1),
    "flicker": (gliding(), {}, 1),
    "motion_magnitude": (gliding(), {}, 1),
    "temporal_consistency": (gliding(), {}, 1),
    "jpeg_compressibility": (plain((0, 0, 0)), {}, 0),
    "jpeg_incompressibility": (noise(0), {}, math.inf),
}
VERIFIERS = {"choreography", "edited"}  # exact: nothing but the asked thing is worth anything

# task: (prompt, solution, a right answer, options)
SAMPLES = {
    "exact": ("Which colour is the car?", "red", "red", None),
    "choice": (PET_PROMPT, "B", "B", PETS),
    "multi_choice": (PET_PROMPT, "B, C", "B, C", PETS),
    "boolean": ("Is there a cat? Answer yes or no.", "yes", "yes", None),
    "numeric": ("How many circles are there? Answer with one number.", "3", "3", None),
    "regression": ("How far is the chair, in metres? Answer with a number.", "3", "3", None),
    "math": ("What is $\\frac{1}{2} + x$? Put your answer in a box.", "x + \\frac{1}{2}", "\\frac{1}{2} + x", None),
    "temporal": ("When does the dog jump? Give start and end in seconds.", [2, 8], "[2, 8]", None),
    "box": (BOX_PROMPT, BOX, str(BOX), None),
    "boxes": (BOX_PROMPT, BOXES, str(BOXES), None),
    "ocr": ("What does the sign say?", "Mind the gap", "Mind the gap", None),
    "open_ended": (
        "What happens in the clip? Describe it in one sentence.",
        "A man rides a horse",
        "man on a horse",
        None,
    ),
    "caption": ("Describe the picture in one sentence.", "A man rides a horse", "A man on a horse", None),
    "point": ("Point at the cat. Answer with (x, y) in pixels.", [2, 3, 9, 9], "(5, 5)", None),
    "points": (
        "Point at every cat. Answer with a list of [x, y].",
        [[2, 3, 4, 4], [7, 7, 9, 9]],
        "[[3, 3.5], [8, 8]]",
        None,
    ),
    "polygon": ("Outline the cat.", [[0, 0], [90, 0], [90, 50], [0, 50]], "[[0, 0], [90, 0], [90, 50], [0, 50]]", None),
    "segmentation": (
        "Find the cat.",
        [{"bbox_2d": BOX, "point_2d": [40, 90]}],
        json.dumps([{"bbox_2d": BOX, "point_2d": [40, 90]}]),
        None,
    ),
    "counting_boxes": (
        "Find the cats.",
        {"count": 2, "boxes": [[3, 9, 110, 220], [300, 300, 400, 400]]},
        "[[3, 9, 110, 220], [300, 300, 400, 400]]",
        None,
    ),
    "temporal_order": ("Order the events A, B and C.", ["C", "A", "B"], "C, A, B", None),
    "jigsaw": ("Six clips were shuffled. Give their order.", "213456", "213456", None),
    "tracking": (
        "Follow the cat. Answer with its box by frame.",
        {"0": BOX, "1": BOX},
        json.dumps({"0": BOX, "1": BOX}),
        None,
    ),
    "spatial_temporal": (
        "When and where is the cat?",
        {"time": [2, 8], "boxes": {"3": BOX}},
        json.dumps({"time": [2, 8], "boxes": {"3": BOX}}),
        None,
    ),
    "video_anomaly": (
        "Is something unusual going on? Answer with kind and time.",
        {"label": "fighting", "time": [2, 8]},
        '{"label": "fighting", "time": [2, 8]}',
        None,
    ),
    "gui": ("Open the settings. Answer with one action.", {"action": "click", "bbox": BOX}, "click(50, 50)", None),
    "table": ("Write the table as HTML.", HTML, HTML, None),
    "latex": ("Write the formula in LaTeX.", "\\frac{x^2}{\\sqrt{y}}", "\\frac{x^2}{\\sqrt{y}}", None),
    "chart": ("How much was sold in 2020? Answer with one number.", "473.5", "473.5", None),
    "code_json": (
        "Write the receipt as JSON.",
        {"shop": "Tea & Co", "total": 12.5},
        '{"shop": "Tea & Co", "total": 12.5}',
        None,
    ),
    "code_html": ("Write the page as HTML.", "<main><h1>Tea</h1></main>", "<main><h1>Tea</h1></main>", None),
    "code_svg": ("Write the picture as SVG.", "<svg><rect/></svg>", "<svg><rect/></svg>", None),
    "code_python": ("Write code that draws the chart.", "import numpy\nplot(1)", "import numpy\nplot(1)", None),
    "matching": ("Which picture belongs to which? Answer as pairs.", {"1": "B", "2": "A"}, "1-B, 2-A", None),
    "counts": ("How many circles, squares and triangles?", "1,2,1", "1,2,1", None),
    "quality": ("Rate the picture from 1 to 5.", 3.5, "3.5", None),
    "preference": ("Which of the two pictures is better?", "2", "Image 2", None),
}
# reward: the sample it is given, or its own; a kind of `mmrl.rewards.kinds` is task and reward at once
REWARDS = {
    **{name: sample for name, sample in SAMPLES.items() if name in registered() and name not in OLDER},
    "exact_match": SAMPLES["exact"], "choice": SAMPLES["choice"], "golden_goose": SAMPLES["choice"],
    "multi_choice": SAMPLES["multi_choice"], "boolean": SAMPLES["boolean"], "number": SAMPLES["numeric"],
    "regression": SAMPLES["regression"], "math": SAMPLES["math"], "temporal_iou": SAMPLES["temporal"],
    "box_iou": SAMPLES["box"], "boxes_iou": SAMPLES["boxes"], "query_boxes": SAMPLES["boxes"],
    "masked_fill": ("Fill the masks: [MASK] = 4, so [MASK]", ["2 + 2", "8"], '["2 + 2", "8"]', None),
    "step_order": ("Put the steps in order: 1. b 2. c 3. a", [3, 1, 2], "[3, 1, 2]", None),
    "toolrl": ("Zoom in on the cat.", json.dumps(CALL), json.dumps(CALL), None),
    "structured_output": ("Describe the picture.", '{"kind": "cat"}', '{"kind": "cat"}', None),
    "c2": ("Which answer is better?", "A", '{"preference": "A"}', None),
    "rm_nlhf": ("Which answer is better, and why?", "B", "B", None),
    "vision_r1": SAMPLES["choice"], "bmas": SAMPLES["open_ended"], "mixed_r1": SAMPLES["open_ended"],
    "mllm_4d": ("Where does it go?", {"answer": "B", "camera_center": [[0, 0, 0]], "object_center": [[1, 1, 1]]},
                "B", None),
    "panoenv": SAMPLES["exact"], "few_shot_satellite_rlvr": SAMPLES["exact"], "lav_cot": SAMPLES["exact"],
    "timemaster": ("Which activity is it? Answer in <class> tags.", "walking", "walking", None),
    "table2latex_rl": SAMPLES["table"], "vqathinker": SAMPLES["quality"], "q_hawkeye": SAMPLES["quality"],
}  # fmt: skip
ELSEWHERE = {
    "accuracy": "each of its tasks is asked here",
    "format": "judges where an answer stands, not what it says: TestFormat",
    "format_graded": "as format",
    "text_diversity": "judges how varied a text is, whatever it says",
    "semantic_reward": "a cosine: near texts are worth something by design",
    "polar": "worth what the user's model says",
    "dynframe": "pays for the frames it fetched, too: papers/test_papers",
    "thought_skipped": "a metric of what was thought, of weight 0",
    "judge": "asks a chat model: models/test_judge",
    "listener_reward": "models/test_judge",
    "perceval": "models/test_judge",
    "served": "says what a server says: models/test_served",
    "pref_grpo": "compares outputs with each other, by any judge: papers/test_preferences",
    "viva_edit_grpo": "judges edits: papers/test_editing",
    "uniref_msgrpo": "judges edits",
    "rlir": "reads videos: papers/test_inverse",
    "react": "reads videos: papers/test_distortion",
    "react_pairs": "compares judgements of two videos",
    "speech": "hears sounds: papers/test_speech",
    "pickscore": "judges pictures: models/test_wrapped",
    "aesthetic": "judges pictures",
    "hpsv2": "judges pictures",
    "hpsv3": "judges pictures",
    "image_reward": "judges pictures",
    "lpips": "judges pictures",
    "rendered_text": "judges pictures: models/test_wrapped",
    "clip_score": "judges pictures: test_clip",
    "compositional": "judges pictures: test_image",
    **dict.fromkeys(PICTURES, "judges pictures or videos: TestEveryPictureScorer"),
    "geneval": "judges pictures: test_geneval",
    "unlabelled": "worth nothing, whatever it says",
    "sentences": "cuts answers, of weight 0: papers/test_segments",
    "ranked_items": "papers/test_ranking",
    "set_then_rank": "papers/test_ranking",
    "equations": "says which sums of an answer are right: papers/test_segments",
    "ngram_repetition": "judges how often a text repeats itself, whatever it says: papers/test_gazal",
    "submodular_rl": "compares outputs with each other: papers/test_submodular",
    "cardrewriter": "judges what a query finds: papers/test_rewriting",
    "medssr": "`accuracy`, or a vote of the group: papers/test_medssr",
    "step_progress": "says how far beginnings of an answer are, by another reward: papers/test_progress",
    "answer_number": "says which answers are the same, not what they are worth",
}


def test_every_reward_is_asked_or_says_where():
    ours = {name for name, each in registered().items() if each.function.__module__.startswith("mmrl.")}
    assert ours == {*REWARDS, *ELSEWHERE}
    assert set(TASKS) == set(SAMPLES)


COLUMNS = {
    "rm_nlhf": {"critique": "The light is harsh."}, "vision_r1": {"task": "choice"}, "lav_cot": {"lang": "French"},
    "mixed_r1": {"task": "open_ended"},
}  # fmt: skip
LEADING = {
    "rm_nlhf": "The light is harsh. ",
    "vision_r1": "<think>It barks.</think>",
    "timemaster": "<class>walking</class>",
}


CASES = [
    *(pytest.param(name, sample, {}, id=name) for name, sample in REWARDS.items()),
    *(pytest.param("accuracy", sample, {"task": task}, id=f"accuracy-{task}") for task, sample in SAMPLES.items()),
]


def score(name: str, completion: str, sample: tuple, extra: dict) -> float:
    _, solution, _, options = sample
    columns = {"solution": [solution], **{key: [value] for key, value in extra.items()}}
    if options:
        columns["options"] = [options]
    if takes(registered()[name].function, "prompts"):
        columns["prompts"] = [sample[0]]
    columns |= {key: [value] for key, value in COLUMNS.get(name, {}).items()}
    value = registered()[name].function(completions=[completion], **columns)[0]
    return value.get(name, value.get("score")) if isinstance(value, dict) else value


def worthless(prompt: str, right: str, options: list | None) -> list[str]:
    """Replies that answer nothing, untagged and tagged."""
    wall = str([[x, y, x + 20, y + 20] for x in range(0, 200, 10) for y in range(0, 200, 10)])
    said = [
        "", " ", "\n\n", "...", "?", "\N{REPLACEMENT CHARACTER}" * 20, "garbage quux zzz", "I do not know.",
        "null", "{}",
        "NaN",
        "yes no yes no", "yes or no", "A B C D E F", "A, B, C, D", "A or B or C or D", "ABCDEFGHIJ", "A. B. C. D.",
        "The answer is A. The answer is B. The answer is C. The answer is D.", " ".join(map(str, range(100))),
        "0 or 1 or 2 or 3", ", ".join(f"{i} to {i + 1} s" for i in range(20)), wall, wall.replace("], [", "]\n["),
        prompt, f"{prompt}\n{prompt}", f"{prompt}\n" * 5, *([", ".join(options), "\n".join(options), str(options)]
          if options else []),
    ]  # fmt: skip
    cut = [
        f"<answer>{right}", f"{right}</answer>", f"<think>{right}", f"<think>so <answer>{right}</answer>",
        f"\\boxed{{{right}", f"<answer>\\boxed{{{right}</answer>", "<answer>", "<answer></answer>", "\\boxed{}",
        "<think></think>",
        f"<think><answer>{right}</answer></think>", f"<answer>{right}</think>",
    ]  # fmt: skip
    return [*said, *(f"<answer>{text}</answer>" for text in said), *(f"\\boxed{{{text}}}" for text in said), *cut]


@pytest.mark.parametrize(("name", "sample", "extra"), CASES)
class TestEveryScorer:
    def test_a_right_answer_is_worth_something(self, name, sample, extra):
        """Without this the rest would hold of a scorer that always says 0."""
        assert score(name, f"{LEADING.get(name, '')}<answer>{sample[2]}</answer>", sample, extra) > 0

    def test_nothing_is_worth_nothing(self, name, sample, extra):
        for completion in worthless(sample[0], sample[2], sample[3]):
            if name == "structured_output" and "{}" in completion:
                continue  # an object without fields parses, which is worth its share
            assert score(name, completion, sample, extra) <= 0, completion

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("piece", ["A is 1 and ", "1 and 2 a and ", "no ", "(1, ", "\n- "])
    def test_what_repeats_itself_is_read_in_time(self, name, sample, extra, piece):
        assert math.isfinite(score(name, f"<answer>{piece * 1500}</answer>", sample, extra))

    @settings(max_examples=40, deadline=None)
    @given(text=st.text(alphabet="qzj <>/{}[]()\\.,:-'\"\n", max_size=80), tagged=st.booleans())
    def test_noise_is_worth_nothing(self, name, sample, extra, text, tagged):
        value = score(name, f"<answer>{text}</answer>" if tagged else text, sample, extra)
        assert math.isfinite(value) and (value <= 0 or (name == "structured_output" and "{" in text))

    @pytest.mark.parametrize("solution", [None, "", "  ", math.nan, {}])
    def test_a_blank_truth_is_refused_by_check_and_by_the_scorer(self, name, sample, extra, solution):
        check = registered()[name].check
        assert check is not None
        row = {"solution": solution, "options": sample[3], **extra, **COLUMNS.get(name, {})}
        with pytest.raises(RewardError):
            check(row)
        if name != "c2":
            with pytest.raises(RewardError):
                score(name, "<answer>x</answer>", (sample[0], solution, *sample[2:]), extra)


ENDLESS = [
    "{", "[1, ",
    '{"a": ', "{'a': 1, ", '{"\\"', "[1, 2, 3, 4], ", "(1, 2) ", "1:05 to ", "| 1 ", "\\frac{", "<", "<loc_1>",
    "\u200b", "wait, no: A, ", "A, ", "Image 1 is ",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("task", SAMPLES)
def test_what_never_ends_is_read_in_time(task):
    for piece in ENDLESS:
        assert math.isfinite(score("accuracy", f"<answer>{piece * 800}</answer>", SAMPLES[task], {"task": task})), piece


@pytest.mark.parametrize("name", PICTURES)
class TestEveryPictureScorer:
    def value(self, name: str, output) -> float:
        value = registered()[name].function([output], **{key: [each] for key, each in PICTURES[name][1].items()})[0]
        return value["overall"] if isinstance(value, dict) else value

    def test_a_right_output_is_worth_more_than_noise(self, name):
        right = PICTURES[name][0]
        blank = plain((0, 0, 0)) if name == "jpeg_incompressibility" else noise(1)
        blank = [plain((0, 0, 0))] * 5 if name == "motion_magnitude" else blank
        worthless = (
            [noise(seed) for seed in range(5)] if isinstance(right, list) and not isinstance(blank, list) else blank
        )
        assert self.value(name, right) > self.value(name, worthless)

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 999), size=st.sampled_from([1, 2, 7, 24, 40]), flat=st.booleans())
    def test_any_pixels_are_worth_a_finite_number_in_its_range(self, name, seed, size, flat):
        frames = [plain((seed % 256, 0, 0), size) if flat else noise(seed + t, size) for t in range(5)]
        value = self.value(name, frames if isinstance(PICTURES[name][0], list) else frames[0])
        assert math.isfinite(value) and value <= PICTURES[name][2]
        assert value >= 0 or name == "jpeg_compressibility"

    @pytest.mark.parametrize("output", ["a text", 3, None])
    def test_what_is_neither_picture_nor_video_is_refused(self, name, output):
        with pytest.raises(RewardError):
            self.value(name, output)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("picture", [plain((0, 0, 0), 24), plain((220, 30, 30), 24), noise(3, 24), BEFORE])
def test_an_exact_verifier_gives_little_for_nothing_noise_and_what_was_there_before(name, picture):
    right, columns, _ = PICTURES[name]
    output = [picture] * 5 if isinstance(right, list) else picture
    value = registered()[name].function([output], **{key: [each] for key, each in columns.items()})[0]
    assert value["overall"] < 0.7 and value["success"] == 0
