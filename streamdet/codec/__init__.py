"""From bytes to columns: what a record value says, or why it cannot be read."""
