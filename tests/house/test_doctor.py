"""`mmrl doctor` tries the real thing, and says what to do about what does not work."""

import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmrl.pipelines import doctor
from mmrl.pipelines.doctor import Check


def printed(checks: list[Check]) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(doctor.render(checks))
    return capture.get().splitlines()


@pytest.fixture(scope="module")
def checks() -> dict[str, Check]:
    return {check.name: check for check in doctor.doctor()}


def test_this_machine_can_train(checks):
    assert [check for check in checks.values() if check.state == "error"] == []


@pytest.mark.parametrize("name", ["torch", "torchvision", "transformers", "video: decord", "video: pyav", "hub"])
def test_what_is_looked_at(checks, name):
    assert checks[name].state == "ok", checks[name]


def test_everything_that_is_not_ok_comes_with_a_fix(checks):
    assert all(check.fix for check in checks.values() if check.state != "ok")


def test_one_line_each_and_a_closing_line():
    lines = printed(
        [Check("torch", "ok", "2.13.0"), Check("peft", "error", "0.1, too old", "pip install 'peft>=0.19'")]
    )
    assert len(lines) == 3
    assert "torch" in lines[0] and "→" not in lines[0]
    assert "peft" in lines[1] and "→  pip install 'peft>=0.19'" in lines[1]
    assert lines[2].strip() == "1 error"


def test_all_well_is_said():
    assert printed([Check("torch", "ok", "2.13.0")])[-1].strip() == "Everything works."


def test_a_version_outside_the_range_is_an_error_with_the_range_to_install(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "4.57.1")
    check = doctor._library("transformers")
    assert check.state == "error"
    assert "4.57.1" in check.detail and ">=5.17" in check.detail
    assert check.fix.startswith("pip install 'transformers")


def test_a_missing_library_is_an_error(monkeypatch):
    def absent(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    assert doctor._library("peft").detail.startswith("not installed")


def test_a_check_that_raises_is_a_line_and_the_others_still_run(monkeypatch):
    def broken():
        raise OSError("disk on fire\nand more")

    monkeypatch.setattr(doctor, "_disk", broken)
    monkeypatch.setattr(doctor, "LIBRARIES", ())
    monkeypatch.setattr(doctor, "READERS", {})
    found = {check.name: check for check in doctor.doctor()}
    assert found["disk"] == Check("disk", "error", "disk on fire", found["disk"].fix)
    assert found["hub"].state == "ok"


def test_a_decoder_that_reads_other_pixels_is_an_error(monkeypatch):
    from mmrl import media

    write = media.write_video
    monkeypatch.setattr(media, "write_video", lambda path, frames, fps: write(path, frames[::-1], fps))
    check = doctor._decoder("pyav")
    assert check.state == "error" and "[0, 80, 160, 240]" in check.detail


def test_little_disk_is_a_warning(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3e9))
    check = doctor._disk()
    assert check.state == "warning" and "3 GB" in check.detail


def test_no_browser_is_a_warning(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor._browser().state == "warning"


def test_the_hub_line_follows_the_environment(monkeypatch):
    for name in doctor.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    assert doctor._hub().detail.startswith("online")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert "TRANSFORMERS_OFFLINE" in doctor._hub().detail
