"""From events to rows: imputation and encoding, per entity and in order."""
