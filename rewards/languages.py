"""What answers say in other languages, in the few English words that the readers of answers know.

    in_english("La respuesta correcta es la B.")    "the answer is B."
    in_english("von 65 bis 70 Sekunden")            "from 65 to 70 seconds"
    in_english("第一张图更好")                         "the first image is better"
    in_english("二十三个")                            "23"

Only the frame of an answer is put into English: its own words stay as they are, and so does a text in English.
"""

from __future__ import annotations

import re

LONGEST = 50_000
_HAN = "\u4e00-\u9fff"
_LETTER = r"(?:(?:opci[óo]n|option|op[çc][ãa]o|letra|lettre|lettera|buchstabe)\s+)?"
_NUMERALS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_SCALES = {"十": 10, "百": 100, "千": 1000}
_COUNTED = "个個只隻辆輛人名张張次条條本位台棵朵块塊种種头頭匹枚件把家层層座"

_STATED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(
        r"\b(?:la |die |a |il |l[ae]s? )?(?:(?:bonnes?|richtigen?|korrekten?) )?"
        r"(?:respuestas?|opci[óo]n(?:es)?|r[ée]ponses?|respostas?|rispost[ae]|antwort(?:en)?)"
        r"(?: (?:correct[ao]?s?|correctes?|final|correta|corretta|finale))?"
        r" (?:est?|é|è|ist|sind|son|sont|lautet)(?!\w)\s*:?\s*"
        rf"(?-i:(?:la|el|le|a|o|die) (?=\S))?{_LETTER}", re.I), "the answer is "),
    (re.compile(r"(?:正解|答え|回答)は\s*(\S{1,40}?)\s*です"), r"the answer is \1 "),
    (re.compile(r"(?:정답|답)은\s*(\S{1,40}?)\s*(?:입니다|이다|예요)"), r"the answer is \1 "),
    (re.compile(r"(?:正确|最终)?(?:答案|结果)(?:是|为|應為|应为)\s*[::]?\s*"), " the answer is "),
    (re.compile(r"(?:故|因此|所以)?(?:应)?选\s*[::]?\s*(?=[A-Z(])"), " the answer is "),
    (re.compile(r"(?<=\b[A-Z]) (?:und|y|et|e|и) (?=[A-Z]\b)"), " and "),
)  # fmt: skip
_SAID: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:正确的?)?(?:顺序|順序|排序)(?:是|为|應為|应为|:)+\s*"), "the order is "),
    (re.compile(r"\b(?:die |el |l'|la |l’)?(?:(?:richtige|korrekte) )?(?:reihenfolge|orden|ordre|ordem|secuencia)"
                r"(?: (?:correcto|correcta|correct|correta))? (?:ist|lautet|est?|é)(?!\w)\s*:?\s*", re.I),
     "the order is "),
    (re.compile(
        r"\b(?:von|desde|de|da|du) (?=\d[\d.,:]*\s*[a-z]{0,10}\s*(?:bis|a|à|al|hasta|até)\s+\d)",
        re.I), "from "),
    (re.compile(
        r"(?<=\d)( ?(?:s|sek|sec|min|sekunden|segundos|secondes|secondi)?\.?) (?:bis|à|hasta|até|(?-i:al?)) (?=\d)",
        re.I), r"\1 to "),
    (re.compile(r"(?<=\d)\s*(?:sekunden?|segundos?|secondes?|second[oi])\b", re.I), " seconds"),
    (re.compile(r"(?<=\d)\s*(?:minuten|minutos?|minut[oi])\b", re.I), " minutes"),
    (re.compile(r"(?<=[A-Z0-9])\s*(?:和|与|及)\s*(?=[A-Z0-9])"), " and "),
    (re.compile(r"第\s*(\d+)\s*帧\s*(?:[::]|是)?"), r"frame \1: "),
    (re.compile(rf"(?:图片|图像|图|圖片|圖)\s*(\d+|[AB](?![A-Za-z]))(?=[{_HAN},;。,]|$)"), r"image \1 "),
    (re.compile(r"第一(?:张|个|幅|段)?(?:图片|图像|图|视频)?"), " the first image "),
    (re.compile(r"第二(?:张|个|幅|段)?(?:图片|图像|图|视频)?"), " the second image "),
    (re.compile(
        r"\b(?:das |la |die |o |il )?(?:erste|première|primera|prima|primeira) (?=bild|image|video|vidéo)", re.I),
     "the first "),
    (re.compile(
        r"\b(?:das |la |die |o |il )?(?:zweite|deuxième|seconde|segunda|seconda) (?=bild|image|video|vidéo)", re.I),
     "the second "),
    (re.compile(r"\b(?<=first )bild\b|\b(?<=second )bild\b", re.I), "image"),
    (re.compile(r"(?:质量)?(?:更好|更佳|更优|更高)"), " is better "),
    (re.compile(r"\b(?:bild|(?:la )?imagen|l['’]image|immagine|imagem) (1|2|a|b)\b", re.I), r"image \1"),
    (re.compile(
        r"\b(?:ist (?:besser|schärfer)|es mejor|est (?:meilleure?|mieux)|é melhor|è migliore)\b", re.I),
     "is better"),
    (re.compile(r"(?<=[\w)])\s*(?:对应|匹配)(?:的是)?\s*(?=[\w(])"), " matches "),
    (re.compile(r"(?:没有|没有任何|無|无)异常(?:事件|情况|行为)?"), "no anomaly"),
    (re.compile(r"^(?:(?:该|这个|此)?视频(?:内容)?(?:是|为)?)?(?:一切)?正常(?:的)?[。.]?$"), "normal"),
)  # fmt: skip
_WRITTEN = re.compile(rf"(?<![{_HAN}])(?:共有?|一共有?|总共有?|有|大约|约)?([零〇一二两兩三四五六七八九十百千]{{1,9}})"
                      rf"[{_COUNTED}]?(?![{_HAN}])")  # fmt: skip
_AMOUNT = re.compile(rf"(?<=[{_HAN}])(?=-?\d)")
_UNITS = tuple((re.compile(rf"(?<=\d)\s*{said}"), unit) for said, unit in (
    ("毫米", " mm"), ("厘米|公分", " cm"), ("千米|公里", " km"), ("平方米", " m^2"), ("米", " m"),
    ("度(?!数)", " degrees"),
))  # fmt: skip
_COUNT = re.compile(rf"(?<=\d)\s*[{_COUNTED}](?=[{_HAN},;。,.\s]|$)")


def stated(text: str) -> str:
    """ "The answer is" in English, and "and" between letters; a text without them is as it was."""
    return _said(text[:LONGEST], _STATED)


def in_english(text: str) -> str:
    """The frame of an answer in English, whatever it says: orders, times, pairs and verdicts, too."""
    return _said(stated(text), _SAID)


def _said(text: str, forms: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for said, plainly in forms:
        text = said.sub(plainly, text)
    return text


def amounts(text: str) -> str:
    """Chinese numerals, classifiers and units as the plain ones: `共有二十三个` as `23`, `大约10米` as `10 m`."""
    if not re.search(rf"[{_HAN}]", text):
        return text
    text = _WRITTEN.sub(lambda m: str(numeral(m[1])), text)
    for said, unit in _UNITS:
        text = said.sub(unit, text)
    return _COUNT.sub(" ", _AMOUNT.sub(" ", text))


def numeral(written: str) -> int:
    """`二十三` as 23, `一百零五` as 105, `二〇二四` as 2024."""
    if not any(c in _SCALES for c in written):
        return int("".join(str(_NUMERALS[c]) for c in written))
    total = digit = 0
    for c in written:
        if c in _SCALES:
            total += (digit or 1) * _SCALES[c]
            digit = 0
        else:
            digit = _NUMERALS[c]
    return total + digit
