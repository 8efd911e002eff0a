"""verl's ppo_trainer.yaml, as far as its GRPO examples set it."""

from mmrl.foreign.table import Table

_PLACE = "placement is accelerate's: configs/accelerate/fsdp2.yaml"
_REWARD = "rewards=[{name: file.py:function}]; a function gets lists (docs/writing_rewards.md)"
_OVERLONG = "a prompt over policy.max_prompt_tokens is an error: rows are never dropped silently"
_CORRECTED = "objective.credit=[{name: importance_correction, level: ..., mode: truncate, high: ...}]"
_ENGINE = "an option of vLLM; options of the engine stand with policy.engine (docs/engines.md)"
_A, _R = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

KEYS = {
    "data.train_files": "data.train",
    "data.val_files": "data.eval",
    "data.train_batch_size": "training.prompts_per_step",
    "data.max_prompt_length": "policy.max_prompt_tokens",
    "data.max_response_length": "policy.max_new_tokens",
    "data.prompt_key": "data.columns.prompt",
    "data.image_key": "data.columns.image",
    "data.video_key": "data.columns.video",
    "data.seed": "training.seed",
    "actor_rollout_ref.model.path": "policy.model",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "policy.gradient_checkpointing",
    "actor_rollout_ref.model.trust_remote_code": "policy.trust_remote_code",
    "actor_rollout_ref.model.lora_rank": "policy.lora.rank",
    "actor_rollout_ref.model.lora_alpha": "policy.lora.alpha",
    "actor_rollout_ref.model.target_modules": "policy.lora.targets",
    f"{_A}.optim.lr": "training.learning_rate",
    f"{_A}.optim.weight_decay": "training.weight_decay",
    f"{_A}.optim.lr_warmup_steps": "training.warmup_steps",
    f"{_A}.ppo_micro_batch_size_per_gpu": "training.micro_batch_size",
    f"{_A}.grad_clip": "training.max_grad_norm",
    f"{_A}.loss_agg_mode": "objective.aggregation",
    f"{_R}.n": "training.group_size",
    f"{_R}.temperature": "policy.temperature",
    "trainer.total_training_steps": "training.steps",
    "trainer.save_freq": "training.save_every",
    "trainer.test_freq": "training.eval_every",
    "trainer.default_local_dir": "run_dir",
    "trainer.max_actor_ckpt_to_keep": "training.keep_checkpoints",
}
WAYS = {
    "data.shuffle": "prompts: shuffled, or another sampler",
    "data.val_batch_size": "training.eval_batch_size",
    f"{_A}.ppo_mini_batch_size": "training.updates.count = train_batch_size / ppo_mini_batch_size",
    f"{_A}.ppo_epochs": "training.updates.epochs",
    f"{_A}.clip_ratio": "objective.trust_region={name: clip, low: RATIO, high: RATIO}",
    f"{_A}.clip_ratio_low": "objective.trust_region.low",
    f"{_A}.clip_ratio_high": "objective.trust_region.high",
    f"{_A}.clip_ratio_c": "objective.trust_region.dual",
    f"{_A}.policy_loss.loss_mode": "objective.ratio and objective.trust_region (docs/peers.md)",
    f"{_A}.use_kl_loss": "objective.regularizers",
    f"{_A}.kl_loss_coef": "objective.regularizers=[{name: kl, coefficient: COEF}]",
    f"{_A}.kl_loss_type": "objective.regularizers=[{name: kl, estimator: ...}]",
    f"{_A}.entropy_coeff": "objective.regularizers=[{name: entropy_bonus, coefficient: COEFF}]",
    f"{_A}.optim.lr_warmup_steps_ratio": "training.warmup_steps, in optimizer steps",
    f"{_A}.freeze_vision_tower": "policy.train_vision=false",
    f"{_R}.name": "policy.engine",
    f"{_R}.val_kwargs.n": "training.eval_samples",
    f"{_R}.multi_turn.enable": "environment",
    f"{_R}.multi_turn.max_assistant_turns": "environment={name: ..., max_turns: N}",
    "algorithm.adv_estimator": "objective.advantage, by the same name",
    "algorithm.norm_adv_by_std_in_grpo": "objective.advantage: grpo, or dr_grpo for false",
    "algorithm.use_kl_in_reward": "objective.shaping=[kl_in_reward]",
    "algorithm.kl_penalty": "objective.shaping=[kl_in_reward], the k1 estimate",
    "algorithm.kl_ctrl.kl_coef": "objective.shaping=[{name: kl_in_reward, beta: COEF}]",
    "algorithm.filter_groups.enable": "rollout: dynamic_sampling",
    "algorithm.filter_groups.max_num_gen_batches": "rollout={name: dynamic_sampling, rounds: N}",
    "algorithm.rollout_correction.rollout_is": _CORRECTED,
    "algorithm.rollout_correction.rollout_is_threshold": _CORRECTED,
    "custom_reward_function.path": _REWARD,
    "custom_reward_function.name": _REWARD,
    "reward_model.enable": "rewards: a reward that loads the model, by file.py:function",
    "reward_model.reward_manager": "rewards; dapo's overlong penalty is objective.shaping=[soft_overlong]",
    "trainer.total_epochs": "training.steps = epochs x rows / training.prompts_per_step",
    "trainer.logger": "tracking=[wandb, tensorboard]; every run writes metrics.jsonl",
    "trainer.project_name": "run_dir",
    "trainer.experiment_name": "run_dir",
    "trainer.val_before_train": "always so, where data.eval is given",
    "trainer.val_only": "`mmrl evaluate`",
    "trainer.resume_mode": "`mmrl train MODALITY --resume RUN`",
    "trainer.log_val_generations": "training.save_rollouts",
    "trainer.rollout_data_dir": "the run's folder `rollouts`, every training.save_rollouts_every steps",
}
ABSENT = {
    "data.filter_overlong_prompts": _OVERLONG,
    "data.truncation": "prompts are never cut",
    "data.return_raw_chat": "prompts are messages throughout",
    "actor_rollout_ref.hybrid_engine": "the engine is chosen by policy.engine (docs/engines.md)",
    "actor_rollout_ref.model.use_remove_padding": "rows of a group are packed where that is exact",
    "actor_rollout_ref.model.use_fused_kernels": "logits are made in chunks of policy.logit_rows",
    f"{_A}.use_dynamic_bsz": "rows of one length stand together in a micro-batch",
    f"{_A}.ppo_max_token_len_per_gpu": "training.micro_batch_size counts rows",
    f"{_A}.ulysses_sequence_parallel_size": "there is no sequence parallelism",
    f"{_A}.use_torch_compile": "blocks are not compiled yet",
    **dict.fromkeys(
        (
            f"{_A}.fsdp_config.param_offload", f"{_A}.fsdp_config.optimizer_offload", f"{_A}.strategy",
            "actor_rollout_ref.ref.fsdp_config.param_offload", "trainer.n_gpus_per_node", "trainer.nnodes",
        ),
        _PLACE,
    ),
    **dict.fromkeys(
        (
            f"{_R}.gpu_memory_utilization", f"{_R}.tensor_model_parallel_size", f"{_R}.enable_chunked_prefill",
            f"{_R}.enforce_eager", f"{_R}.free_cache_engine", f"{_R}.max_num_batched_tokens", f"{_R}.load_format",
        ),
        _ENGINE,
    ),
    **dict.fromkeys((f"{_R}.top_p", f"{_R}.top_k"), "truncated sampling changes the distribution that is trained"),
    f"{_R}.log_prob_micro_batch_size_per_gpu": "training.micro_batch_size serves both",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": "training.micro_batch_size serves both",
    **dict.fromkeys(("algorithm.gamma", "algorithm.lam", "trainer.critic_warmup"), "there is no critic"),
}  # fmt: skip

TABLE = Table("verl", "ppo_trainer.yaml", KEYS, WAYS, ABSENT)
