"""Rewards as users write them, good and bad; each row's behaviour is its column `how`."""

import os
import subprocess
import sys
import time

from mmrl.rewards.registry import reward


def behave(prompts, completions, how, **columns):
    values = []
    for completion, what in zip(completions, how, strict=True):
        if what == "raise":
            raise ValueError(f"cannot judge {completion}")
        if what == "hang":
            time.sleep(600)
        if what == "exit":
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), 9)
        if what == "sys.exit":
            sys.exit(2)
        if what == "print":
            print('{"body": "not an answer"}')
        strange = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "0.5", "list": [1.0]}
        values.append(strange.get(what, 1.0))
    return values


def too_few(completions, **columns):
    return [1.0] * (len(completions) - 1)


def not_a_list(completions, **columns):
    return 1.0


def with_child(completions, how, pid_file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(pid_file[0], "w") as file:
        file.write(str(child.pid))
    if "hang" in how:
        time.sleep(600)
    return [1.0] * len(completions)


def length(completions):
    return [float(len(text)) for text in completions]


def numpy_values(completions):
    import numpy

    return numpy.arange(len(completions), dtype=numpy.float32)


def several(completions):
    return [{"accuracy": float(text == "right"), "format": 1.0} for text in completions]


def overall(completions):
    return [{"overall": 0.5, "accuracy": 1.0, "format": 0.0} for _ in completions]


def of_the_prompt(prompts, completions, bonus=None, *, scale=1.0):
    extra = bonus or [0.0] * len(prompts)
    return [scale * len(str(prompt)) + each for prompt, each in zip(prompts, extra, strict=True)]


def sometimes(completions, task):
    return [1.0 if each == "mine" else None for each in task]


def process(completions):
    return [float(os.getpid())] * len(completions)


def torch_loaded(completions):
    return [float("torch" in sys.modules)] * len(completions)


def chat(prompts, completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def verl_score(data_source, solution_str, ground_truth, extra_info=None, *, bonus=0.0):
    right = solution_str == ground_truth and data_source == "toy" and extra_info["split"] == "train"
    return {"score": float(right) + bonus, "seen": len(solution_str)}


def easyr1_score(reward_inputs, format_weight=0.1):
    scores = []
    for row in reward_inputs:
        accuracy = float(row["response"] == row["ground_truth"])
        scores.append({"overall": (1 - format_weight) * accuracy, "accuracy": accuracy, "format": 0.0})
    return scores


def easyr1_length(reward_inputs):
    return [{"overall": float(row["response_length"])} for row in reward_inputs]


@reward("declared_by_user", success=True, isolated=False)
def declared(completions):
    return [float(os.getpid())] * len(completions)


def shared_letters(prompts, references, candidates):
    """Stands for a reward model that compares with a reference."""
    return [len(set(c) & set(r)) for c, r in zip(candidates, references, strict=True)]


def drawn(texts):
    """Pictures of tables: black where a cell of a letter has text, its place and shade those of the letter."""
    from PIL import Image

    from mmrl.rewards.tables import table

    made = []
    for text in texts:
        image = Image.new("L", (64, 32), 255)
        if "\\x" in text:  # an unknown command: it does not compile
            made.append(None)
            continue
        for y, row in enumerate(table(text).children):
            for x, cell in enumerate(row.children):
                for letter in cell.text:
                    image.paste(0, (32 * x + ord(letter) % 24, 16 * y, 32 * x + ord(letter) % 24 + 8, 16 * y + 12))
        made.append(image)
    return made


def interpreter(completions):
    """The length of a text, and whether the trainer's packages are in sight."""
    import importlib.util
    import sys

    return [{"score": float(len(c)), "torch": float(importlib.util.find_spec("torch") is not None),
             "own": float("venv_of_rewards" in sys.executable)} for c in completions]  # fmt: skip


def redness(completions):
    """The red of the first pixel, of a picture or of a clip's first frame."""
    first = [c[0] if isinstance(c, list) else c for c in completions]
    return [float(c.convert("RGB").getpixel((0, 0))[0]) if hasattr(c, "convert") else 0.0 for c in first]
