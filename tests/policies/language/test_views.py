"""Changed prompts: corrupted after the resize, keyed by the prompt, seen by the model; and Durian's entropy."""

import pytest
import torch

from mmrl.errors import ConfigError
from mmrl.policies.language.pixels import corrupted, patchify, unpatchify
from mmrl.policies.language.probes.spectrum import spectral_entropy, visual_entropy
from mmrl.policies.language.vision import VisionPolicy
from mmrl.policies.views import PIXEL_VIEWS, PixelScale, is_fresh
from mmrl.randomness import Key
from mmrl.stages import NEEDS, View
from tests.policies.language.scenes import image_prompt, mixed_prompts, picture

IMAGE_VIEWS = ("patch_black", "noise", "gray", "blur", "darken", "jpeg")


def frames_of(policy, entry, kind="image", index=0):
    """(F, 3, H, W) of one image of an encoding, 0 to 255."""
    name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    grids = entry.media[f"{kind}_grid_thw"]
    rows = entry.media[name].split(grids.prod(-1).tolist())[index]
    return policy.pixel_scales[kind].unnormalise(unpatchify(rows, grids[index], policy.family))


def shown(policy, prompt, view: View):
    return corrupted(policy.encode(prompt), view, Key(0, prompt=prompt.id), policy.family, policy.pixel_scales)


class TestPatchRows:
    def test_frames_rebuilt_from_rows_are_the_image(self, policies, family):
        image = picture("red")
        frames = frames_of(policies[family], policies[family].encode(image_prompt("p", image)))
        wanted = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
        assert frames.shape == (2, 3, 64, 64)
        assert torch.allclose(frames, wanted.float().expand(2, -1, -1, -1), atol=1e-3)

    def test_there_and_back(self, policies, family):
        policy = policies[family]
        entry = policy.encode(image_prompt("p", picture("red", (80, 48))))
        rows = entry.media["pixel_values"]
        assert torch.equal(
            patchify(unpatchify(rows, entry.media["image_grid_thw"][0], policy.family), policy.family), rows
        )

    def test_normalising_there_and_back(self):
        scale = PixelScale(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4]))
        pixels = torch.rand(2, 3, 4, 4) * 255
        assert torch.allclose(scale.unnormalise(scale.normalise(pixels)), pixels, atol=1e-3)


class TestPatchBlack:
    def test_shares_zero_one_and_between(self, policies):
        policy, prompt = policies["qwen3_vl"], image_prompt("p", picture("red", (128, 128)))
        untouched = policy.encode(prompt).media["pixel_values"]
        none = shown(policy, prompt, View.of("patch_black", share=0.0, size=8))
        assert torch.allclose(none.media["pixel_values"], untouched, atol=1e-5)
        black = frames_of(policy, shown(policy, prompt, View.of("patch_black", share=1.0, size=8)))
        assert black.abs().max() < 1e-3
        half = frames_of(policy, shown(policy, prompt, View.of("patch_black", share=0.5, size=8)))
        assert 0.4 < (half < 1e-3).all(1).float().mean() < 0.6

    def test_whole_squares_of_the_asked_size(self, policies):
        policy, prompt = policies["qwen3_vl"], image_prompt("p", picture("white"))
        half = frames_of(policy, shown(policy, prompt, View.of("patch_black", share=0.5, size=14)))
        cells = (half[0, 0, :56, :56] > 1).float().view(4, 14, 4, 14).mean((1, 3))
        assert set(cells.flatten().tolist()) == {0.0, 1.0}

    def test_an_image_stays_one_image(self, policies, family):
        """The processor repeats an image over the temporal patch; both copies lose the same squares."""
        for kind in IMAGE_VIEWS:
            frames = frames_of(
                policies[family], shown(policies[family], image_prompt("p", picture("red")), View.of(kind))
            )
            assert torch.equal(frames[0], frames[1])

    def test_keyed_by_prompt_and_repeatable(self, policies):
        policy, view = policies["qwen3_vl"], NEEDS["perturbed_log_probs"].under
        same = [shown(policy, image_prompt(name, picture("white")), view).media["pixel_values"] for name in "aab"]
        assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])

    def test_two_images_of_a_prompt_lose_different_squares(self, policies):
        policy, white = policies["qwen3_vl"], picture("white")
        rows = shown(policy, image_prompt("a", white, white), View.of("patch_black", size=8)).media["pixel_values"]
        assert not torch.equal(*rows.chunk(2))


class TestOtherCorruptions:
    frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255

    def test_gray_has_one_luminance(self):
        gray = PIXEL_VIEWS["gray"](self.frames, 2, Key(0).generator())
        assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 0], gray[:, 2])
        red = torch.zeros(1, 3, 2, 2)
        red[:, 0] = 255
        assert PIXEL_VIEWS["gray"](red, 1, Key(0).generator())[0, 0, 0, 0].item() == pytest.approx(76.245, abs=1e-3)

    def test_blur_keeps_the_mean_and_loses_contrast(self):
        blurred = PIXEL_VIEWS["blur"](self.frames, 2, Key(0).generator(), radius=2.0)
        assert blurred.mean().item() == pytest.approx(self.frames.mean().item(), rel=0.02)
        assert blurred.std() < 0.3 * self.frames.std()
        flat = torch.full((1, 3, 16, 16), 90.0)
        assert torch.allclose(PIXEL_VIEWS["blur"](flat, 1, Key(0).generator()), flat, atol=1e-3)

    def test_noise_has_the_asked_size(self):
        noisy = PIXEL_VIEWS["noise"](self.frames, 2, Key(0).generator(), std=20.0) - self.frames
        assert noisy.std().item() == pytest.approx(20.0, rel=0.05) and torch.allclose(noisy[0], noisy[1], atol=1e-3)

    def test_shuffle_keeps_the_frames_and_drop_blackens_whole_ones(self):
        shuffled = PIXEL_VIEWS["shuffle_frames"](self.frames, 1, Key(1).generator())
        sums = lambda x: sorted(x.sum((1, 2, 3)).tolist())  # noqa: E731
        assert sums(shuffled) == sums(self.frames) and not torch.equal(shuffled, self.frames)
        dropped = PIXEL_VIEWS["drop_frames"](self.frames, 1, Key(1).generator(), share=0.5)
        black = (dropped == 0).flatten(1).all(1)
        assert black.any() and torch.equal(dropped[~black], self.frames[~black])

    def test_darken_and_jpeg(self):
        assert torch.equal(PIXEL_VIEWS["darken"](self.frames, 2, Key(0).generator()), self.frames / 2)
        found = [PIXEL_VIEWS["degraded"](self.frames, 2, Key(k).generator()) for k in range(24)]
        dark, lossy_, blurred = (PIXEL_VIEWS[n](self.frames, 2, Key(0).generator()) for n in ("darken", "jpeg", "blur"))
        kinds = [[torch.equal(f, w) for w in (dark, lossy_, blurred)] for f in found]
        assert all(map(any, zip(*kinds, strict=True))), "each kind comes"
        assert any(not any(k) for k in kinds), "and noise"
        lossy = [PIXEL_VIEWS["jpeg"](self.frames, 2, Key(0).generator(), quality=q) for q in (5, 95)]
        errors = [(frames - self.frames).abs().mean() for frames in lossy]
        assert errors[0] > errors[1] > 0


@pytest.mark.parametrize("kind", IMAGE_VIEWS)
def test_a_view_changes_rows_with_images_only(policies, rolled, family, kind):
    policy, rollouts = policies[family], rolled[family]
    scored = policy.evaluate(rollouts, under=View.of(kind), weights="old").log_probs
    difference = (scored - rollouts.old_log_probs).abs().amax(1)
    without_image = rollouts.prompt == 2
    assert (difference[~without_image] > 1e-3).all() and (difference[without_image] < 1e-5).all()


def test_removed_media_make_another_shorter_prompt(policies, rolled, family):
    policy, rollouts = policies[family], rolled[family]
    view = NEEDS["media_free_log_probs"].under
    shorter = policy._shown(rollouts, view)
    assert all(not e.media and (e.token_types == 0).all() for e in shorter)
    assert [len(s) < len(e) for s, e in zip(shorter, rollouts.encoded, strict=True)] == [True, True, False, True]
    scored = policy.evaluate(rollouts, under=view, weights="old").log_probs
    text_only = mixed_prompts()[0]
    text_only.messages[0]["content"], text_only.images = text_only.messages[0]["content"][1:], []
    wanted = policy.encode(text_only)
    assert torch.equal(shorter[0].ids, wanted.ids)
    assert (scored - rollouts.old_log_probs).abs().amax(1)[:4].min() > 1e-2


FRESH, FROZEN = View.of("patch_black", size=8), View.of("patch_black", size=8, fresh=False)


def masked_rows(policy, rollouts, view):
    """The first image of each row's prompt, as `view` shows it to that row."""
    rows = rollouts.prompt_a_row() if is_fresh(view) else rollouts
    entries = policy._shown(rows, view)
    return [entries[p].media.get("pixel_values") for p in rows.prompt.tolist()]


def test_a_drawn_view_is_another_for_each_row_and_step_and_the_same_when_asked_again(policies, rolled):
    policy, rollouts = policies["qwen3_vl"], rolled["qwen3_vl"].index([0, 1, 2])
    first, again = (masked_rows(policy, rollouts, FRESH.at(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    later = masked_rows(policy, rollouts, FRESH.at(4))
    assert not any(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    alone = masked_rows(policy, rollouts.index([2]), FRESH.at(3))
    assert torch.equal(alone[0], first[2]), "by member, not by what else is in the batch"


def test_a_frozen_view_is_one_for_all_rows_and_steps(policies, rolled):
    policy, rollouts = policies["qwen3_vl"], rolled["qwen3_vl"].index([0, 1])
    one, other = masked_rows(policy, rollouts, FROZEN.at(3))
    assert torch.equal(one, other) and torch.equal(one, masked_rows(policy, rollouts, FROZEN.at(4))[0])


def test_rows_under_views_of_their_own_are_scored_as_if_alone(policies, rolled, family):
    policy, rollouts = policies[family], rolled[family]
    together = policy.evaluate(rollouts, under=FRESH.at(1), weights="old").log_probs
    alone = [policy.evaluate(rollouts.index([r]), under=FRESH.at(1), weights="old").log_probs for r in (0, 5)]
    for row, scored in zip((0, 5), alone, strict=True):
        assert torch.allclose(together[row], scored[0], atol=2e-5)


def test_only_views_that_draw_can_be_fresh(policies, rolled):
    with pytest.raises(ConfigError, match="unknown option 'fresh'"):
        policies["qwen3_vl"].evaluate(rolled["qwen3_vl"], under=View.of("gray", fresh=True))


def test_views_leave_the_record_untouched(policies, rolled, family):
    before = [e.media["pixel_values"].clone() for e in rolled[family].encoded if e.media]
    policies[family].evaluate(rolled[family], under=View.of("noise"), weights="old")
    after = [e.media["pixel_values"] for e in rolled[family].encoded if e.media]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_views_carry_gradient_when_current(policies, rolled):
    scored = policies["qwen3_vl"].evaluate(rolled["qwen3_vl"], under=View.of("gray"))
    assert scored.log_probs.requires_grad


def test_unknown_views_and_options_name_the_nearest(policies, rolled):
    policy, rollouts = policies["qwen3_vl"], rolled["qwen3_vl"]
    with pytest.raises(ConfigError, match="unknown view 'patch_blak'; did you mean 'patch_black'"):
        policy.evaluate(rollouts, under=View.of("patch_blak"))
    with pytest.raises(ConfigError, match="view 'noise': unknown option 'sdt'; did you mean 'std'"):
        policy.evaluate(rollouts, under=View.of("noise", sdt=1.0))
    assert "shuffle_frames" not in VisionPolicy.views


class TestVisualEntropy:
    def test_isotropic_rank_one_and_flat_features(self):
        """Durian: +-e1, +-e2 give log 2; one direction gives 0; equal or zero features give 0."""
        axes = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        assert spectral_entropy(axes).item() == pytest.approx(0.693147, abs=1e-6)
        assert spectral_entropy(torch.randn(30, 1) * torch.ones(1, 5)).item() == pytest.approx(0, abs=1e-6)
        assert spectral_entropy(torch.zeros(6, 3)) == spectral_entropy(torch.full((6, 3), 4.2)) == 0

    def test_both_sides_of_the_spectrum_agree(self):
        features = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
        padded = torch.cat([features, torch.zeros(12, 1)], 1)
        wide, tall = spectral_entropy(padded), spectral_entropy(torch.linalg.qr(padded.T).R.T)
        assert wide.item() == pytest.approx(tall.item(), abs=1e-5)

    def test_scale_and_shift_do_not_matter(self):
        features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
        assert spectral_entropy(3 * features + 7).item() == pytest.approx(spectral_entropy(features).item(), abs=1e-5)

    def test_one_value_per_prompt(self, policies, rolled, family):
        column = policies[family].evaluate(rolled[family], [NEEDS["visual_entropy"]], weights="old").columns
        values = column[NEEDS["visual_entropy"].key].view(4, 4)
        assert (values == values[:, :1]).all() and (values[[0, 1, 3], 0] > 0).all() and (values[2] == 0).all()

    def test_it_depends_on_the_image(self, policies, family):
        prompts = [image_prompt("p", picture(color)) for color in ("white", "red", "blue")]
        values = [visual_entropy(policies[family].inner, policies[family].encode(p)) for p in prompts]
        assert len({round(v, 4) for v in values}) == 3
