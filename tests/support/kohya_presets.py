"""Values of settings files that people share for kohya_ss, the odd ones: each a few settings on top of a plain file."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, Any] = {
    "LoRA_type": "Standard", "pretrained_model_name_or_path": "model.safetensors", "train_data_dir": "pictures",
    "learning_rate": 1e-4, "network_dim": 8, "network_alpha": 8, "optimizer": "AdamW8bit", "lr_scheduler": "constant",
    "mixed_precision": "bf16", "max_resolution": "512,512", "enable_bucket": True, "epoch": 1,
}  # fmt: skip

ODD: dict[str, dict[str, Any]] = {
    "an adapter kind that is not here, at the largest rank": {
        "LoRA_type": "LyCORIS/iA3", "network_dim": 1024, "network_alpha": 1024, "optimizer": "Prodigy",
        "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0, "scale_weight_norms": 1, "network_dropout": 0.3,
        "optimizer_args": "d_coef=1.0 weight_decay=0.01 safeguard_warmup=False use_bias_correction=False",
        "caption_dropout_rate": 0.5, "adaptive_noise_scale": 0.005, "noise_offset": 0.05,
        "noise_offset_type": "Original",
    },
    "LoKr with two dropouts, Tucker and the other noise chosen": {
        "LoRA_type": "LyCORIS/LoKr", "sdxl": True, "network_dim": 64, "network_alpha": 64, "conv_dim": 64,
        "conv_alpha": 64, "use_cp": True, "module_dropout": 0.1, "rank_dropout": 0.1, "min_snr_gamma": 10,
        "noise_offset": 0.0357, "noise_offset_type": "Multires", "multires_noise_iterations": 8,
        "multires_noise_discount": 0.2, "optimizer": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0,
        "text_encoder_lr": 1.0, "factor": -1, "bucket_reso_steps": 64, "max_resolution": "1024,1024",
    },
    "a full matrix, steps of one pixel, options in quotes and a scheduler by class": {
        "LoRA_type": "LyCORIS/LoKr", "LyCORIS_preset": "full", "network_dim": 100000, "network_alpha": 1,
        "conv_dim": 100000, "conv_alpha": 1, "factor": 6, "bucket_reso_steps": 1, "epoch": 150,
        "additional_parameters": '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=1000"',
        "optimizer": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0, "lr_scheduler": "cosine",
        "optimizer_args": '"d0=1e-5" "d_coef=1.0" "weight_decay=0.4" "decouple=True" "safeguard_warmup=True"',
        "noise_offset_type": "Multires", "multires_noise_iterations": 6, "multires_noise_discount": 0.1,
        "keep_tokens": 1, "shuffle_caption": True, "seed": "", "xformers": "xformers", "v_pred_like_loss": 0,
    },
    "epochs and steps, two weightings": {
        "LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000, "factor": 6, "sdxl": True,
        "epoch": 100, "max_train_steps": "160", "debiased_estimation_loss": True, "min_snr_gamma": 5,
        "optimizer": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0,
        "stop_text_encoder_training_pct": 0, "gpu_ids": "", "num_processes": 1, "multi_gpu": False,
    },
    "Adafactor at the rate of fine-tuning, captions from the folder's name": {
        "sdxl": True, "optimizer": "Adafactor", "learning_rate": 4e-07, "unet_lr": 4e-07, "text_encoder_lr": 0.0,
        "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False", "bucket_reso_steps": 1,
        "lr_scheduler": "constant_with_warmup", "lr_warmup": 8, "caption_extension": ".none-use-foldername",
        "bucket_no_upscale": True, "sample_sampler": "euler_a", "min_snr_gamma": 10, "seed": "",
    },
    "Adafactor that finds its own rate": {
        "optimizer": "Adafactor", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0, "optimizer_args": "",
    },
    "a file to go on from, under a Windows path": {
        "sdxl": True, "lora_network_weights": "D:/lycoris/sdxl\\bride-lora.safetensors", "dim_from_weights": True,
        "network_dim": 128, "network_alpha": 128, "caption_extension": ".txt2", "min_bucket_reso": 64,
        "max_bucket_reso": 2048, "bucket_reso_steps": 32, "adaptive_noise_scale": 0.00357, "noise_offset": 0.0357,
        "additional_parameters": "--log_prefix=xl", "max_train_epochs": "1", "text_encoder_lr": 1e-4, "unet_lr": 1e-4,
    },
    "alpha 1 beside rank 128 at a high rate": {
        "sdxl": True, "network_dim": 128, "network_alpha": 1, "learning_rate": 0.0009, "unet_lr": 0.0009,
        "text_encoder_lr": 0.0009, "optimizer": "Adafactor", "gradient_accumulation_steps": 2, "epoch": 15,
        "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False", "max_train_steps": "",
    },
    "DAdaptAdam with the UNet alone by an extra parameter": {
        "sdxl": True, "optimizer": "DAdaptAdam", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0,
        "optimizer_args": '"decouple=True" "weight_decay=0.1" "betas=0.9,0.91"', "lr_scheduler": "cosine",
        "lr_warmup": 5, "additional_parameters": "--network_train_unet_only", "max_token_length": "225",
        "keep_tokens": 2, "conv_dim": 1, "conv_alpha": 1, "train_on_input": True,
    },
    "DAdaptation by its old name, rates as text": {
        "LoRA_type": "LyCORIS/LoHa", "conv_dim": 8, "conv_alpha": 8, "optimizer": "DAdaptation", "learning_rate": "1.0",
        "unet_lr": "1.0", "text_encoder_lr": "1.0", "noise_offset": "0", "max_resolution": "576,576",
        "optimizer_args": '"decouple=True" "weight_decay=0.01" "betas=0.9,0.99"', "sample_sampler": "euler_a",
        "sample_prompts": "masterpiece, TRIGGERWORD --n low quality --w 512 --h 712 --d 1 --l 7.5 --s 28",
        "sample_every_n_epochs": 1, "max_token_length": "150", "min_snr_gamma": 3, "gradient_accumulation_steps": 1.0,
    },
    "a rectangle without buckets": {
        "max_resolution": "512,650", "enable_bucket": False, "clip_skip": 2, "noise_offset": "0.05",
        "bucket_reso_steps": 64.0, "conv_dim": 1, "conv_alpha": 1, "learning_rate": "0.0001", "unet_lr": "0.0001",
        "text_encoder_lr": "5e-05", "lr_warmup": "0", "train_batch_size": 3,
    },
    "Tucker beside a plain LoRA, a limit on the gradient by an extra parameter": {
        "sdxl": True, "use_cp": True, "conv_dim": 8, "conv_alpha": 4, "additional_parameters": "--max_grad_norm=1",
        "optimizer": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0, "scale_weight_norms": 1,
        "optimizer_args": "decouple=True weight_decay=0.5 betas=0.9,0.99 use_bias_correction=False", "epoch": 160,
        "max_train_steps": "320",
    },
    "Lion at a low rate, weight decay": {
        "optimizer": "Lion", "learning_rate": "0.0001", "unet_lr": 0.0001, "text_encoder_lr": 5e-05,
        "lr_scheduler": "cosine", "lr_warmup": "0", "optimizer_args": "",
    },
}  # fmt: skip
"""What makes each of them odd, and the settings."""

FLUX = {"LoRA_type": "Flux1", "flux1_checkbox": True, "pretrained_model_name_or_path": "flux1-dev.safetensors",
        "t5xxl": "t5xxl_fp16.safetensors", "timestep_sampling": "sigma"}  # fmt: skip
