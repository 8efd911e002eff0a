"""The oldest kinds: texts, options, yes or no, numbers, expressions, intervals, boxes; each is a reward, too."""

from __future__ import annotations

from mmrl.rewards import choice, expressions, grounding, numeric, temporal, text
from mmrl.rewards.booleans import boolean, true_boolean
from mmrl.rewards.boxes import boxes, says_none
from mmrl.rewards.chosen import chosen, several
from mmrl.rewards.intervals import interval
from mmrl.rewards.numbers import number
from mmrl.rewards.options import Options, true_option
from mmrl.rewards.registry import checks
from mmrl.rewards.tasks import Task, add

BOX_SETTINGS = ("box_format", "truth_format", "image_size", "resized_size")
NUMBERS = (
    "one number: any dash, `minus`, currency, `1,234.5`, `1.234,5`, `1 234`, `3/4`, `1 1/2`, "
    "`\\frac{1}{2}`, `1½`, `10^6`, "
    "`3×10⁶`, `5k`, `3.2 million`, `twenty-three`, `2π`, `√2`, `50%`, a unit behind it, if not another than the "
    "truth's; not sums, ranges, bounds, `not 5`"
)
TRUE_NUMBER = "the same, or a number; `50%` is answered by `50%`, `50` and `.5`, a share of at most 1 by `50%`, too"
BOXES = (
    "`[x1, y1, x2, y2]`, `(x1, y1), (x2, y2)`, JSON with `bbox_2d`, `bbox`, `box` or `x1`/`xmin`/`left` ..., "
    "`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, `<box>[[...]]</box>`, "
    '`<loc....>` and `box_2d` (y before x); `[]` or "there is no ..." for nothing to find'
)
TRUE_BOXES = "the same, as text or JSON; `[]` or `none`: there is nothing to find. Boxes need an area"


def _is_option(answer: str) -> bool:
    return chosen(answer, Options()) is not None


def _is_number(answer: str) -> bool:
    return number(answer) is not None


def _is_boxes(answer: str) -> bool:
    return bool(boxes(answer)) or says_none(answer)


for _name, _task in {
    "exact": Task(
        text.exact,
        checks(text.true_texts),
        bool,
        "the text; case, spacing, kinds of quotes and final punctuation do not matter",
        "a text or number; a list means any of these",
        ("exact_match", "text"),
    ),
    "choice": Task(
        choice.single,
        checks(true_option, "options"),
        _is_option,
        "the option finally stated: `B`, `(b)`, `B. dog`, `The answer is B`, `B is correct`, its text; of "
        "`B, no, C` and `I thought B, the answer is C` the later; not `A or B`, `could be B`, `not B`, or a walk "
        "through the options",
        "a letter, `B. dog`, the option's text, or an integer counting from 0; `options` as list, "
        "mapping, JSON or lines",
        ("multiple_choice", "mcq", "single_choice", "multiple_choice_qa"),
        ("options",),
    ),
    "multi_choice": Task(
        choice.several,
        checks(choice.true_options, "options"),
        lambda a: bool(several(a, Options())),
        'the options finally stated: `A, C`, `AC`, `(A) and (C)`, `["A", "C"]`, or their texts',
        "the same as text, or a list of letters, texts or integers from 0",
        ("multi_answer", "multiple_answer_choice"),
        ("options", "strict"),
    ),
    "boolean": Task(
        choice.yes_no,
        checks(true_boolean),
        lambda a: boolean(a) is not None,
        "`yes`, `true`, `1` or `no`, `false`, `0`; `not true` is no; `yes or no` and `no idea` are neither",
        "the same, or true and false",
        ("yes_no", "judge", "binary_classification"),
    ),
    "numeric": Task(
        numeric.equal,
        checks(numeric.true_number),
        _is_number,
        NUMBERS,
        TRUE_NUMBER,
        ("numerical", "number", "count", "counting"),
        ("decimals",),
    ),
    "regression": Task(
        numeric.mean_relative_accuracy, checks(numeric.true_number), _is_number, NUMBERS, TRUE_NUMBER, ("mra",)
    ),
    "math": Task(
        expressions.mathematics,
        checks(expressions.true_expression),
        bool,
        "a tagged or boxed expression, by math-verify; words as words; `(1, 2)` keeps its order, "
        "`\\{1, 2\\}` and `1, 2` do "
        "not; `x = 5` is 5; towers such as `10^{10^{10}}` are not computed and are wrong",
        "LaTeX, a number or a text",
        ("mathematics",),
    ),
    "temporal": Task(
        temporal.when,
        checks(temporal.true_interval),
        lambda a: interval(a) is not None,
        "one interval in seconds: `2 to 8`, `01:10 - 01:20.5`, `2 to 3 minutes`, `1m30s until 2m`, `[2, 8]`, JSON with "
        "`time`, `start`/`end`, `start_time`/`end_time`, `timestamps`, `relevant_windows`; not "
        "frames, negative times, NaN",
        "the same, as text or JSON, start before end",
        ("temporal_grounding", "temporal_iou"),
    ),
    "box": Task(
        grounding.where,
        grounding.check_boxes,
        _is_boxes,
        BOXES + "; several for a single true one are wrong",
        TRUE_BOXES,
        ("spatial_grounding", "grounding", "bbox", "rec"),
        (*BOX_SETTINGS, "threshold"),
    ),
    "boxes": Task(
        lambda completion, solution, **settings: grounding.where(completion, solution, every=True, **settings),
        grounding.check_boxes,
        _is_boxes,
        BOXES + "; more than 8, and more than four for each true one, are a wall and wrong",
        TRUE_BOXES,
        ("detection", "multi_box"),
        BOX_SETTINGS,
    ),
}.items():
    add(_name, _task)
