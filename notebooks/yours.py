# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own data, your own reward, LoRA, stop and resume, the report
#
# What a real project does, on the tiny model that ships: pictures and a JSONL file in a folder, a reward that is a
# function, adapters instead of all weights, a run that is stopped half way and goes on, and what to look at after.

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import HTML, display

from mmrl import VLMPipeline
from mmrl.data.datasets import open_dataset
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.looking import credit_html, read_rollouts
from mmrl.pipelines.report import write_report
from mmrl.training.tracking import read_metrics

HERE = Path(mkdtemp())

# %% [markdown]
# ## Your own data
# One JSON object a line, pictures as paths beside it. Here they are drawn; yours are there already. `mmrl check
# train.jsonl` reads every row, and so does a run before it loads a model.


# %%
def write(name, count):
    """Pictures and rows of a world, as files of one's own."""
    world = open_dataset(f"world:stills?split={name}&size={count}&difficulty=1&skills=count,color,largest")
    with open(HERE / f"{name}.jsonl", "w") as file:
        for i, prompt in enumerate(world):
            prompt.images[0].save(HERE / f"{name}-{i}.png")
            question = prompt.text.replace("<image>", "")
            truth = {key: prompt.columns[key] for key in ("solution", "task")}
            row = {"prompt": f"<image>{question}", "image": f"{name}-{i}.png", **truth}
            file.write(json.dumps(row) + "\n")


write("train", 1024)
write("test", 128)
print((HERE / "train.jsonl").read_text().splitlines()[0])

# %% [markdown]
# ## Your own reward
# From lists to a list, as in TRL; columns of the row arrive by name, and `None` means "cannot say". It is called on all
# answers of a step at once.


# %%
def brief(completions, *, limit=2):
    """1 for an answer of at most `limit` words."""
    return [float(len(text.split()) <= limit) for text in completions]


print(brief(["three", "there are three of them"]))

# %% [markdown]
# ## LoRA, and a run that is stopped
# Adapters of rank 16 on every linear layer. After 20 steps the run ends; `resume` goes on from its last checkpoint,
# exactly as if it had never stopped, with 45 steps as the new end.

# %%
settings = {"prompts_per_step": 16, "group_size": 8, "micro_batch_size": 64, "learning_rate": 2e-3, "save_every": 20}
rewards = ["accuracy", brief]


def train(steps, resume=None):
    pipe = VLMPipeline.from_pretrained("asset:tiny_vlm", lora={"rank": 16, "alpha": 32}, max_new_tokens=5)
    result = pipe.train(
        HERE / "train.jsonl", rewards, eval_dataset=HERE / "test.jsonl", run_dir=HERE / "run", resume=resume,
        training={**settings, "steps": steps}, report=lambda step, metrics: None,
    )  # fmt: skip
    return pipe, result


_, first = train(20)
pipe, result = train(45, resume=HERE / "run")
print(f"stopped at step {first.steps}, went on from step {result.start} to {result.steps}")
print(f"held-out accuracy {result.before['success']:.2f} -> {result.after['success']:.2f}")

# %% [markdown]
# ## What happened
# `write_report` (`mmrl report RUN`) makes the page with every curve, every saved step and group; here are two numbers
# of it, and two groups with their credit. What is wrong with a run, it says itself, under `diagnosis`: here nothing.
# That every answer meets our reward from the first step on is no fault, and the curve shows it.

# %%
rows = read_metrics(HERE / "run" / "metrics.jsonl")
said = {name: text for row in rows for name, text in row.get("diagnosis", {}).items()}
print(write_report(HERE / "run").name, "is written;", said or "nothing was found wrong")
curves = {name: [(row["step"], row[f"reward/{name}/mean"]) for row in rows] for name in ("accuracy", "brief")}
display(HTML(f'<div style="max-width:420px">{line_chart(curves)}</div>'))
display(HTML(credit_html(read_rollouts(HERE / "run", step=1), groups=2)))

# %% [markdown]
# ## Take it along
# An adapter in PEFT's layout, which loads without mmrl; `merged=True` folds it into the weights.

# %%
pipe.save_pretrained(HERE / "adapter")
print(sorted(path.name for path in (HERE / "adapter").iterdir()))
