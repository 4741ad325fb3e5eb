"""The composition root: puts a worker together from a configuration, for Kafka or for a recording."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from streamdet import __version__
from streamdet.checkpoint.background import Background
from streamdet.checkpoint.names import take_name
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore, open_store
from streamdet.checkpoint.upgrade import upgraded
from streamdet.clock import Clock, SystemClock
from streamdet.codec.columns import Codec
from streamdet.codec.decoder import Decoder
from streamdet.codec.infer import SAMPLE, infer_schema
from streamdet.codec.json import JsonCodec, parse_object
from streamdet.config import WARMUP, Input, Settings
from streamdet.delivery import Delivery
from streamdet.delivery.at_least_once import AtLeastOnce
from streamdet.errors import ConfigError
from streamdet.evaluate.scores import ScoresWriter
from streamdet.events import LaneId, Records, Schema, State
from streamdet.keeping import Keeper
from streamdet.lane import Adoption
from streamdet.lanes import Lanes
from streamdet.learn.learner import Learner
from streamdet.models.device import choose_device
from streamdet.parts import Observer
from streamdet.releases import Releases
from streamdet.serve.health import Health
from streamdet.serve.http import Server, serve
from streamdet.serve.metrics import Metrics
from streamdet.source import Source
from streamdet.stopping import Signals
from streamdet.worker import StopSignal, Worker, run

log = logging.getLogger(__name__)

# How long a schema is guessed from fewer than the full sample, once a first record is there.
SAMPLE_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which lanes adopted which model versions where, and the shelf that has those."""

    shelf: Shelf
    adoptions: Mapping[LaneId, Sequence[Adoption]]


def build(
    settings: Settings,
    *,
    schema: Schema,
    source: Source,
    delivery: Delivery,
    codec: Codec,
    clock: Clock,
    health: Health | None = None,
    shelf: Shelf | None = None,
    recorded: Recorded | None = None,
    observers: Sequence[Observer] = (),
) -> Worker:
    """A worker over these parts, on the device of the settings; with a recorded timeline it does not train.

    Raises:
        DeviceError: the device is not there and may not be replaced.
        ConfigError: the stream is none of the kind that the settings say.
    """
    settings.metric(schema)  # refuses a preset that is not for such a stream
    settings.noise.check(schema)
    settings.input.missing.check(schema)
    device, warning = choose_device(settings.model)
    if warning is not None:
        log.warning(warning)
    metrics = Metrics()
    metrics.device.labels(str(device)).set(1)
    metrics.ask(settings.limit.alert_rate)
    log.info("scoring device=%s features=%s", device, ",".join(schema.columns))
    reject = settings.input.unusable == "reject"
    background = Background()
    of_models = recorded.shelf if recorded is not None else shelf
    releases = Releases(of_models, background, schema, device, clock)
    keeper = Keeper(shelf, background, settings.checkpoint, clock, metrics, first=releases.save)
    adoptions = recorded.adoptions if recorded is not None else None
    return Worker(
        settings=settings,
        schema=schema,
        source=source,
        decoder=Decoder(
            codec,
            schema,
            settings.input.max_record_bytes,
            reject_unusable=reject,
            missing=settings.input.missing,
        ),
        delivery=delivery,
        make_learner=lambda: Learner(settings, schema, device, clock),
        lanes=Lanes(settings, schema, source, shelf, releases, keeper, metrics, adoptions),
        releases=releases,
        keeper=keeper,
        background=background,
        metrics=metrics,
        health=Health(clock) if health is None else health,
        clock=clock,
        shelf=shelf,
        trains=recorded is None,
        observers=observers,
    )


def run_worker(settings: Settings, scores: Path | None = None) -> None:
    """Judge Kafka topics until a signal ends it.

    Raises:
        StreamdetError: whatever the user can mend.
    """
    from streamdet.source.kafka import KafkaSource

    stop = Signals()
    stop.install()
    clock = SystemClock()
    health = Health(clock)

    def stopped() -> bool:
        health.beat()  # asked during every wait: whoever waits for Kafka is not stuck
        return stop.requested

    log.info("starting version=%s kafka=%s", __version__, settings.kafka.bootstrap_servers)
    store = open_store(settings.checkpoint.url)
    shelf = Shelf(store, settings.input.group_id, settings.checkpoint.keep, clock)
    name = settings.input.instance_id or take_name(store)
    given, paid = settings.input.features, settings.input.transactions.amount is not None
    one = given is not None and len(given.numeric) == 1 and not given.categorical
    compile_kernels(transactions=paid, metric=one and not paid)
    with ExitStack() as stack:
        observers: list[Observer] = []
        if scores is not None:
            writer = stack.enter_context(ScoresWriter(scores, reasons=settings.noise.configured))
            observers.append(writer)
        stays = settings.input.instance_id is not None
        source = KafkaSource(settings, clock, stopped, instance=name, stays=stays)
        # Whatever comes: a worker that stays in the group unseen holds up the others.
        stack.callback(source.close)
        if isinstance(store, LocalStore) and shelf.schema() is None:
            take_over(store, shelf, settings, source.topic_id)
        schema = _live_schema(settings, source, shelf, stop)
        if schema is None:  # stopped before the first record
            return
        delivery = connect_delivery(settings, source, name, clock, stopped)
        stack.callback(delivery.close)
        codec = JsonCodec(schema, reject_unusable=settings.input.unusable == "reject")
        worker = build(
            settings,
            schema=schema,
            source=source,
            delivery=delivery,
            codec=codec,
            clock=clock,
            health=health,
            shelf=shelf,
            observers=observers,
        )
        worker.lost = source.lost.total
        if settings.serve.http is not None:
            stack.callback(_serve(worker, settings.serve.http).close)
        log.info(
            "judging topics=%s group=%s name=%s delivery=%s alerts=%s", ",".join(settings.input.topics),
            settings.input.group_id, name or "-", settings.delivery, settings.alerts_topic,
        )  # fmt: skip
        run(worker, stop)
        if scores is not None:
            writer.keep()
    log.info("stopped events=%d records_final=%d", worker.seen, delivery.records_final)


def take_over(store: LocalStore, shelf: Shelf, settings: Settings, topic_id: Callable[[str], str]) -> None:
    """Put what version 0.1 saved in this folder on the shelf, if it is this group's.

    Raises:
        CheckpointError: there are checkpoints of that version, and none of them is sound.
    """
    old = upgraded(store.root, settings.learning.warmup or WARMUP)
    if old is None or old.group_id != settings.input.group_id:
        return
    foreign = foreign_schema(settings, old.schema)
    if foreign is not None:
        log.warning("checkpoints of version 0.1 in %s %s: not taken over", store.url, foreign)
        return
    # The schema comes last: where it is missing, all of this is done again.
    shelf.put_learner(old.learner["seen"], old.learner)
    for lane, state in old.lanes.items():
        shelf.put_lane(lane, topic_id(lane.topic), state["next_offset"], state)
    shelf.agree_on_schema(old.schema)
    log.info("took over checkpoint=%s of version 0.1 lanes=%d", old.name, len(old.lanes))


def connect_delivery(
    settings: Settings,
    source: Any,  # noqa: ANN401 - a KafkaSource, which is imported where it is used
    name: str | None,
    clock: Clock,
    stopped: Callable[[], bool],
) -> Delivery:
    """How the settings want what was judged to become final on Kafka, under a name of its own or a random one.

    Raises:
        BrokerError: Kafka refused.
        BrokerUnavailableError: a stop was requested before Kafka answered.
    """
    from streamdet.delivery.exactly_once import ExactlyOnce
    from streamdet.sink.kafka import KafkaSink
    from streamdet.sink.kafka_transaction import KafkaTransactor

    if settings.delivery == "at-least-once":
        return AtLeastOnce(settings.commit, source, KafkaSink(settings, clock, stopped), clock)
    transactor = KafkaTransactor(settings, name or uuid4().hex, clock, stopped)
    return ExactlyOnce(settings.commit, source, transactor, clock, stopped)


def compile_kernels(*, transactions: bool = False, metric: bool = False) -> None:
    """Run every compiled loop once, before a group waits for this worker's heartbeat; those of histories if asked.

    What is compiled on first use takes seconds on a slow machine.
    """
    from streamdet.decide.damping import compile_damping
    from streamdet.decide.onset import compile_onset
    from streamdet.features.rows import LaneFeatures
    from streamdet.models.presets import compile_scorers
    from streamdet.threshold.apart import beginning_of_those_apart
    from streamdet.threshold.limits import Limits

    schema = Schema(None, "e", ("x",), ("c",))
    lane = LaneId("compile", 0)
    decoder = Decoder(JsonCodec(schema), schema, 1024, reject_unusable=False)
    numbers = np.arange(2, dtype=np.int64)
    # What is refused is read by loops of its own.
    for value in (b"{", b'{"e":"a","x":1.0,"c":"v"}'):
        events = decoder.decode(Records(lane, numbers, numbers, [None] * 2, [value] * 2)).events
    featured = LaneFeatures(schema, 1).transform(events)
    if transactions:
        paid = replace(events, counterparts=[["t", "t"]])
        LaneFeatures(replace(schema, amount="x", counterparts=("t",)), 1).transform(paid)
    if metric:
        LaneFeatures(replace(schema, categorical=()), 1).transform(replace(events, categorical=()))
    limits = Limits(Settings().limit)
    limits.judge(np.ones(2), featured.slots, featured.fresh, alerting=True)
    limits.rescale(np.ones(2), np.ones(2))
    beginning_of_those_apart(np.ones(2))  # which the first fine-tune asks for
    compile_damping()
    compile_onset()
    compile_scorers()


def json_fields(values: Sequence[bytes]) -> list[Mapping[str, object]]:
    """The fields of those values that are JSON objects."""
    parsed = (parse_object(value) for value in values)
    return [fields for fields in parsed if isinstance(fields, dict)]


def _live_schema(
    settings: Settings,
    source: Any,  # noqa: ANN401
    shelf: Shelf,
    stop: StopSignal,
) -> Schema | None:
    """What the group agreed on, else from the configuration, else from the first records.

    Raises:
        ConfigError: the checkpoints are another stream's.
    """
    agreed = shelf.schema()
    if agreed is None:
        schema = configured_schema(settings.input) or _inferred_schema(settings, source, stop)
        if schema is None:
            return None
        agreed = shelf.agree_on_schema(schema.as_state())
    foreign = foreign_schema(settings, agreed)
    if foreign is not None:
        raise ConfigError(
            f"the checkpoints of group {settings.input.group_id!r} in {settings.checkpoint.url} {foreign}: set another "
            "checkpoint.url or input.group_id, or empty the folder to start cold"
        )
    return Schema.from_state(agreed)


def _inferred_schema(settings: Settings, source: Any, stop: StopSignal) -> Schema | None:  # noqa: ANN401
    log.info("no input.features configured: looking at the first records")
    fields: list[Mapping[str, object]] = []
    wanted = SAMPLE
    # A bad first record is a dead letter later, not a reason not to start.
    while not fields and not stop.requested:
        values = source.peek(wanted, SAMPLE_WAIT_S)
        fields = json_fields(values)
        wanted += len(values)
    if not fields:
        return None
    given = settings.input
    schema = inferred_schema(fields, "label", given)
    log.info(
        "inferred timestamp=%s numeric=%s categorical=%s", schema.timestamp, ",".join(schema.numeric),
        ",".join(schema.categorical),
    )  # fmt: skip
    return schema


def foreign_schema(settings: Settings, agreed: State) -> str | None:
    """How an agreed schema is another stream's; None where it is this one's."""
    given = settings.input
    schema = configured_schema(given)
    paid = given.transactions
    configured: dict[str, object] = {"entity": given.entity, "amount": paid.amount, "counterparts": None}
    if paid.amount is not None:
        configured["counterparts"] = list(paid.counterparts)
    if given.timestamp is not None or schema is not None:
        configured["timestamp"] = given.timestamp
    if schema is not None:
        configured["numeric"] = list(schema.numeric)
        configured["categorical"] = list(schema.categorical)
    for name, value in configured.items():
        if agreed.get(name) != value:
            return f"were made with {name} {agreed.get(name)!r}, not {value!r}"
    return None


def configured_schema(given: Input) -> Schema | None:
    """What the configuration says, None where it leaves the features to be inferred."""
    if given.features is None:
        return None
    return with_transactions(
        Schema(given.timestamp, given.entity, given.features.numeric, given.features.categorical), given
    )


def with_transactions(schema: Schema, given: Input) -> Schema:
    """The schema with the transactions of the configuration, if there are any; their amount is a feature."""
    amount, counterparts = given.transactions.amount, given.transactions.counterparts
    if amount is None:
        return schema
    numeric = schema.numeric if amount in schema.numeric else (*schema.numeric, amount)
    return replace(schema, numeric=numeric, amount=amount, counterparts=counterparts)


def inferred_schema(fields: Sequence[Mapping[str, object]], label: str | None, given: Input) -> Schema:
    """A schema for records like these, with what the configuration says.

    Raises:
        ConfigError: there is no column to judge, or what transactions are made of is not there.
    """
    paid = given.transactions
    keys = paid.counterparts
    schema = infer_schema(fields, label=label, timestamp=given.timestamp, entity=given.entity, keys=keys)
    names = sorted(set().union(*fields))
    for name in keys if paid.amount is None else (paid.amount, *keys):
        if name not in names:
            raise ConfigError(
                f"input.transactions: no record has the field {name!r}; there are {', '.join(names)}: mend the name"
            )
    if paid.amount in schema.categorical:
        raise ConfigError(
            f"input.transactions.amount: {paid.amount} holds text in the first records: name another field, "
            "or, if these are an exception, name it in input.features.numeric"
        )
    return with_transactions(schema, given)


def _serve(worker: Worker, address: str) -> Server:
    try:
        server = serve(address, worker.metrics, worker.health)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"serve.http: cannot listen on {address}: {error}") from error
    log.info("metrics at http://%s/metrics", address)
    return server
