"""The runtime language: what a plan may and may not do, and answers that are not what they should be."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.gateway import Route, Server, ServerState
from loopd.haproxy_config import GatewayConfig, description_of, error_body, frame_of, render
from loopd.haproxy_runtime import (
    AddServer,
    MoveServer,
    Processes,
    StrangeAnswerError,
    parse_description,
    parse_processes,
    parse_stat,
    plan_commands,
    refusals,
    with_old_workers,
)

COLUMNS = "# pxname,svname,qcur,scur,status,uweight,check_status,addr,bout"
CONFIG = GatewayConfig(public_port=1, internal_address="10.0.0.1", internal_port=2, max_body_bytes=3)
PROCESSES = """#<PID>          <type>          <reloads>       <uptime>        <version>
886             master          2 [failed: 1]   0d00h01m20s     2.6.12
# workers
815             worker          0               0d00h00m00s     2.6.12
# old workers
889             worker          1               0d00h01m20s     2.6.12
890             worker          2               0d00h01m20s     2.6.12
# programs

"""

names = st.sampled_from(["a", "b", "c", "d"])
addresses = st.sampled_from(["10.0.0.1:1", "10.0.0.2:2"])
servers = st.builds(
    Server,
    pool=st.just("engine"),
    server=names,
    address=addresses,
    weight=st.integers(0, 256),
    sessions=st.integers(0, 2),
    state=st.sampled_from(ServerState),
)
snapshots = st.lists(servers, unique_by=lambda s: s.server)


@st.composite
def wanted(draw: st.DrawFn) -> list[Route]:
    """Draw the routes of one pool."""
    chosen: list[str] = draw(st.lists(names, unique=True))
    shares = dict.fromkeys(chosen, 0)
    first: int | None = draw(st.none() | st.integers(0, 100))
    if chosen and first is not None:
        shares[chosen[0]] += first
        shares[chosen[-1]] += 100 - first
    return [Route(pool="engine", server=n, address=draw(addresses), share=s) for n, s in shares.items()]


@given(wanted(), snapshots)
def test_a_plan_never_cuts_a_stream(routes: list[Route], observed: list[Server]) -> None:
    plan = plan_commands(routes, observed)
    idle = {s.server for s in observed if not s.sessions}
    named = {r.server for r in routes}
    assert {d.server for d in plan.delete} == idle - named
    assert not {r.server for r in plan.retire} & named
    assert {c.route.server for c in plan.prepare if isinstance(c, AddServer)} == named - {s.server for s in observed}
    assert all(
        c.route.address not in [s.address for s in observed if s.server == c.route.server]
        for c in plan.prepare
        if isinstance(c, MoveServer)
    )


@given(wanted(), snapshots)
def test_a_flip_raises_before_it_lowers(routes: list[Route], observed: list[Server]) -> None:
    """Lowered first, there would be a moment with no server at all."""
    now = {s.server: s.weight for s in observed}
    steps = [c.weight - now.get(c.server, 0) for c in plan_commands(routes, observed).flip]
    assert 0 not in steps
    assert steps == sorted(steps, reverse=True)


@given(wanted(), snapshots)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(routes: list[Route], observed: list[Server]) -> None:
    plan = plan_commands(routes, observed)
    after = {s.server: s for s in observed if s.server not in {d.server for d in plan.delete}}
    weights = {s.server: s.weight for s in observed} | {c.server: c.weight for c in plan.flip}
    by_name = {r.server: r for r in routes}
    final = [
        Server(
            pool="engine",
            server=name,
            address=by_name[name].address if name in by_name else after[name].address,
            weight=weights.get(name, 0),
            sessions=after[name].sessions if name in after else 0,
            state=ServerState.UP if name in by_name else ServerState.MAINT,
        )
        for name in {*after, *by_name}
    ]
    assert plan_commands(routes, final).empty


@given(snapshots)
def test_statistics_are_read_back(observed: list[Server]) -> None:
    words = {
        ServerState.STARTING: ("UP", "INI"),
        ServerState.UP: ("UP 1/2", "* L7OK"),
        ServerState.DRAIN: ("DRAIN", "L7OK"),
        ServerState.DOWN: ("DOWN", "L4CON"),
        ServerState.MAINT: ("MAINT", ""),
    }
    rows = [
        f"engine,{s.server},0,{s.sessions},{words[s.state][0]},{s.weight},{words[s.state][1]},{s.address},7"
        for s in observed
    ]
    found = parse_stat("\n".join([COLUMNS, "other,x,0,0,UP,1,,,", *rows, "engine,BACKEND,0,0,UP,1,,,"]) + "\n\n")
    assert [(s.server, s.address, s.weight, s.sessions) for s in found] == [
        (s.server, s.address, s.weight, s.sessions) for s in observed
    ]
    assert all(server.bytes_out == 7 for server in found)
    for got, meant in zip(found, observed, strict=True):
        drained = meant.state is ServerState.UP and not meant.weight
        assert got.state is (ServerState.DRAIN if drained else meant.state)


@given(st.text(), st.sampled_from(["", COLUMNS + "\n", COLUMNS + "\nengine,"]))
def test_strange_statistics_are_refused_and_never_crash(text: str, start: str) -> None:
    with contextlib.suppress(StrangeAnswerError):
        parse_stat(start + text)


@pytest.mark.parametrize(
    "row", ["engine,a", "engine,a,x,0,UP,1,,1.2.3.4:5,0", "engine,a,0,0,UP,9999999999999,,1.2.3.4:5,0"]
)
def test_a_row_that_makes_no_sense_is_no_empty_gateway(row: str) -> None:
    """Read as no servers, all would be added a second time."""
    with pytest.raises(StrangeAnswerError):
        parse_stat(f"{COLUMNS}\n{row}\n")


def test_processes_and_description_are_read() -> None:
    assert parse_processes(PROCESSES) == Processes(reloads=2, failed=1, old=(889, 890))
    assert parse_processes(PROCESSES.partition("# old")[0]).old == ()
    assert parse_description("Name: HAProxy\ndescription: loopbox-1\nMaxconn: 1\n") == "loopbox-1"
    for parse in (parse_processes, parse_description):
        with pytest.raises(StrangeAnswerError):
            parse("HTTP/1.1 200 OK")


def test_what_an_old_process_still_streams_counts() -> None:
    """Right after a reload a server looks idle in the new process alone."""
    here = Server(pool="engine", server="a", address="1.1.1.1:1", weight=9, sessions=1, state=ServerState.UP)
    gone = Server(pool="engine", server="b", address="1.1.1.1:2", weight=9, sessions=2, state=ServerState.UP)
    idle = Server(pool="engine", server="c", address="1.1.1.1:3", weight=9, sessions=0, state=ServerState.UP)
    found = {s.server: (s.sessions, s.state, s.weight) for s in with_old_workers([here], [[here, gone, idle], [gone]])}
    assert found == {"a": (2, ServerState.UP, 9), "b": (4, ServerState.MAINT, 0)}


def test_refusals_are_told_from_success() -> None:
    good = (
        "New server registered.\n\n\nServer deleted.\n"
        "no need to change the addr, port changed from '1' to '2' by 'stats socket command'\n"
        "IP changed from '1.1.1.1' to '2.2.2.2', no need to change the port by 'stats socket command'\n"
    )
    assert refusals(good) == ()
    assert refusals("No such server.\n\n") == ("No such server.",)
    assert refusals("Permission denied\n\nServer deleted.\n") == ("Permission denied",)


@given(wanted())
def test_only_servers_differ_between_files_of_the_same_settings(routes: list[Route]) -> None:
    text = render(CONFIG, routes)
    assert frame_of(text) == frame_of(render(CONFIG, ()))
    assert text.count("\n    server ") == len(routes) + 3  # for the handover at a reload, and loopd
    assert f"description {description_of(CONFIG)}\n" in text


def test_an_apostrophe_cannot_end_an_error_text() -> None:
    with pytest.raises(ValueError, match="apostrophe"):
        error_body("x", "don't")
