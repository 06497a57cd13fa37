"""The class-conditional Fashion-MNIST pipeline for diffusers.

This file stands alone: it needs torch and diffusers only, so that a byte copy of it can travel inside a model
repository and be used there as `custom_pipeline="pipeline_fmnist"`.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    LMSDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor


FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Of alphas_cumprod, which end at 4e-5 with a linear schedule and at 2e-9 with a cosine schedule, of 1000 timesteps.
LEAST_SIGNAL = 1e-6
# The part of the training's timesteps that the steps of a sampler must span.
LEAST_SPAN = 0.7
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from fmnist_diffusion import load_pipeline

        >>> pipe = load_pipeline("path/or/repo-id")
        >>> images = pipe(
        ...     class_labels=["Ankle boot", 8],
        ...     num_images_per_prompt=4,
        ...     generator=torch.manual_seed(0),
        ... ).images
        >>> images[0].save("ankle_boot.png")
        ```
"""


def part_of(num_steps: int, part: float) -> float:
    # 0.29 * 100 is a little less than 29.
    return round(num_steps * part, 6)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    # In training mode BatchNorm would mix the images of a batch, and sampling would change the model.
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class FashionMNISTPipeline(DiffusionPipeline):
    r"""
    Draws images, of a class where the model knows classes, with any scheduler of diffusers that fits the model.

    A pipeline of another class is taken over with `FashionMNISTPipeline.from_pipe(pipe, unet=pipe.unet)`.

    Parameters:
        unet ([`~fmnist_diffusion.FashionMNISTUNet2DModel`]): The model that denoises.
        scheduler ([`SchedulerMixin`]): The scheduler, whose `prediction_type` is what the model was trained for.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their labels; `None` where the model has no names or no classes."""
        if self.unet.config.label_names is not None:
            return tuple(self.unet.config.label_names)
        if self.unet.config.num_class_embeds == len(FASHION_MNIST_LABELS):
            return FASHION_MNIST_LABELS
        return None

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def get_label_ids(self, class_labels: int | str | Sequence[int | str]) -> list[int]:
        r"""
        Turns class labels into their numbers.

        Args:
            class_labels (`int` or `str` or a list of both):
                Labels in `[0, num_class_embeds)`, or names of `label_names` in upper or lower case; text that is no
                name may be a number.

        Returns:
            `list[int]`: the number of each label.

        Raises:
            `ValueError`: the model has no classes, the list is empty, or a label is none of the classes.
        """
        num_classes = self.unet.config.num_class_embeds
        if num_classes is None:
            raise ValueError("This model was trained without classes: leave `class_labels` out.")
        names = self.label_names
        choices = f"0 to {num_classes - 1}" + (f" or one of {', '.join(names)}" if names else "")
        numbers = {name: number for number, name in enumerate(names or ())}
        in_lower_case = {name.lower(): number for name, number in numbers.items()}

        label_ids = []
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        for label in class_labels:
            number = label
            if isinstance(label, str):
                text = label.strip()
                number = int(text) if text.isdecimal() else None
                number = numbers.get(text, in_lower_case.get(text.lower(), number))
            if not isinstance(number, Integral) or isinstance(number, bool) or int(number) not in range(num_classes):
                raise ValueError(f"`class_labels` has {label!r} but a label must be {choices}.")
            label_ids.append(int(number))
        if not label_ids:
            raise ValueError(f"`class_labels` is empty but must hold at least one label, {choices}.")
        return label_ids

    def check_inputs(
        self,
        class_labels,
        num_images_per_prompt,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        image,
        strength,
        latents,
        output_type,
        callback_on_step_end_tensor_inputs,
    ):
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        if num_images_per_prompt < 1:
            raise ValueError(f"`num_images_per_prompt` is {num_images_per_prompt} but must be at least 1.")
        if not 1 <= num_inference_steps <= num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps} but must be 1 to {num_train_timesteps}, the"
                " scheduler's `num_train_timesteps`."
            )
        if isinstance(self.scheduler, HeunDiscreteScheduler) and self.scheduler.alphas_cumprod[-1] < LEAST_SIGNAL:
            raise ValueError(
                "HeunDiscreteScheduler cannot start from the endless noise of this model's schedule: take another"
                " scheduler, such as UniPCMultistepScheduler."
            )
        if isinstance(self.scheduler, PNDMScheduler) and num_inference_steps < self.scheduler.pndm_order:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps} but PNDM needs at least {self.scheduler.pndm_order}."
            )
        if guidance_scale != 1 and class_labels is None:
            raise ValueError("`guidance_scale` needs `class_labels` to guide to: give labels, or leave it at 1.")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` is {guidance_scale} but must be a finite number.")
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(
                f"`guidance_interval` is {guidance_interval} but must be two numbers (start, stop) with"
                " 0 <= start <= stop <= 1."
            )
        if image is not None:
            if latents is not None:
                raise ValueError(
                    "`latents` and `image` are both given, but there is one thing to start from: leave one out."
                )
            if not 0 < strength <= 1 or int(part_of(num_inference_steps, strength)) < 1:
                raise ValueError(
                    f"`strength` is {strength} but must be a part of the steps in (0, 1] that leaves one or more of"
                    f" `num_inference_steps`={num_inference_steps}."
                )
            # In diffusers both take it that they began with the noise.
            if isinstance(self.scheduler, (LMSDiscreteScheduler, PNDMScheduler)):
                raise ValueError(
                    f"{type(self.scheduler).__name__} cannot start from an `image`: take another scheduler, such as"
                    " DPMSolverMultistepScheduler."
                )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r} but must be one of {', '.join(OUTPUT_TYPES)}.")
        if output_type == "pil" and self.unet.config.out_channels not in (1, 3):
            raise ValueError(
                f"`output_type` is 'pil' but an image of {self.unet.config.out_channels} channels has no PIL mode: use"
                " 'np' or 'pt'."
            )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {', '.join(sorted(unknown))} but may hold"
                f" {', '.join(self._callback_tensor_inputs)} only."
            )

    def prepare_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        image: PipelineImageInput | None,
        timestep: torch.Tensor,
        device: torch.device,
    ) -> torch.Tensor:
        sample_size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        shape = (batch_size, channels, height, width)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` is a list of {len(generator)} but must have one for each of {batch_size} images."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif latents.shape != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)} but must have {shape}.")
        if image is not None:
            processor = VaeImageProcessor(
                vae_scale_factor=1, do_convert_rgb=channels == 3, do_convert_grayscale=channels == 1
            )
            original = processor.preprocess(image, height, width).to(device, torch.float32)
            if len(original) not in (1, batch_size) or original.shape[1] != channels:
                raise ValueError(
                    f"`image` has shape {tuple(original.shape)} but must be one image, or one for each of the"
                    f" {batch_size} that are drawn, of {channels} channels."
                )
            return self.scheduler.add_noise(original.expand(shape), latents, timestep.expand(batch_size))
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def pred_original_sample(
        self, prediction: torch.Tensor, model_input: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The clean image that a prediction for a noisy one amounts to, clamped to [-1, 1] (arXiv 2006.11239, equation
        15; arXiv 2202.00512, appendix D)."""
        alphas_cumprod = self.scheduler.alphas_cumprod.to(prediction)
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        # Some schedulers stop between the timesteps of the training.
        below, fraction = divmod(float(timestep), 1)
        noise_level = sigmas[int(below)]
        if fraction:
            noise_level = torch.lerp(noise_level, sigmas[int(below) + 1], fraction)
        signal = (1 + noise_level**2).rsqrt()
        sigma = (1 - signal**2).sqrt()
        prediction_type = self.scheduler.config.prediction_type
        if prediction_type == "epsilon":
            original = (model_input - sigma * prediction) / signal
        elif prediction_type == "v_prediction":
            original = signal * model_input - sigma * prediction
        else:
            original = prediction
        return original.clamp(-1, 1)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: PipelineImageInput | None = None,
        strength: float = 0.8,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["FashionMNISTPipeline", int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""
        Draws `num_images_per_prompt` images of each label.

        Args:
            class_labels (`int` or `str` or a list of both, *optional*):
                Labels in `[0, num_class_embeds)` or names of `label_names`, in upper or lower case. `None` draws
                without a class.
            num_images_per_prompt (`int`, defaults to `1`):
                Images of each label. All images of the first label come first, then those of the second.
            num_inference_steps (`int`, defaults to `20`):
                Denoising steps, from 1 to the scheduler's `num_train_timesteps`; some of diffusers refuse some numbers
                that do not divide it. A scheduler of the second order evaluates the model about twice in a step.
            guidance_scale (`float`, defaults to `1.0`):
                Weight `s` of classifier-free guidance in `null + s * (label - null)`, where `null` and `label` are the
                predictions without and with the label: 1 is none, more is closer to the label. This is `1 + w` of
                arXiv 2207.12598, equation 6.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
                Part of the steps that is guided, from 0 (noise) to 1 (image); the others run the model once
                (arXiv 2404.07724).
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One for all images, or one for each image. With one for each, an image depends on its own generator
                and not on the batch that it is drawn in.
            latents (`torch.Tensor` of shape `(batch, in_channels, height, width)`, *optional*):
                Standard normal noise to start from, in place of noise from `generator`.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                One image for all, or one for each, to noise and denoise again (arXiv 2108.01073); resized to the
                model's size. Tensors and arrays are in [0, 1].
            strength (`float`, defaults to `0.8`):
                The part of the steps, the last ones, that an `image` goes through, in (0, 1]: how much of it is made
                anew.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` (mode "L" with one channel, "RGB" with three), `"np"` of shape `(batch, height, width,
                channels)` in [0, 1], `"pt"` of shape `(batch, channels, height, width)` in [0, 1], or `"latent"`, the
                same shape as the scheduler leaves it, about [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an [`ImagePipelineOutput`] or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called after each step as `callback(pipe, step, timestep, tensors)`; the `latents` of the dict that it
                returns go on. It may set `pipe._guidance_scale`, or `pipe._interrupt` to skip the steps left.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback gets: `"latents"`, and `"pred_original_sample"`, the picture as the model
                expects it at this step, in [-1, 1]. With a scheduler that computes in noise levels, the former is
                noisier than [-1, 1].

        Examples:

        Returns:
            [`ImagePipelineOutput`] or `tuple`: the images, in float32 but for `"pil"`.

        Raises:
            `ValueError`: an argument is none of its choices, or does not fit the model or the scheduler, for which the
                message names the choices; or what the model draws is not finite.
        """
        # 1. check inputs
        self.check_inputs(
            class_labels,
            num_images_per_prompt,
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            image,
            strength,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._interrupt = False
        device = self._execution_device

        # 2. labels
        batch_size = num_images_per_prompt
        labels = guided_labels = None
        if class_labels is not None:
            labels = torch.tensor(self.get_label_ids(class_labels), device=device)
            labels = labels.repeat_interleave(num_images_per_prompt)  # (B,)
            guided_labels = torch.cat([torch.full_like(labels, self.unet.config.num_class_embeds), labels])  # (2B,)
            batch_size = len(labels)

        # 3. timesteps and noise
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        span = timesteps.max() + num_train_timesteps / num_inference_steps
        if span < LEAST_SPAN * num_train_timesteps or timesteps.min() < 0:
            # Where the number does not divide that of the timesteps, diffusers may begin half-way ("leading"), or add
            # a step at -1 ("trailing").
            raise ValueError(
                f"{type(self.scheduler).__name__} cannot draw in {num_inference_steps} steps here: take fewer, or"
                " another scheduler."
            )
        if image is not None:
            skipped = (num_inference_steps - int(part_of(num_inference_steps, strength))) * self.scheduler.order
            timesteps = timesteps[skipped:]
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(skipped)
        self._num_timesteps = len(timesteps)
        sample = self.prepare_latents(batch_size, generator, latents, image, timesteps[:1], device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}

        # 4. denoise; the scheduler computes in float32, whatever the model computes in
        progress_bar = self.progress_bar(total=self.num_timesteps)  # pyright: ignore[reportCallIssue]
        with evaluation_mode(self.unet), progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                scaled_sample = self.scheduler.scale_model_input(sample, t)
                model_input = scaled_sample.to(self.unet.dtype)
                start, stop = (part_of(self.num_timesteps, fraction) for fraction in guidance_interval)
                if labels is not None and self.guidance_scale != 1 and start <= i < stop:
                    model_input = torch.cat([model_input, model_input])
                    prediction = self.unet(model_input, t, class_labels=guided_labels).sample.float()
                    null, label = prediction.chunk(2)
                    prediction = null + self.guidance_scale * (label - null)
                else:
                    prediction = self.unet(model_input, t, class_labels=labels).sample.float()

                sample = self.scheduler.step(prediction, t, sample, **step_kwargs).prev_sample

                if callback_on_step_end is not None:
                    tensors = {"latents": sample}
                    if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                        tensors["pred_original_sample"] = self.pred_original_sample(prediction, scaled_sample, t)
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    sample = callback_on_step_end(self, i, t, tensors).pop("latents", sample)
                progress_bar.update()

        # 5. images
        if not sample.isfinite().all():
            raise ValueError("The model draws pixels that are not finite: take another dtype, scheduler or model.")
        images: Any = sample
        if output_type != "latent":
            images = (sample / 2 + 0.5).clamp(0, 1)
            if output_type != "pt":
                images = images.permute(0, 2, 3, 1).cpu().numpy()
                if output_type == "pil":
                    images = self.numpy_to_pil(images)

        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)
