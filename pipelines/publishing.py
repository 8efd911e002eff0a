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

    Raises ConfigError with the hub's reason where it refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if repository.count("/") != 1:
        raise ConfigError(f"push: {repository!r} names no repository; expected OWNER/NAME")
    api = HfApi() if api is None else api
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        export(checkpoint, folder, adapter=not merged, trust=trust)
        try:
            api.create_repo(repository, private=not public, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Trained with mmrl")
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            raise ConfigError(f"push: the hub refused {repository}: {' '.join(str(error).split())[:300]}") from error
    return f"weights and card in {repository}, {'public' if public else 'private'}"
