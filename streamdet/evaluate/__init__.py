"""How good the verdicts were: metrics against labels, and the report with its picture."""
