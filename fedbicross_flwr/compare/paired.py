"""Is one method better than another? A paired test over seeds and clients, and what it may not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from fedbicross_flwr.compare.lines import CONTROLS, PERSONAL, Line, SeedScores, line_of
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.report.units import count

MEASURES = {"global": "global accuracy", "local": "local accuracy", "both": "mean of both accuracies"}
LEVEL = 0.05
MIN_PAIRS = 6
"""With fewer pairs that differ, no outcome of a two-sided signed-rank test is below .05 (2 / 2^5 = .06)."""

STRONGEST = "the strongest other one-shot method"
PAIRS = (
    "Pairs are (seed, client). Clients of one seed share one server model, so the pairs are not independent, "
    "and p is too small rather than too large."
)
NOT_INDEPENDENT = (
    f"{PAIRS} The strongest other method is the strongest on these same test images, and p is not corrected "
    "for the number of tests."
)
"""Of the tests that a table brings."""

NAMED = f"{PAIRS} p is not corrected for the number of tests."
"""Of tests against a method that somebody asked for."""


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test, two-sided, of the accuracies of one method against another's.

    Parameters
    ----------
    measure : {"global", "local", "both"}
        Which accuracy of a client.
    ours, other, reason : str
        Titles, and why it is this other one; no reason where it was named.
    pairs, ahead, seeds : int
        Pairs of (seed, client), those in which ours is higher, and the seeds that they come from.
    difference : float
        Mean of ours - other, a fraction.
    p : float or None
        None when fewer than `MIN_PAIRS` pairs differ.
    higher : bool
        Whether the signed ranks, which are what the test looks at, are in favour of ours.
    """

    measure: str
    ours: str
    other: str
    reason: str
    pairs: int
    ahead: int
    seeds: int
    difference: float
    p: float | None
    higher: bool

    @property
    def verdict(self) -> str:
        """What the test says, in a few words."""
        if self.p is None:
            return f"too few pairs that differ for a test (at least {MIN_PAIRS})"
        if self.p >= LEVEL:
            return "no difference shown"
        verdict = "ahead" if self.higher else "behind"
        return verdict if self.higher == (self.difference > 0) else f"{verdict}, though not in the mean"

    @property
    def sentence(self) -> str:
        """The whole finding."""
        test = "" if self.p is None else f"Wilcoxon signed-rank, two-sided, p = {_p(self.p)}: "
        measure = MEASURES[self.measure]
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{measure[0].upper()}{measure[1:]}: {self.ours} minus {self.other}{reason} is "
            f"{_points(self.difference)} points, n = {count(self.pairs, 'pair')} "
            f"({count(self.seeds, 'seed')}), higher in {self.ahead}; {test}{self.verdict}."
        )


def paired_tests(lines: Sequence[Line]) -> tuple[PairedTest, ...]:
    """Test FedBiCross against the strongest other one-shot method and against training alone.

    The strongest is the row, shipped or fine-tuned, of any other one-shot method that FedBiCross leads the
    least, among those that share the most seeds with it; ablations of FedBiCross are no other method. There
    is no test where either side was not run.
    """
    ours = line_of(lines, FEDBICROSS, PERSONAL)
    if ours is None:
        return ()
    others = [line for line in lines if line.group == "one-shot" and line.variant != FEDBICROSS]
    control = line_of(lines, CONTROLS[1], "control")
    found = []
    for measure in MEASURES:
        rivals = [
            paired_test(ours, line, measure, STRONGEST) for line in others if _pairs(ours, line, measure)
        ]
        most = max((rival.seeds for rival in rivals), default=0)
        if rivals:
            found.append(min((one for one in rivals if one.seeds == most), key=lambda one: one.difference))
        if control is not None and _pairs(ours, control, measure):
            found.append(paired_test(ours, control, measure, "the control"))
    return tuple(found)


def tests_against(lines: Sequence[Line], variant: str) -> tuple[PairedTest, ...]:
    """Test FedBiCross against one other method, an ablation of it among them, by what clients end up with.

    There is no test where either side was not run.
    """
    ours, other = line_of(lines, FEDBICROSS, PERSONAL), line_of(lines, variant, PERSONAL)
    if ours is None or other is None or variant == FEDBICROSS:
        return ()
    return tuple(paired_test(ours, other, measure) for measure in MEASURES if _pairs(ours, other, measure))


def paired_test(ours: Line, other: Line, measure: str, reason: str = "") -> PairedTest:
    """Compare two lines over all (seed, client) that both have; there must be one."""
    pairs = _pairs(ours, other, measure)
    one, two = (np.array([pair[side] for pair in pairs]) for side in (1, 2))
    # Accuracies are quotients of whole numbers: without rounding, equal differences are unequal in their last
    # bit, and the test would rank that.
    difference = np.round(one - two, 9)
    unequal = np.count_nonzero(difference)
    tested = unequal >= MIN_PAIRS
    in_favour = wilcoxon(difference, alternative="greater").statistic if tested else 0.0
    return PairedTest(
        measure=measure,
        ours=ours.title,
        other=other.title,
        reason=reason,
        pairs=len(pairs),
        ahead=int((difference > 0).sum()),
        seeds=len({seed for seed, _, _ in pairs}),
        difference=float(difference.mean()),
        p=float(wilcoxon(difference).pvalue) if tested else None,
        higher=bool(in_favour > unequal * (unequal + 1) / 4),
    )


def accuracies(scores: SeedScores, measure: str) -> dict[int, float]:
    """Return each client's accuracy; for ``both``, of the clients that both protocols score."""
    if measure != "both":
        return {client: score.accuracy for client, score in scores.scores.get(measure, {}).items()}
    one, two = (accuracies(scores, protocol) for protocol in ("global", "local"))
    return {client: (one[client] + two[client]) / 2 for client in one if client in two}


def _pairs(ours: Line, other: Line, measure: str) -> list[tuple[int, float, float]]:
    """Return (seed, ours, other) of every seed and client that both have."""
    found = []
    for seed in sorted(set(ours.seeds) & set(other.seeds)):
        one, two = accuracies(ours.seeds[seed], measure), accuracies(other.seeds[seed], measure)
        found += [(seed, one[client], two[client]) for client in sorted(set(one) & set(two))]
    return found


def _points(fraction: float) -> str:
    sign = "+" if fraction > 0 else "−" if fraction < 0 else "±"
    return f"{sign}{abs(100 * fraction):.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
