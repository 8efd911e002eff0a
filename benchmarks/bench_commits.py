"""A training step of two checkouts of this project beside each other, on one tiny Qwen2.5-VL.

    git worktree add ../before COMMIT
    python -m benchmarks.bench_commits ../before --threads 1 --steps 9

Each checkout runs its own trainer, policy and benchmark code, in a process of its own; they take steps in turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from subprocess import check_output

from benchmarks import bench_vlm, measuring
from benchmarks.measuring import Report, alternate, ratio, summary, target, workers

LEAST = 0.95
"""Of the processor time of the older checkout over that of this one: no slower, as far as it can be told."""


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser("bench_commits", __doc__)
    parser.add_argument("before", type=Path, help="folder of the other checkout")
    options = parser.parse_args(arguments)
    steps = options.steps or (1 if options.quick else 9)
    checkouts = {"before": options.before.resolve(), "now": Path(__file__).resolve().parents[1]}
    report = Report("bench_commits", options)
    report.content["command"] = report.content["command"].replace(str(options.before), "../before")
    report.content["commits"] = {name: _commit(folder) for name, folder in checkouts.items()}
    with tempfile.TemporaryDirectory() as folder:
        side = min(bench_vlm.SIDES)
        pictures = bench_vlm.prepare(Path(folder), [side])[side]
        for vision in (True, False):
            spec = {
                "kind": "ours", "folder": folder, "model": f"{folder}/model", "members": bench_vlm.MEMBERS,
                "new": bench_vlm.NEW, "pictures": pictures, "train_vision": vision, "checkpointing": False,
            }  # fmt: skip
            specs = {name: spec | {"checkout": str(path)} for name, path in checkouts.items()}
            with workers(bench_vlm.MODULE, specs, options.threads) as running:
                replies = alternate(running, steps)
                ready = {name: worker.ready for name, worker in running.items()}
            title = f"{bench_vlm.SIDES[side]}, vision {'trained' if vision else 'frozen'}"
            rows = [{"checkout": name, **summary(taken, ready[name])} for name, taken in replies.items()]
            found = ratio(replies["before"], replies["now"], "cpu_seconds")
            rows[1] |= {"before / now, processor time": found["median"], "its range": found["range"]}
            report.targets([target(f"{title}: before / now, processor time", LEAST, found["median"])])
            report.table(title, rows)
    report.write()


def _commit(folder: Path) -> str:
    return check_output(["git", "log", "-1", "--format=%h %ad %s", "--date=short"], cwd=folder, text=True).strip()


if __name__ == "__main__":
    main()
