"""A server that we did not write: llama.cpp's own, from the package `xllamacpp`.

The test makes its models: a few hundred kilobytes, without training. Every token has one successor,
so the answer is known word for word. The vision encoder returns zeros for any picture.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import xllamacpp as llama

from batch_pipeline.errors import ServiceDownError, TransientError
from batch_pipeline.model_servers.base import Analyzer
from batch_pipeline.model_servers.factory import build_analyzer
from batch_pipeline.settings import Settings
from batch_pipeline.testing.model_connections import close_analyzers
from batch_pipeline_tests.integration.model_servers.conftest import IMAGE, VIDEO, picture

pytestmark = pytest.mark.slow

#: Length of the language model's vectors: at least one place for every token.
WIDTH = 320
VISION_WIDTH = 32
WORDS = ["▁a", "▁quiet", "▁harbour", "▁at", "▁dusk"]
SENTENCE = "a quiet harbour at dusk"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_language_model(path: Path, *, ends: bool) -> None:
    """A model that says `SENTENCE` after a line break; then it stops, or starts again."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    unknown, control, byte, normal = 2, 3, 6, 1
    writer.add_token_types([unknown, control, control, *[byte] * 256, *[normal] * len(WORDS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    embedding = np.eye(len(tokens), WIDTH, dtype=np.float32)
    output = zeros(len(tokens), WIDTH)
    words = [tokens.index(word) for word in WORDS]
    chain = [tokens.index("<0x0A>"), *words, tokens.index("</s>") if ends else words[0]]
    for token, successor in pairwise(chain):
        output[successor, token] = 4.0  # far above the temperature's noise
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output.weight", output)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros(WIDTH, WIDTH))
    writer.add_tensor("blk.0.ffn_gate.weight", zeros(32, WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", zeros(32, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", zeros(WIDTH, 32))
    finish(writer)


def write_vision_encoder(path: Path) -> None:
    width = VISION_WIDTH
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(28)
    writer.add_vision_patch_size(14)
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(width)
    writer.add_vision_block_count(2)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_projection_dim(WIDTH)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)

    writer.add_tensor("v.patch_embd.weight", zeros(width, 3, 14, 14))
    writer.add_tensor("v.class_embd", zeros(width))
    writer.add_tensor("v.position_embd.weight", zeros(5, width))  # 2 x 2 patches and the class
    for norm in ("v.pre_ln", *(f"v.blk.{block}.ln{which}" for block in (0, 1) for which in (1, 2))):
        writer.add_tensor(f"{norm}.weight", np.ones(width, np.float32))
        writer.add_tensor(f"{norm}.bias", zeros(width))
    for block in (0, 1):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_down", "ffn_up"):
            writer.add_tensor(f"v.blk.{block}.{name}.weight", zeros(width, width))
            writer.add_tensor(f"v.blk.{block}.{name}.bias", zeros(width))
    for name, inputs in (("mm.0", width), ("mm.2", WIDTH)):
        writer.add_tensor(f"{name}.weight", zeros(WIDTH, inputs))
        writer.add_tensor(f"{name}.bias", zeros(WIDTH))
    finish(writer)


def analyzer_of(folder: Path, *, ends: bool = True, sees: bool = True) -> tuple[Any, Analyzer]:
    """A running server, which stops with its object, and an analyzer that uses it."""
    language, vision = folder / "language.gguf", folder / "vision.gguf"
    write_language_model(language, ends=ends)
    parameters = llama.CommonParams()
    parameters.model.path = str(language)
    parameters.model_alias = {"tiny"}
    parameters.port = 0
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.embedding = True
    parameters.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if sees:
        write_vision_encoder(vision)
        parameters.mmproj.path = str(vision)
    server = llama.Server(parameters)
    settings: dict[str, Any] = {
        "analyzer": "openai",
        "openai_base_url": f"{server.listening_address}/v1",
        "vision_model": "tiny",
        "embedding_model": "tiny",
        "embedding_dimensions": WIDTH,
    }
    return server, build_analyzer(Settings(_env_file=None, **settings))


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_analyzers()


def test_a_picture_and_a_video_are_described_and_the_text_is_embedded(tmp_path: Path) -> None:
    _server, analyzer = analyzer_of(tmp_path)

    assert [check.ok for check in analyzer.check()] == [True, True]
    assert analyzer.vision.describe(IMAGE, [picture()]).text == SENTENCE
    assert analyzer.vision.describe(VIDEO, [picture("red"), picture("blue", 5)]).text == SENTENCE
    boat, same_boat, other = analyzer.embedding.embed(["a boat", "a boat", "xyz"])
    assert len(boat) == WIDTH
    assert boat == same_boat != other


def test_a_text_beyond_its_batch_is_embedded_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _server, analyzer = analyzer_of(tmp_path)

    (vector,) = analyzer.embedding.embed(["harbour " * 300])

    assert len(vector) == WIDTH
    assert "too large to process" in caplog.text


def test_an_answer_that_never_ends_is_reported_as_cut(tmp_path: Path) -> None:
    _server, analyzer = analyzer_of(tmp_path, ends=False)

    with pytest.raises(TransientError, match="cut by length"):
        analyzer.vision.describe(IMAGE, [picture()])


def test_a_server_without_a_vision_encoder_stops_the_work_with_a_hint(tmp_path: Path) -> None:
    _server, analyzer = analyzer_of(tmp_path, sees=False)

    with pytest.raises(ServiceDownError, match="--mmproj") as raised:
        analyzer.vision.describe(IMAGE, [picture()])

    assert raised.value.kind == "model_unsuitable"
