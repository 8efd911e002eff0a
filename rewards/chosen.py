"""Which option an answer chooses: what it finally states, not what it mentions first or last.

A text that goes through the options chooses none of them by that: a statement does ("the answer is B", "B is
correct", a last line "B"), and where there is none, the only option mentioned and not denied. Two different statements
count as the later one only after a word that turns ("but", "wait", "so"); "A or B" chooses nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrl.rewards import answers
from mmrl.rewards.modifiers import another
from mmrl.rewards.options import Options, comparable, label_in

LONGEST = 8000  # the last characters are read: a final answer stands at the end
SHORT = 200  # characters of a text in which one mention without a statement is an answer
MOST_MENTIONS = 200
_FIRST = 0xE000  # mentions are single characters of the private use area, one for each option
_WIDE = {0x2212: "-", 0x3001: ",", 0xFF1A: ":", 0xFF0C: ",", 0x3002: ".", 0xFF08: "(", 0xFF09: ")"} | {
    0xFF21 + i: 0x41 + i for i in range(26)
}
_HAN = "\u4e00-\u9fff"
_SCRIPT_EDGE = re.compile(rf"(?<=[{_HAN}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{_HAN}])")
_BOLD = "\uf000"
_M = "[\ue000-\ue0ff]"
_KNOWN = "[\ue000-\ue0fe]"
_OTHER = "\ue0ff"  # a thing that no option names, though its name holds an option's text: "light blue"
_DIGIT_EDGE = (r"(?<![\w.,/\u2212-])(?<!\d:)", r"(?![\w/%-]|[.,:]\d)")

_ARTICLE_THEN = re.compile(
    r"\s+(?!(?:because|since|as|for|is|or|and|but|which|was|seems?|looks?|shows?|has|would|must|does\w*"
    r"|isn't|can\w*|instead|rather|not|over|due|given|if|nor|are|were)\b)[a-z]|\s+[A-Z][a-z]"
)
_I_THEN = re.compile(r"\s+(?!(?:because|since|as|is|or|and|nor)\b)[A-Za-z]|'")
_MAY_PRECEDE = re.compile(
    rf"(?:^|[.,;:!?(\[\n\"'=/&+|>\u2014\u2013-]|[{_HAN}]|{_M}|{_BOLD}|\b(?-i:[A-Z])|\b(?:is|be|was|are|answers?|options?"
    rf"|choices?|letters?|choos\w+|chose|chosen|selec\w+|"
    r"pick\w*|with|for|therefore|so|thus|hence|or|and|not|than|of|either|neither|nor|but|it's|that|that's"
    r"|says?|both|between|"
    r"guess|think|believe|leaves|leaving|to|as|prefer|only|just|actually|doubt|question|\w+ly))\s*$",
    re.IGNORECASE,
)
_BREAK = (
    r"(?:(?!\b(?:but|so|therefore|thus|hence|then|answer|because|since|it is|it's|must|leaves|leaving)\b)[^,.;:!?\n])*$"
)
_NEGATED = re.compile(
    rf"(?:\b(?:not|never|neither|nor|cannot|can't|except|rather than|instead of|rul\w+ out|eliminat\w+"
    rf"|exclud\w+|without(?!\s+(?:a\s+|any\s+)?(?:doubt|question))|no(?!\s+(?:doubt|question))|reject\w*|discard\w*"
    rf"|other than|apart from|aside from|(?:any|every)(?:thing|one)? but|all but)\b|n't\b|不是|不选|并非){_BREAK}",
    re.IGNORECASE,
)
_DENIED = re.compile(
    rf"[\s\"')\].:]*(?:\s*(?:,|and|or|&|nor)\s*{_M})*\s*(?:,|:|-)?\s*(?:(?:is|are|was|were|seems?"
    rf"|looks?|can be|must be|would be)\s+)?(?:also\s+|\w+ly\s+)?"
    r"(?:(?:the\s+)?(?:least|less)\s+(?:likely|plausible|probable|fitting|suitable|convincing|accurate|relevant)\b|"
    rf"(?:not(?!\s+(?:the\s+)?{_M})|wrong|incorrect|false|out|impossible|eliminated|excluded|ruled "
    rf"out|unlikely|invalid)\b|(?:is|was|are|would|does|do|ca|could)n't\b|cannot\b|(?:does|do|can"
    rf"|would|could) not\b)"
    rf"|[^.;\n\ue000-\ue0ff]{{0,80}}\bso no\b",
    re.IGNORECASE,
)
_STATED = re.compile(
    rf"(?:\b(?:answers?|choice|selection|solution|response|conclusion|decision|(?:correct|right|best"
    rf"|final|my)\s+(?:option|choice|one|letter))(?![ \w]*\?)"
    r"(?:\s+(?:to|for|of|here)\b[^.;:!?\n]{0,60}?)?\s*(?:is|are|=|:|\u2192|->|would be|should be|must "
    r"be|will be|was)?\s*(?:is|are|:|=)?\s*"
    rf"(?:\w+ly\s+)?(?:also\s+)?(?:the\s+)?(?:one\s+)?(?:options?|choices?|letters?)?\s*[\"'(\[<:]*\s*|{_BOLD}"
    r"|\b(?:i(?:'d|'ll| would| will)?\s+)?(?:choos(?:e|ing)|chose|select(?:ing)?|pick(?:ing)?"
    r"|leav(?:es|ing)(?: (?:us|me|with|only|just))*|left with|go(?:ing)? (?:with|for)"
    r"|opt(?:ing)? for|settle (?:on|for)|answer with)\s+(?:with\s+)?"
    r"(?:the\s+)?(?:options?|choices?|letters?)?\s*[\"'(\[]*\s*)$",
    re.IGNORECASE,
)
_LEANING = re.compile(
    r"(?:\b(?:it|this|that|which|result|he|she|object|picture|image)(?:'s|\s+is|\s+must be|\s+should "
    r"be|\s+has to be|\s+would be|\s+are)\s+(?:\w+ly\s+)?(?:the\s+|an?\s+)?(?:options?\s+)?"
    r"|\b(?:therefore|so|thus|hence|must be|should be)\b[\s,:]*(?:it(?:'s| "
    r"is)\s+)?(?:the\s+)?(?:options?\s+)?)[\"'(\[]*\s*$",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"[\"')\].:]*\s*(?:is|are|must be|would be|seems|has to be"
    r"|looks)\s+(?:\w+ly\s+)?(?:the\s+)?(?:only\s+|most\s+|best\s+)?(?:correct|right|best|answers?"
    r"|true|final|valid|one that)\b",
    re.IGNORECASE,
)
_JOINED_AFTER = re.compile(
    rf"[\"')\].]*\s*(?:,?\s*(?:or|and|nor|as well as)\s+(?:maybe\s+|possibly\s+)?|/|&"
    rf"|\|)\s*[\"'(\[]*({_M})|[\"')\]]*\s*,\s*[\"'(\[]*({_M})(?=[\"')\]]*\s*(?:[.;,\n]|$|or\b|and\b))"
    rf"|[\"')\]: ]*({_M})",
    re.I,
)
_JOINED_BEFORE = re.compile(rf"({_M})[\"')\]]*\s*(?:,|,?\s*(?:or|and)|/|&|\|)\s*[\"'(\[]*$", re.IGNORECASE)
_POSSIBLY = re.compile(
    r"(?:\b(?:could|may|might)\s+(?:also\s+)?be|\bor|\bmaybe|\bpossibly|\bperhaps)\s+(?:the\s+)?(?:options?\s+)?[\"'(]*$",
    re.I,
)
_NO_IDEA = re.compile(r"\bno (?:idea|clue|way to)\b", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:cannot|can't|can not|couldn't|unable to) (?:tell|say|see|decide|determine|be sure)|\b(?:unsure"
    r"|not sure|don't know|do not know|no idea|either|whether|maybe|perhaps|if)\b",
    re.I,
)


@dataclass(frozen=True)
class Mention:
    """An option named in a text: where, which ("" for what no option is), whether denied, how strongly stated."""

    place: int
    label: str
    denied: bool
    stated: bool
    leaning: bool


def chosen(text: str, options: Options) -> str | None:
    """The label an answer chooses, or None."""
    return _chosen(text, options) or None


def _chosen(text: str, options: Options) -> str | None:
    text = text.strip()[-LONGEST:]
    dressed = answers.undollar(answers.bare(text))
    label, spelled = label_in(dressed, options), options.with_text(dressed)
    if label and not label[1]:
        return label[0]
    if spelled:
        return spelled[0] if len(spelled) == 1 else None
    if label and comparable(label[1]) and (others := options.with_text(label[1])):
        return label[0] if label[0] in others else None
    marked = mark(answers.without_questions(text), options)
    found = mentions(marked, options)
    if not found or len(found) > MOST_MENTIONS:
        return None
    if label and not _is_denial(label[1]) and {each.label for each in found} == {label[0]}:
        return label[0]
    said = _said(found, marked)
    if said:
        value = answers.settled(said, marked)
        return None if _is_hedged(found, marked, value, said[-1][0]) else value
    left = {each.label for each in found if not each.denied}
    leads = not _DOUBT.search(marked) and not _NO_IDEA.search(text) and len(marked) <= SHORT
    return left.pop() if len(left) == 1 and leads else None


def _is_hedged(found: list[Mention], marked: str, value: str | None, after: int) -> bool:
    """Whether another option is held possible after the last statement: "B, but it could be C"."""
    others = [each.place for each in found if each.place > after and each.label != value and not each.denied]
    return any(_POSSIBLY.search(marked[max(place - 40, 0) : place]) for place in others)


def _is_denial(rest: str) -> bool:
    return bool(_DENIED.match(" " + rest)) or bool(_DOUBT.search(rest))


def several(text: str, options: Options) -> frozenset[str]:
    """All options an answer chooses: "A, C", "AC", "(A) and (C)", ["A", "C"], or the texts of options."""
    listed = listed_options(text, options)
    if listed is not None:
        return listed
    marked = mark(answers.without_questions(text[-LONGEST:]), options)
    found = mentions(marked, options)
    if not found or len(found) > MOST_MENTIONS:
        return frozenset()
    stated = [each for each in found if each.stated and not each.denied]
    if stated:
        last = [each for each in stated if _in_last_statement(each, stated, marked)]
        return frozenset(each.label for each in last)
    if _DOUBT.search(marked) or len(marked) > 2 * SHORT:
        return frozenset()
    return frozenset(each.label for each in found if not each.denied)


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
    text = answers.bare(text).translate(_WIDE).strip()
    if len(text) > 10 * SHORT:
        return None
    value = answers.json_value(text)
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
    if items == [] and isinstance(value, list):
        return frozenset()
    rest = mark(text, options) if options.known else text
    if options.known and re.search(_M, rest) and not re.search(rf"\w|{_OTHER}", re.sub(rf"{_KNOWN}|\band\b", "", rest)):
        return frozenset(options.labels[ord(c) - _FIRST] for c in re.findall(_M, rest))
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
    text = re.sub(rf"\*\*\(?([{re.escape(labels)}])\)?[.:]?\*\*", rf"{_BOLD}(\1)", text) if labels else text
    text = _SCRIPT_EDGE.sub(" ", answers.bare(text).translate(_WIDE))
    ranked = sorted(range(len(options.texts)), key=lambda i: -len(options.texts[i]))
    for i in ranked:
        each = " ".join(answers.bare(answers.undollar(answers.normalise(options.texts[i]))).split()).rstrip(".!,;:")
        each = each.translate(_WIDE)
        if not each or each.upper() in options.labels:
            continue
        body = re.escape(each).replace(r"\ ", r"\s+")
        edge = _DIGIT_EDGE if each[-1].isdigit() else (r"(?<![\w-])", r"(?![\w-])")
        form = (edge[0] if each[0].isalnum() else "") + body + (edge[1] if each[-1].isalnum() else "")
        flags = re.NOFLAG if len(each) == 1 else re.IGNORECASE
        text = _named(text, re.compile(form, flags), chr(_FIRST + i), options)
    text = _mark_labels(_without_contradictions(text, options), options)
    for i in range(len(options.texts)):  # "B. a dog" is one mention, not two
        c = chr(_FIRST + i)
        text = re.sub(rf"{c}[\s.:)\]\"'(,=-]*(?:is\s+)?[\s\"'(]*{c}", c, text)
    return text


def _named(text: str, form: re.Pattern, mention: str, options: Options) -> str:
    """The text with the mention in place of an option's text, and `_OTHER` where that is part of another name."""
    known, made, end = frozenset(map(comparable, options.texts)), [], 0
    for match in form.finditer(text):
        more = another(match[0], text[max(end, match.start() - 40) : match.start()], text[match.end() :][:40], known)
        made += [text[end : match.start() - (more or 0)], mention if more is None else _OTHER]
        end = match.end()
    return "".join([*made, text[end:]])


def _without_contradictions(text: str, options: Options) -> str:
    """The text, its option texts marked, without "D. a red car" where that is not the text of D: it chooses neither."""
    labels = "|".join(sorted(map(re.escape, options.labels), key=len, reverse=True))

    def kept(match: re.Match) -> str:
        if match[2] == _OTHER:
            return match[1]  # the letter says it for certain
        return match[0] if options.labels[ord(match[2]) - _FIRST] == match[1] else ""

    return re.sub(rf"(?<![\w'])\(?({labels})\)?[.:)]?\s*({_M})(?=\s*(?:[.;,!]|\n|$))", kept, text) if labels else text


def _mark_labels(text: str, options: Options) -> str:
    index = {label: i for i, label in enumerate(options.labels)}
    upper = "|".join(sorted(map(re.escape, options.labels), key=len, reverse=True))
    form = re.compile(
        rf"\(\s*(?P<brackets>{upper}|{upper.lower()})\s*\)|\[\s*(?P<square>{upper})\s*\]"
        rf"|(?<![\w'\u2019-])(?P<closed>{upper})\s?[)\]](?!\w)"
        rf"|(?i:\b(?P<named>options?|choice|letter|answer(?:\s+is|\s*:)?)\s+)(?P<after>{upper}"
        rf"|(?:{upper.lower()})(?=[\s\"')\]]*(?:[.,;!\n]|$)))(?![\w'])"
        rf"|(?<![\w'\u2019-])(?P<bare>{upper})(?P<separator>[.:]?)(?![\w'\u2019-])"
    )  # fmt: skip

    def replaced(match: re.Match) -> str:
        label = next(match[name] for name in ("brackets", "square", "closed", "after", "bare") if match[name])
        made = chr(_FIRST + index[label.upper()])
        before, after = text[max(match.start() - 40, 0) : match.start()], text[match.end() : match.end() + 40]
        if match["after"]:
            return match[0] if _is_article(label, after) else match[0][: -len(label)] + made
        if match["bare"]:
            if label.isdigit() or _is_article(label, match["separator"] + after) or not _MAY_PRECEDE.search(before):
                return match[0]
            return made + match["separator"]
        return made

    return form.sub(replaced, text) if upper else text


def _is_article(label: str, after: str) -> bool:
    return bool((label == "A" and _ARTICLE_THEN.match(after)) or (label == "I" and _I_THEN.match(after)))


def mentions(marked: str, options: Options) -> list[Mention]:
    """The mentions of a marked text, in order; those joined to a stated one ("A or B") are stated, too."""
    places = [match.start() for match in re.finditer(_M, marked)][: MOST_MENTIONS + 1]
    lines = [line.strip() for line in marked.splitlines() if line.strip()]
    last = lines[-1] if len(lines) > 1 and not _is_enumeration(lines) else ""
    found = []
    for place in places:
        before, after = marked[max(place - 100, 0) : place], marked[place + 1 : place + 101]
        denied = bool(_NEGATED.search(before) or _DENIED.match(after))
        alone = (
            bool(last)
            and marked.rstrip().endswith(last)
            and place >= marked.rstrip().rindex(last)
            and _leads(last, marked[place])
        )
        stated = not denied and bool(_STATED.search(before) or _CONFIRMED.match(after) or alone)
        found.append(
            Mention(
                place,
                "" if marked[place] == _OTHER else options.labels[ord(marked[place]) - _FIRST],
                denied,
                stated,
                not denied and bool(_LEANING.search(before)),
            )
        )
    return _joined(found, marked)


def _leads(line: str, mention: str) -> bool:
    """Whether a line is a mention, or begins with one and its separator."""
    return bool(re.match(rf"[\W]*{mention}\s*(?:[.:)]\s|\W*$)", line)) or line.strip("\"'()[]. ") == mention


def _is_enumeration(lines: list[str]) -> bool:
    leading = [line.lstrip("-*\u2022( ")[:1] for line in lines]
    marks = [c for c in leading if re.fullmatch(_M, c)]
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
            after = _JOINED_AFTER.match(marked, each.place + 1, each.place + 60)
            before = _JOINED_BEFORE.search(marked[max(each.place - 40, 0) : each.place])
            near = [after.start(after.lastindex)] if after and after.lastindex else []
            near += [max(each.place - 40, 0) + before.start(1)] if before else []
            for place in near:
                other = by_place.get(place)
                if (
                    other
                    and not other.denied
                    and (other.stated, other.leaning) != (each.stated or other.stated, each.leaning or other.leaning)
                ):
                    by_place[place] = Mention(
                        place, other.label, False, each.stated or other.stated, each.leaning or other.leaning
                    )
                    changed = True
    return [by_place[each.place] for each in found]


def _said(found: list[Mention], marked: str) -> list[tuple[int, str]]:
    """What is stated, and what is leaned to after the last statement; only leanings where nothing is stated."""
    stated = [each.place for each in found if each.stated]
    after = max(stated, default=-1)
    return [
        (each.place, each.label)
        for each in found
        if not each.denied and (each.stated or (each.leaning and each.place > after))
    ]
