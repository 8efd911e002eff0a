"""What the checkpoints of a run say together: `mmrl extrapolate` reads a later one off them, `mmrl weights` how the
last one lies to the start.

Checkpoints are read one after the other; what was trained, of all of them, is held in memory in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmrl.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl.policies.base import Policy

METHODS = ("relex", "next")
Run = Annotated[Path, typer.Argument(help="A run directory with several checkpoints (training.keep_checkpoints).")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code a run from elsewhere names, and read what it names.")
]


def extrapolate(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Where the weights go, adapters folded in.")],
    step: Annotated[int | None, typer.Option(help="relex: the step to read off.")] = None,
    method: Annotated[str, typer.Option(help="relex (a line), or next (a small network that is fitted).")] = "relex",
    window: Annotated[int | None, typer.Option(help="relex: fit the last so many checkpoints alone.")] = None,
    ahead: Annotated[int, typer.Option(help="next: checkpoints that one prediction leaps over.")] = 5,
    epochs: Annotated[int, typer.Option(help="next: passes over the checkpoints when the network is fitted.")] = 1000,
    scale: Annotated[
        float, typer.Option(help="next: c, of the predicted update; try .5 to 4 on held-out prompts.")
    ] = 1.0,
    trust: Trust = False,
) -> None:
    """Weights of a later step, predicted from a run's checkpoints (RELEX, NExt)."""
    import torch

    from mmrl.weights import next_delta, relex

    if method not in METHODS:
        raise ConfigError(f"--method: {unknown('method', method, METHODS)}")
    if method == "relex" and step is None:
        raise ConfigError("--step: which step of the run to predict, such as --step 500")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; name a new folder")
    policy, steps, weights = read(run, trust=trust)
    least = 2 if method == "relex" else ahead + 1
    if len(steps) - 1 < least:
        raise ConfigError(
            f"{run} has {len(steps) - 1} checkpoints, {method} needs at least {least}: save more often "
            "(training.save_every) and keep them (training.keep_checkpoints)"
        )
    if method == "relex":
        assert step is not None
        found = {
            n: relex.extrapolated((w[1:] - w[0]).float(), steps[1:], step, window=window) for n, w in weights.items()
        }
        predicted = {name: weights[name][0] + delta for name, (delta, _) in found.items()}
        explained = [share for _, share in found.values()]
        print(f"the line explains {min(explained):.2f} to {max(explained):.2f} of a tensor's movement, "
              f"median {median(explained):.2f}")  # fmt: skip
    else:
        deltas = next_delta.predicted(weights, ahead, epochs=epochs)
        predicted = {name: weights[name][-1] + scale * deltas[name] for name in weights}
    with torch.no_grad():
        put(policy, predicted)
    policy.save_pretrained(folder, merged=True)
    print(f"weights in {folder}")


def weights(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Every matrix, as JSON.")] = False,
    trust: Trust = False,
) -> None:
    """How a run's update lies to the weights it moved: spectrum, principal directions, rounding."""
    from mmrl.weights.geometry import geometry

    policy, steps, trajectory = read(run, trust=trust, last_only=True)
    bases = base_weights(policy)
    rows = {}
    for name, tensors in trajectory.items():
        start = bases.get(name, tensors[0])
        if start.dim() == 2:
            rows[name] = geometry(start.float(), (tensors[-1] - tensors[0]).float())
    if as_json:
        print(json.dumps({"step": steps[-1], "matrices": rows}, indent=1))
        return
    print(f"step {steps[-1]}, {len(rows)} matrices: median (largest)")
    for number in next(iter(rows.values()), {}):
        values = [row[number] for row in rows.values()]
        print(f"  {number:10} {median(values):.3g} ({max(values):.3g})")


def read(run: Path, *, trust: bool = False, last_only: bool = False) -> tuple[Policy, list[int], dict[str, Tensor]]:
    """The policy of a run, its steps from 0 on, and {name: (K + 1, ...) what was trained, at the start and at them}."""
    import torch

    from mmrl.pipelines.run import build_policy, run_of
    from mmrl.pipelines.trust import require
    from mmrl.training import checkpoint

    config, _ = run_of(run)
    require(config, config, run, trust)
    policy = build_policy(config)
    every = [weights_of(policy)]
    found = checkpoint.checkpoints(run)
    found = found[-1:] if last_only else found
    for _, path in found:
        checkpoint.load_weights(path, policy)
        every.append(weights_of(policy))
    return policy, [0, *(step for step, _ in found)], {n: torch.stack([w[n] for w in every]) for n in every[0]}


def _adapted(policy: Policy) -> dict[str, Any]:
    """{name of a weight: its layer} of layers with an adapter that trains."""
    layers = {}
    for name, module in policy.inner.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            if getattr(module, "use_dora", {}).get("default"):
                raise ConfigError("adapters with DoRA change more than they add; such runs cannot be read here")
            layers[f"{name}.weight"] = module
    return layers


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """{name: tensor} of what is trained, whole and in float32: of an adapted layer what the adapter adds, B A scaled,
    since A and B each may turn without changing it."""
    layers = _adapted(policy)
    others = {n: t for n, t in policy.trainable_state().items() if not layers or "lora_" not in n}
    added = {n: layer.get_delta_weight("default").detach() for n, layer in layers.items()}
    return {n: t.float().cpu().clone() for n, t in {**others, **added}.items()}


def base_weights(policy: Policy) -> dict[str, Tensor]:
    """{name: the frozen weight} under each adapter."""
    return {n: layer.get_base_layer().weight.detach().cpu() for n, layer in _adapted(policy).items()}


def put(policy: Policy, values: dict[str, Tensor]) -> None:
    """The policy with these in place of what `weights_of` gave; what an adapter added goes into its layer."""
    layers = _adapted(policy)
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        weight.add_(values[name].to(weight))
        layer.lora_B["default"].weight.zero_()
    state = policy.trainable_state()
    policy.load_trainable_state(state | {n: values[n].to(t) for n, t in state.items() if n in values})
