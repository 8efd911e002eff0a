r"""Numbers as people and LaTeX write them, rewritten with digits and a few signs, for `mmrl.rewards.numbers`.

tidy(r"\frac{1}{2}")          "((1)/(2))"
tidy("minus twenty-three")    "-23"
tidy("3.2 million")           "3200000.0"
tidy("1\N{VULGAR FRACTION ONE HALF}")   "1 1/2"
"""

from __future__ import annotations

import re
import unicodedata

# fmt: off
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = {
    "hundred": 100, "dozen": 12, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "mio": 10**6, "mln": 10**6,
    "crore": 10**7, "billion": 10**9, "bn": 10**9, "trillion": 10**12,
}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}
# fmt: on
_CARDINALS = {word: i for i, word in enumerate(_UNITS)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_ATTACHED = {
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "mio": 10**6,
    "B": 10**9,
    "bn": 10**9,
    "Bn": 10**9,
    "mn": 10**6,
    "mln": 10**6,
}
DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\u02d7\u2796"), "-")
_SUPERSCRIPTS = {ord(a): b for a, b in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁽⁾", "0123456789-+()", strict=True)}
_CURRENCIES = re.compile(r"US\$|\\\$|[$€£¥₹₩₽]")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right|displaystyle|mathstrut|[bB]igg?[lr]?)(?![a-zA-Z])|~")
_DRESS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|mathsf|operatorname|mbox)\s*\{([^{}]*)\}")
_COMMANDS = {
    r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\pi": "π", r"\%": "%", r"\degree": " degrees ",
    r"\approx": "≈", r"\sim": "≈", r"\leq": "≤", r"\geq": "≥", r"\le": "≤", r"\ge": "≥", r"\lt": "<", r"\gt": ">",
    r"\infty": " infinity ", r"\neq": "≠", r"\ne": "≠", r"\pm": "±", r"\minus": "-",
}  # fmt: skip
_COMMAND = re.compile("|".join(re.escape(c) + r"(?![a-zA-Z])" if c != r"\%" else r"\\%" for c in _COMMANDS))
_GROUP = r"\{([^{}]*)\}"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*(?:{_GROUP}|(\d))\s*(?:{_GROUP}|(\d))")
_ROOT = re.compile(rf"\\sqrt\s*(?:\[([^\]]*)\])?\s*(?:{_GROUP}|(\d))")
_EXPONENT = re.compile(rf"\^\s*{_GROUP}")
_NUM = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+,\d{1,2}(?!\d)|\d+(?:\.\d+)?|\.\d+)"
NUMBER_WORD = rf"(?:{'|'.join(sorted((*_CARDINALS, *SCALES), key=len, reverse=True))})s?\b"
_RUN = re.compile(
    rf"(?<![\w./])(?<!/\s)(?:{_NUM}(?=\s*(?:{'|'.join(SCALES)})s?\b)|\ba(?=\s+(?:hundred|dozen"
    rf"|thousand|million|billion)\b)|\b{NUMBER_WORD})"
    rf"(?:[\s-]+(?:and\s+)?(?:{NUMBER_WORD}|{_NUM}(?=\s*(?:{'|'.join(SCALES)})s?\b)))*",
    re.IGNORECASE,
)
_ONE_BEFORE = re.compile(
    r"(?:^|[:=,(]|\b(?:is|are|be|was|were|has|have|and|plus|or|exactly|only|just|about|equals|least|see|count))\s*$",
    re.I,
)
_ONE_AFTER = re.compile(
    r"\s*(?:$|[.,!;)]|(?!of\b|can\b|could\b|who\b|that\b|which\b|might\b|may\b|must\b|should\b|would\b"
    r"|is\b|has\b|in\b|on\b|with\b)[a-z%])",
    re.I,
)
_PARTS_RE = re.compile(
    rf"\b(?:(\d+(?:\.\d+)?)\s+(?:and\s+)?)?(a|an|\d+)?(?:\s+|-|(?<=\s)|^"
    rf"|\b)({'|'.join(_PARTS)})(s?)\b(?!\s+(?:past|to)\b)", re.I
)  # fmt: skip


_SCALED_PART = re.compile(
    rf"(?<![\w./])(?:(\d+)\s+)?(\d+)\s*/\s*([1-9]\d*)\s+(?:a\s+)?({'|'.join(SCALES)})s?\b", re.IGNORECASE
)


def tidy(text: str) -> str:
    """One line with ASCII dashes, `^(...)` for raised digits, `/` for fractions, `*` for products, no currency."""
    text = text.translate(DASHES).replace("{,}", ",").replace("\u2215", "/").replace("\u2044", "/")
    text = re.sub(r"(?<=\d)[~\u00a0\u2009\u202f'\u2019_](?=\d{3}(?!\d))", ",", text)
    text = _vulgar(text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁽⁾]+", lambda m: f"^({m[0].translate(_SUPERSCRIPTS)})", text)
    text = unicodedata.normalize("NFKC", text)
    text = _latex(text)
    text = re.sub(r"(?<=\d)\s*\*\*\s*(?=[-(]?\d)", "^", text)  # 10**6, before ** is taken for bold
    text = _CURRENCIES.sub("", re.sub(r"\*\*|__|`", "", text))
    text = re.sub(r"[×·∙⋅]|(?<=\d)\s*[xX]\s*(?=\d)", "*", text)
    text = re.sub(r"\b(?:minus|negative)\s+", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"\bper\s?cent\b|\bpercent(?:age points?)?\b|\bpct\b", "%", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:sqrt|square root of)\b", "√", re.sub(r"\bpi\b|(?<=\d)pi\b", "π", text))
    return _words(" ".join(text.split()))


def _vulgar(text: str) -> str:
    made = []
    for character in text:
        if unicodedata.category(character) == "No" and "FRACTION" in unicodedata.name(character, ""):
            parts = unicodedata.normalize("NFKC", character).replace("\u2044", "/")
            made.append(" " + parts + " ")
        else:
            made.append(character)
    return "".join(made)


def _latex(text: str) -> str:
    if "\\" in text:
        text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degrees ", text)
        text = _COMMAND.sub(lambda m: _COMMANDS[m[0]], _DRESS.sub(r" \1 ", _SPACES.sub(" ", text)))
    for _ in range(20):
        changed = _EXPONENT.sub(r"^(\1)", _ROOT.sub(_rooted, _FRACTION.sub(_divided, text)))
        if changed == text:
            break
        text = changed
    return text.replace("{", " ").replace("}", " ").replace("°", " degrees ")


def _divided(match: re.Match) -> str:
    top, bottom = (match[1] if match[1] is not None else match[2]), (match[3] if match[3] is not None else match[4])
    before = match.string[: match.start()].rstrip()
    if before[-1:].isdigit() and top.strip().isdigit() and bottom.strip().isdigit():
        return f" {top.strip()}/{bottom.strip()}"  # a mixed number
    return f"(({top})/({bottom}))"


def _rooted(match: re.Match) -> str:
    inner = match[2] if match[2] is not None else match[3]
    degree = (match[1] or "2").strip()
    return f"√({inner})" if degree == "2" else f"(({inner})^(1/{degree}))" if degree.isdigit() else match[0]


# -------------------------------------------------------------------------------------------------- number words
def _words(text: str) -> str:
    text = re.sub(
        r"\bhalf a (?=(?:dozen|hundred|thousand|million|billion|trillion)\b)", "1/2 ", text, flags=re.IGNORECASE
    )
    text = re.sub(rf"({_NUM})\s?(k|K|M|B|bn|Bn|mn|mln|mio)(?![\w^])", _scaled, text)
    text = _RUN.sub(_counted, text)
    text = re.sub(r"(?<=\d)\s+point((?:\s+\d)+)\b", lambda m: "." + m[1].replace(" ", ""), text)
    return _SCALED_PART.sub(_scaled_part, _PARTS_RE.sub(_parted, text))


def _scaled_part(match: re.Match) -> str:
    """ "1/2 million", "1 1/2 million"."""
    value = (float(match[1] or 0) + float(match[2]) / float(match[3])) * SCALES[match[4].lower()]
    return _shown(value)


def _scaled(match: re.Match) -> str:
    return _shown(_float(match[1]) * _ATTACHED[match[2]])


def _float(digits: str) -> float:
    return float(digits.replace(",", "." if re.fullmatch(r"\d+,\d{1,2}", digits) else ""))


def _shown(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e300 else repr(value)


def _counted(match: re.Match) -> str:
    """The digits of a run of number words; several numbers in a row stay several."""
    run = match[0]
    if run.lower().rstrip("s") in SCALES and run.lower().endswith("s"):
        return run  # "hundreds of": no number
    if run.lower() == "one" and not _is_counted(match):
        return run
    words = re.findall(rf"{_NUM}|[a-z]+", run.lower())
    if words and words[0] in SCALES and len(words) == 1 and match.string[match.start() - 1 : match.start()] != "-":
        return run
    return " ".join(map(_shown, _sums([word for word in words if word != "and"])))


def _is_counted(match: re.Match) -> bool:
    """Whether "one" counts something: "one circle", "it is one", but not "which one", "one of them"."""
    start, end = match.span()
    before, after = ("." if start > 30 else "") + match.string[max(start - 30, 0) : start], match.string[end : end + 30]
    if re.match(r"[\s-]*(?:%|" + "|".join(_PARTS) + r")\b", after, re.IGNORECASE) or after.lstrip().startswith("%"):
        return True
    return bool((_ONE_BEFORE.search(before) or before.rstrip().endswith("-")) and _ONE_AFTER.match(after))


def _sums(words: list[str]) -> list[float]:
    found: list[float] = []
    total, current, last, scale = 0.0, 0.0, 0.0, float("inf")
    started = False

    def close() -> None:
        nonlocal total, current, started, scale, last
        if started:
            found.append(total + current)
        total, current, last, scale, started = 0.0, 0.0, 0.0, float("inf"), False

    for word in words:
        singular = word if word in SCALES or word in _CARDINALS else word.rstrip("s")
        if singular in SCALES:
            factor = SCALES[singular]
            current = (current if started and current else 1.0) * factor
            if factor >= 1000:
                if factor >= scale:  # "two thousand three million" is no number
                    return [float("nan")]
                total, current, scale = total + current, 0.0, factor
            last = factor
        else:
            value = 1.0 if word == "a" else float(_CARDINALS.get(singular, -1))
            value = _float(word) if value < 0 else value
            fits = not started or last >= 100 or (20 <= last < 100 and 0 < value < 10)
            if not fits:
                close()
            current, last = current + value, value if value < 100 else 99.5
        started = True
    close()
    return found


def _parted(match: re.Match) -> str:
    """ "two thirds", "a half", "1 and a half", "three quarters"; an ordinal ("the third") stays a word."""
    whole, count, part = match[1], match[2], match[3].lower()
    if count is None and whole is not None:  # "2 thirds": the whole is the count
        whole, count = None, whole
    if count is None and part != "half":
        return match[0]
    if count in ("a", "an") and whole is None and not match[4] and part not in ("half", "quarter", "third"):
        return match[0]  # "a tenth" may be an ordinal
    top = 1.0 if count in (None, "a", "an") else float(count)
    share = f"{_shown(top)}/{_PARTS[part]}"
    return f" {whole} {share}" if whole is not None else f" {share}"
