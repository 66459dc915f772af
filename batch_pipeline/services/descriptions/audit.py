"""Audit of descriptions: a score from 0 to 100, and the reasons for it.

The audit finds text that is not a description, such as endless repetition. It is a pure function
over text; `upload_processing` decides what happens to a text that fails. It checks the form, not
the truth. It has to be fair to every language. So lengths, words and repetition are counted in a
way that is comparable in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and
checks for Latin letters are applied only to Latin letters.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import eq

from batch_pipeline.languages import language_name, other_language
from batch_pipeline.services.descriptions.refusals import refusal_in

FULL_SCORE = 100
#: A text with this score or a better one is stored.
PASS_SCORE = 60

CONTROL_TOKENS = ("<|", "|>")
SHORTEST = 50
LONGEST = 5000
LEAST_UNIQUE_WORDS = 0.20
REPEATS_IN_A_ROW = 4
MOST_SYMBOLS = 0.30


@dataclass(frozen=True)
class Penalty:
    """One reason for a lower score."""

    name: str
    """Stable name in ``snake_case``."""
    points: int
    reason: str
    """One sentence with the numbers, for people."""


@dataclass(frozen=True)
class AuditResult:
    """Verdict on one text."""

    score: int
    """100 minus the points of all penalties, at least 0."""
    passed: bool
    penalties: tuple[Penalty, ...]

    @property
    def reasons(self) -> str:
        """The reasons of all penalties, in sentences; empty if there are none."""
        return " ".join(penalty.reason for penalty in self.penalties)


def audit(text: str, language: str = "") -> AuditResult:
    """Score a description; never raises.

    Args:
        text: the description.
        language: tag of the expected language; empty: any language.

    ==================== ====== =============================================================
    penalty              points when
    ==================== ====== =============================================================
    ``empty``               100 nothing but white space; no other rule is applied
    ``control_token``        50 ``<|`` occurs, any number of times; another 50 for ``|>``
    ``too_short``            30 under 50 characters (a Han, kana or Hangul one counts 2.5)
    ``too_long``             20 over 5000 characters
    ``few_unique_words``     40 under 20 % of the words are different
    ``repeated_word``        35 the same word 4 times in a row
    ``repeated_phrase``      35 the same phrase of 2 to 100 words 4 times in a row
    ``symbols``              25 over 30 % of the characters are neither letters nor spaces
    ``character_soup``       45 over a quarter of the letters are in words that no language has, or
                                four scripts are mixed, or under 40 % of the characters are letters
    ``structured_data``      45 JSON, or the beginning of it, instead of sentences
    ``refusal``              45 the model declines, or says that it sees no picture
    ``no_common_words``      15 no everyday word of any known language (Latin script only)
    ``no_sentence``          15 under 3 words, or 20 or more without the end of a sentence
    ``wrong_language``       45 the text is certainly in another language than the expected one
    ==================== ====== =============================================================
    """
    text = text.strip()
    penalties = (
        tuple(_penalties(text, language))
        if text
        else (Penalty("empty", 100, "The text is empty."),)
    )
    score = max(0, FULL_SCORE - sum(penalty.points for penalty in penalties))
    return AuditResult(score, score >= PASS_SCORE, penalties)


def _penalties(text: str, language: str) -> Iterator[Penalty]:
    words = _words(text)
    characters = Counter(text)
    yield from _control_tokens(text)
    yield from _length(text)
    yield from _repetition(text, words)
    yield from _symbols(characters)
    yield from _soup(characters, words)
    yield from _structure(text, words)
    if language and (other := other_language(text, language)):
        asked = language_name(language)
        yield Penalty("wrong_language", 45, f"The text is in {other}, but {asked} was asked for.")


# Words and scripts ----------------------------------------------------------------------------

#: Scripts without spaces. A word has about two characters in the first kind, and about four in the
#: second kind, which are alphabets. Runs of such characters are counted as overlapping pieces of
#: that length.
_SYLLABIC = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED_ALPHABETS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_HANGUL = "\uac00-\ud7a3"
_APOSTROPHES = "'\u2019"
_RUNS = re.compile(
    f"(?P<syllabic>[{_SYLLABIC}]+)|(?P<alphabet>[{_UNSPACED_ALPHABETS}]+)"
    f"|(?P<spaced>[^\\s{_SYLLABIC}{_UNSPACED_ALPHABETS}]+)"
)
_DENSE = re.compile(f"[{_SYLLABIC}{_HANGUL}]")
#: One such character counts as this many Latin letters, so 20 of them count as 50 letters.
_DENSE_WEIGHT = 2.5
_UNSPACED_LOOP = re.compile(
    f"([{_SYLLABIC}{_UNSPACED_ALPHABETS}]{{1,24}}?)\\1{{{REPEATS_IN_A_ROW - 1}}}"
)


def _words(text: str) -> list[str]:
    """Return the words, with their case; in scripts without spaces, pieces of a word's length."""
    between = {c for c in set(text) if _kind(c) not in "LMN" and c not in _APOSTROPHES}
    spaced = text.translate(dict.fromkeys(map(ord, between), " "))
    words: list[str] = []
    for run in _RUNS.finditer(spaced):
        if run["spaced"]:
            words.append(run["spaced"])
            continue
        length = 2 if run["syllabic"] else 4
        piece = run.group()
        words += [piece[i : i + length] for i in range(max(1, len(piece) - length + 1))]
    return words


@lru_cache(maxsize=8192)
def _kind(character: str) -> str:
    """Return L letter, M mark, N number, Z space, or another category's first letter."""
    if character.isspace():
        return "Z"
    category = unicodedata.category(character)
    # Joiners (Cf) are invisible characters within Persian, Hindi and other words.
    return "M" if category == "Cf" else category[0]


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if name in {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"} else name


# Rules ------------------------------------------------------------------------------------------


def _control_tokens(text: str) -> Iterator[Penalty]:
    for token in CONTROL_TOKENS:
        if count := text.count(token):
            yield Penalty("control_token", 50, f"The control token {token} occurs {count} times.")


def _length(text: str) -> Iterator[Penalty]:
    dense = len(_DENSE.findall(text))
    length = len(text) + dense * (_DENSE_WEIGHT - 1)
    if length < SHORTEST:
        counted = f" (counted as {length:.0f})" if dense else ""
        yield Penalty(
            "too_short",
            30,
            f"The text has {len(text)} characters{counted}, fewer than {SHORTEST}.",
        )
    if len(text) > LONGEST:
        yield Penalty("too_long", 20, f"The text has {len(text)} characters, more than {LONGEST}.")


_LONGEST_PHRASE = 100


def _repetition(text: str, words: list[str]) -> Iterator[Penalty]:
    folded = [word.casefold() for word in words]
    unique = len(set(folded))
    if words and unique / len(words) < LEAST_UNIQUE_WORDS:
        yield Penalty(
            "few_unique_words",
            40,
            f"Only {unique} of {len(words)} words are different "
            f"({unique / len(words):.0%}, at least {LEAST_UNIQUE_WORDS:.0%} expected).",
        )
    unspaced = _UNSPACED_LOOP.search(text)
    repeated = unspaced[1] if unspaced else _repeated(folded, 1)
    if repeated:
        yield Penalty(
            "repeated_word",
            35,
            f"The word “{repeated[:30]}” occurs {REPEATS_IN_A_ROW} or more times in a row.",
        )
        return
    # A model that has begun to loop does not stop, so the end of the text is enough.
    end = folded[-2000:]
    # A phrase that occurs four times needs words that occur four times, and it has at most a
    # quarter of all words.
    if max(Counter(end).values(), default=0) < REPEATS_IN_A_ROW:
        return
    for length in range(2, min(_LONGEST_PHRASE, len(end) // REPEATS_IN_A_ROW) + 1):
        if repeated := _repeated(end, length):
            yield Penalty(
                "repeated_phrase",
                35,
                f"The phrase “{repeated[:60]}” occurs {REPEATS_IN_A_ROW} or more times in a row.",
            )
            return


def _repeated(words: list[str], length: int) -> str:
    """Return the first phrase of `length` words that occurs 4 times in a row; empty if none."""
    wanted = length * (REPEATS_IN_A_ROW - 1)
    if sum(map(eq, words, words[length:])) < wanted:
        return ""
    same = 0
    for i in range(length, len(words)):
        same = same + 1 if words[i] == words[i - length] else 0
        if same == wanted:
            return " ".join(words[i - length + 1 : i + 1])
    return ""


def _symbols(characters: Counter[str]) -> Iterator[Penalty]:
    symbols = sum(count for c, count in characters.items() if _kind(c) not in "LMZ")
    share = symbols / characters.total()
    if share > MOST_SYMBOLS:
        yield Penalty(
            "symbols",
            25,
            f"{share:.0%} of the characters are neither letters nor spaces, "
            f"at most {MOST_SYMBOLS:.0%} expected.",
        )


_SOUP_SHARE = 0.25
#: Smallest share of letters among all characters except white space. Receipts and tables are above
#: it, rows of numbers are not.
_LEAST_LETTERS = 0.40
#: The longest German and Finnish compounds that people write have about 40 letters.
_LONGEST_WORD = 45
_SCRIPTS_AT_ONCE = 4
#: No word of a language in Latin letters looks like this, with or without accents: four letters or
#: more without a vowel; five consonants in a row (sch, ch and similar ones count as one); capitals
#: between small letters, twice or more; digits between letters, twice or more.
_ODD_LATIN = re.compile(r"^[b-df-hj-np-tvwxz]{4,}$|[b-df-hj-np-tvwxz]{5}")
_ODD_CASE = re.compile(r"[a-z][A-Z]+[a-z]+[A-Z]|\d[a-zA-Z]+\d+[a-zA-Z]|[a-z]\d+[a-zA-Z]+\d")
_ONE_SOUND = re.compile(r"sch|s[hz]|c[hkz]|t[hsz]|p[fh]|n[gk]|[gkrw]h|dz|rz|l[lj]|([a-z])\1")


def _soup(characters: Counter[str], words: list[str]) -> Iterator[Penalty]:
    visible = {c: count for c, count in characters.items() if not c.isspace()}
    in_words = sum(count for c, count in visible.items() if _kind(c) in "LM")
    readable = in_words / sum(visible.values())
    if readable < _LEAST_LETTERS:
        yield Penalty(
            "character_soup",
            45,
            f"Only {readable:.0%} of the characters are letters, "
            f"at least {_LEAST_LETTERS:.0%} expected.",
        )
        return
    letters = sum(len(word) for word in words)
    odd = [word for word in words if _is_odd(word)]
    share = sum(len(word) for word in odd) / letters if letters else 0.0
    if share > _SOUP_SHARE:
        yield Penalty(
            "character_soup",
            45,
            f"{share:.0%} of the letters are in words that no language has, "
            f"such as “{odd[0][:20]}”.",
        )
        return
    scripts: Counter[str] = Counter()
    for c, count in Counter("".join(words)).items():
        if _kind(c) == "L":
            scripts[_script(c)] += count
    frequent = [script for script, count in scripts.items() if count >= 0.05 * letters]
    if len(frequent) >= _SCRIPTS_AT_ONCE:
        yield Penalty(
            "character_soup",
            45,
            f"{len(frequent)} scripts are mixed: {', '.join(sorted(frequent)).title()}.",
        )


@lru_cache(maxsize=8192)
def _is_odd(word: str) -> bool:
    if len(word) > _LONGEST_WORD:
        return True
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if _kind(c) != "M")
    if not plain.isascii():
        return False
    return bool(_ODD_CASE.search(plain) or _ODD_LATIN.search(_ONE_SOUND.sub("s", plain.lower())))


#: Everyday words of languages written in Latin letters.
_COMMON = """
the a an of and in is with on at are to it by der die das und ist ein eine mit im auf von den zu
sind le la les un une et des du est dans sur avec au el los las y en una con de del es por se
sobre o os as um uma com no na do da e em é il lo gli i di che è sono per su nel della het een
van met op zijn og på er av til som med ett och är det af ja että ovat ei jossa w z jest się po
są v je s so sú pri az egy és nem hogy și cu pe este din ve bir bu ile için dan yang dengan ini
itu pada ng ang sa mga ay và là của có một trên với trong ya wa kwa ni katika u ir yra ar ning
eta bat amb els ac yn mae agus tá
"""
_COMMON_WORDS = frozenset(_COMMON.split())
_FEW_WORDS = 12
_SHORTEST_SENTENCE = 3
_LONG_WITHOUT_STOP = 20
_SENTENCE_ENDS = re.compile(  # Latin, CJK, Arabic, Indic, Armenian, Ethiopic, Tibetan, Khmer
    "[.!?\u2026\u3002\uff01\uff1f\uff61\uff0e\u061f\u06d4\u0964\u0965\u0589\u1362\u0f0d\u104b\u17d5]"
)
#: These scripts end a sentence with a space, if at all.
_NO_FULL_STOP = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")
_JSON = re.compile(r"^(?:```\w*\s*)?[{\[]\s*[{\[\"].*[\":,\]}]", re.DOTALL)


def _structure(text: str, words: list[str]) -> Iterator[Penalty]:
    if _JSON.match(text):
        yield Penalty(
            "structured_data", 45, f"The text begins as JSON, not as a sentence: {text[:20]!r}."
        )
    if refusal := refusal_in(text):
        yield Penalty("refusal", 45, f"The text begins as a refusal: {refusal[:60]!r}.")
    latin = [word for word in words if _script(word[0]) == "LATIN"]
    if len(latin) >= max(_FEW_WORDS, len(words) / 2) and not any(
        word.casefold() in _COMMON_WORDS for word in latin
    ):
        yield Penalty(
            "no_common_words",
            15,
            f"None of the {len(latin)} words is an everyday word of a known language.",
        )
    if len(words) < _SHORTEST_SENTENCE:
        yield Penalty("no_sentence", 15, f"{len(words)} words do not make a sentence.")
    elif (
        len(words) >= _LONG_WITHOUT_STOP
        and not _SENTENCE_ENDS.search(text)
        and not _NO_FULL_STOP.search(text)
    ):
        yield Penalty("no_sentence", 15, f"{len(words)} words without the end of a sentence.")
