"""TFRecords of MARS: the file format, the protobuf messages inside, and the fields of a frame."""
