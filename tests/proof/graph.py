"""Dependencies between transactions, and the cycles in them, by the names that Adya gave them."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Dependencies"]

Edge = tuple[str, str, str]
"""From a transaction, of a kind ("ww", "wr" or "rw"), to a transaction."""


class Dependencies:
    """A graph whose edges tell which transaction has to come before which other, and why."""

    def __init__(self) -> None:
        self._edges: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)

    def add(self, source: str, kind: str, target: str) -> None:
        """Add an edge; one that leads back to where it begins says nothing."""
        if source != target:
            self._edges[source][kind, target] = None

    def cycles(self) -> Iterator[tuple[str, str]]:
        """Yield name and example of each anomaly that is a cycle.

        Of those with an rw only the gravest in each component of the graph.
        """
        for component in self._components({"ww"}):
            yield "G0", self._example(component, {"ww"}, "ww")
        for component in self._components({"ww", "wr"}):
            if example := self._example(component, {"ww", "wr"}, "wr"):
                yield "G1c", example
        for component in self._components({"ww", "wr", "rw"}):
            for name, rw_after_first, rw_after_rw in (
                ("G-single", False, False),
                ("G-nonadjacent", True, False),
                ("G2", True, True),
            ):
                example = self._cycle_with_rw(component, rw_after_first, rw_after_rw)
                if example:
                    yield name, example
                    break

    def _components(self, kinds: Collection[str]) -> Iterator[set[str]]:
        """Yield the strongly connected components of more than one transaction (Tarjan)."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        on_stack: set[str] = set()
        for root in list(self._edges):
            if root in index:
                continue
            work = [(root, self._targets(root, kinds))]
            while work:
                node, targets = work[-1]
                if node not in index:
                    index[node] = low[node] = len(index)
                    stack.append(node)
                    on_stack.add(node)
                for target in targets:
                    if target not in index:
                        work.append((target, self._targets(target, kinds)))
                        break
                    if target in on_stack:
                        low[node] = min(low[node], index[target])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[node])
                    if low[node] == index[node]:
                        component = set(stack[stack.index(node) :])
                        del stack[stack.index(node) :]
                        on_stack -= component
                        if len(component) > 1:
                            yield component

    def _targets(self, node: str, kinds: Collection[str]) -> Iterator[str]:
        return (target for kind, target in self._edges.get(node, ()) if kind in kinds)

    def _inside(self, node: str, component: set[str]) -> Iterator[tuple[str, str]]:
        return (edge for edge in self._edges.get(node, ()) if edge[1] in component)

    def _example(self, component: set[str], kinds: Collection[str], needs: str) -> str:
        """Return a shortest cycle of these kinds through an edge of the kind needed."""
        for source in sorted(component):
            for kind, target in self._inside(source, component):
                if kind == needs:
                    path = self._path((target, False), source, component, kinds, set())
                    if path is not None:
                        return _words([(source, kind, target), *path])
        return ""

    def _cycle_with_rw(self, component: set[str], rw_after_first: bool, rw_after_rw: bool) -> str:
        """Return a cycle that begins with an rw.

        Args:
            component: where it lies.
            rw_after_first: it may have others.
            rw_after_rw: which may stand next to each other.
        """
        kinds = {"ww", "wr", "rw"} if rw_after_first else {"ww", "wr"}
        forbidden = set() if rw_after_rw else {"rw"}
        for source in sorted(component):
            for kind, target in self._inside(source, component):
                if kind == "rw":
                    path = self._path((target, True), source, component, kinds, forbidden)
                    if path is not None:
                        return _words([(source, kind, target), *path])
        return ""

    def _path(
        self,
        start: tuple[str, bool],
        goal: str,
        component: set[str],
        kinds: Collection[str],
        not_twice: Collection[str],
    ) -> list[Edge] | None:
        """Return a shortest path whose edges are of these kinds.

        Args:
            start: where it begins, and whether an edge that may not come twice led there.
            goal: where it ends, not with such an edge, since one goes on from there.
            component: what it may not leave.
            kinds: of its edges.
            not_twice: kinds of which no two may follow each other.
        """
        came: dict[tuple[str, bool], tuple[tuple[str, bool], Edge] | None] = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            node, once = state
            if node == goal and not (once and not_twice):
                path: list[Edge] = []
                while (step := came[state]) is not None:
                    path.append(step[1])
                    state = step[0]
                return path[::-1]
            for kind, target in self._inside(node, component):
                again = kind in not_twice
                if kind in kinds and not (once and again) and (target, again) not in came:
                    came[target, again] = state, (node, kind, target)
                    queue.append((target, again))
        return None


def _words(cycle: list[Edge]) -> str:
    return "".join(f"{source} {kind}→ " for source, kind, _ in cycle) + cycle[0][0]
