"""Sources and settings that cannot be converted, and what must be said of them."""

from __future__ import annotations

import torch

from llamaconv.errors import CheckpointError, ConfigError, UnsupportedError, UsageError
from tests.models import patch_config, save_weights
from tests.sources.torch_files import write_archive
from tests.tasks.conversions import stored
from tests.tasks.spoiling import Bad, changed, hostile, nothing, removed, renamed, told

__all__ = ["CASES"]

HUB, LITGPT, META, LIT = "hf", "litgpt", "meta", "lit-llama"
NOTHING_RUN = "only tensors are taken from a pickle, and nothing in it was run."
LAYER, BLOCK = "model.layers.1.", "transformer.h.1."

CASES = {
    "tensors of Hugging Face's": Bad(
        HUB,
        lambda source: save_weights(
            source,
            **{
                LAYER + "mlp.up_proj.weight": torch.zeros(96, 256),
                LAYER + "mlp.up_proj.bias": torch.zeros(256),
                **{f"model.layers.2.self_attn.{part}_proj.weight": None for part in "qkv"},
            },
        ),
        ConfigError,
        [
            "{source}/config.json and the tensors disagree:",
            "model.layers.1.mlp.up_proj.weight: [96, 256] in the checkpoint, [256, 96] by config.json",
            "model.layers.2.self_attn.q_proj.weight: missing from the checkpoint, [96, 96] by config.json",
            "model.layers.2.self_attn.k_proj.weight: missing from the checkpoint, [96, 96] by config.json",
            "model.layers.2.self_attn.v_proj.weight: missing from the checkpoint, [96, 96] by config.json",
            "model.layers.1.mlp.up_proj.bias: [256] in the checkpoint, no such tensor by config.json",
        ],
    ),
    "tensors of litgpt's": Bad(
        LITGPT,
        changed(
            "lit_model.pth",
            **{
                BLOCK + "attn.qkv.weight": torch.zeros(96, 288),
                BLOCK + "attn.qkv.bias": torch.zeros(288),
                BLOCK + "norm_2.weight": None,
            },
        ),
        ConfigError,
        [
            "{source}/model_config.yaml and the tensors disagree:",
            "transformer.h.1.attn.qkv.weight: [96, 288] in the checkpoint, [288, 96] by model_config.yaml",
            "transformer.h.1.norm_2.weight: missing from the checkpoint, [96] by model_config.yaml",
            "transformer.h.1.attn.qkv.bias: [288] in the checkpoint, no such tensor by model_config.yaml",
        ],
    ),
    "tensors of Meta's": Bad(
        META,
        changed(
            "consolidated.00.pth",
            **{
                "layers.2.feed_forward.w2.weight": torch.zeros(256, 96),
                "layers.2.attention.wq.bias": torch.zeros(96),
                "norm.weight": None,
            },
        ),
        ConfigError,
        [
            "{source}/params.json and the tensors disagree:",
            "layers.2.feed_forward.w2.weight: [256, 96] in the checkpoint, [96, 256] by params.json",
            "norm.weight: missing from the checkpoint, [96] by params.json",
            "layers.2.attention.wq.bias: [96] in the checkpoint, no such tensor by params.json",
        ],
    ),
    "tensors of lit-llama's": Bad(
        LIT,
        changed(
            "tiny/lit-llama.pth",
            **{
                BLOCK + "attn.c_attn.weight": torch.zeros(96, 288),
                BLOCK + "rms_3.scale": torch.zeros(96),
                "transformer.h.0.mlp.c_fc2.weight": None,
            },
        ),
        ConfigError,
        [
            "{source}/tiny/lit-llama.pth and the tensors disagree:",
            "transformer.h.0.mlp.c_fc2.weight: missing from the checkpoint, [256, 96] by lit-llama.pth",
            "transformer.h.1.attn.c_attn.weight: [96, 288] in the checkpoint, [288, 96] by lit-llama.pth",
            "transformer.h.1.rms_3.scale: [96] in the checkpoint, no such tensor by lit-llama.pth",
        ],
        {"heads": 6, "vocab_size": 290},
    ),
    "an expert is missing": Bad(
        HUB,
        lambda source: save_weights(
            source, **{f"{LAYER}block_sparse_moe.experts.3.w{part}.weight": None for part in (1, 2, 3)}
        ),
        ConfigError,
        [
            "{source}/config.json and the tensors disagree:",
            *(
                f"{LAYER}block_sparse_moe.experts.3.{part}.weight: missing from the checkpoint, {shape} by config.json"
                for part, shape in (("w1", [160, 96]), ("w2", [96, 160]), ("w3", [160, 96]))
            ),
        ],
        name="Mixtral",
    ),
    "an expert of litgpt's is missing": Bad(
        LITGPT,
        changed("lit_model.pth", **{BLOCK + "mlp.experts.4.proj.weight": None}),
        ConfigError,
        [
            "{source}/model_config.yaml and the tensors disagree:",
            "transformer.h.1.mlp.experts.4.proj.weight: missing from the checkpoint, [96, 160] by model_config.yaml",
        ],
        name="Mixtral",
    ),
    "a layer is missing": Bad(
        META,
        lambda source: changed(
            "consolidated.00.pth", **dict.fromkeys(name for name in stored(source) if name.startswith("layers.1."))
        )(source),
        ConfigError,
        [
            '{source}/params.json: the weights have 2 layers, but among their numbers there is "2" and not "1".',
            "{source}/params.json: n_layers is 3, but the weights have 2 layers.",
        ],
    ),
    "model_config.yaml of another model": Bad(
        LITGPT,
        told(n_layer=1, n_query_groups=3),
        ConfigError,
        [
            "{source}/model_config.yaml and the tensors disagree:",
            "transformer.h.0.attn.qkv.weight: [288, 96] in the checkpoint, [192, 96] by model_config.yaml",
            *(
                f"transformer.h.{layer}.{name}: {shape} in the checkpoint, no such tensor by model_config.yaml"
                for layer in (1, 2)
                for name, shape in (
                    ("attn.qkv.weight", [288, 96]),
                    ("attn.proj.weight", [96, 96]),
                    ("mlp.fc_1.weight", [256, 96]),
                    ("mlp.fc_2.weight", [256, 96]),
                    ("mlp.proj.weight", [96, 256]),
                    ("norm_1.weight", [96]),
                    ("norm_2.weight", [96]),
                )
            ),
        ],
    ),
    "model_config.yaml of absurd sizes": Bad(
        LITGPT,
        told(n_layer=10**12),
        ConfigError,
        ["{source}/model_config.yaml: n_layer is 1000000000000, but the weights have 24 tensors."],
    ),
    "params.json of another model": Bad(
        META,
        told(n_layers=2, n_heads=5, vocab_size=300, multiple_of=100),
        ConfigError,
        [
            "{source}/params.json: n_layers is 2, but the weights have 3 layers.",
            "{source}/params.json: vocab_size is 300, but tok_embeddings.weight is [290, 96].",
            "{source}/params.json: n_heads is 5, but dim, 96, is not that many heads of pairs.",
            "{source}/params.json: multiple_of is 100 and ffn_dim_multiplier null, which makes an MLP of 300, but the "
            "weights have one of 256.",
        ],
    ),
    "no config.json": Bad(HUB, removed("config.json"), ConfigError, ["{source}/config.json does not exist."]),
    "no model_config.yaml": Bad(
        LITGPT,
        removed("model_config.yaml"),
        ConfigError,
        ["{source}/model_config.yaml does not exist."],
    ),
    "no params.json": Bad(META, removed("params.json"), ConfigError, ["{source}/params.json does not exist."]),
    "unknown names": Bad(
        LITGPT,
        renamed,
        CheckpointError,
        [
            "{source}: no layout is known in which tensors have such names ('transformer.wte.weight', "
            "'transformer.h.0.a.weight', 'transformer.h.1.a.weight', …)."
        ],
    ),
    "hostile pickle for litgpt": Bad(
        LITGPT,
        hostile("lit_model.pth"),
        UnsupportedError,
        ["{source}/lit_model.pth: the pickle in it wants posix.mkdir; " + NOTHING_RUN],
    ),
    "hostile pickle for Meta": Bad(
        META,
        hostile("consolidated.00.pth"),
        UnsupportedError,
        ["{source}/consolidated.00.pth: the pickle in it wants posix.mkdir; " + NOTHING_RUN],
    ),
    "hostile pickle of transformers": Bad(
        HUB,
        hostile("pytorch_model.bin"),
        UnsupportedError,
        ["{source}/pytorch_model.bin: the pickle in it wants posix.mkdir; " + NOTHING_RUN],
    ),
    "no archive of torch's": Bad(
        META,
        lambda source: write_archive(source / "consolidated.00.pth", {"readme": b"nothing"}),
        UnsupportedError,
        ["{source}/consolidated.00.pth: a zip archive, but not one of torch.save."],
    ),
    "from Meta's, which it is not": Bad(
        HUB, nothing, ConfigError, ["{source}/params.json does not exist."], {"layout": "meta"}
    ),
    "from litgpt's, which it is not": Bad(
        META,
        nothing,
        ConfigError,
        ["{source}/model_config.yaml does not exist."],
        {"layout": "litgpt"},
    ),
    "from Hugging Face's, which it is not": Bad(
        META, nothing, ConfigError, ["{source}/config.json does not exist."], {"layout": "hf"}
    ),
    "facts that config.json has": Bad(
        HUB,
        nothing,
        UsageError,
        ["{source}: its config.json says what the model is."],
        {"rope_theta": 10000.0, "heads": 6},
    ),
    "facts that params.json has": Bad(
        META,
        nothing,
        UsageError,
        [
            "{source}/params.json: --heads says 12, but there it is 6.",
            "{source}/params.json: --norm-eps says 1e-06, but there it is 1e-05.",
        ],
        {"heads": 12, "norm_eps": 1e-6},
    ),
    "code of its own": Bad(
        HUB,
        lambda source: patch_config(source, auto_map={"AutoModel": "x.Y"}),
        UnsupportedError,
        ['{source}/config.json: auto_map is {"AutoModel": "x.Y"}: remote code is never run.'],
    ),
    "unknown dtype": Bad(HUB, nothing, UsageError, ["unknown dtype 'int8'"], {"dtype": "int8"}),
}
