"""The named steps of a worker's life at which a test kills it, and how a worker is made to kill itself there.

The product has no hooks for this: in the process that is to die, the method that is the step is wrapped. A crash is
`step:n`, SIGKILL at the n-th pass of a step, or `work:ms`, so many milliseconds after the first records were polled.
"""

import functools
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Step:
    """A call of a method, or its return."""

    owner: str  # module:class, or module
    method: str
    after: bool = False
    inside: str = ""  # counts only within a call of this method of the checkpoint store
    # What is still done before the kill, with the arguments of the call.
    last_act: Callable[..., object] | None = None
    with_result: bool = False  # counts only where the call returned something


def _flush(producer: Any, *_: Any, **__: Any) -> None:
    producer.flush()


def _write_half(descriptor: int, data: bytes | bytearray) -> None:
    os.write(descriptor, memoryview(data)[: len(data) // 2])


_PRODUCER: Final = "kafka:KafkaProducer"
_CONSUMER: Final = "kafka:KafkaConsumer"
_ANSWERS: Final = "kafka.producer.transaction_manager"
_STORES: Final = "streamdet.checkpoint.store"
_STORE: Final = f"{_STORES}:LocalStore"

STEPS: Final[dict[str, Step]] = {
    # The producer gets its id; a transaction that an earlier one left behind is ended.
    "before-init": Step(_PRODUCER, "init_transactions"),
    "after-init": Step(_PRODUCER, "init_transactions", after=True),
    # Reading.
    "before-poll": Step(_CONSUMER, "poll"),
    "after-poll": Step(_CONSUMER, "poll", after=True),
    # A transaction, in its order: calls of the worker, and answers of Kafka that arrived and that nobody has read.
    "before-begin": Step(_PRODUCER, "begin_transaction"),
    "after-begin": Step(_PRODUCER, "begin_transaction", after=True),
    "before-send": Step(_PRODUCER, "send"),
    "after-send": Step(_PRODUCER, "send", after=True),
    "partitions-added": Step(f"{_ANSWERS}:AddPartitionsToTxnHandler", "handle_response"),
    "before-offsets": Step(_PRODUCER, "send_offsets_to_transaction"),
    "flushed-before-offsets": Step(_PRODUCER, "send_offsets_to_transaction", last_act=_flush),
    "offsets-added": Step(f"{_ANSWERS}:AddOffsetsToTxnHandler", "handle_response"),
    "offsets-written": Step(f"{_ANSWERS}:TxnOffsetCommitHandler", "handle_response"),
    "after-offsets": Step(_PRODUCER, "send_offsets_to_transaction", after=True),
    "before-commit": Step(_PRODUCER, "commit_transaction"),
    "commit-asked": Step(f"{_ANSWERS}:TransactionManager", "begin_commit", after=True),
    "commit-answered": Step(f"{_ANSWERS}:EndTxnHandler", "handle_response"),
    "after-commit": Step(_PRODUCER, "commit_transaction", after=True),
    # A checkpoint.
    "before-save": Step(_STORE, "put"),
    "half-saved": Step(_STORES, "_write", inside="put", last_act=_write_half),
    "saved-not-renamed": Step("pathlib:Path", "rename", inside="put"),
    "renamed-not-synced": Step("pathlib:Path", "rename", after=True, inside="put"),
    "after-save": Step(_STORE, "put", after=True),
    "before-prune": Step(_STORE, "delete"),
    "amid-prune": Step(_STORE, "delete", after=True),
    # A new model: trained, in the store, in use.
    "after-training": Step("streamdet.learn.learner:Learner", "adopt", after=True, with_result=True),
    "after-release": Step("streamdet.releases:Releases", "publish", after=True),
    "after-adoption": Step("streamdet.lane:Lane", "adopt", after=True),
}


def arm(crash: str) -> None:
    """Make this process kill itself at a crash; at none if it is empty."""
    if not crash:
        return
    name, _, number = crash.partition(":")
    if name == "work":
        _wrap(STEPS["after-poll"], _Delayed(float(number) / 1000))
        return
    _wrap(STEPS[name], _Counted(int(number)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a thread goes on for a moment


class _Counted:
    """Dies at the n-th pass."""

    def __init__(self, passes: int) -> None:
        self._left = passes

    def __call__(self, step: Step, result: Any, arguments: tuple[Any, ...]) -> None:
        if step.with_result and result is None:
            return
        self._left -= 1
        if self._left == 0:
            if step.last_act is not None:
                step.last_act(*arguments)
            _die()


class _Delayed:
    """Dies some time after records were polled."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._set = False

    def __call__(self, _step: Step, result: Any, _arguments: tuple[Any, ...]) -> None:
        if result and not self._set:
            self._set = True
            timer = threading.Timer(self._delay_s, _die)
            timer.daemon = True
            timer.start()


def _wrap(step: Step, passed: Callable[..., None]) -> None:
    inside = threading.local()
    if step.inside:
        _patch(_STORE, step.inside, functools.partial(_noting, inside))

    def wrapped_of(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            counts = not step.inside or getattr(inside, "yes", False)
            if counts and not step.after:
                passed(step, None, arguments)
            result = method(*arguments, **named)
            if counts and step.after:
                passed(step, result, arguments)
            return result

        return wrapped

    _patch(step.owner, step.method, wrapped_of)


def _noting(inside: threading.local, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        inside.yes = True
        try:
            return method(*arguments, **named)
        finally:
            inside.yes = False

    return wrapped


def target(step: Step) -> Any:
    """What the step's owner has of that name."""
    return getattr(_owner(step.owner), step.method)


def _owner(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def _patch(owner: str, method: str, wrapping: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    where = _owner(owner)
    setattr(where, method, wrapping(getattr(where, method)))
