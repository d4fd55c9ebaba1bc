"""Every backbone of KerasHub, as small as it can be built.

`MODELS` says for each what its blocks are and how `attach` is asked for them;
the sizes of all of them are in `SIZES`.
"""

import inspect
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import keras_hub
import numpy as np
from private_keras import all_layers

# What arguments are given, by their names, where a model says nothing else.
SIZES = dict(
    vocabulary_size=20,
    vocab_size=20,
    num_layers=2,
    num_heads=2,
    num_query_heads=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_experts=2,
    num_classes=2,
    top_k=1,
    hidden_dim=8,
    embedding_dim=8,
    projection_dim=8,
    head_dim=4,
    head_size=4,
    mlp_dim=16,
    intermediate_dim=16,
    moe_intermediate_dim=8,
    shared_expert_intermediate_dim=8,
    shared_expert_intermediate_size=8,
    bucket_size=4,
    sliding_window=4,
    max_sequence_length=10,
    max_encoder_sequence_length=6,
    max_decoder_sequence_length=6,
    patch_size=4,
    image_size=16,
    image_shape=(16, 16, 3),
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=4,
    linear_value_head_dim=4,
)
LARGE = (32, 32, 3)  # Shape of images that are halved several times.


class Nested(NamedTuple):
    """A model, or layer, among the arguments of a model."""

    kind: str
    arguments: dict


class Model(NamedTuple):
    """How to build a backbone, and what to expect of it.

    Attributes:
        blocks: Names of the classes of its blocks, parted by spaces. Without
            any, `attach` is to refuse it.
        number: How many calls of blocks each line is to take.
        arguments: Of the class, where they are not those of `SIZES`.
        layers: For each line, what it attaches to.
        lengths: Lengths of inputs, by name, where 6 will not do.
        mask: Function of the inputs that returns the mask of the blocks, where
            the model computes it itself.
    """

    blocks: str = ""
    number: int = 2
    arguments: dict = {}
    layers: tuple = ("all",)
    lengths: dict = {}
    mask: Callable[[dict], Any] | None = None


def towers(family, block, **arguments):
    """A model with an encoder of images and one of texts."""
    sides = ("vision_encoder", "text_encoder")
    kinds = ("VisionEncoder", "TextEncoder")
    nested = {
        side: Nested(family + kind, {"name": side})
        for side, kind in zip(sides, kinds, strict=True)
    }
    layers = tuple(f"{side}/all" for side in sides)
    # SigLIP's texts are all of one length.
    return Model(block, 2, nested | arguments, layers, dict(token_ids=10))


def convolutions(**arguments):
    """A model without blocks."""
    return Model("", 0, {"image_shape": LARGE} | arguments)


def ids_that_count(x):
    """The mask of a model that knows its padding id, 0."""
    return x["token_ids"] != 0


def moonshine_mask(x):
    """One token for 384 samples of sound, rounded down thrice."""
    lengths = np.sum(x["encoder_padding_mask"], axis=1)
    for kernel, stride in ((127, 64), (7, 3), (3, 2)):
        lengths = (lengths - kernel) // stride + 1
    return np.arange(lengths.max()) < lengths[:, None]


RESNET = dict(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 64, 64, 64],
    stackwise_num_blocks=[1, 1, 1, 1],
    stackwise_num_strides=[1, 2, 2, 2],
    block_type="basic_block",
    image_shape=(None, None, 3),
)
MIT = dict(
    layerwise_depths=[2, 2],
    image_shape=LARGE,
    hidden_dims=[4, 8],
    layerwise_num_heads=[1, 2],
    layerwise_sr_ratios=[8, 4],
    layerwise_patch_sizes=[7, 3],
    layerwise_strides=[4, 2],
)
LINEAR = dict(head_dim=8, layer_types=["linear_attention", "full_attention"])
T5GEMMA = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in dict(
        hidden_dim=8,
        intermediate_dim=16,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        layer_types=["sliding_attention", "full_attention"],
    ).items()
} | dict(cross_attention_hidden_size=8)
SMOLLM = dict(
    attention_bias=False,
    mlp_bias=False,
    rope_layer_enabled_list=[True, True],
    layer_types=["attention", "attention"],
    layer_norm_epsilon=1e-5,
    max_position_embeddings=16,
    rope_theta=10000.0,
    partial_rotary_factor=1.0,
)
HGNET = dict(
    embedding_size=8,
    stem_channels=[3, 8, 8],
    hidden_act="relu",
    use_learnable_affine_block=False,
    depths=[1, 1],
    hidden_sizes=[16, 16],
    stackwise_stage_filters=[[8, 8, 16, 1, 1, 3], [16, 8, 16, 1, 1, 3]],
    apply_downsample=[False, True],
    use_lightweight_conv_block=[False, False],
)
SEVERAL = "several models in one, to be configured for each other"

MODELS = {
    "AlbertBackbone": Model(
        "TransformerEncoder", arguments=dict(embedding_dim=6)
    ),
    "BASNetBackbone": Model(
        "",
        0,
        dict(
            image_encoder=Nested(
                "ResNetBackbone",
                RESNET | dict(stackwise_num_filters=[64, 128, 256, 512]),
            ),
            num_classes=1,
            image_shape=(64, 64, 3),
        ),
    ),
    "BLIP2Backbone": SEVERAL,
    "BartBackbone": Model("TransformerEncoder TransformerDecoder", 4),
    "BertBackbone": Model("TransformerEncoder"),
    "BloomBackbone": Model("BloomDecoder"),
    "CLIPBackbone": towers("CLIP", "CLIPEncoderLayer"),
    "CSPNetBackbone": convolutions(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_strides=2,
        stackwise_depth=[1, 2],
        stackwise_num_filters=[8, 16],
        down_growth=True,
        bottle_ratio=(0.5, 1.0),
        block_ratio=(1.0, 0.5),
        expand_ratio=(2.0, 1.0),
        block_type="dark_block",
        stage_type="csp",
        stem_padding="same",
    ),
    "DFineBackbone": (
        "a detector, with blocks of several widths, for which `attach` asks"
    ),
    "DINOV2Backbone": Model("DINOV2Layer"),
    "DINOV3Backbone": Model("DINOV3Layer"),
    "DebertaV3Backbone": Model("DisentangledAttentionEncoder"),
    "DeepLabV3Backbone": Model(
        "",
        0,
        dict(
            image_encoder=Nested("ResNetBackbone", RESNET),
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P4",
            dilation_rates=[6, 12, 18],
            upsampling_size=4,
            image_shape=(96, 96, 3),
        ),
    ),
    "DeiTBackbone": Model("DeiTEncoderBlock"),
    "DenseNetBackbone": convolutions(
        stackwise_num_repeats=[1, 1], growth_rate=2
    ),
    "DepthAnythingBackbone": Model(
        "DINOV2Layer",
        4,
        dict(
            image_encoder=Nested(
                "DINOV2Backbone",
                dict(
                    patch_size=14,
                    image_shape=(126, 126, 3),
                    num_layers=4,
                    apply_layernorm=True,
                ),
            ),
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_dims=[8, 8, 8, 8],
            fusion_hidden_dim=8,
            head_hidden_dim=8,
            head_in_index=-1,
            feature_keys=["stage1", "stage2", "stage3", "stage4"],
        ),
    ),
    "DistilBertBackbone": Model("TransformerEncoder"),
    "ESMBackbone": Model("ESMEncoder", mask=ids_that_count),
    "EdRecBackbone": Model(
        "EdRecEncoderBlock EdRecDecoderBlock",
        4,
        dict(num_layers_enc=2, num_layers_dec=2),
    ),
    "EfficientNetBackbone": Model(
        "",
        0,
        dict(
            stackwise_kernel_sizes=[3, 3],
            stackwise_num_repeats=[1, 1],
            stackwise_input_filters=[8, 8],
            stackwise_output_filters=[8, 8],
            stackwise_expansion_ratios=[1, 4],
            stackwise_squeeze_and_excite_ratios=[0.0, 0.25],
            stackwise_strides=[1, 2],
            stackwise_block_types=["fused", "unfused"],
            stackwise_force_input_filters=[0, 0],
            stackwise_nores_option=[False, False],
            stackwise_width_coefficients=[1.0, 1.0],
            stackwise_depth_coefficients=[1.0, 1.0],
            input_shape=LARGE,
        ),
    ),
    "ElectraBackbone": Model("TransformerEncoder"),
    "FNetBackbone": Model("FNetEncoder"),
    "FalconBackbone": Model("FalconTransformerDecoder"),
    "FluxBackbone": Model(
        "DoubleStreamBlock SingleStreamBlock",
        4,
        dict(
            input_channels=8,
            hidden_size=16,
            mlp_ratio=2.0,
            depth=2,
            depth_single_blocks=2,
            axes_dim=[2, 2, 4],
            theta=10_000,
            use_bias=True,
            image_shape=(6, 8),
            text_shape=(6, 8),
            image_ids_shape=(6, 3),
            text_ids_shape=(6, 3),
            y_shape=(8,),
        ),
    ),
    "GPT2Backbone": Model("TransformerDecoder"),
    "GPTNeoXBackbone": Model(
        "GPTNeoXDecoder", arguments=dict(rotary_percentage=0.5)
    ),
    "Gemma3Backbone": Model("Gemma3DecoderBlock"),
    "Gemma3nBackbone": Model(
        "",
        0,
        dict(
            text_vocab_size=20,
            text_hidden_size=8,
            num_hidden_layers=2,
            pad_token_id=0,
            intermediate_size=[16, 16],
            hidden_activation="gelu_approximate",
            layer_types=["full_attention", "full_attention"],
            rope_theta=10000.0,
            max_position_embeddings=16,
            vocab_size_per_layer_input=20,
            hidden_size_per_layer_input=2,
            altup_num_inputs=2,
            laurel_rank=1,
        ),
    ),
    "Gemma4Backbone": Model("Gemma4TextDecoderBlock"),
    "GemmaBackbone": Model("GemmaDecoderBlock"),
    "GptOssBackbone": Model("GptOssTransformerDecoder"),
    "HGNetV2Backbone": convolutions(**HGNET),
    "Llama3Backbone": Model("LlamaTransformerDecoder"),
    "LlamaBackbone": Model("LlamaTransformerDecoder"),
    "MetaCLIP2Backbone": towers("MetaCLIP2", "MetaCLIP2EncoderLayer"),
    "MiTBackbone": Model("HierarchicalTransformerEncoder", 2, MIT, ([0, 1],)),
    "MistralBackbone": Model("MistralTransformerDecoder"),
    "MixtralBackbone": Model("MixtralTransformerDecoder"),
    "MobileNetBackbone": convolutions(
        stackwise_expansion=[[40], [64]],
        stackwise_num_blocks=[1, 1],
        stackwise_num_filters=[[16], [24]],
        stackwise_kernel_size=[[3], [5]],
        stackwise_num_strides=[[2], [1]],
        stackwise_se_ratio=[[None], [0.25]],
        stackwise_activation=[["relu"], ["hard_swish"]],
        stackwise_padding=[[1], [2]],
        output_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
    ),
    "MobileNetV5Backbone": convolutions(
        stackwise_block_types=[["er"], ["uir"]],
        stackwise_num_blocks=[1, 1],
        stackwise_num_filters=[[24], [48]],
        stackwise_strides=[[2], [2]],
        stackwise_act_layers=[["relu"], ["relu"]],
        stackwise_exp_ratios=[[4.0], [6.0]],
        stackwise_se_ratios=[[0.0], [0.0]],
        stackwise_dw_kernel_sizes=[[0], [5]],
        stackwise_dw_start_kernel_sizes=[[0], [0]],
        stackwise_dw_end_kernel_sizes=[[0], [0]],
        stackwise_exp_kernel_sizes=[[3], [0]],
        stackwise_pw_kernel_sizes=[[1], [0]],
        stackwise_num_heads=[[0], [0]],
        stackwise_key_dims=[[0], [0]],
        stackwise_value_dims=[[0], [0]],
        stackwise_kv_strides=[[0], [0]],
        stackwise_use_cpe=[[False], [False]],
        use_msfa=False,
    ),
    "MoonshineBackbone": Model(
        "MoonshineEncoderBlock MoonshineDecoderBlock",
        4,
        dict(
            filter_dim=8,
            encoder_num_layers=2,
            decoder_num_layers=2,
            encoder_num_heads=2,
            decoder_num_heads=2,
            feedforward_expansion_factor=2,
        ),
        lengths=dict(encoder_input_values=3000, encoder_padding_mask=3000),
        mask=moonshine_mask,
    ),
    "OPTBackbone": Model("TransformerDecoder"),
    "PARSeqBackbone": Model(
        "ViTEncoderBlock",
        2,
        dict(
            image_encoder=Nested(
                "ViTBackbone",
                dict(use_class_token=False, name="image_encoder"),
            ),
            max_label_length=6,
            decoder_hidden_dim=8,
            num_decoder_layers=1,
            num_decoder_heads=2,
            decoder_mlp_dim=16,
        ),
        ("image_encoder/all",),
    ),
    "PaliGemmaBackbone": Model(
        "PaliGemmaDecoderBlock",
        2,
        dict(
            vit_patch_size=8,
            vit_num_heads=2,
            vit_hidden_dim=8,
            vit_num_layers=2,
            vit_intermediate_dim=16,
        ),
    ),
    "Phi3Backbone": Model("Phi3Decoder"),
    "Qwen3Backbone": Model("Qwen3TransformerDecoder"),
    "Qwen3MoeBackbone": Model("Qwen3MoeTransformerDecoder"),
    "Qwen3_5Backbone": Model("Qwen3_5TransformerDecoder", 2, LINEAR),
    "Qwen3_5MoeBackbone": Model("Qwen3_5MoeTransformerDecoder", 2, LINEAR),
    "QwenBackbone": Model("QwenTransformerDecoder"),
    "QwenMoeBackbone": Model("QwenMoeTransformerDecoder"),
    "RWKV7Backbone": Model(
        "RWKV7_Block",
        2,
        dict(hidden_size=8, gate_lora=4, mv_lora=4, aaa_lora=4, decay_lora=4),
        lengths=dict(token_ids=16, padding_mask=16),
    ),
    "ResNetBackbone": Model("", 0, RESNET | dict(image_shape=LARGE)),
    "RetinaNetBackbone": Model(
        "",
        0,
        dict(
            image_encoder=Nested("ResNetBackbone", RESNET),
            min_level=3,
            max_level=4,
            use_p5=False,
            image_shape=(64, 64, 3),
        ),
    ),
    "RobertaBackbone": Model("TransformerEncoder"),
    "RoformerV2Backbone": Model("RoformerV2Encoder", mask=ids_that_count),
    "SAM3PromptableConceptBackbone": SEVERAL,
    "SAMBackbone": Model(
        "",
        0,
        dict(
            image_encoder=Nested(
                "ViTDetBackbone",
                dict(
                    hidden_size=8,
                    global_attention_layer_indices=[1],
                    num_output_channels=8,
                    window_size=2,
                    patch_size=16,
                ),
            ),
            prompt_encoder=Nested(
                "SAMPromptEncoder",
                dict(
                    hidden_size=8,
                    image_embedding_size=(8, 8),
                    input_image_size=(16, 16),
                    mask_in_channels=16,
                ),
            ),
            mask_decoder=Nested(
                "SAMMaskDecoder",
                dict(
                    hidden_size=8,
                    num_multimask_outputs=3,
                    iou_head_depth=3,
                    iou_head_hidden_dim=8,
                ),
            ),
        ),
        lengths=dict(masks=0),
    ),
    "SegFormerBackbone": Model(
        "HierarchicalTransformerEncoder",
        2,
        dict(projection_filters=8, image_encoder=Nested("MiTBackbone", MIT)),
        ([0, 1],),
    ),
    "SigLIPBackbone": towers("SigLIP", "SigLIPEncoderLayer"),
    "SmolLM3Backbone": Model("SmolLM3DecoderLayer", 2, SMOLLM),
    "StableDiffusion3Backbone": SEVERAL,
    "SwinTransformerBackbone": Model(
        "SwinTransformerBlock",
        2,
        dict(
            image_shape=LARGE,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
        ([0, 1],),
    ),
    "T5Backbone": Model("T5TransformerLayer", 4),
    "T5Gemma2Backbone": Model(
        "T5Gemma2EncoderLayer T5Gemma2DecoderLayer", 4, T5GEMMA
    ),
    "T5GemmaBackbone": Model(
        "T5GemmaEncoderLayer T5GemmaDecoderLayer", 4, T5GEMMA
    ),
    "VGGBackbone": Model(
        "",
        0,
        dict(stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 8]),
    ),
    "ViTBackbone": Model("ViTEncoderBlock"),
    "ViTDetBackbone": Model(
        "",
        0,
        dict(
            patch_size=2,
            hidden_size=8,
            global_attention_layer_indices=[1],
            num_output_channels=2,
            window_size=2,
        ),
    ),
    "VideoPrismBackbone": Model(
        "VideoPrismEncoderBlock",
        4,
        dict(
            num_frames=2,
            num_spatial_layers=2,
            num_temporal_layers=2,
            num_auxiliary_layers=0,
            vocabulary_size=0,
            image_shape=(8, 8, 3),
        ),
    ),
    "WhisperBackbone": Model("WhisperEncoder WhisperDecoder", 4),
    "XLMRobertaBackbone": Model("TransformerEncoder"),
    "XLNetBackbone": Model("XLNetEncoder"),
    "XceptionBackbone": convolutions(
        stackwise_conv_filters=[[8, 8], [16, 16]],
        stackwise_pooling=[False, True],
    ),
}


def build(name):
    """A backbone with random weights, and without dropout."""
    keras.utils.set_random_seed(1)
    model = _built(Nested(name, MODELS[name].arguments))
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # MiT's cannot be given.
    return model


def _built(value):
    if not isinstance(value, Nested):
        return value
    kind = getattr(keras_hub.models, value.kind, None) or getattr(
        keras_hub.layers, value.kind
    )
    names = inspect.signature(kind.__init__).parameters
    sizes = {k: v for k, v in SIZES.items() if k in names}
    zeros = {k: 0.0 for k in names if "drop" in k and "downsample" not in k}
    arguments = sizes | zeros | value.arguments
    return kind(**{k: _built(v) for k, v in arguments.items()})
