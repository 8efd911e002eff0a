# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A video LLM learns to watch
#
# The same kind of tiny model on short clips: real mp4 files, decoded once and kept in a cache of frames. We look at
# one group, see which tokens get the credit, train, and compare.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import HTML, display

from mmrl import VideoPipeline
from mmrl.data.datasets import open_dataset
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.config import read_config
from mmrl.pipelines.looking import clip_frames, credit_html, gallery_html, read_rollouts

demo = read_config("demo", modality="video")  # the shipped configuration: model, frames, data, learning rate
RUNS = Path(mkdtemp())

# %% [markdown]
# ## Data
# Your own rows: `{"prompt": "<video>What happens first?", "video": "clip.mp4", "solution": "B", "task": "choice"}`.

# %%
train_data = open_dataset(demo.data.train, limit=1024)
held_out = open_dataset(demo.data.eval, limit=96)
shown = [held_out[i] for i in range(3)]
display(HTML(gallery_html([(clip_frames(p.videos[0]), f"{p.text}\n→ {p.columns['solution']}") for p in shown])))

# %% [markdown]
# ## One group, and where its credit goes
# The recipe is `tor`: uncertain tokens and tokens that depend on the frames are taught, each set with its own weight.
# Blue is made likelier, red less likely. The learning rate is 0, so that nothing is learned yet.

# %%
pipe = VideoPipeline.from_pretrained(**demo.policy)
sizes = {"prompts_per_step": 24, "group_size": 8, "micro_batch_size": 64}
still = {**sizes, "steps": 1, "learning_rate": 0, "save_rollouts": 32}
pipe.train(train_data, ["accuracy"], recipe="tor", run_dir=RUNS / "look", training=still)
rows = read_rollouts(RUNS / "look", step=1)
display(HTML(credit_html(rows, groups=2)))

# %% [markdown]
# ## Train

# %%
rewards = []
settings = {**sizes, "steps": 100, "learning_rate": demo.training.learning_rate, "betas": [0.9, 0.99]}
before = [answers[0] for answers in pipe.generate(shown)]
result = pipe.train(
    train_data, ["accuracy"], recipe="tor", eval_dataset=held_out, run_dir=RUNS / "train", training=settings,
    report=lambda step, metrics: rewards.append((step, metrics["reward/mean"])),
)  # fmt: skip
display(HTML(f'<div style="max-width:420px">{line_chart({"reward": rewards})}</div>'))

# %% [markdown]
# ## Before and after, on clips never trained on

# %%
print(f"held-out accuracy {result.before['success']:.2f} -> {result.after['success']:.2f}")
after = [answers[0] for answers in pipe.generate(shown)]
notes = [f"{p.columns['solution']}\nbefore {b}\nafter {a}" for p, b, a in zip(shown, before, after, strict=True)]
display(HTML(gallery_html([(clip_frames(p.videos[0]), note) for p, note in zip(shown, notes, strict=True)])))

# %% [markdown]
# ## A real model
# ```python
# pipe = VideoPipeline.from_pretrained(
#     "Qwen/Qwen3-VL-4B-Instruct", lora={"rank": 32}, dtype="bfloat16", sampling={"fps": 2, "max_frames": 64}
# )
# pipe.train("clips.jsonl", rewards=["accuracy"], recipe="tor", training={"steps": 200, "learning_rate": 1e-5})
# ```
