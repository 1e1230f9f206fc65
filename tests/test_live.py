"""That servers which tests start never get one port twice."""

import os
import socket
from collections.abc import Iterator
from itertools import islice

from tests.live import HOST, PORTS, free_port, ports_of


def worker(number: int, count: int) -> Iterator[int]:
    return ports_of({"PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": str(count)})


def all_of(ports: Iterator[int]) -> list[int]:
    return list(islice(ports, len(PORTS)))


def test_thousands_of_ports_that_nobody_listens_on_yet_are_all_different() -> None:
    share = len(set(all_of(ports_of(os.environ))))
    ports = ports_of(os.environ)  # not those that other tests draw: theirs would come again the sooner
    drawn = [free_port(ports) for _ in range(share // 2)]
    assert len(set(drawn)) == len(drawn) >= 1_000


def test_port_comes_again_only_after_all_others_of_its_share() -> None:
    ports = worker(0, 3)
    first, second = ([next(ports) for _ in range(len(PORTS) // 3)] for _ in range(2))
    assert first == second
    assert sorted(first) == list(PORTS[::3])


def test_workers_have_no_port_in_common_and_a_process_alone_has_all() -> None:
    first, second = (set(all_of(worker(number, 2))) for number in range(2))
    assert first.isdisjoint(second)
    assert first | second == set(all_of(ports_of({}))) == set(PORTS)


def test_worker_in_the_place_of_a_dead_one_has_a_share_too() -> None:
    assert set(all_of(worker(2, 2))) == set(all_of(worker(0, 2)))


def test_processes_with_the_same_share_draw_in_different_orders() -> None:
    assert all_of(worker(0, 2)) != all_of(worker(0, 2))


def test_port_that_is_taken_is_skipped() -> None:
    taken, free = free_port(), free_port()
    with socket.socket() as server:
        server.bind((HOST, taken))
        assert free_port(iter([taken, free])) == free
