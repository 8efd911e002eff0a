"""Weights that leave a run: their card, and the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.model_card import model_card
from mmrl.pipelines.run import load_checkpoint


def export(checkpoint: Path, folder: Path, *, adapter: bool, trust: bool = False) -> None:
    """Weights of a checkpoint, or of a run's last one, and their card as `folder/README.md`: of one step, also where
    the run goes on meanwhile. adapter: as it is, not folded in."""
    config, policy, state = load_checkpoint(checkpoint, trust=trust)
    policy.save_pretrained(folder, merged=not adapter)
    if not adapter:
        config = config.model_copy(update={"policy": {**config.policy, "lora": None, "adapter": None}})
    card = model_card(config, state.get("before") or {}, state.get("after") or {}, int(state["step"]))
    (folder / "README.md").write_text(card)


def push(checkpoint: Path, repository: str, *, merged: bool, public: bool, trust: bool = False, api: Any = None) -> str:
    """Export and upload; returns a line that says where. api: a `huggingface_hub.HfApi`.

    Raises ConfigError with the hub's reason where it refuses, and before anything is written where there is no token.
    """
    from huggingface_hub import HfApi, get_token

    if repository.count("/") != 1:
        raise ConfigError(f"push: {repository!r} names no repository; expected OWNER/NAME")
    if api is None and get_token() is None:
        raise ConfigError("push: no token for the hub: `hf auth login` keeps one, or HF_TOKEN names it")
    api = HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        export(checkpoint, folder, adapter=not merged, trust=trust)
        try:
            api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Trained with mmrl")
        except Exception as error:  # a wrong name, no right to write, no network: the hub and its client have many
            raise ConfigError(f"push: {repository} was not sent: {' '.join(str(error).split())[:300]}") from error
    return f"weights and card in {repository}, {'public' if public else 'private'}"
