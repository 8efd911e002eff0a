"""A teacher: another policy of the same vocabulary, under which the student's own responses are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.errors import ConfigError
from mmrl.policies import adapters
from mmrl.policies.language.probes.group_probes import pieces
from mmrl.precision import Precision
from mmrl.settings import Section

WEIGHTS = "teacher"


class TeacherConfig(Section):
    """Who teaches: a larger model, a checkpoint, an adapter, an earlier step of a run.

    model    checkpoint directory or hub name; the policy's own where it is left out
    adapter  a PEFT adapter on top of it, such as `RUN/checkpoints/step-000100/policy`
    dtype    of its weights
    device   "same" as the policy, or "cpu"
    """

    model: str = ""
    adapter: str = ""
    dtype: Precision = "float32"
    device: Literal["same", "cpu"] = "same"

    @property
    def named(self) -> bool:
        return bool(self.model or self.adapter)


def required(settings: Any, asked_by: str) -> None:
    """Refuse, before anything is loaded, a run without the teacher that it reads."""
    found = getattr(settings, "teacher", None)
    if found is None or not found.named:
        raise ConfigError(
            f"{asked_by} reads a teacher, and nobody is named: policy.teacher.model=NAME, or "
            "policy.teacher.adapter=FOLDER for the policy's own model with another adapter"
        )


def loaded(
    config: Any, load: Callable[[Any], Any], student: Any, processor: Any, device: torch.device
) -> Any:  # fmt: skip
    """The frozen model of `config.teacher`, which must read the student's prompts and write its tokens. It is never
    packed, however the student is (`policy.quantize`): it is what the student is measured by.

    config, student, processor  the policy's section, its model and its processor; load: from a section to a model
    """
    from transformers import AutoProcessor

    teacher = config.teacher
    name = teacher.model or config.model
    if (Path(name) / "checkpoints").is_dir():
        held = sorted(str(folder) for folder in Path(name).glob("checkpoints/*/policy"))
        raise ConfigError(
            f"policy.teacher: {name} is a run; name the weights of one of its steps, policy.teacher.adapter=FOLDER of "
            f"one with adapters, else policy.teacher.model=FOLDER: {', '.join(held) or 'it has written none out'}"
        )
    trusted = {"trust_remote_code": config.trust_remote_code}
    try:
        model = load(config.model_copy(update={"model": name, "dtype": teacher.dtype, "quantize": None}))
        own = AutoProcessor.from_pretrained(name, **trusted)
    except ConfigError as error:  # says "model: ..."
        raise ConfigError(f"policy.teacher.{error}") from None
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"policy.teacher: cannot load {name!r}: {str(error).splitlines()[0]}") from None
    if model.config.model_type != student.config.model_type:
        raise ConfigError(
            f"policy.teacher.model={name!r} is a {model.config.model_type!r}, the student a "
            f"{student.config.model_type!r}: prompts are encoded once, for both; choose a teacher of its family"
        )
    _same_vocabulary(own.tokenizer, processor.tokenizer, name)
    if teacher.adapter:
        if not (Path(teacher.adapter) / "adapter_config.json").is_file():
            raise ConfigError(f"policy.teacher.adapter: no adapter_config.json in {teacher.adapter}")
        model = adapters.merged_copy(adapters.attach_lora(model, None, start=teacher.adapter))
    return model.requires_grad_(False).eval().to("cpu" if teacher.device == "cpu" else device)


def _same_vocabulary(own: Any, student: Any, name: str) -> None:
    mine, theirs = own.get_vocab(), student.get_vocab()
    if mine == theirs:
        return
    apart = sorted({t for t, i in theirs.items() if mine.get(t) != i} | (mine.keys() - theirs.keys()))
    raise ConfigError(
        f"policy.teacher.model={name!r} has another vocabulary than the student: {len(apart)} tokens differ, "
        f"{', '.join(map(repr, apart[:3]))} ...; its log-probs of the student's tokens would mean nothing"
    )


def value(
    student: Callable[[slice], Tensor], teacher: Callable[[slice], Tensor], count: int, *, top_k: int = 0
) -> Tensor:
    """(count,) `value_of` from the logits of both, some rows at a time."""
    parts = [value_of(student(rows), teacher(rows), top_k) for rows in pieces(count)]
    return torch.cat(parts) if parts else torch.zeros(0)


def value_of(student: Tensor, teacher: Tensor, top_k: int = 0) -> Tensor:
    """(n,) E_v[lp_T(v) - lp_S(v)], v ~ the student: the negative reverse KL. student, teacher (n, V) logits.

    top_k  sum over the student's likeliest tokens alone, without renormalising; 0: all
    """
    own, other = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
    if top_k:
        own, places = own.topk(min(top_k, own.shape[-1]), dim=-1)
        other = other.gather(-1, places)
    p = own.exp()
    return torch.where(p > 0, p * (other - own), torch.zeros_like(p)).sum(-1)
