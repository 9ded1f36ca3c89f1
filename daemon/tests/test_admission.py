"""Whether a candidate fits beside the champion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopd.admission import (
    Admission,
    Capacity,
    Demand,
    NotAdmittedError,
    admit,
    memory_expected,
    parse_memory_available,
    read_capacity,
)
from loopd.gpu import InMemoryGpus, free_memory
from samples import make_release

GIB = 1 << 30
ROOMY = Capacity(memory_available=16 * GIB, gpu_free=None, cores=8)


def demand(candidate: int = 4 * GIB, champion: int = 4 * GIB, threads: int = 4) -> Demand:
    return Demand(candidate=candidate, champion=champion, threads=threads, reserve=GIB)


def test_what_fits_comes_up_beside_the_champion() -> None:
    assert admit(demand(), ROOMY, in_place_allowed=True).strategy == "beside"


@pytest.mark.parametrize(
    ("wanted", "capacity", "words"),
    [
        (demand(candidate=16 * GIB), ROOMY, "16384 MiB of memory and 15360 MiB are free"),
        (demand(threads=5), ROOMY, "two engines of 5 threads are too many for 8 cores"),
        (demand(), Capacity(memory_available=16 * GIB, gpu_free=GIB, cores=8), "4096 MiB of GPU memory"),
    ],
)
def test_what_does_not_fit_is_refused_or_swapped_in_place(wanted: Demand, capacity: Capacity, words: str) -> None:
    with pytest.raises(NotAdmittedError, match="swap_in_place") as refused:
        admit(wanted, capacity, in_place_allowed=False)
    assert words in str(refused.value)
    admission = admit(wanted, capacity, in_place_allowed=True)
    assert admission.strategy == "in_place"
    assert words in admission.reason


def test_what_does_not_fit_alone_is_refused_in_any_case() -> None:
    with pytest.raises(NotAdmittedError, match="not even with the old release gone"):
        admit(demand(candidate=40 * GIB), ROOMY, in_place_allowed=True)
    with pytest.raises(NotAdmittedError, match="drop a smaller model"):
        admit(demand(candidate=40 * GIB, champion=0), ROOMY, in_place_allowed=True)


def test_one_core_serves_two_engines_of_one_thread() -> None:
    one = Capacity(memory_available=16 * GIB, gpu_free=None, cores=1)
    assert admit(demand(threads=1), one, in_place_allowed=False).strategy == "beside"


def test_on_a_gpu_its_memory_counts_and_not_the_hosts() -> None:
    gpu = Capacity(memory_available=2 * GIB, gpu_free=8 * GIB, cores=8)
    assert admit(demand(), gpu, in_place_allowed=False).strategy == "beside"


@given(
    candidate=st.integers(0, 64 * GIB),
    champion=st.integers(0, 64 * GIB),
    threads=st.integers(1, 64),
    free=st.integers(0, 128 * GIB),
    gpu=st.one_of(st.none(), st.integers(0, 128 * GIB)),
    cores=st.integers(1, 64),
    allowed=st.booleans(),
)
def test_beside_is_never_more_than_there_is(
    candidate: int, champion: int, threads: int, free: int, gpu: int | None, cores: int, allowed: bool
) -> None:
    capacity = Capacity(memory_available=free, gpu_free=gpu, cores=cores)
    wanted = Demand(candidate=candidate, champion=champion, threads=threads, reserve=GIB)
    try:
        admission = admit(wanted, capacity, in_place_allowed=allowed)
    except NotAdmittedError:
        admission = Admission("in_place", "")
    if admission.strategy == "beside":
        assert candidate <= (free - GIB if gpu is None else gpu)
        assert champion == 0 or 2 * threads <= max(cores, 2)


def test_an_engine_wants_its_weights_its_cache_and_its_runner() -> None:
    release = make_release()
    assert memory_expected(release, parallel=2) > release.size_bytes + 2 * release.num_ctx * 1024


async def test_this_host_has_something_to_give() -> None:
    capacity = await read_capacity(lambda: free_memory(InMemoryGpus()))
    assert capacity.memory_available > 1 << 20
    assert capacity.cores >= 1


def test_a_kernel_that_does_not_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="MemAvailable"):
        parse_memory_available("MemTotal: 1 kB\n")
