"""The configuration: every setting declared once, with its unit, bounds, default and a sentence.

From these declarations come parsing, `streamdet check` and the commented file that `streamdet init` writes. Unknown
keys are refused. `${NAME}` in a value comes from the environment, so that a secret need not stand in the file; no
secret is shown in any text, errors and their traces included.
"""

from streamdet.config.fields import Features, Missing, StandIn, Transactions
from streamdet.config.input import Batch, Input
from streamdet.config.kafka import Kafka, Security
from streamdet.config.learning import WARMUP, Gate
from streamdet.config.limit import EXCEEDANCES_MIN, Limit
from streamdet.config.model import Model
from streamdet.config.noise import FeatureNoise, Noise
from streamdet.config.reading import load, parse
from streamdet.config.section import Section
from streamdet.config.settings import Settings
from streamdet.config.working import Checkpoint, Commit

__all__ = [
    "EXCEEDANCES_MIN",
    "WARMUP",
    "Batch",
    "Checkpoint",
    "Commit",
    "FeatureNoise",
    "Features",
    "Gate",
    "Input",
    "Kafka",
    "Limit",
    "Missing",
    "Model",
    "Noise",
    "Section",
    "Security",
    "Settings",
    "StandIn",
    "Transactions",
    "load",
    "parse",
]
