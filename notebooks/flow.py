# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A flow generator learns to follow its caption
#
# A Stable Diffusion 3 pipeline of about a million parameters draws 24 x 24 pictures of coloured shapes. The reward
# reads the pixels: colour, shape, count and position. The optimizer is that of the other notebooks; its actions are
# denoising steps here.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import HTML, display

from mmrl import FlowPipeline
from mmrl.data.datasets import open_dataset
from mmrl.pipelines.charts import line_chart
from mmrl.pipelines.config import read_config
from mmrl.pipelines.looking import credit_html, gallery_html, read_rollouts

demo = read_config("demo", modality="flow")  # the shipped configuration: model, sampler, data, learning rate
RUNS = Path(mkdtemp())

# %% [markdown]
# ## Data
# Captions; your own rows are `{"prompt": "a red circle"}`, and whatever columns your reward reads.

# %%
train_data = open_dataset(demo.data.train, limit=1024)
held_out = open_dataset(demo.data.eval, limit=64)
shown = [held_out[i] for i in range(6)]
pipe = FlowPipeline.from_pretrained(**demo.policy)
before = [images[0] for images in pipe.generate(shown)]
display(HTML(gallery_html([([image], p.text) for p, image in zip(shown, before, strict=True)])))

# %% [markdown]
# ## One group, and where its credit goes
# Each picture starts from its own noise and takes noisy steps; every step is an action with a log-probability. Bars
# above the line are made likelier, bars below less likely. The learning rate is 0, so that nothing is learned yet.

# %%
sizes = {"prompts_per_step": 8, "group_size": 8, "micro_batch_size": 64}
still = {**sizes, "steps": 1, "learning_rate": 0, "save_rollouts": 16}
pipe.train(train_data, demo.rewards, recipe=demo.recipe, run_dir=RUNS / "look", training=still)
rows = read_rollouts(RUNS / "look", step=1)
display(HTML(credit_html(rows, groups=2)))

# %% [markdown]
# ## Train

# %%
rewards = []
settings = {**sizes, "steps": 50, "learning_rate": demo.training.learning_rate, "schedule": "linear"}
result = pipe.train(
    train_data, demo.rewards, recipe=demo.recipe, eval_dataset=held_out, run_dir=RUNS / "train",
    training=settings, report=lambda step, metrics: rewards.append((step, metrics["reward/mean"])),
)  # fmt: skip
display(HTML(f'<div style="max-width:420px">{line_chart({"reward": rewards})}</div>'))

# %% [markdown]
# ## Before and after, on captions never trained on

# %%
print(f"held-out reward {result.before['reward']:.2f} -> {result.after['reward']:.2f}")
after = [images[0] for images in pipe.generate(shown)]
pairs = zip(shown, before, after, strict=True)
display(HTML(gallery_html([([b, a], f"{p.text}\nbefore, after") for p, b, a in pairs])))

# %% [markdown]
# ## A real model
# ```python
# pipe = FlowPipeline.from_pretrained("stabilityai/stable-diffusion-3.5-medium", dtype="bfloat16")
# clip = {"name": "clip_score", "options": {"model": "ViT-L-14", "pretrained": "openai"}}
# pipe.train("prompts.jsonl", rewards=[clip], recipe="flow_grpo_fast", training={"steps": 200})
# ```
