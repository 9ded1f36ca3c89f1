"""curate_spec: owns what a curation is asked to do, with a limit on everything."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loopbox_trainer.normalise import Form

MOST_SOURCES: Final = 64

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
#: Of a file or folder below /data; `sources.locate` refuses one that leads elsewhere.
Place = Annotated[str, Field(pattern=r"^[^/\x00][^\x00]{0,1023}$")]
Share = Annotated[float, Field(ge=0, le=0.5)]
SourceForm = Form | Literal["dump", "bfcl", "grade_school_math"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(_Frozen):
    """One file, or one folder of a public set."""

    name: Name
    path: Place
    form: SourceForm = "auto"
    weight: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0  #: 0: only pairs and tests come of it
    most_rows: Annotated[int, Field(ge=1, le=2_000_000)] = 2_000_000  #: the first ones; the rest is not read
    mask: bool = True  #: False only for what was masked when it was stored
    keep_near: bool = False  #: keep near duplicates: rows that vary one value on purpose
    held_out: bool = False  #: for the test split only


class SyntheticSpec(_Frozen):
    """Examples that are made up over tools."""

    rows: Annotated[int, Field(ge=1, le=200_000)]
    weight: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0
    held_out: Annotated[int, Field(ge=0, le=20_000)] = 0  #: more rows, of wordings and tools that are not trained
    tools: Place | None = None  #: a JSON list of tools below /data; None: the appliance's own


class CurateSpec(_Frozen):
    """A curation."""

    sources: Annotated[tuple[SourceSpec, ...], Field(max_length=MOST_SOURCES)] = ()
    synthetic: SyntheticSpec | None = None
    tools: Place | None = None  #: a JSON list of the tools on offer, for records that do not say
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    valid: Share = 0.05
    test: Share = 0.1
    total: Annotated[int, Field(ge=1, le=2_000_000)] | None = None  #: training rows; None: all
    near: Annotated[float, Field(ge=0.5, le=1)] = 0.8  #: how alike near duplicates are (Jaccard)
    apart: Annotated[float, Field(ge=0.5, le=1)] = 0.7  #: rows this alike are never in two splits
    outcomes: Annotated[frozenset[Literal["good", "unknown"]], Field(min_length=1)] = frozenset({"good", "unknown"})
    refusals: bool = False  #: keep rows that only refuse
    most_characters: Annotated[int, Field(ge=100, le=256 << 10)] = 48_000  #: of a row's messages
    most_rows: Annotated[int, Field(ge=1, le=2_000_000)] = 500_000  #: read, from all sources
    most_bytes: Annotated[int, Field(ge=1, le=8 << 30)] = 1 << 30  #: read, unpacked
    most_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 1800.0
    least_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 32  #: of the training split
    least_kinds: Annotated[int, Field(ge=1, le=64)] = 2  #: different first answers: which tools, or none

    @model_validator(mode="after")
    def _usable(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources have one name")
        if not names and self.synthetic is None:
            raise ValueError("there is neither a source nor anything to make up")
        if "synthetic" in names and self.synthetic is not None:
            raise ValueError("a source has the name of what is made up: synthetic")
        return self
