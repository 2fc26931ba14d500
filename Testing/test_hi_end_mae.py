"""Hi-End-MAE against an explicit second derivation, its published sizes, and every rule of its masking by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hi_end_mae_reference import CHANNELS, PATCH, SHUFFLE, SIZE, TINY, crops, derive, table, tiny

from HiEndSegLib.errors import OptionError
from HiEndSegLib.models.official import load_encoder
from HiEndSegLib.networks.hi_end_mae import (
    HI_END_MAE_VARIANTS,
    HiEndMAE,
    MAEOutput,
    build_hi_end_mae,
    masked_loss,
    take_rows,
)
from HiEndSegLib.networks.vit import VIT_VARIANTS, VisionTransformer3D


def test_every_step_equals_the_second_derivation():
    network, x = tiny(), crops()
    ours = network.trace(x, SHUFFLE)
    derived = [derive(network.state_dict(), x[b], SHUFFLE[b]) for b in range(2)]
    torch.testing.assert_close(ours["loss"], (derived[0][0] + derived[1][0]) / 2)
    assert set(ours) == {*derived[0][1], "loss"}
    for b, (_, expected) in enumerate(derived):
        for name, value in expected.items():
            if name == "encoder_hidden_states":
                torch.testing.assert_close(ours[name][:, b], value, atol=1e-6, rtol=1e-6)
            elif name == "stage_kv":
                assert list(ours[name]) == ["1", "2", "4"]
                for key in value:
                    torch.testing.assert_close(ours[name][key][b], value[key], atol=1e-6, rtol=1e-6)
            elif isinstance(value, list):
                assert len(ours[name]) == len(value)
                torch.testing.assert_close([rows[b] for rows in ours[name]], value, atol=1e-6, rtol=1e-6)
            elif name == "reconstruction_tokens":
                if b == 0:
                    torch.testing.assert_close(ours[name][0], value, atol=1e-6, rtol=1e-6)
            else:
                torch.testing.assert_close(ours[name][b], value, atol=1e-6, rtol=1e-6)
    assert ours["reconstruction_tokens"].shape == (1, 6, 128)


def test_gradients_equal_those_of_the_second_derivation():
    network, x = tiny(), crops()
    network(x, SHUFFLE).loss.backward()
    state = {name: value.detach().clone().requires_grad_("pos_embed" not in name)
             for name, value in network.state_dict().items()}
    (sum(derive(state, x[b], SHUFFLE[b])[0] for b in range(2)) / 2).backward()
    trained = dict(network.named_parameters())
    assert {name for name, value in state.items() if value.requires_grad} == set(trained)
    for name, parameter in trained.items():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, state[name].grad, atol=1e-6, rtol=1e-5, msg=name)


def test_gradients_equal_finite_differences():
    network, x = tiny(), crops()
    network(x, SHUFFLE).loss.backward()
    step = 1e-5
    for name in ("mask_token", "encoder.cls_token", "encoder_to_decoder.0.weight",
                 "decoder.cross_attention_blocks.1.cross_attn.kv.weight", "encoder.blocks.0.attn.qkv.weight"):
        parameter = network.get_parameter(name)
        place = int(parameter.grad.abs().argmax())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[place] += sign * step
                losses.append(network(x, SHUFFLE).loss)
                parameter.view(-1)[place] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close(parameter.grad.view(-1)[place], slope, rtol=1e-5, atol=1e-8)


# --- sizes -----------------------------------------------------------------------------------------------------------

PUBLISHED = {  # encoder, decoder, projections, mask token, tables, decoder of the plain MAE
    "hi_end_mae_vit_base_16p": (88_203_264, 12_226_432, 1_181_184, 384, 248_832, 15.77),
    "hi_end_mae_vit_large_16p": (346_275_840, 22_284_112, 3_246_144, 528, 445_824, 28.99),
    "hi_end_mae_vit_large_12p": (342_638_592, 21_031_440, 3_246_144, 528, 1_056_768, 27.73)}


def on_meta(name: str, **options) -> HiEndMAE:
    with torch.device("meta"):
        return build_hi_end_mae(name, **options)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_table(name):
    network = on_meta(name)
    parts = (count(network.encoder), count(network.decoder), count(network.encoder_to_decoder),
             network.mask_token.numel(), sum(b.numel() for b in network.buffers()))
    assert parts == PUBLISHED[name][:5]
    assert count(network) == sum(parts[:4])
    assert round(count(on_meta(name, dense_stages=0).decoder) / 1e6, 2) == PUBLISHED[name][5]
    grid = 6 if name.endswith("16p") else 8
    assert (network.num_patches, network.num_visible) == (grid**3, grid**3 // 4)


def test_published_checkpoint_has_exactly_these_tensors():
    """The released network, tensor by tensor."""
    shapes = {"mask_token": (1, 1, 528), "encoder_pos_embed": (1, 512, 1536), "decoder_pos_embed": (1, 512, 528),
              "encoder.cls_token": (1, 1, 1536), "encoder.patch_embed.proj.weight": (1536, 1, 12, 12, 12),
              "encoder.patch_embed.proj.bias": (1536,)}

    def add(name, *outputs_inputs):
        shapes[name + ".weight"] = outputs_inputs
        shapes[name + ".bias"] = outputs_inputs[:1]

    def block(prefix, width, attention, norms):
        for norm in norms:
            add(f"{prefix}.{norm}", width)
        add(f"{prefix}.{attention}.qkv", 3 * width, width)
        add(f"{prefix}.{attention}.proj", width, width)
        add(f"{prefix}.mlp.fc1", 4 * width, width)
        add(f"{prefix}.mlp.fc2", width, 4 * width)

    for i in range(12):
        block(f"encoder.blocks.{i}", 1536, "attn", ("norm1", "norm2"))
    add("encoder.norm", 1536)
    for s in range(4):
        add(f"encoder_to_decoder.{s}", 528, 1536)
    for j in range(2):
        block(f"decoder.blocks.{j}", 528, "attn", ("norm1", "norm2"))
    for c in range(3):
        block(f"decoder.cross_attention_blocks.{c}", 528, "self_attn", ("norm0", "norm1", "norm2"))
        add(f"decoder.cross_attention_blocks.{c}.cross_attn.q", 528, 528)
        add(f"decoder.cross_attention_blocks.{c}.cross_attn.kv", 1056, 528)
        add(f"decoder.cross_attention_blocks.{c}.cross_attn.proj", 528, 528)
    add("decoder.norm", 528)
    add("decoder.head", 1728, 528)
    state = on_meta("hi_end_mae_vit_large_12p").state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes
    assert len(state) == 248 and sum(value.numel() for value in state.values()) == 367_973_472


def test_variants():
    assert set(HI_END_MAE_VARIANTS) == set(VIT_VARIANTS)
    for name, entry in HI_END_MAE_VARIANTS.items():
        assert entry["encoder"] == VIT_VARIANTS[name]
        network = on_meta(name, depth=1, stage_indices=(0,), dense_stages=1)
        assert network.decoder_embed_dim == entry["decoder_embed_dim"]
    with pytest.raises(OptionError, match="vit_huge.*choose one of hi_end_mae_vit_base_16p"):
        build_hi_end_mae("vit_huge")


@pytest.mark.parametrize("stages, self_blocks, taps", [(0, 8, ()), (1, 6, (4,)), (2, 4, (2, 4)), (3, 2, (1, 2, 4))])
def test_dense_stages_replace_two_plain_blocks_each_deepest_layer_first(stages, self_blocks, taps):
    network, x = tiny(dense_stages=stages), crops()
    assert len(network.decoder.blocks) == self_blocks and network.taps == taps
    assert len(network.decoder.cross_attention_blocks) == stages
    assert len(network.encoder_to_decoder) == stages + 1
    trace = network.trace(x, SHUFFLE)
    assert tuple(trace["stage_kv"]) == tuple(map(str, taps))
    last_self = trace["decoder_after_self"][-1]
    if stages:  # the first cross block asks the deepest layer
        expected = network.decoder.cross_attention_blocks[0](last_self, trace["stage_kv"][str(taps[-1])])
        torch.testing.assert_close(trace["decoder_after_cross"][0], expected)
    else:
        torch.testing.assert_close(trace["decoder_norm"], network.decoder.norm(last_self))
    encoder_keys = {key for key in tiny().state_dict() if key.startswith("encoder.")}
    assert {key for key in network.state_dict() if key.startswith("encoder.")} == encoder_keys
    assert len(tiny(dense_stages=stages, decoder_self_depth=3).decoder.blocks) == 3


# --- masking and loss by hand ----------------------------------------------------------------------------------------

def test_loss_by_hand():
    # 1 and 3: mean 2, biased deviation 1, hence targets -1 and 1 (the unbiased one would give 0.707)
    patches, prediction = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 2.0]]])
    assert masked_loss(prediction, patches).item() == pytest.approx(1.0, abs=1e-5)
    # a flat patch has target 0, not NaN
    assert masked_loss(prediction, torch.full((1, 1, 2), 7.0)).item() == pytest.approx(2.0)
    half = masked_loss(prediction.bfloat16(), patches.bfloat16())
    assert half.dtype == torch.float32
    assert masked_loss(prediction.double(), patches).dtype == torch.float64


def test_masked_voxels_reach_the_loss_and_nothing_else():
    network, x = tiny(), crops()
    before = network(x, SHUFFLE)
    changed = x.clone()
    changed[0, :, 4:8, :, 4:8] += torch.randn(CHANNELS, 4, 4, 4)  # cell (1, 0, 1) = 4, visible in sample 0
    changed[1, :, 4:8, :, 4:8] += torch.randn(CHANNELS, 4, 4, 4)  # and masked in sample 1
    after = network(changed, SHUFFLE)
    assert (after.prediction[0] - before.prediction[0]).abs().max() > 1e-3
    torch.testing.assert_close(after.prediction[1], before.prediction[1], rtol=0, atol=0)
    assert after.loss != before.loss


def test_cls_has_no_position_and_the_others_are_shifted_by_one():
    network = tiny()
    with torch.no_grad():
        network.encoder_to_decoder[-1].weight.zero_()
        network.encoder_to_decoder[-1].bias.zero_()
    tokens = network.trace(crops(), SHUFFLE)["decoder_in"]
    assert tokens[:, 0].abs().max() == 0
    torch.testing.assert_close(tokens[1, 1:4], table(12)[[2, 1, 0]], atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens[1, 4:], table(12)[[5, 4, 3]] + network.mask_token[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("ratio, visible", [(0.75, 128), (0.95, 25), (0.9, 51), (0.5, 256)])
def test_number_of_visible_patches_is_cut_not_rounded(ratio, visible):
    assert on_meta("vit_tiny_12p", mask_ratio=ratio).num_visible == visible


def test_random_shuffles():
    network = tiny()
    drawn = network.random_shuffle(50, generator=torch.Generator().manual_seed(3))
    assert drawn.shape == (50, 6) and drawn.dtype == torch.long
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(6).expand(50, 6))
    assert len({tuple(row) for row in drawn.tolist()}) > 30  # samples differ
    assert torch.equal(drawn, network.random_shuffle(50, generator=torch.Generator().manual_seed(3)))
    x = crops()
    first = network(x, generator=torch.Generator().manual_seed(5))
    again = network(x, first.shuffle)
    assert torch.equal(first.shuffle, network.random_shuffle(2, generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(first.loss, again.loss)
    torch.manual_seed(8)
    other = network(x)
    assert not torch.equal(other.shuffle, first.shuffle)


def test_predicting_only_the_masked_rows_changes_neither_loss_nor_gradient():
    network, x = tiny(), crops()
    full, some = network(x, SHUFFLE), network(x, SHUFFLE, full_prediction=False)
    assert full.prediction.shape == (2, 7, 128) and some.prediction.shape == (2, 3, 128)
    torch.testing.assert_close(some.prediction, full.prediction[:, 4:])
    torch.testing.assert_close(some.loss, full.loss)
    wanted = list(network.parameters())
    for a, b in zip(torch.autograd.grad(full.loss, wanted), torch.autograd.grad(some.loss, wanted)):
        torch.testing.assert_close(a, b)


def test_reconstruction_undoes_the_shuffle_and_the_normalisation():
    network, x = tiny(), crops()
    patches = network.encoder.patch_embed.patchify(x)
    mean, deviation = patches.mean(-1, keepdim=True), patches.std(-1, keepdim=True)
    perfect = take_rows((patches - mean) / (deviation + 1e-6), SHUFFLE)
    perfect = torch.cat([torch.full((2, 1, 128), 99.0), perfect], dim=1)  # the cls row belongs nowhere
    output = MAEOutput(torch.tensor(0.0), perfect, SHUFFLE, 3)
    torch.testing.assert_close(network.reconstruct(x, output), x)
    nothing = MAEOutput(output.loss, torch.zeros_like(perfect), SHUFFLE, 3)
    flat = network.reconstruct(x, nothing)
    assert flat[1, :, 4:, :, 8:].unique().item() == pytest.approx(x[1, :, 4:, :, 8:].mean().item())
    kept = network.reconstruct(x, nothing, keep_visible=True)
    assert torch.equal(kept[1, :, :4], x[1, :, :4])  # cells 0, 1, 2 are the visible ones
    torch.testing.assert_close(kept[1, :, 4:], flat[1, :, 4:])
    masked_only = MAEOutput(output.loss, torch.zeros(2, 3, 128), SHUFFLE, 3)
    torch.testing.assert_close(network.reconstruct(x, masked_only, keep_visible=True), kept)
    with pytest.raises(ValueError, match="ask for full_prediction"):
        network.reconstruct(x, masked_only)


def test_take_rows_by_hand():
    rows = torch.arange(12.0).reshape(2, 3, 2)
    taken = take_rows(rows, torch.tensor([[2, 0], [1, 1]]))
    assert taken.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


# --- precision, memory, checkpoints ----------------------------------------------------------------------------------

def test_half_precision_autocast_keeps_the_loss_in_float32():
    network, x = tiny().float(), crops().float()
    exact = network(x, SHUFFLE).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, SHUFFLE)
    assert rough.prediction.dtype == torch.bfloat16 and rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.item(), rel=0.05)
    rough.loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert network.reconstruct(x, rough).dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient():
    x, gradients = crops(), []
    for checkpointing in (False, True):
        network = tiny(checkpointing=checkpointing).train()
        loss = network(x, SHUFFLE).loss
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    torch.testing.assert_close(*gradients)


def test_initial_weights():
    torch.manual_seed(2)
    network = HiEndMAE(**{**TINY, "embed_dim": 96, "decoder_embed_dim": 48, "mlp_ratio": 4.0})
    limit = math.sqrt(6 / (48 + 96))
    for linear_ in network.encoder_to_decoder:
        assert 0.95 * limit < linear_.weight.abs().max() <= limit
        assert 0 < linear_.bias.abs().max() <= 96**-0.5  # PyTorch's own
    kv = network.decoder.cross_attention_blocks[0].cross_attn.kv
    assert 0.95 * math.sqrt(6 / 144) < kv.weight.abs().max() <= math.sqrt(6 / 144) and not kv.bias.any()
    assert 0.012 < network.mask_token.std() < 0.028 and 0.014 < network.encoder.cls_token.std() < 0.026
    kernel = network.encoder.patch_embed.proj.weight
    limit = math.sqrt(6 / (kernel.shape[0] + kernel[0].numel()))            # Xavier, of the kernel as one matrix
    assert 0.95 * limit < kernel.abs().max() <= limit
    assert torch.equal(network.decoder.norm.weight, torch.ones(48))


def test_one_seed_starts_every_decoder_from_the_same_encoder():
    starts = []
    for stages in (0, 3):
        torch.manual_seed(4)
        starts.append(HiEndMAE(**TINY, dense_stages=stages).encoder.state_dict())
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())


def test_a_network_without_memory_can_be_brought_to_life():
    with torch.device("meta"):
        network = HiEndMAE(**TINY)
    network = network.to_empty(device="cpu")
    network.init_weights()
    torch.testing.assert_close(network.encoder_pos_embed[0].double(), table(24), atol=1e-6, rtol=0)
    torch.testing.assert_close(network.decoder_pos_embed[0].double(), table(12), atol=1e-6, rtol=0)
    assert network(crops().float(), SHUFFLE).loss.isfinite()


@pytest.mark.parametrize("assign", [False, True])
def test_the_stored_position_table_is_the_one_the_encoder_uses(assign):
    network = tiny()  # .double() has given the table's two names two tensors
    state = copy.deepcopy(network.state_dict())
    state["encoder_pos_embed"] *= -1  # a constant added would not show behind the norms
    before = network.trace(crops(), SHUFFLE)["encoder_out"]
    network.load_state_dict(state, assign=assign)
    assert network.encoder.pos_embed is network.encoder_pos_embed
    assert (network.trace(crops(), SHUFFLE)["encoder_out"] - before).abs().max() > 0.01


def test_the_encoder_of_a_checkpoint_goes_into_a_plain_encoder():
    network, x = tiny().float(), crops().float()
    checkpoint = {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}
    for cls_token in (True, False):
        encoder = VisionTransformer3D(img_size=SIZE, patch_size=PATCH, in_channels=CHANNELS, embed_dim=24, depth=5,
                                      num_heads=3, mlp_ratio=2.0, cls_token=cls_token)
        report = load_encoder(encoder, checkpoint)
        assert report.complete, report.sentence
    encoder.cls_token = network.encoder.cls_token
    visible = take_rows(encoder.patch_embed.patchify(x), SHUFFLE[:, :3])
    _, out = encoder.forward_tokens(visible, SHUFFLE[:, :3], keep_cls=True)
    torch.testing.assert_close(out, network.trace(x, SHUFFLE)["encoder_out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options, words", [
    ({"dense_stages": 4}, "0 to 3 dense stages"), ({"dense_stages": -1}, "0 to 3 dense stages"),
    ({"stage_indices": (1, 2, 5)}, "different blocks from 0 to 4"), ({"stage_indices": (1, 2, 2)}, "different blocks"),
    ({"mask_ratio": 1.0}, "leaves 0 of 6"), ({"mask_ratio": 0.0}, "leaves 6 of 6"), ({"mask_ratio": 0.9}, "leaves 0"),
    ({"decoder_embed_dim": 16}, "multiple of 6"), ({"decoder_num_heads": 5}, "5 attention heads do not divide")])
def test_sizes_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        HiEndMAE(**{**TINY, **options})


def test_inputs_that_cannot_be():
    network = tiny()
    with pytest.raises(ValueError, match=r"crops of \(batch, 2, 8, 4, 12\), not \(1, 1, 8, 4, 12\)"):
        network(torch.zeros(1, 1, *SIZE))
    with pytest.raises(ValueError, match=r"permutation of \(2, 6\), not \(1, 6\)"):
        network(crops(), SHUFFLE[:1])


def test_cross_attention_by_hand():
    from HiEndSegLib.networks.attention import fused_cross_attention
    # one head of width 1: queries 0 and ln 3 against keys 0 and 1; values 4 and 8
    q, kv = torch.tensor([[[0.0], [math.log(3)], [0.0]]]), torch.tensor([[[0.0, 4.0], [1.0, 8.0]]])
    torch.testing.assert_close(fused_cross_attention(q, kv, 1)[0, :, 0], torch.tensor([6.0, 7.0, 6.0]))
    q, kv = torch.randn(2, 5, 6), torch.randn(2, 3, 12)
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        weights = F.softmax(q[..., part] @ kv[..., :6][..., part].transpose(1, 2) / math.sqrt(3), dim=-1)
        torch.testing.assert_close(fused_cross_attention(q, kv, 2)[..., part], weights @ kv[..., 6:][..., part])
