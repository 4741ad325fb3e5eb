"""From scores to limits: what is normal now, per entity and per lane."""
