"""The first half of a step: rounds of acting and scoring as the rollout strategy plans them, then selection.

No gradient here but what a policy keeps for the update on its own rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrl.errors import ConfigError, MMRLError
from mmrl.objective import Objective
from mmrl.randomness import Key
from mmrl.record import BEHAVIOURS, SOURCES, TRUNCATED, Answer, Batch, Prompt, Request, Rollouts, Start, Stored
from mmrl.rollout.actor import Actor, score_rows
from mmrl.rollout.nesting import Nested
from mmrl.rollout.origins import merged, tally
from mmrl.rollout.plan import Address, Ask, Given, Plan, Step
from mmrl.selection.prompts import Prefetching, Sampler
from mmrl.training.balance import Balance
from mmrl.training.config import TrainingConfig
from mmrl.training.distributed import gather_batch, gather_objects, together
from mmrl.training.evaluation import Score
from mmrl.training.filling import Columns
from mmrl.training.groups import Groups
from mmrl.training.made import attach_columns
from mmrl.training.timing import Clock

ROUNDS = 100
"""No strategy asks more often in a step: one that does will never stop."""
BEHAVIOUR = "behaviour_log_probs"


@dataclass
class Collected:
    """rollouts  of this rank
    batch     of all ranks, shaped and selected
    mine      where each local row stands in `batch`
    indices   dataset row of each group, None where a strategy made the prompt
    step      as the strategies saw it
    causes    why outputs stayed unscored, over all ranks
    not_shown members asked for with something to show where there was nothing, and asides that were no use; all ranks
    version   of the weights as they were then
    weights   that the policy sampled with, as `Policy.samples_with` names them
    counted   further numbers of the strategies
    """

    rollouts: Rollouts
    batch: Batch
    mine: Tensor
    indices: list[int | None]
    step: Step
    causes: Counter = field(default_factory=Counter)
    not_shown: int = 0
    version: int = 0
    weights: str = "current"
    counted: dict[str, float] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, float]:
        """What the metrics of a step say of it."""
        return {"rollouts/not_shown": self.not_shown, **self.counted}


@dataclass
class Begun:
    """A step whose first round is planned.

    every  (what is asked, the request of it) of this rank; None where there is nothing to show
    """

    step: Step
    groups: Groups
    plan: Plan
    givens: list[tuple[int, Given]]
    every: list[tuple[Ask, Request | None]]


@dataclass
class Collector:
    """Everything a step needs before the optimizer: `collect(number)`.

    begun  {step: its first round}, of steps that are written ahead
    drawn  {step: dataset rows} that a run before this one had drawn for such steps
    """

    actor: Actor
    objective: Objective
    columns: Columns
    strategies: Nested
    prompts: Sequence[Prompt]
    score: Score
    sampler: Sampler
    config: TrainingConfig
    accelerator: Accelerator
    clock: Clock
    not_shown: int = 0
    begun: dict[int, Begun] = field(default_factory=dict)
    drawn: dict[int, list[int]] = field(default_factory=dict)
    balance: Balance = field(init=False)

    def __post_init__(self) -> None:
        self.balance = Balance(self.accelerator.num_processes, self.config.balance)

    def collect(self, number: int) -> Collected:
        self.not_shown, causes = 0, Counter[str]()
        self.strategies.begin()
        begun = self.begun.pop(number, None) or self._begin(number)
        step, groups = begun.step, begun.groups
        rows: Rollouts | None = None
        plan: Plan | None = begun.plan
        while plan is not None:
            asked = (begun.givens, begun.every) if rows is None else self._asked(plan, rows, step, groups)
            rows = self._act(plan, asked, rows, step, groups, causes)
            step.round += 1
            if self.strategies.reads_texts:
                self._tell_texts(rows, step)
            batch, mine = self._gather(rows, number)
            with self.clock("group"):
                batch = self.objective.shape(batch)
                plan = self.strategies.join(batch, step)
        assert rows is not None
        if self.strategies.besides:
            together(lambda: self._put_beside(rows), self.accelerator)
        with self.clock("group"):
            batch, _ = self.objective.select(self.strategies.masked(batch))
            self.strategies.observe(batch, step)
        if not self.columns.plan.early:
            batch = self._with_columns(batch, rows, causes)
        batch = self.strategies.make(batch)
        for other in gather_objects(dict(causes), self.accelerator)[1:] if self.accelerator.num_processes > 1 else ():
            causes.update(other)
        not_shown = sum(gather_objects(self.not_shown, self.accelerator))
        self._learn(rows, groups)
        policy = self.actor.policy
        return Collected(
            rows, batch, mine, groups.rows, step, causes, not_shown, policy.version, policy.samples_with,
            self.strategies.counted(),
        )  # fmt: skip

    def rows_by_source(self, collected: Collected, batch: Batch) -> list[dict[str, Any]]:
        """How many rows of all ranks are of which origin; `batch`: as it is trained on."""
        counted, trained = (flags[collected.mine] for flags in (batch.counted, batch.trained))
        mine = tally(collected.rollouts, counted, trained, collected.version)
        return merged(gather_objects(mine, self.accelerator), collected.weights)

    def coming(self, number: int) -> tuple[list[Request], Key]:
        """What `collect(number)` will ask the policy for first: planned now, by what is known now, and kept."""
        begun = self.begun[number] = self._begin(number)
        requests = [request for _, request in _acted_for(begun.every)]
        return requests or [Request(self._spare(begun.groups), 1, group=0)], begun.step.key

    def _begin(self, number: int) -> Begun:
        groups = Groups(self.accelerator.process_index, self.accelerator.num_processes)
        step = self._step(number, groups)
        plan = self.strategies.ask(step)
        return Begun(step, groups, plan, *self._asked(plan, None, step, groups))

    def _learn(self, rows: Rollouts, groups: Groups) -> None:
        """Tell all ranks what the groups of this one came to: a prompt once, and its responses."""
        if not self.balance.enabled:
            return
        mine: dict[int, float] = {}
        assert rows.extent is not None
        for group in torch.unique(rows.group).tolist():
            at = (rows.group == group).nonzero().squeeze(1)
            entry = rows.encoded[int(rows.prompt[at[0]])]
            prompt = len(entry) if hasattr(entry, "__len__") else 0
            if (row := groups.rows[group]) is not None:
                mine[row] = float(prompt + int(rows.extent[at].sum()))
        for tokens in gather_objects(mine, self.accelerator):
            self.balance.learn(tokens)

    def _tell_texts(self, rows: Rollouts, step: Step) -> None:
        """What was asked and answered so far, in words, told to all ranks."""
        where = list(zip(rows.group.tolist(), rows.member.tolist(), rows.prompt.tolist(), strict=True))
        texts = {(g, m): out for (g, m, _), out in zip(where, rows.outputs, strict=True) if isinstance(out, str)}
        bare = [prompt.beside.get("bare", prompt) for prompt in rows.prompts]
        asked = {group: bare[place].text for group, _, place in reversed(where)}
        runs = self.actor.policy.turn_texts(rows) if self.strategies.reads_turns else []
        turns = {(g, m): said for (g, m, _), said in zip(where, runs, strict=False)}
        for more_texts, more_asked, more_turns in gather_objects((texts, asked, turns), self.accelerator):
            step.texts.update(more_texts)
            step.asked.update(more_asked)
            step.turns.update(more_turns)

    def _put_beside(self, rows: Rollouts) -> None:
        """The prompts of strategies beside those of the rows, before passes show them."""
        if self.columns.plan.early:
            raise ConfigError("a rollout strategy puts prompts beside those of the rows, and a selection or shaping "
                              "reads passes before it can; leave one of them out")  # fmt: skip
        for group in torch.unique(rows.group).tolist():
            at = (rows.group == group).nonzero().squeeze(1)
            for place in torch.unique(rows.prompt[at]).tolist():
                prompt = rows.prompts[place]
                beside = self.strategies.beside(prompt, rows.index(at))
                rows.prompts[place] = replace(prompt, beside={**prompt.beside, **beside})

    def _with_columns(self, batch: Batch, rows: Rollouts, causes: Counter) -> Batch:
        """The batch with the columns of passes that no selection reads; rows that lost their reward there are out."""
        self.columns.fill(rows, causes, batch.step)
        gathered, _ = self._gather(rows, batch.step)
        scored = ~gathered.reward.isnan()
        return replace(batch, columns=gathered.columns, counted=batch.counted & scored, trained=batch.trained & scored)

    # ---- what a strategy sees

    def _step(self, number: int, groups: Groups) -> Step:
        key, config = Key(self.config.seed, number), self.config
        draws = 0

        def draw(count: int) -> list[int]:
            nonlocal draws
            known = self.drawn.get(number, [])
            indices, self.drawn[number] = known[:count], known[count:]
            if not self.drawn[number]:
                del self.drawn[number]
            if more := count - len(indices):
                indices += self.sampler.select(more, len(self.prompts), key.at(member=draws))
            if not draws:
                self.announce(indices, number + 1)
            draws += 1
            return indices

        def select(batch: Batch) -> Batch:
            return self.objective.select(batch)[0]

        return Step(
            number, config.steps, key, config.group_size, config.prompts_per_step, draw, select, groups=groups.rows
        )

    def announce(self, now: list[int], step: int) -> None:
        """Tell prompts that can be made ready which are asked for now and, as far as one knows, by `step`."""
        if not isinstance(self.prompts, Prefetching):
            return
        foresee, coming = getattr(self.sampler, "coming", None), []
        if foresee is not None and step < self.config.steps:
            coming = foresee(self.config.prompts_per_step, len(self.prompts), Key(self.config.seed, step))
        rank = self.accelerator.process_index
        each = [list(zip(rows, self.balance.places(rows), strict=True)) for rows in (now, coming)]
        self.prompts.prefetch([row for part in each for row, place in part if place == rank])

    def _agreed(self, what: str, name: str) -> None:
        every = gather_objects(what, self.accelerator)
        if len(set(every)) > 1:
            raise MMRLError(f"{name} differs between ranks: {every}; it must depend on the gathered batch alone")

    # ---- one round

    def _asked(
        self, plan: Plan, rows: Rollouts | None, step: Step, groups: Groups
    ) -> tuple[list[tuple[int, Given]], list[tuple[Ask, Request | None]]]:
        """Where given rows go, and what this rank asks for: groups and members numbered, prompts opened."""
        self._agreed(plan.digest(), "the plan of a rollout strategy")
        if step.round >= ROUNDS or not plan.asks:
            asked = "for nothing" if not plan.asks else f"{ROUNDS} times in a step"
            raise ConfigError(f"rollout {[b.name for b in self.strategies.bounds]} asked {asked}; it will never end")
        asks = [(groups.place(ask), ask) for ask in plan.ask]
        givens = [(groups.place(given), given) for given in plan.given]
        groups.hold(self.balance)
        firsts = [groups.number(group, ask.count) for group, ask in asks]
        mine = [(g, a, first) for (g, a), first in zip(asks, firsts, strict=True) if groups.mine(g)]
        with self.clock("data"):
            return givens, together(
                lambda: [(a, self._request(g, a, first, rows, groups)) for g, a, first in mine], self.accelerator
            )

    def _act(
        self, plan: Plan, asked: tuple[list, list], rows: Rollouts | None, step: Step, groups: Groups, causes: Counter
    ) -> Rollouts:
        """`rows` and what this round adds, scored. Ranks pass the model together: one that is asked for nothing
        while others are acts on a spare request and drops what came out."""
        givens, every = asked
        self.not_shown += sum(ask.count for ask, request in every if request is None)
        requests = _acted_for(every)
        own = [pair for pair in requests if pair[0].writer == "policy"]
        acted = self._acted([request for _, request in own], step.key, groups)
        told = self._told(requests[len(own) :], step.key, groups)
        self._heard(plan, [pair for rows_ in (acted, told) if rows_ for pair in _texts(rows_)], requests)
        constants = [ask.columns for ask, _ in requests if not ask.aside for _ in range(ask.count)]
        parts = [(acted.index(range(len(constants))), constants)] if acted and constants else []
        parts += self._written(givens, rows, groups, step.key)
        if plan.given and any(g.behaviour != "policy" for g in plan.given) and rows is not None:
            rows.columns.setdefault(BEHAVIOUR, rows.old_log_probs.clone())
        new = [self._constant(part, columns, rows, plan) for part, columns in parts]
        fresh = Rollouts.concatenate(new) if new else None
        self._score_together(fresh, causes)
        if self.columns.plan.early:
            self._fill_together(fresh, rows, causes, step.number)
        have = [r for r in (rows, fresh) if r is not None]
        if not have:
            raise ConfigError(
                "the first round of a rollout strategy leaves a rank without a group; ask for more groups"
            )
        return Rollouts.concatenate(have) if len(have) > 1 else have[0]

    def _told(self, requests: list[tuple[Ask, Request]], key: Key, groups: Groups) -> Rollouts | None:
        """What the teacher writes. Ranks pass its model together, as they do the policy's."""
        if not any(gather_objects(len(requests), self.accelerator)):
            return None
        asked = [request for _, request in requests] or [Request(self._spare(groups), 1, group=0)]
        with self.clock("rollout"):
            rows = together(lambda: self.actor.by_teacher(asked, key), self.accelerator)
        return rows if requests else None

    def _heard(self, plan: Plan, outputs: list[tuple[str, bool]], requests: list[tuple[Ask, Request]]) -> None:
        """Tell the strategies of all ranks what was written aside: the last `outputs`, as `requests` has them. Each is
        a text, and whether it was cut."""
        if not any(ask.aside for ask in plan.ask):
            return
        asides = [pair for pair in requests if pair[0].aside]
        at, texts = len(outputs) - sum(ask.count for ask, _ in asides), []
        for ask, request in asides:
            written, at = outputs[at : at + ask.count], at + ask.count
            kept = [text for text, cut in written if not (ask.whole and cut)]
            texts.append(self.strategies.usable(ask, request.prompt, kept))
            self.not_shown += len(written) - len(texts[-1])
        places = [plan.ask.index(ask) for ask, _ in asides]
        every = gather_objects(list(zip(places, texts, strict=True)), self.accelerator)
        for place, written in sorted(pair for part in every for pair in part):
            self.strategies.heard(plan.ask[place], written)

    def _request(self, group: int, ask: Ask, first: int, rows: Rollouts | None, groups: Groups) -> Request | None:
        prompt = groups.prompt(group, self.prompts)
        request = Request(prompt, ask.count, group, first_member=first)
        if ask.start is not None:
            request.start = self._start(group, ask.start, rows)
        if ask.note is not None:
            shown = self.strategies.shown(ask, prompt, _of_group(rows, group))
            if shown is None:
                return None
            request.shown = shown
            if ask.trains == "shown" or ask.aside:
                if shown.id == prompt.id:
                    raise ConfigError(f"prompt {prompt.id!r}: what is trained as shown needs an id of its own")
                request.prompt, request.shown = shown, None
        return request

    def _start(self, group: int, address: Address, rows: Rollouts | None) -> Start:
        where = None if rows is None else (rows.group == group) & (rows.member == address.member)
        at: list[int] = [] if where is None else where.nonzero().squeeze(1).tolist()
        if rows is None or not len(at):
            raise ConfigError(f"a rollout strategy starts in member {address.member} of group {group}: there is none")
        row = rows.index([at[0]])
        assert row.extent is not None
        if not 0 < address.action < int(row.extent[0]):
            raise ConfigError(
                f"a rollout strategy starts behind action {address.action} of member {address.member} of group "
                f"{group}, which has {int(row.extent[0])}; expected 1 to {int(row.extent[0]) - 1}"
            )
        return Start(row, address.action)

    def _acted(self, requests: list[Request], key: Key, groups: Groups) -> Rollouts | None:
        """The rows of `requests`, sampled; None where this rank is asked for nothing."""
        if not any(gather_objects(len(requests), self.accelerator)):
            return None
        asked = requests or [Request(self._spare(groups), 1, group=0)]
        with self.clock("rollout"):
            weights = self.actor.policy.samples_with
            rollouts = together(lambda: self.actor.act(asked, key, weights=weights), self.accelerator)
        return rollouts if requests else None

    def _written(
        self, givens: list[tuple[int, Given]], rows: Rollouts | None, groups: Groups, key: Key
    ) -> list[tuple[Rollouts, list]]:
        """The rows that nobody acts for, in the order of the plan; the policy says how likely it finds them."""
        if not givens:
            return []
        with self.clock("data"):
            found = together(lambda: [self._given(g, given, rows, groups) for g, given in givens], self.accelerator)
        self.not_shown += sum(not made and groups.mine(g) for (g, _), made in zip(givens, found, strict=True))
        counts = gather_objects([len(f) for f in found], self.accelerator)
        totals = [sum(column) for column in zip(*counts, strict=True)]
        firsts = [groups.number(group, n) for (group, _), n in zip(givens, totals, strict=True)]
        prompts = [groups.prompt(g, self.prompts) for (g, _), f in zip(givens, found, strict=True) for _ in f]
        answers = [answer for f in found for answer in f]
        if not sum(totals):
            return []
        with self.clock("rollout"):
            written = together(lambda: self._taken(prompts, answers, groups, key), self.accelerator)
        if not answers or written is None:
            return []
        at = [i for i, f in enumerate(found) for _ in f]
        place = [k for f in found for k in range(len(f))]
        device = written.mask.device
        written.group = torch.tensor([givens[i][0] for i in at], device=device)
        written.member = torch.tensor([firsts[i] + k for i, k in zip(at, place, strict=True)], device=device)
        written.owner = torch.where(written.mask, written.member[:, None], -1)
        written.source = torch.tensor([SOURCES.index(givens[i][1].source) for i in at], device=device)
        behaviours = [givens[i][1].behaviour for i in at]
        written.behaviour = torch.tensor([BEHAVIOURS.index(b) for b in behaviours], device=device)
        if any(g.behaviour != "policy" for _, g in givens):
            written.columns[BEHAVIOUR] = _denominators(written.old_log_probs, behaviours, answers)
        return [(written, [givens[i][1].columns for i in at])]

    def _taken(self, prompts: list[Prompt], answers: list[Any], groups: Groups, key: Key) -> Rollouts | None:
        """The rows of `answers`. Where other ranks' are written, one without any runs their pass beside them; stored
        outputs take none."""
        stored = [isinstance(answer, Stored) for answer in answers]
        if any(gather_objects(any(stored), self.accelerator)):
            if not all(stored):
                raise ConfigError("given rows of one round are written answers or stored outputs, not both")
            return self.actor.stored(prompts, answers, key) if answers else None
        return self.actor.written(*((prompts, answers) if answers else ([self._spare(groups)], ["-"])))

    def _given(
        self, group: int, given: Given, rows: Rollouts | None, groups: Groups
    ) -> Sequence[str | Answer | Stored]:
        if not groups.mine(group):
            return ()
        made = self.strategies.given(given, groups.prompt(group, self.prompts), _of_group(rows, group))
        if not isinstance(made, list) or not all(isinstance(row, str | Answer | Stored) for row in made):
            raise ConfigError(
                f"given rows are a list of texts, answers or stored outputs; a rollout strategy gave {made!r:.80}"
            )
        bare = [row for row in made if not isinstance(row, Answer) or row.log_probs is None]
        if given.behaviour == "given" and bare:
            raise ConfigError("a rollout strategy gave rows without log-probs and says behaviour 'given'")
        return made

    def _spare(self, groups: Groups) -> Prompt:
        """Any prompt, for a rank that is asked for nothing."""
        held = [g for g in range(len(groups.rows)) if groups.mine(g)]
        return groups.prompt(held[0], self.prompts) if held else self.prompts[0]

    def _constant(self, part: Rollouts, values: list, rows: Rollouts | None, plan: Plan) -> Rollouts:
        """Row constants, with the fill of each where a row says nothing; the ratio's denominator where rows differ."""
        for name, fill in self.strategies.columns.items():
            column = [float(v.get(name, fill)) for v in values]
            part.columns[name] = torch.tensor(column, device=part.mask.device)
        behaves = (rows is not None and BEHAVIOUR in rows.columns) or any(g.behaviour != "policy" for g in plan.given)
        if behaves:
            part.columns.setdefault(BEHAVIOUR, part.old_log_probs.clone())
        return part

    def _score_together(self, rollouts: Rollouts | None, causes: Counter) -> None:
        with self.clock("reward"):
            together(lambda: None if rollouts is None else self._score(rollouts, causes), self.accelerator)

    def _fill_together(self, fresh: Rollouts | None, rows: Rollouts | None, causes: Counter, step: int) -> None:
        """A rank without new rows runs the passes of an old one beside the others, and drops what came out."""
        if fresh is not None:
            self.columns.fill(fresh, causes, step)
        elif rows is not None:
            self.columns.fill(rows.index([0]), Counter(), step)

    def _score(self, rollouts: Rollouts, causes: Counter) -> None:
        scores = score_rows(rollouts, self.score)
        causes.update(scores.causes)
        causes.update(attach_columns(rollouts, scores, self.actor.policy))

    def _gather(self, rollouts: Rollouts, step: int) -> tuple[Batch, Tensor]:
        constants: dict[str, Any] = {
            "max_length": self.actor.policy.max_actions,
            "step": step,
            "steps": self.config.steps,
            "seed": self.config.seed,
        }
        return gather_batch(rollouts, self.accelerator, **constants)


def _acted_for(every: list[tuple[Ask, Request | None]]) -> list[tuple[Ask, Request]]:
    """What is asked for: rows first, then what is written aside, by the policy and at last by its teacher."""
    requests = [(ask, request) for ask, request in every if request is not None]
    return sorted(requests, key=lambda pair: (pair[0].aside, pair[0].writer == "teacher"))


def _texts(rows: Rollouts) -> list[tuple[str, bool]]:
    """Of each row: what was written, and whether it was cut."""
    return [(str(text), why == TRUNCATED) for text, why in zip(rows.outputs, rows.finish, strict=True)]


def _denominators(own: Tensor, behaviours: Sequence[str], answers: Sequence[str | Answer | Stored]) -> Tensor:
    """(B, T) log-probs of whoever wrote each row, as the plan names them; `own` are the policy's."""
    column = own.clone()
    for row, (behaviour, answer) in enumerate(zip(behaviours, answers, strict=True)):
        if behaviour == "one":
            column[row] = 0.0
        elif behaviour == "given" and isinstance(answer, Answer) and answer.log_probs is not None:
            column[row, : len(answer.log_probs)] = answer.log_probs.to(column)
    return column


def _of_group(rows: Rollouts | None, group: int) -> Rollouts | None:
    at = None if rows is None else (rows.group == group).nonzero().squeeze(1)
    return None if rows is None or at is None or not len(at) else rows.index(at)
