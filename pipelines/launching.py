"""What `mmrl launch` asks of `accelerate launch`, so that as many processes start as were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrl.errors import ConfigError

NAMED = ("multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "mpirun_hostfile")
"""Each has accelerate choose a launcher; without any it starts one process, whatever the number it was given."""
ALONE = ("NO", "MULTI_CPU")


def for_accelerate(arguments: Sequence[str], gpus: int) -> list[str]:
    """`arguments` of `accelerate launch`, with its launcher of several processes where they ask for several.

    accelerate takes that launcher, which it calls multi_gpu, by itself only where it sees several GPUs. With fewer,
    `--num_processes 2` starts one process and says nothing. Without a GPU, ranks talk through gloo.

    Raises ConfigError for a script that is not there, for CPUs on a machine that has GPUs, which ranks would take, and
    for too few GPUs.
    """
    from accelerate.commands.launch import launch_command_parser

    given = list(arguments)
    said = launch_command_parser().parse_args(given)
    script = said.training_script
    if not (said.module or said.no_python or Path(script).is_file()):
        rest = " ".join([script, *said.training_script_args])
        raise ConfigError(f"mmrl launch: no script {script!r} here; a module goes behind -m: -m mmrl {rest}")
    if not any(word.replace("-", "_").startswith(("__num_processes", "__config_file")) for word in given):
        return given
    told = _file(said.config_file)
    count = said.num_processes or told.get("num_processes") or 1
    kind = told.get("distributed_type") or "NO"
    by_itself = gpus > 1 and not said.cpu and said.config_file is None
    if count == 1 or by_itself or kind not in ALONE or any(getattr(said, name, None) for name in NAMED):
        return given
    if gpus and (said.cpu or told.get("use_cpu")):
        raise ConfigError(
            f"mmrl launch: {count} processes on CPUs, and {gpus} GPUs are seen; hide them: CUDA_VISIBLE_DEVICES="
        )
    machines = said.num_machines or told.get("num_machines") or 1
    if 0 < gpus * machines < count:
        raise ConfigError(f"mmrl launch: {count} processes for {gpus * machines} GPUs; each takes a GPU of its own")
    place = len(given) - len(said.training_script_args) - 1
    own = [word for word in given[:place] if word != "--cpu"]
    return ["--multi_gpu", *own, *given[place:]]


def _file(path: str | None) -> dict:
    """What a configuration of accelerate says; that it is not there is accelerate's to say."""
    import yaml

    if path is None or not Path(path).is_file():
        return {}
    found = yaml.safe_load(Path(path).read_text())
    return found if isinstance(found, dict) else {}
