"""vLLM for CPUs, in the environment that `make test-engine` makes. Elsewhere these tests are skipped and say so."""

from importlib.util import find_spec

import pytest

from mmrl.pipelines.bases.models import tiny_vlm
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.video import VideoPolicy, VideoPolicyConfig
from mmrl.policies.language.vision import VisionPolicy
from tests.policies.language.scenes import read_made_clip


def pytest_collection_modifyitems(items):
    if find_spec("vllm") is None:
        for item in items:
            if "tests/engine/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed here; `make test-engine` runs them"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(family)` -> the folder of a tiny model of random weights."""
    folder = tmp_path_factory.mktemp("models")

    def saved(family="qwen3_vl"):
        if not (folder / family).exists():
            model, processor = tiny_vlm(family, seed=0)
            model.save_pretrained(folder / family)
            processor.save_pretrained(folder / family)
        return str(folder / family)

    return saved


@pytest.fixture(scope="session")
def make_policy(checkpoint):
    def make(family="qwen3_vl", *, videos=False, **options):
        options = {"model": checkpoint(family), "max_new_tokens": 8, "engine": "vllm"} | options
        if videos:
            return VideoPolicy.from_config(VideoPolicyConfig(**options), read_clip=read_made_clip)
        return VisionPolicy.from_config(LanguagePolicyConfig(**options))

    return make
