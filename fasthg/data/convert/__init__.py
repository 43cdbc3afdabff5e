"""Annotation projects of other tools, converted to TFRecords in MARS' format."""
