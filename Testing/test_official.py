"""Official Hi-End-MAE checkpoints into encoder and UNETR, and weight files that must not be trusted."""

from __future__ import annotations

import math
import os
import pickle
import zipfile

import pytest
import torch

from HiEndSegLib.errors import ModelError
from HiEndSegLib.models.official import (
    channel_last_kernel,
    encoder_shape,
    load_encoder,
    load_unetr,
    plain_unetr,
    to_encoder,
    to_unetr,
    unwrap_state,
)
from HiEndSegLib.models.weights import read_checkpoint, read_safetensors
from HiEndSegLib.networks.position import resize_position, sincos_position_3d
from HiEndSegLib.networks.unetr import UNETR12
from HiEndSegLib.networks.vit import VisionTransformer3D

WIDTH, DECODER = 12, 6


def official_state(*, width=WIDTH, decoder=DECODER, depth=3, patch=2, channels=1, grid=2, ratio=4, device="cpu"):
    """A state dict with every key the published trainer saves, ``module.`` included, and random values."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, decoder), "encoder.cls_token": (1, 1, width)}

    def pair(name: str, rows: int, columns: int | None = None) -> None:
        shapes[f"{name}.weight"] = (rows,) if columns is None else (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    def block(name: str, d: int) -> None:
        for norm in ("norm1", "norm2"):
            pair(f"{name}.{norm}", d)
        for layer, rows, columns in (("attn.qkv", 3 * d, d), ("attn.proj", d, d), ("mlp.fc1", ratio * d, d),
                                     ("mlp.fc2", d, ratio * d)):
            pair(f"{name}.{layer}", rows, columns)

    shapes["encoder.patch_embed.proj.weight"] = (width, channels, patch, patch, patch)
    shapes["encoder.patch_embed.proj.bias"] = (width,)
    for i in range(depth):
        block(f"encoder.blocks.{i}", width)
    pair("encoder.norm", width)
    for s in range(4):
        pair(f"encoder_to_decoder.{s}", decoder, width)
    for j in range(2):
        block(f"decoder.blocks.{j}", decoder)
    for c in range(3):
        name = f"decoder.cross_attention_blocks.{c}"
        for norm in ("norm0", "norm1", "norm2"):
            pair(f"{name}.{norm}", decoder)
        for layer, rows, columns in (("self_attn.qkv", 3 * decoder, decoder), ("self_attn.proj", decoder, decoder),
                                     ("cross_attn.q", decoder, decoder), ("cross_attn.kv", 2 * decoder, decoder),
                                     ("cross_attn.proj", decoder, decoder), ("mlp.fc1", ratio * decoder, decoder),
                                     ("mlp.fc2", decoder, ratio * decoder)):
            pair(f"{name}.{layer}", rows, columns)
    pair("decoder.norm", decoder)
    pair("decoder.head", patch**3 * channels, decoder)
    state = {f"module.{key}": torch.randn(shape, device=device) for key, shape in shapes.items()}
    for name, d in (("encoder", width), ("decoder", decoder)):
        table = torch.empty(1, grid**3, d, device=device) if device == "meta" else sincos_position_3d(grid, d)
        state[f"module.{name}_pos_embed"] = table
    return state


def encoder(**options) -> VisionTransformer3D:
    return VisionTransformer3D(**{"img_size": 4, "patch_size": 2, "embed_dim": WIDTH, "depth": 3, "num_heads": 2,
                                  **options}).eval()


def unetr(**options) -> UNETR12:
    return UNETR12(**{"img_size": 4, "patch_size": 2, "out_channels": 3, "hidden_size": WIDTH, "mlp_dim": 4 * WIDTH,
                      "num_layers": 3, "num_heads": 2, "feature_size": 2, "skip_indices": (0, 1, 2), "ln_eps": 1e-6,
                      **options}).eval()


def test_published_counts():
    """248 tensors with 367,973,472 values; 149 go to UNETR, whose other 34 stay as they are (papers' own numbers)."""
    state = official_state(width=1536, decoder=528, depth=12, patch=12, grid=8, device="meta")
    assert len(state) == 248 and sum(t.numel() for t in state.values()) == 367_973_472
    mapped, set_aside, leftover = to_unetr(unwrap_state({"epoch": 1000, "state_dict": state}))
    assert (len(mapped), len(set_aside), leftover) == (149, 99, [])
    with torch.device("meta"):
        network = UNETR12(out_channels=14)
    report = load_unetr(network, {"state_dict": state}, assign=True)
    assert (len(report.loaded), len(report.missing), report.leftover) == (149, 34, ())
    assert "149 tensors were loaded into UNETR; 34 were missing" in report.sentence
    assert encoder_shape(unwrap_state(state)).variant == "hi_end_mae_vit_large_12p"


def test_encoder_takes_every_tensor_and_names_the_rest():
    state = official_state()
    network = encoder(cls_token=True)
    report = load_encoder(network, {"epoch": 3, "state_dict": state, "optimizer": {}, "scaler": {}})
    assert report.complete and not report.missing
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[f"module.encoder.{key}"])
    assert "nothing was missing or left over" in report.sentence
    assert "decoder" in report.sentence and "encoder_to_decoder 8" in report.sentence
    mapped, set_aside, leftover = to_encoder(unwrap_state(state))
    assert leftover == [] and len(mapped) + len(set_aside) == len(state)


def test_missing_and_left_over_tensors_are_named():
    state = official_state()
    del state["module.encoder.blocks.1.mlp.fc2.bias"]
    state["module.rotary"] = torch.zeros(2)
    report = load_encoder(encoder(), {"state_dict": state})
    assert report.missing == ("blocks.1.mlp.fc2.bias",) and report.leftover == ("rotary",)
    assert "1 were missing" in report.sentence and "blocks.1.mlp.fc2.bias" in report.sentence
    assert "left over (rotary)" in report.sentence


@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_and_unetr_compute_the_same_tokens(channels):
    state = official_state(channels=channels)
    plain, network = encoder(in_channels=channels), unetr(in_channels=channels)
    load_encoder(plain, {"state_dict": state})
    load_unetr(network, {"state_dict": state})
    x = torch.randn(2, channels, 4, 4, 4)
    with torch.no_grad():
        hidden, final = plain.forward_intermediates(x, (0, 1, 2))
        out = network.forward_features(x)
    torch.testing.assert_close(out.vit_out, final, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.vit_hidden, torch.stack(hidden), atol=1e-4, rtol=1e-4)


def test_kernel_order_by_hand():
    kernel = torch.arange(16.0).reshape(1, 2, 2, 2, 2)  # channel 0: 0..7, channel 1: 8..15
    assert channel_last_kernel(kernel)[0].tolist() == [v for pair in zip(range(8), range(8, 16)) for v in pair]


def test_one_channel_weights_for_a_network_with_two():
    state = official_state()
    one, two = encoder(), encoder(in_channels=2)
    load_encoder(one, {"state_dict": state})
    report = load_encoder(two, {"state_dict": state})
    assert "spread evenly over 2" in report.sentence
    x = torch.randn(1, 1, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(two(x.expand(-1, 2, -1, -1, -1)), one(x), atol=1e-5, rtol=1e-5)
    network = unetr(in_channels=2)
    load_unetr(network, {"state_dict": state})
    torch.testing.assert_close(network.vit.patch_embedding.patch_embeddings["1"].weight.reshape(WIDTH, 8, 2).sum(-1),
                               state["module.encoder.patch_embed.proj.weight"].flatten(1))
    with pytest.raises(ModelError, match="3 input channels and the network 2"):
        load_encoder(two, {"state_dict": official_state(channels=3)})


def test_position_table_is_resampled_for_another_grid():
    state = official_state()
    table = state["module.encoder_pos_embed"]
    learned, network = encoder(img_size=(6, 4, 8), learned_position=True), unetr(img_size=(6, 4, 8))
    report = load_encoder(learned, {"state_dict": state})
    assert "resampled from 2x2x2 to 3x2x4" in report.sentence
    load_unetr(network, {"state_dict": state})
    for position in (learned.pos_embed, network.vit.patch_embedding.position_embeddings):
        torch.testing.assert_close(position.detach(), resize_position(table, 2, (3, 2, 4)))
    fixed = encoder(img_size=6)
    load_encoder(fixed, {"state_dict": state})
    torch.testing.assert_close(fixed.pos_embed, sincos_position_3d(3, WIDTH))


def test_trained_table_is_not_dropped_silently():
    state = official_state()
    state["module.encoder_pos_embed"] = torch.randn(1, 8, WIDTH)
    with pytest.raises(ModelError, match="learned_position=True"):
        load_encoder(encoder(), {"state_dict": state})
    load_encoder(encoder(learned_position=True), {"state_dict": state})


def test_wrong_variant_and_foreign_files():
    state = {"state_dict": official_state()}
    with pytest.raises(ModelError, match="width 12, 3 blocks and patches of 2, and this network has width 24"):
        load_encoder(encoder(embed_dim=24), state)
    with pytest.raises(ModelError, match="this network has width 12, 2 blocks"):
        load_encoder(encoder(depth=2), state)
    with pytest.raises(ModelError, match="patches of 4"):
        load_unetr(unetr(patch_size=4), state)
    with pytest.raises(ModelError, match="not a Hi-End-MAE checkpoint.*conv.weight"):
        load_encoder(encoder(), {"state_dict": {"conv.weight": torch.zeros(2)}})
    with pytest.raises(ModelError, match="no UNETR weights"):
        load_unetr(unetr(), {"conv.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match="shape"):
        load_encoder(encoder(mlp_ratio=2), state)


def test_finetuned_unetr_of_any_monai_version():
    source, target = unetr(in_channels=2), unetr(in_channels=2)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    for i in range(3):
        state[f"module.vit.blocks.{i}.norm_cross_attn.weight"] = torch.ones(WIDTH)
        state[f"module.vit.blocks.{i}.norm_cross_attn.bias"] = torch.zeros(WIDTH)
    # the embedding as a convolution, channel first
    linear = state.pop("module.vit.patch_embedding.patch_embeddings.1.weight")
    state["module.vit.patch_embedding.patch_embeddings.weight"] = (
        linear.reshape(WIDTH, 2, 2, 2, 2).permute(0, 4, 1, 2, 3))
    state["module.vit.patch_embedding.patch_embeddings.bias"] = state.pop(
        "module.vit.patch_embedding.patch_embeddings.1.bias")
    report = load_unetr(target, {"state_dict": state})
    assert report.complete and len(report.set_aside) == 6
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values()):
        torch.testing.assert_close(ours, theirs)
    assert plain_unetr(unwrap_state(state))[1][0].endswith("norm_cross_attn.weight")


def test_monai_unetr_takes_the_checkpoint_too():
    pytest.importorskip("monai")
    from HiEndSegLib.networks.unetr import unetr16
    network = unetr16(img_size=32, out_channels=2, hidden_size=WIDTH, mlp_dim=4 * WIDTH, num_heads=2, feature_size=2)
    state = official_state(depth=12, patch=16)
    report = load_unetr(network, {"state_dict": state})
    assert len(report.loaded) == 149 and report.leftover == ()
    assert all(not key.startswith("vit.") for key in report.missing)
    torch.testing.assert_close(network.vit.blocks[7].attn.out_proj.bias.detach(),
                               state["module.encoder.blocks.7.attn.proj.bias"])


class Payload:
    """A pickle of it asks the reader to run a command; no reader of ours may do so."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_checkpoint_round_trip_and_both_formats(tmp_path):
    for old in (False, True):
        path = tmp_path / f"weights with ö {old}.pt"
        torch.save({"epoch": 2, "state_dict": {"a": torch.arange(3.0)}}, path, _use_new_zipfile_serialization=not old)
        content = read_checkpoint(path, mmap=True)
        assert content["epoch"] == 2 and content["state_dict"]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("container", ["archive", "old archive", "pickle 2", "pickle 4"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, container):
    proof, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"weight": torch.ones(2), "extra": Payload(f"touch {proof}")}
    if container.endswith("archive"):
        torch.save(content, path, _use_new_zipfile_serialization=container == "archive")
    else:
        path.write_bytes(pickle.dumps({"extra": Payload(f"touch {proof}")}, protocol=int(container[-1])))
    with pytest.raises(ModelError, match="evil.pt holds program code"):
        read_checkpoint(path)
    assert not proof.exists()


def test_a_whole_module_is_refused_as_code(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    with pytest.raises(ModelError, match="program code.*state_dict"):
        read_checkpoint(tmp_path / "module.pt")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_checkpoints(tmp_path, old, keep):
    path = tmp_path / "cut.pt"
    torch.save({"a": torch.randn(5000)}, path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError, match="cut.pt is (damaged or )?cut off"):
        read_checkpoint(path)


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "file.pt"
    for content in (b"just some text", b"\x89PNG\r\n\x1a\n" + bytes(100), pickle.dumps([1, 2], protocol=4)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="file.pt is not a PyTorch checkpoint"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelError, match="not a PyTorch checkpoint"):
        read_checkpoint(path)
    torch.save(torch.ones(2), path)
    with pytest.raises(ModelError, match="single Tensor"):
        read_checkpoint(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(ModelError, match="holds no tensor"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is empty"):
        read_checkpoint(path)
    with pytest.raises(ModelError, match="There is no weights file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(ModelError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_oversized_files_are_refused_before_loading(tmp_path):
    path = tmp_path / "big.pt"
    torch.save({"a": torch.zeros(100_000)}, path)
    with pytest.raises(ModelError, match="more than the 10.0 KiB allowed"):
        read_checkpoint(path, size_limit=10 * 1024)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 10 * 1024  # zeros compress well, and it is the unpacked size that counts
    with pytest.raises(ModelError, match="unpacks to 39"):
        read_checkpoint(path, size_limit=10 * 1024)


def test_safetensors(tmp_path):
    from safetensors.torch import save_file
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(1000.0)}, path)
    assert math.isclose(read_safetensors(path)["a"].sum().item(), 499_500)
    data = path.read_bytes()
    for keep, words in ((0, "is empty"), (40, "is cut off"), (2000, "is damaged or cut off")):
        path.write_bytes(data[:keep])
        with pytest.raises(ModelError, match=words):
            read_safetensors(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_safetensors(path)
    save_file({}, path)
    with pytest.raises(ModelError, match="no tensor"):
        read_safetensors(path)
