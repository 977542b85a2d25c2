"""PreAffineRMSNorm: RMSNorm at the start, and the absorption of an outlier that does not depend on the input."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from torch import nn

from skerry.train.nn import PreAffineRMSNorm, replace_norms


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_the_start_it_is_rms_norm_bit_by_bit(dtype):
    x, plain = (5 * rand(7, 12)).to(dtype), nn.RMSNorm(12, eps=1e-6, dtype=dtype)
    assert torch.equal(PreAffineRMSNorm(12).to(dtype)(x), plain(x))


def test_a_common_factor_of_the_scale_does_not_matter():
    norm, x = PreAffineRMSNorm(6, eps=1e-30).double(), rand(4, 6, dtype=torch.float64)
    with torch.no_grad():
        norm.pre_weight.copy_(rand(6, seed=1, dtype=torch.float64))
        before = norm(x)
        for c in (1e-3, 7.0, 1e4):
            norm.pre_weight.mul_(c)
            torch.testing.assert_close(norm(x), before, atol=1e-12, rtol=1e-12)


def test_a_scale_of_20_makes_the_outlier_of_20():
    norm = PreAffineRMSNorm(5).double()
    with torch.no_grad():
        norm.pre_weight[4] = 20
    calm = torch.tensor([1, -1, 1, -1, 1], dtype=torch.float64)
    loud = torch.tensor([1, -1, 1, -1, 20], dtype=torch.float64)
    assert torch.equal(norm(calm), nn.functional.rms_norm(loud, (5,), None, 1e-6))


def test_replacing_a_trained_rms_norm_changes_nothing():
    net = nn.Sequential(nn.RMSNorm(6, eps=1e-6), nn.Linear(6, 3))
    nn.init.normal_(net[0].weight)
    x = rand(4, 6)
    before = net(x)
    assert torch.equal(replace_norms(net, PreAffineRMSNorm, copy_affine=True)(x), before)


def test_finite_differences():
    norm = PreAffineRMSNorm(4).double()

    def run(x, *values):
        return torch.func.functional_call(norm, dict(zip(["pre_weight", "weight"], values, strict=True)), (x,))

    values = [rand(4, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2)]
    assert torch.autograd.gradcheck(run, (rand(3, 4, dtype=torch.float64).requires_grad_(), *values))


def test_it_compiles_whole_and_keeps_the_dtype_under_autocast():
    norm, x = PreAffineRMSNorm(8), rand(3, 8)
    torch.testing.assert_close(torch.compile(norm, backend="aot_eager", fullgraph=True)(x), norm(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16 and norm(x).dtype == torch.float32
