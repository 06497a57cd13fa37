"""Builds the data, model, optimizer and loss of a run from its configuration."""

import functools
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import InitProcessGroupKwargs
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.optim.lr_scheduler import LRScheduler

from autoencoder import encode_dataset, load_vae
from averaging import copy_model, make_ema
from batches import Batches
from captions import Captions, log_truncated_captions
from config import OptimizerConfig, ResolvedConfig
from discriminator import AdversarialLoss, FeatureNetwork, make_discriminator
from distillation import ConsistencyLoss
from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.data import ImageTensors, has_fashion_mnist_order
from fmnist_diffusion.data.errors import list_names
from launch_environment import get_num_local_processes
from losses import DiffusionLoss
from model import make_model
from noise_schedule import NoiseScheduler, make_noise_scheduler
from pretrained import load_pretrained
from text_model import TextConditionalUNet, add_text_encoder, get_null_label
from training_images import load_training_images


logger = logging.getLogger("training")

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass
class Components:
    """Data, model, optimizer and loss of a run.

    Attributes:
        batches: Training images.
        unet: The model, as `Accelerator.prepare` returns it.
        optimizer: The optimizer of `unet` and `discriminator`, as `Accelerator.prepare` returns it.
        ema: EMA of the weights of `unet`; `None` if EMA is disabled.
        noise_scheduler: The noise schedule and the prediction type.
        loss: The loss of a batch.
        discriminator: The discriminator, as `Accelerator.prepare` returns it; `None` without an adversarial loss.
        captions: Captions of the training images; `None` if the model is not text-conditional.
        vae: Autoencoder that encoded the training images; `None` if the model does not use latent diffusion.
    """

    batches: Batches
    unet: Any
    optimizer: AcceleratedOptimizer
    ema: EMAModel | None
    noise_scheduler: NoiseScheduler
    loss: DiffusionLoss
    discriminator: Any
    captions: Captions | None
    vae: AutoencoderKL | None

    def get_modules(self) -> list[Any]:
        """Returns the modules that `optimizer` trains."""
        return [self.unet] if self.discriminator is None else [self.unet, self.discriminator]

    def get_conditions(self) -> dict[str, Any]:
        """Returns the class labels or prompts of samples as keyword arguments of [`generate`]."""
        if self.captions is not None:
            return self.captions.get_conditions()
        # The null label of a class-conditional model is its number of classes.
        num_classes = self.loss.null_label
        return {} if num_classes is None else {"class_labels": range(num_classes)}


def make_accelerator(mixed_precision: str | None, **kwargs: Any) -> Accelerator:
    """Creates the accelerator.

    Args:
        mixed_precision: The dtype of mixed precision; the setting of `accelerate launch` if `None`.
        kwargs: Other arguments of [`Accelerator`].

    Raises:
        `ValueError`: If `accelerate launch` uses FSDP or DeepSpeed.
    """
    accelerator = Accelerator(
        # Without a GPU, Accelerate only recognizes torchrun's processes as one group if cpu=True.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
        # Accelerate would wrap the model, which renames its weights. The setting `compile` does not.
        dynamo_backend="no",
        # The main process evaluates alone; this can take longer than the default timeout of the waiting processes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        **kwargs,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError("FSDP and DeepSpeed are not supported. Use a config in training/accelerate_configs.")
    num_threads = (os.cpu_count() or 1) // get_num_local_processes()
    # `accelerate launch` sets ACCELERATE_MIXED_PRECISION. By default, it also limits each process to one thread.
    is_limited = "ACCELERATE_MIXED_PRECISION" in os.environ and torch.get_num_threads() == 1 < num_threads
    if is_limited and accelerator.device.type == "cpu" and accelerator.is_main_process:
        logger.warning(
            "PyTorch uses one CPU thread, which is the default of `accelerate launch`. To use all CPU cores, set the"
            " environment variable OMP_NUM_THREADS=%d.",
            num_threads,
        )
    return accelerator


def make_components(config: ResolvedConfig, accelerator: Accelerator) -> Components:
    """Builds the components of a run.

    Raises:
        `ValueError`, `OSError`: If the configuration, the data or the pipeline to fine-tune cannot be used.
    """
    device = accelerator.device
    images, label_names = load_training_images(config.data)
    is_evaluated = config.eval.every_n_epochs is not None and config.model.get("num_class_embeds") is not None
    # A resumed run does not inspect the images, so the classes are checked here.
    if is_evaluated and not has_fashion_mnist_order(label_names):
        raise ValueError(
            "`--eval.every_n_epochs` requires the classes of Fashion-MNIST in their original order, got"
            f" {list_names(label_names or ['none'])}. Pass --eval.every_n_epochs=null."
        )
    distills = config.distillation.enabled
    captions = None
    if config.text_encoder.enabled:
        assert isinstance(images, ImageTensors)
        captions = Captions(images)
    # A resumed run loads the weights of the model from its checkpoint. However, the teacher needs the pretrained
    # weights, and the checkpoint does not contain the tokenizer.
    needs_pretrained = config.resume is None or distills or config.text_encoder.enabled
    pretrained = load_pretrained(config.init_from) if config.init_from and needs_pretrained else None
    vae = load_vae(config.vae)
    unet = make_model(config, label_names, None if pretrained is None else pretrained.pipe.unet, vae)
    noise_scheduler = make_noise_scheduler(config.scheduler)
    make_token_ids = None
    if captions is not None:
        unet = add_text_encoder(config.text_encoder, unet, pretrained, captions, config.seed)
        if accelerator.is_main_process:
            log_truncated_captions(unet.tokenizer, captions.make(config.seed))
        make_token_ids = functools.partial(captions.make_token_ids, unet.tokenizer)
    # The pretrained weights are no longer needed.
    del pretrained
    load_pretrained.cache_clear()
    load_vae.cache_clear()
    if vae is not None:
        images = encode_dataset(vae, images, device)
    batches = Batches(
        images,
        config.train_batch_size,
        config.seed,
        device,
        augmentation=config.data.augmentation,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=config.data.dataloader_num_workers,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        make_token_ids=make_token_ids,
    )
    teacher = copy_model(unet, None) if distills else None
    prepare_model(config, unet)
    optimizer = make_optimizer(config.optimizer, unet)
    discriminator = None
    if config.distillation.adversarial_weight > 0:
        discriminator = make_discriminator(unet).to(memory_format=get_memory_format(config))  # pyright: ignore[reportCallIssue]
        optimizer.add_param_group(
            {"params": discriminator.parameters(), "lr": config.distillation.discriminator_learning_rate}
        )
        discriminator = accelerator.prepare(discriminator)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    ema = make_ema(config.ema, unet)
    loss = make_loss(config, accelerator, noise_scheduler, unet, ema, teacher, discriminator)
    return Components(
        batches=batches,
        unet=unet,
        optimizer=optimizer,
        ema=ema,
        noise_scheduler=noise_scheduler,
        loss=loss,
        discriminator=discriminator,
        captions=captions,
        vae=vae,
    )


def make_loss(
    config: ResolvedConfig,
    accelerator: Accelerator,
    noise_scheduler: NoiseScheduler,
    unet: Any,
    ema: EMAModel | None,
    teacher: FashionMNISTUNet2DModel | TextConditionalUNet | None,
    discriminator: Any,
) -> DiffusionLoss:
    """Creates the loss of a run.

    Raises:
        `ValueError`: If the model cannot be distilled.
    """
    unet, device = accelerator.unwrap_model(unet), accelerator.device
    processes = accelerator.process_index, accelerator.num_processes
    null_label = get_null_label(unet)
    if teacher is None:
        return DiffusionLoss(config.objective, noise_scheduler, null_label, device, *processes)
    assert ema is not None and config.distillation.num_segments is not None
    assert isinstance(noise_scheduler, DDPMScheduler)
    target_unet = copy_model(unet, None).train()
    adversarial_loss = None
    models = [teacher.to(device), target_unet]  # pyright: ignore[reportArgumentType]
    if discriminator is not None:
        models.append(copy_model(teacher, None))
        adversarial_loss = AdversarialLoss(
            FeatureNetwork(models[-1]), discriminator, config.distillation.adversarial_weight, accelerator.autocast
        )
    for model in models:
        prepare_model(config, model)
    for parameter, ema_parameter in zip(target_unet.parameters(), ema.shadow_params, strict=True):
        # The parameters share the memory of the EMA weights, so they do not have to be copied in every step.
        parameter.data = ema_parameter
    return ConsistencyLoss(
        config.objective,
        config.distillation.num_segments,
        noise_scheduler,
        null_label,
        device,
        target_unet,
        teacher,
        accelerator.autocast,
        adversarial_loss,
        *processes,
    )


def prepare_model(config: ResolvedConfig, unet: FashionMNISTUNet2DModel | TextConditionalUNet) -> None:
    """Applies the memory format, gradient checkpointing and compilation to `unet`."""
    unet.to(memory_format=get_memory_format(config))  # pyright: ignore[reportCallIssue]
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile()


def get_memory_format(config: ResolvedConfig) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format


def make_optimizer(config: OptimizerConfig, unet: torch.nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[config.name](
        unet.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )


def make_lr_scheduler(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, total_steps: int, global_step: int
) -> LRScheduler:
    """Creates the learning rate scheduler at `global_step`.

    Do not pass it to `Accelerator.prepare`, which would advance it once per process in each optimizer step.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
        last_epoch=global_step - 1,
    )
