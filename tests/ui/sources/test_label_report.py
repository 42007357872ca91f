"""The figures of the label stage's report."""

from __future__ import annotations

import pytest

from ui.sources.report import share


@pytest.mark.parametrize("n", [*range(1, 60), 100, 1000, 9999])
def test_an_interval_holds_its_own_value_and_is_a_share_at_every_count(n: int) -> None:
    for successes in range(n + 1):
        made = share(successes, n)
        assert made.value is not None and made.ci_low is not None and made.ci_high is not None
        assert 0 <= made.ci_low <= made.value <= made.ci_high <= 1
        assert made.ci_low < made.ci_high and made.n == n
