"""pool_member: owns PoolMember, what an operator says of one model of the pool. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

MOST_MEMBERS: Final = 16
_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class PoolMember(BaseModel):
    """One model that may answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    kind: Literal["native", "openai"] = "native"  #: the engine's own dialect, or an OpenAI-style endpoint
    url: AnyHttpUrl | None = None  #: None: the gateway. openai: with its path, as a rule /v1
    model: Annotated[str, Field(min_length=1, max_length=200)] = "agent"  #: the name it is known by there
    priority: Annotated[int, Field(ge=0, le=100)] = 10  #: the lowest that is well is asked first
    weight: Annotated[int, Field(ge=1, le=1000)] = 100  #: share among those of the same priority
    num_ctx: Annotated[int, Field(ge=16, le=1 << 20)] | None = None  #: tokens of its context; None: the service's own
    first_token_s: Annotated[float, Field(gt=0, le=3600)] | None = None  #: longer is a failure; None: the engine's own
    api_key_file: Path | None = None  #: openai only; one line
    proxy: Annotated[str, Field(pattern=r"^$|^unix:/|^http://", max_length=200)] = ""  #: '': none

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "openai" and self.url is None:
            raise ValueError(f"the member {self.name} needs the url of its endpoint, with its path")
        if self.kind == "native" and (self.api_key_file is not None or self.proxy):
            raise ValueError(f"the member {self.name} is native: it takes neither a key nor a proxy")
        if self.url is not None and (self.url.username or self.url.password):
            raise ValueError(f"the url of {self.name} has a password in it; put a key into api_key_file")
        if self.api_key_file and self.url and self.url.scheme != "https" and self.url.host not in _HERE:
            raise ValueError(f"the key of {self.name} would leave the host unencrypted; use https")
        return self


class _Members(BaseModel):
    members: Annotated[tuple[PoolMember, ...], Field(min_length=1, max_length=MOST_MEMBERS)]

    @field_validator("members")
    @classmethod
    def _apart(cls, members: tuple[PoolMember, ...]) -> tuple[PoolMember, ...]:
        names = [member.name for member in members]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two members have the name {min(twice)}; give each its own")
        return members


THE_GATEWAY: Final = PoolMember(name="gateway")
_LIST: Final = TypeAdapter(tuple[PoolMember, ...])


def least_context(members: Sequence[PoolMember], own: int) -> int:
    """Return the tokens that a conversation may have, whoever is asked; own: of members that say nothing.

    The smallest context of all of them: who is asked is known only when a turn is, and when that one fails another gets
    the same messages. Cut for a larger one they would be refused there, just when the smaller one is all there is.
    """
    return min((member.num_ctx or own for member in members), default=own)


def check_members(members: Sequence[PoolMember]) -> tuple[PoolMember, ...]:
    """Return the members in their order, the gateway alone for none. Raises ValueError (pydantic's)."""
    return _Members(members=tuple(members) or (THE_GATEWAY,)).members


def parse_members(text: str) -> tuple[PoolMember, ...]:
    """Return the members that a JSON list names; '' names the gateway alone. Raises ValueError (pydantic's)."""
    return check_members(_LIST.validate_json(text) if text.strip() else ())
