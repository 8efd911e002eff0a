"""Plans of `mmrl sweep` and `mmrl sar` by file and by name."""

import pytest

from mmrl.errors import ConfigError
from mmrl.pipelines.shipped import read_plan


def test_by_name_by_file_and_what_is_neither(tmp_path):
    values, path = read_plan("flow", "sweep", "shipped comparison")
    assert path.name == "flow.yaml" and values["recipes"]
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 3\n")
    assert read_plan(mine, "sweep", "shipped comparison") == ({"steps": 3}, mine)
    with pytest.raises(ConfigError, match=r"flwo: no such file.*shipped comparison.*flow"):
        read_plan("flwo", "sweep", "shipped comparison")
    mine.write_text("- steps\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: expected keys and values, got a list"):
        read_plan(mine, "sweep", "shipped comparison")
