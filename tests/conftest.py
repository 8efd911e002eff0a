"""Every test runs offline, on one thread, from the same seed, and without progress bars."""

import os
import tempfile

if "MMRL_CACHE" not in os.environ:  # parallel workers share that of the first process
    _cache = tempfile.TemporaryDirectory(prefix="mmrl-tests-")
    os.environ["MMRL_CACHE"] = _cache.name
os.environ |= {
    "XDG_STATE_HOME": tempfile.mkdtemp(prefix="mmrl-state-"),  # what tests train with is not remembered beyond them
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "FORCE_QWENVL_VIDEO_READER": "decord",
}

import mmrl  # noqa: F401, I001  before any library that imports torchvision

import random

import hypothesis
import numpy
import pytest
import torch

from mmrl.pipelines.doctor import find_browser

torch.set_num_threads(1)

# few tests, minutes in all: they begin, so that no worker is left alone with one of them at the end
LONGEST = (
    "tests/chaos/test_chaos.py",
    "tests/pipelines/test_notebooks.py",
    "tests/benchmarks/test_benchmarks.py",
    "tests/training/test_cli_trust.py",
    "tests/pipelines/test_readme.py",
    "tests/training/test_ranks.py",
    "tests/training/test_checkpoint.py",
    "tests/training/test_trainer.py",
)

hypothesis.settings.register_profile("mmrl", derandomize=True, max_examples=25, deadline=None, database=None)
hypothesis.settings.load_profile("mmrl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others stay in their order (`--no-loadscope-reorder` keeps it among workers)."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed browser of the Chromium family."""
    if path := find_browser():
        return path
    pytest.skip("not run: Chromium not installed")
