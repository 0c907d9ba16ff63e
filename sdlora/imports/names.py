"""What settings of other trainers are called here, for who asks for one by the name it has there."""

from __future__ import annotations

from sdlora.imports import ai_toolkit, kohya, onetrainer_config, sd_scripts_data, simpletuner

_MORE = {
    # Settings whose meaning hangs on others, so that no table translates them.
    "network_dim": ["adapter.rank"],
    "network_alpha": ["adapter.alpha"],
    "linear_alpha": ["adapter.alpha"],
    "conv_dim": ["adapter.conv_rank"],
    "conv_alpha": ["adapter.conv_alpha"],
    "network_module": ["adapter.algorithm", "adapter.layers"],
    "network_args": ["adapter.algorithm", "adapter.conv_rank", "adapter.block_ranks"],
    "algo": ["adapter.algorithm"],
    "full_matrix": ["adapter.lokr_full"],
    "lokr_full_matrix": ["adapter.lokr_full"],
    "lokr_full_rank": ["adapter.lokr_full"],
    "unet_lr": ["optimization.learning_rate"],
    "text_encoder_lr": ["optimization.text_encoder_learning_rate"],
    "train_text_encoder": ["adapter.text_encoder"],
    "network_train_unet_only": ["adapter.text_encoder"],
    "network_train_text_encoder_only": ["adapter.unet"],
    "max_train_steps": ["optimization.steps"],
    "max_train_epochs": ["optimization.epochs"],
    "epoch": ["optimization.epochs"],
    "num_train_epochs": ["optimization.epochs"],
    "lr_warmup": ["optimization.warmup"],
    "lr_warmup_steps": ["optimization.warmup"],
    "optimizer_type": ["optimization.optimizer"],
    "optimizer_args": ["optimization.optimizer_options"],
    "min_denoising_steps": ["objective.max_timestep"],
    "max_denoising_steps": ["objective.min_timestep"],
    "use_8bit_adam": ["optimization.optimizer"],
    "min_snr_gamma": ["objective.weighting", "objective.min_snr_gamma"],
    "snr_gamma": ["objective.weighting", "objective.min_snr_gamma"],
    "debiased_estimation_loss": ["objective.weighting"],
    "noise_offset": ["objective.noise_offset"],
    "multires_noise_iterations": ["objective.multires_noise_iterations"],
    "v_parameterization": ["base_model.prediction"],
    "v2": ["base_model.family"],
    "sdxl": ["base_model.family"],
    "full_fp16": ["optimization.precision"],
    "full_bf16": ["optimization.precision"],
    "fp8_base": ["base_model.quantization"],
    "max_resolution": ["images.resolution"],
    "enable_bucket": ["images.buckets"],
    "min_bucket_reso": ["images.bucket_min"],
    "max_bucket_reso": ["images.bucket_max"],
    "bucket_reso_steps": ["images.bucket_step"],
    "bucket_tolerance": ["images.bucket_step"],
    "center_crop": ["images.random_crop"],
    "flip_aug": ["images.horizontal_flip"],
    "caption_extension": ["captions.extension"],
    "class_tokens": ["captions.trigger"],
    "instance_prompt": ["captions.trigger", "captions.default"],
    "instance_data_dir": ["images.folder"],
    "train_data_dir": ["images.folder"],
    "class_data_dir": ["images.class_folder"],
    "with_prior_preservation": ["objective.prior_preservation"],
    "prior_loss_weight": ["objective.prior_weight"],
    "sample_prompts": ["previews.prompts", "previews.file"],
    "validation_prompt": ["previews.prompts"],
    "checkpointing_steps": ["outputs.checkpoint_every"],
    "checkpoints_total_limit": ["outputs.keep_checkpoints"],
    "output_dir": ["outputs.folder"],
    "report_to": ["outputs.tensorboard", "outputs.wandb"],
    "log_with": ["outputs.tensorboard", "outputs.wandb"],
    "lora_rank": ["adapter.rank"],
    "lora_alpha": ["adapter.alpha"],
    "network_weights": ["adapter.start_from"],
}


def settings_called(name: str) -> list[str]:
    """The dotted names of the settings that do what one of this name does elsewhere; none for an unknown name."""
    wanted = name.lower().replace("-", "_").strip("_")
    if wanted in _MORE:
        return _MORE[wanted]
    tables = [
        kohya.SETTINGS,
        sd_scripts_data.SUBSET,
        onetrainer_config.SETTINGS,
        simpletuner.SETTINGS,
        *ai_toolkit.SECTIONS.values(),
        ai_toolkit.DATASET,
    ]
    return list(dict.fromkeys(table[wanted][0] for table in tables if wanted in table))
