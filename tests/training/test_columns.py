"""Who makes what functions read: refused at the earliest moment at which it is known that nobody does."""

import itertools

import pytest
import torch

from mmrl.columns import COLUMNS
from mmrl.errors import ConfigError, DataError, RewardError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.methods import methods_json
from mmrl.pipelines.plan import plan_run
from mmrl.pipelines.run import check_config, train
from mmrl.policies.language.spans import character_spans, row_spans
from mmrl.randomness import Key
from mmrl.record import Batch, Request, Scores
from mmrl.rewards.panel import RewardPanel
from mmrl.stages import STAGES, registered
from mmrl.training.made import attach_columns
from tests.training.test_trainer import make_trainer
from tests.training.tiny import make_policy, make_prompts, score_vowels

BASE = {"policy": {"model": "asset:tiny_vlm"}, "data": {"train": "world:stills?split=train&size=64"}}
ACCURACY = {"name": "accuracy"}


def config(recipe: str, *changes: str, rewards=(ACCURACY,), **sections):
    return read_config({**BASE, "recipe": recipe, "rewards": list(rewards), **sections}, changes, "vlm")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("dypo", r"expert \(B,\), which group 'dypo_routing' and .* read; it takes rollout=.*demonstrations"),
        (
            "a_lol",
            r"reference_value \(B,\), .* takes rollout=reference_value, or the data set, .* data.numbers",
        ),
        ("gigpo", r"segment \(B, T\).*; nobody makes the column state"),
        ("vcpo", r"sampler_log_probs \(B, T\).* it takes policy\.old_log_probs=trainer"),
        ("grpo", r"flagged_tokens \(B, T\), which credit 'perceval' reads; it takes a reward .*columns: \[flagged"),
    ],
)
def test_a_recipe_whose_columns_nobody_makes_is_refused_at_configuration(recipe, message):
    with pytest.raises(ConfigError, match=message):
        bare = ("rollout=[]", "policy.old_log_probs=sampler", "environment=null")
        check_config(config(recipe, *bare, *(["objective.credit=perceval"] if recipe == "grpo" else [])), {})


def test_a_declared_maker_is_enough():
    judge = {"name": "format", "weight": 0, "columns": ["flagged_tokens"]}
    check_config(config("perceval", rewards=(ACCURACY, judge)), {})
    check_config(config("perceval"), {"flagged_tokens": "a function"})
    check_config(config("dypo", "rollout=demonstrations"), {})
    check_config(config("a_lol", "data.numbers=[reference_value]"), {})


def test_what_a_function_reads_may_depend_on_its_parameters():
    with pytest.raises(ConfigError, match=r"segment.*name: sentences, weight: 0, columns: \[segment\]"):
        check_config(config("grpo", "objective.ratio=segment"), {})
    check_config(config("grpo", "objective.ratio=segment", "objective.ratio.separators=[13, 30]"), {})


def test_every_column_that_a_shipped_function_reads_is_in_the_table():
    read = {name for f in registered() for name in f.columns()}
    assert {"expert", "segment", "success"} <= read <= COLUMNS.keys()
    for name in read:
        assert COLUMNS[name].makers or name in Batch.__dataclass_fields__, name
    assert {f.stage for f in registered()} <= set(STAGES)


def test_numbers_of_the_data_set_are_counted_when_it_is_opened(tmp_path):
    prompts = make_prompts(32)
    for prompt in prompts[:3]:
        prompt.columns["reference_value"] = 0.5
    run = config("a_lol", "data.numbers=[reference_value]", f"run_dir={tmp_path}")
    with pytest.raises(DataError, match=r"reference_value: a number in 3 of the first 32 rows .* advantage 'a_lol'"):
        train(run, prompts=prompts, score=score_vowels, policy=make_policy())


def test_demonstrations_that_no_row_has_are_refused_when_the_data_is_opened(tmp_path):
    run = config("dypo", "rollout=demonstrations", f"run_dir={tmp_path}")
    with pytest.raises(DataError, match=r"demonstrations: in 0 of the first 32 rows .* rollout 'demonstrations'"):
        train(run, prompts=make_prompts(32), score=score_vowels, policy=make_policy())


def test_a_column_that_is_not_delivered_is_refused_before_the_update(tmp_path):
    trainer = make_trainer(tmp_path, recipe="perceval", steps=1)
    with pytest.raises(ConfigError, match=r"credit 'perceval' reads 'flagged_tokens'.* It takes a reward"):
        trainer.train()
    assert trainer.updates == 0


def test_lists_that_a_reward_does_not_declare_are_refused_with_the_key_that_does():
    def judge(completions):
        return [{"score": 1.0, "flagged_tokens": [[0, 1]]} for _ in completions]

    with RewardPanel([judge]) as panel, pytest.raises(RewardError, match=r"columns: \[flagged_tokens\]"):
        panel.score(["a"], make_prompts(1))


def flag_first_letter(completions):
    """Worth the share of vowels; the first letter is flagged."""
    return [
        {"score": sum(c in "aeiou" for c in text) / max(len(text), 1), "flagged_tokens": [[0, 1]] if text else []}
        for text in completions
    ]


def test_spans_of_characters_become_tokens_and_train(tmp_path):
    spec = {"name": f"{__file__}:flag_first_letter", "columns": ["flagged_tokens"], "isolated": False}
    with RewardPanel([spec]) as panel:
        assert panel.makes == {"flagged_tokens": "reward 'flag_first_letter'"}
        trainer = make_trainer(tmp_path, recipe="perceval", score=panel.score, steps=1)
        collected = trainer.collector.collect(0)
        rollouts = collected.rollouts
        flagged = rollouts.columns["flagged_tokens"]
        written = [r for r, text in enumerate(rollouts.outputs) if text]
        assert written and all(1 <= int(flagged[r].sum()) < int(rollouts.length[r]) + 1 for r in written)
        assert (flagged * ~rollouts.mask).sum() == 0
        assert trainer.train_step()["credit/perceval/reweighted"] > 0


def scores_with(column: str, values: list) -> Scores:
    reward = torch.zeros(len(values))
    return Scores({"r": reward}, reward, reward, columns={column: values})


def rollouts_of_two():
    rollouts = make_policy().rollout([Request(make_prompts(1)[0], 2, 0)], Key(0, 0))
    rollouts.reward = torch.zeros(2)
    return rollouts


def test_numbers_fit_the_actions_or_the_row_is_unscored_and_counted():
    policy, rollouts = make_policy(), rollouts_of_two()
    length = rollouts.length.tolist()
    causes = attach_columns(rollouts, scores_with("segment", [list(range(length[0])), [1, 2, 3] * 9]), policy)
    assert rollouts.columns["segment"][0, : length[0]].tolist() == list(range(length[0]))
    assert rollouts.columns["segment"][1].tolist() == [-1] * rollouts.mask.shape[1], "filled with none"
    assert rollouts.columns["segment"].dtype == torch.long
    assert rollouts.reward.isnan().tolist() == [False, True]
    assert causes == {f"segment: 27 numbers for {length[1]} actions": 1}


def test_what_is_added_up_stands_on_the_last_token_of_its_span():
    policy, rollouts = make_policy(), rollouts_of_two()
    whole = [[[0, len(text), 0.75]] for text in rollouts.outputs]
    assert not attach_columns(rollouts, scores_with("action_reward", whole), policy)
    written = [0.75 if text else 0.0 for text in rollouts.outputs]
    assert rollouts.columns["action_reward"].sum(1).tolist() == written and any(written)
    attach_columns(rollouts, scores_with("segment", [[[0, len(t), 4]] if t else [] for t in rollouts.outputs]), policy)
    ended = [row for row, text in enumerate(rollouts.outputs) if text]
    assert all((rollouts.columns["segment"][row][rollouts.mask[row]] == 4).all() for row in ended), "the end token too"


def test_one_number_a_row_is_a_column_of_rows():
    policy, rollouts = make_policy(), rollouts_of_two()
    assert not attach_columns(rollouts, scores_with("reference_value", [0.25, 0.5]), policy)
    assert rollouts.columns["reference_value"].tolist() == [0.25, 0.5]


def test_character_spans_cover_the_text_and_share_split_characters():
    pieces = {1: b"he", 2: b"llo ", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b"", 6: b"!"}

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    ids = [1, 2, 3, 4, 5, 6]
    assert character_spans(decode, ids, decode(ids)) == [(0, 2), (2, 6), (6, 7), (6, 7), (7, 7), (7, 8)]


def test_character_spans_of_a_real_tokenizer_rebuild_its_text():
    policy, rollouts = make_policy(), rollouts_of_two()
    for row, text in enumerate(rollouts.outputs):
        spans = row_spans(policy.processor.tokenizer, rollouts, row)
        assert len(spans) == int(rollouts.length[row])
        assert all(a[1] == b[0] or a == b for a, b in itertools.pairwise(spans))
        assert not spans or spans[-1][1] == len(text)


def test_plan_lists_each_column_with_its_maker():
    judge = {"name": "format", "weight": 0, "columns": ["flagged_tokens"]}
    text = plan_run(config("perceval", rewards=(ACCURACY, judge)))
    assert "flagged_tokens (B, T): reward 'format', for credit 'perceval'" in text
    assert "log_probs: a pass with old weights under patch_black" in plan_run(config("vppo"))


def test_methods_say_of_each_recipe_whether_it_trains_and_what_is_missing():
    recipes = {m["name"]: m for m in methods_json() if m["recipe"]}
    assert recipes["vppo"]["trainable"] and recipes["vppo"]["missing"] == []
    assert recipes["perceval"]["makers"] == {"flagged_tokens": ["reward"]}
    assert recipes["soft_grpo"]["trainable"] and not recipes["soft_grpo"]["asks"]
    asked_for = {
        "opd": "policy.teacher.model=NAME",
        "essa": "policy.adapter=FOLDER",
        "teacher_answers": "policy.teacher",
        "perceval": "url and model in the options of reward 'perceval'",
    }
    for name, asked in asked_for.items():
        assert recipes[name]["trainable"] and asked in " ".join(recipes[name]["asks"]), name
    assert recipes["rlvmr"]["trainable"] and set(recipes["rlvmr"]["makers"]) >= {"segment", "tag", "action_reward"}
    for name in ("hill", "tgrl", "grao", "dypo", "expo", "otr", "guide", "calibrl"):
        assert recipes[name]["trainable"], name
