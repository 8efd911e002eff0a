"""Execute the notebooks: `python notebooks/build.py [vlm video flow yours]` writes NAME.ipynb, with its outputs.

NAME.py is the source, in jupytext's percent format; the .ipynb is what people read.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NAMES = ("vlm", "video", "flow", "yours")
TIMEOUT = 300  # seconds a cell may take


def execute(name: str, most_steps: int | None = None) -> Any:
    """The executed notebook of NAME.py, stripped of what differs from run to run; most_steps: train no longer."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for cell in notebook.cells if most_steps else ():
        cell.source = re.sub(r'"steps": (\d+)', lambda found: f'"steps": {min(int(found[1]), most_steps)}', cell.source)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def text_of(notebook: Any) -> str:
    """Everything its cells printed, and the text of what they displayed."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") or output.get("data", {}).get("text/html", ""))
    return re.sub(r'"data:[^"]*"', '""', "\n".join(parts))


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        nbformat.write(execute(each), FOLDER / f"{each}.ipynb")
        print(f"{each}.ipynb: {(FOLDER / f'{each}.ipynb').stat().st_size // 1024} KiB")
