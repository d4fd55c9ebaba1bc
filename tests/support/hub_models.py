"""Every backbone of KerasHub, as small as it can be built.

Each entry gives the arguments of the class, the class of the layers that are
its blocks, and how many calls of them there are. A string instead says why
there is no entry.
"""

from typing import NamedTuple

TEXT = dict(
    vocabulary_size=20,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
)
SHORT = TEXT | dict(max_sequence_length=10)
GROUPED = dict(
    vocabulary_size=20,
    num_layers=2,
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=8,
    intermediate_dim=16,
)
IMAGE = dict(image_shape=(16, 16, 3))
VIT = IMAGE | dict(
    patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16
)
EXPERTS = dict(num_experts=2, top_k=1)
LINEAR = dict(
    layer_types=["linear_attention", "full_attention"],
    partial_rotary_factor=0.25,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=4,
    linear_value_head_dim=4,
    linear_conv_kernel_dim=4,
)
GEMMA_SIDES = {
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
} | dict(
    vocabulary_size=20,
    dropout_rate=0.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    query_pre_attn_scalar=1.0,
    attention_bias=False,
    hidden_activation="gelu_approximate",
    sliding_window=16,
    cross_attention_hidden_size=8,
    attn_logit_softcapping=50.0,
    rope_max_wavelength=10000.0,
    initializer_range=0.04,
    attention_dropout=0.0,
)
RESNET = dict(
    input_conv_filters=[8],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[8, 8, 8, 8],
    stackwise_num_blocks=[1, 1, 1, 1],
    stackwise_num_strides=[1, 2, 2, 2],
    block_type="basic_block",
)
MIT = dict(
    layerwise_depths=[2, 2],
    image_shape=(32, 32, 3),
    hidden_dims=[4, 8],
    num_layers=2,
    layerwise_num_heads=[1, 2],
    layerwise_sr_ratios=[8, 4],
    max_drop_path_rate=0.0,
    layerwise_patch_sizes=[7, 3],
    layerwise_strides=[4, 2],
)


class Model(NamedTuple):
    """How to build a backbone, and what to expect of it.

    Attributes:
        arguments: Of its class; a `Nested` is a model to build first.
        block: Name of the class of its blocks.
        number: How many calls of blocks are to be taken; 0 if `attach` is to
            refuse, as there are none.
        layers: What to attach to.
        lengths: Lengths of inputs, by name, where 6 will not do.
    """

    arguments: dict
    block: str = ""
    number: int = 2
    layers: object = "all"
    lengths: dict = {}


class Nested(NamedTuple):
    """A model among the arguments of another."""

    kind: str
    arguments: dict


def towers(family, **options):
    """The two encoders of a CLIP model."""
    size = dict(num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16)
    image = dict(patch_size=8, image_shape=(16, 16, 3), name="vision_encoder")
    text = dict(
        vocabulary_size=20,
        embedding_dim=8,
        max_sequence_length=10,
        name="text_encoder",
    )
    return dict(
        vision_encoder=Nested(f"{family}VisionEncoder", size | image),
        text_encoder=Nested(f"{family}TextEncoder", size | text),
        **options,
    )


TOWER = "text_encoder/all"
CONVOLUTIONS = "layers of convolutions alone, which have no blocks"

MODELS = {
    "AlbertBackbone": Model(
        SHORT | dict(embedding_dim=6, num_inner_repetitions=1),
        "TransformerEncoder",
    ),
    "BASNetBackbone": Model(
        dict(
            image_encoder=Nested(
                "ResNetBackbone",
                RESNET | dict(stackwise_num_filters=[64, 128, 256, 512]),
            ),
            num_classes=1,
            image_shape=(64, 64, 3),
        ),
        number=0,
    ),
    "BLIP2Backbone": "three models that are built in turn, without names",
    "BartBackbone": Model(SHORT, "Transformer", 4),
    "BertBackbone": Model(SHORT, "TransformerEncoder"),
    "BloomBackbone": Model(TEXT, "BloomDecoder"),
    "CLIPBackbone": Model(
        towers("CLIP", projection_dim=8), "CLIPEncoderLayer", 2, TOWER
    ),
    "CSPNetBackbone": Model(
        dict(
            stem_filters=8,
            stem_kernel_size=3,
            stem_strides=1,
            stackwise_strides=2,
            stackwise_depth=[1, 2],
            stackwise_num_filters=[8, 16],
            image_shape=(32, 32, 3),
            down_growth=True,
            bottle_ratio=(0.5, 1.0),
            block_ratio=(1.0, 0.5),
            expand_ratio=(2.0, 1.0),
            block_type="dark_block",
            stage_type="csp",
            stem_padding="same",
        ),
        number=0,
    ),
    "DFineBackbone": "a detector, which takes boxes to train on",
    "DINOV2Backbone": Model(
        VIT | dict(num_register_tokens=1), "DINOV2Layer"
    ),
    "DINOV3Backbone": Model(VIT, "DINOV3Layer"),
    "DebertaV3Backbone": Model(
        SHORT | dict(bucket_size=4), "DisentangledAttentionEncoder"
    ),
    "DeepLabV3Backbone": Model(
        dict(
            image_encoder=Nested("ResNetBackbone", RESNET),
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P4",
            dilation_rates=[6, 12, 18],
            upsampling_size=4,
            image_shape=(96, 96, 3),
        ),
        number=0,
    ),
    "DeiTBackbone": Model(VIT, "DeiTEncoderLayer"),
    "DenseNetBackbone": Model(
        dict(
            stackwise_num_repeats=[1, 1],
            compression_ratio=0.5,
            growth_rate=2,
            image_shape=(32, 32, 3),
        ),
        number=0,
    ),
    "DepthAnythingBackbone": Model(
        dict(
            image_encoder=Nested(
                "DINOV2Backbone",
                VIT
                | dict(
                    patch_size=14,
                    image_shape=(126, 126, 3),
                    num_layers=4,
                    apply_layernorm=True,
                    name="image_encoder",
                ),
            ),
            patch_size=14,
            backbone_hidden_dim=8,
            reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_dims=[8, 8, 8, 8],
            fusion_hidden_dim=8,
            head_hidden_dim=8,
            head_in_index=-1,
            feature_keys=["stage1", "stage2", "stage3", "stage4"],
        ),
        "DINOV2Layer",
        4,
    ),
    "DistilBertBackbone": Model(SHORT, "TransformerEncoder"),
    "ESM2Backbone": Model(TEXT, "ESMEncoder"),
    "ESMBackbone": Model(TEXT, "ESMEncoder"),
    "EdRecBackbone": Model(
        dict(
            vocab_size=20,
            num_layers_enc=2,
            num_layers_dec=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            dropout=0.0,
        ),
        "EdRec",
        4,
    ),
    "EfficientNetBackbone": Model(
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
            width_coefficient=1.0,
            depth_coefficient=1.0,
            image_shape=(32, 32, 3),
        ),
        number=0,
    ),
    "ElectraBackbone": Model(
        {k: v for k, v in SHORT.items() if k != "vocabulary_size"}
        | dict(vocab_size=20, embedding_dim=8),
        "TransformerEncoder",
    ),
    "FNetBackbone": Model(
        {k: v for k, v in SHORT.items() if k != "num_heads"}, "FNetEncoder"
    ),
    "FalconBackbone": Model(
        {k: v for k, v in TEXT.items() if k != "num_heads"}
        | dict(num_attention_heads=2),
        "FalconTransformerDecoder",
    ),
    "FluxBackbone": "a diffusion model, whose blocks are of several streams",
    "GPT2Backbone": Model(SHORT, "GPT2TransformerDecoder"),
    "GPTNeoXBackbone": Model(SHORT, "GPTNeoXDecoder"),
    "Gemma3Backbone": Model(
        GROUPED | dict(image_size=16, head_dim=4), "Gemma3DecoderBlock"
    ),
    "Gemma3nBackbone": "its blocks return four states at once, `(4, batch, …)`",
    "Gemma4Backbone": Model(
        GROUPED | dict(image_size=16, head_dim=4), "Gemma4"
    ),
    "GemmaBackbone": Model(GROUPED | dict(head_dim=4), "GemmaDecoderBlock"),
    "GptOssBackbone": Model(
        GROUPED | EXPERTS | dict(sliding_window=4), "GptOssTransformerDecoder"
    ),
    "HGNetV2Backbone": Model(
        dict(
            embedding_size=8,
            stem_channels=[3, 8, 8],
            hidden_act="relu",
            use_learnable_affine_block=False,
            image_shape=(32, 32, 3),
            depths=[1, 1],
            hidden_sizes=[16, 16],
            stackwise_stage_filters=[[8, 8, 16, 1, 1, 3], [16, 8, 16, 1, 1, 3]],
            apply_downsample=[False, True],
            use_lightweight_conv_block=[False, False],
        ),
        number=0,
    ),
    "Llama3Backbone": Model(GROUPED, "LlamaTransformerDecoder"),
    "LlamaBackbone": Model(GROUPED, "LlamaTransformerDecoder"),
    "MetaCLIP2Backbone": Model(
        towers("MetaCLIP2", projection_dim=8), "CLIPEncoder", 2, TOWER
    ),
    "MiTBackbone": Model(MIT, "HierarchicalTransformerEncoder", 2, [0, 1]),
    "MistralBackbone": Model(
        GROUPED | dict(sliding_window=4), "MistralTransformerDecoder"
    ),
    "MixtralBackbone": Model(
        GROUPED | EXPERTS | dict(sliding_window=4), "MixtralTransformerDecoder"
    ),
    "MobileNetBackbone": CONVOLUTIONS,
    "MobileNetV5Backbone": CONVOLUTIONS,
    "MoonshineBackbone": Model(
        dict(
            vocabulary_size=20,
            filter_dim=8,
            encoder_num_layers=2,
            decoder_num_layers=2,
            hidden_dim=8,
            intermediate_dim=16,
            encoder_num_heads=2,
            decoder_num_heads=2,
            feedforward_expansion_factor=2,
        ),
        "Moonshine",
        4,
        lengths=dict(encoder_input_values=3000, encoder_padding_mask=3000),
    ),
    "OPTBackbone": Model(SHORT, "TransformerDecoder"),
    "PARSeqBackbone": Model(
        dict(
            image_encoder=Nested(
                "ViTBackbone",
                dict(
                    image_shape=(16, 16, 3),
                    patch_size=4,
                    num_layers=2,
                    num_heads=2,
                    hidden_dim=8,
                    mlp_dim=16,
                    use_class_token=False,
                    name="image_encoder",
                ),
            ),
            vocabulary_size=20,
            max_label_length=6,
            decoder_hidden_dim=8,
            num_decoder_layers=1,
            num_decoder_heads=2,
            decoder_mlp_dim=16,
            dropout_rate=0.0,
            attention_dropout=0.0,
        ),
        "ViTEncoderBlock",
        2,
        "image_encoder/all",
    ),
    "PaliGemmaBackbone": Model(
        GROUPED
        | dict(
            image_size=16,
            head_dim=4,
            vit_patch_size=8,
            vit_num_heads=2,
            vit_hidden_dim=8,
            vit_num_layers=2,
            vit_intermediate_dim=16,
        ),
        "PaliGemmaDecoderBlock",
    ),
    "Phi3Backbone": Model(GROUPED, "Phi3Decoder"),
    "Qwen2Backbone": Model(GROUPED, "QwenTransformerDecoder"),
    "Qwen3Backbone": Model(
        GROUPED | dict(head_dim=4), "Qwen3TransformerDecoder"
    ),
    "Qwen3MoeBackbone": Model(
        GROUPED | EXPERTS | dict(head_dim=4, moe_intermediate_dim=8),
        "Qwen3MoeTransformerDecoder",
    ),
    "Qwen3_5Backbone": Model(
        GROUPED | LINEAR | dict(head_dim=8), "Qwen3_5TransformerDecoder"
    ),
    "Qwen3_5MoeBackbone": Model(
        {k: v for k, v in GROUPED.items() if k != "intermediate_dim"}
        | LINEAR
        | EXPERTS
        | dict(
            head_dim=8,
            moe_intermediate_dim=8,
            shared_expert_intermediate_size=8,
        ),
        "Qwen3_5Moe",
    ),
    "QwenBackbone": Model(GROUPED, "QwenTransformerDecoder"),
    "QwenMoeBackbone": Model(
        GROUPED
        | EXPERTS
        | dict(moe_intermediate_dim=8, shared_expert_intermediate_dim=8),
        "QwenMoeTransformerDecoder",
    ),
    "RWKV7Backbone": Model(
        dict(
            vocabulary_size=20,
            hidden_size=8,
            num_layers=2,
            head_size=4,
            intermediate_dim=16,
            gate_lora=4,
            mv_lora=4,
            aaa_lora=4,
            decay_lora=4,
        ),
        "RWKV7_Block",
        lengths=dict(token_ids=16, padding_mask=16),
    ),
    "RQVAEBackbone": "of quantized vectors, which are no sequences",
    "ResNetBackbone": Model(RESNET | dict(image_shape=(32, 32, 3)), number=0),
    "RetinaNetBackbone": CONVOLUTIONS,
    "RobertaBackbone": Model(SHORT, "TransformerEncoder"),
    "RoformerV2Backbone": Model(
        TEXT | dict(head_size=4), "RoformerV2Encoder"
    ),
    "SAM3PromptableConceptBackbone": "a segmenter of several models in turn",
    "SAMBackbone": "a segmenter of several models in turn",
    "SegFormerBackbone": Model(
        dict(projection_filters=8, image_encoder=Nested("MiTBackbone", MIT)),
        "HierarchicalTransformerEncoder",
        2,
        [0, 1],
    ),
    "SigLIPBackbone": Model(towers("SigLIP"), "SigLIPEncoderLayer", 2, TOWER),
    "SmolLM3Backbone": Model(
        dict(
            vocabulary_size=20,
            hidden_dim=8,
            intermediate_dim=16,
            num_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_bias=False,
            attention_dropout=0.0,
            rope_layer_enabled_list=[True, True],
            layer_types=["attention", "attention"],
            mlp_bias=False,
            layer_norm_epsilon=1e-5,
            max_position_embeddings=16,
            rope_theta=10000.0,
            partial_rotary_factor=1.0,
        ),
        "SmolLM3DecoderLayer",
    ),
    "SmolLMBackbone": Model(GROUPED, "LlamaTransformerDecoder"),
    "StableDiffusion3Backbone": "a diffusion model, of several models in turn",
    "SwinTransformerBackbone": Model(
        dict(
            image_shape=(32, 32, 3),
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
            drop_path=0.0,
        ),
        "SwinTransformerBlock",
        2,
        [0, 1],
    ),
    "T5Backbone": Model(TEXT, "T5TransformerLayer", 4),
    "T5Gemma2Backbone": Model(
        GEMMA_SIDES | dict(use_query_key_norm=True), "T5Gemma2", 4
    ),
    "T5GemmaBackbone": Model(GEMMA_SIDES, "T5Gemma", 4),
    "VAEBackbone": "an autoencoder of images, without hidden states",
    "VGGBackbone": Model(
        dict(
            stackwise_num_repeats=[1, 1],
            stackwise_num_filters=[8, 8],
            image_shape=(16, 16, 3),
        ),
        number=0,
    ),
    "ViTBackbone": Model(
        {k: v for k, v in VIT.items() if k != "intermediate_dim"}
        | dict(mlp_dim=16),
        "ViTEncoderBlock",
    ),
    "ViTDetBackbone": Model(
        dict(
            image_shape=(16, 16, 3),
            patch_size=2,
            hidden_size=8,
            num_layers=2,
            global_attention_layer_indices=[1],
            intermediate_dim=16,
            num_heads=2,
            num_output_channels=2,
            window_size=2,
        ),
        number=0,
    ),
    "VideoPrismBackbone": Model(
        dict(
            num_frames=2,
            patch_size=4,
            hidden_dim=8,
            intermediate_dim=16,
            num_heads=2,
            num_spatial_layers=2,
            num_temporal_layers=2,
            num_auxiliary_layers=0,
            vocabulary_size=0,
            num_text_layers=0,
            image_shape=(8, 8, 3),
        ),
        "VideoPrismEncoderBlock",
        4,
    ),
    "WhisperBackbone": Model(
        TEXT
        | dict(max_encoder_sequence_length=6, max_decoder_sequence_length=6),
        "Whisper",
        4,
    ),
    "XLMRobertaBackbone": Model(SHORT, "TransformerEncoder"),
    "XLNetBackbone": Model(TEXT, "XLNetEncoder"),
    "XceptionBackbone": Model(
        dict(
            stackwise_conv_filters=[[8, 8], [16, 16]],
            stackwise_pooling=[False, True],
            image_shape=(32, 32, 3),
        ),
        number=0,
    ),
}


def build(name):
    """A backbone with random weights."""
    import keras
    import keras_hub

    def built(value):
        if isinstance(value, Nested):
            return getattr(keras_hub.models, value.kind)(**value.arguments)
        return value

    keras.utils.set_random_seed(1)
    arguments = MODELS[name].arguments
    return getattr(keras_hub.models, name)(
        **{key: built(value) for key, value in arguments.items()}
    )
