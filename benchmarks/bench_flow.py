"""An iteration of a flow-matching generator: rollout and update, beside a plain loop (`benchmarks.plain_flow`).

    exact   the same method, recipe flow_grpo, through our policy and trainer: texts encoded once, the reference is
            the adapters switched off, the unconditional branch without gradient, and in the update what the rollout
            found there
    asked   as exact, but that the update asks for the unconditional branch again (policy.reuse_unconditional=false)
    fast    recipe flow_grpo_fast: 3 of 10 steps trained, no guidance, no KL, the ODE prefix shared by a group

Tiny Stable Diffusion 3 pipeline, 2 prompts x 8 images, one optimizer step an iteration. The reward is how much redder
than blue the picture is. Reward is then given against seconds, for all of them from the same weights. The same of
clips, by Wan 2.1 in small (`benchmarks.small_wan`): 2 prompts x 2 clips in 20 steps.

Then rollouts in the shapes of FLUX.1 and Wan 2.1, through their families and by a plain loop over the transformer
(`benchmarks.flow_families`), with the conditions given and with prompts that are new. `--only` one of the parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from statistics import median
from typing import Any

from benchmarks import flow_families, measuring
from benchmarks.flops import counted
from benchmarks.measuring import Channel, Report, alternate, ratio, summary, target, workers

MODULE = "benchmarks.bench_flow"
CAPTIONS = ("a red circle", "two blue squares on the left")
DIFFERENCES = ("log_probs", "gradient", "gradient, both branches")
PUBLISHED = {"text": 4.84 / 11.5, "decode": 28.1 / 11.5}
"""Of Wan 2.1 (1.3B) at 33 frames of 416 x 240, in calls of the transformer (`benchmarks.flow_counts`)."""
WAN_STEPS = 20
SAVED = 1.3
"""How many times faster a rollout should be whose text is encoded once, where by count text weighs enough for it."""
LEARNING_RATE, LORA = 3e-4, {"rank": 32, "alpha": 64}
LOOPS = ("plain", "exact", "asked", "fast")


def redness(images: list[Any]) -> list[float]:
    """Mean of red minus mean of blue, from -1 to 1, of pictures or of clips, which are lists of them."""
    import numpy as np

    clips = [image if isinstance(image, list) else [image] for image in images]
    pixels = [np.stack([np.asarray(frame, dtype=np.float32) for frame in clip]) / 255 for clip in clips]
    return [float(p[..., 0].mean() - p[..., 2].mean()) for p in pixels]


# -- workers ----------------------------------------------------------------------------------------------------


def pipeline(spec: dict[str, Any]) -> Any:
    """`--model`, or the tiny pipeline with fan-in weights."""
    import torch

    import mmrl  # noqa: F401  (before diffusers)

    torch.manual_seed(0)
    if spec["wan"]:
        from benchmarks import small_wan

        return small_wan.pipeline()
    if spec["model"] is None:
        from mmrl.pipelines.bases.models import tiny_flow

        return tiny_flow(0)
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(spec["model"], dtype=torch.float32)


def make_plain(spec: dict[str, Any]) -> Any:
    from benchmarks import small_wan
    from benchmarks.plain_flow import PlainLoop
    from mmrl.pipelines.bases.models import CAPTION_LENGTH
    from mmrl.policies.adapters import attach_lora
    from mmrl.policies.generation.config import FlowLoraConfig
    from mmrl.policies.generation.families.base import ATTENTION_LAYERS

    parts = pipeline(spec)
    lora = FlowLoraConfig(**LORA, targets=ATTENTION_LAYERS)
    parts.transformer = attach_lora(parts.transformer, lora, seed=0)
    if spec["wan"]:
        return small_wan.PlainWan(parts, LEARNING_RATE, small_wan.TEXT, spec["steps"])
    return PlainLoop(parts, LEARNING_RATE, CAPTION_LENGTH)


def make_trainer(spec: dict[str, Any]) -> Any:
    import torch

    from benchmarks import small_wan
    from mmrl.objective import Objective
    from mmrl.pipelines.bases.models import CAPTION_LENGTH
    from mmrl.policies.generation.config import FlowPolicyConfig
    from mmrl.policies.generation.policy import FlowPolicy
    from mmrl.recipes import load_recipe
    from mmrl.record import Prompt, Scores
    from mmrl.training.config import TrainingConfig
    from mmrl.training.trainer import Trainer

    recipe = load_recipe("flow_grpo_fast" if spec["kind"] == "fast" else "flow_grpo")
    settings = recipe.policy | {
        "model": "tiny",
        "max_sequence_length": CAPTION_LENGTH,
        "ema": None,
        "lora": LORA,
        "schedule": "linear",
        "reuse_unconditional": spec["kind"] != "asked",
    }
    if spec["wan"]:
        size = {"height": small_wan.HEIGHT, "width": small_wan.WIDTH, "frames": small_wan.FRAMES}
        settings |= {**size, "steps": spec["steps"], "max_sequence_length": small_wan.TEXT, "decode_tiles": False}
    rows = len(CAPTIONS) * spec["members"]
    policy = FlowPolicy(pipeline(spec), FlowPolicyConfig(**settings, transformer_batch=rows))
    sizes = {"steps": 100_000, "prompts_per_step": len(CAPTIONS), "group_size": spec["members"]}
    training = TrainingConfig(
        **sizes, micro_batch_size=rows, learning_rate=LEARNING_RATE, weight_decay=1e-4, save_rollouts=0, self_check=1e-4
    )
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(CAPTIONS)]

    def score(outputs: list[Any], _: Any) -> Scores:
        reward = torch.tensor(redness(outputs))
        return Scores({"redness": reward}, reward, (reward > 0).float())

    return Trainer(policy, Objective.of(recipe.objective), prompts, score, training, spec["folder"])


def run(spec: dict[str, Any], channel: Channel) -> None:
    if "shape" in spec:
        channel.serve(flow_families.answers(spec))
        return
    shares: dict[str, Any] = {}
    if spec["kind"] == "plain":
        import torch

        loop = make_plain(spec)
        if spec["wan"]:
            from benchmarks import small_wan

            shares = small_wan.proportions(loop)

        def step() -> dict[str, Any]:
            return {"reward": loop.iterate(CAPTIONS, spec["members"], lambda images: torch.tensor(redness(images)))}

    else:
        trainer = make_trainer(spec)

        def step() -> dict[str, Any]:
            metrics = trainer.train_step()
            trainer.step += 1
            return {"reward": metrics["reward/mean"], **{k: v for k, v in metrics.items() if k.startswith("seconds/")}}

    answers = {"step": step, "counted": lambda: {"flop": counted(step)}, "equal": lambda: equality(spec)}
    channel.serve(answers | {"shares": lambda: shares})


def equality(spec: dict[str, Any]) -> dict[str, Any]:
    """Our rollout scored by the plain loop: log-probs, and the gradient of their weighted sum, the unconditional
    branch with gradient as in the plain loop, and without as in ours."""
    import torch

    from mmrl.randomness import Key
    from mmrl.record import Request

    loop, trainer = make_plain(spec), make_trainer({**spec, "kind": "exact"})
    prompts = trainer.collector.prompts
    rollouts = trainer.policy.rollout([Request(p, spec["members"], group=g) for g, p in enumerate(prompts)], Key(0))
    ours = trainer.policy.evaluate(rollouts).log_probs
    weight = torch.sin(torch.arange(ours.numel()).view(ours.shape).float()) * rollouts.mask
    (weight * ours).sum().backward()
    conditions = loop.encode([caption for caption in CAPTIONS for _ in range(spec["members"])])
    found = {"log_probs": float((_plain_log_probs(loop, rollouts, conditions) - ours).abs().max())}
    for name, stopped in (("gradient", True), ("gradient, both branches", False)):
        plain = _plain_log_probs(loop, rollouts, conditions, stopped)
        grads = torch.autograd.grad((weight * plain).sum(), loop.trained)
        wanted = torch.cat([g.flatten() for g in grads])
        got = torch.cat([p.grad.flatten() for p in trainer.policy.module.parameters() if p.requires_grad])
        found[name] = float((got - wanted).norm() / wanted.norm())
    return found


def _plain_log_probs(loop: Any, rollouts: Any, conditions: Any, stopped: bool = False) -> Any:
    """(B, S) by the plain loop; `stopped`: no gradient through the unconditional branch."""
    import torch

    from benchmarks.plain_flow import GUIDANCE, log_prob

    columns = torch.zeros(rollouts.mask.shape)
    latents = rollouts.replay["latents"]
    for i in rollouts.mask[0].nonzero().squeeze(1).tolist():
        x = latents[:, i]
        if stopped:
            negative, given = zip(*(c.chunk(2) for c in conditions), strict=True)
            with torch.no_grad():
                without = loop.call(loop.model, x, loop.times[i], negative)
            v = without + GUIDANCE * (loop.call(loop.model, x, loop.times[i], given) - without)
        else:
            v = loop.velocity(loop.model, x, loop.times[i], conditions)
        mean, std = loop.transition(i, x, v)
        columns = columns.index_put((torch.arange(len(x)), torch.tensor(i)), log_prob(latents[:, i + 1], mean, std))
    return columns


# -- what is compared -------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    if options.only in (None, "iteration"):
        measure_iteration(options, Report("bench_flow", options))
    if options.only in (None, "iteration_wan"):
        measure_iteration(options, Report("bench_flow", options, "bench_flow_wan"), wan=True)
    if options.only in (None, "families"):
        measure_families(options, Report("bench_flow", options, "bench_flow_families"))


def measure_iteration(options: argparse.Namespace, report: Report, *, wan: bool = False) -> None:
    small = options.quick or options.tiny
    steps = options.steps or (2 if small else 3 if wan else 7)
    budget = options.seconds if options.seconds is not None else (1.0 if options.tiny else 5.0 if small else 40.0)
    with tempfile.TemporaryDirectory() as folder:
        members = 2 if options.tiny or wan else 8
        base = {"folder": folder, "model": options.model, "members": members, "wan": wan}
        base |= {"steps": 4 if options.tiny else WAN_STEPS}
        specs = {kind: base | {"kind": kind} for kind in LOOPS if kind != "asked" or not options.tiny}
        with workers(MODULE, specs, options.threads) as running:
            rewards = curves(running, budget)  # first: all three still have the weights they began with
            replies = alternate(running, steps)
            ready = {kind: worker.ready for kind, worker in running.items()}
            operations = {kind: worker.ask("counted")["flop"] for kind, worker in running.items()}
            equal, shares = running["exact"].ask("equal"), running["plain"].ask("shares")
    rows = [{"loop": kind, **summary(taken, ready[kind])} for kind, taken in replies.items()]
    for row in rows:
        row["faster than plain"] = ratio(replies["plain"], replies[row["loop"]])["median"]
        row["of processor time"] = ratio(replies["plain"], replies[row["loop"]], "cpu_seconds")["median"]
        row["range"] = ratio(replies["plain"], replies[row["loop"]])["range"]
        row["fewer operations"] = round(operations["plain"] / operations[row["loop"]], 3)
    report.table("an iteration", rows)
    if wan:
        parts = {"here": shares, "Wan 2.1, 1.3B": PUBLISHED}
        rows_of = [{"of": who, **{n: round(each[n], 3) for n in PUBLISHED}} for who, each in parts.items()]
        report.table("operations of an output, in calls of the transformer", rows_of)
    report.table("exact beside plain: differences", [{k: equal[k] for k in DIFFERENCES}])
    report.table("reward after seconds of processor time", rewards)
    report.write()


def measure_families(options: argparse.Namespace, report: Report) -> None:
    """Processor time of plain loop and family, by turns."""
    steps = options.steps or (1 if options.tiny else 2 if options.quick else 7)
    rows, wanted = [], []
    for name, shape in (flow_families.TINY if options.tiny else flow_families.SHAPES).items():
        specs = {kind: {"kind": kind, "shape": name} for kind in ("plain", "family")}
        with workers(MODULE, specs, options.threads) as running:
            loop, text = (alternate(running, steps, request) for request in ("loop", "text"))
            equal = running["family"].ask("equal")["log-probs differ by"]
        cost = ratio(loop["family"], loop["plain"], "cpu_seconds")
        gain = ratio(text["plain"], text["family"], "cpu_seconds")
        rows.append({
            "shape": f"{name}: {shape.about}", "outputs": shape.members, "steps": shape.steps,
            "log-probs differ by": equal,
            "plain, seconds": round(median(r["cpu_seconds"] for r in loop["plain"]), 3),
            "family / plain": cost["median"], "its range": cost["range"],
            "text once, times faster": gain["median"], "range": gain["range"],
            "counted at full size": round(shape.bound, 2),
        })  # fmt: skip
        wanted.append(target(f"{name}: family / plain loop", 1.05, cost["median"], at_most=True))
        if shape.bound >= SAVED:
            wanted.append(target(f"{name}: text captured once, times faster", SAVED, gain["median"]))
        report.table("a rollout through a family", rows)
    report.targets(wanted)
    report.write()


def curves(running: dict[str, Any], budget: float, points: int = 8) -> list[dict[str, Any]]:
    """Mean reward of the iterations up to each point in time, since the point before."""
    rows: list[dict[str, Any]] = [{"seconds": round(budget * (n + 1) / points, 2)} for n in range(points)]
    for kind, worker in running.items():
        spent, history = 0.0, []
        while spent < budget:
            reply = worker.ask("step")
            spent += reply["cpu_seconds"]
            history.append((spent, reply["reward"]))
        for n, row in enumerate(rows):
            start = 0.0 if not n else rows[n - 1]["seconds"]
            inside = [r for at, r in history if start < at <= row["seconds"]]
            row[kind] = round(sum(inside) / len(inside), 4) if inside else None
            row[f"{kind}, iterations"] = sum(at <= row["seconds"] for at, _ in history)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_flow", __doc__)
    parser.add_argument("--model", help="folder of a StableDiffusion3Pipeline; default: a tiny one, made here")
    parser.add_argument("--seconds", type=float, help="processor seconds of each reward curve; default 40")
    parser.add_argument("--only", choices=("iteration", "iteration_wan", "families"), help="one of the parts")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    options = parser.parse_args(arguments)
    if options.worker:
        run(json.loads(options.worker), Channel())
    else:
        measure(options)


if __name__ == "__main__":
    main()
