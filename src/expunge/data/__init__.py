"""Text -> examples -> tokens -> batches."""
