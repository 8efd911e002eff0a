"""Units of quantities: whether two texts name different ones, as "5 m" and "5 cm" do, and what one is in the other.

A quantity without a unit agrees with any; so does a word that is no unit known here ("5 apples"), and powers do not
count where the unit is the same: "5 cm" agrees with "5 cm^2". A spelling that has several meanings ("m": metres,
minutes) agrees with each.
"""

from __future__ import annotations

import re

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


def differ(first: str, second: str, variables: bool = False) -> bool:
    """Whether two quantities have units, and no unit in common."""
    one, other = units(first, variables), units(second, variables)
    return bool(one and other and not one & other)


def factors(said: str, wanted: str) -> list[float]:
    """What the number of one quantity is to be multiplied by to be in the unit of another; none for another dimension.

    More than one where a spelling has several meanings; rates (`m/s`, `km/h`) scale by both; none for powers.
    """
    if _POWERED.search(_spelled(said)) or _POWERED.search(_spelled(wanted)):
        rates = [_rate(each) for each in (said, wanted)]
        return [] if None in rates else _of_rates(*rates)
    one, other = units(said), units(wanted)
    return [sizes[a] / sizes[b] for sizes in _SIZES.values() for a in one & sizes.keys() for b in other & sizes.keys()]


_RATE = re.compile(r"(?<=[\d\s])([a-z]+)\s*(?:/|\bper\b)\s*([a-z]+)\s*\.?\s*$", re.IGNORECASE)


def _spelled(text: str) -> str:
    return re.sub(r"(?<=[\d\s])mph\b", "mi/h", re.sub(r"(?<=[\d\s])(?:kph|kmh)\b", "km/h", text))


def _rate(text: str) -> tuple[set[str], set[str]] | None:
    """What is counted, and per what: of `7 m/s` and of `12 miles per hour`; None for what is no rate."""
    match = _RATE.search(answers.bare(re.sub(r"\\[,;:! ]|~|[{}]", " ", _spelled(text))))
    return (_MEANINGS.get(match[1].lower(), set()), _MEANINGS.get(match[2].lower(), set())) if match else None


def _of_rates(one: tuple[set[str], set[str]], other: tuple[set[str], set[str]]) -> list[float]:
    above, below = (
        {sizes[a] / sizes[b] for sizes in _SIZES.values() for a in x & sizes.keys() for b in y & sizes.keys()}
        for x, y in zip(one, other, strict=True)
    )
    return [a / b for a in above for b in below]
