"""The report of a run: a page that needs nothing but a browser, its picture, and the summary as JSON.

Guarantees: each file appears whole or not at all, the page last; the page loads nothing from anywhere, follows the
reader's light or dark setting, and shows values from the stream (names of entities, say) as text, never as markup.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from streamdet.errors import StreamdetError
from streamdet.evaluate.picture import DARK, LIGHT, draw
from streamdet.evaluate.timeline import Timeline
from streamdet.events import Alert

PAGE: Final = "report.html"
PICTURE: Final = "timeline.png"
SUMMARY: Final = "summary.json"

# Where the summary of a replay counts what was over what is usual and no alert, by the reason.
HELD_BACK: Final = "held_back"
# More features would not fit beside each other, and the first ones carry nearly all of the score.
FEATURES_SHOWN: Final = 3
# What the title says, in this order: key of the summary, and how it reads.
_HEADLINE: Final = (
    ("events", "{:,} events"),
    ("alerts", "{:,} alerts"),
    ("precision", "precision {:.2f}"),
    ("recall", "recall {:.2f}"),
    ("roc_auc", "ROC-AUC {:.3f}"),
)

_STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2430; --faint: #d5dae2; --soft: #5b6572; --bar: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181f; --ink: #dfe4ec; --faint: #39414d; --soft: #98a2b0; --bar: #ff8a3d; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
img { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--faint); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.n { text-align: right; }
.share { display: inline-block; height: .6rem; background: var(--bar); border-radius: 2px; margin-right: .4rem; }
.soft { color: var(--soft); }
"""


def write_report(
    directory: Path, summary: Mapping[str, Any], timeline: Timeline, alerts: Sequence[Alert]
) -> Path:
    """Write `report.html`, `timeline.png` and `summary.json`, replacing older ones.

    Args:
        directory: where to; made if it is absent.
        summary: what the run found; mappings in it are shown as if their keys stood beside it, `held_back` in a table
            of its own. `title`, if there is one, begins the headline.
        timeline: the stream to draw.
        alerts: the newest ones in the order in which they came, of which the page lists all.

    Returns:
        The path of the page.

    Raises:
        StreamdetError: matplotlib is not installed, or the folder cannot be written.
    """
    headline = _headline(summary)
    light, dark = draw(timeline, headline, LIGHT), draw(timeline, headline, DARK)
    page = _page(headline, light, dark, summary, alerts)
    text = json.dumps(_finite(summary), indent=2, ensure_ascii=False, default=str) + "\n"
    files = {PICTURE: light, SUMMARY: text.encode(), PAGE: page.encode()}
    parts = {name: directory / f".{name}.part" for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            parts[name].write_bytes(content)
        for name, part in parts.items():
            part.replace(directory / name)
    except OSError as error:
        raise StreamdetError(f"cannot write the report into {directory}: {error}") from error
    finally:
        for part in parts.values():
            _remove(part)
    return directory / PAGE


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself is the trouble, and that is being said already


def _facts(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values in order, those of mappings in their place."""
    for key, value in summary.items():
        if isinstance(value, Mapping):
            yield from _facts(value)
        else:
            yield key, value


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """JSON has no NaN and no infinity: null says it as well."""
    if isinstance(value, Mapping):
        return {key: _finite(some) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(some) for some in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _headline(summary: Mapping[str, Any]) -> str:
    facts = dict(_facts(summary))
    told = [form.format(facts[key]) for key, form in _HEADLINE if facts.get(key) is not None]
    title = facts.get("title")
    return (f"{title}: " if title else "") + " · ".join(told)


def _page(
    headline: str, light: bytes, dark: bytes, summary: Mapping[str, Any], alerts: Sequence[Alert]
) -> str:
    facts = {key: value for key, value in summary.items() if key not in ("title", HELD_BACK)}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(headline)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(headline)}</h1>
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{_inline(dark)}">
<img src="{_inline(light)}" alt="Scores against the limit over time, with alerts: {escape(headline)}">
</picture>
<p class="soft">An event alerts where its raw score, -ln p, reaches the limit in force at that moment and no noise rule
holds it back (reason limit), or where a value lies outside its hard range (reason range): whatever the model says, its
raw score is then raised to the limit. Score = raw score / limit. Neighbouring events share a column: peaks, alerts and
anomalies are all there.</p>
{_alerts(alerts)}
{_held_back(summary.get(HELD_BACK, {}))}
<h2>Summary</h2>
{_table(facts)}
</body>
</html>
"""


def _table(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"<tr><th>{escape(key.replace('_', ' '))}</th><td>{escape(_shown(value))}</td></tr>"
        for key, value in _facts(facts)
    )
    return f"<table>\n{rows}\n</table>"


def _held_back(counts: Mapping[str, int]) -> str:
    """How many events were over what is usual and are no alerts, by the reason; nothing where there are none."""
    some = {reason: n for reason, n in counts.items() if n}
    if not some:
        return ""
    return f"""<h2>Held back</h2>
<p class="soft">Events over what is usual that are no alerts, by the reason: a rule of noise, or the excursion that the
limit has flagged before.</p>
{_table(some)}"""


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _alerts(alerts: Sequence[Alert]) -> str:
    if not alerts:
        return "<h2>Alerts</h2>\n<p>None.</p>"
    rows = "\n".join(_alert(alert) for alert in reversed(alerts))
    return f"""<h2>The {len(alerts):,} newest alerts</h2>
<div class="scroll"><table>
<tr><th>event time</th><th>entity</th><th>score</th><th>severity</th><th>reason</th>
<th>share, feature, actual (expected)</th><th>confidence</th></tr>
{rows}
</table></div>"""


def _alert(alert: Alert) -> str:
    features = "<br>".join(
        f'<span class="share" style="width: {6 * f.share:.2f}rem"></span>{f.share:.0%} <b>{escape(f.name)}</b> '
        f'{escape(_shown(f.actual))} <span class="soft">({escape(_shown(f.expected))})</span>'
        for f in alert.features[:FEATURES_SHOWN]
    )
    return (
        f'<tr><td title="{escape(alert.id)}">{escape(alert.event_time)}{_since(alert)}</td>'
        f'<td>{escape(alert.entity or "")}</td><td class="n">{alert.score:.2f}</td><td>{escape(alert.severity)}</td>'
        f"<td>{escape(alert.reason)}</td><td>{features}</td><td>{_confidence(alert)}</td></tr>"
    )


def _since(alert: Alert) -> str:
    """When it has likely begun, where that was before it."""
    if alert.likely_start in ("", alert.event_time):
        return ""
    return f' <span class="soft">since {escape(alert.likely_start)}</span>'


def _confidence(alert: Alert) -> str:
    """What the alert rests on, and the first of the features that were missing."""
    imputed = [feature.name for feature in alert.features if feature.imputed]
    if not imputed:
        return f"{alert.confidence:.0%}"
    more = len(imputed) - FEATURES_SHOWN
    told = ", ".join(imputed[:FEATURES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f'{alert.confidence:.0%} <span class="soft">imputed: {escape(told)}</span>'


def _shown(value: object) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash for what is not there
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
