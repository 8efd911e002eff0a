"""The words around an option's mention that state, deny, weigh or take it back. Mentions are single characters.

`mmrl.rewards.chosen` writes every mention of an option as one character of the private use area (`MENTION`) and asks
these patterns about the text before it (they end with `$`) and behind it (they are matched at its start).
"""

from __future__ import annotations

import re

from mmrl.rewards.answers import TAKEN_BACK

FIRST = 0xE000  # the mention of the first option; the others follow
MENTION = "[\ue000-\ue0ff]"
KNOWN = "[\ue000-\ue0fe]"
OTHER = "\ue0ff"  # a thing that no option names, though its name holds an option's text: "light blue"
BOLD = "\uf000"
HAN = "\u4e00-\u9fff"
_M = MENTION
_AFTER = r"[\"')\]$.]*"  # what may close a mention
_ONE = rf"(?:the\s+|an?\s+)?(?:options?\s+)?[\"'(]*{_M}"
_LIST = rf"{_M}[\"')\]]*(?:\s*,\s*[\"'(\[]*{_M}[\"')\]]*)*"

# ------------------------------------------------------------------------------- is a lone letter a mention at all?
ARTICLE_THEN = re.compile(
    r"\s+(?!(?:because|since|as|for|is|or|and|but|which|was|seems?|looks?|shows?|has|would|must|does\w*"
    r"|isn't|can\w*|instead|rather|not|over|due|given|if|nor|are|were|maybe|may|might|could|it|fits|remains|matches"
    r"|makes|then)\b)[a-z]|\s+[A-Z][a-z]|\s+[\ue000-\ue0fe]"
)
I_THEN = re.compile(r"\s+(?!(?:because|since|as|is|or|and|nor)\b)[A-Za-z]|'")
MAY_PRECEDE = re.compile(
    rf"(?:^|[.,;:!?(\[{{#\n\"'=/&+|>$\u2717\u2718\u274c\u2713\u2714\u2705\u2192\u21d2\u2026\u2014\u2013-]"
    rf"|[{HAN}]|{_M}|{BOLD}|\b(?-i:[A-Z])|\b(?:is|be|was|are"
    r"|answers?|options?|choices?|letters?|statements?|choos\w+|chose|chosen|selec\w+|out|"
    r"pick\w*|with|for|therefore|so|thus|hence|or|and|not|than|of|either|neither|nor|but|it's|that|that's|answer's"
    r"|says?|both|between|whether|if|no|yes|nope|now|wait|sorry|oops|hmm|however|instead|rather|mean|maybe|perhaps"
    r"|possibly|because|since|while|it|then|first|second|next|last|also|finally|still|yet|by|like|unlike|vs|versus|plus|when"
    r"|what|even|although|though|es|ist|est|"
    r"guess|think|believe|to|as|towards?|suggests?|indicates?|means|implies|gives|checking|considering|leaving|leaves|prefer|only|just|actually|doubt|question|\w+ly))\s*$",
    re.IGNORECASE,
)

# ----------------------------------------------------------------------------------------------------------- denied
_BREAK = (
    r"(?:(?!\b(?:but|so|therefore|thus|hence|then|answer|because|since|it is|it's|must|leaves|leaving)\b)"
    r"[^,.;:!?\n])*\Z"
)
_EXCLUDED = r"rul\w+ out|eliminat\w+|exclud\w+|reject\w*|discard\w*|cross\w* out"
NEGATED = re.compile(
    rf"(?:\b(?:not(?!\s+(?:only|just|merely|simply)\b)|never|neither|nor|none of|cannot|can't|except|rather than"
    rf"|instead of|{_EXCLUDED}"
    r"|without(?!\s+(?:a\s+|any\s+)?(?:doubt|question))|no(?!\s+(?:doubt|question|wait))"
    rf"|other than|apart from|aside from|(?:any|every)(?:thing|one)? but|all but)\b|n't\b|不是|不选|并非){_BREAK}"
    r"|(?:n't|\bnot)\s+(?:think|believe|say)\s+(?:that\s+)?(?:it's|it is|the answer is)\s+(?:option\s+)?[\"'(]*$"
    rf"|\b(?:more|better|closer|nearer|likelier|rather|greater)\b[^.;,\n]*\bthan\s+(?:options?\s+)?[\"'(]*\Z"
    rf"|\b(?:unlike|in contrast to|as opposed to|compared (?:to|with))\s+(?:{_ONE}[\"')]*\s+(?:or|and|nor)\s+)*"
    r"(?:the\s+|an?\s+)?(?:options?\s+)?[\"'(]*\Z"
    rf"|\bprefer\s+(?:options?\s+)?[\"'(]*{_M}[\"')]*\s+to\s+(?:options?\s+)?[\"'(]*\Z"
    r"|(?<!no )(?<!without )(?<!without a )(?<!without any )\bdoubt(?:s|ed|ful)?\b[^,.;:!?\n]*$",
    re.IGNORECASE,
)
DENIED = re.compile(
    rf"[\s\"')\].:]*(?:\s*(?:,|and|or|&|nor)\s*{_M})*\s*(?:,|:|-)?\s*(?:(?:is|are|was|were|seems?"
    rf"|looks?|can be|must be|would be)\s+)?(?:also\s+|\w+ly\s+)?"
    r"(?:(?:the\s+)?(?:least|less)\s+(?:likely|plausible|probable|fitting|suitable|convincing|accurate|relevant)\b|"
    rf"(?:not(?!\s+(?:the\s+|an?\s+)?(?:options?\s+)?[\"'(]*{_M})|wrong"
    r"|incorrect|false|out|impossible|eliminated|excluded|ruled "
    rf"out|unlikely|invalid)\b|(?:is|was|are|would|does|do|ca|could)n't\b|cannot\b|(?:does|do|can"
    rf"|would|could) not\b)"
    r"|[\"')\].]*(?: one)?\s*(?:[,:;(?>=\u2192\u2013\u2014-]|\.\.+|\u2026)*\s*(?:no|nope)"
    r"(?=\s*(?:[,.;:!)\]\u2013\u2014-]"
    rf"|\n|$|wait))|{_AFTER}\s*\.\s*(?:No|Nope)\s*(?:[.;!]|\n|$)|[\"')\].:]*\s*[\u2717\u2718\u274c\u00d7]"
    r"|[^.;\n\ue000-\ue0ff]{0,80}\bso no\b",
    re.IGNORECASE,
)
DENIED_LIST = re.compile(
    rf"(?:\b(?:not|neither|none of)\s+(?:options?\s+)?[\"'(\[]*(?P<some>{_LIST}\s*,?\s*(?:or|and|nor)\s+[\"'(\[]*{_M})"
    rf"(?={_AFTER}\s*(?:[,;:!\n]|$|so\b|but\b|because\b|is\b|are\b))"
    rf"|\b(?:{_EXCLUDED})\s+(?:options?\s+)?[\"'(\[]*(?P<all>{_LIST}(?:\s*,?\s*and\s+[\"'(\[]*{_M})?))",
    re.IGNORECASE,
)

NO_OTHER = re.compile(
    r"\b(?:can't|cannot|can not|couldn't|could not|isn't|is not)(?: be)? any(?:thing|one)?"
    r"(?: other| else)?(?: option)? (?:but|than|except)\b",
    re.IGNORECASE,
)
"""What denies all the others: "it can't be anything but B"."""

# ----------------------------------------------------------------------------------------------- held possible only
WEIGHED_LIST = re.compile(
    rf"\b(?:between|whether|either)\s+(?:options?\s+)?[\"'(\[]*(?P<some>{_LIST}\s*,?\s*(?:or|and|nor)\s+[\"'(\[]*{_M})"
    rf"|(?P<all>{_LIST}\s*,?\s+or\s+(?!rather)[\"'(\[]*{_M})",
    re.IGNORECASE,
)
POSSIBLY = re.compile(
    r"(?:\b(?:could|may|might|can)\s+(?:also\s+|well\s+)*be|\bor|\bmaybe|\bpossibly|\bperhaps|\bwhether|\bif)\s+"
    r"(?:it's\s+|it is\s+|the answer is\s+)?"
    r"(?:the\s+|an?\s+)?(?:options?\s+)?[\"'(]*$",
    re.I,
)
POSSIBLE = re.compile(
    rf"{_AFTER}\s*,?\s*(?:maybe|perhaps|possibly)\b|{_AFTER}\s+(?:(?:is|are|seems?)\s+(?:also\s+|both\s+)*"
    r"(?:possible|plausible|conceivable|(?:a|one|another)\s+possibility)|(?:could|may|might)\s+(?:also\s+|well\s+)*be)\b",
    re.IGNORECASE,
)
NO_IDEA = re.compile(r"\bno (?:idea|clue|way to)\b", re.IGNORECASE)
IF = re.compile(r"\bif\b", re.IGNORECASE)
DOUBT = re.compile(
    r"\b(?:cannot|can't|can not|couldn't|unable to) (?:tell|say|see|decide|determine|be sure)|\b(?:unsure"
    r"|not sure|don't know|do not know|no idea|either(?!\s*[,.;])|whether|maybe|perhaps)\b",
    re.I,
)

# ----------------------------------------------------------------------------------------------------------- stated
STATED = re.compile(
    rf"(?:\b(?:answers?(?:'s)?[\"']?|choice|selection|solution|response|conclusion|decision|(?:correct|right|best"
    rf"|final|my)\s+(?:option|choice|one|letter))(?![ \w]*\?)"
    r"(?:\s+(?:to|for|of|here)\b[^.;:!?\n]{0,60}?)?\s*(?:is|are|=|:|\u2192|->|would be|should be|must "
    r"be|will be|was)?\s*(?:is|are|:|=)?\s*"
    rf"(?:\w+ly\s+)?(?:also\s+)?(?:the\s+)?(?:one\s+)?(?:options?|choices?|letters?)?\s*[\"'(\[<:$]*\s*|{BOLD}"
    r"|\b(?:i(?:'d|'ll| would| will)?\s+)?(?:choos(?:e|ing)|chose|select(?:ing)?|pick(?:ing)?"
    r"|leav(?:es|ing)(?: (?:us|me|with|only|just))*|left with|go(?:ing)? (?:with|for)|lean(?:ing)? (?:to|towards?)"
    r"|opt(?:ing)? for|settle (?:on|for)|answer with)\s+(?:with\s+)?"
    r"(?:the\s+)?(?:options?|choices?|letters?)?\s*[\"'(\[]*\s*)$",
    re.IGNORECASE,
)
TURNED = re.compile(
    rf"(?:{TAKEN_BACK}|\b(?:yes|indeed|but now)\b)[\s,.:;!\u2026\u2014\u2013-]*(?:\w+ly\s+)?(?:it's\s+|it is\s+)?"
    r"(?:the\s+|an?\s+)?(?:options?\s+|answer\s+(?:is\s+)?)?[\"'(\[]*$",
    re.IGNORECASE,
)
_CLAUSE_ENDS = r"(?: one| it is)?\s*(?:[,.;:!)\]\n]|$|(?:because|since|as|instead|or|and)\b|/)"
CLAUSE_ENDS = re.compile(rf"[\"')\]$]*{_CLAUSE_ENDS}", re.IGNORECASE)
LEANING = re.compile(
    r"(?:(?<!because )(?<!since )(?<!if )(?<!as )\b(?:it|this|that|which|result|he|she|object|picture|image)"
    r"(?:'s|\s+is|\s+must be|\s+should "
    r"be|\s+has to be|\s+would be|\s+are)\s+(?:\w+ly\s+)?(?:the\s+|an?\s+)?(?:options?\s+)?"
    r"|\b(?:since|because|as|given)\b[^.;:!?\n\ue000-\ue0ff]*,\s*(?:options?\s+)?"
    r"|\b(?:suggests?|indicates?|implies|points? to|corresponds? to)\s+(?:options?\s+)?"
    r"|(?<!not )\bonly\s+(?:options?\s+)?"
    r"|\b(?:therefore|so|thus|hence|must be|should be)\b[\s,:]*(?:it(?:'s| "
    r"is)\s+)?(?:the\s+)?(?:options?\s+)?)[\"'(\[]*\s*$",
    re.IGNORECASE,
)
CONFIRMED = re.compile(
    rf"{_AFTER}\s*(?:is|are|must be|would be|seems|has to be"
    r"|looks)\s+(?:also\s+|\w+ly\s+)?(?:the\s+)?(?:only\s+|most\s+|best\s+)?(?:correct|right|best|better|answers?"
    r"|true|final|valid|left|one that|one left|likelier|closer|more likely)\b(?!\s+(?:if|at first|only if)\b)"
    rf"|{_AFTER}\s+(?:(?:also\s+)?(?:fits|matches|remains|wins)\b|makes\s+(?:the most|more|better)\s+sense\b"
    r"|it is\s*(?:[.!]|$|\n)|is\s*(?:[.!]|$|\n))|[\"')\]]*\s*,?\s*(?:because|since)\b"
    r"|[\"')\]]*\s*[,:;(?>=\u2192\u2013\u2014-]*\s*(?:yes|true|correct|right)(?=\s*(?:[,.;:!)\]\u2013\u2014-]|\n|$"
    r"|[\ue000-\ue0ff]))|[\"')\]]*\.\s*(?:yes|true|correct|right)\s*(?:[.;!]|\n|$)|[\"')\].:]*\s*[\u2713\u2714\u2705]",
    re.IGNORECASE,
)

# ----------------------------------------------------------------------------------------------------------- joined
JOINED_AFTER = re.compile(
    rf"[\"')\].]*\s*(?:,?\s*(?:or|and|nor|as well as)\s+(?:also\s+|maybe\s+|possibly\s+)?|/|&"
    rf"|\|)\s*[\"'(\[]*({_M})|[\"')\]]*\s*,\s*[\"'(\[]*({_M})(?=[\"')\]]*\s*(?:[.;,\n]|$|or\b|and\b))"
    rf"|[\"')\]: ]*({_M})",
    re.I,
)
JOINED_BEFORE = re.compile(rf"({_M})[\"')\]]*\s*(?:,|,?\s*(?:or|and)|/|&|\|)\s*[\"'(\[]*$", re.IGNORECASE)
