"""The arguments that put a call into namespaces of its own. That they work, the image's tests look at."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loopbox_toolrunner.bubblewrap import PROGRAM, wrap


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_a_command_cannot_be_taken_for_an_option(argv: list[str]) -> None:
    made = wrap(argv, workspace=Path("/workspace"), hidden=Path("/run/toolrunner"))
    assert made[0] == PROGRAM
    assert made[made.index("--") + 1 :] == tuple(argv)


def test_all_is_read_only_but_workspace_and_tmp_and_the_socket_is_hidden() -> None:
    made = wrap(["true"], workspace=Path("/w"), hidden=Path("/run/toolrunner"))
    pairs = list(itertools.pairwise(made))
    assert ("--ro-bind", "/") in pairs
    assert [target for option, target in pairs if option == "--bind"] == ["/tmp", "/w"]
    assert ("--tmpfs", "/run/toolrunner") in pairs
    for kind in ("user", "pid", "ipc", "uts"):
        assert f"--unshare-{kind}" in made
    assert "--unshare-net" not in made  # the way to a granted proxy is a loopback port
    assert "--die-with-parent" not in made
