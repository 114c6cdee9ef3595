"""What a part of a cluster is: a program, where it runs, and how one sees that it is ready."""

import collections.abc
import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """`before` is done ahead of the start; after it `ready` is asked again and again until it says yes."""

    name: str
    argv: list[str]
    ready: collections.abc.Callable[[], bool]
    # Whether it runs in the sandbox of a cluster with real nodes.
    inside: bool = False
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    before: collections.abc.Callable[[], None] = lambda: None
