"""The loads: how many runs, and of each its nodes with their predecessors.

Pure; must not know who runs them or how.
"""

import dataclasses

Nodes = list[tuple[str, list[str]]]
"""Names, each with the names that come before it."""


def diamond() -> Nodes:
    return [("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"])]


def chain(length: int) -> Nodes:
    return [(f"n{i}", [f"n{i - 1}"] if i else []) for i in range(length)]


def fan(width: int) -> Nodes:
    return [(f"n{i}", []) for i in range(width)]


def layers(count: int, width: int, parents: int = 3) -> Nodes:
    """Each node waits for `parents` nodes of the layer before it."""
    nodes: Nodes = []
    for layer in range(count):
        for i in range(width):
            before = [f"l{layer - 1}n{(i + k) % width}" for k in range(min(parents, width))] if layer else []
            nodes.append((f"l{layer}n{i}", before))
    return nodes


@dataclasses.dataclass(frozen=True)
class Shape:
    """A load, and what of the bare control plane it is held against."""

    name: str
    runs: int
    nodes: Nodes
    parallelism: int | None = None
    bystanders: int = 0
    """Finished diamonds that lie around meanwhile."""
    times: int = 1
    """How often it is done, one after the other, in one measurement: of what takes a moment, one says little."""

    @property
    def total(self) -> int:
        return self.runs * len(self.nodes)

    @property
    def depth(self) -> int:
        """Nodes on the longest way through."""
        depths: dict[str, int] = {}
        for name, before in self.nodes:
            depths[name] = 1 + max((depths[it] for it in before), default=0)
        return max(depths.values())

    @property
    def is_chain(self) -> bool:
        """Whether waiting, and not work, is what it consists of: then raw is a chain of hops."""
        return self.total < 2 * self.depth


def layered(nodes: int) -> Shape:
    return Shape(f"layers-{nodes}", 1, layers(nodes // 50, 50))


def diamonds(runs: int) -> Shape:
    """All at once."""
    return Shape(f"{runs}-diamonds", runs, diamond())


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("diamond", 1, diamond(), times=20),
        diamonds(200),
        Shape("chain-10", 1, chain(10), times=20),
        Shape("chain-100", 1, chain(100)),
        Shape("fan-500", 1, fan(500)),
        layered(1000),
        layered(10000),
        # All begin at once: `parallelism` bounds the nodes of a run, not how many runs there are.
        Shape("1000-diamonds-parallelism-1", 1000, diamond(), parallelism=1),
        Shape("50-beside-500-finished", 50, diamond(), bystanders=500),
    )
}

# How cost grows: nodes of one run, and runs of one shape.
GROWTH_NODES = [layered(n) for n in (1000, 2000, 5000, 10000)]
GROWTH_RUNS = [diamonds(n) for n in (50, 200, 800)]
