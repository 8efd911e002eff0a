"""DDP and FSDP2 on two gloo ranks against one process: rollouts, log-probs, gradients, exports."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mmrl.randomness import Key
from tests.policies.language.scenes import gradients, mixed_prompts, relative_error, requests
from tests.policies.language.two_ranks import CASES, SHARES, build, share


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for name in CASES:
        (folder / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.policies.language.two_ranks", str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_equal_one_process(two_ranks, name):
    _, options = CASES[name]
    policy = build(options)
    rollouts = policy.rollout(requests(mixed_prompts()), Key(1))
    rows = load_file(two_ranks / name / "rows.safetensors")
    assert torch.equal(rows["actions"], rollouts.actions)
    assert torch.allclose(rows["old"], rollouts.old_log_probs, atol=1e-5)
    scored = [*SHARES[0], *SHARES[1]]
    share(policy.evaluate(rollouts.index(scored)).log_probs, scored).backward()
    assert relative_error(load_file(two_ranks / name / "gradients.safetensors"), gradients(policy)) < 1e-5
    state = load_file(two_ranks / name / "state.safetensors")
    assert all(torch.equal(state[n], t) for n, t in policy.trainable_state().items())


def test_sharded_exports_are_whole(two_ranks, tmp_path):
    build({}).save_pretrained(tmp_path)
    wanted = load_file(tmp_path / "model.safetensors")
    for name in ("ddp-full", "fsdp2-full"):
        saved = load_file(two_ranks / name / "saved" / "model.safetensors")
        assert saved.keys() == wanted.keys() and all(torch.equal(saved[n], wanted[n]) for n in wanted)
    assert (two_ranks / "fsdp2-lora" / "saved" / "adapter_model.safetensors").is_file()
