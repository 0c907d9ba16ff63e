"""Settings of other trainers that ours can't hold: each is listed when it is switched on."""

from __future__ import annotations

KOHYA = {
    "adaptive_noise_scale", "caption_dropout_every_n_epochs", "conv_dims", "conv_alphas", "block_lr", "constrain",
    "rescaled", "use_scalar", "train_norm", "rank_dropout_scale", "v_pred_like_loss", "save_last_n_steps",
    "token_warmup_min", "token_warmup_step", "initial_step", "initial_epoch", "skip_until_initial_step",
    "huber_scale", "dataset_repeats", "sample_at_first", "sdxl_network_text_encoder", "no_vae",
    "additional_parameters", "resume", "resume_from_huggingface", "dim_from_weights", "no_token_padding", "fp8_base",
    "fp8_base_unet",
}  # fmt: skip

ONETRAINER = {
    "generalized_offset_noise", "log_cosh_strength", "custom_conditioning_image", "force_circular_padding",
    "train_any_unet", "attention_mask", "cep_gamma",
}  # fmt: skip

AI_TOOLKIT: dict[str, set[str]] = {
    "network": {"normalize", "network_kwargs", "conv_only", "all_tensors", "tensor_types", "block_dims"},
    "save": set(),
    "train": {
        "learnable_snr_gos", "weight_jitter", "merge_network_on_save", "start_step", "free_u", "noise_multiplier",
        "target_noise_multiplier", "random_noise_multiplier", "random_noise_shift", "img_multiplier",
        "latent_multiplier", "noisy_latent_multiplier", "negative_prompt", "adaptive_scaling_factor",
        "match_noise_norm", "short_and_long_captions", "short_and_long_captions_encoder_split", "standardize_images",
        "standardize_latents", "dynamic_noise_offset", "do_cfg", "do_random_cfg", "cfg_scale", "correct_pred_norm",
        "blank_prompt_preservation", "do_prior_divergence", "pred_scaler", "prompt_saturation_chance", "train_turbo",
        "adapter_assist_name_or_path", "lr_scheduler_params", "do_differential_guidance", "max_loss",
        "bypass_guidance_embedding", "unload_text_encoder", "num_train_timesteps", "loss_target",
        "ema_config.use_feedback", "do_paramiter_swapping",
    },
    "sample": {"guidance_rescale"},
    "logging": set(),
    "datasets": {
        "random_triggers", "random_triggers_max", "random_scale", "scale", "flip_y", "augments", "augmentations",
        "shuffle_augmentations", "control_path", "inpaint_path", "unconditional_path", "mask_path", "mask_min_value",
        "invert_mask", "poi", "use_short_captions", "network_weight", "standardize_images", "square_crop",
        "replacements", "clip_image_path", "loss_type", "prior_reg", "token_dropout_keep",
    },
    "model": {
        "refiner_name_or_path", "assistant_lora_path", "inference_lora_path", "unet_path",
        "te_name_or_path",
    },
}  # fmt: skip

SIMPLETUNER = {
    "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "max_upscale_threshold", "timestep_bias_strategy", "timestep_bias_begin",
    "timestep_bias_end", "timestep_bias_multiplier", "timestep_bias_portion", "masked_loss_probability",
    "lora_init_type", "user_prompt_library", "validation_guidance_rescale", "webhook_config", "post_checkpoint_script",
    "post_upload_script", "freeze_unet_strategy", "layer_freeze_strategy", "refiner_training", "distillation_method",
    "distillation_config", "prodigy_steps", "training_scheduler_timestep_spacing", "checkpointing_rolling_steps",
    "checkpoints_rolling_total_limit", "data_backend_sampling", "snr_weight", "input_perturbation_steps",
    "control", "use_masked_loss", "validation_prompt_library", "i_know_what_i_am_doing", "quantize_activations",
    "peft_lora_mode", "singlora_ramp_up_steps", "slider_lora_target", "peft_lora_target_modules",
}  # fmt: skip

SIMPLETUNER_BACKEND = {
    "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "minimum_aspect_ratio", "maximum_aspect_ratio", "probability", "conditioning",
    "conditioning_data", "start_epoch", "end_epoch", "start_step", "end_step", "source_dataset_id", "parquet",
    "max_upscale_threshold", "crop_aspect_buckets",
}  # fmt: skip
