"""`make gpu` without a GPU: sizes are the published ones, a part that fails is named, and what was measured stands."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import language, measure, models


@pytest.fixture
def options(tmp_path):
    return Namespace(device="cpu", size="tiny", steps=1, out=tmp_path)


class TestSizes:
    """Parameters of the checkpoints on the hub, counted without allocating any."""

    def test_qwen(self):
        model, _ = models.qwen("full", "meta", torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == 3_754_622_976

    def test_generators(self):
        kinds = {models.sd3_medium: 2_243_171_520, models.wan_1_3b: 1_418_996_800}
        for make, count in kinds.items():
            assert sum(p.numel() for p in make("full", "meta", torch.bfloat16).transformer.parameters()) == count

    def test_pictures_are_1k_tokens_and_clips_8k(self):
        assert language.SHAPES["images", "full"].media_tokens == 1024
        assert language.SHAPES["clips", "full"].media_tokens == 8192
        shape = language.SHAPES["clips", "full"]
        assert language.frames_of(shape)("clip-1", None).pixels.shape == (32, 3, 448, 896)

    def test_parts_end_inside_25_minutes(self):
        assert sum(p.seconds for p in command.PARTS) <= command.LIMIT <= 25 * 60 - 30


class TestParts:
    @pytest.fixture
    def parts(self, monkeypatch):
        """A part that measures, one that fails, one that hangs, one that cannot run, one that measures again."""
        code = {
            "good": "import sys, json; open(sys.argv[1], 'w').write(json.dumps({'FLOPs a second': 5e11}))",
            "bad": "raise MemoryError('the device is full')",
            "slow": "import time; time.sleep(60)",
            "card": 'import sys; open(sys.argv[1], \'w\').write(\'{"card": {"name": "X 1", '
            '"operations a second, measured": 1e12}}\')',
        }
        made = {n: command.Part(n, 5, "", ()) for n in (*code, "missing", "good again")}

        def command_of(part, options, result):
            if part.name == "missing":
                return "vllm is not installed"
            return [sys.executable, "-c", code[part.name.split()[0]], str(result)]

        monkeypatch.setattr(command, "command_of", command_of)
        monkeypatch.setattr(command, "CPU_LIMIT", 10)
        return tuple(made[n] for n in ("card", "good", "bad", "slow", "missing", "good again"))

    def test_a_failed_part_is_named_and_the_others_stand(self, parts, options, capsys):
        assert command.run_all(parts, options, command.writer(options)) == 1
        shown = capsys.readouterr().out
        assert "failed: bad; slow" in shown and "MemoryError: the device is full" in shown
        assert "took more than 10 s" in shown
        rows = json.loads((options.out / "tiny-x-1.json").read_text())["parts"]
        states = ["done", "done", "failed", "failed", "left out", "done"]
        assert [r["state"] for r in rows] == states
        assert rows[1]["utilization"] == rows[5]["utilization"] == 0.5

    def test_nothing_failed(self, parts, options):
        assert command.run_all((parts[0], parts[1]), options, command.writer(options)) == 0

    def test_results_are_written_after_each_part(self, parts, options):
        written: list[int] = []
        command.run_all(parts[:2], options, lambda rows: written.append(len(rows)))
        assert written == [1, 2]

    def test_an_unknown_part_is_refused(self, capsys):
        assert command.main(["--device", "cpu", "--size", "tiny", "--only", "Llama"]) == 2
        assert "Qwen2.5-VL-3B, images, LoRA" in capsys.readouterr().out

    def test_without_a_driver_it_says_what_runs_here(self, capsys, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert command.main([]) == 2
        assert "DEVICE=cpu SIZE=tiny" in capsys.readouterr().out


class TestMeasures:
    def test_utilization_is_of_the_data_sheet_where_there_is_one(self):
        sheet = measure._sheet("NVIDIA H100 80GB HBM3")
        assert measure.peak_rate(sheet | {"operations a second, measured": 7e14}) == 989e12
        assert measure.peak_rate({"operations a second, measured": 7e14}) == 7e14
        assert measure._sheet("NVIDIA H100 PCIe") == {"operations a second, data sheet": 756e12}
        assert measure._sheet("NVIDIA L40S") == {"operations a second, data sheet": 362e12}

    def test_the_kernel_that_works_is_on_top(self):
        a = torch.randn(256, 256)
        top = measure.top_kernels(lambda: [a @ a for _ in range(20)], "cpu")
        assert "mm" in top[0]["kernel"] and top[0]["share"] > 0.5 and len(top) <= 5

    def test_full_training_is_more_work_than_adapters(self):
        """A prompt once a group: forward, and backward through activations, and through weights where they train."""
        config = models.qwen_config(models.qwen_processor().tokenizer, "full")
        shape = language.SHAPES["images", "full"]
        full, lora = (language.model_flops(config, shape, 1050, way) for way in ("full", "lora"))
        # N = 2.77e9 weights of the decoder's layers, .31e9 of its head; the tower (.63e9) sees 4 patches a token
        prompt, tower = 2 * 2.77e9 * 1050, 2 * 0.63e9 * 4096
        written = 2 * (2.77e9 + 0.31e9) * 128
        assert full == pytest.approx(2 * 3 * (prompt + tower) + 16 * 4 * written, rel=0.1)
        assert lora == pytest.approx(2 * (2 * prompt + tower) + 16 * 3 * written, rel=0.1)


def test_the_result_names_command_and_versions(options):
    command.writer(options)([])
    content = json.loads(Path(options.out, "tiny-cpu.json").read_text())
    assert content["command"] == "make gpu DEVICE=cpu SIZE=tiny" and "torch" in content["versions"]
