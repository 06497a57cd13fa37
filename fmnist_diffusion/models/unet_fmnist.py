"""A U-Net and a classifier for Fashion-MNIST diffusion models.

This file only depends on torch and diffusers, because `save_pretrained` copies it into every saved pipeline.
`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` runs that copy where the package is not installed.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.activations import ACT2CLS, get_activation
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


NORM_TYPES = ("batch", "group")
TIME_CONDITIONINGS = ("bottleneck", "all")
TIME_SCALE_SHIFTS = ("default", "scale_shift")
SKIP_CONNECTIONS = ("concat", "add", "none")
CLASS_EMBED_TYPES = (None, "identity")

# Values above the maxima would only exhaust the memory.
MIN_SIZE, MAX_SIZE = 8, 512
MAX_CHANNELS = 8192
MAX_LEVELS = 8
MAX_LAYERS_PER_BLOCK = 64
MAX_CLASSES = 1_000_000

# For at most this many tokens, training on a CPU uses plain matrix products, because fused attention is slower.
MATH_ATTENTION_TOKENS = 256

# This model does not support these arguments of UNet2DModel, for the given reasons.
UNSUPPORTED_ARGUMENTS = {
    "down_block_types": "`block_out_channels`, `layers_per_block` and `attention_levels` define the blocks",
    "up_block_types": "`block_out_channels`, `layers_per_block` and `attention_levels` define the blocks",
    "mid_block_type": "the last level of `block_out_channels` is the bottleneck",
    "mid_block_scale_factor": "residual blocks are not rescaled",
    "add_attention": "`attention_levels=()` disables attention",
    "attn_norm_num_groups": "attention uses LayerNorm, which has no groups",
    "center_input_sample": "pipelines scale images to [-1, 1]",
    "downsample_padding": "downsampling is always a 3x3 convolution with stride 2 and padding 1",
    "downsample_type": "downsampling is always a 3x3 convolution with stride 2 and padding 1",
    "upsample_type": "upsampling is always a transposed convolution",
    "flip_sin_to_cos": "the time embedding is always sinusoidal, with the cosine first",
    "freq_shift": "the time embedding is always sinusoidal, with a frequency shift of 0",
    "time_embedding_type": "the time embedding is always sinusoidal",
    "norm_eps": "`norm_type` and `norm_num_groups` define the normalization",
    "num_train_timesteps": "`forward` accepts any timestep",
}


class CheckpointSafeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that updates its running statistics once per training batch.

    Gradient checkpointing does not update them twice. A forward pass without gradients, such as sampling in training
    mode, only updates them if `momentum` is `None`. `torch.optim.swa_utils.update_bn` sets this value.
    """

    has_updated = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.momentum is None:
            return super().forward(input)
        is_compiling = torch.compiler.is_compiling()
        if not torch.is_grad_enabled():
            if not is_compiling:
                self.has_updated = False
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        # A compiled graph updates the statistics only once.
        if not is_compiling:
            # Gradient checkpointing recomputes the forward pass during the backward pass. The first pass has already
            # updated the statistics, unless it ran without gradients (reentrant checkpointing).
            if torch._C._current_graph_task_id() != -1 and self.has_updated:
                return F.batch_norm(
                    input, self.running_mean, self.running_var, self.weight, self.bias, True, 0.0, self.eps
                )
            self.has_updated = True
        return super().forward(input)


def is_integer(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def check_block_out_channels(block_out_channels: object) -> None:
    if (
        not isinstance(block_out_channels, (list, tuple))
        or not 1 <= len(block_out_channels) <= MAX_LEVELS
        or not all(is_integer(channels, 1, MAX_CHANNELS) for channels in block_out_channels)
    ):
        raise ValueError(
            f"`block_out_channels` must be a tuple of 1 to {MAX_LEVELS} integers from 1 to {MAX_CHANNELS}, got"
            f" {block_out_channels!r}."
        )


def check_norm_num_groups(norm_num_groups: int, block_out_channels: tuple[int, ...]) -> None:
    if any(channels % norm_num_groups for channels in block_out_channels):
        raise ValueError(
            f"`norm_num_groups` must divide every entry of `block_out_channels` {tuple(block_out_channels)}, got"
            f" {norm_num_groups}."
        )


def check_label_names(label_names: object, argument: str, num_classes: int | None) -> None:
    """Raises `ValueError` unless each class has a distinct name. `argument` is named in the message."""
    if (
        not isinstance(label_names, (list, tuple))
        or not all(isinstance(label, str) for label in label_names)
        or len(set(label_names)) < len(label_names)
    ):
        raise ValueError(f"`label_names` must be a tuple of distinct strings, got {label_names!r}.")
    if num_classes is None:
        raise ValueError(f"`label_names` requires `{argument}`. Set it to the number of names ({len(label_names)}).")
    if len(label_names) != num_classes:
        raise ValueError(
            f"`label_names` must have one name for each class (`{argument}`={num_classes}), got {len(label_names)}."
        )


def expand_timestep(timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
    """Returns one float32 timestep for each image of `sample` (B, C, H, W)."""
    if not torch.is_tensor(timestep):
        # With `torch.tensor`, `torch.compile` would recompile the graph for every timestep.
        timestep = torch.full((), timestep, dtype=torch.float32, device=sample.device)
    return timestep.to(sample.device, torch.float32).expand(sample.shape[0])


def get_norm(norm_type: str, channels: int, norm_num_groups: int) -> nn.Module:
    if norm_type == "batch":
        return CheckpointSafeBatchNorm2d(channels)
    return nn.GroupNorm(norm_num_groups, channels)


def condition_on_time(hidden_states: torch.Tensor, temb: torch.Tensor, time_scale_shift: str) -> torch.Tensor:
    """Adds `temb` (B, C) to features (B, C, H, W), or scales and shifts them by the halves of `temb` (B, 2C)."""
    temb = temb[:, :, None, None]
    if time_scale_shift == "scale_shift":
        scale, shift = temb.chunk(2, dim=1)
        return hidden_states * (1 + scale) + shift
    return hidden_states + temb


class FashionMNISTAttnProcessor:
    """Processor for multi-head self-attention with the attention backends of diffusers."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: "FashionMNISTAttention", hidden_states: torch.Tensor) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        # (B, H*W, C) -> (B, H*W, heads, C/heads)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
        backend = self._attention_backend
        if (
            backend is None
            and attn.training
            and query.device.type == "cpu"
            and query.shape[1] <= MATH_ATTENTION_TOKENS
        ):
            backend = AttentionBackendName._NATIVE_MATH
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=backend, parallel_config=self._parallel_config
        )
        return attn.to_out[1](attn.to_out[0](hidden_states.flatten(2, 3)))


class FashionMNISTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over tokens (B, H*W, C), which also works with diffusers' `AttnProcessor`s."""

    _default_processor_cls = FashionMNISTAttnProcessor
    _available_processors = [FashionMNISTAttnProcessor]
    processor: Callable[..., torch.Tensor]

    def __init__(self, channels: int, head_dim: int, dropout: float):
        super().__init__()
        self.heads = channels // head_dim
        self.use_bias = True
        self.is_cross_attention = False
        # diffusers' processors read these attributes.
        self.scale = head_dim**-0.5
        self.rescale_output_factor = 1.0
        self.spatial_norm = self.group_norm = self.norm_q = self.norm_k = None
        self.norm_cross = self.residual_connection = self.upcast_attention = self.upcast_softmax = False

        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(dropout)])
        self.processor = FashionMNISTAttnProcessor()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.processor(self, hidden_states)


class FashionMNISTAttentionBlock(nn.Module):
    """Layer normalization, self-attention over all positions of (B, C, H, W), and a residual connection."""

    def __init__(self, channels: int, head_dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = FashionMNISTAttention(channels, head_dim, dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(2).transpose(1, 2)  # (B, H*W, C)
        tokens = self.attn(self.norm(tokens))
        return hidden_states + tokens.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class FashionMNISTResidualBlock(nn.Module):
    """
    Post-activation residual block (He et al., arXiv 1512.03385, figure 2).

    With `temb_channels`, a projection of the time embedding conditions the features after the first normalization.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int | None,
        time_scale_shift: str,
        norm_type: str,
        norm_num_groups: int,
        act_fn: str,
        dropout: float,
    ):
        super().__init__()
        self.time_scale_shift = time_scale_shift
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = get_norm(norm_type, out_channels, norm_num_groups)
        self.time_emb_proj = None
        if temb_channels is not None:
            width = 2 * out_channels if time_scale_shift == "scale_shift" else out_channels
            self.time_emb_proj = nn.Linear(temb_channels, width)
        self.act = get_activation(act_fn)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = get_norm(norm_type, out_channels, norm_num_groups)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        residual = self.conv_shortcut(hidden_states)
        hidden_states = self.norm1(self.conv1(hidden_states))
        if self.time_emb_proj is not None:
            hidden_states = condition_on_time(hidden_states, self.time_emb_proj(self.act(temb)), self.time_scale_shift)
        hidden_states = self.norm2(self.conv2(self.dropout(self.act(hidden_states))))
        return self.act(hidden_states + residual)


class FashionMNISTDownBlock(nn.Module):
    """
    Encoder level: a convolution (stride 2 except on the first level), residual blocks, time conditioning and
    attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        num_layers: int,
        add_time: bool,
        time_scale_shift: str,
        attention_head_dim: int | None,
        dropout: float,
        **resnet_kwargs,
    ):
        super().__init__()
        self.add_time = add_time
        self.time_scale_shift = time_scale_shift
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.resnets = nn.ModuleList(
            FashionMNISTResidualBlock(
                out_channels, out_channels, time_scale_shift=time_scale_shift, dropout=dropout, **resnet_kwargs
            )
            for _ in range(num_layers)
        )
        self.attention = None
        if attention_head_dim is not None:
            self.attention = FashionMNISTAttentionBlock(out_channels, attention_head_dim, dropout)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states, temb)
        if self.add_time:
            hidden_states = condition_on_time(hidden_states, temb, self.time_scale_shift)
        if self.attention is not None:
            hidden_states = self.attention(hidden_states)
        return hidden_states


class FashionMNISTUpBlock(nn.Module):
    """
    Decoder level: a transposed convolution to the size of the skip connection, the skip connection, residual blocks
    and attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        skip_connection: str,
        attention_head_dim: int | None,
        dropout: float,
        **resnet_kwargs,
    ):
        super().__init__()
        self.skip_connection = skip_connection
        self.conv_transpose = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1)
        first_in_channels = 2 * out_channels if skip_connection == "concat" else out_channels
        self.resnets = nn.ModuleList(
            FashionMNISTResidualBlock(
                first_in_channels if i == 0 else out_channels, out_channels, dropout=dropout, **resnet_kwargs
            )
            for i in range(num_layers)
        )
        self.attention = None
        if attention_head_dim is not None:
            self.attention = FashionMNISTAttentionBlock(out_channels, attention_head_dim, dropout)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_transpose(hidden_states, output_size=skip.shape[2:])
        if self.skip_connection == "concat":
            hidden_states = torch.cat([hidden_states, skip], dim=1)
        elif self.skip_connection == "add":
            hidden_states = hidden_states + skip
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states, temb)
        if self.attention is not None:
            hidden_states = self.attention(hidden_states)
        return hidden_states


class FashionMNISTUNet2DModel(ModelMixin, AttentionMixin, ConfigMixin):
    r"""
    A U-Net with the interface of [`UNet2DModel`]. It predicts the noise, v, x0 or the flow.

    The default model has 13.2 M parameters. It has four levels with 64, 128, 256 and 512 channels at 28, 14, 7 and 4
    pixels, one residual block with BatchNorm per level, and self-attention and the time embedding at the bottleneck.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, defaults to `28`):
            Height and width of the images that a pipeline generates, or of the latents with an autoencoder, from 8 to
            512. `forward` accepts any height and width.
        in_channels (`int`, defaults to `1`): Number of channels of the noisy images or latents.
        out_channels (`int`, defaults to `1`): Number of channels of the prediction.
        block_out_channels (`tuple[int, ...]`, defaults to `(64, 128, 256, 512)`):
            Number of channels of each level, for 1 to 8 levels; the last level is the bottleneck. Each level after the
            first halves the height and width (rounded up).
        layers_per_block (`int`, defaults to `1`): Number of residual blocks per level of the encoder and the decoder.
        norm_type (`str`, defaults to `"batch"`):
            Normalization of the residual blocks, `"batch"` or `"group"`. With `"batch"`, call `eval()` before sampling
            with a pipeline other than [`FashionMNISTPipeline`], so that the model uses its running statistics. The
            `EMAModel` of diffusers does not save these statistics, so use `"group"` with it.
        norm_num_groups (`int`, defaults to `32`):
            Number of groups for `norm_type="group"`. It must divide every entry of `block_out_channels`.
        act_fn (`str`, defaults to `"relu"`): Activation: `"relu"`, `"silu"`, `"swish"`, `"gelu"` or `"mish"`.
        time_conditioning (`str`, defaults to `"bottleneck"`):
            Where the time embedding conditions the features: at the `"bottleneck"` or in `"all"` residual blocks.
        resnet_time_scale_shift (`str`, defaults to `"default"`):
            `"default"` adds the time embedding to the features. `"scale_shift"` scales and shifts the features (arXiv
            2105.05233, section 3).
        time_embedding_dim (`int`, defaults to `128`): Dimension of the sinusoidal embedding, an even number.
        attention_levels (`tuple[int, ...]`, *optional*):
            Levels with self-attention in the encoder and the decoder, where level 0 has the full resolution. `None`
            uses attention at the bottleneck only, and `()` disables it.
        attention_head_dim (`int`, defaults to `64`):
            Number of channels per head. It must divide the number of channels of every level with attention.
        skip_connection (`str`, defaults to `"concat"`):
            How the decoder combines its features with those of the encoder: `"concat"`, `"add"` or `"none"`.
        dropout (`float`, defaults to `0.0`): Dropout probability in residual blocks and after attention, in [0, 1).
        class_embed_type (`str`, *optional*):
            With `None`, `class_labels` are class indices if `num_class_embeds` is set. With `"identity"`, they are
            embeddings, such as the output of a text encoder, that are added to the time embedding. They have
            `block_out_channels[-1]` channels, or twice as many with `"scale_shift"` at the `"bottleneck"`.
        num_class_embeds (`int`, *optional*):
            Number of classes of a class-conditional model. The model also learns a null label for
            `class_labels=None`, the unconditional branch of classifier-free guidance.
        label_names (`tuple[str, ...]`, *optional*):
            Distinct class names in the order of their labels. A pipeline accepts them as class labels.

    Raises:
        `ValueError`:
            If a parameter is out of range, or is an argument of [`UNet2DModel`] that this model does not support.
        `TypeError`: If an argument is unknown.
    """

    ignore_for_config = ["kwargs"]
    _supports_gradient_checkpointing = True
    _supports_group_offloading = True
    _no_split_modules = ["FashionMNISTDownBlock", "FashionMNISTUpBlock"]
    # Regional compilation does not save time for residual blocks, because their width differs between levels.
    _repeated_blocks = ["FashionMNISTAttentionBlock"]
    # A model that is saved after `fuse_qkv_projections` also contains the separate projections.
    _keys_to_ignore_on_load_unexpected = [r"\.to_qkv\."]
    _skip_layerwise_casting_patterns = ["norm"]
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512),
        layers_per_block: int = 1,
        norm_type: str = "batch",
        norm_num_groups: int = 32,
        act_fn: str = "relu",
        time_conditioning: str = "bottleneck",
        resnet_time_scale_shift: str = "default",
        time_embedding_dim: int = 128,
        attention_levels: tuple[int, ...] | None = None,
        attention_head_dim: int = 64,
        skip_connection: str = "concat",
        dropout: float = 0.0,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        label_names: tuple[str, ...] | None = None,
        **kwargs,
    ):
        super().__init__()

        # Check inputs
        for name in kwargs:
            if name in UNSUPPORTED_ARGUMENTS:
                raise ValueError(
                    f"`{name}` is not supported by {type(self).__name__}. Remove it: {UNSUPPORTED_ARGUMENTS[name]}."
                )
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}.")
        for name, value, choices in (
            ("norm_type", norm_type, NORM_TYPES),
            ("act_fn", act_fn, tuple(ACT2CLS)),
            ("time_conditioning", time_conditioning, TIME_CONDITIONINGS),
            ("resnet_time_scale_shift", resnet_time_scale_shift, TIME_SCALE_SHIFTS),
            ("skip_connection", skip_connection, SKIP_CONNECTIONS),
            ("class_embed_type", class_embed_type, CLASS_EMBED_TYPES),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
        for name, value, maximum in (
            ("in_channels", in_channels, MAX_CHANNELS),
            ("out_channels", out_channels, MAX_CHANNELS),
            ("layers_per_block", layers_per_block, MAX_LAYERS_PER_BLOCK),
            ("norm_num_groups", norm_num_groups, MAX_CHANNELS),
            ("time_embedding_dim", time_embedding_dim, MAX_CHANNELS),
            ("attention_head_dim", attention_head_dim, MAX_CHANNELS),
            ("num_class_embeds", 1 if num_class_embeds is None else num_class_embeds, MAX_CLASSES),
        ):
            if not is_integer(value, 1, maximum):
                raise ValueError(f"`{name}` must be an integer from 1 to {maximum}, got {value!r}.")
        height_width = [sample_size, sample_size] if isinstance(sample_size, int) else sample_size
        if (
            not isinstance(height_width, (list, tuple))
            or len(height_width) != 2
            or not all(is_integer(size, MIN_SIZE, MAX_SIZE) for size in height_width)
        ):
            raise ValueError(
                f"`sample_size` must be an integer from {MIN_SIZE} to {MAX_SIZE}, or a tuple (height, width) of these,"
                f" got {sample_size!r}."
            )
        if time_embedding_dim % 2:
            raise ValueError(f"`time_embedding_dim` must be a positive even number, got {time_embedding_dim!r}.")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be a number in [0, 1), got {dropout!r}.")
        check_block_out_channels(block_out_channels)
        bottleneck = len(block_out_channels) - 1
        if attention_levels is None:
            attention_levels = (bottleneck,)
        if not isinstance(attention_levels, (list, tuple)) or not all(
            is_integer(level, 0, bottleneck) for level in attention_levels
        ):
            raise ValueError(
                f"`attention_levels` must be a tuple of levels from 0 to {bottleneck}, got {attention_levels!r}."
            )
        for channels in (block_out_channels[level] for level in attention_levels):
            if channels % attention_head_dim:
                raise ValueError(
                    f"`attention_head_dim` must divide the {channels} channels of a level in `attention_levels`, got"
                    f" {attention_head_dim}."
                )
        if norm_type == "group":
            check_norm_num_groups(norm_num_groups, block_out_channels)
        if class_embed_type is not None and num_class_embeds is not None:
            raise ValueError(
                f"`num_class_embeds` must be None with `class_embed_type={class_embed_type!r}`, got"
                f" {num_class_embeds}."
            )
        if label_names is not None:
            if class_embed_type is not None:
                raise ValueError(
                    f"`label_names` must be None with `class_embed_type={class_embed_type!r}`, got {label_names!r}."
                )
            check_label_names(label_names, "num_class_embeds", num_class_embeds)

        # 1. time and class
        everywhere = time_conditioning == "all"
        temb_channels = block_out_channels[-1]
        if not everywhere and resnet_time_scale_shift == "scale_shift":
            temb_channels *= 2
        self.time_proj = Timesteps(time_embedding_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(
            time_embedding_dim, block_out_channels[-1], act_fn=act_fn, out_dim=temb_channels
        )
        self.class_embedding = None
        if class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds + 1, temb_channels)

        block_kwargs = {
            "num_layers": layers_per_block,
            "temb_channels": temb_channels if everywhere else None,
            "time_scale_shift": resnet_time_scale_shift,
            "norm_type": norm_type,
            "norm_num_groups": norm_num_groups,
            "act_fn": act_fn,
            "dropout": dropout,
        }

        # 2. down
        self.down_blocks = nn.ModuleList(
            FashionMNISTDownBlock(
                in_channels if level == 0 else block_out_channels[level - 1],
                channels,
                stride=1 if level == 0 else 2,
                add_time=level == bottleneck and not everywhere,
                attention_head_dim=attention_head_dim if level in attention_levels else None,
                **block_kwargs,
            )
            for level, channels in enumerate(block_out_channels)
        )

        # 3. up
        self.up_blocks = nn.ModuleList(
            FashionMNISTUpBlock(
                block_out_channels[level + 1],
                block_out_channels[level],
                skip_connection=skip_connection,
                attention_head_dim=attention_head_dim if level in attention_levels else None,
                **block_kwargs,
            )
            for level in reversed(range(bottleneck))
        )

        # 4. out
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, 3, padding=1)

        self.gradient_checkpointing = False

    def set_default_attn_processor(self) -> None:
        """Replaces custom attention processors with the default one."""
        processor: Any = FashionMNISTAttnProcessor()
        self.set_attn_processor(processor)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        r"""
        Predicts the noise, v, x0 or the flow, depending on the `prediction_type` used in training.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`):
                The noisy images, scaled to about unit variance.
            timestep (`torch.Tensor` or `float` or `int`):
                Timestep in `[0, num_train_timesteps]`, one for all images or one for each image.
            class_labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Labels in `[0, num_class_embeds]`, where `num_class_embeds` is the null label. Defaults to the null
                label for all images. With `class_embed_type="identity"`, this argument is required and contains
                embeddings of shape `(batch, channels)`.
            return_dict (`bool`, defaults to `True`): Whether to return a [`UNet2DOutput`] or a tuple.

        Returns:
            [`UNet2DOutput`] or `tuple`: The prediction, of shape `(batch, out_channels, height, width)`.

        Raises:
            `ValueError`: If `class_labels` are passed to an unconditional model or required embeddings are missing.
        """
        # 1. time and class
        timesteps = expand_timestep(timestep, sample)
        temb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                if isinstance(self.class_embedding, nn.Identity):
                    raise ValueError('`class_labels` must be embeddings with `class_embed_type="identity"`, got None.')
                null_label = self.class_embedding.num_embeddings - 1
                class_labels = torch.full_like(timesteps, null_label, dtype=torch.long)
            temb = temb + self.class_embedding(class_labels)
        elif class_labels is not None:
            raise ValueError("`class_labels` is not supported by an unconditional model. Omit it.")

        # 2. down
        skips = []
        for block in self.down_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                sample = self._gradient_checkpointing_func(block, sample, temb)
            else:
                sample = block(sample, temb)
            skips.append(sample)
        skips.pop()

        # 3. up
        for block in self.up_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                sample = self._gradient_checkpointing_func(block, sample, skips.pop(), temb)
            else:
                sample = block(sample, skips.pop(), temb)

        # 4. out
        sample = self.conv_out(sample)

        if not return_dict:
            return (sample,)
        return UNet2DOutput(sample=sample)


class FashionMNISTGuidanceClassifier(ModelMixin, ConfigMixin):
    r"""
    A classifier for noisy images, used for classifier guidance (arXiv 2105.05233, section 4).

    The network is the encoder of [`FashionMNISTUNet2DModel`] with GroupNorm, the time embedding in all residual blocks
    and single-head attention at the last level, followed by average pooling and a linear layer. The default model has
    0.65 M parameters.

    Parameters:
        in_channels (`int`, defaults to `1`): Number of channels of the noisy image.
        num_classes (`int`, defaults to `10`): Number of classes.
        block_out_channels (`tuple[int, ...]`, defaults to `(16, 32, 64, 128)`):
            Number of channels of each level, for 1 to 8 levels. Each level after the first halves the height and width
            (rounded up).
        norm_num_groups (`int`, defaults to `8`):
            Number of groups of GroupNorm. It must divide every entry of `block_out_channels`.
        label_names (`tuple[str, ...]`, *optional*):
            Distinct class names in the order of their labels. A pipeline with an unconditional model accepts them as
            class labels.

    Raises:
        `ValueError`: If a parameter is out of range.
    """

    _no_split_modules = ["FashionMNISTDownBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (16, 32, 64, 128),
        norm_num_groups: int = 8,
        label_names: tuple[str, ...] | None = None,
    ):
        super().__init__()

        # Check inputs
        for name, value, maximum in (
            ("in_channels", in_channels, MAX_CHANNELS),
            ("num_classes", num_classes, MAX_CLASSES),
            ("norm_num_groups", norm_num_groups, MAX_CHANNELS),
        ):
            if not is_integer(value, 1, maximum):
                raise ValueError(f"`{name}` must be an integer from 1 to {maximum}, got {value!r}.")
        check_block_out_channels(block_out_channels)
        check_norm_num_groups(norm_num_groups, block_out_channels)
        if label_names is not None:
            check_label_names(label_names, "num_classes", num_classes)

        # 1. time
        channels = block_out_channels[-1]
        self.time_proj = Timesteps(128, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(128, channels)

        # 2. down
        self.down_blocks = nn.ModuleList(
            FashionMNISTDownBlock(
                in_channels if level == 0 else block_out_channels[level - 1],
                block_out_channels[level],
                stride=1 if level == 0 else 2,
                num_layers=1,
                add_time=False,
                time_scale_shift="scale_shift",
                attention_head_dim=channels if level == len(block_out_channels) - 1 else None,
                dropout=0.0,
                temb_channels=channels,
                norm_type="group",
                norm_num_groups=norm_num_groups,
                act_fn="silu",
            )
            for level in range(len(block_out_channels))
        )

        # 3. out
        self.linear_out = nn.Linear(channels, num_classes)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        r"""
        Predicts the classes of noisy images.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`):
                The noisy images, scaled to about unit variance.
            timestep (`torch.Tensor` or `float` or `int`):
                Timestep in `[0, num_train_timesteps]`, one for all images or one for each image.

        Returns:
            `torch.Tensor` of shape `(batch, num_classes)`: The logits.
        """
        # 1. time
        temb = self.time_embedding(self.time_proj(expand_timestep(timestep, sample)).to(sample.dtype))

        # 2. down
        for block in self.down_blocks:
            sample = block(sample, temb)

        # 3. out
        return self.linear_out(sample.mean(dim=(2, 3)))
