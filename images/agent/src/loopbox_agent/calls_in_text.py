"""calls_in_text: owns the finding of tool calls that a model wrote as text, while the text still comes. Pure.

Small models, and engines without a parser for their dialect, write calls into the answer. The forms known here:
Hermes and Qwen (`<tool_call>{…}</tool_call>`), Llama 3 (`<|python_tag|>{…}` or the bare object), Mistral
(`[TOOL_CALLS][{…}]`, `[TOOL_CALLS]name[ARGS]{…}`), functionary (`<function=name>{…}</function>`), a fenced block with
the object, and the bare object at the start of a line. Only a tool that was offered is called; all else stays text,
letter by letter. Text inside `<think>…</think>` at the start of an answer is thought, and nothing in it is a call.

Every decision looks at the text alone and never at where the stream was cut: a form is either settled by what is
there, and then more text does not change it, or it is waited for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from loopbox_agent.arguments import repair_json

LONGEST: Final = 65_536  #: characters of one call; what is longer stays text
MAX_CALLS: Final = 32  #: of one answer; a model that loops would write hundreds
MAX_FAILED: Final = 64  #: places that looked like a call and were none; after these the rest is text unread
MAX_THOUGHT_TAG: Final = 64  #: characters of white space before a thought's tag


@dataclass(frozen=True, slots=True)
class Text:
    """Words for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Words that the model wrote to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call of an offered tool; the arguments as an object, or as written when they could not be read."""

    name: str
    arguments: dict[str, JsonValue] | str


Piece = Text | Thought | FoundCall


@dataclass(frozen=True, slots=True)
class _Form:
    """How one dialect writes calls: what opens them, what closes them, whether that is needed."""

    opens: re.Pattern[str]
    close: str = ""
    must_close: bool = False
    several: bool = True
    loose: bool = False  #: without a mark of its own: arguments are needed for it to be a call


_OBJECT_AHEAD: Final = r"\s{0,64}(?=[{\[])"
_FORMS: Final = (
    _Form(re.compile(r"<tool_call>" + _OBJECT_AHEAD), close="</tool_call>"),
    _Form(re.compile(r"<\|python_tag\|>" + _OBJECT_AHEAD), close="<|eom_id|>"),
    _Form(
        re.compile(r"\[TOOL_CALLS\]\s{0,64}(?P<name>[A-Za-z0-9_.-]{1,64})\s{0,64}(?:\[ARGS\])?\s{0,64}(?=\{)"),
        several=False,
    ),
    _Form(re.compile(r"\[TOOL_CALLS\]" + _OBJECT_AHEAD), several=False),
    _Form(re.compile(r"<function=(?P<name>[A-Za-z0-9_.-]{1,64})>\s{0,64}(?=\{)"), close="</function>", several=False),
    _Form(
        re.compile(r"```(?:json|tool_calls?)?[ \t]{0,64}\r?\n" + _OBJECT_AHEAD),
        close="```",
        must_close=True,
        loose=True,
    ),
    _Form(re.compile(r"(?=[{\[])"), several=False, loose=True),
)
_BARE: Final = _FORMS[-1]
#: What a form may begin with; the longest is the most that is held back before the form is known.
_MARKS: Final = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<function=", "```")
_TAGS: Final = _MARKS[:-1]  #: these hardly ever stand in a text that means something else
_STARTS: Final = re.compile(r"[<`{\[]")
_HEADS: Final = (
    re.compile(r"<tool_call>\s{0,64}"),
    re.compile(r"<\|python_tag\|>\s{0,64}"),
    re.compile(
        r"\[TOOL_CALLS\]\s{0,64}(?:[A-Za-z0-9_.-]{1,64}\s{0,64}(?:\[(?:A(?:R(?:G(?:S(?:\])?)?)?)?)?)?\s{0,64})?"
    ),
    re.compile(r"<function=[A-Za-z0-9_.-]{0,64}(?:>\s{0,64})?"),
    re.compile(r"```(?:[a-z_]{0,10})[ \t]{0,64}\r?(?:\n\s{0,64})?"),
)
LONGEST_HEAD: Final = 320  #: characters; no head is longer
_NAME_KEYS: Final = ("name", "tool_name", "function")
_ARGUMENT_KEYS: Final = ("arguments", "parameters", "args")
_KEYS: Final = frozenset({*_NAME_KEYS, *_ARGUMENT_KEYS, "id", "type"})
_FIRST_KEY: Final = re.compile(r'[\[\s]{0,64}\{\s{0,64}"(?P<key>[^"\\]{0,64})"')
_FIRST_VALUE: Final = re.compile(r'[\[\s]{0,64}\{\s{0,64}"[^"\\]{0,64}"\s{0,64}:\s{0,64}"(?P<value>[^"\\]{0,256})"')
_EARLY: Final = re.compile(r'[\[\s]{0,64}(?:\{\s{0,64}(?:"[^"\\]{0,64}"?)?)?')
_BLANK: Final = re.compile(r"[ \t]*")
_BETWEEN: Final = re.compile(r"[\s;,}\]]*")  # a brace too many is the commonest slip
_STRUCTURE: Final = re.compile(r'["{}\[\]]')
_STRING_END: Final = re.compile(r'["\\]')


@dataclass(slots=True)
class _Balance:
    """Looks for the end of a JSON value, once over the text however it comes."""

    begin: int
    position: int
    depth: int = 0
    quoted: bool = False
    found: int | None = None

    def end(self, text: str, stop: int, close: str) -> int | None:
        """Return where the value ends, -1 where a closing mark outside strings cuts it, None for not yet."""
        while self.found is None and self.position < stop:
            if not (self._string(text, stop) if self.quoted else self._structure(text, stop, close)):
                break
        return self.found

    def _string(self, text: str, stop: int) -> bool:
        """Go to the end of a string, or past an escape; False for not there yet."""
        if (found := _STRING_END.search(text, self.position, stop)) is None:
            self.position = stop
            return False
        if found[0] == '"':
            self.quoted = False
            self.position = found.end()
            return True
        self.position = found.start() if found.end() >= stop else found.end() + 1
        return found.end() < stop

    def _structure(self, text: str, stop: int, close: str) -> bool:
        """Go past the next bracket or quote; False for not there yet."""
        found = _STRUCTURE.search(text, self.position, stop)
        mark = text.find(close, self.position, found.start() if found else stop) if close else -1
        if mark >= 0:
            self.position, self.found = mark, -1
        elif found is None:
            # A mark may be cut in two here; what could be its beginning is looked at again.
            self.position = max(self.position, stop - max(len(close) - 1, 0))
            return False
        else:
            self.position = found.end()
            self.quoted = found[0] == '"'
            self.depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
            if self.depth <= 0 and not self.quoted:
                self.found = self.position
        return True


@dataclass(slots=True)
class _Candidate:
    """A place in the text that may turn out to be calls."""

    form: _Form
    begin: int
    name: str | None  #: where the form says it apart from the object
    balance: _Balance
    calls: list[FoundCall] = field(default_factory=list)
    end: int = 0  #: where the last value that was a call ends


@dataclass(frozen=True, slots=True)
class _Settled:
    """The end of a candidate: its calls and where the text goes on; no calls mean that it was text."""

    calls: tuple[FoundCall, ...] = ()
    end: int = 0
    early: bool = False  #: refused by its first words, which costs nothing


class CallFilter:
    """Feed it the text as it comes; take the pieces out. Only what may yet become a call is held back."""

    def __init__(self, offered: Collection[str], *, longest: int = LONGEST) -> None:
        self._offered = frozenset(offered)
        self._longest = longest
        self._text = ""
        self._at = 0  #: what is before was handed out
        self._line_start = True
        self._candidate: _Candidate | None = None
        self._begun = False  #: something other than white space was seen
        self._thinking = False
        self._failed = 0
        self._found = 0
        self._called = False  #: white space right after a call is dropped
        self._pending = ""  #: white space that may stand before a call

    def feed(self, text: str) -> list[Piece]:
        """Return what this much more text settles."""
        self._text = self._text[self._at :] + text if self._candidate is None else self._text + text
        if self._candidate is None:
            self._at = 0
        return list(_joined(self._run(final=False)))

    def close(self) -> list[Piece]:
        """Return what is left; the text has ended."""
        pieces = list(self._run(final=True))
        if self._pending and not self._called:
            pieces.append(Text(self._pending))
        self._pending = ""
        return list(_joined(pieces))

    def _run(self, *, final: bool) -> Iterator[Piece]:
        if not self._begun and not self._begin(final=final):
            return
        if self._thinking:
            yield from self._thought(final=final)
        while not self._thinking:
            if self._candidate is None and not self._offered:
                yield from self._say(len(self._text))
                return
            if self._candidate is None and (text := self._next(final=final)) is not None:
                yield from text
                if self._candidate is None:
                    return
            settled = self._settle(self._candidate, final=final) if self._candidate else None
            if settled is None:
                return
            yield from self._resolve(settled)

    def _begin(self, *, final: bool) -> bool:
        """Look whether the answer begins with a thought; False for not known yet."""
        rest = self._text[self._at :]
        words = rest.lstrip()
        blank = len(rest) - len(words)
        near = blank <= MAX_THOUGHT_TAG  # the blanks alone: how much of the tag came with them is chance
        if near and not final and len(words) < len("<think>") and "<think>".startswith(words):
            return False
        self._begun = True
        if near and words.startswith("<think>"):
            self._thinking = True
            self._at += blank + len("<think>")
        return True

    def _thought(self, *, final: bool) -> Iterator[Piece]:
        end = self._text.find("</think>", self._at)
        stop = end if end >= 0 else len(self._text) - (0 if final else _tail(self._text, self._at, ("</think>",)))
        if stop > self._at:
            yield Thought(self._text[self._at : stop])
        self._at = stop
        if end >= 0:
            self._at = end + len("</think>")
            self._thinking = False
            self._called = True  # the blank lines after a thought are no part of the answer
            self._line_start = True
        elif final:
            self._thinking = False

    def _next(self, *, final: bool) -> Iterator[Piece] | None:
        """Go to the next place that may be a call and return the text before it; it becomes the candidate."""
        if self._failed >= MAX_FAILED or self._found >= MAX_CALLS:
            return self._say(len(self._text))
        position = self._at
        line_start = self._line_start
        seen = self._at
        while (start := _STARTS.search(self._text, position)) is not None:
            here = start.start()
            line_start = _at_line_start(self._text, seen, here, before=line_start)
            seen = here
            opened = self._open(here, line_start=line_start, final=final)
            if opened is None:  # not known yet
                return self._say(here)
            if opened is not False:
                said = list(self._say(here))
                self._candidate = opened
                return iter(said)
            position = here + 1
        return self._say(len(self._text))

    def _open(self, here: int, *, line_start: bool, final: bool) -> _Candidate | Literal[False] | None:
        """Return the candidate that opens here, False for none, None for not known yet."""
        text, stop = self._text, min(len(self._text), here + self._longest)
        final = final or stop < len(text)
        rest = text[here : min(stop, here + LONGEST_HEAD)]
        waits = not final and (
            any(mark.startswith(rest) for mark in _MARKS) or any(head.fullmatch(rest) for head in _HEADS)
        )
        for form in _FORMS:
            if form is _BARE and (waits or not line_start):
                continue
            if (opened := form.opens.match(text, here, stop)) is None:
                continue
            name = opened.groupdict().get("name")
            if name is not None and name not in self._offered:
                return False
            return _Candidate(form, here, name, _Balance(opened.end(), opened.end()))
        return None if waits else False

    def _settle(self, candidate: _Candidate, *, final: bool) -> _Settled | None:
        """Return what the candidate is, None for not known yet."""
        stop = min(len(self._text), candidate.begin + self._longest)
        final = final or len(self._text) - candidate.begin >= self._longest
        while True:
            if candidate.name is None and self._refused(candidate, stop):
                return self._done(candidate) if candidate.calls else _Settled(early=True)
            end = candidate.balance.end(self._text, stop, candidate.form.close)
            if end is None and not final:
                return None
            if end is None or end < 0:
                return self._cut(candidate, stop)
            ahead, step = _after(self._text, end, stop, candidate.form, final=final)
            if step == "wait":
                return None
            found = self._read(candidate, self._text[candidate.balance.begin : end]) if step != "none" else None
            if found is None:
                return self._done(candidate)
            candidate.calls.extend(found)
            candidate.end = end
            if step != "more":
                return _Settled(tuple(candidate.calls), ahead) if step == "closed" else self._done(candidate)
            candidate.balance = _Balance(ahead, ahead)

    def _cut(self, candidate: _Candidate, stop: int) -> _Settled:
        """Settle a value that never ends: the closing mark has to do, where nothing but another call follows it.

        A mark inside a string may be the text's own, and a call that was cut off in the middle is never made. At the
        longest that a call may be, nobody knows what follows, so only what stands before that bound counts.
        """
        ended = stop - candidate.begin < self._longest
        balance, close = candidate.balance, candidate.form.close
        mark = balance.position if balance.found == -1 else self._text.find(close, balance.begin, stop) if close else -1
        while balance.found is None and mark >= 0:
            rest = self._text[mark + len(close) : stop].lstrip()
            if (ended and not rest) or rest.startswith(_TAGS):
                break
            mark = self._text.find(close, mark + 1, stop)
        found = self._read(candidate, self._text[balance.begin : mark]) if mark >= 0 else None
        if found is None:
            return self._done(candidate)
        return _Settled((*candidate.calls, *found), mark + len(close))

    @staticmethod
    def _done(candidate: _Candidate) -> _Settled:
        """Settle without a closing mark."""
        return _Settled() if candidate.form.must_close else _Settled(tuple(candidate.calls), candidate.end)

    def _refused(self, candidate: _Candidate, stop: int) -> bool:
        """Tell by the first words alone that this is no call, so that plain JSON is not held back."""
        begin = candidate.balance.begin
        if (key := _FIRST_KEY.match(self._text, begin, stop)) is None:
            if not candidate.form.loose or candidate.calls:
                return False
            early = _EARLY.match(self._text, begin, stop)
            return early is None or early.end() < stop
        if key["key"] not in _KEYS:
            return True
        if key["key"] not in _NAME_KEYS:
            return False
        value = _FIRST_VALUE.match(self._text, begin, stop)
        return value is not None and value["value"] not in self._offered

    def _read(self, candidate: _Candidate, value: str) -> list[FoundCall] | None:
        """Return the calls in a value, None when it holds anything else."""
        read = repair_json(value)
        if candidate.name is not None:
            return [FoundCall(candidate.name, read if isinstance(read, dict) else value)]
        calls = [self._call(item, loose=candidate.form.loose) for item in (read if isinstance(read, list) else [read])]
        whole = [call for call in calls if call is not None]
        return whole if whole and len(whole) == len(calls) else None

    def _call(self, item: JsonValue, *, loose: bool) -> FoundCall | None:
        if not isinstance(item, dict):
            return None
        inner = item.get("function")
        if isinstance(inner, dict) and not set(item) - {"function", "id", "type"}:
            item = inner
        if set(item) - _KEYS:
            return None
        name = next((item[key] for key in _NAME_KEYS if key in item), None)
        if not isinstance(name, str) or name not in self._offered:
            return None
        given = next((item[key] for key in _ARGUMENT_KEYS if key in item), None)
        if given is None:
            return None if loose and not any(key in item for key in _ARGUMENT_KEYS) else FoundCall(name, {})
        if isinstance(given, str):
            read = repair_json(given)
            return FoundCall(name, read if isinstance(read, dict) else given)
        return FoundCall(name, given) if isinstance(given, dict) else None

    def _resolve(self, settled: _Settled) -> Iterator[Piece]:
        candidate, self._candidate = self._candidate, None
        if candidate is None:
            return
        if not settled.calls or self._found + len(settled.calls) > MAX_CALLS:
            self._failed += 0 if settled.early else 1
            yield from self._say(candidate.begin + 1)
            return
        self._found += len(settled.calls)
        self._pending = ""
        self._called = True
        self._at = settled.end
        self._line_start = True
        yield from settled.calls

    def _say(self, end: int) -> Iterator[Piece]:
        """Hand out the text up to here. White space between calls, or before one, is nobody's."""
        said = self._text[self._at : end]
        self._line_start = _at_line_start(self._text, self._at, end, before=self._line_start)
        self._at = end
        if not said:
            return
        said = self._pending + said
        self._pending = ""
        if not said.strip():
            self._pending = said
            return
        if self._called:
            said = said.lstrip()
            self._called = False
        # White space at the end may stand before a call; it is handed out with what follows.
        kept = said.rstrip()
        self._pending = said[len(kept) :]
        yield Text(kept)


def parse_calls(text: str, offered: Collection[str]) -> list[Piece]:
    """Return a whole text's pieces, in order."""
    filtered = CallFilter(offered)
    return list(_joined([*filtered.feed(text), *filtered.close()]))


def _after(text: str, end: int, stop: int, form: _Form, *, final: bool) -> tuple[int, str]:
    """Look at what follows a value: closed, more (another value), wait, none or over; and where it goes on."""
    if form is _BARE:  # a line of its own, or it is a word in a sentence
        blank = _BLANK.match(text, end, stop)
        position = blank.end() if blank else end
        if position >= stop and not final:
            return position, "wait"
        return end, "over" if position >= stop or text[position] in "\r\n;{[<" else "none"
    skipped = _BETWEEN.match(text, end, stop) if form.close else None
    position = skipped.end() if skipped else end
    rest = text[position:stop]
    if form.close and rest.startswith(form.close):
        return position + len(form.close), "closed"
    if form.close and not final and form.close.startswith(rest):
        return position, "wait"
    if form.several and rest[:1] in ("{", "["):
        return position, "more"
    return position, "over"


def _at_line_start(text: str, begin: int, end: int, *, before: bool) -> bool:
    """Return whether only white space stands between the last line's start and the end."""
    line = text.rfind("\n", begin, end)
    blank = not text[max(line, begin) : end].strip()
    return blank and (line >= 0 or before)


def _tail(text: str, begin: int, marks: Iterable[str]) -> int:
    """Return how many characters at the end may be the beginning of a mark."""
    return max(
        (size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size], begin)),
        default=0,
    )


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbours of one kind."""
    last: Piece | None = None
    for piece in pieces:
        if isinstance(piece, Text) and isinstance(last, Text):
            last = Text(last.text + piece.text)
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            last = Thought(last.text + piece.text)
        else:
            if last is not None:
                yield last
            last = piece
    if last is not None:
        yield last
