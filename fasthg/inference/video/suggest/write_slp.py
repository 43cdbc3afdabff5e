"""Suggestions as labels of SLEAP, of the films themselves, so that its GUI shows what is around.

The poses are predicted instances, on tracks where there are several animals; the frames are also
in the list of suggestions. SLEAP makes a user's instance of a predicted one when it is corrected,
and `convert slp` takes users' alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fasthg.inference.video.suggest.content import Content

NAME = "suggestions.slp"


def write(content: Content, folder: Path, _final: Path) -> list[str]:
    """Write `suggestions.slp` in `folder`; returns its name."""
    import sleap_io

    names = [str(name) for name in content.parts.NAMES]
    skeleton = sleap_io.Skeleton(
        nodes=names,
        edges=[(names[a], names[b]) for a, b in content.parts.SKELETON],
        symmetries=[(names[a], names[b]) for a, b in content.parts.LEFT_RIGHT_PAIRS],
        name="animal",
    )
    several = len(content.animals) > 1
    tracks = [sleap_io.Track(name) for name in content.animals] if several else []
    videos = {
        film: sleap_io.Video.from_filename(str(Path(film).resolve())) for film in content.films
    }
    frames, suggestions = [], []
    for each in content.labels:
        video = videos[str(each.film)]
        instances = []
        for animal, (points, scores) in enumerate(zip(each.keypoints, each.scores, strict=True)):
            if not np.isfinite(points).any():
                continue
            instances.append(
                sleap_io.PredictedInstance.from_numpy(
                    points,
                    skeleton=skeleton,
                    point_scores=scores,
                    score=float(scores.mean()),
                    track=tracks[animal] if several else None,
                )
            )
        frames.append(sleap_io.LabeledFrame(video=video, frame_idx=each.frame, instances=instances))
        suggestions.append(sleap_io.SuggestionFrame(video=video, frame_idx=each.frame))
    labels = sleap_io.Labels(
        labeled_frames=frames,
        videos=list(videos.values()),
        skeletons=[skeleton],
        tracks=tracks,
        suggestions=suggestions,
    )
    labels.save(str(folder / NAME), embed=False, verbose=False)
    return [NAME]
