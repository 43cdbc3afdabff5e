"""The report's page, section by section."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from fasthg import html
from fasthg.config import Config, dump_config
from fasthg.drawing.palette import part_colours
from fasthg.files import write_text
from fasthg.report import accuracy, figures
from fasthg.report.accuracy import LEVEL, Known, middle, span, text
from fasthg.report.chart import STYLE, charts
from fasthg.report.evaluate import Evaluation
from fasthg.report.gallery import worst_frames
from fasthg.runs.run_folder import RunFolder

NAME = "report.html"
WORST = 20
"""Frames shown."""
_STYLE = f"""<style>{STYLE}
.facts {{ display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 2rem; }}
.facts div {{ flex: 1 1 9rem; background: var(--soft); border-radius: 8px; padding: .7rem 1rem; }}
.facts b {{ display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.25; }}
.facts span {{ font-size: .82rem; opacity: .75; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .6rem 0; }}
.legend i {{ display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .4em; }}
.pictures {{ grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }}
.wide {{ overflow-x: auto; margin: 1rem 0; white-space: nowrap; }}
pre {{ white-space: pre-wrap; }}
p.note {{ max-width: 60rem; }}
</style>"""


def write(
    run: RunFolder, config: Config, evaluation: Evaluation, folder: Path | None = None
) -> Path:
    """Write `report.html` into the run folder or `folder`, in place of an older one.

    Args:
        run: the run, whose log, environment and training state are read.
        config: the configuration of the evaluation.
        evaluation: what `evaluate_run` found.
        folder: where the page goes; the run folder where None.

    Returns:
        The file's path.

    Raises:
        FasthgError: it cannot be written.
    """
    path = (folder or run.path) / NAME
    write_text(
        path, html.page(f"{run.path.resolve().name}: report", _body(run, config, evaluation))
    )
    return path


def _body(run: RunFolder, config: Config, evaluation: Evaluation) -> Iterator[str]:
    known = Known.of(config, evaluation)
    yield _STYLE
    yield from _facts(config, known)
    yield from _training(run)
    yield from accuracy.errors(known)
    yield from accuracy.pck(config, known)
    yield from accuracy.oks(config, known)
    yield from accuracy.confidence(config, known)
    yield from accuracy.sides(config, known)
    yield from _found(known)
    yield from _worst(config, known)
    yield from _unreadable(run, known)
    yield from _circumstances(run, config)


def _facts(config: Config, known: Known) -> Iterator[str]:
    m = known.metrics
    overall = m["error_px"]["all"]
    low, high = known.ends[:, -1]
    radius, share = middle(m["pck"]["radii_px"]), middle(m["pck"]["all"])
    rule, precision = next(iter(m["oks"]["area"].items()))
    facts = [
        (f"{text(overall['mean'])} px", f"mean error ({span(low, high)} px)"),
        (f"{text(overall['median'])} px", "median error"),
        ("-" if share is None else f"{share:.1%}", f"of labels within {radius:g} px"),
        (text(precision["ap"], 3), f"AP, {rule}"),
        (f"{m['instances']}", f"animals in {known.frames} frames ({m['split']})"),
    ]
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


def _training(run: RunFolder) -> Iterator[str]:
    yield html.heading("Training")
    drawn = figures.training(run.logged())
    yield charts(drawn) if drawn else html.note("Nothing was logged.")


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


def _worst(config: Config, known: Known) -> Iterator[str]:
    yield html.heading("The largest errors")
    shown = worst_frames(known.evaluation, config, WORST)
    entries = (
        f'<span><i style="background:rgb{rgb}"></i>{escape(name)}</span>'
        for name, rgb in zip(known.names, part_colours(config.PARTS), strict=True)
    )
    yield html.note(
        f"The {len(shown)} frames with the largest mean error of an animal, around that animal. "
        "Ring: label; cross: prediction; the line between is the error."
    )
    yield f'<div class="legend">{"".join(entries)}</div>'
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
    """A line for each entry, and for each entry of a list."""
    lines = []
    for key, entry in value.items():
        many = entry if isinstance(entry, list) and entry else [entry]
        lines += [f"{key}: {_pairs(item) if isinstance(item, dict) else item}" for item in many]
    return "\n".join(lines)


def _pairs(value: dict[str, Any]) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items())
