"""Scores to verdicts, what is held back of them as noise, and alerts that say why."""

from streamdet.decide.explaining import Explained, explain
from streamdet.decide.judging import judge, severity
from streamdet.decide.noise import Sieve
from streamdet.decide.onset import Onset

__all__ = ["Explained", "Onset", "Sieve", "explain", "judge", "severity"]
