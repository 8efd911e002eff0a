"""Ranks that would share a sequence are refused before anything is built."""

import pytest

from mmrl.errors import ConfigError
from mmrl.training.distributed import make_accelerator
from mmrl.training.sequence_parallel import refuse_split_sequences


@pytest.mark.parametrize("kind", ["CP", "SP", "TP"])
def test_a_launcher_that_splits_is_refused_with_its_key(monkeypatch, kind):
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{kind}_SIZE", "2")
    with pytest.raises(ConfigError, match=rf"parallelism_config_{kind.lower()}_size=2: ranks would share"):
        make_accelerator()


def test_sizes_of_one_are_none():
    refuse_split_sequences({"PARALLELISM_CONFIG_CP_SIZE": "1", "PARALLELISM_CONFIG_SP_SIZE": ""})
