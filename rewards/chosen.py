"""Which option an answer chooses: what it finally states, not what it mentions first or last.

A text that goes through the options chooses none of them by that: a statement does ("the answer is B", "B is
correct", a last line "B"), and where there is none, the only option mentioned, not denied and not merely held possible.
Two different statements count as the later one only after a word that turns ("but", "wait", "so"), and what is taken
back is denied: "B, no, C" is C. "A or B", "could be C" and "maybe C" choose nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mmrl.rewards import answers, phrases
from mmrl.rewards.booleans import OF_A_NOUN
from mmrl.rewards.languages import stated as in_words
from mmrl.rewards.modifiers import another
from mmrl.rewards.numbers import number
from mmrl.rewards.options import Options, comparable, label_in
from mmrl.rewards.phrases import BOLD, FIRST, HAN, KNOWN, MENTION, OTHER

LONGEST = 8000  # the last characters are read: a final answer stands at the end
SHORT = 200  # characters of a text in which one mention without a statement is an answer
MOST_MENTIONS = 200
LABELS = ("brackets", "square", "closed", "after", "small", "opening", "bare")
_NAMED_SO = ("answer", "answers", "final_answer", "choice", "choices", "options", "selected")
_WIDE = {0x2212: "-", 0x3001: ",", 0xFF1A: ":", 0xFF0C: ",", 0x3002: ".", 0xFF08: "(", 0xFF09: ")"} | {
    0xFF21 + i: 0x41 + i for i in range(26)
}
_QUOTED = {0x3010: "[", 0x3011: "]", 0x300C: "[", 0x300D: "]", 0x300E: "[", 0x300F: "]"}
_SCRIPT_EDGE = re.compile(rf"(?<=[{HAN}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{HAN}])")
_PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
_PLACED = re.compile(
    rf"\s*(?:(?:it is|it's|the answer is)\s+)?(?:the )?"
    rf"(?:({'|'.join(_PLACES)}) (?:option|choice)|option #?(\d))\s*\.?\s*",
    re.IGNORECASE,
)
"""`The second option`."""
_EXPLANATION = re.compile(r"\W*(?:explanation|reason(?:ing)?|rationale|justification|because)\b", re.IGNORECASE)
_DIGIT_EDGE = (r"(?<![\w.,/\u2212-])(?<!\d:)", r"(?![\w/%-]|[.,:]\d)")
_ARTICLE = re.compile(r"^(?:an?|the)\\ (?=\w{2})", re.IGNORECASE)
_ARTICLE_FORMS = (
    r"(?:(?:an?|the)\s+|(?<![^.,;:!?(\n\u2026-]\s)(?<![^\s])|(?<=\bor\s)|(?<=\bnot\s)|(?<=\bis\s)|(?<=\bno\s))"
)
_ANSWERED = re.compile(r"\?\s*(?=(?:yes|no|nope|correct|right)\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """An option named in a text: where, which ("" for what no option is), and how: denied ("not B"), held possible
    ("maybe B", "A or B"), stated ("the answer is B", "wait, B"), or leaned to ("it is B")."""

    place: int
    label: str
    denied: bool
    possible: bool
    stated: bool
    leaning: bool


def chosen(text: str, options: Options) -> str | None:
    """The label an answer chooses, or None."""
    return _chosen(text, options) or None


def _chosen(text: str, options: Options) -> str | None:
    text = in_words(text.strip()[-LONGEST:])
    dressed = answers.undollar(answers.bare(text)).translate(_QUOTED)
    label, spelled = label_in(dressed, options), options.with_text(dressed)
    if label and not label[1]:
        return label[0]
    if spelled:
        return spelled[0] if len(spelled) == 1 else None
    if label and comparable(label[1]) and (others := options.with_text(label[1])):
        return label[0] if label[0] in others else None
    if first := _explained(text, options):
        return first
    if placed := _PLACED.fullmatch(dressed):
        place = _PLACES.index(placed[1].lower()) if placed[1] else int(placed[2]) - 1
        return options.labels[place] if place < len(options.labels) else None
    text = phrases.NO_OTHER.sub("must be", text)
    marked = mark(answers.without_questions(_ANSWERED.sub(": ", text)), options)
    found = mentions(marked, options)
    if not found:
        return _counted(text, options)
    if len(found) > MOST_MENTIONS:
        return None
    if label and not _is_denial(label[1]) and {each.label for each in found} == {label[0]}:
        return label[0]
    said = _said(found, marked)
    if said:
        value = answers.settled(said, marked)
        return None if _is_hedged(found, marked, value, said[-1][0]) else value
    plain = [each for each in found if not each.denied and not each.possible]
    left = {each.label for each in plain}
    if len(left) != 1 or len(marked) > SHORT or phrases.NO_IDEA.search(text):
        return None
    weighed = [each for each in found if each.possible and not each.denied]
    if any(each.place > plain[-1].place for each in weighed) or _is_doubted(marked, weighed, plain[-1].place):
        return None
    return left.pop()


def _counted(text: str, options: Options) -> str | None:
    """The only option whose number a text gives in other words: `sixteen` for 16."""
    values = [number(each) for each in options.texts]
    said = number(text) if values and None not in values and not re.search(r"\d", text) else None
    same = [label for label, each in zip(options.labels, values, strict=False) if said is not None and each == said]
    return same[0] if len(same) == 1 else None


def _explained(text: str, options: Options) -> str | None:
    """The letter that stands alone in the first line, where all that follows is its explanation."""
    line, _, rest = text.partition("\n")
    label = label_in(answers.bare(line), options) if _EXPLANATION.match(rest) else None
    taken_back = answers.statements(rest) or re.search(answers.TAKEN_BACK, rest, re.IGNORECASE)
    return label[0] if label and not label[1] and not taken_back else None


def _is_doubted(marked: str, weighed: list[Mention], place: int) -> bool:
    """Whether a text doubts what it names: "either", "maybe", "if" of the mention itself, not of what it weighed."""
    turn = max(marked.rfind(" but ", 0, place), 0)
    start = max((each.place + 1 for each in weighed if each.place < place), default=0)
    return bool(phrases.DOUBT.search(marked, max(start, turn)) or phrases.IF.search(marked, turn))


def _is_hedged(found: list[Mention], marked: str, value: str | None, after: int) -> bool:
    """Whether another option is held possible after the last statement: "B, but it could be C"."""
    others = [each for each in found if each.place > after and each.label != value and not each.denied]
    return any(
        each.possible or phrases.POSSIBLY.search(marked[max(each.place - 40, 0) : each.place]) for each in others
    )


def _is_denial(rest: str) -> bool:
    return bool(phrases.DENIED.match(" " + rest)) or bool(phrases.DOUBT.search(rest))


def several(text: str, options: Options) -> frozenset[str]:
    """All options an answer chooses: "A, C", "AC", "(A) and (C)", ["A", "C"], or the texts of options."""
    text = _SIDE_BY_SIDE.sub(r"\1, ", _ASIDE.sub(" ", in_words(text)))
    if (judged := _judged(text, options)) is not None:
        return judged
    listed = listed_options(_CALLED.sub("", text), options)
    if listed is not None:
        return listed
    marked = mark(answers.without_questions(text[-LONGEST:]), options)
    found = mentions(marked, options)
    if not found or len(found) > MOST_MENTIONS:
        return frozenset()
    stated = [each for each in found if each.stated and not each.denied]
    if any(each.possible for each in (stated or found) if not each.denied):
        return frozenset()  # "A or C", "A, possibly C"
    if stated:
        last = [each for each in stated if _in_last_statement(each, stated, marked)]
        return frozenset(each.label for each in last)
    if phrases.DOUBT.search(marked) or len(marked) > 2 * SHORT:
        return frozenset()
    return frozenset(each.label for each in found if not each.denied)


_CALLED = re.compile(
    r"^\s*(?:the )?(?:(?:correct|right|true) )?(?:options?|choices?|letters?|statements?|answers?)"
    r"\s*(?:is|are)?\s*:?\s+(?=[\[(A-Z])", re.IGNORECASE
)  # fmt: skip
_ASIDE = re.compile(r"\(\s*not\s+[^()\n]{1,30}\)", re.IGNORECASE)
"""`A, C (not B)`."""
_SIDE_BY_SIDE = re.compile(r"([(\[][A-Z][)\]])\s*(?=[(\[][A-Z][)\]])")
"""`(A)(C)`."""
_JUDGED = re.compile(r"\W*([A-Z])\W*\s*(?:is\s+)?(yes|no|true|false|correct|incorrect|right|wrong)\W*", re.IGNORECASE)
"""`A: yes`, a line for each option."""


def _judged(text: str, options: Options) -> frozenset[str] | None:
    """The options that are said to be right where each has a line of its own; None for any other text."""
    text = _MARKED.sub(lambda m: f"{m[2]}: {'yes' if m[1] in _TICKS else 'no'}", text)
    lines = [_JUDGED.fullmatch(line) for line in re.split(r"[\n;]|(?<=\w)[,.]\s", text.strip()) if line.strip()]
    labels = [match[1].upper() for match in lines if match]
    if len(lines) < 2 or not all(lines) or len(set(labels)) < len(labels) or not set(labels) <= set(options.labels):
        return None
    verdicts = [match[2].lower() for match in lines if match]
    return frozenset(label for label, said in zip(labels, verdicts, strict=True) if said in _RIGHT)


_TICKS = "\u2713\u2714\u2705\u2611"
_MARKED = re.compile(rf"^\s*([{_TICKS}\u2717\u2718\u274c\u2612\u00d7])\ufe0f?\s*([A-Z])\b[.)]?\s*$", re.MULTILINE)
_RIGHT = ("yes", "true", "correct", "right")


def _in_last_statement(each: Mention, stated: list[Mention], text: str) -> bool:
    """After a turn ("wait", "so"), only what is stated later counts."""
    turn = None
    for match in re.finditer(
        r"\b(?:wait|actually|no,|sorry|correction|final|therefore|so|thus|hence)\b", text, re.IGNORECASE
    ):
        if match.end() <= stated[-1].place:
            turn = match.start()
    return turn is None or each.place > turn


def listed_options(text: str, options: Options) -> frozenset[str] | None:
    """The options of a text that is a list of them and nothing else; None for any other text."""
    text = re.sub(r"^(?:正确)?答案(?:是|为|:)*\s*", "", answers.bare(text).translate(_WIDE).strip())
    if len(text) > 10 * SHORT:
        return None
    value = answers.json_value(text)
    if isinstance(value, dict) and len(found := [v for k, v in value.items() if str(k).lower() in _NAMED_SO]) == 1:
        return listed_options(", ".join(map(str, found[0])) if isinstance(found[0], list) else str(found[0]), options)
    if isinstance(value, list) and text.startswith("[") and text.endswith("]"):
        items = [str(each) for each in value]
    else:
        compact = text.strip("()[]{}. ")
        if (
            re.fullmatch(r"[A-Z]{1,26}", compact)
            and len(set(compact)) == len(compact)
            and set(compact) <= set(options.labels)
        ):
            return frozenset(compact)
        items = [part for part in re.split(r"\s*(?:[,;/&|\n]|\band\b)\s*|\s+(?=\(?[A-Z]\)?(?:\s|$))", compact) if part]
    found = [_one(item, options) for item in items]
    if found and all(found):
        return frozenset(each for each in found if each)
    if options.known and len(items) > 1 and all(re.fullmatch(r"\(?[A-Z]\)?\.?", item) for item in items):
        return frozenset()  # one of these letters is no option
    if items == [] and isinstance(value, list):
        return frozenset()
    rest = mark(text, options) if options.known else text
    if (
        options.known
        and re.search(MENTION, rest)
        and not re.search(rf"[\w\u2713-\u2718\u2705\u274c]|{OTHER}", re.sub(rf"{KNOWN}|\band\b", "", rest))
    ):
        return frozenset(options.labels[ord(c) - FIRST] for c in re.findall(MENTION, rest))
    return None


def _one(item: str, options: Options) -> str | None:
    spelled = options.with_text(item)
    if len(spelled) == 1:
        return spelled[0]
    label = label_in(item, options)
    if not label or (label[1] and options.known and label[0] not in options.with_text(label[1])):
        return None
    return label[0] if item[:1] != "a" or len(item) == 1 or label[1] else None


# ------------------------------------------------------------------------------------------------------ mentions
def mark(text: str, options: Options) -> str:
    """The text with every mention of an option, by text or label, as one private character."""
    labels = "".join(label for label in options.labels if len(label) == 1)
    text = re.sub(rf"\*\*\(?([{re.escape(labels)}])\)?[.:]?\*\*", rf"{BOLD}(\1)", text) if labels else text
    text = _SCRIPT_EDGE.sub(" ", answers.bare(re.sub(r"~~[^~\n]*~~|</?[biu]>", " ", text)).translate(_WIDE))
    ranked = sorted(range(len(options.texts)), key=lambda i: -len(options.texts[i]))
    for i in ranked:
        each = " ".join(answers.bare(answers.undollar(answers.normalise(options.texts[i]))).split()).rstrip(".!,;:")
        each = each.translate(_WIDE)
        if not each or each.upper() in options.labels:
            continue
        body = _ARTICLE.sub(lambda m: _ARTICLE_FORMS, re.escape(each)).replace(r"\ ", r"\s+")
        edge = _DIGIT_EDGE if each[-1].isdigit() else (r"(?<![\w-])", r"(?![\w-])")
        form = (edge[0] if each[0].isalnum() else "") + body + (edge[1] if each[-1].isalnum() else "")
        flags = re.NOFLAG if len(each) == 1 else re.IGNORECASE
        text = _named(text, re.compile(form, flags), chr(FIRST + i), options)
    text = _mark_labels(_without_contradictions(_without_determiners(text, options), options), options)
    for i in range(len(options.texts)):  # "B. a dog" is one mention, not two
        c = chr(FIRST + i)
        text = re.sub(rf"{c}[\s.:)\]\"'(,=-]*(?:is\s+)?[\s\"'(]*{c}", c, text)
    return text


def _named(text: str, form: re.Pattern, mention: str, options: Options) -> str:
    """The text with the mention in place of an option's text, and `OTHER` where that is part of another name."""
    known, made, end = frozenset(map(comparable, options.texts)), [], 0
    for match in form.finditer(text):
        more = another(match[0], text[max(end, match.start() - 40) : match.start()], text[match.end() :][:40], known)
        made += [text[end : match.start() - (more or 0)], mention if more is None else OTHER]
        end = match.end()
    return "".join([*made, text[end:]])


def _without_determiners(text: str, options: Options) -> str:
    """The text, its option texts marked, without the "no" of "Yes, there is no dog" where "No" is an option."""
    places = [chr(FIRST + i) for i, each in enumerate(options.texts) if comparable(each) == "no"]
    if not places or len(re.findall(MENTION, text)) < 2:
        return text
    return re.sub(places[0], lambda m: "no" if OF_A_NOUN.match(text, m.end()) else m[0], text)


def _without_contradictions(text: str, options: Options) -> str:
    """The text, its option texts marked, without "D. a red car" where that is not the text of D: it chooses neither."""
    labels = "|".join(sorted(map(re.escape, options.labels), key=len, reverse=True))

    def kept(match: re.Match) -> str:
        if match[2] == OTHER:
            return match[1]  # the letter says it for certain
        return match[0] if options.labels[ord(match[2]) - FIRST] == match[1] else ""

    return (
        re.sub(rf"(?<![\w'])\(?({labels})\)?[.:)]?\s*({MENTION})(?=\s*(?:[.;,!]|\n|$))", kept, text) if labels else text
    )


def _mark_labels(text: str, options: Options) -> str:
    index = {label: i for i, label in enumerate(options.labels)}
    upper = "|".join(sorted(map(re.escape, options.labels), key=len, reverse=True))
    form = re.compile(
        rf"\(\s*(?P<brackets>{upper}|{upper.lower()})\s*\)|\[\s*(?P<square>{upper})\s*\]"
        rf"|(?<![\w'\u2019-])(?P<closed>{upper})\s?[)\]](?!\w)"
        rf"|(?i:\b(?P<named>options?|choice|letter|answer(?:\s+is|\s*:)?)\s+)(?P<after>{upper}"
        rf"|(?:{upper.lower()})(?=[\s\"')\]]*(?:[.,;!\n]|$)))(?![\w'])"
        rf"|(?i:\b(?:it's|it is|pick|choose|chose|select|go with|therefore,?|so,?)\s+)(?P<small>{upper.lower()})"
        r"(?=\s*(?:[.;!\n]|$|\b(?:because|since)\b))"
        rf"|(?m:^)(?P<opening>{upper.lower()})(?=[.)]\s)"
        rf"|(?<![\w-])(?<!\w')(?P<bare>{upper})(?P<separator>[.:]?)(?![\w-]|'\w)"
    )  # fmt: skip

    def replaced(match: re.Match) -> str:
        label = next(match[name] for name in LABELS if match[name])
        made = chr(FIRST + index[label.upper()])
        before, after = text[max(match.start() - 40, 0) : match.start()], text[match.end() : match.end() + 40]
        if match["after"] or match["small"]:
            lettered = label.isupper() and re.match(r"option|letter", match["named"] or "", re.IGNORECASE)
            return match[0] if not lettered and _is_article(label, after) else match[0][: -len(label)] + made
        if match["bare"]:
            if (
                label.isdigit()
                or _is_article(label, match["separator"] + after)
                or not phrases.MAY_PRECEDE.search(before)
            ):
                return match[0]
            return made + match["separator"]
        return made

    return form.sub(replaced, text) if upper else text


def _is_article(label: str, after: str) -> bool:
    return bool((label == "A" and phrases.ARTICLE_THEN.match(after)) or (label == "I" and phrases.I_THEN.match(after)))


def mentions(marked: str, options: Options) -> list[Mention]:
    """The mentions of a marked text, in order; those joined to a stated one ("A or B") are stated, too."""
    places = [match.start() for match in re.finditer(MENTION, marked)][: MOST_MENTIONS + 1]
    if len(places) > MOST_MENTIONS:  # more than are weighed
        return [Mention(place, "", False, False, False, False) for place in places]
    lines = [line.strip() for line in marked.splitlines() if line.strip()]
    heading = len(lines) > 1 and _is_heading(lines)
    last = lines[-1] if len(lines) > 1 and not _is_enumeration(lines[1:] if heading else lines) else ""
    first_place = len(marked) - len(marked.lstrip()) + len(lines[0]) if heading else 0
    last_place = marked.rstrip().rindex(last) if last and marked.rstrip().endswith(last) else len(marked)
    denied, weighed = _listed(phrases.DENIED_LIST, marked), _listed(phrases.WEIGHED_LIST, marked)
    found = []
    for place in places:
        before, after = marked[max(place - 100, 0) : place], marked[place + 1 : place + 101]
        no = place in denied or bool(phrases.NEGATED.search(before) or phrases.DENIED.match(after))
        alone = place < first_place or (place >= last_place and _leads(last, marked[place]))
        possible = bool(phrases.POSSIBLY.search(before) or phrases.POSSIBLE.match(after))
        turned = phrases.TURNED.search(before) and phrases.CLAUSE_ENDS.match(after)
        stated = bool(phrases.STATED.search(before) or phrases.CONFIRMED.match(after) or turned or alone)
        leaning = bool(phrases.LEANING.search(before))
        label = "" if marked[place] == OTHER else options.labels[ord(marked[place]) - FIRST]
        sure = not no and not possible
        found.append(Mention(place, label, no, possible or place in weighed, sure and stated, sure and leaning))
    return _joined(found, marked)


def _listed(form: re.Pattern, marked: str) -> set[int]:
    """The places of all mentions in the lists that a pattern finds: of "not A, B or C" all three."""
    spans = [match.span("some" if match["some"] else "all") for match in form.finditer(marked)]
    return {start + i for start, end in spans for i, c in enumerate(marked[start:end]) if re.match(MENTION, c)}


def _leads(line: str, mention: str) -> bool:
    """Whether a line is a mention, or begins with one and its separator."""
    return bool(re.match(rf"[\W]*{mention}\s*(?:[.:)]\s|\W*$)", line)) or line.strip("\"'()[]. ") == mention


def _is_heading(lines: list[str]) -> bool:
    """Whether the first line is one mention and nothing else, and what follows is no list of others."""
    alone = [bool(re.fullmatch(rf"\W*?{MENTION}\W*", line)) for line in lines]
    return alone[0] and not any(alone[1:]) and not re.match(rf"\W*?{MENTION}\W*[.:)]", lines[1])


def _is_enumeration(lines: list[str]) -> bool:
    leading = [line.lstrip("-*\u2022( ")[:1] for line in lines]
    marks = [c for c in leading if re.fullmatch(MENTION, c)]
    return len(set(marks)) > 1 and leading[-1] in marks


def _joined(found: list[Mention], marked: str) -> list[Mention]:
    """Spread "stated" and "leaning" over "A or B", "A, B and C"."""
    by_place = {each.place: each for each in found}
    changed = True
    while changed:
        changed = False
        for each in list(by_place.values()):
            if each.denied or not (each.stated or each.leaning):
                continue
            after = phrases.JOINED_AFTER.match(marked, each.place + 1, each.place + 60)
            before = phrases.JOINED_BEFORE.search(marked[max(each.place - 40, 0) : each.place])
            near = [after.start(after.lastindex)] if after and after.lastindex else []
            near += [max(each.place - 40, 0) + before.start(1)] if before else []
            for place in near:
                other = by_place.get(place)
                if (
                    other
                    and not other.denied
                    and other.label != each.label
                    and (other.stated, other.leaning) != (each.stated or other.stated, each.leaning or other.leaning)
                ):
                    stated, leaning = each.stated or other.stated, each.leaning or other.leaning
                    by_place[place] = replace(other, stated=stated, leaning=leaning)
                    changed = True
    return [by_place[each.place] for each in found]


def _said(found: list[Mention], marked: str) -> list[tuple[int, str]]:
    """What is stated, and what is leaned to after the last statement; only leanings where nothing is stated."""
    stated = [each.place for each in found if each.stated]
    after = max(stated, default=-1)
    return [
        (each.place, each.label)
        for each in found
        if not each.denied and not each.possible and (each.stated or (each.leaning and each.place > after))
    ]
