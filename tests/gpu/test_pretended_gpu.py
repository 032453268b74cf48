"""The GPU that is not there refuses what a GPU refuses, and leaves torch as it was."""

import copy
import os
from pathlib import Path

import pytest
import torch
from pretended_gpu import gpu


def test_tensors_say_that_they_are_on_the_gpu() -> None:
    with gpu() as device:
        made = torch.zeros(3, device="cuda")
        moved = torch.ones(3).to("cuda:0", non_blocking=True)
        layer = torch.nn.Linear(3, 2).to(torch.device("cuda", 0))
        for tensor in (made, moved, made + moved, made[1:], layer.weight, layer(made), moved.half()):
            assert tensor.device == torch.device("cuda", 0)
            assert (tensor.is_cuda, tensor.is_cpu, tensor.get_device()) == (True, False, 0)
        assert moved.to("cuda") is moved.cuda() is moved
        assert copy.deepcopy(made).is_cuda
        assert made.is_cuda
        assert made.cpu().device == moved.to("cpu").device == torch.zeros(1).device == torch.device("cpu")
        layer(made).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.is_cuda
        assert device.allocated > 0


def test_tensors_of_two_devices_do_not_meet() -> None:
    with gpu():
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        for operation in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.nn.functional.linear(there, torch.eye(3)),
            lambda: here[there.long()],
            lambda: torch.where(there > 0, there, here),
        ):
            with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
                operation()
        assert (there + here[0]).is_cuda  # one number of the CPU may be there
        assert there[here.long()].is_cuda


def test_the_gpu_is_no_numpy_array_and_has_a_generator_of_its_own() -> None:
    with gpu():
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            torch.zeros(3, device="cuda").numpy()
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        torch.manual_seed(1)
        of_cpu, of_gpu = torch.get_rng_state(), torch.cuda.get_rng_state(0)
        first = torch.rand(3, device="cuda")
        assert torch.equal(of_cpu, torch.get_rng_state())
        torch.cuda.set_rng_state(of_gpu, torch.device("cuda", 0))
        assert torch.equal(first, torch.rand(3, device="cuda"))


def test_torchs_own_checks_stay_in_front_of_the_driver() -> None:
    with gpu((7, 5), gib=2):
        assert torch.cuda.get_device_capability(0) == (7, 5)
        assert torch.cuda.get_device_properties(0).total_memory == 2 * 2**30
        for device in (torch.device("cuda"), "cuda"):
            with pytest.raises(ValueError, match="specified index"):
                torch.cuda.get_per_process_memory_fraction(device)
        with pytest.raises(AssertionError, match="Invalid device id"):
            torch.cuda.get_device_properties(1)


def test_memory_is_counted_by_storage_and_ends() -> None:
    with gpu(gib=1) as device:
        first = torch.zeros(2**20, device="cuda")
        view = first[:10].view(5, 2)
        assert torch.cuda.memory_allocated(0) == device.allocated == 4 * 2**20
        del first
        assert torch.cuda.memory_allocated(0) == 4 * 2**20
        del view
        assert torch.cuda.memory_allocated(0) == 0
        assert torch.cuda.max_memory_allocated(0) == 4 * 2**20
        torch.cuda.set_per_process_memory_fraction(0.5, 0)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(129 * 2**20, device="cuda")
        torch.cuda.reset_peak_memory_stats(0)
        assert torch.cuda.max_memory_allocated(0) == 0


def test_autocast_rounds_what_cudas_rounds() -> None:
    with gpu():
        layer, x = torch.nn.Linear(4, 4).to("cuda"), torch.rand(2, 4, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            assert layer(x).softmax(-1).dtype == torch.float32
            assert torch.nn.functional.layer_norm(layer(x), (4,)).dtype == torch.float32


def test_waits_of_the_host_are_counted() -> None:
    with gpu() as device:
        x = torch.arange(4, device="cuda")
        x.sum().item()
        x.nonzero()
        x[x > 1].cpu()
        x.tolist()
        assert sum(device.waits.values()) == 5
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as found:
            x.sum().item()
        assert [Path(each.filename) for each in found] == [Path(__file__)]


def test_a_checkpoint_of_the_gpu_is_opened_elsewhere_only_where_that_is_said(tmp_path) -> None:
    with gpu():
        torch.save({"x": torch.ones(2, device="cuda")}, tmp_path / "x.pt")
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", map_location="cpu")["x"].tolist() == [1, 1]


def test_a_forked_process_may_not_use_the_gpu_of_its_parent() -> None:
    with gpu():
        child = os.fork()
        if child == 0:
            try:
                torch.zeros(1, device="cuda")
            except RuntimeError as error:
                os._exit(0 if "forked subprocess" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_torch_is_as_before_afterwards() -> None:
    before = (torch.Tensor.to, torch.Tensor.device, torch.autocast.__init__, torch.cuda.is_available())
    with gpu():
        assert torch.cuda.is_available()
    assert before == (torch.Tensor.to, torch.Tensor.device, torch.autocast.__init__, False)
    assert torch.zeros(1).device.type == "cpu"
