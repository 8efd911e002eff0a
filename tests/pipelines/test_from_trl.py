"""Coming from TRL and others: their names are complete and lead somewhere, and a script becomes a run of ours."""

import dataclasses

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


def test_a_script_becomes_a_configuration(script):
    """4 x 16 completions a generation are 8 groups of 8: one optimizer step, twice over."""
    made = convert_file(script)
    config = read_config(yaml.safe_load(made.to_yaml()), [], "vlm")
    settings, training = config.policy_settings(), config.training
    assert settings.model == "Qwen/Qwen2.5-VL-3B-Instruct" and settings.dtype == "bfloat16"
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.targets) == (64, 16, ["q_proj", "v_proj"])
    assert settings.max_new_tokens == 1024 and config.run_dir == "out"
    assert config.data.train == "lmms-lab/multimodal-open-r1-8k-verified"
    assert (training.prompts_per_step, training.group_size, training.micro_batch_size) == (8, 8, 4)
    assert (training.updates.count, training.updates.epochs, training.steps) == (1, 2, 200)
    assert training.learning_rate == 1e-5 and training.schedule == "linear" and training.save_every == 100
    assert [(r.name, r.weight) for r in config.rewards] == [("format", 1.0), (f"{script}:short", 0.5)]
    objective = config.objective.model_dump()
    assert objective["aggregation"] == {"name": "constant", "empty": "count"}
    assert objective["trust_region"] == {"name": "clip", "low": 0.2, "high": 0.28}
    assert objective["regularizers"] == [{"name": "kl", "coefficient": 0.04, "importance": True}]


@pytest.mark.parametrize("words", ["top_p=0.95: not here", "deepspeed='zero3.json': not here", "use_vllm=True: ",
                                   "warmup_steps=N: computed in the script", "LoraConfig bias='none'", "as texts here",
                                   "1 process "])  # fmt: skip
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
        ({}, {"dtype": "bfloat16", "gradient_checkpointing": True}),
        ({"bf16": False, "gradient_checkpointing": False}, {"gradient_checkpointing": False}),
        ({"fp16": True}, {"dtype": "float32", "autocast": "float16", "gradient_checkpointing": True}),
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
    assert "# num_train_epochs=2: set training.steps to 2 x rows / 1" in done.out
    assert "# nonsense=1: not a name of GRPOConfig" in done.out
    read_config(config, [], "vlm")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("a.py", "print(1)", "no GRPOConfig"), ("a.py", "def (", "not a Python script"), ("a.txt", "", "expected a TRL"),
     ("a.yaml", "- 1", "expected keys and values")],
)  # fmt: skip
def test_what_is_no_trl_run_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        convert_file(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        convert_file(tmp_path / "none.py")
