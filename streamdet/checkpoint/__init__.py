"""State that survives: digest-checked wholes, written atomically, in a folder or any other store."""
