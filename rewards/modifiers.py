"""Words beside an option's text that make it another thing: "light blue" is not blue, "more than 12" is not 12.

An option named like that is not chosen, whatever the other options are: whether the answer means it is not certain.
Words that leave a thing what it is ("bright red", "a small dog", "about 12") do not count, nor does what an option
says itself ("dark blue" where that is an option).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from mmrl.rewards.spelled import NUMBER_WORD, SCALES

_COLOURS = (
    "amber|aqua|aquamarine|beige|black|blond|blonde|blue|bronze|brown|burgundy|coral|cream|crimson|cyan|gold|golden"
    "|gray|green|grey|indigo|ivory|khaki|lavender|lilac|lime|magenta|maroon|mauve|navy|ochre|olive|orange|peach|pink"
    "|purple|red|salmon|scarlet|silver|tan|teal|turquoise|violet|white|yellow"
)
_SHADES = (
    "light(?:er|est)?|dark(?:er|est)?|pale(?:r|st)?|deep(?:er|est)?|faded|muted|dusty|dusky|smoky|off|hot|baby|sky"
    "|royal|midnight|powder|steel|slate|electric|neon|pastel|forest|mint|sea|moss|army|hunter|emerald|jade|sage|wine"
    "|blood|brick|ruby|rose|rust|burnt|charcoal|cobalt|azure|prussian|ultramarine|lemon|mustard|canary|chocolate|ash"
    "|medium|mid|half|semi|non|nearly|almost|partly|partially|[a-z]+ish"
)
_SIZES = "large|larger|big|bigger|small|smaller|long|longer|short|shorter|wide|tall|medium|thick|thin|size"
_GRADES = r"extra|extra-extra|double|triple|x+|half|semi|mid|medium|less|least|non"
_FULL = "full|empty|open|closed|round|square|circular|straight|visible|transparent|dry|wet|raw|ripe|dead|alive|always"
_SHARES = "half|semi|nearly|almost|partly|partially|partial|less|least|non|hardly|barely|quasi"
_COMPARED = (
    r"(?:more|less|fewer|greater|higher|lower|larger|smaller|bigger|longer|shorter|older|younger"
    r"|earlier|later)\s+than|over|under|above|below|beyond|at\s+(?:least|most)|almost|nearly|up\s+to|close\s+to|before"
    r"|after|minus|negative|half\s+of|half|double|twice|[<>\u2264\u2265\u2260~]=?|not\s+quite|just\s+short\s+of"
)
_BEYOND = (
    rf"\s+(?:or|and)\s+(?:more|less|fewer|over|above|under|below|higher|lower|up|a\s+half|a\s+quarter|\d+/\d+)\b|\+"
    rf"|\s+(?:{'|'.join(SCALES)})s?\b|\s+\d+/\d+|\s+(?:plus|minus)\b"
)
_ANIMALS = (
    "dog|cat|bird|fish|horse|cow|bear|sheep|goat|pig|rabbit|duck|chicken|mouse|elephant|lion|tiger|monkey|frog|fox"
    "|wolf|deer|snake|turtle|zebra|giraffe|puppy|kitten"
)
_MADE = (
    "foods?|house|stand|toys?|statues?|costumes?|figurines?|sculptures?|shop|store|shelter|leash|collar|cage|treats?"
    "|tank|nest|mask|suit|shaped"
)

_COLOUR = re.compile(rf"^(?:{_COLOURS})\b", re.I)
_SIZE = re.compile(rf"(?:{_SIZES})$", re.I)
_STATE = re.compile(rf"(?:{_FULL})$", re.I)
_NUMBER = re.compile(rf"^(?:\d[\d.,/]*|{NUMBER_WORD})(?:\s|$)", re.I)
_PLACE = re.compile(r"^[A-Z][a-z]")

_BEFORE_COLOUR = re.compile(rf"\b({_SHADES}|{_COLOURS})(?:[\s-]+|\s+and\s+|\s*/\s*)$", re.I)
_AFTER_COLOUR = re.compile(rf"^(?:[\s-]+|\s+and\s+|\s*/\s*)({_COLOURS})\b", re.I)
_BEFORE_SIZE = re.compile(rf"\b({_GRADES})[\s-]+$", re.I)
_BEFORE_STATE = re.compile(rf"\b({_SHARES})[\s-]+$", re.I)
_BEFORE_NUMBER = re.compile(
    rf"(?:^|[\s(,;:])({_COMPARED})\s+(?:of\s+)?$|([<>\u2264\u2265\u2260~]=?)\s*$|\b({NUMBER_WORD})\s+(?:and\s+)?$", re.I
)
_AFTER_NUMBER = re.compile(_BEYOND, re.I)
_BEFORE_PLACE = re.compile(
    r"\b(North|South|East|West|Northern|Southern|Eastern|Western|Central|New|Latin|Upper|Lower|Inner|Outer)[\s-]+$"
)
_ANIMAL = re.compile(rf"^(?:(?:an?|the)\s+)?(?:{_ANIMALS})$", re.I)
_BEFORE_ANIMAL = re.compile(r"\b(hot|corn|teddy|rocking)[\s-]+$", re.I)
_AFTER_ANIMAL = re.compile(rf"^[\s-]+({_MADE})\b", re.I)
_RULES = (
    (_COLOUR, _BEFORE_COLOUR, _AFTER_COLOUR),
    (_NUMBER, _BEFORE_NUMBER, _AFTER_NUMBER),
    (_PLACE, _BEFORE_PLACE, None),
    (_SIZE, _BEFORE_SIZE, None),
    (_STATE, _BEFORE_STATE, None),
    (_ANIMAL, _BEFORE_ANIMAL, _AFTER_ANIMAL),
)
"""(what an option is, what may stand before it, what may stand after it)"""


def another(option: str, before: str, after: str, known: Collection[str] = ()) -> int | None:
    """None where an option's text, found between `before` and `after`, is what the option says; where it is part of
    the name of another thing, how many characters of `before` belong to that name.

    known  the texts of all options, in small letters: "red and blue" are two where both are options
    """
    for kind, left, right in _RULES:
        if kind.search(option):
            if (found := left.search(before)) and found[found.lastindex].casefold() not in known:
                return len(before) - found.start(found.lastindex)
            if right and (found := right.match(after)) and found[found.lastindex or 0].casefold() not in known:
                return 0
    return None
