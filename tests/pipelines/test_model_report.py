"""`mmrl doctor MODEL` tells what a vision-language model was found to be."""

from rich.console import Console

from mmrl.pipelines.model_report import model_report


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
