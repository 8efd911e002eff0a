"""The report: one file, no network, opened in a real browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.media import Film, Sound
from mmrl.pipelines.charts import line_chart, ticks
from mmrl.pipelines.report import LARGEST_FILM, unprefixed, write_report
from mmrl.record import Prompt, Rollouts
from mmrl.training.run_log import save_rollouts

INSIDE = tuple(f"data:{kind};base64," for kind in ("image/png", "video/mp4", "audio/wav"))
BROWSER = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


@pytest.fixture(scope="module")
def page(trained):
    modality, run, _ = trained
    return modality, write_report(run)


def browse(chromium: str, *arguments: str) -> str:
    done = subprocess.run([chromium, *BROWSER, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_is_self_contained(page):
    _, path = page
    text = path.read_text()
    addresses = re.findall(r"""(?:src|href|srcset|action|data|poster)\s*=\s*["']([^"']*)""", text)
    assert addresses
    assert all(address.startswith(INSIDE) for address in addresses)
    assert not re.search(r"url\(|@import|<script|<link|<iframe|fetch\(", text)


def test_a_browser_shows_curves_rollouts_and_credit(page, chromium):
    modality, path = page
    dom = browse(chromium, "--dump-dom", path.as_uri())
    assert dom.count("<svg") >= 6
    assert dom.count("<polyline") >= dom.count("<svg")
    assert "held-out reward" in dom and "Rollouts of step 1" in dom and "Held-out prompts after step 2" in dom
    if modality == "flow":
        assert dom.count('alt="generated image"') >= 8
        bars = re.findall(r'<i style="background: var\(--(up|down)\); height: ([\d.]+)%', dom)
        assert len(bars) == 2 * 8 * 3  # two steps shown, 8 rollouts, all but the last of 4 denoising steps
        assert {direction for direction, _ in bars} == {"up", "down"}
        assert dom.count("<span>t=1.000</span>") == 2 * 8, "where the bars of a rollout begin"
    else:
        mark = "&lt;image&gt;" if modality == "vlm" else "&lt;video&gt;"
        assert f"{mark}What" in dom
        alt = "prompt image" if modality == "vlm" else "frame of the prompt's clip"
        assert dom.count(f'alt="{alt}"') >= 4
        tints = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)", dom.partition("Rollouts of step 1")[2])
        assert {red for red, strength in tints if float(strength) > 0.1} == {"36", "194"}


def test_the_page_is_painted(page, chromium, tmp_path):
    _, path = page
    shot = tmp_path / "page.png"
    browse(chromium, "--window-size=1200,1600", f"--screenshot={shot}", path.as_uri())
    with Image.open(shot) as image:
        assert image.size == (1200, 1600)
        assert len(image.convert("RGB").getcolors(2**24)) > 100


def test_hostile_text_stays_text(trained, tmp_path):
    """Prompts and outputs are data: markup in them is shown, never run."""
    _, run, _ = trained
    copy = shutil.copytree(run, tmp_path / "run")
    rows = copy / "rollouts" / "step-000001" / "rows.jsonl"
    changed = [json.loads(line) | {"prompt": "<script>alert(1)</script>"} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    text = write_report(copy).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_most_frequent_causes_come_first(trained, tmp_path):
    _, run, _ = trained
    copy = shutil.copytree(run, tmp_path / "run")
    first, second = (json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines())
    first["unscored"], second["unscored"] = {f"cause {i}": 1 for i in range(30)}, {"timeout": 4, "cause 7": 2}
    (copy / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    table = re.findall(r"<td>(.*?)</td><td>(\d+)</td>", write_report(copy).read_text())
    assert table[:2] == [("timeout", "4"), ("cause 7", "3")]
    assert table[-1] == ("11 further causes", "11") and len(table) == 21


def test_a_head_that_all_components_share_is_left_out():
    parts = {"compositional/color": 1.0, "compositional": 0.5}
    assert unprefixed(parts) == {"color": 1.0, "compositional": 0.5}
    assert unprefixed({"a/b": 1.0}) == {"a/b": 1.0}
    assert unprefixed({"a/b": 1.0, "c": 2.0}) == {"a/b": 1.0, "c": 2.0}


@pytest.fixture
def edits(tmp_path):
    """A run of four outputs, an edit, two clips, of which one is large, and a sound, from one condition image."""
    run, folder = tmp_path / "run", tmp_path / "run" / "rollouts" / "step-000000"
    given = Image.new("RGB", (8, 8), "red")
    clip = Film([Image.new("RGB", (32, 32), (8 * t, 0, 0)) for t in range(9)], fps=8)
    sound = Sound(np.zeros((1, 800), dtype=np.float32), 8000)
    content = [{"type": "image", "role": "condition"}, {"type": "text", "text": "make it move"}]
    outputs = [Image.new("RGB", (8, 8), "blue"), clip, clip, sound]
    count, zeros = len(outputs), torch.zeros(len(outputs), 1)
    rollouts = Rollouts(
        prompts=[Prompt("a", [{"role": "user", "content": content}], images=[given])], encoded=[None],
        prompt=torch.zeros(count, dtype=torch.long), group=torch.zeros(count, dtype=torch.long),
        member=torch.arange(count), actions=zeros.long(), mask=zeros.bool(), old_log_probs=zeros, outputs=outputs,
        length=torch.ones(count, dtype=torch.long), finish=["finished"] * count, reward=torch.arange(count) / 10,
    )  # fmt: skip
    save_rollouts(folder, rollouts, [["t"]] * count, None, None)
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/mean": 0.6}\n')
    return run


def test_clips_and_sounds_play_inside_the_page_beside_what_they_start_from(edits, chromium):
    large = edits / "rollouts" / "step-000000" / "output-0002.mp4"
    large.write_bytes(large.read_bytes() + bytes(LARGEST_FILM))
    path = write_report(edits)
    text = path.read_text()
    assert text.count('<video controls loop muted playsinline src="data:video/mp4;base64,') == 1
    assert "step-000000/output-0002.mp4, 4.2 MB, lies in the run" in text
    assert text.count('<audio controls src="data:audio/wav;base64,') == 1
    assert text.count('alt="condition image"') == 1 and text.count('alt="prompt image"') == 0
    assert text.index('alt="condition image"') < text.index("<audio") and text.count('alt="generated image"') == 1
    assert text.count('alt="frame of the generated video"') == 2 * 9
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert all(address.startswith(INSIDE) for address in addresses)
    dom = browse(chromium, "--dump-dom", path.as_uri())
    assert dom.count("<video") == 1 and dom.count("<audio") == 1


class TestCharts:
    def test_ticks_are_round_and_cover_the_range(self):
        assert ticks(0.13, 0.87) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert ticks(1, 12, whole=True) == [0, 5, 10, 15]
        assert ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1.0]

    def test_points_that_are_not_finite_are_left_out(self):
        svg = line_chart({"a": [(1, 0.5), (2, float("nan")), (3, 0.7)]})
        assert svg.count("<circle") == 2
        assert "nan" not in svg
        assert line_chart({"a": [(1, float("nan"))]}) == ""

    def test_names_are_escaped_and_listed(self):
        svg = line_chart({"<b>": [(1, 1)], "c": [(1, 2)]})
        assert "<b>" not in svg
        assert 'class="legend"' in svg
