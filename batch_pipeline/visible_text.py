"""Text of strangers, made fit to be looked at: file names, descriptions, reasons.

Only what a reader cannot see is changed here; markup is the business of whoever renders the text.
"""

import unicodedata

#: Shown in place of what must not reach a screen.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Joiners belong to the spelling of Persian and Indic words, and to emoji.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def visible(text: object) -> str:
    """Replace what could move a cursor or reorder a line; line ends and tabs stay."""
    given = str(text)
    if given.isprintable():  # nearly all, and 50 times faster to tell
        return given
    return "".join(
        character
        if unicodedata.category(character)[0] != "C" or character in "\n\t" + _JOINERS
        else REPLACEMENT
        for character in given.replace("\r\n", "\n")
    )


def visible_line(text: object) -> str:
    """The same on one line: line ends and tabs become spaces."""
    return " ".join(visible(text).replace("\t", "\n").split("\n"))
