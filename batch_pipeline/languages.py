"""Languages: their tags (BCP 47), their names in prompts, and whether a text is in one of them.

The libraries are imported only when a language is set: most people set none.
"""

import re
from functools import cache

#: English names for prompts, by the first part of a tag. Any other language is named by its tag,
#: which models also know.
_NAMES = """
af Afrikaans am Amharic ar Arabic as Assamese az Azerbaijani be Belarusian bg Bulgarian bn Bengali
br Breton bs Bosnian ca Catalan cs Czech cy Welsh da Danish de German dz Dzongkha el Greek
en English eo Esperanto es Spanish et Estonian eu Basque fa Persian fi Finnish fil Filipino
fo Faroese fr French fy Frisian ga Irish gd Gaelic gl Galician gu Gujarati ha Hausa he Hebrew
hi Hindi hr Croatian ht Haitian hu Hungarian hy Armenian id Indonesian ig Igbo is Icelandic
it Italian ja Japanese jv Javanese ka Georgian kk Kazakh km Khmer kn Kannada ko Korean ku Kurdish
ky Kyrgyz la Latin lb Luxembourgish lo Lao lt Lithuanian lv Latvian mg Malagasy mk Macedonian
ml Malayalam mn Mongolian mr Marathi ms Malay mt Maltese my Burmese nb Norwegian ne Nepali nl Dutch
nn Nynorsk no Norwegian oc Occitan or Odia pa Punjabi pl Polish ps Pashto pt Portuguese qu Quechua
ro Romanian ru Russian rw Kinyarwanda si Sinhala sk Slovak sl Slovenian so Somali sq Albanian
sr Serbian sv Swedish sw Swahili ta Tamil te Telugu tg Tajik th Thai tk Turkmen tl Filipino
tr Turkish tt Tatar ug Uyghur uk Ukrainian ur Urdu uz Uzbek vi Vietnamese xh Xhosa yo Yoruba
yue Cantonese zh Chinese zu Zulu
"""
_NAME_OF = dict(zip(_NAMES.split()[::2], _NAMES.split()[1::2], strict=True))
#: A text counts as another language if that language is likelier both in total and per character:
#: differences of log-probabilities. For each of 41 correct texts the right language was the
#: likeliest. For 1,400 pairs of a text and a wrong language, the wrong language was at least 28
#: behind in total, and 0.3 per character.
_LIKELIER, _LIKELIER_EACH = 20.0, 0.2
#: Two languages up to this distance (Unicode's CLDR) count as the same: Danish and Norwegian have
#: 12, Indonesian and Malay 14, Czech and Slovak 24.
_SAME = 14
#: How many characters of a text are examined (more add nothing), and how many letters it needs.
_LONGEST, _FEWEST_LETTERS = 2000, 10
_QUOTED = re.compile('"[^"]*"|“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»|「[^「」]*」')


def canonical_tag(tag: str) -> str:
    """Read a language tag such as ``de``, ``pt-BR``, ``zh-Hant-TW``; return its usual spelling.

    Raises:
        ValueError: it is not a language tag; the message says what is expected.
    """
    import langcodes  # noqa: PLC0415

    try:
        language = langcodes.Language.get(tag)
        if language.language and language.language != "und" and language.is_valid():
            return str(language.to_tag())
    except ValueError:
        pass
    code = next((code for code, name in _NAME_OF.items() if name.lower() == tag.lower()), "")
    meant = f"{code} is {_NAME_OF[code]}; " if code else ""
    raise ValueError(f"not the tag of a language; {meant}expected one such as de, pt-BR or zh-Hant")


def language_name(tag: str) -> str:
    """Return the name of a language for a prompt; English without a tag."""
    if not tag:
        return "English"
    code, *more = tag.split("-")
    name = _NAME_OF.get(code)
    if name is None:
        return f"(in the language with the tag {tag})"
    return f"{name} ({tag})" if more else name


def is_english(tag: str) -> bool:
    """Return whether a tag is English of any country; no tag also means English."""
    return not tag or tag.split("-", maxsplit=1)[0] == "en"


def other_language(text: str, tag: str) -> str | None:
    """Return the language of a text if it is certainly not the one that was asked for, else None.

    Quotations may be in any language. The result is also None for languages that the library
    py3langid does not know, and for closely related languages.
    """
    said = _QUOTED.sub(" ", text)[:_LONGEST]
    if sum(map(str.isalpha, said)) < _FEWEST_LETTERS:
        return None
    import langcodes  # noqa: PLC0415
    import py3langid  # noqa: PLC0415

    likely: dict[str, float] = dict(py3langid.rank(said))
    best = max(likely, key=likely.__getitem__)
    asked = _label(tag, frozenset(likely))
    if asked is None:
        return None
    behind = likely[best] - likely[asked]
    if behind <= _LIKELIER or behind <= _LIKELIER_EACH * len(said):
        return None
    if langcodes.tag_distance(tag, best) <= _SAME:
        return None
    return _NAME_OF.get(best, best)


@cache
def _label(tag: str, labels: frozenset[str]) -> str | None:
    """Return the library's code for a language; None if it does not know the language."""
    import langcodes  # noqa: PLC0415

    language = langcodes.Language.get(tag)
    macro = language.prefer_macrolanguage().language
    return next((code for code in (language.language, macro) if code in labels), None)
