"""failures: owns telling from a tool's words that its call failed, where nobody recorded it. Pure."""

from __future__ import annotations

import re
from typing import Final

#: Of a result, at its end and at its beginning: programs say why they failed last, tool runners say it first.
_READ: Final = 600

# What the appliance's own tools and the usual runners say. A file that merely quotes one of these is taken for a
# failure; what is kept out of training by mistake costs little, what is trained by mistake costs more.
_AT_END: Final = re.compile(r"\[exit code (?!0\])\d+\]\s*$|\[stderr\][\s\S]*\b(?:Error|not found)\b[^\n]*\s*$")
_AT_START: Final = re.compile(
    r"\s*(?:\S{1,64} was not run[.:]|There is no tool\b|there is no tool\b|Traceback \(most recent call last\)"
    r"|['\"][^'\"\n]{1,300}['\"] (?:is not there|cannot be|lies outside|is a directory;|is no regular|is not text"
    r"|is not UTF-8)"
    r"|old is (?:empty;|not in |in )|(?:\w*Error|\w*Exception)\b[:(]|(?:error|fatal|failed)\s*:|\{\"error\":)",
    re.IGNORECASE,
)


def is_failure(result: str) -> bool:
    """Return whether a tool's result tells of a failure."""
    return bool(_AT_START.match(result[:_READ]) or _AT_END.search(result[-_READ:]))
