"""Checkpoints of version 0.1: a golden one becomes what this version keeps, another is refused with a sentence."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from streamdet.checkpoint.format import digest, unpack
from streamdet.checkpoint.shelf import Shelf
from streamdet.checkpoint.store import LocalStore
from streamdet.checkpoint.upgrade import upgraded
from streamdet.clock import SystemClock
from streamdet.config import Limit
from streamdet.errors import CheckpointError
from streamdet.events import DISTANCE, DRIFT, LaneId, Rows, Schema
from streamdet.features.rows import LaneFeatures
from streamdet.models.release import Release
from streamdet.threshold.limits import Limits

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint-format-1.safetensors.gz"
LANE = LaneId("plant", 0)
WARMUP = 512


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As version 0.1 left it after 700 events."""
    with gzip.open(GOLDEN) as packed, (tmp_path / "000000000002.checkpoint.safetensors").open("wb") as file:
        shutil.copyfileobj(packed, file)
    return tmp_path


def test_all_that_version_0_1_had_is_there(folder: Path) -> None:
    found = upgraded(folder, WARMUP)
    assert found is not None
    assert (found.name, found.group_id) == ("000000000002.checkpoint.safetensors", "streamdet")
    assert Schema.from_state(found.schema).numeric == ("temperature", "pressure", "flow")
    assert (found.learner["seen"], found.learner["positions"]) == (700, {"plant/0": 700})
    lane = found.lanes[LANE]
    assert (lane["next_offset"], lane["timeline"]) == (700, [])
    assert lane["features"]["entities"]["names"] == ["d2", "d1", "d0", "d3"]
    assert lane["limits"]["histogram"].dtype == np.float32
    assert np.isfinite(lane["limits"]["limit"][0])
    assert lane["release"]["warm"] is True
    assert lane["release"]["rows"]["values"].shape == (0, 12)
    assert lane["release"] is found.learner["release"]


def test_the_parts_of_a_worker_take_it_back(folder: Path) -> None:
    found = upgraded(folder, WARMUP)
    assert found is not None
    lane, schema = found.lanes[LANE], Schema.from_state(found.schema)
    features, limits = LaneFeatures(schema, 10), Limits(Limit())
    features.restore(lane["features"])
    limits.restore(lane["limits"])
    assert limits.lane_limit == lane["limits"]["limit"][0]
    release = Release.from_state(lane["release"], schema, torch.device("cpu"))
    rows = Rows(found.learner["rows"]["held_out"]["values"], found.learner["rows"]["held_out"]["imputed"])
    assert np.isfinite(release.version.score(rows)).all()
    newest = len(schema.columns) + 2 * len(schema.numeric)
    assert (rows.values[:, newest + DISTANCE] == 1.0).all()  # not twins, which would make all others strange
    assert (rows.values[:, newest + DRIFT] == 0.0).all()


def test_a_version_of_less_than_the_warm_up_does_not_alert(folder: Path) -> None:
    found = upgraded(folder, WARMUP + 1)
    assert found is not None
    assert found.lanes[LANE]["release"]["warm"] is False


def test_what_was_upgraded_is_kept_as_any_other_state(folder: Path) -> None:
    found = upgraded(folder, WARMUP)
    assert found is not None
    shelf = Shelf(LocalStore("x", folder), found.group_id, 3, SystemClock())
    shelf.put_lane(LANE, "id", 700, found.lanes[LANE])
    kept = shelf.lane(LANE, "id", 700)
    assert kept is not None
    assert digest(kept.state) == digest(found.lanes[LANE])


def test_the_one_before_a_torn_one_is_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "000000000003.checkpoint.safetensors").write_bytes(b"torn")
    found = upgraded(folder, WARMUP)
    assert found is not None
    assert found.name.startswith("000000000002")
    assert "000000000003.checkpoint.safetensors is torn" in caplog.text


def test_if_none_is_sound_it_is_refused_with_what_to_do(folder: Path) -> None:
    path = folder / "000000000002.checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        CheckpointError, match=r"written by version 0.1 \(format 1\), and none of its 1 .* move them"
    ):
        upgraded(folder, WARMUP)


def test_a_folder_without_any_has_nothing_to_upgrade(tmp_path: Path) -> None:
    assert upgraded(tmp_path / "absent", WARMUP) is None
    (tmp_path / "backup.checkpoint.safetensors").write_bytes(b"somebody's")
    assert upgraded(tmp_path, WARMUP) is None


def test_the_golden_file_itself_is_refused_where_this_format_is_expected(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is of format 1, which this version \(format 6\) does not read"
    ):
        unpack((folder / "000000000002.checkpoint.safetensors").read_bytes(), "x")
