"""Scores to verdicts."""

import numpy as np

from streamdet.events import Bools, Cause, Floats, Ints, Verdicts
from streamdet.threshold.limits import Limits

# Multiples of the limit from which an alert is major, and critical.
MAJOR, CRITICAL = 1.5, 2.5


def judge(raw: Floats, slots: Ints, fresh: Bools, limits: Limits, *, alerting: bool) -> Verdicts:
    """Verdicts on n raw scores of one lane, in order. The limit for a score has seen nothing of it or after it."""
    judged = limits.judge(raw, slots, fresh, alerting=alerting)
    reason = np.full(len(raw), Cause.NONE, np.uint8)
    reason[raw >= judged.usual] = Cause.EXCURSION
    reason[judged.flagged] = Cause.LIMIT
    return Verdicts(
        raw, judged.limit, judged.mode, judged.flagged, judged.fed, judged.normal, judged.usual, reason
    )


def severity(score: float) -> str:
    """How far over the limit: minor, major or critical."""
    if score >= CRITICAL:
        return "critical"
    return "major" if score >= MAJOR else "minor"
