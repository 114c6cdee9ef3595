"""Reading metrics: samples out of Prometheus text, quantiles out of histograms. Pure."""

import re

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(text: str) -> Samples:
    found: Samples = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            name, labels, value = match.groups()
            found[name, tuple(sorted(_LABEL.findall(labels or "")))] = float(value)
    return found


def difference(before: Samples, after: Samples) -> Samples:
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


def add(sums: Samples, more: Samples) -> None:
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + value


def summed(found: Samples, name: str, *by: str, **only: str) -> dict[tuple[str, ...], float]:
    """The sums of a metric by some of its labels, of those samples that have the labels of `only`."""
    sums: dict[tuple[str, ...], float] = {}
    for (metric, labels), value in found.items():
        had = dict(labels)
        if metric == name and all(had.get(label) == wanted for label, wanted in only.items()):
            key = tuple(had.get(label, "") for label in by)
            sums[key] = sums.get(key, 0.0) + value
    return sums


def total(found: Samples, name: str, **only: str) -> float:
    return sum(summed(found, name, **only).values())


def quantile(found: Samples, name: str, q: float) -> float | None:
    """As histogram_quantile of Prometheus: straight within a bucket. None where nothing was observed."""
    buckets = sorted((float(le), count) for (le,), count in summed(found, f"{name}_bucket", "le").items())
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for high, count in buckets:
        if count >= wanted:
            if high == float("inf"):
                return low
            return low + (high - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = high, count
    return low
