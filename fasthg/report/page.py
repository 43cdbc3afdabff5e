"""The report's page, section by section."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fasthg import html
from fasthg.config import Config, dump_config
from fasthg.drawing.palette import part_colours
from fasthg.errors import FasthgError
from fasthg.files import write_text
from fasthg.report import accuracy, figures, provenance
from fasthg.report.accuracy import LEVEL, Known, middle, span, text
from fasthg.report.chart import STYLE, charts
from fasthg.report.convergence import sentences
from fasthg.report.evaluate import ERRORS, Evaluation
from fasthg.report.films import by_film
from fasthg.report.gallery import random_frames, worst_frames
from fasthg.report.provenance import Provenance
from fasthg.runs.run_folder import RunFolder
from fasthg.words import counted

NAME = "report.html"
WORST = RANDOM = 20
"""Frames shown of each kind."""
DRAWN_WITH = 0
"""Seed of the frames drawn at random: the same in every report of the same data."""
_MEASURED = ("given", "mouse_top", "mouse_front")
"""OKS_SIGMAS that were measured on people."""
_STYLE = f"""<style>{STYLE}{provenance.STYLE}
.facts {{ display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 2rem; }}
.facts div {{ flex: 1 1 9rem; background: var(--soft); border-radius: 8px; padding: .7rem 1rem; }}
.facts b {{ display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.25; }}
.facts span {{ font-size: .82rem; opacity: .75; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .6rem 0; }}
.legend i {{ display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .4em; box-shadow: 0 0 0 1px var(--line); }}
.pictures {{ grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }}
.wide {{ white-space: nowrap; }}
.beside {{ font-size: .86rem; }} .beside .wide {{ margin-top: .2rem; }}
.beside th, .beside td {{ padding: .25rem .55rem; }}
pre {{ white-space: pre-wrap; }}
p.note {{ max-width: 60rem; }}
</style>"""


def write(
    run: RunFolder,
    config: Config,
    evaluation: Evaluation,
    folder: Path | None = None,
    *,
    file: Path | None = None,
) -> Path:
    """Write `report.html` into the run folder or `folder`, in place of an older one.

    Args:
        run: the run, whose log, environment and training state are read.
        config: the configuration of the evaluation.
        evaluation: what `evaluate_run` found.
        folder: where the page goes; the run folder where None.
        file: the page itself, in place of a folder.

    Returns:
        The file's path.

    Raises:
        FasthgError: it cannot be written.
    """
    path = file or (folder or run.path) / NAME
    write_text(
        path,
        html.page(
            f"{run.path.resolve().name}: report", _body(run, config, evaluation, path.parent)
        ),
    )
    return path


def _body(run: RunFolder, config: Config, evaluation: Evaluation, folder: Path) -> Iterator[str]:
    known = Known.of(config, evaluation)
    # The recipe is that of the training, whatever overrides this evaluation has; its data may have
    # been moved since.
    try:
        trained = run.config().model_copy(update={"DATA": config.DATA})
    except FasthgError:
        trained = config
    origin = Provenance.of(run, trained)
    yield _STYLE
    yield provenance.lines(origin.facts(trained))
    yield from _facts(config, known)
    yield html.folded(
        "Methods, to paste",
        origin.methods(trained, known.metrics["split"], evaluation.index, _measured(known)),
    )
    yield from _training(run, trained)
    yield from accuracy.errors(known)
    yield from _table_of_errors(known, folder)
    yield from by_film(known)
    yield from accuracy.pck(config, known)
    yield from accuracy.oks(config, known)
    yield from accuracy.confidence(config, known)
    yield from accuracy.sides(config, known)
    yield from _found(known)
    yield from _pictures(config, known)
    yield from _unreadable(run, known)
    yield from _circumstances(run, config)


def _facts(config: Config, known: Known) -> Iterator[str]:
    m = known.metrics
    overall = m["error_px"]["all"]
    low, high = known.ends[:, -1]
    radius, share = middle(m["pck"]["radii_px"]), middle(m["pck"]["all"])
    facts = [
        (f"{text(overall['mean'])} px", f"mean error ({span(low, high)} px)"),
        (f"{text(overall['median'])} px", "median error"),
        ("-" if share is None else f"{share:.1%}", f"of labels within {radius:g} px"),
        (f"{m['instances']}", f"animals in {counted(known.frames, 'frame')} ({m['split']})"),
    ]
    if m["oks"]["sigmas"] in _MEASURED:
        # An AP by sigmas of nobody's measure would say nothing here.
        rule, precision = next(iter(m["oks"]["area"].items()))
        facts.insert(3, (text(precision["ap"], 3), f"AP, {rule}"))
    if known.scale is not None:
        mean = m["error_cm"]["all"]["mean"]
        ends = span(low / known.scale, high / known.scale, 3)
        facts.insert(1, (f"{text(mean, 3)} cm", f"mean error ({ends} cm)"))
    cards = (f"<div><b>{escape(b)}</b><span>{escape(s)}</span></div>" for b, s in facts)
    yield f'<div class="facts">{"".join(cards)}</div>'
    step = "the newest" if m["step"] is None else f"step {m['step']}"
    cropped = ", cropped as MARS evaluates" if m["crop"] == "mars" else ""
    flip = "averaged with the mirrored image's, " if m["flip_test"] else ""
    yield html.note(
        f"Weights of {step}, {flip}decode {m['decode']}, on {', '.join(m['data'][:4])}"
        f"{' and more' if len(m['data']) > 4 else ''}. Boxes are those of the "
        f"annotations{cropped}. In brackets: {LEVEL:.0%} interval. Errors are distances to the "
        "labels in px of the image as recorded."
    )


def _measured(known: Known) -> str:
    """The headline in words."""
    overall = known.metrics["error_px"]["all"]
    low, high = known.ends[:, -1]
    return (
        f"mean error {text(overall['mean'])} px ({LEVEL:.0%} interval {span(low, high)} px, "
        f"bootstrap over frames), median error {text(overall['median'])} px"
    )


def _table_of_errors(known: Known, folder: Path) -> Iterator[str]:
    """A link to the errors of all labels, where the page is within reach of the file."""
    path = known.evaluation.folder / ERRORS
    if not path.is_file():
        return
    with contextlib.suppress(ValueError):  # on another drive
        place = Path(os.path.relpath(path, folder)).as_posix()
        yield (
            f'<p class="note">Every label with its error: <a href="{escape(quote(place))}">'
            f"{escape(place)}</a>.</p>"
        )


def _training(run: RunFolder, trained: Config) -> Iterator[str]:
    yield html.heading("Training")
    rows = run.logged()
    drawn = figures.training(rows)
    yield charts(drawn) if drawn else html.note("Nothing was logged.")
    said = sentences(rows, run.stopped_early(), trained.NUM_TRAIN_ITERATIONS)
    if line := " ".join(said):
        yield html.note(line)


def _found(known: Known) -> Iterator[str]:
    found = known.metrics["found_boxes"]
    if found is None:
        return
    yield html.heading("Boxes that the locator finds")
    named = found["named_right"]
    rows = [
        ("animals annotated", str(found["animals"])),
        ("found", f"{found['found']} ({_share(found['recall'])})"),
        ("boxes of no animal", f"{found['false']} in {found['frames']} frames"),
        ("precision", _share(found["precision"])),
        ("class told right", "classes are not told apart" if named is None else str(named)),
        ("mean distance of centres", f"{text(found['centre_error_px'], 1)} px"),
        ("mean overlap (IoU)", text(found["mean_iou"])),
        ("mean error in found boxes", f"{text(found['error_px']['mean'])} px"),
        ("in the annotated boxes", f"{text(found['error_px_given_boxes']['mean'])} px"),
    ]
    yield html.table(["", ""], rows)
    yield html.note(
        "A box is found where it overlaps an annotated one by half (IoU 0.5). Both errors are of "
        "the animals that were found."
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _pictures(config: Config, known: Known) -> Iterator[str]:
    entries = (
        f'<span><i style="background:rgb{rgb}"></i>{escape(name)}</span>'
        for name, rgb in zip(known.names, part_colours(config.PARTS), strict=True)
    )
    yield html.heading("Frames drawn at random")
    drawn = random_frames(known.evaluation, config, RANDOM, DRAWN_WITH)
    yield html.note(
        f"{counted(len(drawn), 'frame')} of {known.frames}, each around an animal drawn at random "
        f"(seed {DRAWN_WITH}): what the network mostly does. Ring: label; cross: prediction; the "
        "line between is the error."
    )
    yield f'<div class="legend">{"".join(entries)}</div>'
    yield html.pictures(drawn)
    yield html.heading("The largest errors")
    shown = worst_frames(known.evaluation, config, WORST)
    yield html.note(
        f"The {counted(len(shown), 'frame')} with the largest mean error of an animal, around that "
        "animal, the largest first."
    )
    yield html.pictures(shown)


def _unreadable(run: RunFolder, known: Known) -> Iterator[str]:
    yield html.heading("Unreadable images")
    counted = [r["unreadable_images"] for r in run.logged() if "unreadable_images" in r]
    counts = {
        "while training": counted[-1] if counted else "unknown",
        known.metrics["split"]: known.metrics["unreadable_images"],
    }
    yield html.table(["data", "images left out"], counts.items())
    if any(count not in (0, "unknown") for count in counts.values()):
        yield html.note("fasthg data check names such images.")


def _circumstances(run: RunFolder, config: Config) -> Iterator[str]:
    yield html.heading("Circumstances")
    yield html.folded("Configuration", dump_config(config))
    try:
        environment = (run.path / "env.json").read_text(encoding="utf-8")
    except OSError as error:
        environment = f"unknown: {error}"
    with contextlib.suppress(ValueError):
        environment = _lines(_short(json.loads(environment)))
    yield html.folded("Environment of the training", environment)


def _short(facts: dict[str, Any]) -> dict[str, Any]:
    """Without a line for each operator, which `kernels` sums up, and what is not there."""
    left_out = ["ops"] if "kernels" in facts else []
    facts = {key: value for key, value in facts.items() if value and key not in left_out}
    packages = facts.get("packages", {})
    facts["packages"] = {name: version for name, version in packages.items() if version}
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(map(str, facts["command"]))
    return facts


def _lines(value: dict[str, Any]) -> str:
    """A line for each entry, and for each entry of a list; ops on the same path share one."""
    value = dict(value)
    ops = value.pop("ops", [])
    lines = []
    by_path: dict[str, list[str]] = {}
    for op in ops if isinstance(ops, list) else []:
        if isinstance(op, dict):
            path = f"ops on {op.get('device')}: {op.get('path')} ({op.get('reason')})"
            by_path.setdefault(path, []).append(str(op.get("op")))
    lines += [f"{path}: {', '.join(names)}" for path, names in by_path.items()]
    for key, entry in value.items():
        many = entry if isinstance(entry, list) and entry else [entry]
        lines += [f"{key}: {_pairs(item) if isinstance(item, dict) else item}" for item in many]
    return "\n".join(lines)


def _pairs(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items())
