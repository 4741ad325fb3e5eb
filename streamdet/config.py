"""The configuration: every setting declared once, with its unit, bounds, default and a sentence.

From these declarations come parsing, `streamdet check` and the commented file that `streamdet init` writes. Unknown
keys are refused. `${NAME}` in a value comes from the environment, so that a
secret need not stand in the file; no secret is shown in any text, errors and their traces included.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from streamdet.errors import ConfigError
from streamdet.events import Schema

# The rate is counted on the events above a limit: fewer than this many in a window make it a guess.
EXCEEDANCES_MIN = 10
# Events that make a model to alert by; a metric is judged by its own history, which tells sooner.
WARMUP = 400
WARMUP_METRIC = 200


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Security(Section):
    """How to reach a protected Kafka."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Transport and login, in Kafka's own words."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="SASL mechanism; needed with a SASL protocol."
    )
    username: str | None = Field(None, description="SASL user.")
    password: SecretStr | None = Field(None, description="SASL password; better as ${NAME} or password_file.")
    password_file: Path | None = Field(None, description="File whose content is the SASL password.")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the brokers' certificates."
    )
    cert_file: Path | None = Field(None, description="PEM file of this client's certificate (mutual TLS).")
    key_file: Path | None = Field(None, description="PEM file of this client's private key (mutual TLS).")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL"):
            missing = [n for n in ("mechanism", "username") if getattr(self, n) is None]
            if self.password is None and self.password_file is None:
                missing.append("password or password_file")
            if missing:
                raise ValueError(f"protocol {self.protocol} needs {', '.join(missing)}")
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        return self

    def secret(self) -> str | None:
        """The password from wherever it is kept.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.password_file is not None:
            try:
                return self.password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"kafka.security.password_file: cannot read it: {error}") from error
        return None if self.password is None else self.password.get_secret_value()


class Kafka(Section):
    """The cluster that is read from and written to."""

    bootstrap_servers: str = Field(
        "localhost:9092",
        min_length=1,
        description="host:port of one or more brokers, separated by commas.",
    )
    security: Security = Field(Security(), description="Encryption and login.")


class Features(Section):
    """Which fields of an event are judged."""

    numeric: tuple[str, ...] = Field((), description="Fields with numbers; true and false count as 1 and 0.")
    categorical: tuple[str, ...] = Field((), description="Fields with names or codes; rarity is what counts.")

    @model_validator(mode="after")
    def _some_and_distinct(self) -> Self:
        names = self.numeric + self.categorical
        if not names:
            raise ValueError(
                "name at least one numeric or categorical field, or leave `features` out to infer them"
            )
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"named more than once: {', '.join(repeated)}")
        return self


class Transactions(Section):
    """What makes an event a transaction; judged by the habits of the entity and of its counterparts."""

    amount: str | None = Field(
        None,
        description="Field with the amount that the entity pays, in any one unit; with it, events are transactions.",
    )
    counterparts: tuple[str, ...] = Field(
        (),
        description="Fields that name who else takes part, such as the terminal or the merchant: their habits count "
        "too, and who is new to the entity. Keys, never features.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.counterparts and self.amount is None:
            raise ValueError(
                "counterparts without an amount: set transactions.amount to the field that has it"
            )
        repeated = sorted({n for n in self.counterparts if self.counterparts.count(n) > 1})
        if repeated:
            raise ValueError(f"counterparts: named more than once: {', '.join(repeated)}")
        return self


StandIn = Literal["mean", "last", "zero", "reject"]


class Missing(Section):
    """What stands for a number that an event lacks."""

    default: StandIn = Field(
        "mean",
        description="Where nothing else is said. mean: the recent mean of the entity; last: its last value; both are "
        "marked and count in no score. zero: absence means 0, a value like any other. reject: a dead letter.",
    )
    features: dict[str, StandIn] = Field(
        {},
        description="A missing category is a category of its own. Numeric features for which something else stands, by "
        "name, such as {errors: zero}.",
    )

    @property
    def repeats(self) -> bool:
        """Whether last values are kept."""
        return "last" in (self.default, *self.features.values())

    def which(self, stand_in: StandIn, schema: Schema) -> list[bool]:
        """For which of the D numbers of a stream this one stands, D of them."""
        return [self.features.get(name, self.default) == stand_in for name in schema.numeric]

    def check(self, schema: Schema) -> None:
        """Hold the names against the features of the stream.

        Raises:
            ConfigError: one of them is no numeric feature.
        """
        unknown = [name for name in self.features if name not in schema.numeric]
        if unknown:
            raise ConfigError(
                f"input.missing.features: {', '.join(unknown)}: there is no such numeric feature; there are "
                f"{', '.join(schema.numeric) or 'none'}: take it out, or mend the name"
            )


class Batch(Section):
    """Bounds of a micro-batch; whichever is reached first ends it."""

    max_events: int = Field(16_384, ge=1, le=1_000_000, description="Records in a micro-batch.")
    max_bytes: int = Field(8_388_608, ge=1024, le=67_108_864, description="Bytes fetched for a micro-batch.")
    max_wait_ms: int = Field(100, ge=1, le=60_000, description="Milliseconds to wait for a first record.")


class Input(Section):
    """The stream to judge."""

    topics: tuple[str, ...] = Field((), description="Topics to read.")
    group_id: str = Field(
        "streamdet",
        min_length=1,
        description="Consumer group; workers of one group share the topics.",
    )
    instance_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Name of this worker in the group, kept over restarts (static membership): its partitions wait "
        "for it. Without one, workers that share a checkpoint folder take free names there.",
    )
    session_timeout_ms: int = Field(
        20_000,
        ge=6_000,
        le=1_800_000,
        description="Milliseconds without a sign of life after which the group gives a worker's partitions to others.",
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where a group without committed offsets begins."
    )
    lost_records: Literal["earliest", "fail"] = Field(
        "earliest",
        description="When records were deleted before they were read: go on with the first that is left, or end.",
    )
    format: Literal["json"] = Field("json", description="How record values are encoded.")
    timestamp: str | None = Field(
        None,
        description="Field with the event time: ISO 8601, or Unix seconds or milliseconds; else the record's.",
    )
    entity: str | None = Field(
        None,
        description="Field that names the device, card or account; without it the topic is one stream.",
    )
    features: Features | None = Field(
        None, description="Fields to judge; inferred from the first records if left out."
    )
    transactions: Transactions = Field(
        Transactions(), description="Who pays what to whom, where events are transactions; needs the entity."
    )
    unusable: Literal["missing", "reject"] = Field(
        "missing",
        description="What becomes of a record of which one value cannot be used: imputed, or dead-lettered.",
    )
    missing: Missing = Field(Missing(), description="What stands for a number that an event lacks.")
    max_record_bytes: int = Field(1_048_576, ge=64, description="Larger records are dead-lettered unread.")
    max_entities: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Entities kept per partition; the least recently seen one makes room.",
    )
    batch: Batch = Field(Batch(), description="Bounds of a micro-batch.")

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        paid = self.transactions
        meanings = [name for name in (self.timestamp, self.entity, *paid.counterparts) if name is not None]
        features = () if self.features is None else self.features.numeric + self.features.categorical
        meanings += features
        if paid.amount is not None and paid.amount not in features:
            meanings.append(paid.amount)
        twice = sorted({name for name in meanings if meanings.count(name) > 1})
        if twice:
            raise ValueError(
                f"{', '.join(twice)}: a field is the timestamp, the entity or a feature, or names a counterpart, only "
                "one of these"
            )
        return self

    @model_validator(mode="after")
    def _whose_habits(self) -> Self:
        amount = self.transactions.amount
        if amount is None:
            return self
        if self.entity is None:
            raise ValueError("transactions needs entity: set it to the field that names the card or account")
        if self.features is not None and amount in self.features.categorical:
            raise ValueError(
                f"transactions.amount {amount!r} is a categorical feature: move it to features.numeric"
            )
        return self

    @field_validator("topics")
    @classmethod
    def _distinct(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(topics)) != len(topics):
            raise ValueError("a topic is named more than once")
        return topics


class Model(Section):
    """What scores an event."""

    kind: Literal["autoencoder"] = Field(
        "autoencoder",
        description="Denoising autoencoder, beside it what the preset adds; calibrated and combined.",
    )
    preset: Literal["auto", "metric", "sensors", "records", "transactions"] = Field(
        "auto",
        description="What the data are. metric: one number; sensors: numbers that hang together in time; records: rows "
        "in any order, with or without categories; transactions: what input.transactions tells of, and nothing else; "
        "auto finds out during the warm-up, and says it in the log.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
    )
    strict: bool = Field(False, description="Refuse to start on another device than the one asked for.")
    seed: int = Field(0, ge=0, description="Seed of initial weights, noise and sampling.")


class Limit(Section):
    """Where normal ends."""

    alert_rate: float = Field(0.001, gt=0, le=0.1, description="Share of normal events that may be flagged.")
    window: int = Field(
        4096,
        ge=100,
        le=10_000_000,
        description="Events that the rolling quantile remembers, per entity and in all.",
    )
    rule: Literal["controlled", "rolling", "spot", "dspot", "conformal"] = Field(
        "controlled",
        description="What a limit is made of. controlled: the quantile times a factor that holds the asked rate, with "
        "anomalies exempt that lie apart from all else and come one by one; rolling: the quantile as it is; spot: "
        "where the tail beyond a high quantile says, whatever the window can resolve; dspot: the same on the score "
        "minus its moving mean; conformal: the quantile at a level that moves with each flag.",
    )
    contaminated: bool = Field(
        False,
        description="True: whatever lies apart is anomalous, even where it comes in runs, as incidents and regimes do; "
        "for those who know that their stream has no regimes.",
    )

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        if self.rule in ("rolling", "conformal") and not self.resolved:
            need = math.ceil(EXCEEDANCES_MIN / self.alert_rate - 1e-9)
            raise ValueError(
                f"a window of {self.window} events cannot resolve an alert_rate of {self.alert_rate:g}: "
                f"set window to {need} or more, or alert_rate to {EXCEEDANCES_MIN / self.window:g} or more, or rule to "
                f"controlled, spot or dspot, which extrapolate as {self.rule} does not"
            )
        return self

    @property
    def resolved(self) -> bool:
        """Whether enough of what the window remembers lies above the limit to read the quantile from it."""
        return self.window * self.alert_rate >= EXCEEDANCES_MIN * (1 - 1e-9)


class FeatureNoise(Section):
    """What is noise of one numeric feature."""

    direction: Literal["up", "down", "both"] = Field(
        "both", description="Which way a value must be off what is expected to matter: up, more; down, less."
    )
    min_deviation: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="A value that is less off what is expected does not matter, in units of the feature.",
    )
    min_relative_deviation: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Nor does one that is less off in parts of what is expected: 0.05 is 5 %.",
    )
    range: tuple[FiniteFloat | None, FiniteFloat | None] | None = Field(
        None,
        description="Smallest and largest value that there may be, in units of the feature, null for none: what lies "
        "outside alerts at once, also in the warm-up, and no model learns it.",
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        low, high = self.range or (None, None)
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"range is from the smallest to the largest value: {low:g} is above {high:g}")
        return self


class Noise(Section):
    """What is held back of the events over their limit, and what alerts whatever the model says."""

    k: int = Field(
        1,
        ge=1,
        le=64,
        description="An entity alerts once so many of its last n events were over what is usual; 1: at once.",
    )
    n: int = Field(1, ge=1, le=64, description="Events of an entity that k is counted in.")
    cool_down_s: float = Field(
        0.0,
        ge=0,
        le=31_536_000,
        description="Seconds of event time after an alert in which its entity alerts again only if it is worse; what "
        "was held back, and is still strange then, alerts then.",
    )
    worse: float = Field(
        1.2, ge=1, le=1000, description="Worse is a raw score above that of the last alert times this."
    )
    features: dict[str, FeatureNoise] = Field(
        {},
        description="Rules for numeric features by name, such as {pressure: {direction: up, range: [0, 8]}}. An event "
        "of which more than half of the surprise is excused by direction or deviation is no alert.",
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.k > self.n:
            raise ValueError(
                f"k ({self.k}) of n ({self.n}) can never be: set n to {self.k} or more, or a smaller k"
            )
        return self

    @property
    def damps(self) -> bool:
        """Whether how often an entity alerts is limited, which needs memory of each."""
        return self.k > 1 or self.cool_down_s > 0

    @property
    def configured(self) -> bool:
        """Whether there is any rule."""
        return self.damps or bool(self.features)

    def check(self, schema: Schema) -> None:
        """Hold the rules against the features of the stream.

        Raises:
            ConfigError: there are rules for something that is no numeric feature.
        """
        for name in self.features:
            if name in schema.categorical:
                raise ConfigError(
                    f"noise.features.{name}: it is categorical, and these rules are for numbers: take it out"
                )
            if name not in schema.numeric:
                numeric = ", ".join(schema.numeric) or "none"
                raise ConfigError(
                    f"noise.features.{name}: there is no such feature; the numeric ones are {numeric}"
                )


class Gate(Section):
    """What a fine-tuned model must show before it replaces the one in use."""

    loss_ratio_max: float = Field(1.1, gt=0, description="Held-out loss against that of the model in use.")
    alert_ratio_max: float = Field(
        3.0, gt=0, description="Share of held-out rows above the limit, against the asked rate."
    )
    detection_loss_max: float = Field(
        0.05,
        ge=0,
        le=1,
        description="How much worse it may tell planted anomalies from normal rows (as an area under the ROC curve).",
    )


class Learning(Section):
    """How the model follows the stream."""

    enabled: bool = Field(True, description="False: the model of the end of warm-up stays for good.")
    warmup: int | None = Field(
        None,
        ge=64,
        le=10_000_000,
        description=f"Events learnt from before the first alert; default: {WARMUP_METRIC} of a metric, {WARMUP} of "
        "anything else.",
    )
    every: int = Field(50_000, ge=256, description="Events between fine-tunes.")
    lag: int = Field(
        10_000,
        ge=0,
        description="Events between the start of a fine-tune and its adoption; at exactly that count.",
    )
    buffer: int = Field(
        2048,
        ge=256,
        le=1_000_000,
        description="Normal rows kept to learn from; half of them the newest.",
    )
    drift: bool = Field(
        True,
        description="True: where scores have risen far and stayed there for limit.window events, the model is learnt "
        "anew from these, as after a change of level for good. Not of a metric, whose history follows by itself.",
    )
    gate: Gate = Field(Gate(), description="Conditions of adoption.")

    @model_validator(mode="after")
    def _lag_fits(self) -> Self:
        if self.lag >= self.every:
            raise ValueError(f"lag ({self.lag}) must be smaller than every ({self.every})")
        return self

    def warmup_of(self, schema: Schema) -> int:
        """Events learnt from before the first alert of a stream of this kind."""
        if self.warmup is not None:
            return self.warmup
        return WARMUP_METRIC if schema.metric else WARMUP


class Topic(Section):
    """A topic that is written to."""

    topic: str | None = Field(None, description="Name; default: the first input topic with a suffix.")


class Commit(Section):
    """How often what was judged is made final; whichever is reached first commits."""

    every_ms: int = Field(
        100,
        ge=0,
        le=60_000,
        description="Milliseconds between commits that publish something; an alert is visible after its commit.",
    )
    offsets_every_ms: int = Field(
        1_000,
        ge=0,
        le=60_000,
        description="Milliseconds between commits of offsets alone; a crash is judged again from there.",
    )
    every_events: int = Field(50_000, ge=1, le=10_000_000, description="Records between commits.")
    transaction_timeout_ms: int = Field(
        15_000,
        ge=1_000,
        le=900_000,
        description="Milliseconds after which Kafka ends a transaction that a killed worker left open.",
    )


class Checkpoint(Section):
    """Where the state survives a restart."""

    url: str = Field(
        "./state",
        min_length=1,
        description="Folder, or URL such as s3://bucket/path, that all workers of the group share.",
    )
    every_s: float = Field(30.0, gt=0, description="Seconds between checkpoints.")
    keep: int = Field(3, ge=1, le=1000, description="Checkpoints kept of each partition.")
    strict: bool = Field(
        False,
        description="Refuse to judge a partition without the state that belongs to its committed offset.",
    )


class Serve(Section):
    """What the worker shows of itself."""

    http: str | None = Field(
        None,
        pattern=r"^[^:]+:\d{1,5}$",
        description="host:port for Prometheus metrics (/metrics); none if left out.",
    )


class Settings(Section):
    """The whole configuration of a worker."""

    kafka: Kafka = Field(Kafka(), description="Cluster.")
    input: Input = Field(Input(), description="Stream to judge.")
    model: Model = Field(Model(), description="Scores.")
    limit: Limit = Field(Limit(), description="Limits.")
    noise: Noise = Field(Noise(), description="What is held back as noise; nothing by default.")
    learning: Learning = Field(Learning(), description="Learning.")
    alerts: Topic = Field(Topic(), description="Alerts; default topic: first input topic + .alerts.")
    dead_letters: Topic = Field(
        Topic(), description="Dead letters; default topic: first input topic + .dead-letters."
    )
    delivery: Literal["exactly-once", "at-least-once"] = Field(
        "exactly-once",
        description="What a crash may do to alerts: nothing (all goes out in transactions with the offsets), or repeat "
        "some, with the same id. None is lost either way.",
    )
    commit: Commit = Field(Commit(), description="Commits.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="Checkpoints.")
    serve: Serve = Field(Serve(), description="Metrics.")

    def metric(self, schema: Schema) -> bool:
        """Whether a stream of this kind is judged as a metric.

        Raises:
            ConfigError: it is to be, and has more than one number.
        """
        if self.model.preset == "metric" and not schema.metric:
            raise ConfigError(
                "model.preset metric is for one number and nothing else, and the features are "
                f"{', '.join(schema.columns)}: name one of them in input.features, or set model.preset to auto"
            )
        return schema.metric and self.model.preset in ("auto", "metric")

    @model_validator(mode="after")
    def _habits_are_judged(self) -> Self:
        configured, preset = self.input.transactions.amount is not None, self.model.preset
        if preset == "transactions" and not configured:
            raise ValueError(
                "model.preset transactions needs to know the amount: set input.transactions.amount to its field"
            )
        if configured and preset not in ("auto", "transactions"):
            raise ValueError(
                f"model.preset {preset} makes nothing of input.transactions: set model.preset to auto, or leave "
                "input.transactions out"
            )
        return self

    @model_validator(mode="after")
    def _no_loop(self) -> Self:
        if self.input.topics:
            written = {"alerts.topic": self.alerts_topic, "dead_letters.topic": self.dead_letters_topic}
            for setting, topic in written.items():
                if topic in self.input.topics:
                    raise ValueError(
                        f"{setting} {topic!r} is also an input topic: the worker would judge its own output"
                    )
            if self.alerts_topic == self.dead_letters_topic:
                raise ValueError(
                    f"alerts and dead letters would both go to {self.alerts_topic!r}: name two topics"
                )
        return self

    @property
    def alerts_topic(self) -> str:
        """The topic that alerts go to."""
        return self.alerts.topic or f"{self.input.topics[0]}.alerts"

    @property
    def dead_letters_topic(self) -> str:
        """The topic that dead letters go to."""
        return self.dead_letters.topic or f"{self.input.topics[0]}.dead-letters"


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or has unusable settings (all are listed).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} must hold a mapping such as `input: {{topics: [sensors]}}`, not {type(tree).__name__}"
        )
    return parse(tree, name=str(path))


def parse(tree: dict[str, Any], name: str = "configuration") -> Settings:
    """Check a configuration that has already been read.

    Raises:
        ConfigError: with a line for every setting that cannot be used.
    """
    try:
        return Settings.model_validate(_expand(tree, name))
    except ValidationError as error:
        lines = [f"  {_where(e['loc'])}: {_what(e)}" for e in error.errors()]
        # Not `from error`: it shows all that was given, a password too.
        raise ConfigError(f"{name} cannot be used:\n" + "\n".join(lines)) from None


def _expand(node: object, name: str) -> Any:  # noqa: ANN401 - a YAML tree
    if isinstance(node, dict):
        return {key: _expand(value, name) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, name) for value in node]
    if not isinstance(node, str):
        return node
    unset = [v for v in _VARIABLE.findall(node) if v not in os.environ]
    if unset:
        raise ConfigError(f"{name} uses ${{{unset[0]}}}, which is not set in the environment")
    return _VARIABLE.sub(lambda match: os.environ[match[1]], node)


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "(top level)"


def _what(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"unknown key; known here: {', '.join(known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = error.get("input")
    hidden = isinstance(shown, dict | BaseModel) or _may_hold_a_secret(error["loc"])
    return message if hidden else f"{message} (got {shown!r})"


def _may_hold_a_secret(location: tuple[int | str, ...]) -> bool:
    return location[:2] == ("kafka", "security") and location[2:3] in ((), ("password",))


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Settings
    for part in location:
        declared = section.model_fields.get(str(part))
        if declared is None:  # the name of a feature, whose rules are the section
            continue
        annotation = declared.annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
