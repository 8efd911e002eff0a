"""Decoding beyond the trained policy: worked numbers, and a model whose adapter is followed further."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.weights.extrapolated import Extrapolation, extrapolated
from tests.training.tiny import make_policy, make_prompts


def close(found, expected):
    assert found.exp()[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_worked_numbers():
    """The spec's check: (.6, .4) trained from (.5, .5); gain 1 is in proportion to (.72, .32)."""
    trained, base = torch.tensor([[0.6, 0.4]]).log() + 3, torch.tensor([[0.5, 0.5]]).log()
    close(extrapolated(trained, base, 1.0), [0.6923, 0.3077])
    close(extrapolated(trained, base, 0.0), [0.6, 0.4])
    close(extrapolated(trained, base, -1.0), [0.5, 0.5])


def test_what_generate_forbids_stays_forbidden():
    """Both know of it, or the trained policy alone; no gain makes a number of two infinities."""
    no = float("-inf")
    for base in ([0.0, 0.0, no], [0.0, 0.0, 0.0]):
        for gain in (-1.0, 0.5, 2.0):
            close(extrapolated(torch.tensor([[0.0, 0.0, no]]), torch.tensor([base]), gain), [0.5, 0.5, 0.0])


def test_nothing_outside_of_the_nucleus_is_promoted():
    """The third token rose a hundredfold and is still junk."""
    trained, base = torch.tensor([[0.6, 0.39, 0.01]]).log(), torch.tensor([[0.6, 0.3999, 0.0001]]).log()
    assert extrapolated(trained, base, 2.0).argmax() == 2
    close(extrapolated(trained, base, 0.0, top_p=0.9), [0.6 / 0.99, 0.39 / 0.99, 0.0])
    assert extrapolated(trained, base, 2.0, top_p=0.9).argmax() == 0
    close(extrapolated(trained, base, 0.0, top_p=0.5), [1.0, 0.0, 0.0])


def test_a_model_is_followed_beyond_its_adapter():
    """Greedy answers: gain 0 is the model, -1 its base, picture and all; beyond, the adapter's choice is surer."""
    policy = make_policy(lora={"rank": 2})
    for name, parameter in policy.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    model, prompt = policy.inner.model.eval(), make_prompts(1)[0]
    text = policy.processor.apply_chat_template(prompt.messages, add_generation_prompt=True)
    inputs = dict(policy.processor(text=[text], images=prompt.images, return_tensors="pt"))

    def answer(processors=(), adapted=True):
        with torch.no_grad():
            if adapted:
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False, logits_processor=list(processors))
            else:
                with model.disable_adapter():
                    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    trained, base = answer(), answer(adapted=False)
    assert trained != base, "the adapter matters"
    assert answer([Extrapolation(model, inputs, gain=0.0, top_p=1.0)]) == trained
    assert answer([Extrapolation(model, inputs, gain=-1.0, top_p=1.0)]) == base
    with pytest.raises(ConfigError, match=r"writes 2 rows and inputs hold 1; repeat the inputs"), torch.no_grad():
        several = [Extrapolation(model, inputs)]
        model.generate(**inputs, max_new_tokens=2, do_sample=True, num_return_sequences=2, logits_processor=several)
    with pytest.raises(ConfigError, match="gain=nan"):
        Extrapolation(model, inputs, gain=float("nan"))
    with pytest.raises(ConfigError, match="no input_ids"):
        Extrapolation(model, {"pixel_values": 1})
