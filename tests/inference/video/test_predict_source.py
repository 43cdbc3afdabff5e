"""A source from frames to files: where keypoints are, tracking, ends and going on."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas
import pytest
import torch
from moving_dots import OFFSETS, PARTS, SIZE, Dots, DotsLocator, dots, write_video

from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.inference.video.filtering import Filter
from fasthg.inference.video.frame import Frame, FrameRange
from fasthg.inference.video.made_from import is_overlay, read_record
from fasthg.inference.video.overlay import drawing_names
from fasthg.inference.video.predict_source import WHOLE, Options, SourceResult, check_targets
from fasthg.inference.video.sources import find_sources

Predict = Callable[..., SourceResult]


class Made:
    """A source of frames that are made when asked for; None cannot be decoded."""

    names: tuple[str, ...] = ()

    def __init__(self, folder: Path, images: list[np.ndarray | None]) -> None:
        self.path, self.stem, self.images = Path("made.mp4"), folder / "made", images
        self.size, self.count = SIZE, len(images)

    def identity(self) -> str:
        return f"{len(self.images)} frames"

    def frames(self, start: int = 0):
        for number in range(start, len(self.images)):
            yield Frame(number, number / 25, self.images[number], "")


def table(outcome: SourceResult) -> pandas.DataFrame:
    return pandas.read_csv(next(f for f in outcome.files if f.suffix == ".csv"))


def points(outcome: SourceResult) -> np.ndarray:
    """(frames, parts, 2) of one animal."""
    return table(outcome)[["x", "y"]].to_numpy().reshape(-1, 3, 2)


CENTRES = [(60 + 3 * n, 80 + 20 * np.sin(n / 6)) for n in range(40)]


def test_boxes_of_a_moving_animal_in_a_video(tmp_path: Path, predict: Predict) -> None:
    path = write_video(tmp_path / "walk.mp4", [dots(centre) for centre in CENTRES])
    lines = ["frame,x1,y1,x2,y2"]
    lines += [f"{n},{x - 30},{y - 30},{x + 30},{y + 30}" for n, (x, y) in enumerate(CENTRES)]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    outcome = predict(find_sources([path])[0], boxes=tmp_path / "b.csv")
    assert outcome.files == [tmp_path / "walk.pose.csv"]
    truth = np.array(CENTRES)[:, None] + OFFSETS
    # A cell is 2.5 px here; chroma has half the resolution.
    np.testing.assert_allclose(points(outcome), truth, atol=1.2)
    found = table(outcome)
    assert list(found.columns) == ["frame", "time_s", "animal", "part", "x", "y", "score"]
    np.testing.assert_allclose(found["time_s"].unique(), np.arange(40) / 25, atol=1e-6)
    assert list(found["part"][:3]) == list(PARTS)
    assert not list(tmp_path.glob(".*.rows"))


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"boxes": WHOLE}, "check that the boxes are like those of training"),
        ({"boxes": True}, "check that the boxes are like those of training"),
    ],
)
def test_poses_of_low_scores_are_told_with_a_remedy(
    tmp_path: Path, predict: Predict, options: dict[str, object], remedy: str
) -> None:
    if options["boxes"] is True:
        rows = "".join(f"{n},80,60,120,120\n" for n in range(8))
        (tmp_path / "b.csv").write_text("frame,x1,y1,x2,y2\n" + rows)
        options = {"boxes": tmp_path / "b.csv"}
    seen, black = dots((100, 90)), dots(None)
    few, many = ([seen] * (8 - n) + [black] * n for n in (1, 2))
    assert predict(Made(tmp_path, few), **options).notes == []
    (note,) = predict(Made(tmp_path, many), **options, again=True).notes
    assert note.startswith("2 of 8 poses have scores below 0.3 in most parts; " + remedy)


def test_a_box_in_few_frames_and_frames_that_cannot_be_decoded(
    tmp_path: Path, predict: Predict, network: Dots
) -> None:
    images = [dots((100, 90)), None, dots((100, 90)), dots((100, 90))]
    (tmp_path / "b.csv").write_text(
        "frame,x1,y1,x2,y2\n0,60,50,140,130\n1,60,50,140,130\n9,1,1,9,9"
    )
    outcome = predict(Made(tmp_path, images), boxes=tmp_path / "b.csv")
    there = np.isfinite(points(outcome)).all(axis=(1, 2))
    assert there.tolist() == [True, False, False, False]
    assert sum(network.batches) == 1
    assert outcome.notes == [
        "1 frame cannot be decoded; the rows are empty",
        f"{tmp_path / 'b.csv'} has 1 frame beyond the last one",
    ]


def rows_of(outcome: SourceResult, animals: int) -> np.ndarray:
    """(frames, animals, parts, 2)."""
    return table(outcome)[["x", "y"]].to_numpy().reshape(-1, animals, 3, 2)


def test_a_locator_finds_what_goes_away_and_comes_back_elsewhere(
    tmp_path: Path, predict: Predict
) -> None:
    again = [(200 - 2 * n, 120.0) for n in range(10)]
    images = [dots(c) for c in CENTRES] + [dots(None)] * 6 + [dots(c) for c in again]
    found = points(predict(Made(tmp_path, images), locator=DotsLocator()))
    truth = np.array([*CENTRES, *again])[:, None] + OFFSETS
    np.testing.assert_allclose(found[np.r_[0:40, 46:56]], truth, atol=0.6)
    # A lost animal's row is empty, not a guess.
    assert np.isnan(found[40:46]).all()


@pytest.mark.parametrize(("empty", "told"), [(2, False), (4, True)])
def test_many_empty_rows_are_told(tmp_path, predict, empty, told) -> None:
    images = [dots(CENTRES[0])] * (12 - empty) + [dots(None)] * empty
    notes = predict(Made(tmp_path, images), locator=DotsLocator()).notes
    assert [note.startswith(f"{empty} of 12 rows are empty") for note in notes] == [True] * told


def test_an_animal_that_the_locator_misses_is_looked_for_where_it_should_be(
    tmp_path: Path, predict: Predict
) -> None:
    images = [dots(centre) for centre in CENTRES]
    locator = DotsLocator(blind=range(10, 16))
    found = points(predict(Made(tmp_path, images), locator=locator))
    np.testing.assert_allclose(found, np.array(CENTRES)[:, None] + OFFSETS, atol=0.6)


def test_two_animals_keep_their_rows_when_they_pass_each_other(
    tmp_path: Path, predict: Predict
) -> None:
    here = [(40 + 4 * n, 70.0) for n in range(40)]
    there = [(216 - 4 * n, 122.0) for n in range(40)]
    images = [np.maximum(dots(a), dots(b)) for a, b in zip(here, there, strict=True)]
    source = Made(tmp_path, images)
    whole = rows_of(predict(source, locator=DotsLocator(most=2)), 2)
    truth = np.stack([here, there], axis=1)[:, :, None] + OFFSETS
    if abs(whole[0, 0, 0, 1] - truth[0, 0, 0, 1]) > 20:
        truth = truth[:, ::-1]
    np.testing.assert_allclose(whole, truth, atol=1.5)
    predict(source, locator=DotsLocator(most=2), stop_at=17, again=True)
    resumed = rows_of(predict(source, locator=DotsLocator(most=2), resume=True), 2)
    np.testing.assert_array_equal(resumed, whole)
    # --animals bounds the rows.
    one = predict(source, locator=DotsLocator(most=2), animals=1)
    assert set(table(one)["animal"]) == {"animal1"}


def test_given_boxes_of_some_frames_count_instead_of_what_is_found(
    tmp_path: Path, predict: Predict
) -> None:
    """Of two animals that look the same, the one in the box is followed."""
    images = [np.maximum(dots(c), dots((220, 150))) for c in CENTRES]
    (x, y), file = CENTRES[0], tmp_path / "boxes.csv"
    file.write_text(f"frame,x1,y1,x2,y2\n0,{x - 30},{y - 30},{x + 30},{y + 30}\n")
    locator = DotsLocator()
    found = points(predict(Made(tmp_path, images), locator=locator, boxes=file))
    np.testing.assert_allclose(found, np.array(CENTRES)[:, None] + OFFSETS, atol=0.6)
    with file.open("a") as lines:
        lines.write("20,190,120,250,180\n")
    found = points(predict(Made(tmp_path, images), locator=locator, boxes=file))
    np.testing.assert_allclose(found[20:], np.array([[220, 150]] * 20)[:, None] + OFFSETS, atol=0.6)
    file.write_text("frame,x1,y1,x2,y2,animal\n0,1,1,9,9,a\n0,1,1,9,9,b\n")
    with pytest.raises(ConfigError, match=r"--animals 1: .* has boxes of 2; raise it"):
        predict(Made(tmp_path, images), locator=locator, boxes=file, animals=1)


def test_a_box_corrects_the_animal_that_it_names(tmp_path: Path, predict: Predict) -> None:
    still = [(60.0, 60.0), (190.0, 130.0)]
    images = [np.maximum(*map(dots, still))] * 6
    source, file = Made(tmp_path, images), tmp_path / "boxes.csv"
    plain = rows_of(predict(source, locator=DotsLocator(most=2)), 2)
    x, y = plain[0, 0, 0] - OFFSETS[0]
    file.write_text(f"frame,x1,y1,x2,y2,animal\n3,{x - 30},{y - 30},{x + 30},{y + 30},animal2\n")
    found = rows_of(predict(source, locator=DotsLocator(most=2), boxes=file), 2)
    np.testing.assert_allclose(found[:3], plain[:3], atol=0.6)
    np.testing.assert_allclose(found[3:], plain[3:, ::-1], atol=0.6)


def test_more_animals_than_a_batch(tmp_path: Path, predict: Predict) -> None:
    """In contact, so that all are looked at once more together; a batch is four."""
    centres = [(40 + 40 * (n % 5), 40 + 45 * (n // 5)) for n in range(10)]
    image = np.maximum.reduce([dots(c) for c in centres])
    outcome = predict(Made(tmp_path, [image] * 2), locator=DotsLocator(), animals=10)
    assert len(set(table(outcome)["animal"])) == 10


def test_nothing_says_where_the_animals_are(tmp_path: Path, predict: Predict) -> None:
    with pytest.raises(ConfigError, match=r"train a locator, once, with: fasthg train --locator"):
        predict(Made(tmp_path, [dots((90, 90))]))


def test_stopping_leaves_finished_rows_and_resume_goes_on(tmp_path: Path, predict: Predict) -> None:
    images = [dots(centre) for centre in CENTRES]
    source = Made(tmp_path, images)
    locator = DotsLocator()
    whole = table(predict(source, locator=locator))
    (tmp_path / "made.pose.csv").unlink()
    first = predict(source, locator=locator, stop_at=15)
    assert first.stopped
    assert first.rows == 16  # batches are of four frames
    pandas.testing.assert_frame_equal(table(first), whole[: 16 * 3])
    # A kill in the middle of a write leaves a part of a row.
    with (tmp_path / ".made.rows").open("ab") as file:
        file.write(b"torn")
    second = predict(source, locator=locator, resume=True)
    assert (second.rows, second.new, second.stopped) == (40, 24, False)
    pandas.testing.assert_frame_equal(table(second), whole)
    assert not (tmp_path / ".made.rows").exists()


def test_rows_of_something_else_are_not_gone_on_with(tmp_path: Path, predict: Predict) -> None:
    images = [dots(centre) for centre in CENTRES[:10]]
    predict(Made(tmp_path, images), boxes=WHOLE, stop_at=4)
    with pytest.raises(DataError, match=r"\.made\.rows: .* another source; leave out --resume"):
        predict(Made(tmp_path, images[:9]), boxes=WHOLE, resume=True)
    with pytest.raises(DataError, match="another boxes"):
        predict(Made(tmp_path, images), resume=True, locator=DotsLocator())
    with pytest.raises(DataError, match="another crop"):
        predict(Made(tmp_path, images), resume=True, boxes=WHOLE, keys={"CROP_BORDER": "edge"})
    assert predict(Made(tmp_path, images), boxes=WHOLE).new == 10


def test_an_error_in_a_stage_ends_all_and_leaves_rows(
    tmp_path: Path, predict: Predict, network: Dots
) -> None:
    class Failing(Dots):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            if len(self.batches) == 3:
                raise RuntimeError("the GPU is gone")
            return super().__call__(images)

    images = [dots(centre) for centre in CENTRES]
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        predict(Made(tmp_path, images), boxes=WHOLE, using=Failing())
    assert not any(thread.name == "fasthg-stage" for thread in threading.enumerate())
    assert predict(Made(tmp_path, images), boxes=WHOLE, resume=True).new == 40 - 3 * 4


def test_no_frame(tmp_path: Path, predict: Predict) -> None:
    with pytest.raises(DataError, match=r"made\.mp4: no frame in it"):
        predict(Made(tmp_path, []), boxes=WHOLE)
    assert not list(tmp_path.iterdir())


def test_a_box_outside_a_video_is_found_before_the_first_frame(
    tmp_path: Path, predict: Predict, network: Dots
) -> None:
    (tmp_path / "b.csv").write_text("frame,x1,y1,x2,y2\n7,300,0,310,9\n")
    with pytest.raises(DataError, match=r"frame 7, animal1: .* lies outside the 256x192"):
        predict(Made(tmp_path, [dots((90, 90))] * 8), boxes=tmp_path / "b.csv")
    assert network.batches == []


def test_an_overlay_shows_the_parts_where_they_are(tmp_path: Path, predict: Predict) -> None:
    av = pytest.importorskip("av")
    centres = CENTRES[:12]
    path = write_video(tmp_path / "walk.mp4", [dots(c) for c in centres])
    outcome = predict(
        find_sources([path])[0], locator=DotsLocator(), overlay=True, folder=tmp_path / "out"
    )
    assert outcome.files[-1] == tmp_path / "out" / "walk.overlay.mp4"
    with av.open(str(outcome.files[-1])) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == len(centres)
    np.testing.assert_allclose([f.time for f in frames], np.arange(12) / 25, atol=1e-3)
    found = points(outcome)
    image = frames[8].to_ndarray(format="bgr24").astype(int)
    plain = dots(centres[8]).astype(int)
    changed = np.abs(image - plain).sum(axis=2) > 150
    rows, columns = np.nonzero(changed)
    for x, y in found[8]:
        assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < 4


def test_a_contact_sheet(tmp_path: Path, predict: Predict) -> None:
    pytest.importorskip("av")
    path = write_video(tmp_path / "walk.mp4", [dots(centre) for centre in CENTRES])
    outcome = predict(find_sources([path])[0], boxes=WHOLE, sheet=True)
    assert outcome.files == [tmp_path / "walk.pose.csv", tmp_path / "walk.sheet.png"]
    assert cv2.imread(str(outcome.files[1])).shape[1] > 5 * 300
    assert is_overlay(outcome.files[1], (".sheet.png",)), "no input of another prediction"


def test_an_overlay_of_images(tmp_path: Path, predict: Predict) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, centre in enumerate(CENTRES[:3]):
        cv2.imwrite(str(folder / f"{number}.jpg"), dots(centre))
    outcome = predict(find_sources([folder])[0], boxes=WHOLE, overlay=True)
    assert outcome.files == [tmp_path / "frames.pose.csv", tmp_path / "frames.overlay"]
    drawn = sorted(path.name for path in outcome.files[1].iterdir())
    assert drawn == ["0.png", "1.png", "2.png"]
    assert list(table(outcome)["image"][::3]) == ["0.jpg", "1.jpg", "2.jpg"]


def test_each_image_has_a_drawing_of_its_own(tmp_path: Path, predict: Predict) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for name, centre in zip(("x.bmp", "x.jpg", "x.png"), CENTRES, strict=False):
        cv2.imwrite(str(folder / name), dots(centre))
    drawn = predict(find_sources([folder])[0], boxes=WHOLE, overlay=True).files[-1]
    names = sorted(path.name for path in drawn.iterdir())
    assert names == ["x.bmp.png", "x.jpg.png", "x.png"]
    assert len({path.read_bytes() for path in drawn.iterdir()}) == 3
    assert drawing_names(["a.jpg", "A.bmp", "a.jpg", "a.jpg"]) == [
        *("a.png", "A.bmp.png", "a.jpg.png", "a.jpg.3.png")
    ], "records repeat names"
    assert drawing_names(["a.png", "a.png.png", "a.png"]) == ["a.png", "a.png.png", "a.png.2.png"]


def test_options_that_make_no_sense(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="--to xml: unknown format; use csv, mars"):
        Options(formats=("xml",)).check()
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(EnvironmentFault, match=r"needs tables; pip install 'fasthg\[dlc\]'"):
        Options(formats=("dlc_h5",)).check()


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, second = Made(tmp_path / "a", []), Made(tmp_path / "b", [])
    check_targets([first, second], Options())
    with pytest.raises(ConfigError, match="both would write made"):
        check_targets([first, second], Options(folder=tmp_path))


def test_results_of_one_film_are_kept_from_another_of_its_name(
    tmp_path: Path, predict: Predict
) -> None:
    images = [dots((100, 90))] * 4
    first = Made(tmp_path, images)
    assert predict(first, boxes=WHOLE).replaced == []
    replaced = predict(first, boxes=WHOLE, again=True).replaced
    assert replaced == [tmp_path / "made.pose.csv"]
    check_targets([first], Options())
    other = Made(tmp_path, images[:3])
    other.path = tmp_path / "made.avi"
    with pytest.raises(ConfigError, match=r"made\.pose\.csv exists and is of .*made\.mp4; give"):
        check_targets([other], Options())
    check_targets([other], Options(formats=("mars",)))
    (tmp_path / "made.pose.csv").unlink()
    check_targets([other], Options())


def test_unfinished_rows_of_one_film_are_kept_from_another_of_its_name(
    tmp_path: Path, predict: Predict
) -> None:
    class Killed(Dots):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            if len(self.batches) == 1:
                raise RuntimeError("killed")
            return super().__call__(images)

    images = [dots((100, 90))] * 8
    film, other = Made(tmp_path, images), Made(tmp_path, images[:3])
    film.path, other.path = tmp_path / "made.mp4", tmp_path / "made.avi"
    with pytest.raises(RuntimeError):
        predict(film, boxes=WHOLE, using=Killed())
    assert [path.name for path in tmp_path.iterdir()] == [".made.rows"]
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"\.made\.rows holds .* of .*made\.mp4; give"):
            check_targets([other], Options(resume=resume))
    # Edited, or moved, it is the same film.
    film.images = images[:5]
    check_targets([film], Options())
    film.images, film.path = images, tmp_path / "moved" / "made.mp4"
    check_targets([film], Options())
    assert predict(film, boxes=WHOLE, resume=True).new == 4
    check_targets([other], Options(formats=("mars",)))


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx")])
def test_a_file_that_is_broken_in_the_middle_is_noted(
    tmp_path: Path, predict: Predict, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, [dots((100, 90))] * 12, codec=codec)
    assert predict(find_sources([path])[0], boxes=WHOLE).notes == []
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        bad = [packet.pos for packet in container.demux(container.streams.video[0])][5]
    content = path.read_bytes()
    path.write_bytes(content[:bad] + bytes(16) + content[bad + 16 :])
    (note,) = predict(find_sources([path])[0], boxes=WHOLE, again=True).notes
    assert note == (
        "the file breaks off after 5 frames (at 0.2 s of 0.5 s); repair or copy it again"
    )


def test_what_is_finished_is_not_predicted_again(
    tmp_path: Path, predict: Predict, network: Dots
) -> None:
    source = Made(tmp_path, [dots((100, 90))] * 4)
    predict(source, boxes=WHOLE, stop_at=4)
    assert predict(source, boxes=WHOLE, resume=True).new == 0
    for resume in (False, True):
        network.batches.clear()
        again = predict(source, boxes=WHOLE, resume=resume)
        assert again.finished and not network.batches
        assert again.notes == ["done before (made.pose.csv); --again makes it anew"]
    assert predict(source, boxes=WHOLE, again=True).new == 4
    assert not predict(source, boxes=WHOLE, formats=("csv", "mars")).finished
    with pytest.raises(DataError, match="these results were made with another decode"):
        predict(source, boxes=WHOLE, resume=True, keys={"DECODE": "argmax"})
    with pytest.raises(ConfigError, match="--again: starts anew, --resume goes on"):
        Options(again=True, resume=True).check()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"keys": {"DECODE": "argmax"}}, "decode"),
        ({"keys": {"FLIP_TEST": True}}, "flip_test"),
        ({"keys": {"PRECISION": "bf16"}}, "precision"),
        ({"weights": "others"}, "weights"),
        ({"boxes": True}, "boxes"),
    ],
)
def test_what_others_made_is_made_anew_and_named(
    tmp_path: Path, predict: Predict, given: dict[str, object], what: str
) -> None:
    source = Made(tmp_path, [dots((100, 90))] * 4)
    predict(source, boxes=WHOLE)
    if given.get("boxes"):
        given = {"boxes": tmp_path / "b.csv"}
        given["boxes"].write_text("frame,x1,y1,x2,y2\n0,60,50,140,130\n")
    outcome = predict(source, **{"boxes": WHOLE, **given})
    assert outcome.new == 4 and outcome.replaced == [tmp_path / "made.pose.csv"]
    assert outcome.notes[0] == f"made anew: what was there is of another {what}"
    assert predict(source, **{"boxes": WHOLE, **given}).finished


def test_results_that_were_edited_or_deleted_are_not_done(tmp_path: Path, predict: Predict) -> None:
    source, table = Made(tmp_path, [dots((100, 90))] * 4), tmp_path / "made.pose.csv"
    predict(source, boxes=WHOLE)
    table.write_text("edited")
    assert predict(source, boxes=WHOLE).new == 4
    table.unlink()
    assert predict(source, boxes=WHOLE).new == 4
    assert predict(source, boxes=WHOLE).finished
    source.images = source.images[:3]
    assert predict(source, boxes=WHOLE).new == 3


def test_a_record_of_an_older_version_is_read_and_its_results_are_made_anew(
    tmp_path: Path, predict: Predict
) -> None:
    source, made = Made(tmp_path, [dots((100, 90))] * 4), tmp_path / ".made.made.json"
    predict(source, boxes=WHOLE)
    content = json.loads(made.read_text())
    for key in ("fasthg", "precision"):
        del content["made_from"][key]
    made.write_text(json.dumps(content))
    # What --resume has always left out stays left out.
    assert predict(source, boxes=WHOLE, resume=True).finished
    assert predict(source, boxes=WHOLE).notes == ["made anew: what was there is of another fasthg"]


def test_drawings_are_no_input(tmp_path: Path, predict: Predict) -> None:
    path = write_video(tmp_path / "walk.mp4", [dots((100, 90))] * 3)
    predict(find_sources([path])[0], boxes=WHOLE, overlay=True)
    suffixes = (".overlay.mp4", ".overlay")
    assert is_overlay(tmp_path / "walk.overlay.mp4", suffixes)
    assert not is_overlay(path, suffixes)
    assert not is_overlay(tmp_path / "other.overlay.mp4", suffixes)


def test_what_an_earlier_prediction_wrote_stays_known(tmp_path: Path, predict: Predict) -> None:
    images = [dots((100, 90))] * 4
    film, other = Made(tmp_path, images), Made(tmp_path, images[:3])
    other.path = tmp_path / "made.avi"
    predict(film, boxes=WHOLE, formats=("csv",))
    predict(film, boxes=WHOLE, formats=("mars",))
    with pytest.raises(ConfigError, match=r"made\.pose\.csv exists and is of .*made\.mp4; give"):
        check_targets([other], Options())
    # Nor does a prediction of another film beside it forget whose it is.
    predict(other, boxes=WHOLE, formats=("coco",))
    with pytest.raises(ConfigError, match=r"made\.pose\.csv exists and is of .*made\.mp4; give"):
        check_targets([other], Options())
    check_targets([film], Options())
    # Other weights may have made it, so that it isn't finished.
    assert not predict(film, boxes=WHOLE, resume=True).finished
    (tmp_path / "made.pose.csv").write_text("edited")
    predict(film, boxes=WHOLE, formats=("mars",))
    check_targets([other], Options())


def test_a_drawing_of_another_confidence_is_not_finished(tmp_path: Path, predict: Predict) -> None:
    path = write_video(tmp_path / "walk.mp4", [dots((100, 90))] * 3)
    (source,), given = find_sources([path]), {"boxes": WHOLE, "resume": True}
    predict(source, **given, overlay=True)
    assert predict(source, **given, overlay=True).finished
    with pytest.raises(DataError, match=r"made with another confidence; leave out --resume"):
        predict(source, **given, overlay=True, confidence=0.9)
    # Without a drawing nothing depends on it, and rows are gone on with.
    assert predict(source, **given, confidence=0.9).finished
    predict(source, boxes=WHOLE, overlay=True, stop_at=1, again=True)
    assert not predict(source, **given, overlay=True, confidence=0.9).finished


def test_a_drawing_stays_known_after_a_prediction_without_one(
    tmp_path: Path, predict: Predict
) -> None:
    path = write_video(tmp_path / "walk.mp4", [dots((100, 90))] * 3)
    for overlay in (True, False):
        predict(find_sources([path])[0], boxes=WHOLE, overlay=overlay)
    assert is_overlay(tmp_path / "walk.overlay.mp4", (".overlay.mp4", ".overlay"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", None),
        ("files", {"csv": 3}),
        ("files", {"overlay": []}),
        ("earlier", {"made.overlay": ["/a"]}),
        ("source", 3),
        ("made_from", None),
        ("rows", "4"),
        ("finished", 1),
        pytest.param("", "[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_record_is_none(tmp_path: Path, key: str, value: object) -> None:
    made = tmp_path / ".made.made.json"
    whole = {"source": "/a", "made_from": {}, "rows": 4, "finished": True, "files": {}}
    made.write_text(json.dumps(whole))
    assert read_record(made) is not None
    made.write_text(json.dumps({**whole, key: value}) if key else str(value))
    assert read_record(made) is None
    check_targets([Made(tmp_path, [])], Options())
    assert not is_overlay(tmp_path / "made.overlay", (".overlay",))


def test_a_folder_of_drawings_is_no_input_from_within(
    tmp_path: Path, predict: Predict, monkeypatch
) -> None:
    (tmp_path / "frames").mkdir()
    cv2.imwrite(str(tmp_path / "frames" / "0.png"), dots((100, 90)))
    predict(find_sources([tmp_path / "frames"])[0], boxes=WHOLE, overlay=True)
    monkeypatch.chdir(tmp_path / "frames.overlay")
    assert is_overlay(Path("."), (".overlay.mp4", ".overlay"))
    monkeypatch.chdir(tmp_path / "frames")
    assert not is_overlay(Path("."), (".overlay.mp4", ".overlay"))


def test_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    for name in ("b.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), dots(None))
    (loose,) = find_sources([tmp_path / "b.png", tmp_path / "a.jpg"])
    assert loose.names == ("b.png", "a.jpg")
    assert loose.stem == tmp_path / tmp_path.name
    for number in (0, 1, 2, 10, 11):
        cv2.imwrite(str(tmp_path / "empty" / f"img{number}.png"), dots(None))
    in_time = tuple(f"img{number}.png" for number in (0, 1, 2, 10, 11))
    assert find_sources([tmp_path / "empty"])[0].names == in_time
    by_shell = sorted((tmp_path / "empty").iterdir())
    assert find_sources(by_shell)[0].names == in_time
    assert find_sources(by_shell[::-1])[0].names == tuple(file.name for file in by_shell[::-1])
    for file in by_shell:
        file.unlink()
    (folder,) = find_sources([tmp_path])
    assert folder.names == ("a.jpg", "b.png")
    for path, message in (
        ("empty", "no images or videos in this folder; give some, or --recursive"),
        ("gone.png", "no such file"),
        ("notes.txt", "unknown file type; use one of avi bmp"),
    ):
        with pytest.raises(DataError, match=rf"{path}: {message}"):
            find_sources([tmp_path / path])
    with pytest.raises(ConfigError, match="is given twice"):
        find_sources([tmp_path / "b.png", tmp_path / "b.png"])


@pytest.mark.parametrize("locator", [None, DotsLocator])
def test_a_part_of_a_film_keeps_numbers_and_times(tmp_path, predict, locator) -> None:
    source = Made(tmp_path, [dots(centre) for centre in CENTRES])
    given = {"locator": locator()} if locator else {"boxes": WHOLE}
    whole = table(predict(source, **given))
    with pytest.raises(DataError, match=r"the whole of made\.mp4 is predicted there"):
        predict(source, **given, frames=FrameRange(7, 19))
    for text, first, stop in (("7:19", 7, 19), (":6", 0, 6), ("33:", 33, 40)):
        outcome = predict(source, **given, frames=FrameRange.parse(text), again=True)
        part = table(outcome)
        assert outcome.notes == []
        expected = whole[whole.frame.between(first, stop - 1)].reset_index(drop=True)
        assert list(part["frame"]) == list(expected["frame"])
        np.testing.assert_array_equal(part["time_s"], expected["time_s"])
        np.testing.assert_allclose(part[["x", "y"]], expected[["x", "y"]], atol=0.6)


def test_a_part_of_a_film_goes_on_where_it_stopped(tmp_path: Path, predict: Predict) -> None:
    source = Made(tmp_path, [dots(centre) for centre in CENTRES])
    given = {"boxes": WHOLE, "frames": FrameRange(5, 30)}
    whole = table(predict(source, **given))
    assert predict(source, **given, stop_at=8, again=True).rows == 8
    with pytest.raises(DataError, match="made with another frames"):
        predict(source, boxes=WHOLE, resume=True)
    assert predict(source, **given, resume=True).new == 17
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "made.pose.csv"), whole)
    assert predict(source, **given).finished


def test_frames_beyond_the_end(tmp_path: Path, predict: Predict) -> None:
    source = Made(tmp_path, [dots((100, 90))] * 8)
    (note,) = predict(source, boxes=WHOLE, frames=FrameRange(6, 90)).notes
    assert note == "--frames 6:90: it ends after 8 frames"
    with pytest.raises(DataError, match=r"--frames 8:: it has 8 frames; begin before its end"):
        predict(source, boxes=WHOLE, frames=FrameRange(8))


def test_boxes_of_a_part_of_a_film_are_numbered_as_the_film(
    tmp_path: Path, predict: Predict, network: Dots
) -> None:
    source, file = Made(tmp_path, [dots(c) for c in CENTRES[:12]]), tmp_path / "b.csv"
    lines = [f"{n},{x - 30},{y - 30},{x + 30},{y + 30}" for n, (x, y) in enumerate(CENTRES[:12])]
    file.write_text("\n".join(["frame,x1,y1,x2,y2", *lines[4:9]]))
    locator = DotsLocator(blind=range(12))
    outcome = predict(source, boxes=file, locator=locator, frames=FrameRange(4, 9))
    truth = np.array(CENTRES[4:9])[:, None] + OFFSETS
    np.testing.assert_allclose(points(outcome), truth, atol=0.6)
    assert outcome.notes == []
    # Boxes are there for all of them, so nothing had to be found.
    assert locator._frame == 0


def test_an_overlay_of_a_part_of_a_film_begins_with_it(tmp_path: Path, predict: Predict) -> None:
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "walk.mp4", [dots(c) for c in CENTRES[:20]])
    (source,) = find_sources([path])
    outcome = predict(source, boxes=WHOLE, overlay=True, frames=FrameRange(12, 17))
    with av.open(str(outcome.files[-1])) as container:
        frames = list(container.decode(video=0))
    np.testing.assert_allclose([f.time for f in frames], np.arange(5) / 25, atol=1e-3)
    drawn = frames[2].to_ndarray(format="bgr24").astype(int)
    near = [np.abs(drawn - dots(c)).sum() for c in CENTRES[:20]]
    assert int(np.argmin(near)) == 14


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5", "give A:B, two numbers from 0"),
        ("a:b", "give A:B, two numbers from 0"),
        ("-5:", "frames are counted from the first one, 0"),
        ("0:100:2", "steps are not possible"),
        ("7:7", "holds no frame"),
        (":0", "holds no frame"),
    ],
)
def test_frames_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"--frames {text}: {why}"):
        FrameRange.parse(text)


def test_filtered_rows_go_to_files_of_their_own(tmp_path: Path, predict: Predict) -> None:
    images = [dots(c) for c in CENTRES[:20]]
    images[8] = dots((200, 150))
    (tmp_path / "plain").mkdir()
    plain = table(predict(Made(tmp_path / "plain", images), boxes=WHOLE))
    given = {"boxes": WHOLE, "filter": Filter.parse("median:5", 0.3, None)}
    outcome = predict(Made(tmp_path, images), **given)
    names = [path.name for path in outcome.files]
    assert names == ["made.pose.csv", "made.filtered.pose.csv"]
    pandas.testing.assert_frame_equal(table(outcome), plain)
    found = pandas.read_csv(outcome.files[1])[["x", "y"]].to_numpy().reshape(-1, 3, 2)
    truth = np.array(CENTRES[:20])[:, None] + OFFSETS
    assert np.abs(points(outcome)[8] - truth[8]).max() > 50
    np.testing.assert_allclose(found, truth, atol=4)
    assert predict(Made(tmp_path, images), **given).finished
    other = {**given, "filter": Filter.parse("median:3", 0.3, None)}
    note = predict(Made(tmp_path, images), **other).notes[0]
    assert note.startswith("filtered what was predicted before")
    # Without one the rows that are there are what is asked for.
    assert predict(Made(tmp_path, images), boxes=WHOLE).finished


def test_images_are_not_filtered(tmp_path: Path, predict: Predict) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), dots((100, 90)))
    (source,) = find_sources([tmp_path / "0.png"])
    outcome = predict(source, boxes=WHOLE, filter=Filter(fill=3))
    assert [path.suffix for path in outcome.files] == [".csv"]
    assert outcome.notes == ["images do not follow each other; not filtered"]


def test_another_filter_needs_no_other_prediction(tmp_path: Path, predict: Predict) -> None:
    shaken = [(x + 3 * (n % 2), y) for n, (x, y) in enumerate(CENTRES[:12])]
    images: list[np.ndarray | None] = [dots(centre) for centre in shaken]
    images[5] = None
    film, network = Made(tmp_path / "kept", images), Dots()
    given: dict[str, Any] = {"boxes": WHOLE, "using": network}
    first = predict(film, **given)
    seen = len(network.batches)
    for settings in (Filter(fill=2, method="median"), Filter(method="savgol", window=7)):
        outcome = predict(film, **given, filter=settings)
        assert (len(network.batches), outcome.rows, outcome.new) == (seen, 12, 0)
        assert outcome.files == [tmp_path / "kept" / "made.filtered.pose.csv"]
        assert outcome.notes == ["filtered what was predicted before; --again predicts it anew"]
        anew = predict(
            *(Made(tmp_path / "anew", images),), boxes=WHOLE, filter=settings, again=True
        )
        there, expected = pandas.read_csv(outcome.files[0]), pandas.read_csv(anew.files[-1])
        pandas.testing.assert_frame_equal(there, expected, rtol=0, atol=2e-3)
        assert predict(film, **given, filter=settings).finished
    assert first.files[0].read_bytes() == (tmp_path / "anew" / "made.pose.csv").read_bytes()
    assert predict(film, **given).finished and len(network.batches) == seen


@pytest.mark.parametrize("other", ["weights", "format", "overlay", "edited", "again"])
def test_what_a_table_does_not_hold_is_predicted_again(
    tmp_path: Path, predict: Predict, other: str
) -> None:
    film = find_sources([write_video(tmp_path / "walk.mp4", [dots((100, 90))] * 4)])[0]
    table_file = predict(film, boxes=WHOLE).files[0]
    given: dict[str, Any] = {
        "weights": {"weights": "v"},
        "format": {"formats": ("csv", "coco")},
        "overlay": {"overlay": True},
        "edited": {},
        "again": {"again": True},
    }[other]
    if other == "edited":
        table_file.write_text(table_file.read_text().replace(PARTS[0], "snout"))
    outcome = predict(film, boxes=WHOLE, filter=Filter(fill=1), **given)
    assert (outcome.rows, outcome.new) == (4, 4)
