"""What each number in `metrics.jsonl` means, what is healthy, and what to do where it is not: docs/metrics.md.

A name may hold one `*`, which stands for a reward, a component, a stage function, a cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Entry:
    name: str
    meaning: str
    healthy: str
    do: str = ""


LOOK = "look at the answers: `mmrl report RUN`"
GROUPS: dict[str, tuple[Entry, ...]] = {
    "Reward": (
        Entry(
            "reward/mean",
            "mean reward of the step's rollouts, after weights and shaping",
            "rises over tens of steps, noisily",
            LOOK,
        ),
        Entry(
            "reward/std",
            "its spread over all rollouts",
            "above 0; at 0 nothing can be learned",
            "other prompts, another reward",
        ),
        Entry(
            "reward/unscored_fraction",
            "rollouts whose reward had no answer; they are out of baseline and loss",
            "0",
            "`unscored` has the causes; more time: reward_run.timeout",
        ),
        Entry(
            "reward/*/mean",
            "one named reward or a part of it, before it is weighed",
            "none stays constant",
            "a dead one: take it out of `rewards`, or ask for what it reads in data.system",
        ),
        Entry("reward/*/std", "the spread of that reward", "above 0"),
        Entry(
            "unscored",
            "unscored rollouts by cause",
            "empty",
            "mend the reward; `mmrl check` finds rows that it cannot read",
        ),
        Entry(
            "success",
            "share of rollouts that the reward calls a success",
            "between .1 and .9: only there groups differ",
            "below: easier prompts; above: harder ones",
        ),
        Entry(
            "success/pass@group",
            "share of prompts with at least one success",
            "above `success`",
            "where it stands still and success rises, the policy sharpens what it could do before",
        ),
        Entry(
            "answer/entropy",
            "how much the answers of a group differ, where a reward numbers them; 0: all give one answer",
            "falls slowly",
        ),
        Entry("answer/majority", "share of a group that gives its most frequent answer", "rises slowly"),
        Entry(
            "preference/strength",
            "of stored pairs: mean over deviation of the margins by which an ensemble of rewards prefers the chosen "
            "answer, the median over pairs",
            "above 1",
            "around 0 the ensemble does not see what people chose by",
        ),
        Entry(
            "preference/wrong_fraction",
            "pairs of which the ensemble would have chosen the other answer, with a strength of -1 or less",
            "below .25",
            "read some of them; objective.score_objective.secrets_of_rlhf_ii.wrong says what becomes of them",
        ),
        Entry(
            "preference/unsure_fraction", "pairs on which its members disagree, a strength between -1 and 1", "below .4"
        ),
        Entry(
            "preference/unknown_fraction",
            "pairs without a strength, since a reward was missing; they do not train",
            "0",
            "`unscored` has the causes",
        ),
    ),
    "Signal": (
        Entry(
            "signal/active_fraction",
            "rollouts whose advantage is not 0",
            "above .5; below .25 most compute is wasted",
            "raise training.group_size, other prompts, rollout: dynamic_sampling",
        ),
        Entry(
            "signal/zero_variance_fraction",
            "rollouts in groups whose members all scored the same",
            "below .5",
            "as above",
        ),
        Entry(
            "signal/trained_fraction",
            "rollouts that selection left for the update",
            "as the recipe's group stage means it",
        ),
        Entry("group/counted_fraction", "rollouts that the baseline counts", "1, or what the group stage leaves"),
        Entry("group/trained_fraction", "rollouts that are trained on", "1, or what the group stage leaves"),
        Entry("advantage/mean", "mean advantage of the actions that are trained", "near 0 for group baselines"),
        Entry("advantage/abs_mean", "its mean size", "about .7 where it is divided by the spread"),
        Entry(
            "credit/*/silenced",
            "share of actions whose advantage a credit function set to 0",
            "as the method means it",
        ),
        Entry("credit/*/reweighted", "share of actions whose advantage it changed", "as the method means it"),
    ),
    "Rollouts": (
        Entry(
            "rollouts",
            "rows of the step, over all ranks",
            "prompts_per_step times group_size, more with strategies that ask again",
        ),
        Entry("rollouts/not_shown", "rows that a strategy asked for and did not train on", "0 for independent draws"),
        Entry("contextevolve/prompts", "prompts that strategy contextevolve remembers answers to", "rises to `memory`"),
        Entry("contextevolve/answers", "answers that it remembers, of all prompts", "rises to `size` a prompt"),
        Entry("slea_rl/clusters", "kinds of observation of which strategy slea_rl knows turns", "rises to `clusters`"),
        Entry("slea_rl/experiences", "turns that it remembers, of all kinds", "rises to `keep` a kind"),
        Entry("metaclaw/skills", "skills that strategy metaclaw shows from the next step on", "rises to `most`"),
        Entry("metaclaw/generation", "how many times they have changed", "rises"),
        Entry(
            "metaclaw/support",
            "rows that a skill was written from, which neither count nor train",
            "group_size times `evolve`, falling to 0",
        ),
        Entry(
            "metaclaw/stale",
            "rows asked for under skills that had changed since, which neither count nor train",
            "0 without training.ahead",
            "a smaller training.ahead, or rollout.metaclaw.evolve",
        ),
        Entry(
            "rollouts/*",
            "rows from another source than the policy, such as demonstrations or replay",
            "as the strategy means it",
        ),
        Entry(
            "teacher/kl",
            "reverse KL to the teacher, an action, estimated on the policy's own rows",
            "falls; where it no longer does, the teacher has taught what it can",
        ),
        Entry(
            "rows_by_source",
            "a line for each kind of row: who wrote it, seeing what, with which weights and how old, what its ratio "
            "divides by, and how many count and train",
            "as `mmrl plan` says beforehand",
        ),
        Entry(
            "length/mean",
            "actions of a rollout: tokens, or denoising steps",
            "well below the limit",
            "rising to the limit: soft_overlong in objective.shaping",
        ),
        Entry(
            "length/truncated_fraction",
            "rollouts cut at the limit, which rarely say their answer",
            "below .1",
            "raise policy.max_new_tokens, or ask for short answers",
        ),
        Entry(
            "entropy/sampled",
            "minus the mean log-prob of the sampled actions, in nats; of denoising steps a density, whose level "
            "says nothing",
            "falls slowly; near 0 nothing new is tried",
            "raise objective.trust_region.high, lower training.learning_rate, add entropy to objective.regularizers",
        ),
        Entry("environment/call_rate", "rollouts that called the environment", "above 0"),
        Entry("environment/calls_per_row", "calls of a rollout", "as the task needs"),
        Entry(
            "environment/bad_calls_per_row",
            "calls that could not be read",
            "falls to 0",
            "show the form of a call in data.system",
        ),
        Entry(
            "environment/observed_columns",
            "tokens that were shown to the model; never trained on",
            "within policy.max_extent",
        ),
        Entry(
            "environment/fetched", "how well the first frames asked for met the true span, of a clip's frames", "rises"
        ),
        Entry("environment/*", "what went wrong in the environment, by cause, since the process began", "0"),
        Entry("data/left_out", "rows that could not be read and were skipped, as data.on_error: skip says", "0"),
    ),
    "Update": (
        Entry("ratio/mean", "mean of new over old probability", "1, within .05"),
        Entry("ratio/mean_by_update", "the same for each optimizer step of the batch", "drifts slowly from 1"),
        Entry(
            "ratio/gap",
            "mean |log ratio|; in a batch's first optimizer step it is rounding",
            "below 1e-4 in float32 at the first",
            "large at once: rollout and training disagree, see the self-check",
        ),
        Entry(
            "ratio/clip_fraction",
            "actions that the trust region keeps from learning",
            ".01 to .15; at 0 it never acts, above .2 past a batch's first optimizer step these are too large",
            "training.learning_rate, training.updates, objective.trust_region",
        ),
        Entry(
            "ratio/approx_kl",
            "KL of an action between the policy that sampled and the new one",
            "below .05",
            "above .2: lower training.learning_rate",
        ),
        Entry("ratio/acted", "1 where ratios were not all 1", "1 with several optimizer steps a batch; 0 with one"),
        Entry(
            "trust_region/acted",
            "1 where the trust region changed the objective",
            "1 now and then",
            "training.updates: {count: 4}, or narrower bounds",
        ),
        Entry("trust_region/changed_fraction", "actions whose objective it changed", ".01 to .2"),
        Entry(
            "regularizer/*",
            "a regularizer before its coefficient; kl is to the reference",
            "kl grows slowly, below .5",
            "runs off: raise its coefficient, lower training.learning_rate",
        ),
        Entry(
            "gradient_norm",
            "before clipping, mean over optimizer steps",
            "steady; a tenth to ten times its usual",
            "jumps: lower training.learning_rate; next to 0: see signal/*",
        ),
        Entry(
            "update/moved_fraction",
            "trained weights that an optimizer step changed",
            "above .5",
            "near 0 below float32: raise training.learning_rate",
        ),
        Entry("updates", "optimizer steps so far", "grows"),
        Entry("updates/of_step", "optimizer steps of this rollout batch", "what training.updates says"),
        Entry("updates/skipped", "left out because something was not finite", "0"),
        Entry("skipped", "why, where training.skip_nonfinite lets them be left out", "absent"),
        Entry(
            "learning_rate", "of the last optimizer step", "as the schedule says, or less, as vcpo's control makes it"
        ),
        Entry(
            "gradient_norm/*",
            "that of one side of a joint policy, before both are clipped together",
            "each steady; AdamW's steps do not depend on their sizes",
            "one jumps, and clipping shrinks the other's step too: lower its rate in policy.learning_rates",
        ),
        Entry("learning_rate/*", "that of a side with a rate of its own, of a joint policy", "as its schedule says"),
        Entry(
            "self_check/worst_gap",
            "largest gap between rollout and training log-probs, before the first update",
            "1e-4 in float32",
        ),
        Entry(
            "self_check/not_compared",
            "rows that cannot be compared, such as hinted ones",
            "0 for independent draws",
        ),
        Entry("engine/gap_mean", "mean gap between an engine's log-probs and the trainer's", "below .03"),
        Entry("engine/gap_max", "the largest", "single actions may differ by much"),
        Entry(
            "engine/gap_of_clip",
            "the mean gap as a share of the clip range",
            "below .2",
            "policy.old_log_probs: trainer",
        ),
        Entry(
            "nlpo/allowed",
            "tokens that engine nlpo could draw, mean over its steps",
            "far below the vocabulary; it falls as the lagged policy grows surer",
            "engine.top_p, engine.least",
        ),
        Entry(
            "nlpo/cut_fraction",
            "steps at which `engine.most` was smaller than the lagged policy's nucleus",
            "near 0",
            "a larger engine.most",
        ),
        Entry(
            "ahead/staleness_mean",
            "optimizer steps between the weights that wrote the rows and those trained",
            "training.ahead times updates, at most",
        ),
        Entry("ahead/staleness_max", "the largest", "likewise"),
    ),
    "Held-out": (
        Entry("eval/prompts", "held-out prompts that were answered", "all of them"),
        Entry("eval/reward", "their mean reward", "rises with reward/mean; if not, the reward is gamed", LOOK),
        Entry("eval/reward/*", "one named reward on them", "rises"),
        Entry("eval/success", "share of successes", "rises"),
        Entry("eval/length", "actions of an answer", "well below the limit"),
        Entry("eval/unscored", "answers the reward could not score", "0"),
        Entry("eval/pass@*", "share of prompts solved by at least one of so many samples", "above eval/success"),
        Entry("eval/calls", "calls of the environment", "above 0"),
        Entry("eval/bad_calls", "calls that could not be read", "0"),
    ),
    "Speed": (
        Entry(
            "seconds/*",
            "of each stage of the step; evaluate and save are those before it",
            "rollout is the largest, update next",
            "docs/speed.md; reward large: reward_run.workers",
        ),
        Entry("rate/actions_per_second", "sampled actions a second of rollout", "steady"),
        Entry("rate/rollouts_per_second", "rollouts a second of rollout", "steady"),
        Entry(
            "memory/peak_bytes",
            "of the accelerator, or of this process",
            "below what there is, steady",
            "`mmrl plan`; training.micro_batch_size",
        ),
        Entry(
            "rows/scored", "rows by the way they were scored; a rank without work repeats one", "the fastest exact way"
        ),
        Entry("threads", "of the step on the CPU, with training.threads=by_load", "what OMP_NUM_THREADS says"),
        Entry("rows/written", "rows by the way they were written", "the fastest exact way"),
        Entry("rows/fell_back", "rows that took a slower way, by reason", "empty", "`mmrl doctor MODEL`"),
        Entry(
            "cache/hit_rate",
            "clips read from the frame cache",
            "1 after the first epoch",
            "`mmrl cache build`, cache.budget_gb",
        ),
        Entry("cache/*", "hits, misses and damage of the frame cache since the process began", "no damage"),
    ),
    "Watch": (
        Entry("calls/sampled", "evaluations of the generator in rollouts, a row each", "steady"),
        Entry("calls/scored", "in passes without gradient", "0, unless a recipe reads them"),
        Entry("calls/trained", "in updates", "steady"),
        Entry(
            "guidance/reused",
            "share of the unconditional velocities that updates read and their rollouts had found already",
            "1 with one optimizer step a rollout batch, 1/n with n",
            "0 where policy.reuse_unconditional=false, or something moves the weights between rollout and update",
        ),
        Entry(
            "watch/*",
            "what is measured beside the reward of a generator's run, every watch.every steps",
            "follows the reward, or stays",
            "`watch` in docs/methods-flow.md",
        ),
        Entry("marble/weight/*", "the moving average of a reward's weight in the combination", "none stays at 0"),
        Entry(
            "marble/least_cosine",
            "how much the two rewards most at odds oppose each other: their gradients' cosine",
            "above -1; at -1 no step serves both",
            "rewards that do not contradict each other",
        ),
        Entry("kinds/*", "share of a kind of actions in rows that hold several", "steady"),
    ),
    "Near-future guides": (
        Entry(
            "autonpo/reward_slope",
            "how much the reward rises a step, by a line through the last `window` of them",
            "above 0; below `mmrl autonpo`'s threshold the run looks for a guide",
            "`mmrl autonpo` in docs/strategies.md",
        ),
    ),
    "Learners without a gradient": (
        Entry(
            "essa/sigma", "how far candidates are drawn from the mean of the search", "falls slowly", "learner.sigma"
        ),
        Entry("essa/factors", "matrices of the adapter that are searched", "all of them"),
        Entry("essa/numbers", "singular values that are searched", "a few hundred to a few thousand"),
        Entry("context/lessons", "lessons that stand before every prompt", "grows, then stays"),
        Entry("context/asked", "groups that were compared in words", "above 0", "prompts that are solved sometimes"),
        Entry(
            "context/unreadable",
            "comparisons that held no operations that can be read",
            "near 0",
            "a model that can write JSON; learner.ask",
        ),
        Entry("reward/best", "the best candidate's reward of an evolution step", "rises"),
    ),
    "Diagnosis": (
        Entry("diagnosis", "what is wrong, by rule, for as long as it lasts", "absent", "what its sentence says"),
        Entry("step", "rollout batches so far", "grows"),
    ),
}


def entries() -> Iterator[Entry]:
    for group in GROUPS.values():
        yield from group


def explain(metric: str) -> Entry | None:
    """The entry of a metric: by its own name, else by the pattern with the most letters that fits."""
    fitting = [e for e in entries() if e.name == metric or ("*" in e.name and fnmatchcase(metric, e.name))]
    return max(fitting, key=lambda e: (e.name == metric, len(e.name)), default=None)
