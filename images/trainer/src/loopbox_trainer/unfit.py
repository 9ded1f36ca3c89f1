"""unfit: owns the error of data or settings that nothing can be learnt from: exit code 3, told in result.json."""

from __future__ import annotations


class UnfitError(Exception):
    """The data or the spec are unfit. code: one of a few names; the text says what is wrong and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
