"""How the mice of a synthetic film move: paths and postures that are smooth in time.

Each animal turns and runs towards a goal; the rates of both approach what the goal asks for with
time constants of a tenth to a third of a second. Noise on course, pace, bends and stretch is an
Ornstein-Uhlenbeck process behind a low-pass. Goals are such that two animals at a time meet, pass
over each other and part again. Each frame is one or more steps of at most 1/60 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fasthg.data.synthetic.mouse import Posture

Point = npt.NDArray[np.float64]

LEAST_SECONDS = 10
"""In which an animal has the time to leave and to come back."""

_LONGEST_STEP = 1 / 60
# Body lengths a second; rad a second.
_PACE, _TURN = 2.6, 3.4
# Name of a noise: standard deviation, time constant in s.
_NOISE = {
    "course": (0.30, 0.8),
    "pace": (0.20, 1.0),
    "bend": (0.14, 0.5),
    "turn": (0.20, 0.4),
    "stretch": (0.05, 0.8),
    "tail bend": (0.35, 1.0),
    "tail wave": (0.50, 0.8),
}
_COLUMN = {name: number for number, name in enumerate(_NOISE)}


@dataclass(frozen=True)
class Placed:
    """One animal at one time. centre: (2,) px of the middle of its spine; gait: phase of its
    steps, rad."""

    centre: Point
    posture: Posture
    gait: float


@dataclass
class _Walker:
    """State of one animal; px, rad and seconds."""

    number: int
    length: float
    plumpness: float
    tail_frequency: float
    tail_length: float
    x: float
    y: float
    heading: float
    goal: tuple[float, float]
    partner: _Walker | None = None
    """Whose place is the goal."""
    pace: float = 1.0
    confined: bool = True
    """Whether walls turn it back."""
    speed: float = 0.0
    wanted: float = 0.0
    """The rate of turning that follows the goal, low-passed."""
    turning: float = 0.0
    bend: float = 0.0
    tail_bend: float = 0.0
    gait: float = 0.0
    new_goal_at: float = 0.0

    def target(self) -> tuple[float, float]:
        return (self.partner.x, self.partner.y) if self.partner else self.goal

    def distance(self, point: tuple[float, float]) -> float:
        """In body lengths."""
        return math.hypot(point[0] - self.x, point[1] - self.y) / self.length

    def step(self, noise: npt.NDArray[np.float64], step: float, size: tuple[int, int]) -> None:
        """Move on by `step` seconds; noise: (kinds,), see _NOISE; size: of the image, px."""
        goal = self.target()
        near = min(1.0, self.distance(goal) / 0.5)
        course = math.atan2(goal[1] - self.y, goal[0] - self.x)
        course += float(noise[_COLUMN["course"]]) * near
        wall_x, wall_y = self._beyond_walls(size) if self.confined else (0.0, 0.0)
        if wall_x or wall_y:
            course = math.atan2(math.sin(course) - 3 * wall_y, math.cos(course) - 3 * wall_x)
        error = math.remainder(course - self.heading, 2 * math.pi)
        wanted = max(-_TURN, min(_TURN, 5 * error)) * near
        pace = self.pace * (1 + float(noise[_COLUMN["pace"]]))
        # Round a bend slowly, and stop at the goal; a partner is no place to stop at.
        pace *= (0.2 + 0.8 * max(0.0, math.cos(error))) * (1.0 if self.partner else near)
        pace /= 1 + 2 * math.hypot(wall_x, wall_y)
        self.wanted += (wanted - self.wanted) * _share(step, 0.10)
        self.turning += (self.wanted - self.turning) * _share(step, 0.08)
        self.speed += (_PACE * pace * self.length - self.speed) * _share(step, 0.22)
        self.heading += self.turning * step
        self.x += self.speed * math.cos(self.heading) * step
        self.y += self.speed * math.sin(self.heading) * step
        self.gait += 2 * math.pi * 1.6 * self.speed / self.length * step
        # The nose leads into a turn, the tail keeps to the path.
        self.bend += (-0.24 * self.turning - self.bend) * _share(step, 0.15)
        self.tail_bend += (-0.30 * self.turning - self.tail_bend) * _share(step, 0.35)

    def _beyond_walls(self, size: tuple[int, int]) -> tuple[float, float]:
        """How far, in body lengths, the place that it will soon reach lies outside the arena."""
        low, high = arena(self.length, size)
        soon = 0.25 * self.speed
        x, y = self.x + soon * math.cos(self.heading), self.y + soon * math.sin(self.heading)
        out_x = x - min(max(x, float(low[0])), float(high[0]))
        out_y = y - min(max(y, float(low[1])), float(high[1]))
        return out_x / self.length, out_y / self.length

    def placed(self, noise: npt.NDArray[np.float64]) -> Placed:
        look = max(-0.35, min(0.35, 0.10 * self.turning))
        stretch = 0.92 + 0.05 * min(1.0, self.speed / (_PACE * self.length))
        stretch += max(-0.1, min(0.1, float(noise[_COLUMN["stretch"]])))
        posture = Posture(
            heading=self.heading,
            bend=self.bend + float(noise[_COLUMN["bend"]]),
            turn=look + float(noise[_COLUMN["turn"]]),
            stretch=stretch,
            plumpness=self.plumpness / math.sqrt(stretch),
            tail_bend=self.tail_bend + float(noise[_COLUMN["tail bend"]]),
            tail_wave=float(noise[_COLUMN["tail wave"]]),
            tail_frequency=self.tail_frequency,
            tail_length=self.tail_length,
        )
        return Placed(np.array([self.x, self.y]), posture, self.gait)


def _share(step: float, seconds: float) -> float:
    """Of the way to its target that a low-pass goes in a step; seconds: its time constant."""
    return 1 - math.exp(-step / seconds)


class _Noise:
    """Smooth noise of all animals, (animals, kinds): see _NOISE."""

    def __init__(self, rng: np.random.Generator, animals: int, step: float) -> None:
        self._rng = rng
        sigma, seconds = np.array(list(_NOISE.values())).T
        # Two low-passes of one time constant halve the variance that the first leaves.
        self._keep = np.exp(-step / seconds)
        self._kick = sigma * math.sqrt(2) * np.sqrt(1 - self._keep**2)
        self._rough = rng.standard_normal((animals, len(sigma))) * sigma
        self.values = self._rough.copy()

    def step(self) -> None:
        self._rough *= self._keep
        self._rough += self._kick * self._rng.standard_normal(self._rough.shape)
        self.values = self.values * self._keep + self._rough * (1 - self._keep)


class _Meetings:
    """Gives the goals: pairs that meet, pass over each other and part, one pair at a time."""

    def __init__(
        self, rng: np.random.Generator, walkers: Sequence[_Walker], size: tuple[int, int]
    ) -> None:
        self._rng, self._walkers, self._size = rng, walkers, size
        self._phase, self._until = "apart", float(rng.uniform(0.2, 1.0))
        self._pair: tuple[_Walker, ...] = ()
        self.away: _Walker | None = None
        """Who is about to leave, outside or on the way back."""

    def step(self, time: float) -> None:
        for walker in self._walkers:
            if walker is self.away or walker in self._pair:
                continue
            if time > walker.new_goal_at or walker.distance(walker.goal) < 0.3:
                self._roam(walker, time)
        if self._phase == "apart" and time > self._until:
            self._begin(time)
        elif self._phase == "approach":
            one, other = self._pair
            if one.distance((other.x, other.y)) < 0.7 or time > self._until:
                self._pass(time)
        elif self._phase == "pass":
            one, other = self._pair
            if one.distance((other.x, other.y)) > 1.3 or time > self._until:
                self._part(time)

    def release(self, walker: _Walker, time: float) -> None:
        """Leave a walker out of the meetings: it follows its own goal."""
        if walker in self._pair:
            self._part(time)
        self.away, walker.partner, walker.pace = walker, None, 1.0
        walker.confined = False

    def inside(self, walker: _Walker) -> tuple[float, float]:
        """A random place in which the whole body has room."""
        low, high = arena(walker.length, self._size)
        x, y = self._rng.uniform(low, high)
        return float(x), float(y)

    def _roam(self, walker: _Walker, time: float) -> None:
        places = [self.inside(walker) for _ in range(4)]
        walker.goal, walker.partner = max(places, key=walker.distance), None
        walker.pace = float(self._rng.uniform(0.5, 1.0))
        walker.new_goal_at = time + float(self._rng.uniform(2.0, 4.0))

    def _begin(self, time: float) -> None:
        present = [walker for walker in self._walkers if walker is not self.away]
        if len(present) < 2:
            return
        one, other = (present[i] for i in self._rng.permutation(len(present))[:2])
        self._pair, self._phase, self._until = (one, other), "approach", time + 3.0
        one.partner, one.pace = other, 1.0
        if self._rng.random() < 0.6:
            other.partner, other.pace = one, 1.0
        else:
            # It stays about where it is and is walked over.
            other.partner, other.pace = None, 0.15

    def _pass(self, time: float) -> None:
        self._phase, self._until = "pass", time + 1.6
        for walker in self._pair:
            if walker.partner is not None:
                walker.goal, walker.partner = self._beyond(walker, walker.partner), None

    def _beyond(self, walker: _Walker, partner: _Walker) -> tuple[float, float]:
        """A place on the partner's other side, as straight ahead as the walls allow."""
        low, high = arena(walker.length, self._size)
        ahead = math.atan2(partner.y - walker.y, partner.x - walker.x)
        best, least = (partner.x, partner.y), math.inf
        for turn in (0.0, -0.5, 0.5, -1.0, 1.0):
            reach = 1.7 * walker.length
            x = partner.x + reach * math.cos(ahead + turn)
            y = partner.y + reach * math.sin(ahead + turn)
            place = float(np.clip(x, low[0], high[0])), float(np.clip(y, low[1], high[1]))
            cut = math.hypot(place[0] - x, place[1] - y) + 0.2 * abs(turn) * walker.length
            if cut < least:
                best, least = place, cut
        return best

    def _part(self, time: float) -> None:
        """Goals on different sides of the cage."""
        one, other = self._pair
        tries = [(self.inside(one), self.inside(other)) for _ in range(8)]

        def apart(goals: tuple[tuple[float, float], tuple[float, float]]) -> float:
            walked = one.distance(goals[0]) + other.distance(goals[1])
            return math.dist(*goals) / one.length - 0.35 * walked

        one.goal, other.goal = max(tries, key=apart)
        for walker in self._pair:
            walker.partner, walker.pace = None, float(self._rng.uniform(0.8, 1.0))
            walker.new_goal_at = time + 4.0
        self._pair, self._phase = (), "apart"
        self._until = time + float(self._rng.uniform(0.3, 0.7))


class _Excursion:
    """One animal leaves the image over the nearest border, waits outside and comes back."""

    def __init__(
        self,
        rng: np.random.Generator,
        walkers: Sequence[_Walker],
        size: tuple[int, int],
        seconds: float,
    ) -> None:
        self._walker = walkers[int(rng.integers(len(walkers)))]
        self._at = seconds * float(rng.uniform(0.1, 0.2))
        self._wait = float(rng.uniform(0.5, 1.5))
        self._size, self._phase = size, "before"

    def step(self, time: float, meetings: _Meetings) -> None:
        walker = self._walker
        if self._phase == "before" and time > self._at:
            meetings.release(walker, time)
            walker.goal, self._phase = self._outside(), "out"
        elif self._phase == "out" and self._beyond() > 1.2 * walker.length:
            walker.goal = walker.x, walker.y
            self._at, self._phase = time + self._wait, "outside"
        elif self._phase == "outside" and time > self._at:
            walker.goal, self._phase = meetings.inside(walker), "back"
        elif self._phase == "back" and self._beyond() < -0.5 * walker.length:
            meetings.away, walker.confined, self._phase = None, True, "over"

    def _beyond(self) -> float:
        """How far the animal's middle lies outside the image, px."""
        walker, (width, height) = self._walker, self._size
        return max(-walker.x, -walker.y, walker.x - width, walker.y - height)

    def _outside(self) -> tuple[float, float]:
        """The place two body lengths beyond the nearest border."""
        walker, (width, height) = self._walker, self._size
        beyond = 2 * walker.length
        borders = [
            (walker.x, (-beyond, walker.y)),
            (walker.y, (walker.x, -beyond)),
            (width - walker.x, (width + beyond, walker.y)),
            (height - walker.y, (walker.x, height + beyond)),
        ]
        return min(borders)[1]


def arena(length: float, size: tuple[int, int]) -> tuple[Point, Point]:
    """Where the middle of an animal may be: (2,) least and (2,) greatest x and y, px."""
    margin = np.minimum(0.045 * min(size) + 0.42 * length, 0.4 * np.array(size))
    return margin, np.array(size) - margin


def walk(
    rng: np.random.Generator,
    lengths: Sequence[float],
    size: tuple[int, int],
    fps: float,
    frames: int,
    leaves: bool,
) -> Iterator[list[Placed]]:
    """All animals in each of `frames` frames, which are 1 / fps s apart.

    lengths: of their bodies, px. size: width and height, px. leaves: one of them leaves the image
    and comes back, which takes LEAST_SECONDS. In px, geometry's frame.
    """
    walkers = [_starting(rng, number, length, size) for number, length in enumerate(lengths)]
    meetings = _Meetings(rng, walkers, size)
    excursion = _Excursion(rng, walkers, size, frames / fps) if leaves else None
    steps = math.ceil(1 / (fps * _LONGEST_STEP))
    step = 1 / (fps * steps)
    noise = _Noise(rng, len(walkers), step)
    # The first second is not shown: it takes them from rest to their pace.
    hidden = math.ceil(fps)
    for frame in range(-hidden, frames):
        for part in range(steps):
            time = (frame * steps + part) * step
            meetings.step(time)
            if excursion:
                excursion.step(time, meetings)
            noise.step()
            for walker in walkers:
                walker.step(noise.values[walker.number], step, size)
        if frame >= 0:
            yield [walker.placed(noise.values[walker.number]) for walker in walkers]


def _starting(
    rng: np.random.Generator, number: int, length: float, size: tuple[int, int]
) -> _Walker:
    low, high = arena(length, size)
    x, y = rng.uniform(low, high)
    return _Walker(
        number=number,
        length=length,
        plumpness=float(rng.uniform(0.94, 1.06)),
        tail_frequency=float(rng.uniform(2.5, 4.5)),
        tail_length=float(rng.uniform(0.7, 0.9)),
        x=float(x),
        y=float(y),
        heading=float(rng.uniform(0, 2 * np.pi)),
        goal=(float(x), float(y)),
        new_goal_at=-2.0,
    )
