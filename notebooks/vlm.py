# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A vision-language model learns to look
#
# A Qwen3-VL model of about a million parameters answers questions about shapes and handwritten digits. We look at one
# group of its answers, see which tokens get the credit, train for a minute on one CPU core, and compare.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import HTML, display

from mmrl import VLMPipeline
from mmrl.data.datasets import open_dataset
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.looking import credit_html, gallery_html, read_rollouts
from mmrl.rewards.panel import RewardPanel

BASE = "asset:tiny_vlm"  # a real one: "Qwen/Qwen2.5-VL-3B-Instruct", with dtype="bfloat16"
RUNS = Path(mkdtemp())

# %% [markdown]
# ## Data
# A world draws as many pictures as we like and knows every answer. Your own rows look the same:
# `{"prompt": "<image>How many cats?", "image": "cats.png", "solution": "2", "task": "number"}`.

# %%
questions = "difficulty=1&skills=count,color,largest"
train_data = f"world:stills?size=4096&{questions}"
held_out = open_dataset(f"world:stills?split=test&size=128&{questions}")
shown = [held_out[i] for i in range(8)]
display(HTML(gallery_html([(p.images, f"{p.text}\n→ {p.columns['solution']}") for p in shown])))

# %% [markdown]
# ## One group, and where its credit goes
# Eight answers to each question, scored, compared within their group. The recipe is `vppo`: only tokens whose
# probability changes when the picture is blanked are taught. Blue is made likelier, red less likely. The learning
# rate is 0, so that nothing is learned yet.

# %%
pipe = VLMPipeline.from_pretrained(BASE, max_new_tokens=5)
sizes = {"prompts_per_step": 16, "group_size": 8, "micro_batch_size": 64}
still = {**sizes, "steps": 1, "learning_rate": 0, "save_rollouts": 32}
pipe.train(train_data, ["accuracy"], recipe="vppo", run_dir=RUNS / "look", training=still)
rows = read_rollouts(RUNS / "look", step=1)
display(HTML(credit_html(rows, groups=2)))

# %% [markdown]
# ## Train

# %%
before = [answers[0] for answers in pipe.generate(list(held_out))]
rewards = []
settings = {**sizes, "steps": 60, "learning_rate": 3e-4, "warmup_steps": 3, "schedule": "linear"}
result = pipe.train(
    train_data, ["accuracy"], recipe="vppo", eval_dataset=held_out, run_dir=RUNS / "train", training=settings,
    report=lambda step, metrics: rewards.append((step, metrics["reward/mean"])),
)  # fmt: skip
display(HTML(f'<div style="max-width:420px">{line_chart({"reward": rewards})}</div>'))

# %% [markdown]
# ## Before and after, on pictures never trained on

# %%
print(f"held-out accuracy {result.before['success']:.2f} -> {result.after['success']:.2f}")
after = [answers[0] for answers in pipe.generate(list(held_out))]
with RewardPanel([{"name": "accuracy"}]) as panel:
    was, now = (panel.score(answers, list(held_out)).success.tolist() for answers in (before, after))
gained, lost = ([i for i in range(len(now)) if now[i] - was[i] == change] for change in (1, -1))
print(f"of {len(held_out)}, {len(gained)} became right and {len(lost)} wrong; some of these, in this proportion:")
some = round(8 * len(gained) / max(len(gained) + len(lost), 1))
turned = [*gained[:some], *lost[: 8 - some]]
notes = [(held_out[i], f"→ {held_out[i].columns['solution']}\n{before[i]}, then {after[i]}") for i in turned]
display(HTML(gallery_html([(p.images, note) for p, note in notes])))

# %% [markdown]
# ## A real model
# ```python
# pipe = VLMPipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct", lora={"rank": 32}, dtype="bfloat16")
# pipe.train("train.jsonl", rewards=["accuracy"], recipe="vppo", training={"steps": 200, "learning_rate": 1e-5})
# pipe.save_pretrained("my-adapter")
# ```
