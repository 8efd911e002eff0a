"""A pipeline without its weights: what it would ask its transformer, and how large everything is, before it is loaded.

Models are built on the meta device from their configurations alone. Tokenizers, processors and the scheduler are the
real ones. When the pipeline prepares a prompt, its encoders run on the meta device and hand back zeros of the right
shape; so the conditions have the sizes they will have, by the pipeline's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl.errors import ConfigError
from mmrl.policies.generation.families import refuse_other_kinds

SIZES = ("grid_thw",)
"""Arguments whose values are sizes of what is computed."""
PREPARED = ("Tokenizer", "Processor", "FeatureExtractor")


class Blank(TorchDispatchMode):
    """What looks at values on the meta device sees ones; what copies them to the CPU gets zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=args[0].dtype).item()
            if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@contextmanager
def blank() -> Iterator[None]:
    """Inside, nothing on the meta device is refused for having no values; `nonzero` finds everything."""
    import torch.fx.experimental._config as options

    with options.patch(meta_nonzero_assume_all_nonzero=True), Blank():
        yield


class Hollow(nn.Module):
    """Looks like a model on the CPU, computes on the meta device, and answers with zeros."""

    def __init__(self, real: nn.Module):
        super().__init__()
        object.__setattr__(self, "real", real)  # not a submodule: it has no device of its own
        dtype = next((p.dtype for p in real.parameters()), torch.float32)  # which callers cast their inputs to
        self.place = nn.Parameter(torch.zeros(0, dtype=dtype), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.real.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(object.__getattribute__(self, "real"), name)
            method = callable(found) and not isinstance(found, nn.Module | type)
            return _answering(found) if method else found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return _answering(self.real)(*args, **kwargs)
        except (RuntimeError, NotImplementedError):  # a text encoder that sees pictures computes from their values
            if "input_ids" not in kwargs:
                raise
            return self._hidden(kwargs["input_ids"])

    def _hidden(self, ids: Tensor) -> Any:
        """What a language model answers, by its configuration: one state a token and layer."""
        config = self.real.config.get_text_config()
        state = torch.zeros(1, dtype=self.dtype).expand(*ids.shape, config.hidden_size)
        return SimpleNamespace(last_hidden_state=state, hidden_states=(state,) * (config.num_hidden_layers + 1))


def hollow_pipeline(model: str, dtype: torch.dtype) -> tuple[Any, dict[str, nn.Module]]:
    """The pipeline that `model` (a folder or hub name) describes, hollow, and its models on the meta device by name.

    Raises OSError or ValueError where its configurations cannot be read.
    """
    import diffusers

    listed = diffusers.DiffusionPipeline.load_config(model)
    refuse_other_kinds(listed)
    kind = getattr(diffusers, str(listed.get("_class_name")), None)
    if kind is None:
        raise ConfigError(f"model: {model!r} is a {listed.get('_class_name')}, which this diffusers does not have")
    parts: dict[str, Any] = {}
    for name, entry in listed.items():
        if name.startswith("_"):
            continue
        pair = isinstance(entry, list | tuple) and len(entry) == 2
        parts[name] = _part(model, name, *entry) if pair and entry[0] is not None else (None if pair else entry)
    models = {name: part.to(dtype).eval() for name, part in parts.items() if isinstance(part, nn.Module)}
    pipeline = kind(**parts)
    for name, part in models.items():
        pipeline.__dict__[name] = Hollow(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, models


def _part(model: str, name: str, library: str, kind: str) -> Any:
    """One component: read where it holds no weights, else built on the meta device."""
    import diffusers
    import transformers

    place = {"transformers": transformers, "diffusers": diffusers}.get(library) or diffusers
    found = getattr(place, kind, None) or getattr(diffusers, kind, None) or getattr(transformers, kind, None)
    if found is None:
        raise ConfigError(f"model: {name} of {model!r} is a {library}.{kind}, which is not installed")
    if any(word in kind for word in PREPARED):
        folder = Path(model) / name
        return found.from_pretrained(str(folder)) if folder.is_dir() else found.from_pretrained(model, subfolder=name)
    if not issubclass(found, nn.Module):
        return found.from_config(found.load_config(model, subfolder=name)) if hasattr(found, "load_config") else None
    if hasattr(found, "load_config"):
        config = found.load_config(model, subfolder=name)
        with torch.device("meta"):
            return found.from_config(config)
    config = found.config_class.from_pretrained(model, subfolder=name)
    with torch.device("meta"):
        return found._from_config(config, attn_implementation="eager")  # others look at the values of masks


def _answering(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a model on the meta device, as one of CPU tensors that answers with zeros."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if name.endswith(SIZES)}
        moved = [_mapped(value, lambda t: t.to("meta")) for value in (args, kwargs)]
        moved[1] |= given
        with torch.no_grad():
            return _mapped(function(*moved[0], **moved[1]), _zeros)

    return answer


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Tensors inside lists, tuples, mappings and plain objects, such as a distribution of latents."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        changed = {key: _mapped(each, function) for key, each in value.items()}
        return changed if type(value) is dict else type(value)(**changed)  # outputs of models keep their class
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, function) for each in value)
    if isinstance(getattr(value, "__dict__", None), dict) and type(value).__module__.startswith("diffusers"):
        made = copy.copy(value)
        made.__dict__.update({key: _mapped(each, function) for key, each in vars(value).items()})
        return made
    return value
