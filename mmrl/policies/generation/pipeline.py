"""What a flow policy uses of a diffusers pipeline besides its transformers: loading, text encoders, VAE."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.errors import ConfigError, PolicyError
from mmrl.policies.generation.conditions import ConditionCache, Conditioned, PromptConditions
from mmrl.policies.generation.config import FlowPolicyConfig
from mmrl.policies.generation.families import refuse_other_kinds
from mmrl.policies.generation.families.asking import condition_media
from mmrl.policies.generation.families.base import Generator, moved
from mmrl.policies.quantized import pack
from mmrl.policies.sharding import whole
from mmrl.precision import DTYPES
from mmrl.record import Prompt
from mmrl.shown import tell

GIB = 2**30
VERY_LONG = 10**9


class FrozenParts:
    """Text encoders, VAE and whatever else of a pipeline never trains. They act on the transformer's device."""

    def __init__(self, generator: Generator, config: FlowPolicyConfig):
        self.generator, self.config = generator, config
        self._kept = ConditionCache(int(config.condition_cache * GIB))
        self._negative: PromptConditions | None = None
        for part in self._modules():
            part.requires_grad_(False).eval()

    def _modules(self) -> list[Any]:
        parts = self.generator.pipeline.components.items()
        return [part for name, part in parts if isinstance(part, nn.Module) and name not in self.generator.modules]

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """The frozen parts on the device; back on the CPU afterwards where they are offloaded."""
        for part in self._modules():
            if next(part.parameters()).device != device:
                part.to(device)
        try:
            yield
        finally:
            if self.config.offload and device.type != "cpu":
                for part in self._modules():
                    part.to("cpu")

    def encode(self, prompts: Sequence[Prompt], device: torch.device) -> list[PromptConditions]:
        """The conditions of each prompt, captured once while the cache holds them.

        One at a time: they must not depend on which prompts were encoded together.
        """
        keys = [self._key(prompt) for prompt in prompts]
        found = [self._kept.get(key) for key in keys]
        if all(found):
            return [entry for entry in found if entry is not None]
        fresh: dict[Any, PromptConditions] = {}
        with self.on(device):
            for key, prompt, entry in zip(keys, prompts, found, strict=True):
                if entry is None and key not in fresh:
                    fresh[key] = self._captured(prompt)
        for key, entry in fresh.items():
            self._kept.put(key, entry)
        return [entry or fresh[key] for key, entry in zip(keys, found, strict=True)]

    def _key(self, prompt: Prompt) -> Any:
        return prompt.text, (prompt.id if prompt.images or prompt.videos else None)

    def _captured(self, prompt: Prompt) -> PromptConditions:
        generator = self.generator
        media = condition_media(prompt)
        generator.check_media(prompt.id, media)
        given = moved(generator.conditions(prompt.text, media), "cpu")
        config = self.config
        guided = generator.asked.guided or max(config.reference_guidance, config.eval_guidance or 1) > 1
        if not guided or generator.guides_itself:
            return PromptConditions(given)
        if media:
            return PromptConditions(given, moved(generator.negative(media), "cpu"))
        if self._negative is None:
            self._negative = PromptConditions(moved(generator.negative(), "cpu"))
        return PromptConditions(given, self._negative.given)

    def forget(self, generator: Generator) -> None:
        """Another generator of the same pipeline takes over: what the first one prepared is not its."""
        self.generator, self._negative = generator, None
        self._kept = ConditionCache(self._kept.limit)

    def decode(self, latents: Tensor, conditioned: Conditioned) -> list[Any]:
        """N outputs of `latents (N, ...)`: PIL images, lists of them, or sound."""
        outputs: list[Any] = []
        given, _ = conditioned.listed()
        size = self.config.decode_batch
        with self.on(latents.device):
            for start in range(0, len(latents), size):
                rows = slice(start, start + size)
                outputs += self.generator.decode(latents[rows], given[rows], tiles=self.config.decode_tiles)
        return outputs


def load(config: FlowPolicyConfig) -> tuple[Any, FlowPolicyConfig]:
    """The pipeline that `config.model` names, and the configuration with what it says of text."""
    pipeline = load_pipeline(config)
    return pipeline, _within_its_tokenizers(pipeline, config)


def load_pipeline(config: FlowPolicyConfig) -> Any:
    """The pipeline that `config.model` names, with the transformers of `config.transformer` where they are given."""
    import diffusers

    try:
        # diffusers takes a part saved as absent, such as an SD3 without its T5, only if told again that it is
        listed = diffusers.DiffusionPipeline.load_config(config.model)
        refuse_other_kinds(listed, given=config.transformer is not None)
        parts: dict[str, Any] = {n: None for n, kind in listed.items() if isinstance(kind, list) and kind[0] is None}
        if config.transformer is not None or config.quantize is not None:
            parts |= load_transformers(config)
        # the class itself: the base class ignores parts that are optional in the class, as Wan's transformers are
        kind = getattr(diffusers, str(listed.get("_class_name")), diffusers.DiffusionPipeline)
        return kind.from_pretrained(config.model, dtype=DTYPES[config.dtype], **parts)
    except (OSError, ValueError, AttributeError) as error:
        alone = Path(config.model, "config.json").is_file() and not Path(config.model, "model_index.json").is_file()
        hint = "; is it a transformer alone? Name it in policy.transformer, and the pipeline in policy.model"
        problem = str(error).splitlines()[0] + (hint if alone else "")
        raise ConfigError(f"model: cannot load {config.model!r}: {problem}") from None


def _within_its_tokenizers(pipeline: Any, config: FlowPolicyConfig) -> FlowPolicyConfig:
    """The configuration, its text no longer than the longest that a tokenizer of the pipeline takes: padding past that
    costs a step several times its time and says nothing. Lengths that were asked for stay."""
    own = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    tokenizers = [part for name, part in pipeline.components.items() if "tokenizer" in name]
    asked = config.max_sequence_length is not None or "max_sequence_length" in config.pipeline_options
    if asked or own is None or not tokenizers or None in tokenizers:  # an absent one's text is nothing but padding
        return config
    most = max(getattr(each, "model_max_length", VERY_LONG) for each in tokenizers)
    if most >= (own.default or 0):
        return config
    tell(
        f"texts are padded to {most} tokens, all that the model's tokenizers take, in place of its pipeline's "
        f"{own.default} (policy.max_sequence_length)"
    )
    return config.model_copy(update={"max_sequence_length": most})


def load_transformers(config: FlowPolicyConfig) -> dict[str, Any]:
    """The transformers that `config` starts from, by component name, each of the class the pipeline lists."""
    import diffusers

    listed = diffusers.DiffusionPipeline.load_config(config.model)
    kinds = {n: listed[n][1] for n in ("transformer", "transformer_2") if (listed.get(n) or (None,))[0] is not None}
    if not kinds:
        raise ConfigError(f"model: {config.model!r} has no transformer; mmrl trains flow-matching transformers")
    found = {}
    for name, kind in kinds.items():
        source, options = config.model, {"subfolder": name}
        if config.transformer is not None:
            # by its own path: diffusers would read the weights beside a subfolder first
            own = Path(config.transformer) if name == "transformer" else Path(config.transformer, name)
            if name == "transformer" or own.is_dir():  # else the second expert was not trained
                source, options = str(own), {}
        try:
            loaded = getattr(diffusers, kind).from_pretrained(source, dtype=DTYPES[config.dtype], **options)
        except (OSError, ValueError) as error:
            raise ConfigError(f"transformer: cannot load {source!r}: {str(error).splitlines()[0]}") from None
        found[name] = pack(loaded, packed_parts(loaded), config)
    return found


def packed_parts(transformer: nn.Module) -> list[nn.Module]:
    """What `quantize` packs: the blocks."""
    return [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]


def gathered(transformer: Any) -> Any:
    """A CPU copy of a transformer whose weights are held in shards. Every rank must call it."""
    weights = {name: whole(value) for name, value in transformer.state_dict().items()}
    kind: Any = next(k for k in type(transformer).__mro__ if not k.__name__.startswith("FSDP"))
    with torch.device("meta"):
        copy = kind.from_config(transformer.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def trained_modules(generator: Generator) -> dict[str, Any]:
    """The components that are trained, by name."""
    parts = {name: getattr(generator.pipeline, name, None) for name in generator.modules}
    found = {name: part for name, part in parts.items() if part is not None}
    if not found:
        raise PolicyError(f"{type(generator.pipeline).__name__} has none of {', '.join(generator.modules)}")
    return found
