"""Mixed-R1 (arXiv 2505.24164): matching, charts, boxes by their rules, open-ended text by BMAS, and format.

BMAS compares two texts by the vectors that a language model's embedding table has for their tokens: each token takes
its best partner on the other side, and the means of both directions are averaged. Only the table of a model is read,
never the model. What BMAS gives to text that shares no meaningful word with the reference would reward noise: it is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.accuracy import check_row, judge
from mmrl.rewards.clip import TINY, load_scorer
from mmrl.rewards.distances import shares_content, words
from mmrl.rewards.format import think_answer
from mmrl.rewards.kinds.prose import stem
from mmrl.rewards.registry import checks, reward
from mmrl.rewards.tasks import find_task

OPEN = ("open_ended", "caption")
MOST_TOKENS = 512
NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
Embed = Callable[[Sequence[str]], list[Any]]


def bmas(first: Any, second: Any) -> float:
    """.5 (mean over first of the best cosine in second + the same the other way); first (n, d), second (m, d)."""
    a, b = (each / each.norm(dim=-1, keepdim=True).clamp_min(1e-12) for each in (first.float(), second.float()))
    table = a @ b.T
    return float(0.5 * (table.max(1).values.mean() + table.max(0).values.mean()))


@lru_cache(maxsize=2)
def embedder(model: str) -> Embed:
    """From texts to (tokens, d) tensors. `model`: the shipped tiny encoder, or a folder of a model."""
    if model == TINY:
        scorer = load_scorer(TINY)
        table = scorer.model.token_embedding.weight
        tokenize = lambda text: [t for t in scorer.tokenizer([text])[0].tolist() if t][1:-1]  # noqa: E731
        return lambda texts: [table[tokenize(text)[:MOST_TOKENS]] for text in texts]
    from tokenizers import Tokenizer

    folder = Path(model).expanduser()
    if not (folder / "tokenizer.json").is_file():
        raise RewardError(f"bmas: {model!r} is no folder with tokenizer.json and safetensors")
    table, tokenizer = _table(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [table[tokenizer.encode(text, add_special_tokens=False).ids[:MOST_TOKENS]] for text in texts]


def _table(folder: Path) -> Any:
    """The embedding table of a checkpoint, read by itself."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            name = next((key for key in tensors.keys() if key.endswith(NAMES)), None)  # noqa: SIM118
            if name:
                return tensors.get_tensor(name)
    raise RewardError(f"bmas: no embedding table in {folder}; looked for {', '.join(NAMES)}")


def alike(embed: Embed, said: str, right: str) -> float:
    """BMAS of two texts, at least 0; 0 where they share no meaningful word."""
    first, second = ([stem(word) for word in words(text)] for text in (said, right))
    if not shares_content(first, second):
        return 0.0
    a, b = embed([said, right])
    return min(1.0, max(0.0, bmas(a, b))) if len(a) and len(b) else 0.0


@reward(
    "bmas",
    check=checks(answers.alternatives),
    isolated=False,
    method="mixed_r1",
    paper="Mixed-R1, arXiv 2505.24164",
    formula=".5 (mean_i max_j cos(u_i, v_j) + mean_j max_i cos(u_i, v_j)) over the embedding table's token vectors",
    confidence="partly",
)
def bmas_reward(completions, solution, *, model: str = TINY) -> list[float]:
    """Free text by its tokens' embeddings: each takes its best partner in the reference, and the other way round."""
    embed = embedder(model)
    said = [answers.without_questions(answers.extract(completion)) for completion in completions]
    return [max(alike(embed, s, r) for r in answers.alternatives(t)) for s, t in zip(said, solution, strict=True)]


@reward(
    "mixed_r1",
    success=True,
    check=check_row,
    isolated=False,
    paper="Mixed-R1, arXiv 2505.24164",
    formula="accuracy by task (match, chart within 5 %, IoU, BMAS for open-ended) + [thought, then answer]",
    confidence="partly",
)
def mixed_r1(completions, solution, task, options=None, *, model: str = TINY) -> list[dict[str, float]]:
    """Mixed-R1's router: `accuracy` by task, but BMAS for open-ended text, plus the format."""
    texts = options or [None] * len(completions)
    scores = []
    for completion, truth, name, choices in zip(completions, solution, task, texts, strict=True):
        if find_task(name) in [find_task(each) for each in OPEN]:
            value = bmas_reward([completion], [truth], model=model)[0]
        else:
            value = judge(completion, truth, name, options=choices)
        form = float(think_answer(answers.normalise(completion)))
        scores.append({"score": value + form, "success": float(value >= 0.5), "accuracy": value, "format": form})
    return scores
