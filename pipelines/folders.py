"""Where a run lies: the same command twice makes two runs, in numbered folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.pipelines.config import RunConfig
from mmrl.shown import tell
from mmrl.training.distributed import gather_objects
from mmrl.training.resume import holds_a_run

if TYPE_CHECKING:
    from accelerate import Accelerator


def next_free(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3` ... that holds no run."""
    number, free = 2, folder
    while holds_a_run(free):
        free = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return free


def in_its_own_folder(config: RunConfig, accelerator: Accelerator) -> RunConfig:
    """With `run_dir` settled: a name that is made of modality and recipe gets a number where it holds a run already.

    A folder that was named outright stays; a run in it is refused. The first rank looks, and all do what it found.
    """
    if "{" not in config.run_dir:
        return config
    found = None
    if accelerator.is_main_process:
        taken = config.directory
        found = next_free(taken)
        if found != taken:
            tell(f"{taken} holds a run, which --resume {taken} goes on with; this one goes into {found}")
    return config.model_copy(update={"run_dir": str(gather_objects(found, accelerator)[0])})
