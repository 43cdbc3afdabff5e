"""From TFRecords to batches: records, the index over them, converters and loaders."""
