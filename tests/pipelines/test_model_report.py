"""`mmrl doctor MODEL` tells what a vision-language model was found to be."""

from pathlib import Path

from rich.console import Console

from mmrl.pipelines.masked_report import is_masked_model, masked_report
from mmrl.pipelines.model_report import model_report

SHIPPED = str(Path(__file__).parents[2] / "data" / "assets" / "tiny_masked")


def test_facts_and_paths_of_a_tiny_model(tmp_path):
    from mmrl.pipelines.bases.models import tiny_vlm

    for part in tiny_vlm("qwen3_vl"):
        part.save_pretrained(tmp_path)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(model_report(str(tmp_path)))
    told = captured.get()
    assert "qwen3_vl, by qwen.Qwen" in told and "<|im_end|>" in told and "image <|image_pad|>" in told
    assert "packed, then two_calls, then plain" in told and "control" in told
    assert "down_proj, gate_proj, k_proj" in told


def test_facts_of_a_model_that_fills_masks():
    console = Console(width=160)
    with console.capture() as captured:
        console.print(masked_report(SHIPPED))
    told = captured.get()
    assert is_masked_model(SHIPPED) and "fills masks: mmrl train masked" in told and "<|mask|>" in told
    assert "changes nothing" in told and " reach earlier ones" in told and "DO NOT" not in told
