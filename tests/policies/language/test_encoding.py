"""A prompt becomes tensors once, with as many placeholders as features and the model's own positions."""

import pytest
import torch

from mmrl.errors import DataError, PolicyError
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.encoded import to_device
from mmrl.policies.language.vision import VisionPolicy
from mmrl.record import Prompt
from tests.policies.language.scenes import image_prompt, mixed_prompts, picture, video_prompt


def test_placeholders_equal_features_and_only_media_are_typed(policies, family):
    policy = policies[family]
    for prompt in mixed_prompts():
        entry = policy.encode(prompt)
        grid = entry.media.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
        assert len(grid) == len(prompt.images)
        placeholders = (entry.ids == policy.family.image_token).sum()
        assert placeholders == grid.prod(-1).sum() // 4 == (entry.token_types == 1).sum()


def test_positions_and_ids_are_those_of_the_plain_model(policies, family):
    """The model, left to itself, gives the same next-token logits: ids, pixels and M-RoPE positions agree."""
    policy = policies[family]
    for prompt in mixed_prompts():
        entry = policy.encode(prompt)
        text = policy.processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
        inputs = policy.processor(text=[text], images=prompt.images or None, return_tensors="pt")
        assert torch.equal(inputs["input_ids"][0], entry.ids)
        with torch.no_grad():
            wanted = policy.inner.core(**inputs).logits
            got = policy.inner.core(
                input_ids=entry.ids[None],
                mm_token_type_ids=entry.token_types[None],
                position_ids=entry.positions[:, None],
                **entry.media,
            ).logits
        assert torch.allclose(got, wanted, atol=1e-5)


def test_images_enter_in_the_order_of_their_parts(policies):
    policy, red, blue = policies["qwen3_vl"], picture("red"), picture("blue")
    one_way, other_way = policy.encode(image_prompt("p", red, blue)), policy.encode(image_prompt("p", blue, red))
    half = len(one_way.media["pixel_values"]) // 2
    assert torch.equal(one_way.media["pixel_values"][:half], other_way.media["pixel_values"][half:])
    assert not torch.equal(one_way.media["pixel_values"], other_way.media["pixel_values"])


def test_an_image_may_be_a_path(policies, tmp_path):
    policy, image = policies["qwen3_vl"], picture("red")
    image.save(tmp_path / "red.png")
    read = policy.encode(image_prompt("p", tmp_path / "red.png"))
    assert torch.equal(read.media["pixel_values"], policy.encode(image_prompt("p", image)).media["pixel_values"])


def test_an_unreadable_image_names_prompt_and_file(policies, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"prompt 'p': cannot read image .*broken.png"):
        policies["qwen3_vl"].encode(image_prompt("p", tmp_path / "broken.png"))
    with pytest.raises(DataError, match="expected a PIL image or a path, got bytes"):
        policies["qwen3_vl"].encode(image_prompt("p", b"png"))


def test_media_and_parts_must_agree(policies):
    prompt = image_prompt("p", picture("red"))
    prompt.images.append(picture("blue"))
    with pytest.raises(PolicyError, match=r"prompt 'p' has 2 image\(s\) but its messages have 1 image part"):
        policies["qwen3_vl"].encode(prompt)


def test_a_placeholder_written_in_the_text_is_refused(policies, family):
    prompt = image_prompt("sneaky", question="What is <|image_pad|>?")
    with pytest.raises(PolicyError, match=r"'sneaky': the chat template rendered 1 .*image_pad.* for 0 image"):
        policies[family].encode(prompt)


def test_a_long_prompt_is_refused_never_cut(make_policy):
    policy = make_policy(max_prompt_tokens=20)
    with pytest.raises(
        PolicyError, match=r"prompt 'big' has \d+ tokens \(\d+ of them media\).*max_prompt_tokens is 20"
    ):
        policy.encode(image_prompt("big", picture("red")))
    assert len(policy.encode(image_prompt("small", question="Why?"))) <= 20


def test_a_video_needs_the_video_policy(policies):
    with pytest.raises(PolicyError, match=r"has 1 video\(s\), the vlm policy reads images only"):
        policies["qwen3_vl"].encode(video_prompt("p", 1))


def test_pixel_limits_reach_the_processor_and_are_saved_with_it(tiny):
    model, processor = tiny("qwen3_vl")
    config = LanguagePolicyConfig(model="tiny", min_pixels=32 * 32, max_pixels=32 * 32)
    policy = VisionPolicy(model, processor, config)
    assert policy.encode(image_prompt("p", picture("red"))).media["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert processor.image_processor.size["longest_edge"] == 32 * 32


def test_thinking_reaches_the_chat_template(tiny):
    prompt = Prompt("p", [{"role": "user", "content": "hi"}])
    for thinking, text in ((True, "slow"), (False, "fast")):
        model, processor = tiny("qwen3_vl")
        policy = VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny", thinking=thinking))
        processor.chat_template = "{{ 'slow' if enable_thinking else 'fast' }}"
        assert processor.tokenizer.decode(policy.encode(prompt).ids) == text


def test_moving_to_the_device_where_tensors_are_copies_nothing(policies):
    media = policies["qwen3_vl"].encode(image_prompt("p", picture("red"))).media
    moved = to_device(media, torch.device("cpu"))
    assert moved.keys() == media.keys()
    assert all(moved[name] is tensor for name, tensor in media.items())


def test_a_processor_of_another_model_is_noticed_before_any_forward(tiny):
    model, processor = tiny()
    processor.image_processor.merge_size = 1  # of a model whose tower does not merge
    with pytest.raises(PolicyError, match=r"placeholders but .* features; processor and model do not belong together"):
        VisionPolicy(model, processor, LanguagePolicyConfig(model="tiny"))
