"""Weights that leave a run: their card, and the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.model_card import model_card
from mmrl.pipelines.run import load_run, run_of
from mmrl.training.digests import read_state


def write_card(checkpoint: Path, folder: Path, *, adapter: bool = True) -> None:
    """`folder/README.md` of weights that were exported from a checkpoint, or from a run's last one."""
    config, path = run_of(checkpoint)
    state = read_state(path)
    if not adapter:
        config = config.model_copy(update={"policy": {**config.policy, "lora": None, "adapter": None}})
    card = model_card(config, state.get("before") or {}, state.get("after") or {}, int(state["step"]))
    (folder / "README.md").write_text(card)


def push(checkpoint: Path, repository: str, *, merged: bool, public: bool, trust: bool = False, api: Any = None) -> str:
    """Export and upload; returns a line that says where. api: a `huggingface_hub.HfApi`.

    Raises ConfigError with the hub's reason where it refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if repository.count("/") != 1:
        raise ConfigError(f"push: {repository!r} names no repository; expected OWNER/NAME")
    api = HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        load_run(checkpoint, trust=trust)[1].save_pretrained(folder, merged=merged)
        write_card(checkpoint, folder, adapter=not merged)
        try:
            api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Trained with mmrl")
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            raise ConfigError(f"push: the hub refused {repository}: {' '.join(str(error).split())[:300]}") from error
    return f"weights and card in {repository}, {'public' if public else 'private'}"
