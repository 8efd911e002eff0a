"""Units of quantities: whether two texts name different ones, as "5 m" and "5 cm" do, and what one is in the other.

A quantity without a unit agrees with any; so does a word that is no unit known here ("5 apples"), and powers do not
count where the unit is the same: "5 cm" agrees with "5 cm^2". Rates agree with rates: "90 km" is no "90 km/h". A
spelling that has several meanings ("m": metres, minutes) agrees with each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrl.rewards import answers

LONGEST = 80  # characters of a text that is one quantity
_SPELLED = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "inch": "in inch inches", "foot": "ft foot feet",
    "yard": "yd yard", "mile": "mi mile", "mg": "mg milligram", "g": "g gram gramme", "kg": "kg kilogram kilo",
    "tonne": "t tonne ton", "pound": "lb pound", "ounce": "oz ounce", "ms": "ms millisecond", "s": "s sec second",
    "min": "m min minute", "h": "h hr hour", "day": "day", "week": "week", "month": "month", "year": "yr year",
    "ml": "ml milliliter millilitre", "l": "l liter litre", "dollar": "$ usd dollar", "euro": "€ eur euro",
    "sterling": "£ gbp pound", "yen": "¥ jpy yen", "yuan": "¥ cny rmb yuan", "rupee": "₹ inr rs rupee",
    "cent": "cent ¢", "celsius": "°c ℃ celsius degree °", "fahrenheit": "°f ℉ fahrenheit degree °", "angle": "degree °",
    "hz": "hz hertz", "w": "w watt", "kw": "kw kilowatt", "v": "v volt", "n": "n newton", "j": "j joule", "kj": "kj",
}  # fmt: skip
_SIZES: dict[str, dict[str, float]] = {
    "length": {"mm": 0.001, "cm": 0.01, "dm": 0.1, "m": 1, "km": 1000, "inch": 0.0254, "foot": 0.3048, "yard": 0.9144,
               "mile": 1609.344},
    "mass": {"mg": 1e-6, "g": 0.001, "kg": 1, "tonne": 1000, "pound": 0.45359237, "ounce": 0.028349523125},
    "time": {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    "volume": {"ml": 0.001, "l": 1}, "power": {"w": 1, "kw": 1000}, "energy": {"j": 1, "kj": 1000},
    "money": {"dollar": 1, "cent": 0.01},
}  # fmt: skip
"""How large each unit is beside the others of its dimension."""
_POWERED = re.compile(r"[\u00b2\u00b3^]|\bsq|\bcubi|\bper\b|/\s*[a-z]", re.IGNORECASE)
_MEANINGS: dict[str, set[str]] = {}
for _unit, _names in _SPELLED.items():
    for _name in _names.split():
        for _form in (_name, f"{_name}s") if len(_name) > 1 else (_name,):
            _MEANINGS.setdefault(_form, set()).add(_unit)
_AFTER = re.compile(
    r"(?<=\d)\s*(?:(?:square|sq\.?|cubic)\s+)?(°\s?[CF]\b|[℃℉°€£¥₹¢$]|[A-Za-z]+)(?![\w'])", re.IGNORECASE
)
_BEFORE = re.compile(r"([€£¥₹$])\s*-?\s*(?=[\d.])")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b")


def units(text: str, variables: bool = False) -> set[str]:
    """What the units beside the numbers of a text may be; empty where there is none, or none that is known.

    variables  a letter beside a number is a variable, as in "2m + 1", unless it stands apart at the end, as in "2 m"
    """
    text = re.sub(r"\\[,;:! ]|~|[{}]", " ", answers.bare(_DEGREES.sub("°", _spelled(text)))).replace("\\$", "$")
    if len(text) > LONGEST:
        return set()
    found: set[str] = set()
    for match in [*_AFTER.finditer(text), *_BEFORE.finditer(text)]:
        name = match[1].replace(" ", "").lower()
        last = not text[match.end() :].strip(" .,!$")
        lettered = variables and len(name) == 1 and name.isalpha()
        if lettered and (not last or not match[0][0].isspace() or re.search(r"[-+*=]", text)):
            continue
        if name != "in" or last:  # "5 in all" are no inches
            found |= _MEANINGS.get(name, set())
    return found


def disagree(text: str) -> bool:
    """Whether a text leaves its unit open: "5 m or 5 cm"."""
    sides = [units(each) for each in re.split(r"\bor\b", text)] if len(text) <= LONGEST else []
    return len(sides) > 1 and all(sides) and not set.intersection(*sides)


def with_unit(text: str) -> str:
    """`{"value": 5, "unit": "m"}` as `5 m`; any other text as it is."""
    value = answers.json_value(text) if "unit" in text and len(text) <= LONGEST else None
    if not isinstance(value, dict) or not isinstance(value.get("unit"), str):
        return text
    held = [each for name, each in value.items() if name != "unit" and isinstance(each, int | float | str)]
    return f"{held[0]} {value['unit']}" if len(held) == 1 else text


def differ(first: str, second: str, variables: bool = False) -> bool:
    """Whether two quantities have units, and no unit in common. A rate has no unit in common with what it counts, as
    `90 km` for `90 km/h`, but that money is often told without its time."""
    rates = [_rate(first), _rate(second)]
    if rates[0] and rates[1]:
        return not rates[0].agrees(rates[1])
    one, other = units(first, variables), units(second, variables)
    if rates[0] or rates[1]:
        return bool(one if rates[1] else other) and not (one | other) & {"dollar", "euro", "sterling", "yen", "rupee"}
    return bool(one and other and not one & other)


def factors(said: str, wanted: str) -> list[float]:
    """What the number of one quantity is to be multiplied by to be in the unit of another; none for another dimension.

    More than one where a spelling has several meanings; rates (`m/s`, `g/cm^3`) scale by both; none for other powers.
    """
    rates = [_rate(said), _rate(wanted)]
    if rates[0] and rates[1]:
        return rates[0].factors(rates[1])
    if rates[0] or rates[1] or _POWERED.search(said) or _POWERED.search(wanted):
        return []
    return sorted(_sizes(units(said), units(wanted)))


def _sizes(one: set[str], other: set[str]) -> set[float]:
    same = {1.0} if one & other else set()
    return same | {s[a] / s[b] for s in _SIZES.values() for a in one & s.keys() for b in other & s.keys()}


@dataclass(frozen=True)
class _Rate:
    """`7 m/s`: what is counted, per what, and the powers of both; a thing that is no unit counts as its own."""

    above: set[str]
    below: set[str]
    powers: tuple[int, int]

    def agrees(self, other: _Rate) -> bool:
        return self.powers == other.powers and bool(self.above & other.above and self.below & other.below)

    def factors(self, other: _Rate) -> list[float]:
        if self.powers != other.powers:
            return []
        up, down = self.powers
        above, below = _sizes(self.above, other.above), _sizes(self.below, other.below)
        return sorted({a**up / b**down for a in above for b in below})


_SHORT_RATES = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "frames/s", "rpm": "turns/min"}
_SHORT_RATE = re.compile(rf"(?<=[\d\s])({'|'.join(_SHORT_RATES)})\b", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([a-z]+)\s*\}\s*\{\s*([a-z]+)(\^?\d?)\s*\}", re.IGNORECASE)
_INVERSE = re.compile(
    r"(?<=[a-z\d])\s*(?:\\cdot|[\u00b7*])?\s+([a-z]+)\s*\^?\s*[{(]?\s*-([123])\s*[)}]?", re.IGNORECASE
)
_RATE = re.compile(
    r"(?:(?P<money>[\u20ac\u00a3\u00a5\u20b9$])\s*[\d.,]+|(?<=[\d\s])(?P<above>[a-z]+)\s*\^?(?P<up>[23])?)"
    r"\s*(?:/|\b(?:per|an?|each|every)\b)\s*(?P<word>square|cubic)?\s*(?P<below>[a-z]+)\s*\^?(?P<down>[123])?\s*\.?\s*$",
    re.IGNORECASE,
)
_RAISED = str.maketrans({"\u00b2": "2", "\u00b3": "3", "\u207b": "-", "\u00b9": "1"})
_LONGEST_LETTER = 2  # of a name that may be a variable


def _rate(text: str) -> _Rate | None:
    """Of `7 m/s`, `7 m s^-1`, `12 miles per hour`, `2 g/cm^3`, `$5 an hour`; None for what is no rate."""
    if len(text) > LONGEST:
        return None
    text = _FRACTION.sub(r" \1/\2\3", answers.bare(_spelled(text.translate(_RAISED))))
    text = re.sub(r"\\[,;:! ]|~", " ", _INVERSE.sub(r"/\1^\2", text))
    match = _RATE.search(re.sub(r"[{}]", "", text).replace("\\$", "$"))
    below = _MEANINGS.get(match["below"].lower()) if match else None
    if not match or not below:
        return None
    name = (match["money"] or match["above"]).lower()
    above = _MEANINGS.get(name) or ({name.rstrip("s")} if len(name) > _LONGEST_LETTER else set())
    power = {"square": 2, "cubic": 3}.get((match["word"] or "").lower()) or int(match["down"] or 1)
    return _Rate(above, below, (int(match["up"] or 1), power)) if above else None


def _spelled(text: str) -> str:
    return _SHORT_RATE.sub(lambda short: f" {_SHORT_RATES[short[1].lower()]}", text)
