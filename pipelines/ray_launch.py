"""`mmrl launch --ray MODALITY CONFIG`: Ray places trainers, engines and reward workers; the same configuration runs.

The driver holds no data and no media. Trainers are actors that each run an ordinary `mmrl train` in a process of its
own: Ray Train calls its function in a thread, where a process can neither be told to save by a signal nor be ended
alone. They find each other as ranks that torchrun started do. Where one dies, the others end within a minute
(`mmrl.training.peers`), and all begin again from the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmrl.errors import ConfigError
from mmrl.pipelines.config import SPEAKING, Placement, RunConfig, read_config
from mmrl.pipelines.folders import next_free
from mmrl.pipelines.overriding import config_and_overrides
from mmrl.placed import Placed
from mmrl.policies.registry import MODALITIES
from mmrl.shown import one_line, tell
from mmrl.training.resume import run_folder
from mmrl.training.stopping import ASKING, LAUNCHED

REFUSED = 2
"""How `mmrl` ends where the user has something to mend: to begin again would not help."""
RESUME, TRUST = "--resume", "--trust"
SMALLEST_SHARE = 1e-4
"""Ray's own precision of a part of a CPU."""
GRACE_SECONDS, SAVING_SECONDS, ANSWERS_SECONDS = 60.0, 300.0, 10.0
AGAIN: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
"""Of engines and reward workers: made again when they die, and asked again what they had been asked."""


class TrainerActor:
    """Runs one rank in a process of its own, which ends with this actor."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def meeting_place(self) -> tuple[str, int]:
        """Where ranks can meet on this machine."""
        import ray

        with socket.socket() as found:
            found.bind(("", 0))
            return ray.util.get_node_ip_address(), found.getsockname()[1]

    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def run(self, command: list[str], environment: dict[str, str], folder: str) -> int:
        """The exit code; negative for a signal."""
        os.makedirs(folder, exist_ok=True)
        self.process = subprocess.Popen(command, env=os.environ | environment, cwd=folder)
        return self.process.wait()

    def stop(self, number: int) -> None:
        """Pass a signal on: the rank saves and stops."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


def launch(arguments: Sequence[str]) -> int:
    """Run as `mmrl train ARGUMENTS` would, placed by Ray; the exit code."""
    if not arguments or arguments[0] not in MODALITIES:
        raise ConfigError(f"mmrl launch --ray: expected {', '.join(MODALITIES)} and a configuration, as in "
                          "mmrl launch --ray vlm CONFIG")  # fmt: skip
    if find_spec("ray") is None:
        raise ConfigError("mmrl launch --ray needs Ray, which is not installed: pip install 'mmrl[ray]'")
    return asked(arguments).run()


def asked(arguments: Sequence[str]) -> Launch:
    """The run that the arguments of `mmrl train` name: a configuration, or with --resume a run alone."""
    modality, *rest = arguments
    rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    resume, flags = None, [word for word in rest if word == TRUST]
    rest = [word for word in rest if word != TRUST]
    if RESUME in rest[:-1]:
        at = rest.index(RESUME)
        resume, rest = Path(rest[at + 1]), rest[:at] + rest[at + 2 :]
    config, changes = config_and_overrides(rest[0] if rest else None, rest[1:])
    if config is None and resume is None:
        raise ConfigError(f"mmrl launch --ray {modality}: expected a YAML file, or the name of a shipped configuration")
    given = [modality, *([] if config is None else [config]), *changes, *flags]
    source = config or run_folder(resume) / "config.yaml"
    return Launch(read_config(source, changes, modality), given, resume)


class Launch:
    """One run on a cluster. `arguments`: of `mmrl train`; `resume`: the run or checkpoint it goes on from."""

    def __init__(self, config: RunConfig, arguments: list[str], resume: Path | None = None):
        import ray

        self.folder = next_free(config.directory) if "{" in config.run_dir else config.directory
        if resume is not None:
            self.folder = run_folder(resume)
        self.config, self.arguments, self.resume = config, [*arguments, f"run_dir={self.folder}"], resume
        self.ray = ray
        self.placement: Placement = config.placement
        self.namespace = f"mmrl-{uuid.uuid4().hex[:8]}"
        self.actors: list[Any] = []
        self.engines: dict[str, Any] = {}
        self.asked: int | None = None
        if self.placement.engines and config.modality not in SPEAKING:
            raise ConfigError(f"placement.engines: {config.modality} policies write by themselves; leave it at 0")
        settings = config.policy_settings()
        config.policy_class.columns_of(settings)  # an engine that cannot train is refused here
        if config.environment is not None and (reason := config.policy_class.no_turns(settings)):
            raise ConfigError(reason)

    def run(self) -> int:
        ray, own = self.ray, not self.ray.is_initialized()
        if own:
            new = {} if self.placement.address else {"include_dashboard": False}
            try_address(self.placement.address)
            try:
                ray.init(address=self.placement.address, namespace=self.namespace, configure_logging=False, **new)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(f"placement.address={self.placement.address}: {one_line(str(error))}") from None
        self._refuse_too_much()
        try:
            self._place()
            for attempt in range(self.placement.restarts + 1):
                codes = self._attempt(attempt)
                if all(code == 0 for code in codes):
                    return 0
                if self.asked:
                    return max((code for code in codes if code and code > 0), default=128 + self.asked)
                if not any(_died(code) for code in codes):
                    self._tell_of_engines()
                    return max(code for code in codes if code)
                tell(f"trainers ended with {codes}: attempt {attempt + 1} of {self.placement.restarts + 1} is over")
            return 1
        finally:
            for actor in self.actors:
                with suppress(Exception):
                    ray.kill(actor, no_restart=True)
            if own:
                ray.shutdown()

    def _refuse_too_much(self) -> None:
        """ConfigError for a placement that the cluster could never hold, which Ray would wait for without a word."""
        has, p = self.ray.cluster_resources(), self.placement
        cpus = {"trainers": p.trainer_cpus, "engines": p.engine_cpus, "reward_workers": p.reward_cpus}
        gpus = {"trainers": p.trainer_gpus, "engines": p.engine_gpus}
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            wanted = {name: getattr(p, name) * share for name, share in each.items()}
            if sum(wanted.values()) > has.get(kind, 0) + SMALLEST_SHARE:
                parts = ", ".join(f"{name} {count:g}" for name, count in wanted.items() if count)
                raise ConfigError(
                    f"placement asks for {sum(wanted.values()):g} {kind}s ({parts}), and the cluster has "
                    f"{has.get(kind, 0):g}"
                )

        if has.get("GPU") and not p.trainer_gpus:
            tell(f"the cluster has {has['GPU']:g} GPUs, and placement.trainer_gpus=0: trainers run on CPUs")

    def _place(self) -> None:
        """Engines and reward workers, by name. They outlive the trainers' attempts."""
        p = self.placement
        if p.engines:
            from mmrl.policies.language.engines.ray_actors import BOARD, Board, EngineActor, with_whole_weights

            self._named(Board, BOARD, {"num_cpus": 0})
            settings = self.config.policy_settings().model_dump()
            if with_whole_weights(settings) != settings["engine"]:
                tell("policy.engine.lora: engines that Ray placed are given whole weights, the adapter merged")
            reader = self._reader()
            for number in range(p.engines):
                resources = {"num_cpus": p.engine_cpus, "num_gpus": p.engine_gpus}
                name = f"engine-{number}"
                self._named(EngineActor, name, resources, self.config.modality, settings, self.namespace, reader)
                self.engines[name] = self.actors[-1]
        if p.reward_workers:
            from mmrl.rewards.ray_workers import RewardActor

            for number in range(p.reward_workers):
                self._named(RewardActor, f"reward-{number}", {"num_cpus": p.reward_cpus})

    def _tell_of_engines(self) -> None:
        """Why an engine could not be made, where one could not."""
        from mmrl.policies.language.engines.ray_actors import last_line

        for name, engine in self.engines.items():
            try:
                self.ray.get(engine.pid.remote(), timeout=GRACE_SECONDS)
            except self.ray.exceptions.ActorDiedError as error:
                tell(f"{name} could not be made: {last_line(error)}")
            except self.ray.exceptions.RayError:
                continue

    def _reader(self) -> Any:
        from mmrl.pipelines.run import clip_reader

        return clip_reader(self.config.cache) if self.config.modality == "video" else None

    def _named(self, kind: type, name: str, resources: dict[str, float], *arguments: Any) -> None:
        remote = self.ray.remote(kind)
        options = {**AGAIN, **resources, "name": name, "namespace": self.namespace, "lifetime": "detached"}
        self.actors.append(remote.options(**options).remote(*arguments))

    # ---- trainers

    def _attempt(self, attempt: int) -> list[int | None]:
        """Exit codes of all trainers; None of one whose actor died."""
        p, ray = self.placement, self.ray
        options = {
            "num_cpus": p.trainer_cpus, "num_gpus": p.trainer_gpus, "max_concurrency": 4,
            "scheduling_strategy": "SPREAD" if p.spread else "DEFAULT", "namespace": self.namespace,
        }  # fmt: skip
        remote = ray.remote(TrainerActor)
        trainers = [
            remote.options(**options, name=f"trainer-{rank}-{attempt}", lifetime="detached").remote()
            for rank in range(p.trainers)
        ]
        self.actors += trainers
        try:
            meeting = ray.get(trainers[0].meeting_place.remote())
            nodes = ray.get([t.node.remote() for t in trainers])
            command = [sys.executable, "-m", "mmrl", "train", *self._arguments(attempt)]
            runs = [
                t.run.remote(command, self._environment(rank, nodes, meeting, attempt), os.getcwd())
                for rank, t in enumerate(trainers)
            ]
            return self._ended(trainers, runs)
        finally:
            for trainer in trainers:
                with suppress(Exception):
                    ray.kill(trainer)

    def _arguments(self, attempt: int) -> list[str]:
        """From the last checkpoint, where an attempt before this one left any."""
        from mmrl.training import checkpoint

        left = attempt and (self.folder / "checkpoints").is_dir() and checkpoint.checkpoints(self.folder)
        resume = self.folder if left else self.resume
        return [*self.arguments, *([RESUME, str(resume)] if resume else [])]

    def _environment(
        self, rank: int, nodes: list[str], meeting: tuple[str, int], attempt: int
    ) -> dict[str, str]:  # fmt: skip
        """What torchrun would say, and what the other actors are called."""
        p, here = self.placement, [r for r, node in enumerate(nodes) if node == nodes[rank]]
        address = self.ray.get_runtime_context().gcs_address
        ahead = self.config.training.ahead
        told = Placed(address, self.namespace, p.engines, p.reward_workers, attempt, rank, p.trainers, ahead)
        local = 0 if p.trainer_gpus else here.index(rank)  # a trainer sees its own GPU alone, as number 0
        ranks = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": p.trainers, "LOCAL_WORLD_SIZE": len(here)}
        if p.trainers == 1:
            return told.to_environment()
        met = {"MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1]), LAUNCHED: self.namespace}
        return told.to_environment() | met | {name: str(value) for name, value in ranks.items()}

    def _ended(self, trainers: list[Any], runs: list[Any]) -> list[int | None]:
        """Wait for all; once one has failed, no longer than the others need to notice. Ctrl-C, SIGTERM, SIGUSR1 and
        SIGHUP are passed on: the trainers save and stop."""
        until, waiting = float("inf"), list(runs)
        with heard() as signals:
            while waiting and time.monotonic() < until:
                done, waiting = self.ray.wait(waiting, timeout=1.0)
                while signals:
                    tell("asking the trainers to save and stop")
                    self.asked = signals.pop(0)
                    for trainer in trainers:
                        trainer.stop.remote(self.asked)
                    until = time.monotonic() + SAVING_SECONDS
                if any(self._code(run) != 0 for run in done):
                    until = min(until, time.monotonic() + GRACE_SECONDS)
        return [self._code(run) if run not in waiting else None for run in runs]

    def _code(self, run: Any) -> int | None:
        try:
            return self.ray.get(run)
        except self.ray.exceptions.RayActorError:
            return None


def try_address(address: str | None) -> None:
    """ConfigError where no cluster listens at host:port: Ray would ask for minutes, and say much."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"placement.address={address}: no Ray cluster answers there: {error}") from None


@contextmanager
def heard() -> Iterator[list[int]]:
    """Signals that ask a run to save and stop, as they come. In a thread that is not the main one none is caught."""
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    before[number] = signal.signal(number, lambda caught, frame: came.append(caught))
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _died(code: int | None) -> bool:
    """Killed, or ended by an error that is not the user's to mend; not after a signal to save and stop."""
    return code is None or code < 0 or code == 1
