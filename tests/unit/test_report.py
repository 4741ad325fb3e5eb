"""A report is whole or not there, needs nothing but a browser, and takes no value of the stream for markup."""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamdet.errors import StreamdetError
from streamdet.evaluate.picture import DPI, INCHES
from streamdet.evaluate.report import write_report
from streamdet.evaluate.timeline import Timeline
from streamdet.events import Alert, FeatureShare, SourcePosition

FILES = {"report.html", "timeline.png", "summary.json"}
SUMMARY = {
    "title": "Pumps",
    "events": 2000,
    "alerts": 3,
    "device": "cpu",
    "metrics": {"roc_auc": 0.98765, "precision": 0.5, "recall": None, "f1": float("nan")},
}


def timeline(n: int = 2000, *, labels: bool = True, order: int = 1) -> Timeline:
    rng = np.random.default_rng(0)
    raw = rng.exponential(size=n)
    raw[: n // 10] = np.nan
    limit = np.where(np.isnan(raw), np.nan, 5.0)
    flagged = np.nan_to_num(raw) >= 5.0
    line = Timeline()
    line.add(np.arange(n)[::order], raw, limit, flagged, rng.random(n) < 0.02 if labels else None)
    return line


def alert(entity: str | None = "pump-1", actual: float | str | None = 81.5) -> Alert:
    return Alert(
        id="sensors/0/17",
        event_time="2026-01-02T03:04:05.000Z",
        detected_at="2026-01-02T03:04:05.010Z",
        entity=entity,
        score=2.5,
        raw_score=12.5,
        limit=5.0,
        p_value=3.7e-6,
        severity="high",
        mode="entity",
        features=[FeatureShare("heat", actual, 60.25, 0.75), FeatureShare("site", None, "north", 0.25)],
        model_version="1",
        source=SourcePosition("sensors", 0, 17),
        event={},
    )


def test_the_page_shows_headline_picture_alerts_and_summary(tmp_path: Path) -> None:
    page = write_report(tmp_path / "new" / "folder", SUMMARY, timeline(), [alert()])
    text = page.read_text(encoding="utf-8")

    assert {path.name for path in page.parent.iterdir()} == FILES
    assert "<h1>Pumps: 2,000 events · 3 alerts · precision 0.50 · ROC-AUC 0.988</h1>" in text
    for shown in ("pump-1", "2.50", "75%", "heat", "81.5", "(60.25)", "(north)", "roc auc"):
        assert shown in text


def test_an_alert_shows_its_reason_and_what_was_imputed(tmp_path: Path) -> None:
    names = ("humid", "wind", "<sun>", "rain", "snow")
    lacking = [FeatureShare(name, None, 1.0, 0.0, imputed=True) for name in names]
    of_limit, of_range = alert(), msgspec.structs.replace(alert(), reason="range")
    unsure = msgspec.structs.replace(alert(), features=alert().features + lacking, confidence=2 / 7)
    page = write_report(tmp_path, SUMMARY, timeline(), [of_limit, of_range, unsure])
    rows = [row for row in page.read_text(encoding="utf-8").split("<tr>") if "pump-1" in row]

    assert len(rows) == 3
    first, second, third = rows  # newest first
    assert "<td>limit</td>" in first
    assert '29% <span class="soft">imputed: humid, wind, &lt;sun&gt; and 2 more</span>' in first
    assert "<td>range</td>" in second
    assert "<td>100%</td>" in third


def test_what_was_held_back_is_counted_apart_by_the_reason(tmp_path: Path) -> None:
    counts = {"direction": 1_200, "k_of_n": 3, "cool_down": 0}
    page = write_report(tmp_path, {**SUMMARY, "held_back": counts}, timeline(), [])
    _, apart = page.read_text(encoding="utf-8").split("<h2>Held back</h2>")
    held_back, summary = apart.split("<h2>Summary</h2>")

    assert "<tr><th>direction</th><td>1,200</td></tr>\n<tr><th>k of n</th><td>3</td></tr>" in held_back
    assert "cool down" not in page.read_text(encoding="utf-8")
    assert "direction" not in summary
    assert json.loads((tmp_path / "summary.json").read_text())["held_back"] == counts


@pytest.mark.parametrize("counts", [{}, {"excursion": 0}])
def test_where_nothing_was_held_back_the_page_does_not_speak_of_it(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    page = write_report(tmp_path, {**SUMMARY, "held_back": counts}, timeline(), [])
    assert "Held back" not in page.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_follows_the_reader_s_light(tmp_path: Path) -> None:
    text = write_report(tmp_path, SUMMARY, timeline(), [alert()]).read_text(encoding="utf-8")

    assert "://" not in text
    assert all(url.startswith("data:image/png;base64,") for url in re.findall(r'src(?:set)?="([^"]*)"', text))
    assert "color-scheme: light dark" in text
    assert "(prefers-color-scheme: dark)" in text


def test_values_of_the_stream_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    summary = {**SUMMARY, "title": evil, "device": evil}
    text = write_report(tmp_path, summary, timeline(), [alert(evil, evil)]).read_text(encoding="utf-8")

    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("n", "order"), [(0, 1), (1, 1), (2000, 1), (2000, -1)])
def test_any_stream_can_be_drawn(tmp_path: Path, n: int, order: int, labels: bool) -> None:
    write_report(tmp_path, {"title": "$a$ b_c"}, timeline(n, labels=labels, order=order), [])
    png = (tmp_path / "timeline.png").read_bytes()

    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)] == [round(i * DPI) for i in INCHES]


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    write_report(tmp_path, SUMMARY, timeline(), [])

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    kept = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert kept["metrics"] == {"roc_auc": 0.98765, "precision": 0.5, "recall": None, "f1": None}


def test_a_later_report_replaces_an_earlier_one(tmp_path: Path) -> None:
    write_report(tmp_path, SUMMARY, timeline(), [alert()])
    page = write_report(tmp_path, {**SUMMARY, "title": "Again"}, timeline(), [])

    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "Again" in page.read_text(encoding="utf-8")
    assert "pump-1" not in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()  # a folder stands where a file belongs
    with pytest.raises(StreamdetError, match="cannot write the report"):
        write_report(tmp_path, SUMMARY, timeline(), [])

    assert not (tmp_path / "report.html").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_a_file_in_place_of_the_folder_is_an_error_with_its_name(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with pytest.raises(StreamdetError, match=r"cannot write the report into .*taken"):
        write_report(taken, SUMMARY, timeline(), [])


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path) -> None:
    """In a process of its own, where the import fails as it does without the package."""
    program = f"""
import sys
sys.modules["matplotlib"] = None
from pathlib import Path
from streamdet.errors import StreamdetError
from streamdet.evaluate.report import write_report
from streamdet.evaluate.timeline import Timeline
try:
    write_report(Path({str(tmp_path)!r}), {{}}, Timeline(), [])
except StreamdetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert "pip install 'streamdet[report]'" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_alert_says_since_when_only_where_that_was_before_it(tmp_path: Path) -> None:
    before = msgspec.structs.replace(alert(), likely_start="2026-01-02T03:03:59.000Z")
    at_once = msgspec.structs.replace(alert(), likely_start=alert().event_time)
    for told, shown in ((before, 1), (at_once, 0), (alert(), 0)):
        text = write_report(tmp_path, SUMMARY, timeline(), [told]).read_text()
        assert text.count("since 2026-01-02T03:03:59.000Z") == shown
        assert text.count("since 2026") == shown
