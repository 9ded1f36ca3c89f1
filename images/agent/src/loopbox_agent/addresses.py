"""addresses: owns the forms of the ids and names in addresses; what fits none of them is the address of nothing."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.convertors import Convertor, register_url_convertor


class _Number(Convertor[int]):
    """A number that is read as one in no time, which the framework's own need not be."""

    regex = "[0-9]{1,19}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())  # as in "/agents/memory/{memory_id:number}"

_THREAD = r"^thread_[0-9a-f]{16}$"
_HELD = r"^held_[0-9a-f]{16}$"
_CONTROL = r"\x00-\x1f\x7f\ufffd"  # the last stands for bytes that are no UTF-8

RunPath = Annotated[str, Path(pattern=r"^run_[0-9a-f]{16}$")]
ThreadPath = Annotated[str, Path(pattern=_THREAD)]
HeldPath = Annotated[str, Path(pattern=_HELD)]
MemoryPath = Annotated[int, Path(ge=0, lt=1 << 62)]
UserPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
ServerPath = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
#: One line without a slash, 1 to 200 characters, no space at its ends.
DocumentPath = Annotated[str, Path(pattern=rf"^[^\s/{_CONTROL}]([^/{_CONTROL}]{{0,198}}[^\s/{_CONTROL}])?$")]

BeforeThread = Annotated[str | None, Query(pattern=_THREAD)]
BeforeHeld = Annotated[str | None, Query(pattern=_HELD)]
