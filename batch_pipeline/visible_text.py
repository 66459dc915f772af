"""Makes untrusted text safe to display: file names, descriptions, reasons.

Only invisible characters are changed here. Code that renders the text must escape markup itself.
"""

import unicodedata

#: Replaces characters that must not reach a screen.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Joiners belong to the spelling of Persian and Indic words, and to emoji.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
#: Emoji that are newer than Python's tables count as unassigned. In this block they are visible.
_FIRST_EMOJI, _LAST_EMOJI = "\U0001f000", "\U0001faff"


def visible(text: object) -> str:
    """Replace characters that could move a cursor or reorder a line; keep line ends and tabs."""
    given = str(text)
    if given.isprintable():  # true for nearly all texts, and 50 times faster than the loop
        return given
    return "".join(
        character if _is_shown(character) else REPLACEMENT
        for character in given.replace("\r\n", "\n")
    )


def _is_shown(character: str) -> bool:
    return (
        unicodedata.category(character)[0] != "C"
        or character in "\n\t" + _JOINERS
        or _FIRST_EMOJI <= character <= _LAST_EMOJI
    )


def visible_line(text: object) -> str:
    """Do the same and put the text on one line: line ends and tabs become spaces."""
    return " ".join(visible(text).replace("\t", "\n").split("\n"))


def shown_filename(filename: str) -> str:
    """Return the name of a file on one line; an upload of another program may have none."""
    return visible_line(filename) or "(no name)"
