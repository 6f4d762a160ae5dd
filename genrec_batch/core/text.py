"""Text from data made harmless: what a terminal, a log or a page would obey instead of show is shown as an escape.

Owns: which characters these are. Must not know: where a text is shown.
"""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1 (ESC and CSI are how ANSI sequences begin), marks and overrides of the direction of
# text, separators that some readers take for line ends, the byte order mark, interlinear marks, halves of pairs, tags.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
LINES = re.compile(
    r"\n(?! )|\t"
)  # our own messages go on with an indented line; a line from data could pose as a log's


def harmless(text: str, *, one_line: bool = False) -> str:
    r"""Return a text in which control characters are escapes, such as `\x1b` or `\u202e`.

    `one_line` makes one also of each tab and of each newline that no blank follows.
    """
    text = OBEYED.sub(_escape, text)
    return LINES.sub(_escape, text) if one_line else text


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
