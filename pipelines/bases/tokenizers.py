"""Tokenizers of the tiny bases, trained on the spot from the words the worlds use.

Byte-level BPE, so any text can be encoded; a word, a number such as 625 or 1.5, and their forms with a leading
space are one token each, which keeps answers and their end token within a dozen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

WORDS = """
red green blue yellow purple orange cyan pink white black gray
circle square triangle cross diamond star shape dot object digit
circles squares triangles crosses diamonds stars shapes dots objects digits
top bottom left right center middle upper lower above below corner side row column cell
zero one two three four five six seven eight nine ten first second third last
is are was were do does did has have can count find give name tell say answer
appear appears appeared move moves moved moving come comes came show shows shown see seen turn turned
change changed happen happens happened visible start starts started end ends ended
a an the of in on at to from by with and or not no yes true false none
how many much what which where when who why that this these those it its there here
than then before after during between while for as up down
image picture background frame video clip box number color colour position direction place order event time seconds
interval largest smallest sum total each every all both only more less most same different big small word
please system user assistant you helpful
"""
CAPITALIZED = "How Which What Where When Who Is Are Does Do Did Count Find Give Name Answer In The A You"

_WORD = r" ?\d+(?:\.\d+)?| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"


def words() -> list[str]:
    """Every word that deserves its own token, and the numbers of the worlds' answers and time stamps."""
    numbers = [str(n) for n in range(101)] + [str(125 * n) for n in range(9)]
    tenths = [f"{n / 10:.1f}" for n in range(80)]
    return sorted({*WORDS.split(), *CAPITALIZED.split(), *numbers, *tenths})


def _train(texts: list[str], specials: Sequence[str]):
    """Byte-pair merges until every text is one token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(specials),
        vocab_size=8192,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_tokenizer(template: str, extra: Sequence[str] = ()):
    """The tokenizer of the tiny Qwen-VL bases: about 1,300 tokens, `<|im_end|>` ends a turn.

    extra  further pieces that deserve a token, as they stand and with a leading space
    """
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    known = [*words(), *extra]
    texts = list(chain(known, (f" {word}" for word in known)))
    tokenizer = _train(texts, specials=[*CHAT_TOKENS, *VISION_TOKENS])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *VISION_TOKENS],
        padding_side="left",
        model_max_length=4096,
        chat_template=template,
    )


def clip_tokenizer(max_length: int, extra: Sequence[str] = ()):
    """A `CLIPTokenizer` over the same words and `extra` ones, lower case; pads with its end token.

    The merges are spelled out word by word: training them would break ties in another order in each process.
    """
    from transformers import CLIPTokenizer

    lower = sorted({word.lower() for word in (*words(), *extra) if word.isalpha()})
    merges = _merges(lower)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges in order, such that each text with its end-of-word mark becomes one piece."""
    ranks: dict[tuple[str, str], int] = {}
    for text in texts:
        pieces = [*text[:-1], f"{text[-1]}</w>"]
        while len(pieces) > 1:
            known = [(ranks[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in ranks]
            place = min(known)[1] if known else 0
            ranks.setdefault((pieces[place], pieces[place + 1]), len(ranks))
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return list(ranks)


def t5_tokenizer(max_length: int, extra: Sequence[str] = ()):
    """A `T5Tokenizer` over the same words and `extra` ones, lower case; letters and digits catch every other word."""
    from transformers import T5Tokenizer

    lower = sorted({word.lower() for word in (*words(), *extra) if word.isalpha()})
    characters = "▁abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"
    pieces = [(f"▁{word}", -1.0) for word in lower] + [(character, -10.0) for character in characters]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + pieces, extra_ids=0, model_max_length=max_length)
