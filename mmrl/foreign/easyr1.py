"""EasyR1's examples/config.yaml."""

from mmrl.foreign.table import Table

_OFFLOAD = "placement is accelerate's: configs/accelerate/fsdp2.yaml"
_REWARD = "rewards=[{name: file.py:function}]; a function gets lists (docs/writing_rewards.md)"
_OVERLONG = "a prompt over policy.max_prompt_tokens is an error: rows are never dropped silently"
_ENGINE = "an option of vLLM; options of the engine stand with policy.engine (docs/engines.md)"

KEYS = {
    "data.train_files": "data.train",
    "data.val_files": "data.eval",
    "data.prompt_key": "data.columns.prompt",
    "data.answer_key": "data.columns.solution",
    "data.image_key": "data.columns.image",
    "data.video_key": "data.columns.video",
    "data.max_prompt_length": "policy.max_prompt_tokens",
    "data.max_response_length": "policy.max_new_tokens",
    "data.rollout_batch_size": "training.prompts_per_step",
    "data.min_pixels": "policy.min_pixels",
    "data.max_pixels": "policy.max_pixels",
    "data.seed": "training.seed",
    "worker.actor.max_grad_norm": "training.max_grad_norm",
    "worker.actor.micro_batch_size_per_device_for_update": "training.micro_batch_size",
    "worker.actor.model.model_path": "policy.model",
    "worker.actor.model.enable_gradient_checkpointing": "policy.gradient_checkpointing",
    "worker.actor.model.trust_remote_code": "policy.trust_remote_code",
    "worker.actor.optim.lr": "training.learning_rate",
    "worker.actor.optim.weight_decay": "training.weight_decay",
    "worker.rollout.n": "training.group_size",
    "worker.rollout.temperature": "policy.temperature",
    "trainer.save_limit": "training.keep_checkpoints",
    "trainer.save_freq": "training.save_every",
    "trainer.val_freq": "training.eval_every",
    "trainer.save_checkpoint_path": "run_dir",
    "trainer.val_generations_to_log": "training.save_rollouts",
}
WAYS = {
    "data.format_prompt": "data.template, with {prompt} and any column",
    "data.shuffle": "prompts: shuffled, or another sampler",
    "data.val_batch_size": "training.eval_batch_size",
    "algorithm.adv_estimator": "objective.advantage, by the same name",
    "algorithm.disable_kl": "objective.regularizers=[]",
    "algorithm.use_kl_loss": "objective.regularizers, or objective.shaping=[kl_in_reward]",
    "algorithm.kl_penalty": "objective.regularizers=[{name: kl, estimator: k3, value_bound: 10}] for low_var_kl",
    "algorithm.kl_coef": "objective.regularizers=[{name: kl, coefficient: COEF}]",
    "worker.actor.global_batch_size": "training.updates.count = rollout_batch_size / global_batch_size",
    "worker.actor.clip_ratio_low": "objective.trust_region.low",
    "worker.actor.clip_ratio_high": "objective.trust_region.high",
    "worker.actor.clip_ratio_dual": "objective.trust_region.dual",
    "worker.actor.model.freeze_vision_tower": "policy.train_vision=false",
    "worker.actor.optim.strategy": "AdamW over float32 weights; policy.dtype says what they are computed in",
    "worker.actor.optim.lr_warmup_ratio": "training.warmup_steps, in optimizer steps",
    "worker.rollout.val_override_config": "training.eval_samples",
    "worker.reward.score_function": _REWARD,
    "worker.reward.reward_function": _REWARD,
    "trainer.total_episodes": "training.steps = episodes x rows / training.prompts_per_step",
    "trainer.total_epochs": "training.steps = epochs x rows / training.prompts_per_step",
    "trainer.logger": "tracking=[wandb, tensorboard]; every run writes metrics.jsonl",
    "trainer.val_before_train": "always so, where data.eval is given",
    "trainer.val_only": "`mmrl evaluate`",
    "trainer.load_checkpoint_path": "`mmrl train MODALITY --resume RUN`",
    "trainer.project_name": "run_dir",
    "trainer.experiment_name": "run_dir",
    "worker.rollout.limit_images": "every medium of a row is shown, or the row is refused",
}
ABSENT = {
    "data.filter_overlong_prompts": _OVERLONG,
    "worker.actor.padding_free": "rows of a group are packed where that is exact; policy.shared_prompt says how",
    "worker.actor.ulysses_sequence_parallel_size": "there is no sequence parallelism",
    "worker.actor.micro_batch_size_per_device_for_experience": "training.micro_batch_size serves both",
    "worker.rollout.top_p": "truncated sampling changes the distribution whose log-probs are trained",
    **dict.fromkeys(
        (
            "worker.actor.fsdp.enable_full_shard", "worker.actor.fsdp.enable_cpu_offload",
            "worker.actor.fsdp.enable_rank0_init", "worker.actor.offload.offload_params",
            "worker.actor.offload.offload_optimizer", "worker.ref.fsdp.enable_full_shard",
            "worker.ref.fsdp.enable_cpu_offload", "worker.ref.fsdp.enable_rank0_init",
            "worker.ref.offload.offload_params", "trainer.n_gpus_per_node", "trainer.nnodes",
        ),
        _OFFLOAD,
    ),
    **dict.fromkeys(
        (
            "worker.rollout.gpu_memory_utilization", "worker.rollout.enforce_eager",
            "worker.rollout.enable_chunked_prefill", "worker.rollout.tensor_parallel_size",
        ),
        _ENGINE,
    ),
    "worker.reward.reward_type": "a reward function decides by itself whether it takes rows together",
}  # fmt: skip

TABLE = Table("EasyR1", "examples/config.yaml", KEYS, WAYS, ABSENT)
