"""Checkpoints over s3://, against moto's server: the promises of every store, and what happens while it is away.

The server is named as a user names one that is not Amazon's: by the variables of the AWS command line.
"""

import socket
import time
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from store_promises import *  # noqa: F403 - the tests that hold for every store

from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import S3_WAITS, FsspecStore, Store, open_store
from streamdet.clock import SystemClock
from streamdet.errors import CheckpointError
from streamdet.events import LaneId

# A worker that waited longer would look dead; it has its own time-outs behind this.
SECONDS_MAX = 15.0


class Server:
    """An S3 server that can be taken away, and given back at the same address."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", server.url)
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.fixture
def url(server: Server) -> str:
    bucket = f"bucket-{uuid.uuid4()}"
    fsspec.filesystem("s3", endpoint_url=server.url, skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/some/folder"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def same_store(url: str) -> Store:
    return open_store(url)


# aiohttp warns of what the parts are for: bodies that keep its event loop, here a thread of its own, busy for a moment.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
def test_what_is_sent_in_parts_is_there_whole(store: Store) -> None:
    data = bytearray(range(256)) * 50_000
    store.put("group/a", data)
    assert store.get("group/a") == data
    assert store.create("group/b", data)
    assert not store.create("group/b", data)
    assert store.names("group") == ["group/a", "group/b"]


def test_a_server_that_is_away_is_said_within_seconds_and_one_that_is_back_is_used_again(
    server: Server, store: Store, url: str
) -> None:
    lane = LaneId("sensors", 0)
    shelf = Shelf(store, "group", 3, SystemClock())
    shelf.put_lane(lane, "", 1, {"n": 1})
    server.stop()
    try:
        for use in (
            lambda: shelf.put_lane(lane, "", 2, {"n": 2}),
            lambda: shelf.lane(lane, "", None),
            lambda: store.create("group/schema.json", b"{}"),
            lambda: store.delete("group/x"),
        ):
            started_s = time.monotonic()
            with pytest.raises(CheckpointError, match=f"in {url}: .*{server.port}"):
                use()
            assert time.monotonic() - started_s < SECONDS_MAX
    finally:
        server.start()
    bucket = url.split("/")[2]
    assert isinstance(store, FsspecStore)
    if not store._file_system.exists(bucket):  # moto keeps all in memory, but may forget
        store._file_system.mkdir(bucket)
    name = shelf.put_lane(lane, "", 3, {"n": 3})
    found = shelf.lane(lane, "", None)
    assert found is not None
    assert found.name == name


def test_a_server_that_takes_connections_and_never_answers_is_said_within_seconds(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        environment.setitem(S3_WAITS, "read_timeout", 3)  # as usual in all else
        store = open_store(url)
        started_s = time.monotonic()
        with pytest.raises(CheckpointError, match=f"cannot read x in {url}: .*[Tt]imeout"):
            store.get("x")
        assert 3.0 < time.monotonic() - started_s < 20.0


@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_not_there_is_said() -> None:
    store = open_store("s3://no-such-bucket/x")
    with pytest.raises(CheckpointError, match=r"in s3://no-such-bucket/x: "):
        store.put("a", b"1")
