"""From normal rows to new model versions: buffer, trainer, gate."""
