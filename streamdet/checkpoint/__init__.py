"""State that survives: one digest-checked whole, written atomically."""
