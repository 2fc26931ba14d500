"""``python -m training.parity`` on pre-training: small recordings of our own network, and what must make it say no."""

from __future__ import annotations

import copy

import pytest
import torch
from parity_helpers import judge

from HiEndSegLib.networks.effective_rank import effective_rank
from HiEndSegLib.networks.hi_end_mae import HiEndMAE

CONFIG = {"img_size": 24, "patch_size": 8, "in_chans": 1, "embed_dim": 24, "depth": 5, "num_heads": 3,
          "decoder_embed_dim": 12, "decoder_num_heads": 2, "decoder_self_depth": 2, "decoder_cross_depth": 3,
          "mlp_ratio": 2.0, "mask_ratio": 0.75, "ln_eps": 1e-6, "stage_indices": [1, 2, 4]}
LINES = ["encoder_pos_embed", "decoder_pos_embed", "encoder_hidden_states", "encoder_out", "last_projected",
         "decoder_in", "decoder_norm", "prediction", "reconstruction_tokens", "stage_kv.1", "stage_kv.2", "stage_kv.4",
         "decoder_after_self.0", "decoder_after_self.1", "decoder_after_cross.0", "decoder_after_cross.1",
         "decoder_after_cross.2", "loss", "effective_rank_v_full", "effective_rank_v_per_head", "loss_float64", "max"]


def record(**changes) -> dict:
    """A recording in the authors' format. Ranks and gradients are taken with hooks, not as the command takes them."""
    config = {**CONFIG, **changes}
    torch.manual_seed(0)
    network = HiEndMAE(
        img_size=config["img_size"], patch_size=config["patch_size"], in_channels=config["in_chans"],
        embed_dim=config["embed_dim"], depth=config["depth"], num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"], decoder_embed_dim=config["decoder_embed_dim"],
        decoder_num_heads=config["decoder_num_heads"], decoder_self_depth=config["decoder_self_depth"],
        dense_stages=config["decoder_cross_depth"], stage_indices=config["stage_indices"],
        mask_ratio=config["mask_ratio"], norm_eps=config["ln_eps"]).eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    image = torch.rand(2, config["in_chans"], *network.encoder.img_size).half()
    shuffle = network.random_shuffle(2)
    values = []
    handles = [block.attn.qkv.register_forward_hook(
        lambda module, inputs, output: values.append(output[..., -config["embed_dim"]:].detach()))
        for block in network.encoder.blocks]
    loss = network(image.float(), shuffle).loss
    for handle in handles:
        handle.remove()
    loss.backward()
    heads = [v.unflatten(2, (config["num_heads"], -1)).transpose(1, 2) for v in values]
    gradients = {name: p.grad for name, p in network.named_parameters()}
    trace = network.trace(image.float(), shuffle)
    state = {f"module.{key}": value.clone() for key, value in network.state_dict().items()}
    double = copy.deepcopy(network).double()
    return {"config": config, "checkpoint": {"epoch": 3, "state_dict": state}, "image": image,
            "shuffle_indices": shuffle, "num_visible": network.num_visible, **trace, "loss": float(trace["loss"]),
            "loss_float64": double(image.double(), shuffle).loss.detach(),
            "grad_norms": {name: gradient.norm() for name, gradient in gradients.items()},
            "small_grads": {name: gradient.clone() for name, gradient in gradients.items() if gradient.numel() < 300},
            "effective_rank_v_full": torch.stack([effective_rank(v) for v in values]),
            "effective_rank_v_per_head": torch.stack([effective_rank(v) for v in heads])}


@pytest.fixture(scope="module")
def a_recording() -> dict:
    return record()


def test_every_recorded_tensor_gets_a_line(tmp_path, capsys, a_recording):
    code, lines, errors = judge(tmp_path, capsys, a_recording)
    assert (code, errors) == (0, "")
    names = [line.split()[0] for line in lines]
    assert [name for name in names if "grad" not in name] == LINES
    weights = [key.removeprefix("module.") for key in a_recording["checkpoint"]["state_dict"] if "pos_embed" not in key]
    assert {name for name in names if name.startswith("grad_norms.")} == {f"grad_norms.{key}" for key in weights}
    assert sum(name.startswith("small_grads.") for name in names) == len(a_recording["small_grads"]) > 20
    values = [float(line.split()[1]) for line in lines]
    assert values[-1] == max(values[:-1]) < 1e-5


@pytest.mark.parametrize("changes", [
    {"in_chans": 3, "decoder_self_depth": 4, "decoder_cross_depth": 2, "mask_ratio": 0.6},
    {"decoder_self_depth": 8, "decoder_cross_depth": 0}, {"img_size": (16, 8, 24), "ln_eps": 1e-5}])
def test_other_configurations(tmp_path, capsys, changes):
    code, _, errors = judge(tmp_path, capsys, record(**changes))
    assert code == 0, errors


def test_variations_of_the_same_content(tmp_path, capsys, a_recording):
    other = copy.deepcopy(a_recording)
    other["stage_kv"] = {int(key): value for key, value in other["stage_kv"].items()}
    other["decoder_after_self"] = torch.stack(other["decoder_after_self"])
    other["grad_norms"] = {f"module.{key}": float(value) for key, value in other["grad_norms"].items()}
    other["checkpoint"]["optimizer"], other["made_with"] = {"state": {}}, "torch 2"
    for name in ("decoder_in", "small_grads"):
        del other[name]
    other["encoder_out"] = None
    code, lines, errors = judge(tmp_path, capsys, other)
    assert code == 0, errors
    assert "not recorded, hence not compared: encoder_out, decoder_in, small_grads" in errors
    assert "made_with is not part" in errors and not any(line.startswith("encoder_out") for line in lines)


def test_ranks_of_the_whole_image_are_recognised_as_such(tmp_path, capsys, a_recording):
    other = copy.deepcopy(a_recording)
    network = HiEndMAE(img_size=24, patch_size=8, embed_dim=24, depth=5, num_heads=3, mlp_ratio=2.0,
                       decoder_embed_dim=12, decoder_num_heads=2, stage_indices=(1, 2, 4))
    network.load_state_dict({key[7:]: value for key, value in other["checkpoint"]["state_dict"].items()})
    values = []
    for block in network.encoder.blocks:
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: values.append(output[..., 48:]))
    network.encoder(other["image"].float())
    other["effective_rank_v_full"] = torch.stack([effective_rank(v.detach()) for v in values])
    code, _, errors = judge(tmp_path, capsys, other)
    assert code == 0 and "effective_rank_v_full was recorded from all patches" in errors
    other["effective_rank_v_full"][2, 1] *= 1.001
    code, _, errors = judge(tmp_path, capsys, other)
    assert code == 1 and "effective_rank_v_full differs" in errors


def first(mapping: dict):
    return next(iter(mapping.values()))


@pytest.mark.parametrize("spoil, words", [
    (lambda r: r["encoder_hidden_states"][3, 1, 0].add_(2e-4), "encoder_hidden_states differs by 2"),
    (lambda r: r["encoder_out"].mul_(1.01), "encoder_out differs"),
    (lambda r: r["stage_kv"]["2"][0, 0].add_(2e-4), "stage_kv.2 differs by 2"),
    (lambda r: r["last_projected"].view(-1)[5].sub_(2e-4), "last_projected differs"),
    (lambda r: r["decoder_in"][:, -1].add_(2e-4), "decoder_in differs"),
    (lambda r: r["decoder_after_self"][1].view(-1)[0].add_(2e-4), "decoder_after_self.1 differs"),
    (lambda r: r["decoder_after_cross"].reverse(), "decoder_after_cross.0 differs"),
    (lambda r: r["decoder_norm"].view(-1)[0].fill_(float("nan")), "decoder_norm differs by nan"),
    (lambda r: r["prediction"][0, 0].add_(2e-4), "prediction differs"),
    (lambda r: r["reconstruction_tokens"][0, 3].add_(2e-4), "reconstruction_tokens differs"),
    (lambda r: r.update(loss=r["loss"] + 2e-5), "loss differs by 2"),
    (lambda r: r["loss_float64"].add_(2e-5), "loss_float64 differs by 2"),
    (lambda r: r["grad_norms"]["mask_token"].mul_(1.002), "grad_norms.mask_token differs"),
    (lambda r: r["small_grads"]["encoder.cls_token"].mul_(-1), "small_grads.encoder.cls_token differs"),
    (lambda r: r["effective_rank_v_full"][0].mul_(1.001), "effective_rank_v_full differs"),
    (lambda r: r["effective_rank_v_per_head"][0, 0, 0].mul_(1.001), "effective_rank_v_per_head differs"),
    (lambda r: r["checkpoint"]["state_dict"]["module.encoder_pos_embed"][0, 4].add_(0.01), "encoder_pos_embed differs"),
    (lambda r: r["checkpoint"]["state_dict"]["module.decoder_pos_embed"].mul_(1.01), "decoder_pos_embed differs"),
    (lambda r: r["checkpoint"]["state_dict"]["module.decoder.cross_attention_blocks.2.cross_attn.kv.bias"].add_(0.1),
     "prediction differs"),
    (lambda r: r["config"].update(ln_eps=1e-2), "encoder_hidden_states differs"),
    (lambda r: r["config"].update(num_heads=2), "effective_rank_v_per_head was not compared: it was recorded with"),
    (lambda r: r["config"].update(stage_indices=[1, 3, 4]), "stage_kv.2 was not compared: the network has 1, 3, 4"),
    (lambda r: r["config"].update(mask_ratio=0.5), "encoder_hidden_states was not compared: it was recorded with"),
    (lambda r: r.update(num_visible=7), "num_visible was not compared: 7 were visible, and here 6"),
    (lambda r: r["shuffle_indices"][1, :2].copy_(r["shuffle_indices"][1, :2].flip(0)), "decoder_in differs"),
    (lambda r: r["decoder_after_self"].pop(), "decoder_after_self was not compared: it has 1 entries"),
    (lambda r: r.update(decoder_after_cross={"0": 1}), "decoder_after_cross was not compared"),
    (lambda r: r.update(stage_kv=[1]), "stage_kv was not compared"),
    (lambda r: r["stage_kv"].update({"9": torch.ones(1)}), "stage_kv.9 was not compared"),
    (lambda r: r.update(grad_norms=1.0), "grad_norms was not compared"),
    (lambda r: r["grad_norms"].update({"decoder.gone": 1.0}), "grad_norms.decoder.gone was not compared"),
    (lambda r: r["small_grads"].update(mask_token="large"), "small_grads.mask_token was not compared: it is not a ten"),
    (lambda r: r.update(effective_rank_v_full="full"), "effective_rank_v_full was not compared"),
    (lambda r: r.update(prediction=r["prediction"][:, 1:]), "prediction was not compared: it was recorded with the")])
def test_anything_wrong_ends_in_exit_code_one(tmp_path, capsys, a_recording, spoil, words):
    recording = copy.deepcopy(a_recording)
    spoil(recording)
    code, lines, errors = judge(tmp_path, capsys, recording)
    assert code == 1 and words in errors
    assert lines[-1].startswith("max ")


@pytest.mark.parametrize("spoil, words", [
    (lambda r: r.pop("config"), "config has no stage_indices"),
    (lambda r: r["config"].pop("ln_eps"), "config has no ln_eps"),
    (lambda r: r["config"].update(decoder_embed_dim=10), "describes no Hi-End-MAE: a 3D sine-cosine"),
    (lambda r: r["config"].update(depth="deep"), "describes no Hi-End-MAE"),
    (lambda r: r["config"].update(embed_dim=48), "width 24, 5 blocks and patches of 8, and this network has width 48"),
    (lambda r: r["config"].update(mlp_ratio=4.0), "has the shape"),
    (lambda r: r["config"].update(decoder_cross_depth=2), "2 of the file were left over|left over"),
    (lambda r: r["checkpoint"]["state_dict"].pop("module.mask_token"), "missing and keep their initial values"),
    (lambda r: r["checkpoint"]["state_dict"].update({"module.extra": torch.ones(1)}), "were left over (extra)"),
    (lambda r: r.update(checkpoint=[1]), "has no checkpoint"),
    (lambda r: r.update(checkpoint={"a": torch.ones(1)}), "not a Hi-End-MAE checkpoint"),
    (lambda r: r.pop("image"), "has no image"), (lambda r: r.pop("shuffle_indices"), "has no shuffle_indices"),
    (lambda r: r.update(image=r["image"][..., :16]), "takes images of (1, 24, 24, 24), and its image has"),
    (lambda r: r["shuffle_indices"].zero_(), "are no permutation of 27 patches"),
    (lambda r: r.update(shuffle_indices=r["shuffle_indices"][0]), "are no permutation of 27 patches")])
def test_a_network_that_cannot_be_rebuilt_or_run_is_said_in_words(tmp_path, capsys, a_recording, spoil, words):
    recording = copy.deepcopy(a_recording)
    spoil(recording)
    code, lines, errors = judge(tmp_path, capsys, recording)
    assert (code, lines) == (1, ["max nan"])
    assert any(part in errors for part in words.split("|")) and errors.count("\n") == 1


def test_weights_from_a_second_file(tmp_path, capsys, a_recording):
    other = copy.deepcopy(a_recording)
    rest = tmp_path / "weights.pt"
    torch.save(other.pop("checkpoint"), rest)
    code, _, errors = judge(tmp_path, capsys, other)
    assert code == 1 and "--weights" in errors
    code, _, errors = judge(tmp_path, capsys, other, "--weights", str(rest))
    assert (code, errors) == (0, "")
    code, _, errors = judge(tmp_path, capsys, other, "--weights", str(tmp_path / "absent.pt"))
    assert code == 1 and "no weights file" in errors
