"""Rewards of edits: what was asked, what was kept, how it looks. Edit-GRPO (VIVA) and MSGRPO (UniRef-Image-Edit).

Both read `reference`, the condition images of a row. Similarities are those of a CLIP that `model` and `pretrained`
name as for `clip_score`; the default is the tiny one that ships, which knows only the toy world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mmrl import plugins
from mmrl.errors import RewardError
from mmrl.rewards.clip import TINY, Scorer, load_scorer
from mmrl.rewards.pictures import is_image
from mmrl.rewards.registry import registered, reward

FRAMES = 8
JUDGED = ("integration", "consistency", "quality")
BEST = 10.0
"""Of MSGRPO's judge."""


def frames_of(output: Any) -> list[Any]:
    """A picture as one frame, a film as at most 8, evenly spread."""
    if is_image(output):
        return [output]
    frames = list(output)
    if not frames or not all(map(is_image, frames)):
        raise RewardError(f"edits are pictures or lists of them, got a {type(output).__name__}")
    count = min(FRAMES, len(frames))
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def image_features(scorer: Scorer, output: Any) -> Any:
    """(F, D) of unit length."""
    import torch

    with torch.inference_mode():
        pixels = torch.stack([scorer.transform(frame.convert("RGB")) for frame in frames_of(output)])
        return scorer.model.encode_image(pixels.to(scorer.device), normalize=True)


def text_features(scorer: Scorer, text: str) -> Any:
    import torch

    with torch.inference_mode():
        return scorer.model.encode_text(scorer.tokenizer([text]).to(scorer.device), normalize=True)


def like(a: Any, b: Any) -> float:
    """Mean cosine of frames: one by one where there are equally many, else all with all."""
    return float((a * b).sum(-1).mean()) if len(a) == len(b) else float((a @ b.T).mean())


def sources_of(reference: Any) -> list[Any]:
    """The condition images of a row: one or several."""
    given = list(reference) if isinstance(reference, Sequence) else [reference]
    if not given or not all(map(is_image, given)):
        raise RewardError(f"edits are compared with the row's condition images; got {type(reference).__name__}")
    return given


@reward(
    "viva_edit_grpo",
    isolated=False,
    paper="VIVA: instruction video editing with Edit-GRPO, arXiv 2512.16906",
    formula="w_if [C(edit, t_edit) - C(edit, t_src)] + w_sp C(src, edit) + w_ps P(edit, t_edit), C a CLIP cosine, P a "
    "preference score",
    confidence="partly",
)
def viva_edit_grpo(
    completions, reference, edited_caption, source_caption, *, following: float = 1.0, preserving: float = 1.0,
    preference: float = 1.0, scorer: str = "", gate: bool = False, model: str = TINY, pretrained: str | None = None,
    device: str | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """An edit by what it follows, what it preserves, and how it is liked; the parts are reported, too.

    following, preserving, preference  weights: the paper's are not known, 1 each is ours. A copy of the source has the
                 best preserving: with these weights it loses by little, so normalise the parts apart with
                 `objective.advantage=gdpo_decoupled`, or set `gate`
    scorer  a registered reward of pictures and `caption` for P, such as pickscore; none: CLIP's cosine with t_edit
    gate    preserving counts only where the edit is nearer to t_edit than to t_src (ours)

    Columns: `edited_caption` and `source_caption` describe the result and the source. Source: two sets of public paper
    notes that quote equations 4 to 7.
    """
    clip = load_scorer(model, pretrained, device)
    liked = _liked(scorer, completions, edited_caption)
    scores = []
    rows = zip(completions, reference, edited_caption, source_caption, liked, strict=True)
    for output, source, after, before, given in rows:
        found = image_features(clip, output)
        asked = like(found, text_features(clip, after))
        parts = {
            "following": asked - like(found, text_features(clip, before)),
            "preserving": like(image_features(clip, sources_of(source)[0]), found),
            "preference": asked if given is None else given,
        }
        kept = parts["preserving"] if not gate or parts["following"] > 0 else 0.0
        total = following * parts["following"] + preserving * kept + preference * parts["preference"]
        scores.append({"score": total, **parts})
    return scores


def _liked(name: str, completions: Sequence[Any], captions: Sequence[str]) -> list[float | None]:
    """P of each output, the mean over its frames; None without a scorer."""
    if not name:
        return [None] * len(completions)
    if name not in registered():
        raise RewardError(f"viva_edit_grpo: scorer {name!r} is no registered reward")
    score = registered()[name].function
    texts = list(captions)
    films = [frames_of(output) for output in completions]
    flat = [(frame, text) for frames, text in zip(films, texts, strict=True) for frame in frames]
    said = iter(score(prompts=[t for _, t in flat], completions=[f for f, _ in flat], caption=[t for _, t in flat]))
    return [fmean(float(next(said)) for _ in frames) for frames in films]


def check_judge(row: Mapping[str, Any], *, judge: str = "", **_: Any) -> None:
    """Raise RewardError for a judge that is not there."""
    if not plugins.is_reference(judge):
        raise RewardError(
            f"uniref_msgrpo: judge {judge!r}; name who judges edits: options: {{judge: file.py:function}}"
        )
    plugins.load(judge, "uniref_msgrpo's judge")


@reward(
    "uniref_msgrpo",
    isolated=False,
    check=check_judge,
    paper="UniRef-Image-Edit: multi-source GRPO, arXiv 2602.14186",
    formula="mean of integration, consistency and quality, 0 to 10 each, by a judge; + lambda (mean_k c_k + min_k c_k) "
    "/ 2, c_k how like the output is to source k",
    confidence="partly",
)
def uniref_msgrpo(
    completions, reference, *, judge: str = "", weights: Sequence[float] = (1.0, 1.0, 1.0), least: float = 0.0,
    model: str = TINY, pretrained: str | None = None, device: str | None = None, **columns,
) -> list[dict[str, float]]:  # fmt: skip
    """An edit from several sources by a judge's three scores, as a share of 10; the weights are ours, equal.

    judge   file.py:function, called as f(outputs, sources) with the condition images of each row; it returns for each
            a dictionary of integration, consistency and quality, 0 to 10
    least   lambda (ours): the likeness to each source, half its mean and half its least, so that none can be left out

    Source: public paper notes with equations 5 to 9; the judge's weights are not published.
    """
    sources = [sources_of(each) for each in reference]
    said = plugins.load(judge, "uniref_msgrpo's judge")(list(completions), sources)
    if len(said) != len(completions):
        raise ValueError(f"the judge gave {len(said)} answers for {len(completions)} outputs")
    clip = load_scorer(model, pretrained, device) if least else None
    scores = []
    for output, given, answer in zip(completions, sources, said, strict=True):
        parts = {name: _judged(answer, name) for name in JUDGED}
        total = sum(w * p for w, p in zip(weights, parts.values(), strict=True)) / sum(weights)
        if clip is not None:
            found = image_features(clip, output)
            likeness = [like(image_features(clip, source), found) for source in given]
            total += least * shared_likeness(likeness)
        scores.append({"score": total, **parts})
    return scores


def shared_likeness(each: Sequence[float]) -> float:
    """Half the mean and half the least: (.9, .1) is worth less than (.5, .5)."""
    return (fmean(each) + min(each)) / 2


def _judged(answer: Mapping[str, Any], name: str) -> float:
    value = answer.get(name)
    if not isinstance(value, int | float) or not 0 <= value <= BEST:
        raise ValueError(f"the judge said {name}={value!r}; expected 0 to {BEST:g}")
    return value / BEST
