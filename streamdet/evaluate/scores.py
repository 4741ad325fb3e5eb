"""The verdict of every event in a file: one line each, in input order."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from streamdet.errors import ConfigError
from streamdet.events import Cause, Mode
from streamdet.parts import Part, order_of_arrival
from streamdet.sink.jsonl import WholeFile

COLUMNS = pa.schema(
    [
        ("timestamp", pa.string()),
        ("entity", pa.string()),
        ("raw_score", pa.float64()),
        ("limit", pa.float64()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("mode", pa.string()),
        ("flagged", pa.int8()),
    ]
)
# Only where noise rules are configured: readers rely on the columns above.
REASON = pa.field("reason", pa.string())
_LABELS = np.array([mode.label for mode in Mode])
_REASONS = np.array([cause.label for cause in Cause])


class ScoresWriter:
    """An observer that writes scores as CSV, or Parquet where the file is called so; with `reasons`, those too."""

    def __init__(self, path: Path, *, reasons: bool = False) -> None:
        if path.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"scores are written as .csv or .parquet, not {path.name}")
        self._whole = WholeFile(path)
        self._schema = COLUMNS.append(REASON) if reasons else COLUMNS
        self._writer: Any
        if path.suffix == ".csv":
            self._writer = csv.CSVWriter(
                self._whole.file, self._schema, write_options=csv.WriteOptions(quoting_style="needed")
            )
        else:
            self._writer = parquet.ParquetWriter(self._whole.file, self._schema)

    def judged(self, parts: Sequence[Part]) -> None:
        """Write what was judged, across lanes in the order of arrival where that is known."""
        some = [part for part in parts if len(part.decoded.events)]
        if not some:
            return
        table = pa.concat_tables([_table(part, self._schema) for part in some])
        order = order_of_arrival(some)
        if order is not None:
            table = table.take(order)
        self._writer.write_table(table)

    def keep(self) -> None:
        """Finish the file and give it its name."""
        self._writer.close()
        self._whole.keep()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)


def _table(part: Part, schema: Any) -> Any:  # noqa: ANN401 - pyarrow is untyped
    events, verdicts = part.decoded.events, part.verdicts
    times = np.datetime_as_string(events.times_ms.astype("datetime64[ms]"), unit="ms", timezone="UTC")
    return pa.table(
        [
            pa.array(times.tolist(), pa.string()),
            pa.array([name or None for name in events.entities], pa.string()),
            *(
                pa.array(values, pa.float64(), mask=np.isnan(values))
                for values in (verdicts.raw, verdicts.limit, verdicts.score, verdicts.p_value)
            ),
            pa.array(_LABELS[verdicts.mode].tolist(), pa.string()),
            pa.array(verdicts.flagged.astype(np.int8), pa.int8()),
            pa.array(_REASONS[verdicts.reason].tolist(), pa.string()),
        ][: len(schema)],
        schema=schema,
    )
