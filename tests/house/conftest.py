import shutil
from pathlib import Path

import pytest

from tests.house.source import ROOT, WINGS, repository_files


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository as a stranger clones it, symlinks kept, to change at will."""
    copy = tmp_path_factory.mktemp("checkout")
    for file in repository_files():
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for wing in WINGS:
        (copy / "mmrl" / wing).symlink_to(Path("..") / wing)
    return copy
