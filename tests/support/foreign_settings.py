"""Settings as kohya_ss, sd-scripts, OneTrainer and ai-toolkit save them, for the tests of their import."""

from __future__ import annotations

from typing import Any

KOHYA = {
    "LoRA_type": "Kohya LoCon",
    "additional_parameters": "",
    "adaptive_noise_scale": 0,
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "cache_latents": True,
    "caption_dropout_rate": 0.05,
    "caption_extension": ".txt",
    "clip_skip": "2",
    "color_aug": True,
    "conv_alpha": 4,
    "conv_dim": 8,
    "enable_bucket": True,
    "epoch": 10,
    "flip_aug": False,
    "gradient_accumulation_steps": "2",
    "gradient_checkpointing": True,
    "keep_tokens": "1",
    "learning_rate": 0.0001,
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "max_bucket_reso": 2048,
    "max_resolution": "768,768",
    "max_timestep": 1000,
    "max_token_length": "150",
    "max_train_epochs": "",
    "max_train_steps": "",
    "min_bucket_reso": 256,
    "min_snr_gamma": 5,
    "mixed_precision": "bf16",
    "network_alpha": 16,
    "network_dim": 32,
    "noise_offset": 0.05,
    "optimizer": "AdamW8bit",
    "optimizer_args": "weight_decay=0.1 betas=0.9,0.99",
    "output_dir": "out",
    "output_name": "my lora!",
    "pretrained_model_name_or_path": "models/sd15.safetensors",
    "prior_loss_weight": 1.0,
    "sample_prompts": "# comment\na cat --n bad --w 512\na dog",
    "save_every_n_epochs": 1,
    "save_precision": "fp16",
    "scale_weight_norms": 1,
    "sdxl": False,
    "seed": "1234",
    "shuffle_caption": True,
    "text_encoder_lr": 5e-05,
    "train_batch_size": 4,
    "train_data_dir": "pictures",
    "training_comment": "trigger: zeta",
    "unet_lr": 0.0002,
    "v2": False,
    "v_parameterization": False,
    "xformers": "xformers",
}

DATASET = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = 768
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = "pictures/hero"
  class_tokens = "zeta hero"
  num_repeats = 10
  face_crop_aug_range = [1.0, 3.0]

  [[datasets.subsets]]
  image_dir = "pictures/friend"
  num_repeats = 5

  [[datasets.subsets]]
  is_reg = true
  image_dir = "pictures/people"
"""

CONCEPTS: list[dict[str, Any]] = [
    {
        "__version": 2,
        "image": {
            "__version": 1,
            "enable_crop_jitter": True,
            "enable_random_flip": True,
            "enable_random_rotate": True,
            "random_rotate_max_angle": 5.0,
            "random_hue_max_strength": 0.5,
            "enable_resolution_override": True,
            "resolution_override": "512,768",
        },
        "text": {
            "prompt_source": "concept",
            "prompt_path": "prompts.txt",
            "enable_tag_shuffling": True,
            "tag_delimiter": ";",
            "keep_tags_count": 2,
            "tag_dropout_enable": True,
            "tag_dropout_mode": "RANDOM",
            "tag_dropout_probability": 0.1,
        },
        "name": "hero",
        "path": "pictures/hero",
        "enabled": True,
        "type": "STANDARD",
        "balancing": 3.0,
        "balancing_strategy": "REPEATS",
        "loss_weight": 0.5,
    },
    {"path": "pictures/friend", "balancing": 0.5, "text": {"prompt_source": "sample"}},
    {"path": "pictures/off", "enabled": False},
    {"path": "pictures/held-out", "type": "VALIDATION"},
    {"path": "pictures/prior", "type": "PRIOR_PREDICTION"},
]

AI_TOOLKIT = {
    "job": "extension",
    "config": {
        "name": "my_first_lora",
        "process": [
            {
                "type": "sd_trainer",
                "training_folder": "output",
                "device": "cuda:0",
                "trigger_word": "zeta",
                "network": {"type": "lora", "linear": 16, "linear_alpha": 8, "conv": 8, "conv_alpha": 4},
                "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4, "push_to_hub": False},
                "datasets": [
                    {
                        "folder_path": "pictures",
                        "caption_ext": "txt",
                        "caption_dropout_rate": 0.05,
                        "shuffle_tokens": False,
                        "cache_latents_to_disk": True,
                        "resolution": [512, 768],
                        "mask_path": "masks",
                    }
                ],
                "train": {
                    "batch_size": 2,
                    "steps": 2000,
                    "gradient_accumulation_steps": 1,
                    "train_unet": True,
                    "train_text_encoder": False,
                    "gradient_checkpointing": True,
                    "noise_scheduler": "ddpm",
                    "optimizer": "adamw8bit",
                    "optimizer_params": {"weight_decay": 0.01},
                    "lr": 1e-4,
                    "min_snr_gamma": 5.0,
                    "max_denoising_steps": 1000,
                    "ema_config": {"use_ema": True, "ema_decay": 0.99},
                    "dtype": "bf16",
                },
                "model": {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "is_xl": True, "quantize": True},
                "sample": {
                    "sampler": "ddpm",
                    "sample_every": 250,
                    "width": 1024,
                    "height": 1024,
                    "prompts": ["[trigger] playing chess", "a bear"],
                    "neg": "blurry",
                    "seed": 42,
                    "walk_seed": True,
                    "guidance_scale": 7,
                    "sample_steps": 20,
                },
            }
        ],
    },
    "meta": {"name": "[name]", "version": "1.0"},
}


ONETRAINER: dict[str, Any] = {
    "__version": 8,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "debug_mode": False,
    "workspace_dir": "workspace/run",
    "cache_dir": "workspace-cache/run",
    "tensorboard": True,
    "tensorboard_port": 6006,
    "base_model_name": "stabilityai/stable-diffusion-xl-base-1.0",
    "output_dtype": "BFLOAT_16",
    "output_model_format": "SAFETENSORS",
    "output_model_destination": "models\\my hero.safetensors",
    "concept_file_name": "training_concepts/concepts.json",
    "concepts": None,
    "aspect_ratio_bucketing": True,
    "latent_caching": True,
    "learning_rate_scheduler": "COSINE",
    "learning_rate": 0.0003,
    "learning_rate_warmup_steps": 50.0,
    "learning_rate_cycles": 1.0,
    "learning_rate_min_factor": 0.1,
    "epochs": 12,
    "batch_size": 2,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": "ON",
    "ema": "GPU",
    "ema_decay": 0.995,
    "train_device": "cuda",
    "train_dtype": "BFLOAT_16",
    "resolution": "1024",
    "mse_strength": 1.0,
    "mae_strength": 0.0,
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 7.0,
    "dropout_probability": 0.1,
    "clip_grad_norm": 1.0,
    "offset_noise_weight": 0.03,
    "generalized_offset_noise": True,
    "min_noising_strength": 0.0,
    "max_noising_strength": 0.9,
    "timestep_distribution": "LOGIT_NORMAL",
    "unet": {"train": True, "learning_rate": 0.0001, "weight_dtype": "NFLOAT_4", "stop_training_after": 0},
    "text_encoder": {
        "train": True,
        "learning_rate": 3e-05,
        "stop_training_after": 30,
        "stop_training_after_unit": "EPOCH",
        "dropout_probability": 0.05,
    },
    "text_encoder_2": {"train": False},
    "vae": {"model_name": "madebyollin/sdxl-vae-fp16-fix", "weight_dtype": "FLOAT_32"},
    "prior": {"train": True, "learning_rate": None},
    "masked_training": True,
    "unmasked_weight": 0.2,
    "unmasked_probability": 0.1,
    "peft_type": "LORA",
    "lora_rank": 32,
    "lora_alpha": 16.0,
    "lora_decompose": False,
    "layer_filter": "attentions",
    "layer_filter_preset": "attn-mlp",
    "optimizer": {
        "__version": 0,
        "optimizer": "ADAMW_8BIT",
        "weight_decay": 0.02,
        "beta1": 0.9,
        "beta2": 0.99,
        "stochastic_rounding": True,
    },
    "sample_definition_file_name": "training_samples/samples.json",
    "samples": None,
    "sample_after": 10,
    "sample_after_unit": "MINUTE",
    "save_every": 250,
    "save_every_unit": "STEP",
}
SAMPLES = [
    {"enabled": True, "prompt": "a zeta hero", "negative_prompt": "blurry", "width": 1024, "height": 768, "seed": 42,
     "diffusion_steps": 20, "cfg_scale": 6.0},
    {"enabled": False, "prompt": "never"},
]  # fmt: skip
