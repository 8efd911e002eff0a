"""The default family: any vision-language model of transformers, through transformers' own interfaces.

There is no family name in this file. Where a model needs something else, a file beside this one overrides the method
that says it, with the fact that makes it necessary. Whether what is done here is right for a model is found when the
model is loaded, see `check.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrl.errors import PolicyError
from mmrl.media import Frames
from mmrl.policies.language.encoded import Encoded, to_device
from mmrl.policies.language.families.base import Capabilities
from mmrl.policies.language.families.tokens import KINDS, never_sampled, written_tokens

ALIGNED = frozenset({"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "cross_attention_mask"})
"""Processor outputs with one entry a token."""
POSITION_ONLY = frozenset({"second_per_grid_ts", "video_second_per_grid"})
"""Processor outputs that only enter position ids; kept in the record, not passed to the forward."""
SECTIONS = "mrope_section"
TYPES_ASKED = "return_mm_token_type_ids"
"""Attribute and option of a processor: whether it tells the kind of each token."""
MODELS = "transformers.models."
DEEPER = "deepstack_features"
"""Features that enter deeper layers: one entry a layer, each with one part a medium."""


class Family:
    """Facts and methods of one checkpoint; models (trained, reference, truncated) are arguments.

    written       the text that stands for one medium in a rendered prompt: {"image": ...}
    placeholders  the id that stands for one feature of a medium in the tokens
    suppressed    ids a policy may never sample: placeholders and markers of media
    soft_cap      of the final logits, None where there is none
    layer_types   of the text decoder
    last_layer    the decoder's last layer may be asked for the end of a prompt alone (`fast.shared_prompt.LastLayer`)
    takes_embeddings  the model reads a row of text as well from embeddings as from ids
    one_tower     the tower may be given this project's attention and patch projection
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    last_layer: ClassVar[bool] = False
    one_tower: ClassVar[bool] = False
    takes_embeddings: ClassVar[bool] = False

    def __init__(self, config: Any, processor: Any):
        self.config, self.processor = config, processor
        self.model_type: str = config.model_type
        self.text = config.get_text_config()
        self.soft_cap: float | None = getattr(self.text, "final_logit_softcapping", None)
        types = getattr(self.text, "layer_types", None)
        self.layer_types = tuple(types or ["full_attention"] * self.text.num_hidden_layers)
        self.capabilities = Capabilities()

    def __deepcopy__(self, memo: dict) -> Family:
        return self  # a copied model shares its processor and what was found about it

    # -- tokens --------------------------------------------------------------------------------------------------

    @cached_property
    def written(self) -> dict[str, str]:
        return written_tokens(self.processor)

    @cached_property
    def placeholders(self) -> dict[str, int]:
        found = {kind: getattr(self.config, f"{kind}_token_id", None) for kind in KINDS}
        return {kind: i for kind, i in found.items() if isinstance(i, int) and 0 <= i < self.text.vocab_size}

    @property
    def image_token(self) -> int:
        return self.placeholders["image"]

    @property
    def video_token(self) -> int:
        return self.placeholders["video"]

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        return never_sampled(self.config, self.processor, self.text.vocab_size)

    # -- parts ---------------------------------------------------------------------------------------------------

    def decoder(self, core: Any) -> nn.Module:
        """The text decoder: what attends, layer by layer."""
        for module in core.get_decoder().modules():
            if isinstance(getattr(module, "layers", None), nn.ModuleList):
                return module
        raise PolicyError(f"{self.model_type}: {type(core.get_decoder()).__name__} has no `layers` of a text decoder")

    def head(self, core: Any) -> nn.Module:
        """What makes logits of states: of the model, or of a causal language model inside it."""
        return core.get_output_embeddings() or core.get_decoder().get_output_embeddings()

    def readers(self, core: Any) -> dict[str, nn.Module]:
        """{name in `core`: module} of everything that reads media: towers, projectors, resamplers."""
        decoder, head, base = core.get_decoder(), self.head(core), core.base_model
        names = {id(module): name for name, module in core.named_modules()}
        rest = [m for m in base.children() if m is not decoder and m is not head]
        return {names[id(m)]: m for m in rest if any(True for _ in m.parameters())}

    def not_linear(self, core: Any) -> list[str]:
        """Names of linear layers with a forward of their own, such as routers that return a tuple: they take no
        adapter."""
        own = [(n, type(m)) for n, m in core.named_modules() if isinstance(m, nn.Linear)]
        return [n for n, kind in own if kind.forward is not nn.Linear.forward and kind.__module__.startswith(MODELS)]

    def linear_targets(self, core: Any) -> list[str]:
        """What "all-linear" adapts: the shortest endings of names that only linear layers have, without the head.

        PEFT would take last names, and mistake the layer `0` of a sequence for the decoder's layer `0`.
        """
        head, linear, other = self.head(core), [], set()
        for name, module in core.named_modules():
            if not isinstance(module, nn.Linear):
                other |= set(_endings(name))
            elif module is not head:
                linear.append(name)
        return sorted({next(end for end in _endings(name) if end not in other) for name in linear})

    # -- prompts -------------------------------------------------------------------------------------------------

    def encode(
        self, core: Any, text: str, images: Sequence[Any], frames: Sequence[Frames], *, special: bool = True
    ) -> Encoded:
        """One rendered prompt and its media as the model reads them.

        special  the tokenizer may add what begins a text; False for one that goes on
        """
        given: dict[str, Any] = self._clips(frames) if frames else {}
        if "mm_token_type_ids" in self.accepted(core) and getattr(self.processor, TYPES_ASKED, True) is False:
            given[TYPES_ASKED] = True
        start = getattr(self.processor.tokenizer, "bos_token", None)
        if not special or (start and text.startswith(start)):
            given["add_special_tokens"] = False  # the template has written it
        output = self._processed(text, images, given)
        stop = output["input_ids"].shape[1] - (0 if "add_special_tokens" in given else self.added_behind)
        ids = output.pop("input_ids")[:, :stop]
        aligned = {name: torch.as_tensor(output.pop(name))[:, :stop] for name in ALIGNED & output.keys()}
        media = {name: _tensor(output[name]) for name in sorted(output.keys() & self.accepted(core))}
        self.check_placeholders(ids, media, len(images), len(frames))
        return self.placed(core, ids, aligned, media)

    @cached_property
    def added_behind(self) -> int:
        """Tokens that the tokenizer puts behind a text by itself, such as an end: a prompt goes on."""
        plain, whole = (self.processor.tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
        begin = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return len(whole) - begin - len(plain)

    def _processed(self, text: str, images: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
        """Images nested, as several of one prompt and not of several prompts; flat where a processor takes no other."""

        def made(**media: Any) -> dict[str, Any]:
            return dict(self.processor(text=[text], return_tensors="pt", **media, **given))

        if not images:
            return made()
        if self.flat_images:
            return made(images=list(images))
        try:
            return made(images=[list(images)])
        except (ValueError, TypeError, AttributeError) as refused:
            try:
                output = made(images=list(images))
            except Exception:
                raise refused from None
            self.flat_images = True
            return output

    flat_images: bool = False
    """Once the processor has refused nested ones and taken flat ones."""

    def placed(self, core: Any, ids: Tensor, aligned: dict[str, Tensor], media: dict[str, Any]) -> Encoded:
        """A row (1, P) with its positions, and what goes on after it."""
        positions = self.positions(core, ids, aligned, media)
        after = self.after(core, ids, aligned)
        rows = {name: row[0] for name, row in aligned.items()}
        return Encoded(ids[0], rows, positions, self.next_position(positions), media, after)

    def next_position(self, positions: Tensor) -> int:
        """Of the first token after a row (K, P), the same on all axes."""
        ends = positions[:, -1]
        if not bool((ends == ends[0]).all()):
            raise PolicyError(f"{self.model_type}: a prompt ends at unlike positions {ends.tolist()} on its axes")
        return int(ends[0]) + 1

    def _clips(self, frames: Sequence[Frames]) -> dict[str, Any]:
        """Frames are chosen already; where the family takes any size they are resized too."""
        from transformers.video_utils import VideoMetadata

        metadata = [
            VideoMetadata(
                total_num_frames=f.total_frames, fps=f.fps, frames_indices=list(f.indices), height=f.size[0],
                width=f.size[1], video_backend=f.backend, duration=f.total_frames / f.fps,
            )
            for f in frames
        ]  # fmt: skip
        options = {"video_metadata": metadata, "return_metadata": True, **self.video_options}
        return {"videos": [torch.as_tensor(f.pixels) for f in frames], "videos_kwargs": options}

    def after(self, core: Any, ids: Tensor, aligned: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (...)} of one token more, as `generate` goes on; 0 of what it does not continue."""
        from transformers.modeling_outputs import ModelOutput

        given = {"attention_mask": torch.ones_like(ids), **aligned}
        longer = core._update_model_kwargs_for_generation(ModelOutput(), given, is_encoder_decoder=False)
        grown = {name: longer[name].shape[1] > row.shape[1] for name, row in aligned.items()}
        return {n: longer[n][0, -1] if grown[n] else torch.zeros_like(row[0, -1]) for n, row in aligned.items()}

    def accepted(self, core: Any) -> frozenset[str]:
        """Inputs that the model or its media encoders take."""
        return self._accepted or self._found_accepted(core)

    _accepted: frozenset[str] | None = None
    """Kept: signatures are slow to read, and every prompt asks."""

    def _found_accepted(self, core: Any) -> frozenset[str]:
        functions = [core.forward, core.base_model.forward]
        functions += [f for kind in KINDS if (f := getattr(core.base_model, f"get_{kind}_features", None))]
        taken = {name for f in functions for name in inspect.signature(f).parameters}
        never = {"labels", "input_ids", "attention_mask", "position_ids", "kwargs"}
        self._accepted = frozenset((taken | POSITION_ONLY) - never)
        return self._accepted

    def positions(self, core: Any, ids: Tensor, aligned: dict[str, Tensor], media: dict[str, Any]) -> Tensor:
        """(K, P) positions of a row (1, P), as `generate` prepares them. K = 1, or 3 with M-RoPE."""
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **aligned, **media}
        found = core._prepare_position_ids_for_generation(ids, given)
        if found.dim() == 2:
            return found.expand(self.axes, -1) if self.axes else found
        counted = len(found) == (self.sections or 3) + 1  # one axis more than the model turns by: it counts tokens
        found = found[counted:, 0]
        self.axes = len(found)
        return found

    axes: int | None = None
    """Of positions, once a prompt has shown them: a prompt of text alone may come with one where others have three."""

    @cached_property
    def sections(self) -> int | None:
        """Axes that rotary embeddings are cut into, where the configuration says so, for all or for kinds of layers."""
        rope = getattr(self.text, "rope_parameters", None) or {}
        known = [rope, *(part for part in rope.values() if isinstance(part, dict))]
        return next((len(part[SECTIONS]) for part in known if part.get(SECTIONS)), None)

    def check_length(self, tokens: int) -> None:
        """A row, prompt and response, has no more tokens than the self-check could settle."""
        limit = self.capabilities.limit
        if limit is not None and tokens > limit:
            raise PolicyError(
                f"{self.model_type}: a row of {tokens} tokens, prompt and response; up to {limit} can be scored: its "
                "layers choose that many keys, and of those that score alike it is not settled which; lower "
                "max_new_tokens, max_pixels or the number of frames"
            )

    def check_placeholders(self, ids: Tensor, media: dict[str, Any], images: int, clips: int) -> None:
        """Tokens of a prompt with media have placeholders for them; the model itself counts them when it runs."""
        known = list(self.placeholders.values())
        if known and images + clips and not torch.isin(ids, torch.tensor(known)).any():
            raise PolicyError(
                f"0 placeholders (ids {known}) for {images} image(s) and {clips} video(s); processor and model do not "
                "belong together"
            )

    # -- media ---------------------------------------------------------------------------------------------------

    @property
    def reads_video(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None and "video" in self.written

    @property
    def factor(self) -> int | None:
        """Sides of a resized frame are multiples of this many pixels; None where the processor makes one size."""
        patches = getattr(self.processor, "video_processor", None) or getattr(self.processor, "image_processor", None)
        patch, merge = getattr(patches, "patch_size", None), getattr(patches, "merge_size", None)
        return patch * merge if isinstance(patch, int) and isinstance(merge, int) else None

    @property
    def video_options(self) -> dict[str, Any]:
        """Of the video processor: frames come chosen, and resized where the family takes any size."""
        return {"do_sample_frames": False} | ({} if self.factor is None else {"do_resize": False})

    @property
    def temporal_patch(self) -> int:
        """Frames that become one step in time."""
        return getattr(getattr(self.processor, "video_processor", None), "temporal_patch_size", None) or 1

    def media_inputs(self, entries: Sequence[Encoded]) -> dict[str, Any]:
        """Media of rows in their order: features kept of them; else all of them one after the other, or a list that
        `with_media` encodes one by one. Rows without media contribute nothing."""
        given = [e for e in entries if e.media]
        features = [e.features for e in given if e.features is not None]
        if not given:
            return {}
        if len(features) == len(given):
            return {"features": features}
        media = [{k: v for k, v in e.media.items() if k not in POSITION_ONLY} for e in given]
        if len(media) > 1 and self.capabilities.batches == "features":
            return {"media": media}
        return collated(media)

    def with_media(self, core: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs` of the model, with lists of media or features joined."""
        inputs = dict(inputs)
        features = inputs.pop("features", None)
        if (media := inputs.pop("media", None)) is not None:
            features = [self.encode_media(core, one) for one in media]
        if features:
            inputs |= self.join(features)
        return {name: self.cast(core, name, value) for name, value in inputs.items()}

    def cast(self, core: Any, name: str, value: Any) -> Any:
        """Pixels in the weights' dtype: a processor may make others."""
        pixels = "pixel" in name and isinstance(value, Tensor) and value.is_floating_point()
        return value.to(core.dtype) if pixels else value

    def encode_media(self, core: Any, media: dict[str, Any]) -> dict[str, Any]:
        """What the language model reads of one prompt's media: {kind: {name: tensors}}, and under "inputs" what the
        encoders left for its forward."""
        given = {name: self.cast(core, name, value) for name, value in media.items() if name not in POSITION_ONLY}
        left = core._prepare_multimodal_encoder_kwargs_for_generation(given)
        made = left.pop("mm_encoder_outputs", {})
        if lost := [name for name in left if "pixel" in name]:
            raise PolicyError(f"{self.model_type} has no function that encodes {', '.join(lost)} alone")
        features = {kind: _kept(output) for kind, output in made.items()}
        return features | ({"inputs": left} if left else {})

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Model inputs for features of several prompts, in row order."""
        outputs = {}
        for kind in sorted({kind for part in parts for kind in part} - {"inputs"}):
            outputs[kind] = _joined([part[kind] for part in parts if kind in part])
        return {"mm_encoder_outputs": outputs} | collated([part["inputs"] for part in parts if "inputs" in part])

    def patch_features(self, core: Any, media: dict[str, Tensor]) -> Tensor:
        """(patches, d) of the vision encoder, before they are merged into tokens."""
        raise PolicyError(f"visual_entropy: it is not known which patches of {self.model_type}'s encoder are padding")

    def idle(self, core: Any, device: torch.device) -> Tensor:
        """0, through everything that reads media: a rank whose batch has none still takes part in its gradients."""
        row = to_device(self._idle_row(core), device)
        return 0.0 * self.states(core, row).float().sum()

    def _idle_row(self, core: Any) -> dict[str, Any]:
        """Inputs of a prompt with one grey picture."""
        from PIL import Image

        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "-"}]}]
        text = self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        entry = self.encode(core, text, [Image.new("RGB", (64, 64), "gray")], [])
        positions = entry.positions if len(entry.positions) == 1 else entry.positions[:, None]
        aligned = {name: row[None] for name, row in entry.aligned.items()}
        row = {"input_ids": entry.ids[None], "attention_mask": torch.ones_like(entry.ids)[None]}
        return row | {"position_ids": positions} | aligned | self.media_inputs([entry])

    # -- passes --------------------------------------------------------------------------------------------------

    def states(
        self, core: Any, inputs: dict[str, Any], cache: Any = None, *, idle: Tensor | None = None, **more: Any
    ) -> Tensor:
        """(B, L, d) before the output head.

        idle  a zero that must take part in the gradient, see `idle`
        """
        given = self.with_media(core, inputs) | more
        given |= {"past_key_values": cache, "use_cache": cache is not None}
        if idle is not None and self.takes_embeddings:
            # Where features would enter, so that FSDP gathers and reduces in the order of the other ranks.
            embedded = core.get_input_embeddings()(given.pop("input_ids"))
            given["inputs_embeds"] = embedded + idle.to(embedded.dtype)
        states = self._run(core, given)
        return states if idle is None or self.takes_embeddings else states + idle.to(states.dtype)

    def _run(self, core: Any, given: dict[str, Any]) -> Tensor:
        base = core.base_model
        if base is not core:
            return base(**given).last_hidden_state
        # No model around decoder and towers without the head: the last of all states, and the fewest logits.
        keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(core.forward).parameters else {}
        return core(**given, **keep, output_hidden_states=True).hidden_states[-1]

    def cache(self) -> Any:
        """An empty cache whose rows can be chosen by `reorder_cache`, and which gradients flow through."""
        from transformers import DynamicCache
        from transformers.cache_utils import LinearAttentionLayer

        cache = DynamicCache(config=self.text)
        for layer in cache.layers:
            if isinstance(layer, LinearAttentionLayer):
                layer.update_recurrent_state = _assigning(layer)
        return cache


def _endings(name: str) -> list[str]:
    """a.b.c -> c, b.c, a.b.c"""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def collated(media: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Raw media of several prompts one after the other; of unlike sizes, padded with zeros to the largest."""
    names = sorted({name for one in media for name in one})
    return {name: _padded_cat([one[name] for one in media if name in one]) for name in names}


def _padded_cat(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], Tensor):
        return [item for part in parts for item in part]
    sizes = [part.shape[1:] for part in parts]
    if len(set(sizes)) == 1:
        return torch.cat(list(parts))
    largest = [max(size) for size in zip(*sizes, strict=True)]

    def padding(size: torch.Size) -> Iterator[int]:
        for have, wanted in zip(reversed(size), reversed(largest), strict=True):
            yield from (0, wanted - have)

    return torch.cat([F.pad(part, tuple(padding(part.shape[1:]))) for part in parts])


def _tensor(value: Any) -> Any:
    """As a tensor, unless its entries are of unlike shapes."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _kept(output: Any) -> dict[str, Any]:
    """What a language model reads of an encoder's output: pooled features where there are some."""
    made = dict(output.items())
    unread = {"hidden_states", "attentions"} | (
        {"last_hidden_state"} if made.get("pooler_output") is not None else set()
    )
    return {name: None if name in unread else value for name, value in made.items()}


class Outputs(SimpleNamespace):
    """Of an encoder; what it does not have is None, as in transformers' own."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _joined(parts: Sequence[dict[str, Any]]) -> Outputs:
    """Encoder outputs of several prompts as one."""
    joined: dict[str, Any] = {}
    for name in parts[0]:
        values = [part.get(name) for part in parts]
        if any(value is None for value in values):
            joined[name] = None
        elif name == DEEPER:
            joined[name] = [_level(level) for level in zip(*values, strict=True)]
        else:
            joined[name] = _sequence(values)
    return Outputs(**joined)


def _level(parts: Sequence[Any]) -> Any:
    """One deeper layer's features of several prompts; some families write (layer, features)."""
    if isinstance(parts[0], (tuple, list)) and len(parts[0]) == 2 and isinstance(parts[0][0], int):
        return parts[0][0], _sequence([features for _, features in parts])
    return _sequence(parts)


def _sequence(parts: Sequence[Any]) -> Any:
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    return tuple(item for part in parts for item in part)


def _assigning(layer: Any) -> Any:
    """The recurrent state of a linear-attention layer replaced instead of overwritten: transformers copies in place,
    which breaks the graph of a prefill."""

    def update(states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        if not layer.is_recurrent_states_initialized[state_idx]:
            layer.lazy_initialization(recurrent_states=states, state_idx=state_idx)
        layer.recurrent_states[state_idx] = states
        return states

    return update
