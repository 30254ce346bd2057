"""When two measurements of the same work are too far apart to be alike: a rule that anybody can recompute.

It flags; it does not judge. Drivers, versions, clocks and cooling make honest figures differ, and a figure that is
alike may still be invented.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from ipfs_accelerate_node.peers.claims import Claim

ALIKE = 1.25  # the slower median over the faster one, at most; each one's spread adds half of itself …
MOST_SPREAD = 0.25  # … but no more than of so much: who signs wide samples gets no licence
AMONG_KEYS = 2.0  # how far from the median of the others, where this machine has no figure of its own
FEWEST_KEYS = 3

RULE = (
    "Medians are compared on like machines only: the same processor, architecture and number of cores for what runs "
    "on a processor, else an accelerator of the same name. They are alike if the slower is at most "
    f"{ALIKE:g} times the faster, plus half of the spread of each (the middle half of its samples over their median, "
    f"{MOST_SPREAD:g} at most). What is further apart is flagged as unlike: faster, or slower, than ours. Where this "
    f"machine has no figure, a key is flagged that is more than {AMONG_KEYS:g} times from the median of the others, if "
    f"more than half of at least {FEWEST_KEYS} keys are nearer to it. Unlike does not mean wrong: it means that "
    "something differs."
)

Unlike = Literal["", "faster", "slower"]


def hardware_class(claim: Claim) -> tuple[object, ...]:
    """What has to be equal for two speeds to be comparable: the processor for what ran on one, else the accelerator,
    by the name that its runtime gives it."""
    if on_processor(claim.device):
        return claim.cpu, claim.arch, claim.cores
    return (claim.device_name or claim.device.partition(":")[0],)


def on_processor(device: str) -> bool:
    """Of a device's name: ``cpu``, ``openvino:CPU``."""
    return device.lower() == "cpu" or device.lower().endswith(":cpu")


def allowed(one: Claim, other: Claim) -> float:
    """How many times slower one may be than the other and still be alike."""
    return ALIKE + (_spread(one) + _spread(other)) / 2


def _spread(claim: Claim) -> float:
    return min(MOST_SPREAD, (claim.high_ns - claim.low_ns) / claim.median_ns)


def unlike(claim: Claim, own: Claim) -> Unlike:
    """How the claim stands beside our own figure of the same work on a like machine."""
    most = allowed(claim, own)
    if claim.median_ns * most < own.median_ns:
        return "faster"
    return "slower" if claim.median_ns > own.median_ns * most else ""


def outliers(votes: Iterable[Claim]) -> dict[bytes, Unlike]:
    """Keys whose figure is far from what the other keys say of the same hardware; one vote per key. Fewer keys than
    FEWEST_KEYS say nothing about each other."""
    classes: defaultdict[tuple[object, ...], list[Claim]] = defaultdict(list)
    for vote in votes:
        classes[hardware_class(vote)].append(vote)
    found: dict[bytes, Unlike] = {}
    for alike in classes.values():
        if len(alike) >= FEWEST_KEYS:
            found |= {vote.key: said for vote in alike if (said := _among(vote, alike))}
    return found


def _among(vote: Claim, alike: Sequence[Claim]) -> Unlike:
    """Of a split into halves nobody knows which one is odd."""
    others = statistics.median(other.median_ns for other in alike if other.key != vote.key)
    said = _far(vote.median_ns, others)
    agreeing = sum(1 for one in alike if not _far(one.median_ns, others))
    return said if 2 * agreeing > len(alike) else ""


def _far(median_ns: int, others_ns: float) -> Unlike:
    if median_ns * AMONG_KEYS < others_ns:
        return "faster"
    return "slower" if median_ns > others_ns * AMONG_KEYS else ""
