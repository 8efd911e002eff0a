"""Values that a user may well write, and odd ones: each is refused in one line that names key and remedy."""

import pytest

from mmrl.errors import MMRLError
from mmrl.pipelines.config import read_config
from mmrl.pipelines.plan import plan_run

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
TWICE = "recipe: grpo\npolicy: {model: asset:tiny_vlm}\ntraining: {steps: 5}\ntraining: {group_size: 4}\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.betas=[1,1]", r"training\.betas\.0: .*less than 1"),
        ("training.weight_decay=-1", r"training\.weight_decay: .*greater than or equal to 0"),
        ("training.max_grad_norm=0", r"training\.max_grad_norm: .*greater than 0"),
        ("training.max_grad_norm=-1", r"training\.max_grad_norm: .*greater than 0"),
        ("training.learning_rate=1e10", r"training\.learning_rate: .*less than or equal to 1"),
        ("training.learning_rate=.nan", r"training\.learning_rate: .*finite"),
        ("training.watchdog_seconds=.inf", r"training\.watchdog_seconds: .*finite"),
        ("reward_run.timeout=.inf", r"reward_run\.timeout: .*finite"),
        ("policy.dtype=float16", r"float16 would train float16 weights.*policy\.autocast=float16"),
        ("objective.regularizers=[{name: kl, coefficient: null}]", r"coefficient: expected a finite number, got None"),
        ("objective.trust_region.low=.nan", r"trust_region 'clip': low: expected a finite number"),
        ("objective.advantage.name=[grpo]", r"advantage: name: expected text, got \['grpo'\]"),
        ("recipe={name: dapo}", r"recipe: expected the name of one"),
        ("recipe=[dapo]", r"recipe: expected the name of one"),
        ("run_dir={", r"run_dir: .*in which \{modality\} and \{recipe\} may stand"),
        ("run_dir=" + "x" * 300, r"run_dir: .*255 bytes"),
        ("training.steps=!!float x", r"training\.steps: "),
        ("training.steps=!!timestamp x", r"training\.steps: "),
        ("training.steps=2026-01-01", r"training\.steps: expected text or a number"),
        ("training.steps=" + "9" * 5000, r"training\.steps: "),
        ("training.steps=" + "[" * 3000, r"training\.steps: "),
        ("training..steps=1", r"training\.\.steps: expected key\.sub=value"),
        ("training.run_dir=x", r"demo\.training: unknown key 'run_dir' here; write run_dir$"),
        ("steps=3", r"demo: unknown key 'steps' here; write training\.steps$"),
        ("training.workers=3", r"here; write data\.workers or reward_run\.workers or environment_run\.workers"),
        ("training.output_dir=x", r"unknown key 'output_dir'; what TRL calls output_dir is run_dir$"),
        ("training.steps.x=1", r"override training\.steps: .* is a value, it has no parts"),
    ],
)  # fmt: skip
def test_a_value_is_refused(override, said):
    with pytest.raises(MMRLError, match=said) as refused:
        plan_run(read_config("demo", [override], "vlm"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_entry_of_a_list_of_numbers_can_be_overridden():
    assert read_config("demo", ["training.betas.0=0.8"], "vlm").training.betas[0] == 0.8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"recipe: grpo\n# f\xfcr\n", r"latin\.yaml, line 2: not UTF-8 text"),
        (TWICE.encode(), r"latin\.yaml: not valid YAML: 'training' is given twice, in lines 3 and 4"),
        (b"a: [1\n", r"latin\.yaml: not valid YAML: "),
        (b"- 1\n", r"expected a mapping of sections, got list"),
        (b"? [1]\n: 2\n", r"latin\.yaml: "),
        (BOMB.encode(), r"latin\.yaml: not valid YAML: aliases stand for more than 1,000,000 values"),
        (b"a: &a [*a]\n", r"latin\.yaml: not valid YAML: an alias refers to what it stands in"),
        (b"recipe: grpo\n\tpolicy: {}\n", r"latin\.yaml: not valid YAML: .*cannot start any token"),
        (b"recipe: grpo\x00\n", r"latin\.yaml: not valid YAML: .*special characters"),
    ],
)
def test_a_file_is_refused(tmp_path, content, said):
    (tmp_path / "latin.yaml").write_bytes(content)
    with pytest.raises(MMRLError, match=said) as refused:
        read_config(tmp_path / "latin.yaml", (), "vlm")
    assert "\n" not in str(refused.value)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(MMRLError, match="Is a directory"):
        read_config(tmp_path, (), "vlm")
