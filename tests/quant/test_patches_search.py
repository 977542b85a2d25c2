"""VDPC, VDQS and plans: thresholds, entropies, the trade that lambda sets, memory, and what a runtime reads."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.deep.mobilenet import InvertedResidual, MobileNetV2
from skerry.quant import quantize_patches
from skerry.quant.patches import VDPC, VDQS, InfeasibleError, PatchExecutor, Plan, QuantMCU, uniform_plan
from skerry.quant.patches.classification import outlier_threshold
from skerry.quant.patches.cost import bit_operations, packed_bytes
from skerry.quant.patches.executor import run_segment
from skerry.quant.patches.graph import read_cnn
from skerry.quant.patches.grids import MapRange, entropy, entropy_after, range_of, round_map
from skerry.quant.patches.receptive import Layout
from skerry.quant.patches.scores import ranges_of

SIDE = 24


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        InvertedResidual(6, 6, 1, 2),
        InvertedResidual(6, 8, 2, 2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()


def pictures(n=32, seed=0):
    """Faint noise with a loud corner."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(n, 2, SIDE, SIDE, generator=generator)
    x[:, :, :8, :8] += 2.0 * torch.rand(n, 2, 8, 8, generator=generator)
    return x


@pytest.fixture(scope="module")
def executor():
    return PatchExecutor(network(), (2, SIDE, SIDE), patches=3, n_stage=9)


# ---- classification --------------------------------------------------------------------------------------------------


def test_thresholds_of_the_brief():
    assert outlier_threshold(0.96) == pytest.approx(2.0537, abs=1e-4)
    assert outlier_threshold(0.9999) == pytest.approx(3.8906, abs=1e-4)


@pytest.mark.parametrize("cell", [(0, 0), (1, 2), (2, 1)])
def test_a_planted_patch_and_no_other_is_of_class_o(cell):
    x = torch.randn(40, 1, 15, 15, generator=torch.Generator().manual_seed(0))
    vdpc = VDPC(0.9999, rho=0.0).fit(0.5 * x, patches=3)
    image = torch.zeros(1, 1, 15, 15)
    image[0, 0, 5 * cell[0] + 2, 5 * cell[1] + 4] = 20 * vdpc.std_
    assert list(zip(*(v.tolist() for v in np.nonzero(vdpc.outlier(image)[0])), strict=True)) == [cell]


def test_extremes_of_phi():
    x = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(0))  # bounded
    assert (VDPC(1 - 1e-12, rho=0.0).fit(x, 3).classes_ == "N").all()
    assert (VDPC(0.0, rho=0.0).fit(x, 3).classes_ == "O").all()


def test_fractions_are_those_of_counting():
    x = torch.randn(5, 3, 11, 13, generator=torch.Generator().manual_seed(2))
    vdpc = VDPC(0.8).fit(x, 2)
    found = vdpc.fractions(x)
    for n, i, j in itertools.product(range(5), range(2), range(2)):
        cell = x[n, :, (0, 6)[i] : (6, 11)[i], (0, 7)[j] : (7, 13)[j]].double().numpy()
        beyond = np.abs(cell - x.double().numpy().mean()) > outlier_threshold(0.8) * x.double().numpy().std()
        assert found[n, i, j] == pytest.approx(beyond.mean())


# ---- grids and entropy -----------------------------------------------------------------------------------------------


def test_entropies_of_the_brief():
    x = torch.linspace(0, 1, 1001)
    assert entropy(x, 0, 1) == pytest.approx(7.9958, abs=1e-4)
    left = {b: entropy_after(x, range_of(x, tail=0), b) for b in (8, 4, 2)}
    assert left[8] == pytest.approx(7.9949, abs=1e-4)
    assert left[4] == pytest.approx(3.9748, abs=1e-4) and left[2] == pytest.approx(1.9186, abs=1e-4)
    assert 1 - left[4] / left[8] == pytest.approx(0.503, abs=1e-3)
    assert 1 - left[2] / left[8] == pytest.approx(0.760, abs=1e-3)


@given(st.integers(0, 2**16), st.floats(0.1, 100), st.floats(-3, 3), st.sampled_from(["normal", "peaked", "heavy"]))
def test_entropy_is_at_most_the_width_and_grows_with_it(seed, scale, shift, kind):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) + shift
    x = {"normal": x, "peaked": x.clamp(min=0), "heavy": x**5}[kind] * scale
    left = [entropy_after(x, range_of(x, tail=0), b) for b in (2, 4, 8)]
    assert all(h <= b + 1e-9 for h, b in zip(left, (2, 4, 8), strict=True))
    assert left[0] <= left[1] + 1e-9 <= left[2] + 2e-9


@given(st.integers(2, 8), st.integers(0, 2**16))
def test_rounding_is_to_the_nearest_level_and_zero_is_exact(bits, seed):
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    span = (float(x.min()), float(x.max()))
    found = round_map(x, span, bits)
    step = (span[1] - span[0]) / (2**bits - 1)
    assert (found - x).abs().max() <= step * 1.001
    assert len(found.unique()) <= 2**bits and float(round_map(torch.zeros(1), span, bits)) == 0.0
    assert torch.allclose(round_map(found, span, bits), found, atol=1e-6)


def test_operands_of_an_addition_share_a_range_whose_scales_are_multiples():
    layout = Layout(read_cnn(network(), (2, SIDE, SIDE)), 3, 9)
    branch = layout.branches[4]
    a, b, c, d = branch.windows[0]
    ranges = ranges_of(layout.graph.ops, branch, pictures()[:, :, a:b, c:d], tail=0.0)
    j = next(j for j in range(branch.end) if layout.graph.ops[j].kind == "add")
    one, other = layout.graph.ops[j].sources
    assert ranges[one] == ranges[other]
    wide = round_map(torch.linspace(*ranges[one].at(8), 999), ranges[one].at(8), 8).unique().diff().mean()
    narrow = round_map(torch.linspace(*ranges[one].at(4), 999), ranges[one].at(4), 4).unique().diff().mean()
    assert float(narrow / wide) == pytest.approx(17, rel=1e-3)


def test_ranges_join_and_tails_are_left_out():
    assert MapRange(0, 2, 0, 1).joined(MapRange(-1, 1, -1, 1)) == MapRange(-1, 2, -1, 1)
    x = torch.cat([torch.zeros(5000), torch.tensor([1000.0])])
    assert range_of(x).at(2) == (0.0, 0.0) and range_of(x).at(4) == (0.0, 1000.0)


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_formula(executor):
    table = VDQS(lam=0.3).scores(executor, pictures(), branch=4)
    branch = executor.layout.branches[4]
    assert set(table) == set(branch.maps)
    assert max(s.gain for row in table.values() for s in row.values()) == 1.0
    for m, row in table.items():
        assert row[8].score == row[8].loss == row[8].gain == 0.0
        for b, s in row.items():
            readers = sum(branch.macs(j) for j in branch.graph.consumers(m) if j < branch.end)
            assert s.gain == pytest.approx(readers * (8 - b) / (6 * max(branch.loads.values())))
            assert s.loss == pytest.approx(1 - s.entropy / row[8].entropy)
            assert s.score == pytest.approx(-0.3 * s.loss + 0.7 * s.gain)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.6, 0.8, 1.0])
def test_the_best_widths_are_those_of_trying_all(executor, lam):
    """The score is a sum over maps: no combination of widths beats the best of each."""
    table = VDQS(lam=lam).scores(executor, pictures(), branch=2)
    maps = sorted(table)[:6]
    best = max(
        itertools.product((8, 4, 2), repeat=len(maps)),
        key=lambda widths: (sum(table[m][b].score for m, b in zip(maps, widths, strict=True)), sum(widths)),
    )
    from skerry.quant.patches.scores import best_width

    assert tuple(best_width(table[m]) for m in maps) == best


def test_ends_of_lambda(executor):
    for lam, bits in ((1.0, 8), (0.0, 2)):
        plan = QuantMCU(lam=lam, vdpc=False, layerwise=True).search(executor, pictures())
        assert all(set(p.widths.values()) == {bits} for p in (*plan.searched, plan.rest))


def test_more_weight_on_entropy_saves_fewer_operations(executor):
    ratios = [QuantMCU(lam=lam).search(executor, pictures()).bitops_ratio for lam in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    assert all(a >= b for a, b in itertools.pairwise(ratios)) and ratios[0] > 1.5 and ratios[-1] == 1.0


def test_a_second_sweep_changes_nothing(executor):
    """With the widths that were found fixed upstream, every map would choose the same again."""
    vdqs, k = VDQS(lam=0.4), 8
    branch = executor.layout.branches[k]
    a, b, c, d = branch.windows[0]
    x = pictures()[:, :, a:b, c:d]
    ranges = ranges_of(executor.rounded_ops, branch, x)
    widths, _ = vdqs.search(executor.rounded_ops, branch, x, ranges)
    again = {}

    def visit(m, values):
        row = vdqs.score_map(branch, m, values, ranges[m])
        again[m] = max(row, key=lambda b: (row[b].score, b))
        return round_map(values, ranges[m].at(widths[m]), widths[m])

    run_segment(executor.rounded_ops, branch, x, visit)
    assert again == widths and len(set(widths.values())) > 1


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_quiet_patches_are_lowered_and_loud_ones_are_not(executor):
    plan = QuantMCU(lam=0.4).search(executor, pictures())
    assert plan.classes.tolist() == [["O", "N", "N"], ["N"] * 3, ["N"] * 3]
    assert set(plan.programs(0)[0][1].widths.values()) == {8}
    assert plan.bitops_ratio > 1 and min(plan.programs(8)[0][1].widths.values()) < 8
    assert plan.search["seconds"] > 0 and set(plan.search["tables"]) == set(range(1, 9))


def test_all_loud_is_uniform_int8_bit_for_bit(executor):
    plan = QuantMCU(phi=0.0, rho=0.0).search(executor, pictures())
    plain = uniform_plan(executor, pictures(), 8)
    assert (plan.classes == "O").all() and plan.bitops_ratio == 1.0
    x = pictures(7, seed=3)
    assert torch.equal(executor.run(x, plan), executor.run(x, plain)) and plan.cost() == plain.cost()


def test_one_patch_is_the_network_with_every_map_rounded():
    net, x = network(), pictures()
    executor = PatchExecutor(net, (2, SIDE, SIDE), patches=1, n_stage=9)
    plan = uniform_plan(executor, x, 8)
    assert plan.cost().redundancy == 1.0
    maps = {0: x}
    spans = {**plan.searched[0].spans, **plan.rest.spans}
    from skerry.quant.patches.graph import apply_op

    for j, op in enumerate(executor.rounded_ops):
        inputs = [round_map(maps[s], spans[s], 8) for s in op.sources]
        maps[j + 1] = apply_op(op, inputs, op.pad)
    assert torch.allclose(executor.run(x, plan), maps[len(executor.graph.ops)].flatten(1), atol=1e-5)
    assert (executor.run(x, plan) - net(x)).abs().max() < 0.1 * net(x).abs().max()


def test_dynamic_classes_choose_a_program_for_each_image(executor):
    x = pictures()
    x[::4, :, :8, :8] = 0.0  # every fourth image is quiet everywhere
    plan = QuantMCU(lam=0.4, mode="dynamic").search(executor, x)
    assert plan.share[0, 0] == 0.75
    alone = [executor.run(x[i : i + 1], plan) for i in range(4)]
    assert torch.allclose(executor.run(x[:4], plan), torch.cat(alone), atol=1e-6)
    low = replace(plan, mode="static", classes=np.full((3, 3), "N"))
    assert torch.allclose(executor.run(x[:1], plan), executor.run(x[:1], low), atol=1e-6)
    cost, high, least = plan.cost(), uniform_plan(executor, x).cost(), low.cost()
    branch = executor.layout.branches[0]
    loud = bit_operations(branch, plan.outlier[0].widths) - bit_operations(branch, plan.searched[0].widths)
    assert least.bitops < cost.bitops < high.bitops
    assert cost.bitops == pytest.approx(least.bitops + 0.75 * loud, rel=0.02)  # other patches are seldom loud


# ---- cost ------------------------------------------------------------------------------------------------------------


def test_bit_operations_of_the_brief():
    layout = Layout(read_cnn(nn.Conv2d(10, 1, 1), (10, 10, 10)), 1, 1)
    assert layout.branches[0].macs(0) == 1000
    assert bit_operations(layout.branches[0], {0: 4}) == 32000


def test_redundant_work_is_that_of_counting_every_branch():
    layout = Layout(read_cnn(MobileNetV2(5, 1), (1, 40, 40)), 3)
    graph = layout.graph
    total = whole = 0
    for tile in [*layout.tiles, None]:
        needed = {layout.n_stage: tile or (0, *[v for s in graph.shape(layout.n_stage)[1:] for v in (s, 0)][:3])}
        values = {m: np.zeros(graph.shape(m)[1:], bool) for m in range(layout.n_stage + 1)}
        a, b, c, d = needed[layout.n_stage]
        values[layout.n_stage][a:b, c:d] = True
        for j in reversed(range(layout.n_stage)):  # mark what each value reads, one by one
            op = graph.ops[j]
            for s in op.sources:
                for r, q in zip(*np.nonzero(values[j + 1]), strict=True):
                    r0, q0 = r * op.stride[0] - op.pad[0], q * op.stride[1] - op.pad[1]
                    values[s][max(r0, 0) : r0 + op.kernel[0], max(q0, 0) : q0 + op.kernel[1]] = True
        count = 0
        for j in range(layout.n_stage):
            op, marked = graph.ops[j], int(values[j + 1].sum())
            per = (
                len(op.sources) if op.kind == "add" else graph.shape(op.sources[0])[0] // op.groups * np.prod(op.kernel)
            )
            count += marked * op.shape[0] * int(per)
        if tile is None:
            whole = count
        else:
            total += count
    assert sum(b.total_macs for b in layout.branches) == total
    assert layout.redundancy == pytest.approx(total / whole) and layout.redundancy > 1.1


def simulate_memory(plan):
    """Allocate and free every buffer in the order in which a runtime would, and return the most that was taken."""
    layout, graph = plan.layout, plan.layout.graph
    output_bits = plan.rest.widths[layout.n_stage]
    worst, assembled = 0, 0
    for k, branch in enumerate(layout.branches):
        ((_, program),) = plan.programs(k)
        heap = {0: packed_bytes(branch.values(0), program.widths[0])}
        for j in range(layout.n_stage):
            bits = output_bits if j + 1 == layout.n_stage else program.widths[j + 1]
            heap[j + 1] = packed_bytes(branch.values(j + 1), bits)
            worst = max(worst, assembled + sum(heap.values()))
            later = {s for op in graph.ops[j + 1 : layout.n_stage] for s in op.sources}
            heap = {m: size for m, size in heap.items() if m in later or m == j + 1}
        assembled += heap[layout.n_stage]
    heap = {layout.n_stage: packed_bytes(int(np.prod(graph.shape(layout.n_stage))), output_bits)}
    for j in range(layout.n_stage, len(graph.ops)):
        bits = plan.rest.widths.get(j + 1, 8)
        heap[j + 1] = packed_bytes(int(np.prod(graph.shape(j + 1))), bits)
        worst = max(worst, sum(heap.values()))
        later = {s for op in graph.ops[j + 1 :] for s in op.sources}
        heap = {m: size for m, size in heap.items() if m in later or m == j + 1}
    return worst


@settings(max_examples=8)
@given(st.integers(1, 4), st.sampled_from([1, 5, 9]), st.integers(0, 100))
def test_peak_memory_is_that_of_a_simulated_heap(patches, n_stage, seed):
    executor = PatchExecutor(network(), (2, SIDE, SIDE), patches=patches, n_stage=n_stage)
    plan = uniform_plan(executor, pictures(4))
    rng = np.random.default_rng(seed)

    def mixed(program):
        return replace(program, widths={m: int(rng.choice([2, 4, 8])) for m in program.widths})

    plan = replace(plan, outlier=tuple(mixed(p) for p in plan.outlier), rest=mixed(plan.rest))
    assert plan.peak_sram == simulate_memory(plan)


def test_patches_need_less_memory_and_more_work():
    costs = [uniform_plan(PatchExecutor(network(), (2, SIDE, SIDE), patches=p), pictures(4)).cost() for p in (1, 2, 3)]
    assert costs[0].peak > costs[1].peak > costs[2].peak
    assert costs[0].macs == costs[0].macs_unpatched < costs[1].macs < costs[2].macs


def test_memory_is_repaired_or_refused(executor):
    free = QuantMCU(lam=1.0, vdpc=False).search(executor, pictures())
    least = QuantMCU(lam=0.0, vdpc=False).search(executor, pictures()).peak_sram
    assert least < free.peak_sram
    limit = (least + free.peak_sram) // 2
    plan = QuantMCU(lam=1.0, vdpc=False, sram=limit).search(executor, pictures())
    assert plan.peak_sram <= limit and plan.search["repairs"] and plan.peak_sram == simulate_memory(plan)
    assert {r["branch"] for r in plan.diff(free)} <= set(range(9))
    with pytest.raises(InfeasibleError, match="Try more patches"):
        QuantMCU(lam=1.0, vdpc=False, sram=least - 1).search(executor, pictures())
    floor = QuantMCU(lam=0.0, vdpc=False, layerwise=True).search(executor, pictures()).peak_sram
    assert floor < least  # tiles that are done, and the layers after the stage, can be lowered, too
    tight = QuantMCU(lam=1.0, vdpc=False, sram=floor, layerwise=True).search(executor, pictures())
    assert tight.peak_sram == floor and min(tight.rest.widths.values()) < 8


def test_patches_with_outliers_are_never_lowered_for_memory(executor):
    needs = QuantMCU(phi=0.0, rho=0.0).search(executor, pictures()).peak_sram
    with pytest.raises(InfeasibleError, match=f"needs {needs} bytes"):
        QuantMCU(phi=0.0, rho=0.0, sram=needs - 1).search(executor, pictures())


# ---- what a runtime reads, and errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_json_round_trip(executor, mode):
    plan = QuantMCU(lam=0.4, mode=mode).search(executor, pictures())
    again = Plan.from_json(plan.to_json(), executor.layout)
    assert again.diff(plan) == [] and again.cost() == plan.cost()
    x = pictures(5, seed=1)
    assert torch.equal(executor.run(x, again), executor.run(x, plan))
    step = json.loads(plan.to_json())["branches"][1]["searched"][0]
    assert {"op", "in_window", "out_window", "pads", "w_bits", "a_bits_in", "a_bits_out", "macs", "bytes_in"} <= set(
        step
    )
    assert sum(s["bitops"] for s in json.loads(plan.to_json())["rest"]) == bit_operations(
        executor.layout.rest, plan.rest.widths
    )


def test_plans_of_others_are_refused(executor):
    plan = QuantMCU().search(executor, pictures())
    other = PatchExecutor(network(), (2, SIDE, SIDE), patches=2, n_stage=9)
    with pytest.raises(ModelError, match="another"):
        other.run(pictures(2), plan)
    with pytest.raises(ModelError, match="another"):
        Plan.from_json(plan.to_json(), other.layout)
    for text in ("{}", "not json", "[]"):
        with pytest.raises(ModelError, match="no plan of patches"):
            Plan.from_json(text, executor.layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (8, 1)}, "from 2 to 8"),
        ({"bits": (16, 4)}, "from 2 to 8"),
        ({"bits": ()}, "from 2 to 8"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"phi": 1.0}, "phi is 1.0"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"mode": "both"}, "mode must be"),
        ({"sram": 0}, "sram is 0"),
        ({"patches": 40}, "does not fit a feature map"),
        ({"weight_bits": 1}, "bits must be 2 to 8"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        quantize_patches(network(), pictures(4), **options)


def test_images_that_cannot_calibrate_are_refused():
    with pytest.raises(DataError, match="constant images"):
        quantize_patches(network(), torch.full((4, 2, SIDE, SIDE), 0.5))
    with pytest.raises(DataError, match="NaN"):
        quantize_patches(network(), torch.full((4, 2, SIDE, SIDE), float("nan")))
    with pytest.raises(ModelError, match="does not take images of shape"):
        quantize_patches(network(), torch.rand(4, 1, SIDE, SIDE))
    with pytest.raises(ParameterError, match="nothing to classify"):
        QuantMCU(vdpc=False, mode="dynamic")


def test_a_network_that_ends_with_its_stage():
    """A map as the result, and nothing after the patches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    small = quantize_patches(net, pictures(), patches=2, n_stage=2, lam=0.4)
    assert small(pictures(3)).shape == net(pictures(3)).shape == (3, 3, 12, 12)
    assert small.plan.bitops_ratio > 1 and small.plan.peak_sram > 0
    again = Plan.from_json(small.plan.to_json(), small.executor.layout)
    assert torch.equal(small.executor.run(pictures(3), again), small(pictures(3)))


def test_one_call(executor):
    small = quantize_patches(network(), pictures().numpy(), patches=3, n_stage=9, lam=0.4)
    assert torch.equal(small(pictures(3)), executor.run(pictures(3), QuantMCU(lam=0.4).search(executor, pictures())))
    report = small.report()
    assert report["bitops_ratio"] == small.plan.bitops_ratio and np.shape(report["mean_bits"]) == (3, 3)
    assert report["mean_bits"][0][0] == 8.0
