"""A trained network at work: predictions of records, pictures of them, and poses of videos."""
