"""Covering arrays of strength two: few test cases in which every pair of values meets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any


def covering(*parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases in which each value of a parameter meets each value of every other parameter.

    Most defects need at most two particular values, so these cases find nearly what the full
    product finds. The number of cases is near the product of the two longest parameters.

    Args:
        parameters: the values of each parameter, at least one value each.

    Returns:
        Tuples with one value of each parameter, in an order that depends on the arguments alone.

    Greedy: each case starts from the first pair that no case has yet; then each other parameter
    takes the value that completes most new pairs with the values chosen so far.
    """
    columns = range(len(parameters))
    if len(parameters) < 2:
        return [(value,) for values in parameters for value in values]
    # A pair is ((column, index of value), (other column, index of value)), columns in order.
    missing = {
        ((a, i), (b, j)): None
        for a, b in combinations(columns, 2)
        for i in range(len(parameters[a]))
        for j in range(len(parameters[b]))
    }
    cases = []
    while missing:
        chosen = dict(next(iter(missing)))
        for column in columns:
            if column not in chosen:
                gains = [
                    sum(tuple(sorted((item, (column, i)))) in missing for item in chosen.items())
                    for i in range(len(parameters[column]))
                ]
                chosen[column] = gains.index(max(gains))
        for pair in combinations(sorted(chosen.items()), 2):
            missing.pop(pair, None)
        cases.append(tuple(parameters[column][chosen[column]] for column in columns))
    return cases
