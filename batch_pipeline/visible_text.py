"""Makes untrusted text safe to display: file names, descriptions, reasons.

Only invisible characters are changed here. Code that renders the text must escape markup itself.
"""

import unicodedata

#: Replaces characters that must not reach a screen.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Joiners belong to the spelling of Persian and Indic words, and to emoji.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def visible(text: object) -> str:
    """Replace characters that could move a cursor or reorder a line; keep line ends and tabs."""
    given = str(text)
    if given.isprintable():  # true for nearly all texts, and 50 times faster than the loop
        return given
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" or character in "\n\t" + _JOINERS
        else REPLACEMENT
        for character in given.replace("\r\n", "\n")
    )


def visible_line(text: object) -> str:
    """Do the same and put the text on one line: line ends and tabs become spaces."""
    return " ".join(visible(text).replace("\t", "\n").split("\n"))
