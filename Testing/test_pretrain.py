"""Pre-training runs as a user starts, kills and restarts them: the curve stays the same, and no checkpoint is lost."""

from __future__ import annotations

import errno
import json
import pickle
import resource
import shutil
import signal
import sys
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from pretrain_helpers import (
    VARIANT,
    Child,
    add_variant,
    arguments,
    curve,
    losses,
    ranks,
    table,
    write_ct,
    write_data,
    write_mr,
)

from HiEndSegLib.networks.hi_end_mae import build_hi_end_mae
from training import pretrain, pretrain_log, pretrain_state
from training.pretrain_log import Progress, tell
from training.pretrain_loop import FloatAttention, parameter_groups

pytestmark = pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="forks processes")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    add_variant(monkeypatch)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("volumes") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of nine steps that nobody disturbed."""
    patch = pytest.MonkeyPatch()
    add_variant(patch)
    run = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain.main(arguments(data, run)) == 0
    patch.undo()
    return run


def network_of(run, name="last.pt") -> dict[str, torch.Tensor]:
    return pretrain_state.load(run / name)["network"]


def fails(argv, capsys) -> str:
    """The one sentence a command ends with."""
    capsys.readouterr()
    assert pretrain.main(argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said and said[-1].endswith(".")
    return said[-1]


# ----------------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_logs_pictures_and_two_checkpoints(whole):
    assert [row[0] for row in table(whole / "log.csv", "step")] == [str(n) for n in range(1, 10)]
    assert [row[0] for row in table(whole / "validation.csv", "step")] == ["0", "5", "9"]
    assert pretrain_state.load(whole / "last.pt")["step"] == 9
    assert pretrain_state.load(whole / "previous.pt")["step"] == 8
    assert len(list((whole / "reconstructions").glob("step-*-case-2.png"))) == 3
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert [event.step for event in board.Scalars("loss/training")] == list(range(1, 10))
    assert [event.step for event in board.Scalars("loss/validation")] == [0, 5, 9]
    pictures = board.Images("reconstruction/case-2")
    assert [event.step for event in pictures] == [0, 5, 9]
    assert len({event.encoded_image_string for event in pictures}) == 3, "they change as it learns"
    rates = [float(row[0]) for row in table(whole / "log.csv", "lr")]
    assert rates[:2] == [5e-4, 1e-3] and rates[2] == 1e-3 and rates[-1] < 1e-4
    assert not [path for path in whole.iterdir() if path.name.startswith(".")]


def test_the_loss_falls(data, tmp_path):
    assert pretrain.main(arguments(data, tmp_path / "run", steps=40, log_every=20, validate_every=40,
                                   save_every=40)) == 0
    values = [float(loss) for _, loss in table(tmp_path / "run" / "validation.csv", "step", "loss")]
    assert values[-1] < values[0] - 0.05


def test_a_finished_run_is_left_alone(whole, data, capsys):
    before = (whole / "last.pt").stat().st_mtime_ns
    assert pretrain.main(arguments(data, whole)) == 0
    assert "already at step 9 of 9" in capsys.readouterr().out and (whole / "last.pt").stat().st_mtime_ns == before


# ------------------------------------------------------------------------------------------- exact resumption


@pytest.mark.parametrize("step", [2, 6])
def test_killed_and_started_again_is_as_if_nothing_had_happened(step, whole, data, tmp_path):
    run = tmp_path / "run"
    child = Child(arguments(data, run))
    child.read_until(f"step {step} of 9  loss")
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (run / "last.pt").exists() or pretrain_state.load(run / "last.pt")["step"] < 9
    assert pretrain.main(arguments(data, run)) == 0
    assert curve(run) == curve(whole)
    ours, theirs = network_of(run), network_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_warning_signal_saves_and_ends_and_processes_may_come_and_go(whole, data, tmp_path):
    """One process to a signal, then two, then one again: DDP and the change both follow the undisturbed curve."""
    run = tmp_path / "run"
    child = Child(arguments(data, run, save_every=100))
    child.read_until("step 2 of 9  loss")
    child.kill(signal.SIGTERM)
    assert child.wait() == 0 and "as asked" in child.text, child.text
    first = pretrain_state.load(run / "last.pt")["step"]
    assert 2 <= first < 9
    pair = ranks(arguments(data, run, save_every=100), 2)
    pair[0].read_until("loss")
    for child in pair:
        child.kill(signal.SIGTERM)
    assert [child.wait() for child in pair] == [0, 0], pair[0].text + pair[1].text
    second = pretrain_state.load(run / "last.pt")["step"]
    assert first < second
    assert pretrain.main(arguments(data, run)) == 0
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-5)
    assert [row[0] for row in curve(run)] == [row[0] for row in curve(whole)]


def test_sharded_processes_follow_the_same_curve_and_one_process_goes_on(whole, data, tmp_path):
    run = tmp_path / "run"
    pair = ranks(arguments(data, run, strategy="fsdp"), 2)
    pair[0].read_until("step 2 of 9  loss")
    for child in pair:
        child.kill(signal.SIGTERM)
    assert [child.wait() for child in pair] == [0, 0], pair[0].text + pair[1].text
    assert 2 <= pretrain_state.load(run / "last.pt")["step"] < 9
    assert pretrain.main(arguments(data, run)) == 0
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-5)


def test_loader_processes_change_nothing(whole, data, tmp_path):
    assert pretrain.main(arguments(data, tmp_path / "run", workers=1)) == 0
    assert curve(tmp_path / "run") == curve(whole)


def test_half_precision_follows_closely_with_attention_in_float(whole, data, tmp_path, monkeypatch):
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention
    mode = FloatAttention()
    with mode, torch.autocast("cpu", torch.bfloat16):
        q = torch.randn(1, 2, 5, 4, dtype=torch.bfloat16)
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), real(q.float(), q.float(), q.float()), atol=1e-2, rtol=1e-2)
    monkeypatch.setattr(FloatAttention, "__enter__", lambda self: seen.append(1) or super(FloatAttention, self).__enter__())
    assert pretrain.main(arguments(data, tmp_path / "run", precision="bf16-mixed")) == 0
    assert len(seen) == 9
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), atol=0.02)


def test_decay_may_spare_biases_norms_and_tokens(whole, data, tmp_path):
    network = build_hi_end_mae(VARIANT, img_size=24)
    names = {id(p): name for name, p in network.named_parameters()}
    recipe = pretrain_state.load(whole / "last.pt")["recipe"]
    (all_of_them,) = parameter_groups(network, pretrain_state.Recipe(**recipe))
    assert len(all_of_them["params"]) == len(names) and all_of_them["weight_decay"] == 0.05
    decayed, spared = parameter_groups(network, pretrain_state.Recipe(**recipe | {"decay_all": False}))
    assert spared["weight_decay"] == 0 and len(decayed["params"]) + len(spared["params"]) == len(names)
    assert all(names[id(p)].endswith((".bias", "_token")) or "norm" in names[id(p)] for p in spared["params"])
    assert all(names[id(p)].endswith(".weight") and "norm" not in names[id(p)] for p in decayed["params"])
    assert pretrain.main(arguments(data, tmp_path / "run", steps=3, decay_weights_only="", clip=0.01)) == 0
    assert losses(tmp_path / "run")[2] != losses(whole)[2]


def test_other_micro_batches_change_rounding_alone(whole, data, tmp_path):
    assert pretrain.main(arguments(data, tmp_path / "run", micro_batch=4)) == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole), rtol=1e-5)


# --------------------------------------------------------------------------------------------- what goes wrong


def test_a_killed_rank_ends_the_others_and_the_checkpoint_stays(data, tmp_path):
    pair = ranks(arguments(data, tmp_path / "run", steps=500, save_every=2, validate_every=500), 2)
    pair[0].read_until("step 3 of 500  loss")
    pair[1].kill()
    assert pair[1].wait() == -signal.SIGKILL
    assert pair[0].wait() == 2
    assert "Another process of this training has ended, so this one ends too; the checkpoint of step" in pair[0].text
    assert "Traceback" not in pair[0].text
    assert pretrain_state.load(tmp_path / "run" / "last.pt")["step"] >= 2


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(whole, data, tmp_path):
    run = tmp_path / "run"
    first = Child(arguments(data, run, save_every=2))
    first.read_until("step 4 of 9  loss")
    first.kill(signal.SIGTERM)
    assert first.wait() == 0
    kept, step = (run / "last.pt").read_bytes(), pretrain_state.load(run / "last.pt")["step"]
    limit = len(kept) // 2

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    second = Child(arguments(data, run, save_every=2), before=no_room)
    assert second.wait() == 2
    assert "disk is full" in second.text and "Training goes on from memory" in second.text
    assert f"the checkpoint of step {step} in {run / 'last.pt'} is whole" in second.text
    assert f"What was trained since is lost; the checkpoint of step {step} in" in second.lines[-1]
    assert "Traceback" not in second.text
    assert "step 9 of 9  loss" in second.text
    assert (run / "last.pt").read_bytes() == kept
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert pretrain.main(arguments(data, run)) == 0         # with room again
    assert curve(run) == curve(whole)


def test_a_log_of_tensorboard_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    board = pretrain_log.Board(tmp_path, 0)
    board.scalar("loss", 1.0, 1)
    board.flush()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    for step in range(2, 30):
        board.scalar("loss", 1.0, step)
        board.flush()
    board.close()
    said = capsys.readouterr().err
    assert said.count("TensorBoard's files cannot be written") == 1 and "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a process are looked up in /proc")
def test_a_killed_loader_process_is_a_sentence(data, tmp_path):
    import psutil

    child = Child(arguments(data, tmp_path / "run", steps=500, save_every=2, validate_every=500, workers=1))
    child.read_until("step 5 of 500  loss")
    for process in psutil.Process(child.pid).children():
        process.kill()
    assert child.wait() == 2, child.text
    assert "fewer --workers" in child.lines[-1] and "is whole, and the same command goes on" in child.lines[-1]
    assert "Traceback" not in child.text


@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_loader_process_that_is_killed_while_it_hands_over_is_the_same_sentence(kind, data, tmp_path, monkeypatch,
                                                                                  capsys):
    def torn(self, *args):
        raise kind("torn")

    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(loader, "_next_data", torn)
    assert "fewer --workers" in fails(arguments(data, tmp_path / "run", workers=1), capsys)


def test_other_voxels_in_the_same_files_are_another_set_of_volumes(data, tmp_path, capsys):
    mine, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, mine)
    words = arguments(mine, run, steps=2, warmup=1, validate_every=50, cache=tmp_path / "cache")
    assert pretrain.main([*words, "--save-every", "1"]) == 0
    state = torch.load(run / "last.pt", weights_only=True)
    older = {**state, "recipe": {**state["recipe"], "data": pretrain.digest(
        [[v["name"], v["shape"]] for v in json.loads((run / "data.json").read_text())["volumes"]])}}
    torch.save(older, run / "last.pt")                          # of before voxels were looked at
    assert pretrain.main(words) == 0
    torch.save(state, run / "last.pt")
    image = nibabel.load(next(iter(sorted(mine.rglob("*.nii.gz")))))
    array = np.asarray(image.dataobj).copy()
    array[array.shape[0] // 2, array.shape[1] // 2] += 40
    nibabel.save(nibabel.Nifti1Image(array, image.affine), image.get_filename())
    capsys.readouterr()
    assert "another set of volumes" in fails(words, capsys)


@pytest.mark.parametrize("changes, words", [
    ({"dense_stages": 0}, "another number of dense stages (3, now 0)"),
    ({"lr": 2e-3}, "another learning rate (0.001, now 0.002)"),
    ({"steps": 10}, "another number of steps (9, now 10)"),
    ({"hold_out": "case-1"}, "another set of volumes"),
    ({"variant": "vit_tiny_12p"}, "another variant (tiny_for_tests, now vit_tiny_12p)"),
])
def test_another_recipe_is_refused_in_words(changes, words, whole, data, capsys):
    assert words in fails(arguments(data, whole, **changes), capsys)


def damaged(kind: str, path) -> None:
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[:-1000])
    elif kind == "one bit":
        with zipfile.ZipFile(path) as archive:
            largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        place = content.index(largest) + len(largest) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1:])
    elif kind == "version":
        torch.save({**torch.load(path, weights_only=True), "format_version": 2}, path)
    elif kind == "code":
        class Evil:
            def __reduce__(self):
                return (open, (str(path.with_name("was-run")), "w"))
        with open(path, "wb") as file:
            pickle.dump({"format": Evil()}, file)
    elif kind == "code in an archive":
        torch.save({"format": "hiendseg-pretraining", "step": Trap(path.with_name("was-run"))}, path)
    elif kind == "something else":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif kind == "another network":
        state = torch.load(path, weights_only=True)
        state["network"]["mask_token"] = torch.zeros(1, 1, 18)
        torch.save(state, path)
    elif kind in ("tensor gone", "moment gone", "moment of another shape", "step before 0"):
        state = torch.load(path, weights_only=True)
        if kind == "tensor gone":
            del state["network"]["encoder.cls_token"]
        elif kind == "moment gone":
            del state["optimizer"]["state"]["mask_token"]
        elif kind == "step before 0":
            state["step"] = -3
        else:
            state["optimizer"]["state"]["mask_token"]["exp_avg"] = torch.zeros(3)
        torch.save(state, path)


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("kind, words", [
    ("cut", "is damaged or cut short"), ("one bit", "is damaged or cut short"),
    ("version", "has format version 2, and this HiEndSeg goes on from version 1"),
    ("code", "holds program code"), ("code in an archive", "holds program code"),
    ("something else", "is no checkpoint of training.pretrain"), ("another network", "does not fit the network"),
    ("tensor gone", "encoder.cls_token is missing"), ("moment gone", "state of mask_token is missing"),
    ("moment of another shape", "exp_avg of mask_token has the shape (3,)"),
    ("step before 0", "lacks a step of 0 or more")])
def test_a_bad_checkpoint_is_refused_and_nothing_is_touched(kind, words, whole, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.copy(run / "previous.pt", run / "last.pt")       # of step 8, so that there is something left to do
    damaged(kind, run / "last.pt")
    before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    sentence = fails(arguments(data, run), capsys)
    assert words in sentence and not (run / "was-run").exists()
    assert {path.name: path.read_bytes() for path in run.glob("*.pt")} == before
    if "cut short" in words:
        assert "--resume-from" in sentence
        assert pretrain.main(arguments(data, run, resume_from=run / "previous.pt")) == 0
        assert curve(run) == curve(whole)


def test_what_a_killed_process_left_half_written_is_cleared_away(whole, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.copy(run / "previous.pt", run / "last.pt")
    (run / ".hiendseg-0123456789ab.pt").write_bytes(b"half")
    assert pretrain.main(arguments(data, run)) == 0 and curve(run) == curve(whole)
    assert not list(run.glob(".hiendseg-*"))


def test_lines_tell_the_time_left(capsys):
    progress = Progress(10, 100, batch=4)
    assert progress.line(20, 0.5, 1e-4, 20.0).endswith("2.00 s/step  2.0 crops/s  3 min left")
    assert progress.line(99, 0.5, 1e-4, 79.0).endswith("2 s left")


def test_a_reader_who_left_does_not_end_the_training(monkeypatch):
    class Closed:
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    tell("a line")
    tell("another one")


def test_the_optimiser_is_the_papers(data, whole):
    state = pretrain_state.load(whole / "last.pt")["optimizer"]
    (group,) = state["param_groups"]
    assert tuple(group["betas"]) == (0.9, 0.95) and group["weight_decay"] == 0.05


def test_a_missing_last_checkpoint_with_one_before_it_is_no_fresh_start(whole, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "last.pt").unlink()
    assert "go on from it with --resume-from" in fails(arguments(data, run), capsys)
    assert "There is no checkpoint" in fails(arguments(data, run, resume_from=run / "other.pt"), capsys)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(data, tmp_path, capsys):
    sentence = fails(arguments(data, tmp_path / "run", lr=1e30, warmup=1, save_every=9), capsys)
    assert "has diverged" in sentence and "--lr" in sentence and "no checkpoint has been written yet" in sentence
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("changes, words", [
    ({"variant": "huge"}, "There is no variant 'huge'; choose one of"),
    ({"crop": 25}, "--crop 25 is no multiple of the variant's patch of 6"),
    ({"mask_ratio": 1}, "leaves none or all of the 64 patches visible"),
    ({"dense_stages": 4}, "goes from 0 (plain MAE) to 3, not 4"),
    ({"steps": 0}, "--steps must be more than 0, not 0"),
    ({"p_flip": 1.5}, "flip is between 0 and 1"),
    ({"clip": -1}, "--clip must be 0 or more, not -1"), ({"weight_decay": "nan"}, "--weight-decay must be 0 or more"),
    ({"workers": -1}, "--workers must be 0 or more"), ({"seed": -1}, "--seed must be 0 or more"),
    ({"mask_ratio": "nan"}, "--mask-ratio nan leaves none or all"),
    ({"micro_batch": 3}, "which --micro-batch 3 does not divide"),
    ({"hold_out": "nobody"}, "--hold-out nobody fits no readable volume"),
    ({"weigh": "nobody=2"}, "no volume to train on has this name"),
    ({"weigh": "case-0"}, "write NAME=FACTOR"),
    ({"strategy": "fsdp"}, "needs more than one process"),
    ({"precision": "16-mixed"}, "The CPU has no 16-mixed training"),
])
def test_an_option_that_cannot_be_is_said_in_words(changes, words, data, tmp_path, capsys):
    assert words in fails(arguments(data, tmp_path / "run", **changes), capsys)
    assert not (tmp_path / "run").exists()


def test_mixed_and_unreadable_data_are_said_in_words(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "notes.txt").write_text("no image")
    assert "There is no volume to train on" in fails(arguments(data, tmp_path / "run", hold_out=None), capsys)
    write_ct(data / "ct.nii.gz")
    write_mr(data / "mr.nii.gz")
    (data / "bad.nii.gz").write_bytes(b"bad")
    assert "--modality CT or --modality MR" in fails(arguments(data, tmp_path / "run", hold_out=None), capsys)
    capsys.readouterr()
    assert pretrain.main(arguments(data, tmp_path / "run", hold_out=None, modality="CT", steps=1)) == 0
    said = capsys.readouterr()
    assert "2 of 3 volumes are left out" in said.err and "bad: " in said.err and "1 CT volumes" in said.out


def test_a_rank_with_bad_options_does_not_keep_the_other_waiting(data, tmp_path):
    pair = ranks(arguments(data, tmp_path / "run", batch=3), 2)
    assert [child.wait() for child in pair] == [2, 2]
    assert "A batch of 3 cannot be divided among 2 processes" in pair[0].text and pair[1].text.count("batch of 3") == 0
