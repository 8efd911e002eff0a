"""The report: one page, no network, opened in a real browser, wide and narrow, light and dark."""

import json
import os
import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.media import Film, Sound
from mmrl.pipelines import report
from mmrl.pipelines.charts import line_chart, smoothed, thinned, ticks
from mmrl.pipelines.report import as_json, watch, write_report
from mmrl.pipelines.report_rollouts import LARGEST_FILM, unprefixed
from mmrl.record import Prompt, Rollouts
from mmrl.training.run_log import save_rollouts

BROWSER = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
DARK = ("--blink-settings=preferredColorScheme=0",)
BESIDE = re.compile(r"(data:(image/(png|jpeg)|video/mp4|audio/wav);base64,|rollouts/(step|eval)-\d+/[\w.-]+$)")
"""What a page may load: what it holds, and files of its own run."""


@pytest.fixture(scope="module")
def page(trained):
    modality, run, _ = trained
    return modality, write_report(run)


def browse(chromium: str, *arguments: str) -> str:
    command = [chromium, *BROWSER, "--virtual-time-budget=4000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def loaded(dom: str) -> list[str]:
    return re.findall(r"""<(?:img|video|audio|script|link|iframe|source)[^>]*?\s(?:src|href|poster)="([^"]+)""", dom)


def test_nothing_is_loaded_from_elsewhere(page, chromium):
    _, path = page
    addresses = loaded(browse(chromium, "--dump-dom", path.as_uri()))
    assert addresses and all(BESIDE.match(address) for address in addresses)
    text = path.read_text()
    assert not re.search(r"url\(|@import|<link|<iframe|fetch\(|XMLHttp|https?:", text.partition("<body")[0])


def test_a_browser_shows_curves_rollouts_and_credit(page, chromium):
    modality, path = page
    dom = browse(chromium, "--dump-dom", f"{path.as_uri()}#left=step-000001")
    assert dom.count("<svg") >= 6 and dom.count('class="s0"') >= dom.count("<svg")
    assert "held-out reward" in dom and "Rollouts of step 1" in dom and "Held-out prompts after step 2" in dom
    assert dom.count('class="group"') == 2 and dom.count('class="member"') == 8, "both groups of the step, whole"
    if modality == "flow":
        assert dom.count('alt="generated image"') == 8
        bars = re.findall(r'<i style="background: var\(--(up|down)\); height: ([\d.]+)%', dom)
        assert len(bars) == 8 * 3  # 8 rollouts, all but the last of 4 denoising steps
        assert {direction for direction, _ in bars} == {"up", "down"}
        assert dom.count("<span>t=1.000</span>") == 8, "where the bars of a rollout begin"
    else:
        mark = "&lt;image&gt;" if modality == "vlm" else "&lt;video&gt;"
        assert f"{mark}What" in dom
        assert dom.count('alt="prompt image"' if modality == "vlm" else 'class="flip"') == 2
        tints = re.findall(r"rgba\(var\(--(up|down)-rgb\), calc\(var\(--tint\) \* ([\d.]+)\)\)", dom)
        assert {side for side, strength in tints if float(strength) > 0.1} == {"up", "down"}


def test_any_saved_step_and_the_same_prompt_before_and_after(page, chromium):
    _, path = page
    for name in ("step-000001", "step-000002", "eval-000000", "eval-000002"):
        dom = browse(chromium, "--dump-dom", f"{path.as_uri()}#left={name}")
        assert dom.count(f'data-section="{name}"') == 1 and dom.count('class="group"') > 0
    dom = browse(chromium, "--dump-dom", f"{path.as_uri()}#left=eval-000000&right=eval-000002")
    sides = [re.findall(r'class="prompt">([^<]*)<', side) for side in dom.split("data-section=")[1:]]
    assert sides[0] == sides[1] and len(sides[0]) == 4, "each prompt of the left, in its order"


def test_groups_are_sorted_filtered_and_searched(page, chromium):
    _, path = page

    def groups(state: str) -> int:
        return browse(chromium, "--dump-dom", f"{path.as_uri()}#{state}").count('class="group"')

    assert groups("left=step-000001&filter=mixed&order=spread") == 2, "every group has a signal"
    assert groups("left=step-000001&filter=unscored") == 0
    assert groups("left=step-000001&search=no+such+words") == 0


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_painted(page, chromium, tmp_path, width, dark):
    """Wide and narrow, light and dark. A window has at least 500 pixels, so a frame makes the narrow one."""
    _, path = page
    shot, frame = tmp_path / "page.png", tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{path.as_uri()}" width={width} height=1500 style="border:0">'
    )
    browse(
        chromium,
        *(DARK if dark else ()),
        f"--window-size={max(width, 500)},1500",
        f"--screenshot={shot}",
        frame.as_uri(),
    )
    with Image.open(shot) as image:
        colours = image.convert("RGB").crop((0, 0, width, 1500)).getcolors(2**24)
        assert len(colours) > 100
        assert (sum(max(colours)[1]) < 3 * 64) == dark, "the colour there is most of"


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_wider_than_the_screen(page, chromium, tmp_path, width):
    """The page in a frame of that width says how wide it is."""
    _, path = page
    probed, frame = path.parent / "probed.html", tmp_path / "frame.html"
    script = "<script>setTimeout(() => parent.postMessage(document.documentElement.scrollWidth, '*'), 2000)</script>"
    probed.write_text(path.read_text().replace("</main>", f"</main>{script}"))
    frame.write_text(
        "<script>onmessage = (event) => { document.title = `wide ${event.data}` }</script>"
        f'<iframe src="{probed.as_uri()}" width={width} height=900 style="border:0">'
    )
    dom = browse(chromium, f"--window-size={max(width, 500)},900", "--dump-dom", frame.as_uri())
    probed.unlink()
    (wide,) = re.findall(r"<title>wide (\d+)</title>", dom)
    assert int(wide) <= width


def test_hostile_text_stays_text(trained, tmp_path, chromium):
    """Prompts and outputs are data: markup in them is shown, never run."""
    _, run, _ = trained
    copy = shutil.copytree(run, tmp_path / "run")
    rows = copy / "rollouts" / "step-000002" / "rows.jsonl"
    evil = "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>"
    changed = [json.loads(line) | {"prompt": evil} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    page = write_report(copy)
    assert "</script><script>document" not in page.read_text()
    dom = browse(chromium, "--dump-dom", f"{page.as_uri()}#left=step-000002")
    assert "&lt;img src=x onerror" in dom and "<title>taken" not in dom
    assert json.loads(as_json(evil)) == evil and "<" not in as_json(evil)


def test_the_most_frequent_causes_come_first(trained, tmp_path):
    _, run, _ = trained
    copy = shutil.copytree(run, tmp_path / "run")
    first, second = (json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines())
    first["unscored"], second["unscored"] = {f"cause {i}": 1 for i in range(30)}, {"timeout": 4, "cause 7": 2}
    (copy / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    table = re.findall(r"<td>(.*?)</td><td>(\d+)</td>", write_report(copy).read_text())
    assert table[:2] == [("timeout", "4"), ("cause 7", "3")]
    assert table[-1] == ("11 further causes", "11") and len(table) == 21


def test_what_was_wrong_stands_at_the_top_what_still_is_first(tmp_path):
    rows = [
        {"step": s, "reward/mean": 0.5} | ({"diagnosis": {"kl": "KL <runs>"}} if s < 3 else {}) for s in (1, 2, 3, 4)
    ]
    rows[3]["diagnosis"] = {"truncated": "all is cut"}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = write_report(tmp_path).read_text()
    assert text.index("step 4, lasts</b>all is cut") < text.index("step 1 to 2, over</b>KL &lt;runs&gt;")


def test_a_finding_that_comes_and_goes_is_one_line():
    told = {s: {"equal": f"at {s}"} for s in (2, 3, 5, 7)} | {6: {"kl": "far"}}
    rows = [{"step": s} | ({"diagnosis": told[s]} if s in told else {}) for s in range(1, 9)]
    assert [(f["span"], f["said"]) for f in report.findings(rows)] == [
        ("4 of 8 steps, 2 to 7", "at 7"),
        ("step 6", "far"),
    ]


def test_a_constant_is_drawn_too_and_kl_has_its_own_axis(tmp_path):
    names = {
        "length/truncated_fraction": 1.0,
        "reward/accuracy/mean": 0.0,
        "ratio/approx_kl": 1e-4,
        "ratio/clip_fraction": 0.1,
    }
    rows = [{"step": s, "reward/mean": 0.0, "success": 0.0, **names, "some/thing": s} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = write_report(tmp_path).read_text()
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == [
        "Reward",
        "Success",
        "Components",
        "Trust region",
        "KL to the rollout policy",
        "Cut at the limit",
        "some/thing",
    ]


def test_a_live_report_follows_the_run_to_its_end(tmp_path):
    (tmp_path / "config.yaml").write_text("training: {steps: 3}\n")
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    path, waited = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1, "reward/mean": 0.5}\n')

    def sleep(seconds: float) -> None:
        waited.append((tmp_path / "report.html").read_text().count('data-refresh="10"'))
        with path.open("a") as file:
            file.write(json.dumps({"step": 1 + len(waited), "reward/mean": 0.5}) + "\n")

    watch(tmp_path, sleep=sleep)
    assert waited == [1, 1]
    assert 'data-refresh="0"' in (tmp_path / "report.html").read_text(), "a run that is over is not read again"


def test_a_live_report_waits_for_the_first_step_and_ends_with_a_run_that_ends_early(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("training: {steps: 9}\n")
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def sleep(seconds: float) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
        (tmp_path / ".lock").write_text("")  # as a run leaves it that has ended

    watch(tmp_path, sleep=sleep)
    assert "it ended after step 1 of 9" in "".join(capsys.readouterr())


def test_a_head_that_all_components_share_is_left_out():
    parts = {"compositional/color": 1.0, "compositional": 0.5}
    assert unprefixed(parts) == {"color": 1.0, "compositional": 0.5}
    assert unprefixed({"a/b": 1.0}) == {"a/b": 1.0}
    assert unprefixed({"a/b": 1.0, "c": 2.0}) == {"a/b": 1.0, "c": 2.0}


def saved(folder, images, outputs, mask=None):
    """A folder of rollouts of one prompt with condition images."""
    content = [*({"type": "image", "role": "condition"} for _ in images), {"type": "text", "text": "make it move"}]
    count, zeros = len(outputs), torch.zeros(len(outputs), 1)
    rollouts = Rollouts(
        prompts=[Prompt("a", [{"role": "user", "content": content}], images=images)], encoded=[None],
        prompt=torch.zeros(count, dtype=torch.long), group=torch.zeros(count, dtype=torch.long),
        member=torch.arange(count), actions=zeros.long(), mask=zeros.bool(), old_log_probs=zeros, outputs=outputs,
        length=torch.ones(count, dtype=torch.long), finish=["finished"] * count, reward=torch.arange(count) / 10,
    )  # fmt: skip
    save_rollouts(folder, rollouts, [["t"]] * count, None, None)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/mean": 0.6}\n')
    return tmp_path


def test_clips_and_sounds_play_beside_what_they_start_from(run, chromium):
    """Four outputs, an edit, two clips, of which one is large, and a sound, from one condition image."""
    folder = run / "rollouts" / "step-000000"
    clip = Film([Image.new("RGB", (32, 32), (8 * t, 0, 0)) for t in range(9)], fps=8)
    sound = Sound(np.zeros((1, 800), dtype=np.float32), 8000)
    saved(folder, [Image.new("RGB", (8, 8), "red")], [Image.new("RGB", (8, 8), "blue"), clip, clip, sound])
    large = folder / "output-0002.mp4"
    large.write_bytes(large.read_bytes() + bytes(LARGEST_FILM))
    path = write_report(run)
    dom = browse(chromium, "--dump-dom", path.as_uri())
    videos = re.findall(r'<video [^>]*src="([^"]{,40})', dom)
    assert sorted(v[:22] for v in videos) == ["data:video/mp4;base64,", "rollouts/step-000000/o"]
    assert dom.count('<audio src="data:audio/wav;base64,') + dom.count("<audio controls") >= 1
    assert dom.count('alt="condition image"') == 1 and dom.count('alt="prompt image"') == 0
    assert dom.count('alt="generated image"') == 1 and dom.count('alt="frame of the generated video"') == 2 * 9
    assert all(BESIDE.match(address) for address in loaded(dom))


def test_large_pictures_are_small_in_the_page_whole_on_click_and_true_in_shape(run, chromium):
    noise = np.random.default_rng(0)
    for step in range(4):
        pixels = noise.integers(0, 255, (720, 1280, 3), dtype=np.uint8)
        images = [Image.fromarray(pixels)]
        saved(
            run / "rollouts" / f"step-{step:06d}", images, [Image.fromarray(pixels[:360]), Image.new("RGB", (24, 16))]
        )
    path = write_report(run)
    assert path.stat().st_size < 3 * 2**20
    dom = browse(chromium, "--dump-dom", path.as_uri())
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    (group,) = json.loads(data)["sections"]["step-000003"]["groups"]
    small = {m["images"][0]["small"]: m["images"][0] for m in group["members"]}
    sizes = {tuple(image["size"]) for image in (*group["media"], *small.values())}
    assert sizes == {(1280, 720), (1280, 360), (24, 16)}
    assert all((run / image["file"]).is_file() for image in (*group["media"], *small.values()))
    assert len(loaded(dom)) == 3 and "height=" not in "".join(re.findall("<img[^>]*>", dom))


def test_rollouts_past_what_a_page_holds_lie_beside_it(run, chromium, monkeypatch):
    for step in (1, 2, 3):
        saved(run / "rollouts" / f"step-{step:06d}", [], [f"answer of step {step}"])
    monkeypatch.setattr(report, "EMBEDDED", 500)
    path = write_report(run)
    assert (run / "report" / "step-000002.js").is_file() and "answer of step 2" not in path.read_text()
    dom = browse(chromium, "--dump-dom", f"{path.as_uri()}#left=step-000002")
    assert "answer of step 2" in dom
    shutil.rmtree(run / "report")
    assert "is not beside this page" in browse(chromium, "--dump-dom", f"{path.as_uri()}#left=step-000002")


class TestCharts:
    def test_ticks_are_round_and_cover_the_range(self):
        assert ticks(0.13, 0.87) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert ticks(1, 12, whole=True) == [0, 5, 10, 15]
        assert ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1.0]

    def test_smoothing_begins_at_the_first_value_and_keeps_a_constant(self):
        assert smoothed([(1, 2.0), (2, 4.0)], 0.5) == [(1, 2.0), (2, 5.0 / 1.5)]
        assert [y for _, y in smoothed([(1, 3.0), (2, 3.0), (3, 3.0)], 0.9)] == pytest.approx([3.0, 3.0, 3.0])
        assert smoothed([(1, 1.0), (2, 5.0)], 0.0) == [(1, 1.0), (2, 5.0)]

    def test_long_series_are_thinned_and_keep_their_ends(self):
        drawn = thinned([(x, 0.0) for x in range(1001)], 5)
        assert [x for x, _ in drawn] == [0, 250, 500, 750, 1000]

    def test_points_that_are_not_finite_are_left_out(self):
        svg = line_chart({"a": [(1, 0.5), (2, float("nan")), (3, 0.7)]})
        assert svg.count("<circle") == 2
        assert "nan" not in svg
        assert 'stroke="var(--series-1' in line_chart({"a": [], "b": [(1, 2)]}), "a run keeps its colour in every chart"
        assert line_chart({"a": [(1, float("nan"))]}) == ""

    def test_names_are_escaped_and_listed(self):
        svg = line_chart({"<b>": [(1, 1)], "c": [(1, 2)]})
        assert "<b>" not in svg
        assert 'class="legend"' in svg
