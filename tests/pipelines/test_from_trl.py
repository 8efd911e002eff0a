"""Coming from TRL and others: their names are complete and lead somewhere, and a script becomes a run of ours."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from mmrl import foreign
from mmrl.errors import ConfigError
from mmrl.foreign import TABLES, trl
from mmrl.objective import Objective
from mmrl.pipelines.config import read_config
from mmrl.pipelines.from_trl import AGGREGATIONS, convert, convert_file

SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
dataset = load_dataset("lmms-lab/multimodal-open-r1-8k-verified", split="train")


def short(completions, **kwargs):
    return [float(len(c[0]["content"]) < 100) for c in completions]


args = GRPOConfig(
    output_dir="out", learning_rate=1e-5, max_completion_length=1024, num_generations=8,
    per_device_train_batch_size=4, gradient_accumulation_steps=16, num_iterations=2, max_steps=400,
    loss_type="dr_grpo", beta=0.04, epsilon_high=0.28, bf16=True, use_vllm=True, top_p=0.95,
    deepspeed="zero3.json", save_steps=100, report_to=["wandb"], reward_weights=[1.0, 0.5], warmup_steps=N,
)
trainer = GRPOTrainer(
    model=MODEL, args=args, reward_funcs=[think_format_reward, short], train_dataset=dataset,
    peft_config=LoraConfig(r=64, lora_alpha=16, target_modules=["q_proj", "v_proj"], bias="none"),
)
trainer.train()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_every_field_of_trl_has_a_place():
    config = pytest.importorskip("trl").GRPOConfig
    names = {f.name for f in dataclasses.fields(config)}
    table = trl.TABLE
    assert names <= {*table.keys, *table.ways, *table.absent}
    assert len(names) > 150


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.project)
def test_keys_of_a_table_are_keys_of_ours(table):
    """Each is set in a configuration of the modality, with a value that its section takes or names as wrong."""
    modality = "flow" if table.project == "flow_grpo" else "vlm"
    base = {"policy": {"model": f"asset:tiny_{modality}"}, "data": {"train": "x"}, "rewards": ["accuracy"]}
    for name, key in table.keys.items():
        if key.startswith("policy.lora."):
            key = "policy.lora={" + key.removeprefix("policy.lora.") + ": 1}"
        try:
            config = read_config(base, [key if "=" in key else f"{key}=1"], modality)
            if key.startswith("policy."):
                config.policy_settings()
        except ConfigError as error:
            assert "unknown" not in str(error), (name, key, error)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("deepspeed", "TRL's deepspeed is not here: DeepSpeed cannot be stepped exactly"),
        ("num_generations", "what TRL calls num_generations is training.group_size"),
        ("ppo_mini_batch_size", "what verl calls ppo_mini_batch_size is training.updates.count"),
        ("rollout_batch_size", "what EasyR1 calls rollout_batch_size is training.prompts_per_step"),
        ("noise_level", "what flow_grpo calls noise_level is policy.sampler.level"),
        ("name", ""),
        ("nonsense", ""),
    ],
)
def test_names_of_others_are_answered(key, says):
    assert foreign.answer(key).startswith(says) and bool(foreign.answer(key)) == bool(says)


def test_weights_go_where_normalised_rewards_are_added():
    """TRL's normalize_then_sum weighs what it normalised."""
    asked = {"reward_funcs": ["accuracy_reward", "my.py:short"], "reward_weights": [1.0, 0.5]}
    made = convert(asked | {"multi_objective_aggregation": "normalize_then_sum"}).config
    assert made["objective"]["advantage"] == {"name": "gdpo_decoupled", "weights": {"accuracy": 1.0, "short": 0.5}}


def test_a_script_becomes_a_configuration(script):
    """4 x 16 completions a generation are 8 groups of 8: one optimizer step, twice over."""
    made = convert_file(script)
    config = read_config(yaml.safe_load(made.to_yaml()), [], "vlm")
    settings, training = config.policy_settings(), config.training
    assert settings.model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert (settings.dtype, settings.autocast) == ("float32", "bfloat16")  # as TRL 1.16 loads and trains
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.targets) == (64, 16, ["q_proj", "v_proj"])
    assert settings.max_new_tokens == 1024 and config.run_dir == "out"
    assert config.data.train == "lmms-lab/multimodal-open-r1-8k-verified"
    assert (training.prompts_per_step, training.group_size, training.micro_batch_size) == (8, 8, 4)
    assert (training.updates.count, training.updates.epochs, training.steps) == (1, 2, 200)
    assert training.learning_rate == 1e-5 and training.schedule == "linear" and training.save_every == 100
    assert [(r.name, r.weight, r.style) for r in config.rewards] == [
        ("format", 1.0, "trl"), (f"{script}:short", 0.5, "trl_chat")
    ]  # fmt: skip
    assert config.rewards[0].options == {"kind": "think"} and config.tracking[0].name == "wandb"
    objective = config.objective.model_dump()
    assert objective["aggregation"] == {"name": "constant", "empty": "count"}
    assert objective["trust_region"] == {"name": "clip", "low": 0.2, "high": 0.28}
    assert objective["regularizers"] == [{"name": "kl", "coefficient": 0.04, "importance": True}]


@pytest.mark.parametrize("words", ["top_p=0.95: not here", "deepspeed='zero3.json': not here", "use_vllm=True: ",
                                   "warmup_steps=N: computed in the script", "LoraConfig bias='none'",
                                   "importing it trains", "1 process "])  # fmt: skip
def test_what_is_not_carried_over_is_said(script, words):
    assert any(words in note for note in convert_file(script).notes)
    assert convert_file(script).to_yaml().startswith("# ")


@pytest.mark.parametrize("loss", sorted(AGGREGATIONS))
def test_every_loss_of_trl_is_an_objective(loss):
    made = convert({"loss_type": loss, "scale_rewards": "batch", "delta": 3.0, "mask_truncated_completions": True})
    config = read_config(merged := made.config | {"policy": {"model": "m"}, "data": {"train": "x"}}, [], "vlm")
    assert Objective.of(config.objective) and merged["objective"]["group"] == ["overlong_filter"]


def test_batches_by_processes_and_in_several_updates():
    """8 GPUs x 2 x 4 steps of accumulation; 8 steps a generation: two updates of 64 completions each."""
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 8,
             "num_generations": 16, "max_steps": 100}  # fmt: skip
    training = convert(given, processes=8).config["training"]
    assert (training["prompts_per_step"], training["group_size"]) == (8, 16)
    assert training["updates"] == {"count": 2, "epochs": 1} and training["steps"] == 50
    odd = convert({"per_device_train_batch_size": 3, "num_generations": 8})
    assert any("not whole groups of 8" in note for note in odd.notes)


@pytest.mark.parametrize(
    ("given", "lora"),
    [({"use_peft": True}, (16, 32)), ({"use_peft": True, "lora_r": 4}, (4, 32)), ({"lora_r": 4}, None), ({}, None)],
)
def test_adapters_are_those_of_its_command_line(given, lora):
    """`use_peft` decides, and alone brings TRL's ranks; ranks without it are said to mean nothing."""
    made = convert(given)
    found = made.config.get("policy", {}).get("lora")
    assert (None if found is None else (found["rank"], found["alpha"])) == lora
    assert any("without use_peft" in note for note in made.notes) == ("lora_r" in given and lora is None)


def test_adapters_of_a_script_have_the_defaults_of_peft(tmp_path):
    path = tmp_path / "t.py"
    path.write_text("GRPOTrainer(model='m', args=GRPOConfig(), reward_funcs=[], peft_config=LoraConfig())")
    assert convert_file(path).config["policy"]["lora"] == {"rank": 8, "alpha": 8, "dropout": 0.0}


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, {"dtype": "float32", "autocast": "bfloat16", "gradient_checkpointing": True}),
        ({"bf16": False, "gradient_checkpointing": False}, {"dtype": "float32", "gradient_checkpointing": False}),
        ({"fp16": True}, {"dtype": "float32", "autocast": "float16", "gradient_checkpointing": True}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "gradient_checkpointing": True}),
        (
            {"model_init_kwargs": {"dtype": "auto", "attn_implementation": "eager"}},
            {"dtype": "bfloat16", "gradient_checkpointing": True, "attention": "eager"},
        ),
        (
            {"load_in_4bit": True, "bf16": False},
            {"dtype": "float32", "quantize": "nf4", "gradient_checkpointing": True},
        ),
    ],
)
def test_defaults_that_are_not_ours_are_written_out(given, policy):
    assert convert(given).config["policy"] == policy


def test_yaml_of_its_command_line(tmp_path, mmrl):
    path = tmp_path / "grpo.yaml"
    path.write_text(
        "model_name_or_path: Qwen/Qwen2.5-VL-3B-Instruct\ndataset_name: data\nuse_peft: true\nlora_r: 8\n"
        "reward_funcs: [accuracy_reward]\nnum_train_epochs: 2\nper_device_train_batch_size: 8\nnonsense: 1\n"
    )
    done = mmrl("from-trl", path)
    assert done.code == 0, done.err
    config = yaml.safe_load(done.out)
    assert config["rewards"] == [{"name": "accuracy"}] and config["policy"]["lora"] == {"rank": 8, "alpha": 32}
    assert config["training"]["data_epochs"] == 2 and config["data"]["task"] == "math"
    assert "# nonsense=1: not a name of GRPOConfig" in done.out
    read_config(config, [], "vlm")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("a.py", "print(1)", "no GRPOConfig"), ("a.py", "def (", "not a Python script"), ("a.txt", "", "expected a TRL"),
     ("a.yaml", "- 1", "expected keys and values"), ("a.ipynb", "{}", "not a Python script or notebook"),
     ("a.py", "RLOOTrainer(model='m')", r"RLOOTrainer is there")],
)  # fmt: skip
def test_what_is_no_trl_run_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        convert_file(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        convert_file(tmp_path / "none.py")


LOADED = """
from datasets import load_dataset
MODEL, OUT = "Qwen/Qwen3-VL-4B-Instruct", "out"
SYSTEM = "Think first."
bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                          bnb_4bit_compute_dtype=torch.float16)
model = Qwen3VLForConditionalGeneration.from_pretrained(MODEL, dtype="float32", device_map="auto",
                                                        quantization_config=bits)
train = load_dataset("open/rows", "easy", split="train[:5%]").map(ask)
def ask(row):
    return {"prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["problem"]}]}
args = GRPOConfig(output_dir=OUT, fp16=True, optim="paged_adamw_8bit", report_to="trackio", max_steps=5,
                  chat_template_kwargs={"enable_thinking": False}, lr_scheduler_type="cosine_with_min_lr",
                  lr_scheduler_kwargs={"min_lr_rate": 0.1}, warmup_steps=0.05)
trainer = GRPOTrainer(model, reward_funcs=accuracy_reward, args=args, train_dataset=train,
                      eval_dataset=load_dataset("open/rows", split="test"), peft_config=get_peft_config(m),
                      tools=[look])
model = Qwen3VLForConditionalGeneration.from_pretrained("out")
"""


@pytest.fixture(params=[".py", ".ipynb"])
def loaded(request, tmp_path):
    path = tmp_path / f"train{request.param}"
    cells = [{"cell_type": "markdown", "source": ["# GRPO"]}]
    cells += [{"cell_type": "code", "source": ["!pip install trl\n"]}, {"cell_type": "code", "source": [LOADED]}]
    path.write_text(LOADED if request.param == ".py" else json.dumps({"cells": cells}))
    return convert_file(path)


def test_a_model_that_the_script_loads_and_what_it_is_packed_in(loaded):
    """The model the trainer gets, not the one that is loaded after it; splits and subsets go into the name."""
    assert loaded.config["policy"] == {
        "dtype": "float32", "autocast": "float16", "quantize": "nf4", "thinking": False,
        "gradient_checkpointing": True, "model": "Qwen/Qwen3-VL-4B-Instruct",
    }  # fmt: skip
    assert loaded.config["data"] == {
        "task": "math", "system": "Think first.", "train": "open/rows?config=easy", "eval": "open/rows?split=test",
    }  # fmt: skip
    training = loaded.config["training"]
    assert (training["optimizer"], training["schedule"], training["schedule_floor"]) == (
        {"name": "8bit"},
        "cosine",
        0.1,
    )
    assert loaded.config["run_dir"] == "out" and loaded.config["rewards"] == [{"name": "accuracy"}]


@pytest.mark.parametrize("words", [
    "split='train[:5%]': a part of a split is data.limit", "bnb_4bit_compute_dtype='float16': policy.autocast",
    "tools=[look]: not carried over; environment", "peft_config=get_peft_config(m): computed in the script",
    "report_to=['trackio']: not here", "rows are changed in the script by map(ask)", "warmup_steps=0.05: a share",
])  # fmt: skip
def test_nothing_of_it_is_lost_without_a_word(loaded, words):
    assert sum(words in note for note in loaded.notes) == 1


class TestForeignSections:
    """Real files: the names of a project's configuration, under its own sections."""

    NAMES = json.loads((Path(__file__).parent / "foreign_names.json").read_text())

    @pytest.mark.parametrize("project", ["EasyR1", "verl", "flow_grpo"])
    def test_every_name_is_answered(self, project):
        (table,) = [t for t in TABLES if t.project == project]
        assert len(self.NAMES[project]) >= 40
        assert not [n for n in self.NAMES[project] if not table.says(n) and not table.lacks(n)]

    @pytest.mark.parametrize(("override", "modality", "says"), [
        ("worker.rollout.n=5", "vlm", "what EasyR1 calls worker.rollout.n is training.group_size"),
        ("train.learning_rate=1", "flow", "what flow_grpo calls train.learning_rate is training.learning_rate"),
        ("actor_rollout_ref.rollout.n=1", "vlm", "what verl calls actor_rollout_ref.rollout.n is training.group_size"),
        ("actor_rollout_ref.actor.megatron.x=1", "vlm", r"verl's .*megatron.x is not here: sharding"),
        ("data.filter_overlong_prompts=true", "vlm", r"filter_overlong_prompts is not here: a prompt over"),
        ("data.custom_cls.path=x", "vlm", "what verl calls data.custom_cls.path is data.columns"),
        ("training.quantization_config.load_in_4bit=true", "vlm", "what TRL calls load_in_4bit is policy.quantize=nf4"),
    ])  # fmt: skip
    def test_under_any_section(self, override, modality, says):
        with pytest.raises(ConfigError, match=says):
            read_config("demo", [override], modality)

    def test_a_whole_file_is_answered_by_its_own_project(self, tmp_path):
        path = tmp_path / "easyr1.yaml"
        path.write_text(
            "algorithm: {adv_estimator: grpo, disable_kl: false, online_filtering: true, kl_coef: 0.1, x: 1}\n"
        )
        with pytest.raises(ConfigError, match=r"EasyR1 calls algorithm.online_filtering is rollout=dynamic_sampling"):
            read_config(str(path), [], "vlm")


def test_a_configuration_of_another_project_is_answered_rather_than_converted(tmp_path):
    (tmp_path / "verl.yaml").write_text("actor_rollout_ref: {rollout: {n: 8}}\ndata: {train_batch_size: 8}\n")
    with pytest.raises(ConfigError, match=r"not a configuration of TRL's; what verl calls .*rollout.n is training"):
        convert_file(tmp_path / "verl.yaml")
