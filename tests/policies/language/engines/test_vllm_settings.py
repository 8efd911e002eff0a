"""What can be said about vLLM without it: how it is named, and what it is never told."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from mmrl.errors import ConfigError, PolicyError
from mmrl.pipelines.config import read_config
from mmrl.policies.language.config import LanguagePolicyConfig
from mmrl.policies.language.engines import vllm_server
from mmrl.policies.language.engines.names import engine_class, engine_options
from mmrl.policies.language.engines.vllm_process import _options, free_port
from mmrl.policies.language.engines.vllm_requests import Written, decoded
from mmrl.policies.language.stopping import Stopping

LORA = {"rank": 4}


def config_of(engine, **options):
    return LanguagePolicyConfig(model="tiny", engine=engine, **options)


class TestNames:
    @pytest.mark.parametrize(
        ("engine", "expected"),
        [
            ("vllm", "Colocated"),
            ({"name": "vllm"}, "Colocated"),
            ({"name": "vllm", "mode": "colocate", "sleep": False}, "Colocated"),
            ({"name": "vllm", "mode": "server", "restarts": 1}, "Server"),
            ("local", "Local"),
        ],
    )
    def test_of_modes(self, engine, expected):
        assert engine_class(config_of(engine)).__name__ == expected

    def test_on_the_command_line(self):
        policy = read_config("demo", ["engine=vllm"], "vlm").policy
        assert policy["engine"] == "vllm"
        policy = read_config("demo", ["engine=vllm", "engine.mode=server", "engine.concurrency=8"], "vlm").policy
        assert policy["engine"] == {"name": "vllm", "mode": "server", "concurrency": 8}

    def test_settings_are_the_modes_own(self):
        config = config_of({"name": "vllm", "mode": "server", "restarts": 1, "images": 2})
        options = engine_options(config, engine_class(config))
        assert (options.restarts, options.images, options.lora) == (1, 2, "merged")

    @pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
    def test_is_refused_where_it_is_not_installed_and_only_when_it_is_made(self):
        with pytest.raises(ConfigError, match=r"vllm is not installed here; pip install 'mmrl\[vllm\]'"):
            engine_class(config_of("vllm"), here=True)

    def test_nothing_imports_it_unasked(self):
        code = (
            "import sys, mmrl.policies.language.engines.vllm, mmrl.policies.language.engines.vllm_server, "
            "mmrl.pipelines.engine_report; print([m for m in ('vllm', 'ray') if m in sys.modules])"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("engine", "options", "says"),
    [
        ({"name": "vllm", "mode": "severe"}, {}, r"policy\.engine\.mode: unknown mode 'severe'.*'server'"),
        ({"name": "local", "mode": "server"}, {}, "local has no modes"),
        ({"name": "local", "sleep": True}, {}, "'local' has no settings of its own, got sleep"),
        ({"mode": "server"}, {}, "expected a name in it"),
        ({"name": "vllm", "restarts": 1}, {}, r"policy\.engine\.restarts is a setting of mode server; write policy"),
        ({"name": "vllm", "mod": "server"}, {}, r"policy\.engine: unknown key 'mod'; did you mean 'mode'\?"),
        ({"name": "vllm", "mode": "server", "url": "127.0.0.1:9"}, {}, r"engine\.url=127.0.0.1:9: expected an address"),
        (
            {"name": "vllm", "arguments": {"logprobs_mode": "raw_logprobs"}},
            {},
            "follows from the policy",
        ),
        ({"name": "vllm", "arguments": {"override_generation_config": {"top_p": 0.9}}}, {}, "follows from the policy"),
        ({"name": "vllm", "arguments": {"quantization": "fp8"}}, {}, "quantization: .*old_log_probs=trainer"),
        ({"name": "vllm", "lora": "adapter"}, {}, r"lora=adapter: there is no policy\.lora"),
        ({"name": "vllm", "lora": "adapter"}, {"lora": {**LORA, "dora": True}}, "no DoRA"),
        ({"name": "vllm", "lora": "adapter"}, {"lora": LORA, "train_vision": True}, "train_vision adapts the tower"),
        (
            {"name": "vllm", "lora": "adapter"},
            {"lora": {**LORA, "targets": ["q_proj", "lm_head"]}},
            "targets has lm_head",
        ),
        (
            {"name": "vllm", "lora": "adapter"},
            {"lora": {**LORA, "targets": ".*(embed_tokens|q_proj)"}},
            "has embed_tok",
        ),
    ],
)
def test_what_would_not_train_is_one_line(engine, options, says):
    with pytest.raises(ConfigError, match=says) as raised:
        engine_class(config_of(engine, **options))
    assert "\n" not in str(raised.value)


def test_what_is_not_exact_may_train_on_the_trainers_log_probs():
    lossy = {"name": "vllm", "arguments": {"quantization": "fp8"}}
    assert engine_class(config_of(lossy, old_log_probs="trainer")).__name__ == "Colocated"


def test_options_of_the_server():
    asked = {"max_num_seqs": 4, "enforce_eager": True, "enable_lora": False, "limit_mm_per_prompt": {"image": 2}}
    assert _options(asked) == [
        "--max-num-seqs", "4", "--enforce-eager", "--no-enable-lora", "--limit-mm-per-prompt", json.dumps({"image": 2}),
    ]  # fmt: skip


class TestServersOfSeveralProcesses:
    """Each process that trains has a server of its own, on GPUs of its own."""

    def made(self, monkeypatch, ranks, rank, **options):
        monkeypatch.setattr(vllm_server, "ranks", lambda: ranks)
        monkeypatch.setattr(vllm_server, "rank", lambda: rank)
        config = config_of({"name": "vllm", "mode": "server", **options})
        family = SimpleNamespace(model_type="qwen3_vl", written={"image": "<i>"})
        given = engine_options(config, vllm_server.Server)
        return vllm_server.Server(
            SimpleNamespace(config=config, options=given, family=family, processor=SimpleNamespace())
        )

    @pytest.mark.parametrize(("rank", "devices"), [(0, "2,3"), (1, "4,5")])
    def test_gpus_are_taken_in_turn(self, monkeypatch, rank, devices):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        engine = self.made(monkeypatch, 2, rank, gpus=[2, 3, 4, 5], tensor_parallel=2)
        assert engine.wanted()[1]["CUDA_VISIBLE_DEVICES"] == devices

    def test_without_them_it_sees_what_the_trainer_sees(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        assert self.made(monkeypatch, 1, 0).wanted()[1]["CUDA_VISIBLE_DEVICES"] == "0,1"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"url": "http://there:1"}, "2 processes train, and each would give this server weights.*--ray"),
            ({"gpus": [1]}, r"gpus=\[1\]: expected 2, tensor_parallel=1 for each of 2 processes"),
        ],
    )
    def test_what_there_is_too_little_of(self, monkeypatch, options, says):
        with pytest.raises(ConfigError, match=says):
            self.made(monkeypatch, 2, 0, **options)

    @pytest.mark.parametrize(
        ("count", "options", "says"),
        [
            (0, {"transfer": "nccl"}, r"transfer=nccl: goes from GPU to GPU, and torch sees none.*transfer=files"),
            (0, {"transfer": "ipc"}, r"transfer=ipc: goes from GPU to GPU"),
            (0, {"gpus": [0]}, r"gpus=\[0\]: this machine has none; leave it out"),
            (2, {"gpus": [2]}, r"gpus=\[2\]: this machine has 2, numbered from 0"),
            (2, {"gpus": [-1]}, r"gpus=\[-1\]: expected numbers from 0 on"),
            (2, {"gpus": [1, 1], "tensor_parallel": 2}, r"gpus=\[1, 1\]: expected numbers from 0 on, each once"),
            (2, {"gpus": [1]}, None),
        ],
    )
    def test_gpus_that_are_not_there(self, monkeypatch, count, options, says):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        if says is None:
            assert self.made(monkeypatch, 1, 0, **options).wanted()[1]["CUDA_VISIBLE_DEVICES"] == "1"
            return
        with pytest.raises(ConfigError, match=says):
            self.made(monkeypatch, 1, 0, **options)

    def test_nobody_at_the_url_ends_the_run_at_once(self, monkeypatch):
        """A wrong port is not waited for with the patience that a server which died has."""
        url = f"http://127.0.0.1:{free_port()}"
        engine = self.made(monkeypatch, 1, 0, url=url)
        with pytest.raises(PolicyError, match=rf"url={url}: .*does not answer: .*refused.*start it first") as raised:
            engine.sync(iter(()))
        assert "\n" not in str(raised.value) and engine.restarted == 0

    def test_who_answered_once_is_waited_for(self, monkeypatch, capsys):
        engine = self.made(monkeypatch, 1, 0, url=f"http://127.0.0.1:{free_port()}", patience=0.01, restarts=1)
        engine._met = True
        with pytest.raises(PolicyError, match="it was waited for 1 times already"):
            engine.sync(iter(()))
        assert "waited for (1 of 1)" in capsys.readouterr().err

    def test_clips_are_refused_by_prompt_where_a_server_cannot_read_them(self, monkeypatch):
        """A `vllm serve` that somebody started without the reader."""
        engine = self.made(monkeypatch, 1, 0, url="http://there:1")
        engine._known["http://there:1"] = {"multimodal_config": None}
        engine.setting.family.video_options = {"do_sample_frames": False}
        with pytest.raises(PolicyError, match=r"'clip' shows videos.*takes images only.*vllm_serve, with --media-io"):
            engine._refuse_clips(SimpleNamespace(prompt=SimpleNamespace(id="clip")))


class TestRows:
    """`decoded`: what came back, cut where the policy's own rule ends a row. Ids are letters; 9 ends a row."""

    def setting(self, *strings):
        tokenizer = SimpleNamespace(batch_decode=lambda rows: ["".join("abcdefghi."[i] for i in row) for row in rows])
        return SimpleNamespace(stopping=Stopping((9,), strings, tokenizer))

    def made(self, *rows, strings=()):
        contexts = [SimpleNamespace(prompt=SimpleNamespace(id="p"), check_ids=lambda ids: None) for _ in rows]
        written = [Written([1], ids, [-float(i) for i in range(len(ids))], why) for ids, why in rows]
        return decoded(self.setting(*strings), contexts, written)

    def test_are_padded_with_nothing(self):
        made = self.made(([1, 2, 9], "stop"), ([3], "length"))
        assert made.tokens.tolist() == [[1, 2, 9], [3, 0, 0]] and made.log_probs.tolist() == [[0, -1, -2], [0, 0, 0]]
        assert made.length.tolist() == [3, 1] and made.stopped.tolist() == [True, False]

    def test_are_cut_behind_a_stop_that_vllm_did_not_see(self):
        """ "bc" stands after two letters; what vLLM wrote behind it is no part of the row."""
        made = self.made(([1, 2, 3], "length"), ([0, 9], "stop"), strings=("bc",))
        assert made.tokens[:, :2].tolist() == [[1, 2], [0, 9]] and not made.tokens[:, 2:].any()
        assert made.length.tolist() == [2, 2] and made.stopped.tolist() == [True, True]
        assert torch.equal(made.log_probs[:, :2], torch.tensor([[0.0, -1.0], [0.0, -1.0]]))

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            (([1, 2], "stop"), "ended a row behind .*where the policy does not"),
            (([1], "abort"), "ended a row with 'abort'"),
            (([], "length"), "ended a row with 'length' after 0 tokens"),
        ],
    )
    def test_that_ended_for_a_reason_of_vllms_are_refused(self, row, says):
        with pytest.raises(PolicyError, match=f"prompt 'p': vLLM {says}"):
            self.made(row)
