from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import covering


@pytest.mark.parametrize("lengths", [(3,), (2, 2), (4, 4, 2, 2, 2, 2, 3), (2, 3, 5, 3), (1, 1, 1)])
def test_every_pair_of_values_meets(lengths):
    parameters = [[(column, i) for i in range(n)] for column, n in enumerate(lengths)]
    cases = covering(*parameters)
    assert cases == covering(*parameters)
    assert all(len(case) == len(lengths) for case in cases)
    met = {pair for case in cases for pair in combinations(case, 2)}
    assert met == {p for a, b in combinations(parameters, 2) for p in product(a, b)}
    longest = sorted(lengths)[-2:]
    assert len(cases) <= 1.5 * longest[0] * longest[-1]
