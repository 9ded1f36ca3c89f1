"""Parallel tools: what touches what, who waits for whom, and that no edit of several agents is ever lost."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from loopbox_agent.sandbox import Outcome
from loopbox_agent.seen import Seen
from loopbox_agent.tool_access import FREE, Access, access_of, conflict, normal
from loopbox_agent.tool_caller import Caller
from loopbox_agent.tool_schedule import Schedule, TooManyCallsError
from loopbox_agent.tool_spec import Effect, Kind, ToolSpec

FILE_SCHEMA: Mapping[str, JsonValue] = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "expected_sha256": {"type": "string"}},
}


def tool(name: str, kind: Kind = "sandbox", effect: Effect = "execute", source: str = "sandbox") -> ToolSpec:
    return ToolSpec(name, "", FILE_SCHEMA, source=source, kind=kind, effect=effect)


READ, WRITE, EDIT = tool("read_file", effect="read"), tool("write_file", effect="write"), tool("edit_file")
LIST, BASH = tool("list_files", effect="read"), tool("bash")


def touch(of: ToolSpec, path: str | None = None, session: str = "s") -> Access:
    return access_of(of, {} if path is None else {"path": path}, session=session)


# What conflicts


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (touch(READ, "a"), touch(READ, "a"), False),
        (touch(READ, "a"), touch(WRITE, "a"), True),
        (touch(WRITE, "a"), touch(WRITE, "b"), False),
        (touch(WRITE, "./a//b"), touch(EDIT, "/workspace/a/b"), True),
        (touch(WRITE, "a/b"), touch(LIST, "a"), True),
        (touch(WRITE, "a/b"), touch(LIST, "b"), False),
        (touch(WRITE, "a"), touch(WRITE, "ab"), False),  # a prefix of the name is no directory
        (touch(WRITE, "a"), touch(WRITE, "a/b"), True),  # a file that another call makes a directory of
        (touch(WRITE, "x"), touch(LIST), True),
        (touch(WRITE, "d/../x"), touch(WRITE, "y"), True),  # d may be a link: anywhere
        (touch(WRITE, "../x"), touch(READ, "y"), True),
        (touch(READ, "d/../x"), touch(READ, "y"), False),
        (touch(BASH), touch(READ, "a"), True),
        (touch(BASH), touch(BASH), True),
        (touch(BASH), touch(BASH, session="other"), False),
        (touch(BASH), touch(tool("find", "server", "read", "docs")), False),
        (touch(tool("mail", "server", "network", "m")), touch(tool("send", "server", "network", "m")), True),
        (touch(tool("mail", "server", "network", "m")), touch(tool("mail", "server", "network", "n")), False),
        (touch(tool("web_search", "builtin", "network")), touch(BASH), False),
        (touch(tool("look", effect="read")), touch(WRITE, "a"), True),  # reads, and nobody knows what
    ],
)
def test_two_calls_conflict_when_one_may_see_or_spoil_the_other(one: Access, other: Access, expected: bool) -> None:
    assert (conflict(one, other), conflict(other, one)) == (expected, expected)


steps = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", "é"]), max_size=5)


@given(steps, st.booleans())
def test_a_normal_path_is_normal_and_names_the_same_file(parts: list[str], absolute: bool) -> None:
    path = ("/workspace/" if absolute else "") + "/".join(parts)
    made = normal(path)
    if ".." in parts:
        assert made is None
    elif made is not None:
        assert normal(made) == made
        assert made.split("/") == [p for p in parts if p not in {"", "."}] or made == ""


@pytest.mark.parametrize("path", [None, 3, "a\0b", "/etc/passwd", "/workspacex/a", "a/../b"])
def test_a_path_that_cannot_be_told_by_name_is_everything(path: JsonValue) -> None:
    assert normal(path) is None


# Who waits for whom

accesses = st.one_of(
    st.just(FREE),
    st.builds(
        lambda domain, reads, writes, exclusive: Access(domain, frozenset(reads), frozenset(writes), exclusive),
        st.sampled_from(["x", "y"]),
        st.lists(st.sampled_from(["", "a", "a/b", "c"]), max_size=2),
        st.lists(st.sampled_from(["", "a", "a/b", "c"]), max_size=2),
        st.integers(0, 9).map(lambda n: n == 0),
    ),
)


@given(st.lists(st.tuples(accesses, st.integers(0, 3), st.booleans()), max_size=24), st.integers(1, 4))
async def test_no_conflicting_calls_meet_and_each_keeps_its_place(
    calls: list[tuple[Access, int, bool]], most: int
) -> None:
    """Also with calls that are cancelled while they wait or run, and few places to run in."""
    schedule = Schedule(most_running=most)
    running: dict[int, Access] = {}
    started: list[int] = []

    async def run(number: int, access: Access, turns: int) -> None:
        async with schedule.turn(access):
            assert not any(conflict(access, other) for other in running.values())
            assert len(running) < most
            running[number] = access
            started.append(number)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                del running[number]

    tasks = [asyncio.create_task(run(number, access, turns)) for number, (access, turns, _) in enumerate(calls)]
    for _ in range(2):
        await asyncio.sleep(0)
    for task, (_, _, cancelled) in zip(tasks, calls, strict=True):
        if cancelled:
            task.cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert (schedule.running, schedule.waiting) == (0, 0)
    place = {number: index for index, number in enumerate(started)}
    for later, index in place.items():
        for earlier in range(later):
            if earlier in place and conflict(calls[earlier][0], calls[later][0]):
                assert place[earlier] < index


async def test_a_write_is_not_starved_by_reads_that_keep_coming() -> None:
    schedule = Schedule()
    order: list[str] = []
    release = asyncio.Event()

    async def call(name: str, access: Access) -> None:
        async with schedule.turn(access):
            order.append(name)
            await release.wait()

    tasks = [asyncio.create_task(call("read 1", touch(READ, "a")))]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(call("write", touch(WRITE, "a"))))
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(call(f"read {n}", touch(READ, "a"))) for n in range(2, 9)]
    tasks.append(asyncio.create_task(call("elsewhere", touch(READ, "b"))))
    await asyncio.sleep(0)
    assert order == ["read 1", "elsewhere"]
    release.set()
    await asyncio.gather(*tasks)
    assert order[2] == "write"


async def test_a_full_queue_refuses_and_keeps_no_trace() -> None:
    schedule = Schedule(most_waiting=1)
    async with schedule.turn(touch(BASH)):
        waits = asyncio.create_task(schedule.turn(touch(BASH)).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(TooManyCallsError, match="not run"):
            async with schedule.turn(touch(BASH)):
                pass
        waits.cancel()
        await asyncio.wait({waits})
        assert schedule.waiting == 0


async def test_after_a_program_ran_two_names_may_be_one_file() -> None:
    """`ln -s a b` makes a write of a and one of b the same file's."""
    schedule = Schedule()
    met = 0

    async def write(path: str) -> None:
        nonlocal met
        async with schedule.turn(touch(WRITE, path)):
            met = max(met, schedule.running)
            await asyncio.sleep(0)

    await asyncio.gather(write("a"), write("b"))
    assert met == 2
    async with schedule.turn(touch(BASH)):
        pass
    met = 0
    await asyncio.gather(write("a"), write("b"))
    assert met == 1


# No lost edits


@dataclass
class Disk:
    """Files with the tool runner's rule: compare and write in one step, refuse what is not as expected."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    met: int = 0
    inside: int = 0

    async def call(self, name: str, arguments: Mapping[str, JsonValue]) -> Outcome:
        path = posixpath.normpath(str(arguments["path"]))
        path = self.links.get(path, path)
        self.inside += 1
        self.met = max(self.met, self.inside)
        for _ in range(random.randrange(3)):  # noqa: S311 the seed is the test's
            await asyncio.sleep(0)
        self.inside -= 1
        text = self.files.get(path, "")
        have = hashlib.sha256(text.encode()).hexdigest()
        if name == "read_file":
            return Outcome(text, {"content": text, "sha256": have}, is_error=False)
        if (expected := arguments.get("expected_sha256")) and expected != have:
            self.refused += 1
            told = "the file changed: expected_sha256 is not its hash"
            return Outcome(told, {"text": told}, is_error=True)
        if name == "write_file":
            self.files[path] = str(arguments["content"])
        else:
            if text.count(str(arguments["old"])) != 1:
                return Outcome("old is not there once", {}, is_error=True)
            self.files[path] = text.replace(str(arguments["old"]), str(arguments["new"]))
        now = hashlib.sha256(self.files[path].encode()).hexdigest()
        return Outcome("done", {"path": path, "sha256": now}, is_error=False)


async def agent_edits(caller: Caller, paths: list[str], name: str, edits: int, rng: random.Random) -> int:
    """Count up its own mark in files, by reading and then writing what was read; return the refusals."""
    refusals = 0
    for _ in range(edits):
        path = rng.choice(paths)
        while True:
            text = str((await caller.call(READ, {"path": path})).result["content"])
            count = int(text.split(f"{name}=")[1].partition(";")[0])
            old, new = f"{name}={count};", f"{name}={count + 1};"
            if rng.random() < 0.7:
                outcome = await caller.call(WRITE, {"path": path, "content": text.replace(old, new)})
            else:
                outcome = await caller.call(EDIT, {"path": path, "old": old, "new": new})
            if not outcome.is_error:
                break
            refusals += 1
            assert "Read it again" in outcome.text
    return refusals


def marks(disk: Disk) -> int:
    return sum(int(mark.split("=")[1]) for text in disk.files.values() for mark in text.split(";") if mark)


@pytest.mark.parametrize(("linked", "each"), [(False, 1300), (True, 150)])
async def test_no_edit_of_several_agents_on_the_same_files_is_lost(linked: bool, each: int) -> None:
    random.seed(7)
    agents = 8
    text = "".join(f"agent{n}=0;" for n in range(agents))
    disk = Disk(dict.fromkeys("abcdefgh", text), {"link": "a"} if linked else {})
    schedule = Schedule()
    if linked:
        schedule.distrust("sandbox:s")
    paths = [*disk.files, "./b", *disk.links]
    work = [
        agent_edits(
            Caller(schedule=schedule, sandbox=disk, session="s", seen=Seen()),  # type: ignore[arg-type]  # a stand-in
            paths,
            f"agent{n}",
            each,
            random.Random(n),  # noqa: S311 repeatable
        )
        for n in range(agents)
    ]
    refusals = sum(await asyncio.gather(*work))
    lost = agents * each - marks(disk)
    print(f"\nedits {agents * each}, refused and made again {refusals}, lost {lost}, at once {disk.met}")  # noqa: T201 the figure
    assert lost == 0
    assert refusals > 100  # they did meet
    assert disk.met > 1


async def test_two_writes_of_one_turn_do_not_undo_each_other() -> None:
    """A model that edits a file and replaces it in one breath made the second without seeing the first."""
    disk = Disk({"a": "one"})
    caller = Caller(schedule=Schedule(), sandbox=disk, session="s")  # type: ignore[arg-type]  # a stand-in
    await caller.call(READ, {"path": "a"})
    edited, written = await asyncio.gather(
        caller.call(EDIT, {"path": "a", "old": "one", "new": "two"}), caller.call(WRITE, {"path": "a", "content": "1"})
    )
    assert (edited.is_error, written.is_error, disk.files["a"]) == (False, True, "two")
    both = await asyncio.gather(
        caller.call(EDIT, {"path": "a", "old": "tw", "new": "TW"}),
        caller.call(EDIT, {"path": "a", "old": "o", "new": "O"}),
    )
    assert ([outcome.is_error for outcome in both], disk.files["a"]) == ([False, False], "TWO")


async def test_the_stand_in_loses_edits_without_the_hashes() -> None:
    """Shows that the test above can fail."""
    random.seed(7)
    disk = Disk({"a": ""})

    async def careless(name: str) -> None:
        for number in range(50):
            text = (await disk.call("read_file", {"path": "a"})).text
            await disk.call("write_file", {"path": "a", "content": f"{text}{name}.{number};"})

    await asyncio.gather(*(careless(f"agent{n}") for n in range(4)))
    assert disk.files["a"].count(";") < 200


# Speed


async def test_a_read_heavy_set_is_ten_times_faster_than_one_by_one() -> None:
    schedule = Schedule(most_running=64)
    calls = [touch(READ, f"f{n}") for n in range(60)]
    calls[10:10] = [touch(WRITE, "out/a")]
    calls[40:40] = [touch(WRITE, "out/b")]

    async def one(access: Access) -> None:
        async with schedule.turn(access):
            await asyncio.sleep(0.02)

    begun = time.perf_counter()
    for access in calls:
        await one(access)
    alone = time.perf_counter() - begun
    begun = time.perf_counter()
    await asyncio.gather(*(one(access) for access in calls))
    together = time.perf_counter() - begun
    print(f"\none by one {alone * 1000:.0f} ms, together {together * 1000:.0f} ms, factor {alone / together:.1f}")  # noqa: T201 the figure
    assert alone / together >= 10


async def test_a_turn_costs_little_beside_many() -> None:
    schedule = Schedule(most_running=256)

    async def one(number: int) -> None:
        async with schedule.turn(touch(WRITE, f"d{number % 50}/f")):
            await asyncio.sleep(0)

    begun = time.perf_counter()
    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(200)))
    each_us = (time.perf_counter() - begun) / 2000 * 1e6
    print(f"\n{each_us:.0f} us a call among 200")  # noqa: T201 the figure
    assert each_us < 2000


# What an agent has seen


def test_a_hash_is_added_where_the_tool_takes_one() -> None:
    seen, known = Seen(), "a" * 64
    seen.note(READ, {"path": "./a"}, {"sha256": known}, is_error=False)
    assert seen.expect(WRITE, {"path": "/workspace/a", "content": "x"})["expected_sha256"] == known
    assert "expected_sha256" not in seen.expect(WRITE, {"path": "b", "content": "x"})
    assert seen.expect(WRITE, {"path": "a", "expected_sha256": "b" * 64})["expected_sha256"] == "b" * 64
    plain = ToolSpec("write_file", "", {"type": "object", "properties": {"path": {"type": "string"}}})
    assert "expected_sha256" not in seen.expect(plain, {"path": "a"})
    stranger = tool("write_file", "server", source="x")
    assert "expected_sha256" not in seen.expect(stranger, {"path": "a"})


def test_what_a_failed_or_silent_write_left_is_not_known() -> None:
    seen = Seen()
    seen.note(READ, {"path": "a"}, {"sha256": "a" * 64}, is_error=False)
    seen.note(EDIT, {"path": "a"}, {"text": "no"}, is_error=True)
    assert "expected_sha256" in seen.expect(EDIT, {"path": "a"})
    seen.note(EDIT, {"path": "a"}, {"size": 3}, is_error=False)
    assert "expected_sha256" not in seen.expect(EDIT, {"path": "a"})
