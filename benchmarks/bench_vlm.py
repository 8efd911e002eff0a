"""A training step of a vision-language model: TRL's GRPOTrainer beside ours, then each of our features on and off.

Same model (4 M parameters), same pictures, 2 prompts x 8 responses of 64 tokens, end tokens suppressed, one update
on the samples just drawn, no KL, the same learning rate. TRL keeps its defaults apart from that and float32;
gradient checkpointing, its default, is measured off and on, on both sides.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Channel, Report, alternate, ratio, summary, target, workers

MODULE = "benchmarks.bench_vlm"
PROMPTS, MEMBERS, NEW, LEARNING_RATE = 2, 8, 64, 1e-6
SIDES = {448: "256 image tokens", 896: "1,024 image tokens"}
WANTED = {
    (448, True): (4, 2 / 5),
    (896, True): (8, 1 / 4),
    (896, False): (10, None),
}
"""(side, vision trained): how much faster than TRL, and at most which share of its peak memory."""


# -- workers ----------------------------------------------------------------------------------------------------


def run_trl(spec: dict[str, Any], channel: Channel) -> None:
    """TRL's trainer, held at the beginning of each step until it is asked for."""
    import datasets
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks import models  # before trl: it declares what torchvision needs

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if channel.wait() is None:
                raise SystemExit
            self.timed = measuring.timer()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            channel.reply(**self.timed())

    model = AutoModelForImageTextToText.from_pretrained(spec["model"])
    if not spec["train_vision"]:
        model.model.visual.requires_grad_(False)
    rows = [{"prompt": [{"role": "user", "content": models.QUESTION}], "image": p} for p in spec["pictures"]]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    config = GRPOConfig(
        output_dir=spec["folder"], use_cpu=True, bf16=False, per_device_train_batch_size=PROMPTS * spec["members"],
        num_generations=spec["members"], gradient_accumulation_steps=1, max_completion_length=spec["new"],
        generation_kwargs={"min_new_tokens": spec["new"]}, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        beta=0.0, num_iterations=1, max_steps=1000, save_strategy="no", report_to="none", disable_tqdm=True,
        logging_strategy="no", gradient_checkpointing=spec["checkpointing"],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=lambda completions, **_: models.early_letters([c[0]["content"] for c in completions]),
        args=config, train_dataset=data, processing_class=AutoProcessor.from_pretrained(spec["model"]),
        callbacks=[Turns()],
    )  # fmt: skip
    channel.reply()
    trainer.train()


def make_trainer(spec: dict[str, Any]) -> Any:
    """Our trainer with TRL's objective. `spec`: model, folder, pictures, members, new, train_vision, checkpointing;
    where they differ from the default, prompts a step and options of the policy."""
    from benchmarks import models
    from mmrl.objective import Objective
    from mmrl.recipes import load_recipe
    from mmrl.training.config import TrainingConfig
    from mmrl.training.trainer import Trainer

    policy = models.vlm_policy(
        spec["model"], spec["new"], train_vision=spec["train_vision"], gradient_checkpointing=spec["checkpointing"],
        **spec.get("options", {}),
    )  # fmt: skip
    count = spec.get("prompts", PROMPTS)
    rows = count * spec["members"]
    config = TrainingConfig(
        steps=1000, prompts_per_step=count, group_size=spec["members"], micro_batch_size=rows,
        learning_rate=LEARNING_RATE, save_rollouts=0,
    )  # fmt: skip
    objective = Objective.of(load_recipe("trl").objective)
    return Trainer(policy, objective, models.prompts(spec["pictures"]), models.score, config, spec["folder"])


def one_step(trainer: Any) -> dict[str, Any]:
    metrics = trainer.train_step()
    trainer.step += 1
    return {k: v for k, v in metrics.items() if k.startswith("seconds/")}


def run_ours(spec: dict[str, Any], channel: Channel) -> None:
    trainer = make_trainer(spec)

    def floor() -> dict[str, Any]:
        from benchmarks.flops import Sizes, matmul_rate, step_floor

        policy, prompt = trainer.policy, trainer.policy.encode(trainer.collector.prompts[0])
        sizes = Sizes(PROMPTS, spec["members"], len(prompt), spec["new"], int(prompt.media["image_grid_thw"].prod()))
        floor = step_floor(policy.inner.core.config, sizes, spec["train_vision"])
        return {"floor": floor, "rate": matmul_rate(), "planned": planned(policy, sizes)}

    def flops() -> dict[str, Any]:
        from benchmarks.flops import counted

        return floor() | {"done": counted(lambda: one_step(trainer))}

    channel.serve({"step": lambda: one_step(trainer), "floor": floor, "flops": flops, "equal": lambda: equality(spec)})


def planned(policy: Any, sizes: Any) -> int:
    """The process's peak in bytes, as `mmrl plan` counts it for a step of these sizes in one micro-batch."""
    from mmrl.pipelines import language_plan
    from mmrl.policies.language.batching import most_tokens

    limit = most_tokens(policy.config.pass_tokens, policy.device)
    settings, weights = policy.config, sum(p.numel() for p in policy.module.parameters())
    trained = sum(p.numel() for p in policy.module.parameters() if p.requires_grad)
    batch = language_plan.Sizes(sizes.groups, sizes.prompt, sizes.patches, sizes.groups * sizes.members, sizes.new)
    return language_plan.peak(
        4 * weights + 12 * trained, policy.inner.core.config, batch, checkpointing=settings.gradient_checkpointing,
        train_vision=settings.train_vision, logit_rows=settings.logit_rows, pass_tokens=limit,
    )  # fmt: skip


def equality(spec: dict[str, Any]) -> dict[str, Any]:
    """Worst difference of log-probs, and relative difference of gradients, from a policy with the other options."""
    import torch

    from mmrl.randomness import Key
    from mmrl.record import Request

    trainers = [make_trainer({**spec, "options": options}) for options in (spec["options"], spec["other"])]
    trainers[0].policy.load_state_dict({"update_in_one_pass": True})
    requests = [Request(p, spec["members"], group=g) for g, p in enumerate(trainers[0].collector.prompts[:PROMPTS])]
    rollouts = trainers[0].policy.rollout(requests, Key(0))
    weight = torch.sin(torch.arange(rollouts.mask.numel()).view(rollouts.mask.shape).float()) * rollouts.mask
    results = []
    for trainer in trainers:
        log_probs = trainer.policy.evaluate(rollouts).log_probs
        (weight * log_probs).sum().backward()
        gradients = [p.grad.flatten() for p in trainer.policy.module.parameters() if p.grad is not None]
        results.append((log_probs.detach(), torch.cat(gradients)))
    (one, grad), (other, other_grad) = results
    return {
        "log_probs": float((one - other).abs().max()),
        "gradient": float((grad - other_grad).norm() / other_grad.norm()),
    }


# -- what is compared -------------------------------------------------------------------------------------------


CHECKPOINTING = ", gradient checkpointing"


def beside_trl(report: Report, setting: dict[str, Any], side: int, train_vision: bool, steps: int) -> None:
    ways = [""] if report.options.tiny else ["", CHECKPOINTING]
    specs = {
        f"{who}{with_or_without}": {"kind": who, "checkpointing": bool(with_or_without), "train_vision": train_vision}
        for with_or_without in ways
        for who in ("ours", "TRL")
    }
    with workers(MODULE, {name: setting | spec for name, spec in specs.items()}, report.options.threads) as running:
        replies = alternate(running, steps)
        flops = running["ours"].ask("flops")
        ready = {name: worker.ready for name, worker in running.items()}
    title = f"{SIDES.get(side, f'{side} pixels')}, vision {'trained' if train_vision else 'frozen'}"
    rows = {name: {"trainer": name, **summary(taken, ready[name])} for name, taken in replies.items()}
    for given in ways:
        ours, trl = rows[f"ours{given}"], rows[f"TRL{given}"]
        taken = [replies[f"{who}{given}"] for who in ("TRL", "ours")]
        ours["seconds of stages"] = {k: v for k, v in replies[f"ours{given}"][-1].items() if k.startswith("seconds/")}
        trl["times ours"], trl["of processor time"] = (ratio(*taken, of)["median"] for of in ("seconds", "cpu_seconds"))
        trl["times ours, range"] = ratio(*taken)["range"]
        ours["share of TRL's peak"] = round(ours["peak_mib"] / trl["peak_mib"], 3)
        faster, share = WANTED.get((side, train_vision), (None, None))
        if faster is not None:
            report.targets([target(f"{title}{given}: times faster than TRL", faster, trl["times ours"])])
        if share is not None:
            what = f"{title}{given}: share of TRL's peak memory"
            report.targets([target(what, share, ours["share of TRL's peak"], at_most=True)])
    report.table(title, list(rows.values()))
    floor_row(report, title, flops, rows["ours"])


def floor_row(report: Report, title: str, flops: dict[str, Any], ours: dict[str, Any]) -> None:
    floor, rate = flops["floor"], flops["rate"]
    row = {f"floor {part}, GFLOP": round(value / 1e9, 2) for part, value in floor.items()}
    row |= {"done, GFLOP": round(flops["done"] / 1e9, 2), "done / floor": round(flops["done"] / floor["total"], 3)}
    row |= {"matrix products, GFLOP/s": round(rate / 1e9, 1)}
    row |= {"seconds / seconds at the floor": round(ours["seconds"] / (floor["total"] / rate), 2)}
    row |= {"of processor time": round(ours["cpu_seconds"] / (floor["total"] / rate), 2)}
    report.table(f"{title}: distance from the floor", [row])


FEATURES = {
    "shared prompt": ({}, {"shared_prompt": "off"}, True),
    "prefill serves the update": ({}, {"reuse_prefill": "off"}, True),
    "vision once (frozen tower)": ({}, {"reuse_vision": False}, False),
}


def features(report: Report, setting: dict[str, Any], steps: int) -> None:
    rows = []
    tiny = report.options.tiny  # one feature of each kind
    for name, (on, off, train_vision) in list(FEATURES.items())[: 1 if tiny else None]:
        base = setting | {"kind": "ours", "checkpointing": False, "train_vision": train_vision}
        specs = {"on": base | {"options": on, "other": off}, "off": base | {"options": off, "other": on}}
        with workers(MODULE, specs, report.options.threads) as running:
            replies = alternate(running, steps)
            ready = {key: worker.ready for key, worker in running.items()}
            equal = running["on"].ask("equal")
        rows.append(feature_row(name, replies, ready, equal, "a step"))
    for name, kind in list({"chunked log-softmax": "rows", "prefill once": "prefill"}.items())[: 1 if tiny else None]:
        specs = {key: setting | {"kind": kind, "on": key == "on"} for key in ("on", "off")}
        with workers(MODULE, specs, report.options.threads) as running:
            replies = alternate(running, steps)
            ready = {key: worker.ready for key, worker in running.items()}
            equal = running["on"].ask("equal")
        rows.append(feature_row(name, replies, ready, equal, {"rows": "152k words", "prefill": "a rollout"}[kind]))
    report.table("features on and off", rows)


def feature_row(name: str, replies: dict, ready: dict, equal: dict[str, Any], of: str) -> dict[str, Any]:
    on, off = (summary(replies[key], ready[key]) for key in ("on", "off"))
    compared = ratio(replies["off"], replies["on"])
    row = {"feature": name, "of": of, "on, s": on["seconds"], "off, s": off["seconds"]}
    row |= {"faster": compared["median"], "range": compared["range"]}
    row["of processor time"] = ratio(replies["off"], replies["on"], "cpu_seconds")["median"]
    row |= {f"{key}, MiB": of_key["peak_mib_after_loading"] for key, of_key in (("on", on), ("off", off))}
    return row | {"log-probs differ by": equal["log_probs"], "gradients by": equal.get("gradient", 0.0)}


def run_rows(spec: dict[str, Any], channel: Channel) -> None:
    """The output head over a vocabulary of real size: 128 rows of logits at a time, or all of them."""
    import torch

    from mmrl.policies.language.log_probs import Distribution, score_rows, score_rows_at_once
    from mmrl.stages import Need

    torch.manual_seed(0)
    count = PROMPTS * spec["members"] * spec["new"]
    head = torch.nn.Linear(256, spec["words"], bias=False)
    hidden, actions = torch.randn(count, 256, requires_grad=True), torch.randint(0, spec["words"], (count,))
    entropy = Need("entropy")

    def once(chunked: bool) -> tuple[Any, Any]:
        head.weight.grad = hidden.grad = None
        if chunked:
            numbers = score_rows(hidden, actions, head, Distribution(), [entropy], rows=128)
        else:
            numbers = score_rows_at_once(hidden, actions, head, Distribution(), [entropy])
        (numbers["log_probs"].sum() + 0.1 * numbers[entropy.key].sum()).backward()
        return numbers["log_probs"].detach(), hidden.grad.clone()

    def step() -> dict[str, Any]:
        once(spec["on"])
        return {}

    def equal() -> dict[str, Any]:
        (one, grad), (other, other_grad) = once(True), once(False)
        relative = (grad - other_grad).norm() / other_grad.norm()
        return {"log_probs": float((one - other).abs().max()), "gradient": float(relative)}

    channel.serve({"step": step, "equal": equal})


def run_prefill(spec: dict[str, Any], channel: Channel) -> None:
    """A rollout with one prefill a prompt and one cache a group, or with both repeated for every response."""
    import torch

    from benchmarks import models
    from mmrl.policies.language.sampling import decode
    from mmrl.randomness import Key

    policy = models.vlm_policy(spec["model"], spec["new"])
    encoded = [policy.encode(p) for p in models.prompts(spec["pictures"])[:PROMPTS]]
    rows = PROMPTS * spec["members"]
    uniforms = Key(0).uniform(rows, spec["new"]).double()
    budget = torch.full((rows,), spec["new"])

    def once(shared: bool) -> Any:
        contexts = encoded if shared else [e for e in encoded for _ in range(spec["members"])]
        context = torch.arange(PROMPTS).repeat_interleave(spec["members"]) if shared else torch.arange(rows)
        with policy.acting():
            return decode(policy.inner, contexts, context, uniforms, budget, policy.stopping)

    def step() -> dict[str, Any]:
        once(spec["on"])
        return {}

    def equal() -> dict[str, Any]:
        one, other = once(True), once(False)
        same = bool((one.tokens == other.tokens).all())
        return {"log_probs": float((one.log_probs - other.log_probs).abs().max()) if same else float("inf")}

    channel.serve({"step": step, "equal": equal})


# -- the command ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_vlm", __doc__)
    parser.add_argument("--only", choices=["trl", "features"], help="one half: each writes a result of its own")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that run at all: for the tests")
    options = parser.parse_args(arguments)
    if options.worker:
        spec = json.loads(options.worker)
        kinds = {"ours": run_ours, "TRL": run_trl, "rows": run_rows, "prefill": run_prefill}
        kinds[spec["kind"]](spec, Channel())
        return
    measure(options)


def measure(options: argparse.Namespace) -> None:
    small = options.quick or options.tiny
    steps = options.steps or (1 if small else 3)
    members, new, words = (2, 4, 997) if options.tiny else (MEMBERS, NEW, 151_936)
    settings = [(56, True)] if options.tiny else [(448, True)] if options.quick else list(WANTED)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(Path(folder), sorted({side for side, _ in settings}))
        base = {"folder": folder, "model": f"{folder}/model", "members": members, "new": new, "words": words}
        if options.only != "features":
            report = Report("bench_vlm", options)
            for side, train_vision in settings:
                beside_trl(report, base | {"pictures": prepared[side]}, side, train_vision, steps)
            report.write()
        if options.only != "trl":
            report = Report("bench_vlm", options, "bench_vlm_features")
            features(report, base | {"pictures": prepared[settings[-1][0]]}, steps)
            report.write()


def prepare(folder: Path, sides: list[int]) -> dict[int, list[str]]:
    """Write model and pictures in a process of its own, so that this one stays small."""
    import subprocess
    import sys

    code = (
        "import sys, json; from pathlib import Path; from benchmarks import models; f = Path(sys.argv[1]); "
        "models.build_vlm(f / 'model'); "
        "print(json.dumps({s: models.write_pictures(f, s, 4) for s in json.loads(sys.argv[2])}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), json.dumps(sides)], capture_output=True, text=True, check=True
    )
    return {int(side): names for side, names in json.loads(done.stdout.splitlines()[-1]).items()}


if __name__ == "__main__":
    main()
