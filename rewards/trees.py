"""Edit distance of ordered trees (Zhang and Shasha, 1989), for tables and mark-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Node:
    """tag, what belongs to it (spans of a cell), its text, and its children in order."""

    tag: str
    own: tuple = ()
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def size(self) -> int:
        return 1 + sum(child.size() for child in self.children)


@dataclass
class _Postorder:
    """Nodes in post-order, the leftmost leaf below each, and the roots of the subtrees compared."""

    nodes: list[Node]
    leftmost: list[int]
    keyroots: list[int]


def _postorder(root: Node) -> _Postorder:
    nodes: list[Node] = []
    leftmost: list[int] = []

    def visit(node: Node) -> int:
        first = [visit(child) for child in node.children]
        nodes.append(node)
        leftmost.append(first[0] if first else len(nodes) - 1)
        return leftmost[-1]

    visit(root)
    last = {left: i for i, left in enumerate(leftmost)}
    return _Postorder(nodes, leftmost, sorted(last.values()))


def tree_edits(first: Node, second: Node, rename: Callable[[Node, Node], float]) -> float:
    """The cheapest way from one tree to the other: a node in or out costs 1, changing one costs `rename`, at most 1."""
    a, b = _postorder(first), _postorder(second)
    distance = [[0.0] * len(b.nodes) for _ in a.nodes]
    for i in a.keyroots:
        for j in b.keyroots:
            _forests(a, b, i, j, distance, rename)
    return distance[-1][-1]


def _forests(a: _Postorder, b: _Postorder, i: int, j: int, distance: list[list[float]], rename: Callable) -> None:
    """Fill `distance` for the subtrees that end at i and j, through the forests left of them."""
    low, base = a.leftmost[i], b.leftmost[j]
    rows, columns = i - low + 2, j - base + 2
    forest = [[0.0] * columns for _ in range(rows)]
    for x in range(1, rows):
        forest[x][0] = forest[x - 1][0] + 1
    for y in range(1, columns):
        forest[0][y] = forest[0][y - 1] + 1
    for x in range(1, rows):
        node, left = low + x - 1, a.leftmost[low + x - 1]
        for y in range(1, columns):
            other, beside = base + y - 1, b.leftmost[base + y - 1]
            cheapest = min(forest[x - 1][y], forest[x][y - 1]) + 1
            if left == low and beside == base:
                change = forest[x - 1][y - 1] + rename(a.nodes[node], b.nodes[other])
                distance[node][other] = forest[x][y] = min(cheapest, change)
            else:
                forest[x][y] = min(cheapest, forest[left - low][beside - base] + distance[node][other])
