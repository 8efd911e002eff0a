"""`mmrl check`: read data sets as a run would, for the rewards of its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmrl.data.check import Judge, Report, check_dataset
from mmrl.data.sources import WHOLE_ROW, RowError
from mmrl.errors import ConfigError, RewardError
from mmrl.pipelines.config import RunConfig, read_config
from mmrl.pipelines.run import reward_panel, row_options
from mmrl.pipelines.sizing import image_sizing
from mmrl.rewards.panel import RewardPanel

NO_REWARDS = (
    "no rewards named: rows with a task were read as the reward `accuracy` would; `mmrl check MODALITY CONFIG` checks "
    "the data of a run for its own rewards"
)


def check_configured(modality: str, config: str, overrides: Sequence[str]) -> tuple[list[Report], str]:
    """The data a configuration trains and evaluates on: a report of each, and for which rewards they were read."""
    settings = read_config(config, overrides, modality)
    specs = [spec for spec in dict.fromkeys((settings.data.train, settings.data.eval)) if spec]
    if not specs:
        raise ConfigError(f"{config}: names no data; as in data.train=train.jsonl")
    return _check(settings, specs)


def check_file(spec: str, overrides: Sequence[str]) -> tuple[list[Report], str]:
    """One data set, under the `data` and `rewards` that overrides give; no modality reads rows differently."""
    return _check(read_config({"modality": "vlm"}, overrides), [spec])


def _check(config: RunConfig, specs: Iterable[str]) -> tuple[list[Report], str]:
    if not config.rewards:
        return [_report(config, spec, None, judge_task) for spec in specs], NO_REWARDS
    with reward_panel(config) as panel:
        asked = config.policy_class.asks_for(config.policy_settings()) if config.policy else []
        columns = [*dict.fromkeys((*panel.required_columns, *asked))]
        judge = partial(_refused, panel)
        reports = [_report(config, spec, columns, judge, panel) for spec in specs]
        return reports, "read for the rewards " + ", ".join(member.label for member in panel.members)


def _report(
    config: RunConfig, spec: str, columns: Sequence[str] | None, judge: Judge, panel: RewardPanel | None = None
) -> Report:
    held_out = spec == config.data.eval and spec != config.data.train
    options = row_options(config.data, panel, image_sizing(config), held_out)
    return check_dataset(spec, columns, judge, **options)


def _refused(panel: RewardPanel, row: Mapping[str, Any]) -> Iterator[RowError]:
    return map(_as_row_error, panel.refusals(row))


def judge_task(row: Mapping[str, Any]) -> Iterator[RowError]:
    """What `accuracy` has against a row that names a task."""
    from mmrl.rewards.accuracy import check_row

    if row.get("task") is None:
        return
    try:
        check_row(row)
    except RewardError as error:
        yield _as_row_error(error)


def _as_row_error(error: RewardError) -> RowError:
    return RowError(error.column or WHOLE_ROW, str(error))
