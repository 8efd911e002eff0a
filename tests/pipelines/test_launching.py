"""As many processes as were asked for: accelerate starts one where it sees no GPUs, and says nothing."""

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.launching import for_accelerate

TRAIN = ["-m", "mmrl", "train", "vlm", "demo", "--num_processes", "9"]


@pytest.mark.parametrize("several", [["--num_processes", "2"], ["--num-processes=2"], ["--cpu", "--num_processes=2"]])
def test_several_processes_on_cpus_are_several(several):
    own = [word for word in several if word != "--cpu"]
    assert for_accelerate([*several, *TRAIN], gpus=0) == ["--multi_gpu", *own, *TRAIN]


@pytest.mark.parametrize(
    ("given", "gpus"),
    [([], 0), (["--num_processes", "1"], 0), (["--num_processes", "8"], 8), (["--multi_gpu", "--num_processes=2"], 0)],
)
def test_what_accelerate_does_right_is_left_to_it(given, gpus):
    assert for_accelerate([*given, *TRAIN], gpus) == [*given, *TRAIN]


def test_a_command_of_ours_is_a_module():
    with pytest.raises(ConfigError, match=r"no script 'train' here; a module goes behind -m: -m mmrl train vlm demo"):
        for_accelerate(["--num_processes", "2", "train", "vlm", "demo"], gpus=0)


@pytest.mark.parametrize("kind", ["MULTI_CPU", "NO", "FSDP"])
def test_a_file_of_several_processes(tmp_path, kind):
    (tmp_path / "two.yaml").write_text(f"distributed_type: {kind}\nnum_processes: 2\nuse_cpu: true\n")
    given = ["--config_file", str(tmp_path / "two.yaml"), *TRAIN]
    assert for_accelerate(given, gpus=0) == [*["--multi_gpu"][: kind != "FSDP"], *given]


def test_gpus_that_are_in_the_way_or_too_few():
    with pytest.raises(ConfigError, match="2 processes on CPUs, and 1 GPUs are seen"):
        for_accelerate(["--cpu", "--num_processes", "2", *TRAIN], gpus=1)
    with pytest.raises(ConfigError, match="8 processes for 1 GPUs"):
        for_accelerate(["--num_processes", "8", *TRAIN], gpus=1)
    assert for_accelerate(["--num_machines", "2", "--num_processes", "2", *TRAIN], gpus=1)[0] == "--multi_gpu"
