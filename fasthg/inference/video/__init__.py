"""Keypoints of new images and videos.

    sources, video -> Frame -> boxes | tracking -> network -> store -> tables, hdf5 -> files
                                                                   -> overlay

`job.predict_source` joins them; `stages.ahead` runs a stage in a thread of its own.
"""
