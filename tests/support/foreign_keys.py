"""Names of the settings that OneTrainer, ai-toolkit and SimpleTuner document, without their values."""

from __future__ import annotations


def _names(text: str) -> list[str]:
    return text.split()


ONETRAINER_KEYS = _names("""
training_method model_type debug_mode debug_dir workspace_dir cache_dir tensorboard tensorboard_expose
tensorboard_always_on tensorboard_port validation validate_after validate_after_unit continue_last_backup
prevent_overwrites include_train_config multi_gpu device_indexes gradient_reduce_precision fused_gradient_reduce
async_gradient_reduce async_gradient_reduce_buffer base_model_name output_dtype output_model_format
output_model_destination async_offloading force_circular_padding compile concept_file_name concepts
aspect_ratio_bucketing image_caching text_caching latent_caching clear_cache_before_training learning_rate_scheduler
custom_learning_rate_scheduler scheduler_params learning_rate learning_rate_warmup_steps learning_rate_cycles
learning_rate_min_factor epochs batch_size gradient_accumulation_steps ema ema_decay ema_update_step_interval
caching_threads prefetch_next_batch train_device temp_device train_dtype fallback_train_dtype enable_autocast_cache
only_cache resolution frames attention_mechanism mse_strength mae_strength log_cosh_strength huber_strength
huber_delta vb_loss_strength loss_weight_fn loss_weight_strength dropout_probability loss_scaler
learning_rate_scaler clip_grad_norm layer_filter layer_filter_preset layer_filter_regex offset_noise_weight
generalized_offset_noise perturbation_noise_weight rescale_noise_scheduler_to_zero_terminal_snr force_v_prediction
force_epsilon_prediction timestep_distribution min_noising_strength max_noising_strength cep_gamma noising_weight
noising_bias timestep_shift dynamic_timestep_shifting unet prior transformer unconditional_transformer quantization
text_encoder text_encoder_layer_skip text_encoder_2 text_encoder_2_layer_skip text_encoder_2_sequence_length
text_encoder_3 text_encoder_3_layer_skip text_encoder_4 text_encoder_4_layer_skip vae effnet_encoder decoder
decoder_text_encoder decoder_vqgan masked_training unmasked_probability unmasked_weight normalize_masked_area_loss
masked_prior_preservation_weight custom_conditioning_image embedding_learning_rate preserve_embedding_norm embedding
additional_embeddings embedding_weight_dtype peft_type lora_model_name lora_rank lora_alpha lora_decompose
lora_decompose_norm_epsilon lora_decompose_output_axis lora_weight_dtype bundle_additional_embeddings oft_block_size
oft_block_share dora_oft oft_scaled oft_clipped_norm oft_cans lokr_dim lokr_decompose_both lokr_decompose_factor
lokr_use_tucker lokr_weight_decompose lokr_dora_on_output lokr_full_matrix lokr_vec_trick optimizer
optimizer_defaults sample_definition_file_name samples sample_after sample_after_unit sample_skip_first
sample_image_format sample_video_format sample_audio_format samples_to_tensorboard non_ema_sampling cloud
backup_after backup_after_unit rolling_backup rolling_backup_count backup_before_save save_every save_every_unit
save_skip_first save_filename_prefix secrets gradient_checkpointing
""")

AI_TOOLKIT_KEYS = {
    "network": _names("""
        type rank linear linear_alpha alpha conv conv_alpha dropout normalize network_kwargs
        transformer_only lokr_full_rank lokr_factor old_lokr_format pretrained_lora_path conv_only
    """),
    "save": _names("""
        save_every dtype max_step_saves_to_keep save_format push_to_hub hf_repo_id hf_private
    """),
    "logging": _names("""
        log_every verbose use_wandb use_ui_logger project_name run_name
    """),
    "sample": _names("""
        sampler sample_every width height prompts samples neg seed walk_seed guidance_scale sample_steps
        network_multiplier guidance_rescale format ext num_frames fps refiner_start_at extend_prompts
    """),
    "train": _names("""
        noise_scheduler content_or_style steps lr unet_lr text_encoder_lr refiner_lr embedding_lr adapter_lr
        optimizer optimizer_params lr_scheduler lr_scheduler_params min_denoising_steps max_denoising_steps
        batch_size dtype xformers sdp attention_backend train_unet train_text_encoder train_refiner
        train_turbo min_snr_gamma snr_gamma learnable_snr_gos noise_offset skip_first_sample
        force_first_sample gradient_checkpointing weight_jitter merge_network_on_save max_grad_norm
        start_step free_u adapter_assist_name_or_path noise_multiplier target_noise_multiplier
        random_noise_multiplier random_noise_shift img_multiplier noisy_latent_multiplier latent_multiplier
        negative_prompt reg_weight num_train_timesteps adaptive_scaling_factor prompt_dropout_prob
        match_noise_norm gradient_accumulation_steps gradient_accumulation short_and_long_captions
        short_and_long_captions_encoder_split single_item_batching loss_target inverted_mask_prior
        inverted_mask_prior_multiplier diff_output_preservation diff_output_preservation_multiplier
        diff_output_preservation_class blank_prompt_preservation blank_prompt_preservation_multiplier
        standardize_images standardize_latents dynamic_noise_offset do_cfg do_random_cfg cfg_scale
        text_dropout_rate correct_pred_norm loss_type pseudo_huber_c ema_config pred_scaler
        prompt_saturation_chance do_prior_divergence disable_sampling cache_text_embeddings
        unload_text_encoder timestep_type
    """),
    "datasets": _names("""
        type folder_path dataset_path default_caption random_triggers caption_ext random_scale random_crop
        resolution scale buckets bucket_tolerance is_reg network_weight token_dropout_rate shuffle_tokens
        keep_tokens caption_dropout_rate flip_x flip_y augments control_path alpha_mask mask_path
        mask_min_value invert_mask poi use_short_captions num_repeats cache_latents cache_latents_to_disk
        cache_clip_vision_to_disk cache_text_embeddings standardize_images augmentations
        shuffle_augmentations trigger_word loss_multiplier num_workers prefetch_factor num_frames
        shrink_video_to_frames do_i2v
    """),
    "model": _names("""
        name_or_path is_v2 is_xl is_v_pred dtype vae_path arch quantize quantize_te qtype qtype_te low_vram
        lora_path assistant_lora_path refiner_name_or_path unet_path model_kwargs
    """),
}

SIMPLETUNER_KEYS = _names("""
model_type model_family lora_format fuse_qkv_projections offload_during_startup offload_during_save
enable_group_offload group_offload_type ramtorch pretrained_model_name_or_path gradient_checkpointing
gradient_checkpointing_interval refiner_training quantize_via base_model_precision attention_mechanism push_to_hub
push_to_hub_background publishing_config hub_model_id model_card_private model_card_safe_for_work model_card_note
report_to checkpoint_step_interval checkpointing_steps checkpoint_epoch_interval checkpoints_total_limit
checkpointing_rolling_steps checkpointing_use_tempdir checkpoints_rolling_total_limit tracker_run_name
tracker_project_name tracker_image_layout enable_watermark framerate seed_for_each_device snr_weight
rescale_betas_zero_snr webhook_config webhook_reporting_interval distillation_method distillation_config
ema_validation local_rank timestep_bias_strategy timestep_bias_begin timestep_bias_end timestep_bias_multiplier
timestep_bias_portion training_scheduler_timestep_spacing inference_scheduler_timestep_spacing loss_type
huber_schedule huber_c snr_gamma masked_loss_probability adam_beta1 adam_beta2 optimizer_beta1 optimizer_beta2
optimizer_cpu_offload_method gradient_precision adam_weight_decay adam_epsilon prodigy_steps max_grad_norm
grad_clip_method optimizer_offload_gradients fuse_optimizer optimizer_release_gradients preserve_data_backend_cache
override_dataset_config cache_dir cache_dir_text cache_dir_vae compress_disk_cache aspect_bucket_disable_rebuild
keep_vae_loaded skip_file_discovery data_backend_sampling image_processing_batch_size write_batch_size
read_batch_size enable_multiprocessing max_workers aws_max_pool_connections torch_num_threads dataloader_prefetch
dataloader_prefetch_qlen aspect_bucket_worker_count aspect_bucket_alignment minimum_image_size maximum_image_size
target_downsample_size max_upscale_threshold metadata_update_interval debug_aspect_buckets debug_dataset_loader
print_filenames print_sampler_statistics disable_segmented_timestep_sampling data_backend_config
caption_dropout_probability resolution resolution_type seed learning_rate lr_scheduler lr_warmup_steps lr_num_cycles
lr_power lr_end lr_scale max_train_steps num_train_epochs train_batch_size gradient_accumulation_steps optimizer
optimizer_config use_ema ema_decay lora_type lora_rank lora_alpha lora_dropout lora_init_type lycoris_config
init_lora use_dora prediction_type mixed_precision output_dir resume_from_checkpoint validation_prompt
validation_negative_prompt validation_guidance validation_guidance_rescale validation_num_inference_steps
validation_resolution validation_seed validation_steps validation_step_interval validation_epoch_interval
validation_noise_scheduler validation_torch_compile user_prompt_library noise_offset noise_offset_probability
input_perturbation input_perturbation_steps use_soft_min_snr soft_min_snr_sigma_data train_text_encoder
text_encoder_lr vae_path pretrained_vae_model_name_or_path revision variant controlnet aspect_bucket_rounding
disable_benchmark push_checkpoints_to_hub post_checkpoint_script post_upload_script
""")

SIMPLETUNER_BACKEND_KEYS = _names("""
id type dataset_type disabled instance_data_dir crop crop_style crop_aspect crop_aspect_buckets resolution
resolution_type minimum_image_size maximum_image_size target_downsample_size minimum_aspect_ratio
maximum_aspect_ratio prepend_instance_prompt instance_prompt only_instance_prompt caption_strategy
disable_multiline_split caption_shuffle cache_dir_vae repeats probability metadata_backend metadata_update_interval
skip_file_discovery text_embeds image_embeds conditioning conditioning_data source_dataset_id
vae_cache_clear_each_epoch preserve_data_backend_cache is_regularisation_data is_regularization_data hash_filenames
start_epoch start_step parquet write_batch_size default
""")
