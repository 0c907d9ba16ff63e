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

_NO_CORRECTION = {"use_bias_correction": False, "safeguard_warmup": False}
_LOKR = {"LoRA_type": "LyCORIS/LoKr", "conv_dim": 8, "conv_alpha": 8}
_LOHA = {"LoRA_type": "LyCORIS/LoHa", "conv_dim": 8, "conv_alpha": 8}
_PRODIGY = {"optimizer": "Prodigy", "learning_rate": 1.0}
_BY_CLASS = '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=30"'
_PIECES = {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": "step_rules=1:10,0.1:20,0.01"}

MEANT: list[tuple[dict[str, Any], str, object, str]] = [
    ({"epoch": 20, "max_train_steps": "150"}, "optimization.steps", 150, "epoch=20: max_train_steps wins over it"),
    ({"epoch": 25, "max_train_epochs": 5, "max_train_steps": 4000}, "optimization.epochs", 5, "epochs win over steps"),
    ({"max_train_steps": "0", "epoch": "3"}, "optimization.epochs", 3, ""),
    ({"max_timestep": 900}, "objective.max_timestep", 899, ""),
    ({"max_timestep": 1000}, "objective.max_timestep", 999, ""),
    (_PRODIGY, "optimization.optimizer_options", _NO_CORRECTION, ""),
    (_PRODIGY, "optimization.weight_decay", 0, ""),
    ({**_PRODIGY, "optimizer_args": "weight_decay=0.4"}, "optimization.weight_decay", 0.4, ""),
    ({"optimizer": "Lion"}, "optimization.weight_decay", 0, ""),
    ({"optimizer": "AdamW8bit"}, "optimization.weight_decay", 0.01, ""),
    ({"optimizer": "PagedAdamW8bit"}, "optimization.weight_decay", 0.01, ""),
    ({"optimizer": "Adafactor", "optimizer_args": "relative_step=False"}, "optimization.optimizer_options",
     {"relative_step": False, "scale_parameter": True}, ""),
    ({"optimizer": "DAdaptAdam", "learning_rate": 1}, "optimization.optimizer_options", {"weight_decouple": False}, ""),
    ({"optimizer": "DAdaptLion", "learning_rate": 1}, "optimization.optimizer", "pytorch_optimizer.DAdaptLion", ""),
    ({"optimizer": "SGDNesterov"}, "optimization.optimizer_options", {"momentum": 0.9, "nesterov": True}, ""),
    ({"optimizer": "pytorch_optimizer.CAME"}, "optimization.optimizer", "came", ""),
    ({"optimizer": "", "use_8bit_adam": True}, "optimization.optimizer", "adamw8bit", ""),
    ({"optimizer_args": "betas=0.9,0.99 eps 1e-8"}, "optimization.optimizer_options", {"betas": [0.9, 0.99]},
     "optimizer_args=eps: not understood"),
    ({"optimizer_args": "amsgrad=true", "optimizer": "AdamW"}, "optimization.optimizer_options", {"amsgrad": True}, ""),
    ({"learning_rate": 2e-4, "unet_lr": 0, "text_encoder_lr": 0}, "optimization.learning_rate", 2e-4, ""),
    ({"learning_rate": 2e-4, "unet_lr": 0, "text_encoder_lr": 0}, "adapter.text_encoder", True, ""),
    ({"text_encoder_lr": 1e-4, "stop_text_encoder_training_pct": 40}, "optimization.text_encoder_until", 0.4,
     "kohya_ss passes over it"),
    ({"network_alpha": ""}, "adapter.alpha", 1, ""),
    ({"LoRA_type": "Kohya LoCon", "conv_dim": 8}, "adapter.conv_alpha", 1, ""),
    ({"LoRA_type": "LoCon", "conv_dim": 8, "conv_alpha": 4}, "adapter.layers", "all+conv", ""),
    ({**_LOKR, "network_dim": 100000, "conv_dim": 100000, "decompose_both": True}, "adapter.lokr_decompose_both", False,
     "stands for a full matrix"),
    ({**_LOKR, "network_dim": 100000}, "adapter.lokr_full", True, "conv_dim=8: adapter.lokr_full holds for all layers"),
    ({**_LOKR, "conv_dim": 100000}, "adapter.conv_rank", 1024, "conv_dim=100000: the largest rank is 1024"),
    ({**_LOKR, "conv_dim": 100000}, "adapter.lokr_full", False, ""),
    ({**_LOKR, "network_dropout": 0.3}, "adapter.dropout", 0, "network_dropout=0.3: lokr has no such dropout there"),
    ({**_LOHA, "rank_dropout": 0.1}, "adapter.dropout", 0.1, ""),
    ({**_LOHA, "dora_wd": True}, "adapter.dora", True, ""),
    ({"dora_wd": True}, "adapter.dora", False, ""),
    ({"factor": 6, "decompose_both": True, "use_cp": True}, "adapter.lokr_factor", -1, ""),
    ({"LoRA_type": "LyCORIS/LoCon", "use_cp": True}, "adapter.tucker", False, "use_cp=True: goes with loha and lokr"),
    ({**_LOHA, "use_tucker": True, "LyCORIS_preset": "attn-only"}, "adapter.tucker", False, ""),
    ({**_LOHA, "LyCORIS_preset": "attn-only"}, "adapter.text_encoder_layers", "attention", ""),
    ({**_LOHA, "LyCORIS_preset": "unet-transformer-only"}, "adapter.text_encoder", False, ""),
    ({**_LOHA, "LyCORIS_preset": "unet-convblock-only"}, "adapter.conv_rank", 8, ""),
    ({**_LOHA, "scale_weight_norms": 2.5}, "optimization.max_weight_norm", 0, "scale_weight_norms=2.5: goes with LoRA"),
    ({"sdxl": True, "clip_skip": 2}, "base_model.clip_skip", 1, "clip_skip=2: SDXL has its own fixed layer"),
    ({"caption_extension": ""}, "captions.extension", ".caption", "empty means .caption there"),
    ({"additional_parameters": _BY_CLASS, "lr_scheduler": "cosine"}, "optimization.schedule", "cosine",
     "'cosine' of lr_scheduler is taken"),
    (_PIECES, "optimization.schedule_points", ((0, 1), (10, 0.1), (20, 0.01)), ""),
    ({**_PIECES, "lr_scheduler_args": ""}, "optimization.schedule", "constant", "its step_rules are not understood"),
    ({"lr_scheduler": "cosine", "lr_warmup": 100}, "optimization.warmup", 0.9999, ""),
    ({"lr_decay_steps": 200}, "optimization.schedule", "constant", "lr_decay_steps=200: a share of all steps"),
    ({"additional_parameters": "--optimizer_type Lion"}, "optimization.optimizer", "lion", ""),
    ({"additional_parameters": '--network_args "rank_dropout=0.2"'}, "adapter.rank_dropout", 0.2, ""),
    ({"additional_parameters": "--vae D:\\models\\vae.pt"}, "base_model.vae", "D:/models/vae.pt", ""),
    ({"additional_parameters": "lost --seed 3"}, "seed", 3, "additional_parameters=lost: not understood"),
    ({"noise_offset_type": "Pink", "noise_offset": 0.1}, "objective.noise_offset", 0.1, "noise_offset_type=Pink"),
    ({"log_with": "comet"}, "outputs.wandb", False, "log_with=comet: outputs.tensorboard and outputs.wandb"),
    ({"metadata_description": "a", "training_comment": "b"}, "outputs.description", "a", "training_comment=b"),
    ({"sample_prompts": ["a cat", "a dog"]}, "previews.prompts", ("a cat", "a dog"), ""),
    ({"output_name": None}, "name", "my-lora", ""),
    ({"optimizer": "AdamW", "learning_rate": 1.0, "text_encoder_lr": 1.0}, "optimization.text_encoder_learning_rate",
     1e-4, "learning_rate=1.0: far too high for adamw"),
    ({"multires_noise_iterations": 64}, "objective.multires_noise_iterations", 10, "multires_noise_iterations=64"),
    ({"seed": -1}, "seed", 0, "seed=-1: seeds go from 0"),
    ({"lr_scheduler_num_cycles": "0.5"}, "optimization.schedule_cycles", 1, ""),
    ({"huber_scale": 1}, "adapter.rank", 8, ""),
]  # fmt: skip
"""Changes to `PLAIN`, a setting of ours and its value then, and what is said beside it."""
