"""From rows to scores: pure functions of a model version."""
