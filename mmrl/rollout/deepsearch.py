"""Tree search in training: where a first pass solves little, the group is found by searching from its own segments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.record import SOURCES, Answer, Batch, Prompt, Rollouts
from mmrl.rollout.hints import worth
from mmrl.rollout.origins import OWN, brought
from mmrl.rollout.plan import Address, Ask, Given, Plan, Step, Strategy
from mmrl.stages import LANGUAGE, stage

REPLAY = SOURCES.index("replay")


def backed_up(value: float, new: float, share: float) -> float:
    """A node's value after a path through it came to `new`: right ones replace wrong ones, and are never replaced.

    share  of `new` that reaches the node, larger near the end of the path
    """
    if value * new >= 0:
        return value + share * new
    return share * new if new > 0 else value


def puct(value: float, visits: int, above: int, weight: float = 2.0) -> float:
    """Q + weight sqrt(ln(visits of the parent) / visits); 0 where nobody was."""
    if not visits:
        return 0.0
    return value / visits + (weight * math.sqrt(math.log(above) / visits) if above else 0.0)


@dataclass
class Node:
    """The state behind a segment. `member` and `depth` say where: behind the first `depth` segments of that row."""

    member: int
    depth: int
    parent: Node | None = None
    ended: bool = False
    surprise: float = 0.0
    value: float = 0.0
    visits: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def q(self) -> float:
        return self.value / self.visits if self.visits else 0.0

    def path(self) -> list[Node]:
        """From the root to here."""
        return [*(self.parent.path() if self.parent else []), self]


@dataclass
class Tree:
    """The search of one group.

    kept    the ends that were chosen, one of each expansion
    open    the node that is being expanded
    turns   expansions so far, those of which no row could be scored among them
    over    nothing more is asked for
    """

    root: Node
    open: Node
    nodes: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    turns: int = 0
    over: bool = False
    searched: bool = False


@stage(
    "rollout",
    "deepsearch",
    paper="DeepSearch: MCTS in the training loop, arXiv 2509.25454; code smiles724/DeepSearch",
    formula="expand a node by `width` rows; keep a right one, else the likeliest wrong one; v += max((d+1)/(L+1), .1) "
    "of +-1 along its path; next the open node of the largest l1 tanh Q(parent) + l2 (-mean lp) + l3 sqrt(d/D)",
    confidence="partly",
    modalities=LANGUAGE,
)
class DeepSearch(Strategy):
    """Groups of which at most `solved` is right are searched until `training.group_size` ends were chosen.

    segment     actions of a step of the search
    width       rows from each node, the first pass from the prompt included
    solved      share of right rows in the first pass above which a group is left as it is
    expansions  nodes of a group that are expanded at most; as many as the group is large if not given
    quality, surprise, deep  weights of a node in the choice of the next: its parent's Q, its segment's mean -log-prob,
                its depth; the release has .4 for the second, and leaves it off
    select      "frontier": of all open nodes; "uct": from the root down by Q + 2 sqrt(ln N / n)
    remember    solved prompts that are kept: at the next visit one right answer is a member, and nothing is searched

    Only chosen ends count and train, and `node_value (B, T)` is what the search made of the state behind each
    action's segment, bounded by tanh before the end: advantage `deepsearch` reads it. Rows are rewarded as always; the
    search itself sees right and wrong. Source: smiles724/DeepSearch, mcts.py and sglang_mcts_wrapper.py. There
    segments are written one by one, down to a depth of 64; here rows are written to their end, so every expansion
    reaches one, and the choice among children on the way never comes.
    """

    origins = (OWN, brought("replay", "given"))
    made = ("node_value",)

    def __init__(
        self,
        *,
        segment: int = 256,
        width: int = 8,
        solved: float = 0.25,
        expansions: int | None = None,
        quality: float = 0.4,
        surprise: float = 0.0,
        deep: float = 0.01,
        select: Literal["frontier", "uct"] = "frontier",
        remember: int = 4096,
    ) -> None:
        if (
            segment < 1
            or width < 2
            or not 0 <= solved < 1
            or remember < 0
            or (expansions is not None and expansions < 1)
        ):
            raise ConfigError(
                f"rollout 'deepsearch': segment={segment}, width={width}, solved={solved}, expansions={expansions}, "
                f"remember={remember}; expected at least 1, at least 2, [0, 1), at least 1 and at least 0"
            )
        if select not in ("frontier", "uct"):
            raise ConfigError(f"rollout 'deepsearch': select={select!r}; expected 'frontier' or 'uct'")
        self.segment, self.width, self.solved, self.expansions = segment, width, solved, expansions
        self.weights, self.select, self.remember = (quality, surprise, deep), select, remember
        self.cache: dict[int, tuple[list[int], list[float]]] = {}
        self._trees: dict[int, Tree] = {}
        self._replayed: dict[int, int] = {}

    # ---- rounds

    def ask(self, step: Step) -> Plan | None:
        """Fresh rows; a solved prompt's answer takes the place of one."""
        self._trees, self._replayed = {}, {}
        asks = []
        for place, index in enumerate(step.draw(step.prompts_per_step)):
            known = index in self.cache
            asks.append(Ask(step.group_size - 1 if known else max(self.width, step.group_size), index=index))
            if known:
                self._replayed[place] = index
        return Plan(asks)

    def join(self, batch: Batch, step: Step) -> Plan | None:
        solved = sorted(self._replayed.items()) if step.round == 1 else []
        given = [Given("replay", "given", group=g, note=index) for g, index in solved]
        asks: list[Ask] = []
        for group in sorted(set(batch.group.tolist())):
            if group in self._replayed:
                continue
            rows = batch.index(((batch.group == group) & (batch.source == 0)).nonzero().squeeze(1))
            asks += self._searched(group, rows, step)
        keep = self._chosen(batch)
        return Plan(asks, given, counted=keep, trained=keep)

    def _searched(self, group: int, rows: Batch, step: Step) -> list[Ask]:
        """One turn of a group's search."""
        tree = self._trees.get(group)
        if tree is None:
            root = Node(-1, 0)
            tree = self._trees[group] = Tree(root, root, [root])
        if tree.over:
            return []
        ends = self._grown(tree, rows)
        tree.turns += 1
        right = dict(zip(rows.member.tolist(), (worth(rows) > 0.5).tolist(), strict=True))
        if not tree.searched:
            share = float((worth(rows) > 0.5).double().mean())
            if share > self.solved or not ends:
                for end in ends:
                    self._choose(tree, end, right)
                tree.over = True
                return []
            tree.searched = True
        if ends:
            self._choose(tree, best_end(ends, right, rows), right)
        node = self._next(tree)
        limit = self.expansions or step.group_size
        if node is None or tree.turns >= limit:
            tree.over = True
            return []
        tree.open = node
        count = self.width - len(node.children)
        return [Ask(count, group=group, start=Address(node.member, node.depth * self.segment))]

    def _grown(self, tree: Tree, rows: Batch) -> list[Node]:
        """The ends of new rows, whose states were hung under the node that is open; each new state is visited once."""
        ends = []
        for row in sorted(range(len(rows)), key=lambda r: int(rows.member[r])):
            member = int(rows.member[row])
            if member in tree.known or bool(worth(rows)[row].isnan()):
                continue
            tree.known.add(member)
            node, length = tree.open, int(rows.length[row])
            for depth in range(node.depth + 1, max(-(-length // self.segment), 1) + 1):
                piece = rows.old_log_probs[row, (depth - 1) * self.segment : min(depth * self.segment, length)]
                ended = depth * self.segment >= length
                child = Node(member, depth, node, ended, -float(piece.mean()) if len(piece) else 0.0)
                child.visits = 0 if ended else 1
                node.children.append(child)
                tree.nodes.append(child)
                node = child
            if node.ended:
                ends.append(node)
        return ends

    def _choose(self, tree: Tree, end: Node, right: Mapping[int, bool]) -> None:
        """Keep an end, and tell its path what it came to."""
        path, value = end.path(), 1.0 if right[end.member] else -1.0
        for node in path:
            node.visits += 1
            node.value = backed_up(node.value, value, max((node.depth + 1) / (end.depth + 1), 0.1))
        tree.kept.append(end)

    def _next(self, tree: Tree) -> Node | None:
        """The node to expand; None where none is open."""
        free = [n for n in tree.nodes if n.parent and not n.ended and len(n.children) < self.width]
        if not free:
            return None
        if self.select == "uct":
            return self._descended(tree.root)
        deepest = max(n.depth for n in tree.nodes)
        return max(free, key=lambda n: self.priority(n, deepest))

    def _descended(self, node: Node) -> Node:
        """From the root along the child of the largest `puct`, to the first that is not fully expanded."""
        while node.parent is None or len(node.children) >= self.width:
            node = max(
                (c for c in node.children if self._open(c)), key=lambda c: puct(c.value, c.visits, c.parent.visits)
            )
        return node

    def _open(self, node: Node) -> bool:
        return not node.ended and (len(node.children) < self.width or any(map(self._open, node.children)))

    def priority(self, node: Node, deepest: int) -> float:
        """How promising it is to expand a node."""
        quality, surprise, deep = self.weights
        above = node.parent.q if node.parent else 0.0
        return quality * math.tanh(above) + surprise * node.surprise + deep * math.sqrt(node.depth / deepest)

    def _chosen(self, batch: Batch) -> Tensor:
        """(B,) bool: ends that were chosen, and all rows of groups without a search."""
        chosen = {(g, end.member) for g, tree in self._trees.items() for end in tree.kept}
        addresses = zip(batch.group.tolist(), batch.member.tolist(), strict=True)
        keep = [g in self._replayed or (g, m) in chosen for g, m in addresses]
        return torch.tensor(keep, device=batch.group.device)

    # ---- what is left of a step

    def given(self, given: Given, prompt: Prompt, rows: Rollouts | None) -> list[str | Answer]:
        ids, log_probs = self.cache[given.note]
        return [Answer(torch.tensor(ids), torch.tensor(log_probs))]

    def make(self, batch: Batch) -> dict[str, Tensor]:
        """`node_value (B, T)`; in groups without a search +-1 on the whole row."""
        value = torch.where(worth(batch) > 0.5, 1.0, -1.0)[:, None].expand(batch.mask.shape).clone()
        place = torch.arange(batch.mask.shape[1], device=value.device) // self.segment
        for row, (group, member) in enumerate(zip(batch.group.tolist(), batch.member.tolist(), strict=True)):
            end = (
                next((e for e in self._trees[group].kept if e.member == member), None) if group in self._trees else None
            )
            if end is not None:
                along = torch.tensor([*(math.tanh(n.value) for n in end.path()[1:-1]), end.value], device=value.device)
                value[row] = along.to(value)[place.clamp(max=len(along) - 1)]
        return {"node_value": value * batch.mask}

    def observe(self, batch: Batch, step: Step) -> None:
        """Keep a right answer of each prompt that had to be searched."""
        right = (worth(batch) > 0.5) & batch.counted & (batch.source == 0)
        for group, tree in self._trees.items():
            row = step.groups[group]
            found = ((batch.group == group) & right).nonzero().squeeze(1)
            if not tree.searched or row is None or not len(found):
                continue
            at = int(found[batch.member[found].argmin()])
            length = int(batch.length[at])
            self.cache[row] = (batch.actions[at, :length].tolist(), batch.old_log_probs[at, :length].tolist())
        while len(self.cache) > self.remember:
            self.cache.pop(next(iter(self.cache)))

    def state_dict(self) -> dict[str, Any]:
        return {"solved": {str(row): list(kept) for row, kept in self.cache.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cache = {int(row): (list(ids), list(log_probs)) for row, (ids, log_probs) in state["solved"].items()}


def best_end(ends: list[Node], right: Mapping[int, bool], rows: Batch) -> Node:
    """A right end, else a wrong one; of several the one that the policy was surest of, the first among equals."""
    pool = [end for end in ends if right[end.member]] or ends
    member = rows.member.tolist()
    mean = (rows.old_log_probs * rows.mask).sum(1) / rows.mask.sum(1).clamp(min=1)
    return max(pool, key=lambda end: (float(mean[member.index(end.member)]), -end.member))
