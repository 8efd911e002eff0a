"""`vllm serve`, which takes clips besides as frames that were chosen already, without loss:

    python -m mmrl.policies.language.engines.vllm_serve MODEL ...

with the arguments of `vllm serve`. vLLM's own ways of sending a clip choose frames again or take
JPEGs. Here come the very pixels that the trainer reads and the times they were chosen at, in an archive of numpy's that
`--media-io-kwargs '{"video": {"video_backend": "mmrl"}}'` lets vLLM read.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

import numpy as np

from mmrl.media import Frames
from mmrl.policies.language.engines.vllm_requests import as_video

BACKEND = "mmrl"
MEDIA_TYPE = "video/x-mmrl-frames"
TAKES_CLIPS = {"media_io_kwargs": {"video": {"video_backend": BACKEND}}}
"""Arguments of vLLM's engine that this reader needs."""


def packed(clip: Frames) -> str:
    """A clip as a data URL."""
    frames, told = as_video(clip)
    held = io.BytesIO()
    np.savez(held, frames=frames, told=np.frombuffer(json.dumps(told).encode(), dtype=np.uint8))
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(held.getvalue()).decode('ascii')}"


def unpacked(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames (F, H, W, 3) uint8, and what is told of them."""
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        return held["frames"], json.loads(held["told"].tobytes())


def register() -> None:
    """Let the vLLM of this process read such clips."""
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

    class Chosen(VideoLoader):
        @classmethod
        def load_bytes(cls, data: bytes, num_frames: int = -1, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return unpacked(data)

    VIDEO_LOADER_REGISTRY.register(BACKEND)(Chosen)


def main(arguments: list[str]) -> None:
    """`vllm serve ARGUMENTS`. Its script asks for the version of a package "vllm", which builds for CPUs are not, and
    ends there; so the subcommand is called as the script calls it (0.32, `vllm/entrypoints/cli/main.py`)."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    register()
    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
    command.subparser_init(parser.add_subparsers())
    asked = parser.parse_args([command.name, *arguments])
    command.validate(asked)
    command.cmd(asked)


if __name__ == "__main__":
    main(sys.argv[1:])
