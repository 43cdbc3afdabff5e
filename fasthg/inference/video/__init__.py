"""Keypoints of new images and videos.

    sources, video_file -> Frame -> boxes | tracking -> keypoints -> row_store -> formats, hdf5
                                                                              -> overlay

`predict_source.predict_source` connects them for one source, `predict.predict_all` takes all inputs
of one command; `pipeline.ahead` runs a stage in its own thread.
"""
