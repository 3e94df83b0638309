"""What models read: corpora, token streams on disk, and synthetic tasks whose best possible loss is known."""
