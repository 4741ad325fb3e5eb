"""What a worker says of itself over HTTP, asked as Prometheus and Kubernetes ask."""

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from fakes import SteppingClock

from streamdet.serve.health import LIVE_S, STARTING, Health
from streamdet.serve.http import Server, serve
from streamdet.serve.metrics import Metrics


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def health(clock: SteppingClock) -> Health:
    return Health(clock)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(metrics: Metrics, health: Health) -> Iterator[Server]:
    one = serve("127.0.0.1:0", metrics, health)
    yield one
    one.close()


def ask(server: Server, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    """Status, body and headers."""
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        connection.close()


def test_a_worker_is_alive_while_its_loop_turns(server: Server, health: Health, clock: SteppingClock) -> None:
    assert ask(server, "/live")[:2] == (200, "ok\n")
    clock.now_s += LIVE_S
    assert ask(server, "/live")[0] == 200
    clock.now_s += 1
    assert ask(server, "/live")[:2] == (503, "the loop has not come round for 61 s\n")
    health.beat()
    assert ask(server, "/live")[:2] == (200, "ok\n")


def test_a_worker_is_ready_once_nothing_stands_in_the_way(server: Server, health: Health) -> None:
    assert ask(server, "/ready")[:2] == (503, "starting: the worker is starting\n")
    health.red("kafka", "no broker is connected")
    health.green(STARTING)
    health.red("kafka", "no broker answers")
    health.red("checkpoint", "the disk\nis full")
    assert health.reasons().keys() == {"kafka", "checkpoint"}
    assert ask(server, "/ready")[:2] == (503, "kafka: no broker answers\ncheckpoint: the disk is full\n")
    health.green("kafka")
    health.green("checkpoint")
    health.green("checkpoint")
    assert health.ready
    assert ask(server, "/ready")[:2] == (200, "ok\n")


def test_a_worker_that_is_not_ready_is_alive(server: Server, health: Health) -> None:
    health.red("kafka", "no broker is connected")
    assert ask(server, "/live")[0] == 200


def test_metrics_are_those_of_the_worker_in_prometheus_own_format(server: Server, metrics: Metrics) -> None:
    metrics.polled.inc(3)
    status, body, headers = ask(server, "/metrics?name=ignored")
    assert status == 200
    assert "streamdet_records_polled_total 3.0\n" in body
    assert headers["Content-Type"].startswith("text/plain; version=")


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/nothing"])
def test_a_head_request_gets_the_same_headers_and_no_body(server: Server, path: str) -> None:
    status, body, headers = ask(server, path)
    head_status, head_body, head_headers = ask(server, path, "HEAD")
    assert (head_status, head_body) == (status, "")
    assert head_headers["Content-Length"] == str(len(body))
    assert headers["Content-Type"] == head_headers["Content-Type"]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/live%20"])
def test_what_is_not_there_is_not_found(server: Server, path: str) -> None:
    assert ask(server, path)[:2] == (404, "not found: there are /metrics, /live and /ready\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: Server, method: str) -> None:
    status, _, headers = ask(server, "/ready", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_no_version_is_shown(server: Server) -> None:
    assert ask(server, "/live")[2]["Server"] == "streamdet"


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: Server) -> None:
    with socket.create_connection(server.address):
        assert ask(server, "/live")[0] == 200
        server.close()


def test_an_address_that_is_taken_is_refused_and_given_back_when_closed(
    server: Server, metrics: Metrics, health: Health
) -> None:
    host, port = server.address
    with pytest.raises(OSError, match="in use"):
        serve(f"{host}:{port}", metrics, health)
    server.close()
    server.close()
    serve(f"{host}:{port}", metrics, health).close()


def test_reasons_are_whole_whoever_asks_meanwhile(health: Health) -> None:
    stop = threading.Event()

    def flicker() -> None:
        while not stop.is_set():
            health.red("a", "x")
            health.green("a")

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        for _ in range(1_000):
            assert set(health.reasons().items()) <= {(STARTING, "the worker is starting"), ("a", "x")}
    finally:
        stop.set()
        thread.join()
