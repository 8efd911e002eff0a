"""The configuration of language policies: every default with how to choose it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mmrl.errors import ConfigError
from mmrl.policies import quantized
from mmrl.policies.adapters import LoraConfig
from mmrl.policies.language.likelihoods import likelihood_class
from mmrl.policies.language.teacher import TeacherConfig
from mmrl.policies.quantized import Quantize
from mmrl.precision import DTYPES, Autocast, Precision
from mmrl.settings import Section

LOCAL = "local"


class LanguagePolicyConfig(Section):
    """Which model acts, how it is trained, and how it samples.

    model                   checkpoint directory or hub name
    adapter                 PEFT adapter to start from; it is also the reference then
    dtype                   of the weights
    autocast                dtype of matrix products over float32 weights; null follows the weights. Sampling and
                            scoring use it alike, so leave accelerate's own mixed precision off
    quantize                the frozen text decoder under adapters: nf4 (four bits, QLoRA), int8, or null; vision tower
                            and head keep `dtype`, and packed layers compute in `autocast`, or else `dtype`. Needs the
                            extra `qlora`. A merged export is unpacked first, in `dtype`
    attention               transformers' attention backend
    lora                    adapters, or null for full fine-tuning
    train_vision            the vision tower too; null: yes in full fine-tuning, no with LoRA
    gradient_checkpointing  less memory, about a third more time
    max_new_tokens          responses are cut there and flagged as "length"
    max_extent              tokens of a response with what an environment showed in it: what does not fit ends the
                            response as "length"; null: as many as the model has positions
    max_prompt_tokens       a longer prompt is an error: prompts are never cut
    temperature             of sampling and of every log-prob
    top_p, top_k            must stay 1 and 0: truncated sampling biases the importance ratios
    chat_template           a jinja file, in place of the checkpoint's template
    min_pixels, max_pixels  area an image is resized into; null keeps the checkpoint's
    stop, stop_tokens       strings and ids that end a response besides the checkpoint's own end tokens
    thinking                `enable_thinking` of chat templates that know it
    trust_remote_code       run code that comes with the checkpoint
    shared_prompt           how a group shares its prompt in scoring: on (or packed) in one packed row, two_calls from
                            the prompt's cache, off in plain rows; auto takes the fastest that is exact for the model
    reuse_prefill           keep the graph of the rollout's pass over a prompt for the update: auto where the batch
                            before scored its first update in one pass, which holds those graphs anyway, and for as many
                            prompts as that update has; on whatever memory it takes; off runs prompts again, which is
                            the same. Not with gradient checkpointing, sharded weights, LoRA dropout or sliding windows:
                            auto is off then, on an error
    pass_tokens             response tokens whose activations an update holds at once, where its rows would go through
                            in one pass: more go in several, which share the kept pass over their prompts. auto: 4096
                            on a CPU, all of them elsewhere; null: all of them. A longer row goes alone
    reuse_vision            keep what a frozen vision tower made of each prompt between passes; false saves the memory
                            (tokens x hidden size per prompt) and runs the tower in every pass
    native_steps            write float32 responses on a CPU by a step in C, compiled once by the machine's compiler;
                            false, or where that cannot be (`rows/fell_back` says why): by PyTorch's kernels. With LoRA
                            it holds copies of the adapted weights while it writes, at most a quarter of the memory
    decode_rows             responses written at once; lower it if the rollout runs out of memory
    logit_rows              rows of logits alive at once in scoring; lower it for large vocabularies
    likelihood              what is scored of a response: "tokens", or one of your own, `my.py:Mine`
    engine                  what writes responses: local, with the module that trains; vllm; or a class of your own with
                            weights of its own, file.py:Class or package.module:Class. A name, or {name: vllm, mode:
                            server, ...} with the engine's own settings (docs/engines.md)
    old_log_probs           whose log-probs a response is trained on: sampler, those it was written with, of an engine
                            that is exact; trainer, those of one more pass, and the engine's own go into the column
                            sampler_log_probs, which recipes that correct the difference read
    engine_gap              largest mean gap between the two with old_log_probs: trainer; past it the run stops
    teacher                 another policy of the same vocabulary, which methods of distillation read: {model: NAME},
                            {adapter: FOLDER} on the policy's own model, or both; null: none
    reference_device        where the frozen reference of full fine-tuning lives: "same" or "cpu"
    """

    model: str
    adapter: str | None = None
    dtype: Precision = "float32"
    autocast: Autocast | None = None
    quantize: Quantize | None = None
    attention: str = "sdpa"
    lora: LoraConfig | None = None
    train_vision: bool | None = None
    gradient_checkpointing: bool = False
    max_new_tokens: int = Field(512, ge=1)
    max_extent: int | None = Field(None, ge=1)
    max_prompt_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = 1.0
    top_k: int = 0
    chat_template: str | None = None
    min_pixels: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    stop: list[str] = []
    stop_tokens: list[int] = []
    thinking: bool | None = None
    trust_remote_code: bool = False
    shared_prompt: Literal["auto", "on", "off", "packed", "two_calls"] = "auto"
    reuse_prefill: Literal["auto", "on", "off"] = "auto"
    pass_tokens: int | Literal["auto"] | None = "auto"
    reuse_vision: bool = True
    native_steps: bool = True
    decode_rows: int = Field(64, ge=1)
    logit_rows: int = Field(1024, ge=1)
    likelihood: str = "tokens"
    engine: str | dict[str, Any] = LOCAL
    old_log_probs: Literal["sampler", "trainer"] = "sampler"
    engine_gap: float = Field(0.03, gt=0)
    teacher: TeacherConfig | None = None
    reference_device: Literal["same", "cpu"] = "same"

    @model_validator(mode="after")
    def _likelihood_is_known(self) -> LanguagePolicyConfig:
        engines = likelihood_class(self.likelihood).engines
        if engines is not None and self.engine_name not in engines:
            raise ConfigError(
                f"policy.likelihood={self.likelihood!r} reads what engine {' or '.join(engines)} keeps of a row, and "
                f"policy.engine={self.engine_name!r} keeps none; write policy.likelihood=tokens"
            )
        return self

    @property
    def engine_name(self) -> str:
        """`policy.engine` without its settings."""
        return self.engine if isinstance(self.engine, str) else str(self.engine.get("name", ""))


def load_model(config: LanguagePolicyConfig) -> Any:
    """The checkpoint of `config.model`, as its class of transformers. One that lacks weights, or has them of another
    shape, is refused: they would be drawn at random."""
    try:
        model, told = _loaded(config)
    except RuntimeError as error:  # weights that transformers does not convert; its report is printed above
        raise ConfigError(f"model: cannot load {config.model!r}: {str(error).splitlines()[0]}") from None
    _refuse_random(config.model, type(model).__name__, told)
    return quantized.pack(model, packed_parts(model), config)


def _loaded(config: LanguagePolicyConfig) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers tells of its weights."""
    from transformers import AutoModelForImageTextToText

    options = {"dtype": DTYPES[config.dtype], "trust_remote_code": config.trust_remote_code}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused here, with their shapes
    load = partial(AutoModelForImageTextToText.from_pretrained, config.model, **options, **told)
    try:
        return load(attn_implementation=config.attention)
    except ValueError as refused:
        if "attention implementation" not in str(refused):
            raise
        # Not all of it knows this attention: encoders may keep another, as transformers chooses, the decoder may not.
        model, told = load()
        if model.config.get_text_config()._attn_implementation != config.attention:
            raise
        return model, told


def _refuse_random(name: str, kind: str, told: dict[str, Any]) -> None:
    """ConfigError for weights that did not come from the checkpoint."""
    for key, stored, wanted in sorted(told["mismatched_keys"]):
        raise ConfigError(
            f"model: {name!r} has {key} of shape {tuple(stored)}, and {kind} by its config.json {tuple(wanted)}; take "
            "a checkpoint whose configuration is that of its weights"
        )
    if absent := sorted(told["missing_keys"]):
        raise ConfigError(
            f"model: {name!r} lacks {len(absent)} of the weights that {kind} has, such as {', '.join(absent[:2])}; "
            "they would be random. Take a checkpoint that was saved from this class"
        )


def packed_parts(model: Any) -> list[Any]:
    """What `quantize` packs: the text decoder."""
    return [model.get_decoder()]


def on_meta(model: str, trust_remote_code: bool = False) -> Any:
    """The class of transformers that a checkpoint is loaded as, built from its configuration without values."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mmrl.policies.language.families import check_model_type

    trusted = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(model, **trusted)
    check_model_type(config)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, **trusted)


def load_processor(config: LanguagePolicyConfig) -> Any:
    """The processor of `config.model`, with the chat template that was asked for, or its own, or its tokenizer's."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    tokenizer = getattr(processor, "tokenizer", None)
    if config.chat_template is not None:
        processor.chat_template = _template(config.chat_template)
    elif getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    if processor.chat_template is None:
        raise ConfigError(
            f"model: neither the processor nor the tokenizer of {config.model!r} has a chat template; name a jinja "
            "file that writes messages and a placeholder for each medium: policy.chat_template=FILE"
        )
    return processor


def _template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"policy.chat_template: cannot read {file!r} as text: {error}") from None


def without_noise(model: Any) -> Any:
    """`model` with dropout layers and dropped paths off: an update would see noise that the rollout did not have."""
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        for name, value in vars(layer).items():
            if isinstance(value, float) and ("dropout" in name or name == "drop_prob"):
                setattr(layer, name, 0.0)
    return model
