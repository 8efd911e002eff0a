"""`compute` against the published losses written out by hand (`references`), in value and gradient, to 1e-6.

What stands here is also how the entry is called for each recipe: which fields and columns it reads.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from mmrl.objective import compute
from mmrl.recipes import load_recipe
from tests.objective import references as r
from tests.objective import references_rows as s
from tests.objective.references import LIMIT, World, make_world

NAN = float("nan")


def mask_of(world: World) -> Tensor:
    mask = torch.zeros(world.old.shape, dtype=torch.bool)
    for i in world.rows:
        mask[i, world.time[i]] = True
    return mask


def fields_of(world: World) -> dict:
    """The plain tensors every recipe reads."""
    return {
        "mask": mask_of(world),
        "old_log_probs": world.old,
        "group": torch.tensor(world.group),
        "reward": torch.tensor(world.reward, dtype=torch.float64),
        "success": torch.tensor(world.success, dtype=torch.float64),
    }


def segments(world: World, last: int | None = None) -> Tensor:
    segment = torch.full(world.old.shape, -1)
    for i in world.rows:
        for t in world.time[i]:
            segment[i, t] = min(r.segment_of(world, i, t), 99 if last is None else last)
    return segment


def changed(recipe: str, **stages) -> dict:
    """A recipe's objective in which these stages are as the written reference has them, not as its authors ran it."""
    return {**load_recipe(recipe).objective, **stages}


def tables(*names: str, **renamed: str):
    return lambda w: {n: w.table[n] for n in names} | {n: w.table[k] for n, k in renamed.items()}


def rows(*names: str):
    return lambda w: {n: torch.tensor(w.row[n], dtype=torch.float64) for n in names}


def components(w: World) -> dict:
    return {"components": {n: torch.tensor(v, dtype=torch.float64) for n, v in w.parts.items()}}


def limited(w: World) -> dict:
    return {"max_length": LIMIT}


def parts(w: World) -> dict:
    return {"segment": segments(w), "action_reward": w.table["uniform"]}


def experts(w: World) -> dict:
    return {"expert": torch.tensor([i == w.members(i)[-1] for i in w.rows])}


def labels_as_rewards(w: World) -> dict:
    return {"reward": torch.tensor(w.success, dtype=torch.float64)}


def image_scores(w: World) -> dict:
    first = [w.members(i)[0] for i in w.rows]
    return {"visual_entropy": w.table["uniform"][first, 0]}


def speeds(w: World) -> dict:
    return {
        "components": {
            "accuracy": torch.tensor(w.success, dtype=torch.float64),
            "tokens_per_forward": torch.tensor(w.parts["ranking"], dtype=torch.float64),
        },
        "ref_log_probs": w.table["ref_log_probs"],
    }


def self_scores(w: World) -> dict:
    long = torch.tensor([w.tokens(i) == 9 for i in w.rows])
    return {"reserved_token": -20 + w.table["uniform"], "truncated": long}


def unshared(w: World) -> dict:
    ids = torch.arange(w.old.numel()).view(w.old.shape)
    return {"actions": ids, "entropy": w.table["entropy"]}


def soft_tokens(w: World) -> dict:
    even = (torch.arange(w.old.shape[1]) % 2 == 0).expand(w.old.shape)
    return {"soft": even.double(), "gumbels": w.table["gumbels"]}


def kept_ids(new: Tensor) -> Tensor:
    """(B, T, 2) the log-probs of the two ids a soft token mixes."""
    return torch.stack([new, torch.full_like(new, -1.2)], dim=2)


def nothing(w: World) -> dict:
    return {}


KL = {"name": "kl", "coefficient": 0.3}
GRPO = {"advantage": "grpo", "aggregation": "sequence_mean"}
CLIP = {"name": "clip", "low": 0.2, "high": 0.28}
REFERENCE = tables("ref_log_probs")
ENGINE = tables("sampler_log_probs")
NEAR = 1e-3
"""How far the current policy stands from the one that sampled, where sequence ratios have narrow bounds; else .35."""

CASES: dict[str, tuple] = {
    # recipe or objective, what else it reads, the reference, how far the policy has moved
    "grpo": ("grpo", nothing, r.grpo),
    "grpo with its KL": (
        {**GRPO, "regularizers": [{"name": "kl", "coefficient": 0.04}]}, REFERENCE, partial(r.grpo, beta=0.04)
    ),
    "dr_grpo": ("dr_grpo", limited, r.dr_grpo),
    "dapo": ("dapo", limited, r.dapo),
    "bnpo": ({"aggregation": {"name": "bnpo", "rows": 5}}, nothing, r.bnpo),
    "dual clip": ({"trust_region": {"name": "clip", "dual": 1.5}}, nothing, r.dual_clip),
    "cispo": ("cispo", nothing, r.cispo),
    "cispo of verl": (
        {"trust_region": {"name": "cispo", "low": 0.8, "high": 1.2}}, nothing, partial(r.cispo, low=0.8, high=1.2)
    ),
    "rloo": ("rloo", nothing, r.rloo),
    "rloo of TRL": (
        {"shaping": ["kl_in_reward"], "advantage": "rloo", "ratio": "full_sequence", "aggregation": "sequence_mean"},
        REFERENCE, r.rloo_of_trl,
    ),
    "reinforce_plus_plus": ("reinforce_plus_plus", nothing, r.reinforce_plus_plus),
    "reinforce_plus_plus with KL": (
        {"advantage": {"name": "reinforce_plus_plus", "discount": 0.9, "kl": 0.1}}, REFERENCE,
        partial(r.reinforce_plus_plus, discount=0.9, kl=0.1),
    ),
    "reinforce_plus_plus_baseline": (
        "reinforce_plus_plus_baseline", nothing, partial(r.reinforce_plus_plus, baseline=True)
    ),
    "gspo": ("gspo", nothing, r.gspo, NEAR),
    "gspo_token": ("gspo_token", nothing, r.gspo_token, NEAR),
    "luspo": ("luspo", nothing, r.luspo, NEAR),
    "gmpo": ("gmpo", nothing, r.gmpo),
    "ctpo": ("ctpo", nothing, r.ctpo, 0.05),
    "holderpo": ("holderpo", nothing, r.holder),
    "holderpo at -1": (
        {**GRPO, "advantage": "dr_grpo", "ratio": {"name": "holder", "start": -1.0, "end": -1.0}}, nothing,
        partial(r.holder, p=-1.0),
    ),
    "sspo": ("sspo", lambda w: {"segment": segments(w), "entropy": w.table["entropy"]}, r.sspo),
    "dhpo": ("dhpo", nothing, r.dhpo),
    "dhpo guided": (
        {**GRPO, "trust_region": {"name": "dhpo", "mix": "entropy"}}, tables("entropy"), partial(r.dhpo, guided=True)
    ),
    "rank_grpo": ("rank_grpo", parts, r.rank_grpo),
    "f_grpo": ("f_grpo", lambda w: {"segment": segments(w, 1), **components(w)}, r.f_grpo),
    "soft_token": (
        {
            "ratio": "soft_token", "trust_region": {"name": "clip", "low": 0.2, "high": 0.2},
            "aggregation": "sequence_mean",
        },
        soft_tokens, r.soft_grpo,
    ),
    "sapo": ("sapo", nothing, r.sapo),
    "dcpo_clipping": ("dcpo_clipping", nothing, r.dcpo),
    "klear_gppo": ("klear_gppo", nothing, r.gppo, 0.8),
    "nsr": ("nsr", tables("uniform"), r.nsr),
    "etr": ("etr", nothing, r.etr),
    "minirl_stabilising": ("minirl_stabilising", ENGINE, r.minirl),
    **{
        f"rec {region} {weight}": (
            {"advantage": "dr_grpo", "trust_region": {"name": "rec", "region": region, "weight": weight}}, nothing,
            partial(r.rec, region=region, weight=weight), 0.8,
        )
        for region in ("one_side", "two_side", "ring") for weight in ("none", "ratio", "advantage")
    },
    "opmd": ("opmd", nothing, r.opmd),
    "asymre": ("asymre", nothing, r.asymre),
    "vespo": ("vespo", nothing, r.vespo),
    "owpo": ("owpo", REFERENCE, r.owpo),
    "a_lol": ("a_lol", lambda w: {**REFERENCE(w), **rows("reference_value")(w)}, r.a_lol),
    "gtpo": (
        changed("gtpo", advantage="grpo", credit=[{"name": "gtpo", "weight": 2.0, "gamma": 0.1}]), unshared,
        r.gtpo_without_conflicts,
    ),
    **{
        f"correction {level} {mode}": (
            {"credit": [{"name": "importance_correction", "level": level, "mode": mode, "high": 1.05}]}, ENGINE,
            partial(r.correction, level=level, mode=mode, cap=1.05),
        )
        for level in ("token", "sequence") for mode in ("mask", "truncate")
    },
    "off_policy_mask": (
        {"credit": [{"name": "off_policy_mask", "delta": 0.05}]}, nothing, partial(r.off_policy_mask, delta=0.05)
    ),
    "vcpo": ("vcpo", lambda w: {**ENGINE(w), **rows("score_gradient_norm")(w)}, r.vcpo),
    "balanced_aggregation": ("balanced_aggregation", nothing, r.balanced),
    "pacs": ("pacs", nothing, s.pacs),
    "pacs with class weights": (
        {"score": "log_ratio", "score_objective": {"name": "pacs", "balance": True}}, nothing,
        partial(s.pacs, balance=True),
    ),
    "real": ("real", labels_as_rewards, s.real),
    "real of the paper": (
        {
            "score": {"name": "log_ratio", "reduce": "mean"},
            "score_objective": {"name": "real", "skip_single_class": False},
        },
        labels_as_rewards, partial(s.real, skip=False),
    ),
    "disco": (changed("disco", score={"name": "disco", "kind": "log_prob"}), nothing, s.disco),
    "disco on ratios, without the soft maximum": (
        {"score": {"name": "disco", "kind": "ratio"}, "score_objective": {"name": "disco", "tau": None}}, nothing,
        partial(s.disco, kind="ratio", tau=None),
    ),
    "copg": ("copg", REFERENCE, s.copg),
    "dpo": ("dpo", REFERENCE, s.dpo),
    "dno": ("dno", nothing, s.dno),
    "group alignment of dypo": (
        {"score": "reference_log_ratio", "score_objective": "group_alignment"}, REFERENCE, s.alignment
    ),
    "deepvideo_r1": (changed("deepvideo_r1", regularizers=[]), nothing, s.reg_grpo),
    "grao": ("grao", experts, s.grao),
    **{
        f"KL {e}": ({**GRPO, "regularizers": [{**KL, "estimator": e}]}, REFERENCE, partial(s.kl, estimator=e))
        for e in ("k1", "k2", "k3", "k3_plus")
    },
    "KL times the ratio": (
        {**GRPO, "regularizers": [{**KL, "importance": True}]}, REFERENCE,
        partial(s.kl, estimator="k3", importance=True),
    ),
    "laser": ("laser", self_scores, s.laser),
    "lightningrl": ("lightningrl", speeds, s.lightningrl),
    "gui_libra": (changed("gui_libra", regularizers=[]), nothing, s.gui_libra),
    "justgrpo": (
        "justgrpo", limited, r.justgrpo
    ),
    "mc_grpo": (changed("mc_grpo", regularizers=[]), nothing, s.mc_grpo),
    "ngrpo": ("ngrpo", lambda w: {"success": None}, s.ngrpo),
    "gdpo_decoupled": ("gdpo_decoupled", components, s.gdpo),
    "spo_single_stream": ("spo_single_stream", nothing, s.spo_first_visit),
    "psr_nsr_w_reinforce": ("psr_nsr_w_reinforce", nothing, s.w_reinforce),
    "dr_kernel_trloo": ("dr_kernel_trloo", parts, s.trloo),
    "ma_rlhf": ("ma_rlhf", tables(values="uniform"), s.ma_rlhf),
    "durian": (
        changed("durian", trust_region="clip", aggregation="sequence_mean", regularizers=[]), image_scores, s.durian,
    ),
    "openvlthinkerv2_g2rpo": (
        {"advantage": "openvlthinkerv2_g2rpo"}, nothing, s.g2rpo
    ),
    "80_20_forking_tokens": (
        {"credit": ["80_20_forking_tokens"], "trust_region": CLIP}, tables("entropy"), s.forking_tokens
    ),
    "fipo": ("fipo", nothing, s.fipo, 0.8),
    "delta_log_p": (
        changed("delta_log_p", shaping=[], group=[], trust_region={"name": "clip", "low": 0.2, "high": 0.28}), nothing,
        s.delta_log_p,
    ),
    "ace": ("ace", REFERENCE, s.ace),
    "xrpo": ("xrpo", nothing, s.xrpo),
    "vppo": (
        {
            "credit": [{"name": "vppo", "share": 0.4}], "trust_region": CLIP,
            "regularizers": [{"name": "sampled_entropy", "coefficient": 0.06}],
        },
        tables(perturbed_log_probs="sampler_log_probs"), s.vppo,
    ),
    "tor": ("tor", tables("entropy", media_free_log_probs="sampler_log_probs"), s.tor),
    "verl": ("verl", REFERENCE, s.verl),
}  # fmt: skip


def both(name: str, world: World) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    recipe, extra, reference, *spread = CASES[name]
    g = torch.Generator().manual_seed(11)
    step = (spread or [0.35])[0] * torch.randn(world.old.shape, generator=g, dtype=torch.float64)
    results = []
    for ours in (True, False):
        new = (world.old + step).detach().requires_grad_()
        evaluation = {"log_probs": new, "kept_log_probs": kept_ids(new)} if name == "soft_token" else new
        loss = compute(recipe, {**fields_of(world), **extra(world)}, evaluation) if ours else reference(world, new)
        results.append((loss.detach(), torch.autograd.grad(loss, new)[0]))
    return results[0], results[1]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_reference(name, world):
    (loss, gradient), (expected, expected_gradient) = both(name, world)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-8, rtol=1e-6)
    assert expected_gradient.abs().max() > 1e-5
    assert (gradient[~mask_of(world)] == 0).all()
